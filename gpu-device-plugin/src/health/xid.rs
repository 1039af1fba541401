//! XIDs: the numbers under which NVIDIA's driver reports errors.

/// Who an error is to be blamed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A program on the GPU did something wrong, or was stopped. The GPU is in order.
    Application,
    /// The GPU, its memory, its bus or its driver.
    Gpu,
}

/// What is known of an XID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Xid {
    /// The number.
    pub code: u64,
    /// Who is to blame.
    pub cause: Cause,
    /// What happened.
    pub meaning: &'static str,
    /// What to do.
    pub remedy: &'static str,
}

const SEE_THE_PROGRAM: &str = "look at the program that used the GPU";
const RESET: &str = "stop what uses the GPU and reset it (nvidia-smi --gpu-reset)";
const REBOOT: &str = "check seat, power and cooling of the card, then reboot the machine";
const REPLACE: &str = "have the card checked, and replaced if it happens again";

/// The XIDs with a meaning of their own, by number. Any other one is taken for an error of
/// the GPU, because that is the safe side.
pub const KNOWN: [Xid; 20] = [
    application(13, "a program caused an exception of the graphics engine"),
    application(31, "a program touched memory that is not its own"),
    application(43, "a program on the GPU stopped after an error of its own"),
    application(45, "a program on the GPU was stopped"),
    gpu(48, "an uncorrectable ECC error in the GPU's memory", RESET),
    gpu(61, "the GPU's microcontroller stopped", RESET),
    gpu(62, "the GPU's microcontroller halted", RESET),
    gpu(63, "a faulty row of memory was remapped", RESET),
    gpu(64, "a faulty row of memory could not be remapped", REPLACE),
    application(68, "a program caused an exception of the video decoder"),
    gpu(74, "an error of the NVLink connection", RESET),
    gpu(79, "the GPU has fallen off the bus", REBOOT),
    gpu(92, "a high rate of corrected ECC errors", REPLACE),
    gpu(
        94,
        "an uncorrectable ECC error, contained to one program",
        RESET,
    ),
    gpu(
        95,
        "an uncorrectable ECC error that was not contained",
        RESET,
    ),
    application(109, "a program did not give the GPU up in time"),
    gpu(119, "the GPU's system processor did not answer", RESET),
    gpu(120, "the GPU's system processor failed", RESET),
    gpu(140, "an uncorrected ECC error outside of memory", RESET),
    gpu(143, "the GPU could not be initialised", REBOOT),
];

const fn application(code: u64, meaning: &'static str) -> Xid {
    Xid {
        code,
        cause: Cause::Application,
        meaning,
        remedy: SEE_THE_PROGRAM,
    }
}

const fn gpu(code: u64, meaning: &'static str, remedy: &'static str) -> Xid {
    Xid {
        code,
        cause: Cause::Gpu,
        meaning,
        remedy,
    }
}

/// What is known of this XID; of an unknown one, that it is an error of the GPU.
#[must_use]
pub fn describe(code: u64) -> Xid {
    KNOWN
        .into_iter()
        .find(|known| known.code == code)
        .unwrap_or(gpu(
            code,
            "an error that this plugin does not know",
            "look it up in NVIDIA's list of XIDs and in the kernel's log",
        ))
}

/// Name of an XID in metrics: its number when it is known, so that the values are bounded.
#[must_use]
pub fn label(code: u64) -> String {
    if KNOWN.iter().any(|known| known.code == code) {
        code.to_string()
    } else {
        "other".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_xid_stands_in_the_table_once_in_order() {
        assert!(KNOWN.is_sorted_by(|one, next| one.code < next.code));
    }

    #[test]
    fn exactly_the_errors_of_programs_are_no_fault_of_the_gpu() {
        let harmless: Vec<u64> = (0..1_000)
            .filter(|code| describe(*code).cause == Cause::Application)
            .collect();
        assert_eq!(harmless, [13, 31, 43, 45, 68, 109]);
    }

    #[test]
    fn metrics_name_known_xids_only() {
        assert_eq!(label(79), "79");
        assert_eq!(label(4_294_967_295), "other");
    }
}
