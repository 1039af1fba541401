use std::fmt;
use std::str::FromStr;

use super::{DEFAULT_PROFILE, EventKind, MAX_GPUS, Profile, State, UnknownProfile};

/// XID of an uncorrected ECC error.
const XID_DOUBLE_BIT_ECC: u64 = 48;
/// XID of a card that has fallen off the bus.
const XID_FALLEN_OFF_THE_BUS: u64 = 79;
/// Longest wait that can be asked for: an hour.
const MAX_HANG_MS: u64 = 3_600_000;

/// Something that is done to a card, or to the driver under all of them.
///
/// Written and read as words: `xid 79`, `lost`, `ecc 2`, `hang 5000`, `heal`,
/// `remove`, `add`, `add h100-80gb`, `unload`, `load`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The driver reports this XID for the card.
    Xid(u64),
    /// The card falls off the bus: XID 79, then no answer but "lost".
    Lost,
    /// So many uncorrected ECC errors more, with their event and XID 48.
    Ecc(u64),
    /// Every question about the card takes so many milliseconds from now on.
    Hang(u64),
    /// The card is as after a reset: not lost, not slow, no ECC errors counted.
    Heal,
    /// The card is taken out of the machine. A library that is already initialised
    /// calls it lost; one that is initialised afterwards does not see it.
    Remove,
    /// The card is put back; or, with the first free index, a card of the named (or
    /// the default) profile is put in. Seen at the next initialisation.
    Add(Option<String>),
    /// The driver is unloaded, whatever the index.
    Unload,
    /// The driver is loaded again, whatever the index.
    Load,
}

/// A fault that cannot be understood or does not fit the machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// The words are no fault.
    #[error(
        "`{0}` is no fault; use xid N, lost, ecc N, hang MILLISECONDS, heal, remove, add [PROFILE], unload or load"
    )]
    Unknown(String),
    /// The number is missing or out of range.
    #[error("`{verb}` needs a number from {min} to {max}, not `{given}`")]
    Number {
        /// The fault's first word.
        verb: &'static str,
        /// What stands where the number should be.
        given: String,
        /// Lowest number allowed.
        min: u64,
        /// Highest number allowed.
        max: u64,
    },
    /// There is no card of this index.
    #[error("there is no GPU {index}; this node has {count}, counted from 0")]
    NoSuchGpu {
        /// The index that was asked for.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// The card is not in the machine.
    #[error("GPU {0} was removed; add it first")]
    Removed(usize),
    /// The card is in the machine already, or the machine is full.
    #[error("GPU {index} cannot be added: {why}")]
    CannotAdd {
        /// The index that was asked for.
        index: usize,
        /// Why not.
        why: String,
    },
    /// The card counts no ECC errors.
    #[error("GPU {index} ({model}) has error correction switched off, so it has no ECC errors")]
    NoEcc {
        /// The card's index.
        index: usize,
        /// The card's model.
        model: String,
    },
    /// The profile to add is not known.
    #[error(transparent)]
    Profile(#[from] UnknownProfile),
}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let words: Vec<&str> = text.split_whitespace().collect();
        match words.as_slice() {
            ["xid", code] => Ok(Self::Xid(number("xid", code, 1, u64::from(u32::MAX))?)),
            ["lost"] => Ok(Self::Lost),
            ["ecc"] => Ok(Self::Ecc(1)),
            ["ecc", count] => Ok(Self::Ecc(number("ecc", count, 1, u64::from(u32::MAX))?)),
            ["hang", time_ms] => Ok(Self::Hang(number("hang", time_ms, 0, MAX_HANG_MS)?)),
            ["heal"] => Ok(Self::Heal),
            ["remove"] => Ok(Self::Remove),
            ["add"] => Ok(Self::Add(None)),
            ["add", profile] => Ok(Self::Add(Some((*profile).to_owned()))),
            ["unload"] => Ok(Self::Unload),
            ["load"] => Ok(Self::Load),
            _ => Err(FaultError::Unknown(text.to_owned())),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xid(code) => write!(f, "xid {code}"),
            Self::Lost => f.write_str("lost"),
            Self::Ecc(count) => write!(f, "ecc {count}"),
            Self::Hang(time_ms) => write!(f, "hang {time_ms}"),
            Self::Heal => f.write_str("heal"),
            Self::Remove => f.write_str("remove"),
            Self::Add(None) => f.write_str("add"),
            Self::Add(Some(profile)) => write!(f, "add {profile}"),
            Self::Unload => f.write_str("unload"),
            Self::Load => f.write_str("load"),
        }
    }
}

fn number(verb: &'static str, given: &str, min: u64, max: u64) -> Result<u64, FaultError> {
    given
        .parse()
        .ok()
        .filter(|number| (min..=max).contains(number))
        .ok_or_else(|| FaultError::Number {
            verb,
            given: given.to_owned(),
            min,
            max,
        })
}

impl State {
    /// Does this to the card of this index (counted over all cards of the state,
    /// removed ones included).
    pub fn inject(&mut self, index: usize, fault: &Fault) -> Result<(), FaultError> {
        match fault {
            Fault::Add(profile) => return self.add(index, profile.as_deref()),
            Fault::Unload => {
                self.driver.loaded = false;
                return Ok(());
            }
            Fault::Load => {
                self.driver.loads += u64::from(!self.driver.loaded);
                self.driver.loaded = true;
                return Ok(());
            }
            _ => {}
        }
        let count = self.gpus.len();
        let gpu = self
            .gpus
            .get_mut(index)
            .ok_or(FaultError::NoSuchGpu { index, count })?;
        if !gpu.present {
            return Err(FaultError::Removed(index));
        }
        let uuid = gpu.uuid.clone();
        match fault {
            Fault::Xid(code) => self.record(&uuid, EventKind::Xid, *code),
            Fault::Lost => {
                gpu.lost = true;
                self.record(&uuid, EventKind::Xid, XID_FALLEN_OFF_THE_BUS);
            }
            Fault::Ecc(_) if !gpu.profile.ecc_enabled => {
                return Err(FaultError::NoEcc {
                    index,
                    model: gpu.profile.model.clone(),
                });
            }
            Fault::Ecc(errors) => {
                gpu.ecc_uncorrected = gpu.ecc_uncorrected.saturating_add(*errors);
                self.record(&uuid, EventKind::DoubleBitEcc, 0);
                self.record(&uuid, EventKind::Xid, XID_DOUBLE_BIT_ECC);
            }
            Fault::Hang(time_ms) => gpu.hang_ms = *time_ms,
            Fault::Heal => {
                gpu.lost = false;
                gpu.hang_ms = 0;
                gpu.ecc_uncorrected = 0;
            }
            Fault::Remove => gpu.present = false,
            // Handled above, because they need no card.
            Fault::Add(_) | Fault::Unload | Fault::Load => {}
        }
        Ok(())
    }

    fn add(&mut self, index: usize, profile: Option<&str>) -> Result<(), FaultError> {
        let count = self.gpus.len();
        let refused = |why: String| Err(FaultError::CannotAdd { index, why });
        if let Some(gpu) = self.gpus.get_mut(index) {
            if gpu.present {
                return refused("it is in the machine".to_owned());
            }
            if let Some(profile) = profile {
                gpu.profile = Profile::named(profile)?;
            }
            gpu.present = true;
            gpu.lost = false;
            return Ok(());
        }
        if count >= MAX_GPUS {
            return refused(format!("a machine holds at most {MAX_GPUS}"));
        }
        if index > count {
            return refused(format!("the next free index is {count}"));
        }
        self.plug_in(Profile::named(profile.unwrap_or(DEFAULT_PROFILE))?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> State {
        State::from_profile("t4", 2, "node").unwrap()
    }

    #[test]
    fn every_fault_is_read_as_it_is_written() {
        for text in [
            "xid 79",
            "lost",
            "ecc 2",
            "hang 5000",
            "heal",
            "remove",
            "add",
            "add t4",
            "unload",
            "load",
        ] {
            assert_eq!(text.parse::<Fault>().unwrap().to_string(), text);
        }
        assert_eq!(" xid   13 ".parse(), Ok(Fault::Xid(13)));
        assert_eq!("ecc".parse(), Ok(Fault::Ecc(1)));
    }

    #[test]
    fn what_is_no_fault_is_refused_with_what_would_be_one() {
        let message = |text: &str| text.parse::<Fault>().unwrap_err().to_string();
        assert!(message("explode").contains("use xid N, lost"));
        assert_eq!(
            message("xid many"),
            "`xid` needs a number from 1 to 4294967295, not `many`"
        );
        assert!(message("hang -1").contains("0 to 3600000"));
    }

    #[test]
    fn a_lost_card_has_its_xid_and_heals() {
        let mut state = machine();
        state.inject(1, &Fault::Lost).unwrap();
        assert!(state.gpus[1].lost && !state.gpus[0].lost);
        assert_eq!(state.events[0].data, 79);
        assert_eq!(state.events[0].uuid, state.gpus[1].uuid);
        state.inject(1, &Fault::Heal).unwrap();
        assert!(!state.gpus[1].lost);
    }

    #[test]
    fn a_card_can_be_removed_put_back_and_joined_by_another() {
        let mut state = machine();
        let uuid = state.gpus[0].uuid.clone();
        state.inject(0, &Fault::Remove).unwrap();
        assert_eq!(state.inject(0, &Fault::Lost), Err(FaultError::Removed(0)));
        state.inject(0, &Fault::Add(None)).unwrap();
        assert_eq!(state.gpus[0].uuid, uuid);
        state
            .inject(2, &Fault::Add(Some("h100-80gb".to_owned())))
            .unwrap();
        assert_eq!(state.gpus[2].profile.name, "h100-80gb");
        assert_eq!(state.gpus[2].minor, 2);
        let refused = state.inject(9, &Fault::Add(None)).unwrap_err().to_string();
        assert_eq!(refused, "GPU 9 cannot be added: the next free index is 3");
    }

    #[test]
    fn a_card_without_error_correction_has_no_ecc_errors() {
        let mut state = State::from_profile("rtx-4090", 1, "node").unwrap();
        assert!(matches!(
            state.inject(0, &Fault::Ecc(1)),
            Err(FaultError::NoEcc { index: 0, .. })
        ));
        let mut state = machine();
        state.inject(0, &Fault::Ecc(2)).unwrap();
        assert_eq!(state.gpus[0].ecc_uncorrected, 2);
        assert_eq!(state.events.len(), 2);
    }

    #[test]
    fn loading_a_loaded_driver_changes_nothing() {
        let mut state = machine();
        state.inject(0, &Fault::Load).unwrap();
        assert_eq!(state, machine());
        state.inject(0, &Fault::Unload).unwrap();
        state.inject(0, &Fault::Load).unwrap();
        assert_eq!(state.driver.loads, 2);
    }
}
