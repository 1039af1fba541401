//! XIDs: the numbers under which NVIDIA's driver reports errors.
//!
//! The table follows NVIDIA's catalogue of XIDs ("Analyzing Xid Errors with the Xid Catalog"),
//! its older list for cards before Ampere, and the defaults of NVIDIA's own device plugin. What
//! the catalogue calls unused is left out: where such a number comes all the same, nobody knows
//! what it means.

use super::finding::Severity;

/// What an XID means for the GPU, or for the partition that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// A program did something wrong or was stopped, or nothing happened at all. The GPU is in
    /// order: the XID is counted and is no finding.
    Harmless,
    /// It is told, until a quiet time has passed.
    Note,
    /// Nobody new gets the GPU until a quiet time has passed. Where more is needed, the
    /// driver's state says so by itself (a pending row-remap, a recovery action).
    Drain,
    /// Nobody new gets the GPU before it was reset or the machine was rebooted.
    DrainUntilReset,
    /// What runs there is lost, and only a reset or a reboot brings the GPU back.
    OutUntilReset,
    /// The same, and the GPU does not answer until then: when it does, it was reset.
    Gone,
}

impl Effect {
    /// How grave it is.
    #[must_use]
    pub fn severity(self) -> Severity {
        match self {
            Self::Harmless | Self::Note => Severity::Note,
            Self::Drain | Self::DrainUntilReset => Severity::Drain,
            Self::OutUntilReset | Self::Gone => Severity::Out,
        }
    }

    /// Whether it stays until the GPU was reset.
    #[must_use]
    pub fn needs_reset(self) -> bool {
        matches!(
            self,
            Self::DrainUntilReset | Self::OutUntilReset | Self::Gone
        )
    }
}

/// What is known of an XID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Xid {
    /// The number.
    pub code: u64,
    /// What it means for the GPU.
    pub effect: Effect,
    /// What happened.
    pub meaning: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

const PROGRAM: &str = "look at the program that used the GPU";
const NOTHING: &str = "nothing is to be done";
const WATCH: &str = "report it to NVIDIA if it happens often";
const RESET: &str = "when its work is done, stop this plugin on the node, reset the GPU (nvidia-smi --gpu-reset) or reboot";
const RESET_NOW: &str = "stop what uses the GPU and this plugin on the node, then reset the GPU (nvidia-smi --gpu-reset) or reboot";
const REBOOT: &str = "check seat, power and cooling of the card, then reboot the machine";
const REPLACE: &str = "reset the GPU, and have the card replaced if it happens again";
const CABLES: &str = "check the card's power cables";
const LINKS: &str = "check bridges, cables and the fabric manager; reset the GPU if it lasts";
const UPDATE: &str = "update the NVIDIA driver";

/// The XIDs with a meaning of their own, by number. Any other one drains the GPU for a while,
/// because that is the safe side.
#[rustfmt::skip] // One line for each XID: it is read as a table.
pub const KNOWN: [Xid; 113] = {
    use Effect::{Drain, DrainUntilReset, Gone, Harmless, Note, OutUntilReset};
    [
        xid(8, Harmless, "a program on the GPU stood still", PROGRAM),
        xid(11, Harmless, "a program's commands were invalid or damaged", PROGRAM),
        xid(13, Harmless, "a program caused an exception of the graphics engine", PROGRAM),
        xid(14, Harmless, "a test of the driver's error handling", NOTHING),
        xid(25, Harmless, "a program's commands were invalid or not allowed", PROGRAM),
        xid(31, Harmless, "a program touched memory that is not its own", PROGRAM),
        xid(32, Harmless, "a program's commands were invalid or damaged", PROGRAM),
        xid(37, Note, "an error of the driver's firmware", WATCH),
        xid(38, Note, "an error of the driver's firmware", WATCH),
        xid(39, Harmless, "a program caused an exception of copy engine 0", PROGRAM),
        xid(40, Harmless, "a program caused an exception of copy engine 1", PROGRAM),
        xid(41, Harmless, "a program caused an exception of copy engine 2", PROGRAM),
        xid(43, Harmless, "a program on the GPU stopped after an error of its own", PROGRAM),
        xid(44, Note, "a fault of the graphics engine between two programs", WATCH),
        xid(45, Harmless, "a program on the GPU was stopped", PROGRAM),
        xid(46, DrainUntilReset, "the GPU stopped working", RESET),
        xid(48, DrainUntilReset, "an uncorrectable ECC error in the GPU's memory", RESET),
        xid(54, Drain, "the card's auxiliary power is not connected", CABLES),
        xid(57, DrainUntilReset, "the link to the card's memory could not be set up", REPLACE),
        xid(58, DrainUntilReset, "an error of the card's memory", REPLACE),
        xid(60, Harmless, "a program caused an exception of the video processor", PROGRAM),
        xid(61, OutUntilReset, "the GPU's microcontroller stopped", RESET_NOW),
        xid(62, OutUntilReset, "the GPU's microcontroller halted", RESET_NOW),
        xid(63, Note, "a faulty row or page of memory is replaced", NOTHING),
        xid(64, OutUntilReset, "a faulty row or page of memory could not be replaced", REPLACE),
        xid(66, Note, "the driver touched what it may not", WATCH),
        xid(67, Note, "the driver touched what it may not", WATCH),
        xid(68, Harmless, "a program caused an exception of video decoder 0", PROGRAM),
        xid(69, Harmless, "a program caused an error of the graphics engine", PROGRAM),
        xid(70, Harmless, "a program caused an exception of copy engine 3", PROGRAM),
        xid(71, Harmless, "a program caused an exception of copy engine 4", PROGRAM),
        xid(72, Harmless, "a program caused an exception of copy engine 5", PROGRAM),
        xid(74, DrainUntilReset, "an error of the NVLink connection", LINKS),
        xid(75, Harmless, "a program caused an exception of copy engine 6", PROGRAM),
        xid(76, Harmless, "a program caused an exception of copy engine 7", PROGRAM),
        xid(77, Harmless, "a program caused an exception of copy engine 8", PROGRAM),
        xid(78, Note, "a virtual GPU could not be started", UPDATE),
        xid(79, Gone, "the GPU has fallen off the bus", REBOOT),
        xid(80, Harmless, "a program's commands were damaged on the way", PROGRAM),
        xid(82, Harmless, "a program caused an exception of JPEG engine 0", PROGRAM),
        xid(83, Harmless, "a program caused an exception of video decoder 1", PROGRAM),
        xid(84, Harmless, "a program caused an exception of video decoder 2", PROGRAM),
        xid(85, Harmless, "a program caused an exception of copy engine 9", PROGRAM),
        xid(86, Harmless, "a program caused an exception of optical-flow engine 0", PROGRAM),
        xid(88, Harmless, "a program caused an exception of video decoder 3", PROGRAM),
        xid(89, Harmless, "a program caused an exception of video decoder 4", PROGRAM),
        xid(92, Note, "a high rate of corrected ECC errors", "have the card checked, and replaced if it lasts"),
        xid(93, Note, "the card's own storage was written more often than planned", WATCH),
        xid(94, Drain, "an uncorrectable ECC error, contained to one program", "start that program again; where a reset is needed, the driver says so"),
        xid(95, OutUntilReset, "an uncorrectable ECC error that was not contained", RESET_NOW),
        xid(96, Harmless, "a program caused an exception of video decoder 5", PROGRAM),
        xid(97, Harmless, "a program caused an exception of video decoder 6", PROGRAM),
        xid(98, Harmless, "a program caused an exception of video decoder 7", PROGRAM),
        xid(99, Harmless, "a program caused an exception of JPEG engine 1", PROGRAM),
        xid(100, Harmless, "a program caused an exception of JPEG engine 2", PROGRAM),
        xid(101, Harmless, "a program caused an exception of JPEG engine 3", PROGRAM),
        xid(102, Harmless, "a program caused an exception of JPEG engine 4", PROGRAM),
        xid(103, Harmless, "a program caused an exception of JPEG engine 5", PROGRAM),
        xid(104, Harmless, "a program caused an exception of JPEG engine 6", PROGRAM),
        xid(105, Harmless, "a program caused an exception of JPEG engine 7", PROGRAM),
        xid(106, Harmless, "a test message of the management bus", NOTHING),
        xid(107, Harmless, "a test message of the management bus", NOTHING),
        xid(108, Harmless, "a program's access over NVLink could not be translated", PROGRAM),
        // NVIDIA's catalogue asks for a reset where it stays; its plugin and ours take it for
        // what it mostly is.
        xid(109, Harmless, "a program did not give the GPU up in time", PROGRAM),
        xid(110, DrainUntilReset, "a security fault", RESET),
        xid(119, OutUntilReset, "the GPU's system processor did not answer", RESET_NOW),
        xid(120, OutUntilReset, "the GPU's system processor failed", RESET_NOW),
        xid(121, Note, "an error of the link between GPU and processor", WATCH),
        xid(126, Harmless, "a program caused an exception of copy engine 10", PROGRAM),
        xid(127, Harmless, "a program caused an exception of copy engine 11", PROGRAM),
        xid(128, Harmless, "a program caused an exception of copy engine 12", PROGRAM),
        xid(129, Harmless, "a program caused an exception of copy engine 13", PROGRAM),
        xid(130, Harmless, "a program caused an exception of copy engine 14", PROGRAM),
        xid(131, Harmless, "a program caused an exception of copy engine 15", PROGRAM),
        xid(132, Harmless, "a program caused an exception of copy engine 16", PROGRAM),
        xid(133, Harmless, "a program caused an exception of copy engine 17", PROGRAM),
        xid(134, Harmless, "a program caused an exception of copy engine 18", PROGRAM),
        xid(135, Harmless, "a program caused an exception of copy engine 19", PROGRAM),
        xid(136, DrainUntilReset, "an NVLink connection could not be set up", LINKS),
        xid(137, Harmless, "a program touched memory of another GPU that is not its own", PROGRAM),
        xid(139, Harmless, "a program caused an exception of optical-flow engine 1", PROGRAM),
        xid(140, OutUntilReset, "an uncorrected ECC error that nothing recovered from", RESET_NOW),
        xid(141, Harmless, "a program left CUDA's fast path", PROGRAM),
        xid(143, OutUntilReset, "the GPU could not be initialised", RESET_NOW),
        // The next seven are mostly not fatal. Where they are, the driver asks for a reset.
        xid(144, Drain, "an error of NVLink (SAW)", LINKS),
        xid(145, Drain, "an error of NVLink (RLW)", LINKS),
        xid(146, Drain, "an error of NVLink (TLW)", LINKS),
        xid(147, Drain, "an error of NVLink (TREX)", LINKS),
        xid(148, Drain, "an error of NVLink (control)", LINKS),
        xid(149, Drain, "an error of NVLink (network interface)", LINKS),
        xid(150, Drain, "an error of NVLink (management)", LINKS),
        xid(151, Drain, "the keys of confidential computing could not be changed", "restart the virtual machine"),
        xid(152, Harmless, "a program touched memory of a learning accelerator that is not its own", PROGRAM),
        xid(153, Harmless, "a program on a learning accelerator did not end in time", PROGRAM),
        // What it asks for is read from the driver.
        xid(154, Note, "what the driver asks to be done has changed", NOTHING),
        xid(155, DrainUntilReset, "an error of NVLink that the driver reports", LINKS),
        xid(156, DrainUntilReset, "a faulty part of the GPU is retired at the next reset", RESET),
        xid(157, Note, "a faulty part of the GPU could not be retired", WATCH),
        xid(158, OutUntilReset, "the GPU did not answer in time", RESET_NOW),
        xid(159, Drain, "an error of the bus between GPU and processor", WATCH),
        xid(160, Note, "a faulty memory channel is retired", NOTHING),
        xid(161, Note, "a faulty memory channel could not be retired", WATCH),
        xid(162, Harmless, "the smoothing of power is on again", NOTHING),
        xid(163, Note, "the smoothing of power is off", WATCH),
        xid(164, Note, "the circuits that smooth power near the end of their life", "plan to have the card replaced"),
        xid(165, Note, "the circuits that smooth power are at the end of their life", "plan to have the card replaced"),
        xid(166, Drain, "traffic over NVLink before it was encrypted", LINKS),
        xid(167, OutUntilReset, "the GPU's PCI Express link did not answer in time", REBOOT),
        xid(168, DrainUntilReset, "the GPU has less memory than it should, after errors", RESET),
        xid(169, OutUntilReset, "the GPU's security processor halted", RESET_NOW),
        xid(170, Drain, "an error of NVLink while it was encrypted", LINKS),
        xid(171, DrainUntilReset, "an uncorrectable error in the GPU's memory", RESET),
        xid(172, DrainUntilReset, "an uncorrectable error in the GPU's SRAM", RESET),
    ]
};

const fn xid(code: u64, effect: Effect, meaning: &'static str, remedy: &'static str) -> Xid {
    Xid {
        code,
        effect,
        meaning,
        remedy,
    }
}

/// What is known of this XID; of an unknown one, that it is an error of the GPU.
#[must_use]
pub fn describe(code: u64) -> Xid {
    known(code).unwrap_or(xid(
        code,
        Effect::Drain,
        "an error that this plugin does not know",
        "look it up in NVIDIA's list of XIDs and in the kernel's log",
    ))
}

fn known(code: u64) -> Option<Xid> {
    let place = KNOWN.binary_search_by_key(&code, |known| known.code).ok()?;
    KNOWN.get(place).copied()
}

/// Name of an XID in metrics: its number when it is known, so that the values are bounded.
#[must_use]
pub fn label(code: u64) -> String {
    known(code).map_or_else(|| "other".to_owned(), |known| known.code.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(effect: Effect) -> Vec<u64> {
        KNOWN
            .iter()
            .filter(|known| known.effect == effect)
            .map(|known| known.code)
            .collect()
    }

    #[test]
    fn each_xid_stands_in_the_table_once_in_order() {
        assert!(KNOWN.is_sorted_by(|one, next| one.code < next.code));
    }

    #[test]
    fn what_nvidias_plugin_takes_for_errors_of_programs_is_harmless_here() {
        for code in [13, 31, 43, 45, 68, 109] {
            assert_eq!(describe(code).effect, Effect::Harmless, "{code}");
        }
    }

    #[test]
    fn what_destroys_the_work_on_a_gpu_takes_it_out_until_it_is_reset() {
        assert_eq!(
            with(Effect::OutUntilReset),
            [61, 62, 64, 95, 119, 120, 140, 143, 158, 167, 169]
        );
    }

    #[test]
    fn only_a_card_that_fell_off_the_bus_shows_by_its_answer_that_it_was_reset() {
        assert_eq!(with(Effect::Gone), [79]);
    }

    #[test]
    fn what_waits_for_a_reset_lets_the_present_work_go_on() {
        assert_eq!(
            with(Effect::DrainUntilReset),
            [46, 48, 57, 58, 74, 110, 136, 155, 156, 168, 171, 172]
        );
    }

    #[test]
    fn an_unknown_xid_drains_for_a_while() {
        assert_eq!(describe(777).effect, Effect::Drain);
        assert_eq!(describe(u64::MAX).effect, Effect::Drain);
    }

    #[test]
    fn metrics_name_known_xids_only() {
        assert_eq!(label(79), "79");
        assert_eq!(label(4_294_967_295), "other");
    }
}
