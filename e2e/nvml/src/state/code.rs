use std::fmt;
use std::str::FromStr;

use nvml_wrapper_sys::bindings as sys;
use serde::{Deserialize, Serialize};

/// One of NVML's return codes that are no success. Written as its name without
/// `NVML_ERROR_`, such as `GPU_IS_LOST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Code(pub(crate) sys::nvmlReturn_t);

/// No return code has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no return code of NVML; use one such as UNKNOWN, GPU_IS_LOST or NO_PERMISSION")]
pub struct UnknownCode(String);

macro_rules! codes {
    ($($name:ident = $code:ident: $text:literal;)+) => {
        impl Code {
            /// Every code, its name and the text that `nvmlErrorString` has for it.
            const ALL: &[(Self, &str, &std::ffi::CStr)] = &[$((
                Self(sys::$code),
                stringify!($name),
                // The table's own texts end as C wants it.
                match std::ffi::CStr::from_bytes_with_nul(concat!($text, "\0").as_bytes()) {
                    Ok(text) => text,
                    Err(_) => c"",
                },
            )),+];
        }
    };
}

codes! {
    UNINITIALIZED = nvmlReturn_enum_NVML_ERROR_UNINITIALIZED: "Uninitialized";
    INVALID_ARGUMENT = nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT: "Invalid Argument";
    NOT_SUPPORTED = nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED: "Not Supported";
    NO_PERMISSION = nvmlReturn_enum_NVML_ERROR_NO_PERMISSION: "Insufficient Permissions";
    ALREADY_INITIALIZED = nvmlReturn_enum_NVML_ERROR_ALREADY_INITIALIZED: "Already Initialized";
    NOT_FOUND = nvmlReturn_enum_NVML_ERROR_NOT_FOUND: "Not Found";
    INSUFFICIENT_SIZE = nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE: "Insufficient Size";
    INSUFFICIENT_POWER = nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_POWER: "Insufficient External Power";
    DRIVER_NOT_LOADED = nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED: "Driver Not Loaded";
    TIMEOUT = nvmlReturn_enum_NVML_ERROR_TIMEOUT: "Timeout";
    IRQ_ISSUE = nvmlReturn_enum_NVML_ERROR_IRQ_ISSUE: "Interrupt Request Issue";
    LIBRARY_NOT_FOUND = nvmlReturn_enum_NVML_ERROR_LIBRARY_NOT_FOUND: "NVML Shared Library Not Found";
    FUNCTION_NOT_FOUND = nvmlReturn_enum_NVML_ERROR_FUNCTION_NOT_FOUND: "Function Not Found";
    CORRUPTED_INFOROM = nvmlReturn_enum_NVML_ERROR_CORRUPTED_INFOROM: "Corrupted infoROM";
    GPU_IS_LOST = nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST: "GPU is lost";
    RESET_REQUIRED = nvmlReturn_enum_NVML_ERROR_RESET_REQUIRED: "GPU requires reset";
    OPERATING_SYSTEM = nvmlReturn_enum_NVML_ERROR_OPERATING_SYSTEM: "GPU access blocked by the operating system";
    LIB_RM_VERSION_MISMATCH = nvmlReturn_enum_NVML_ERROR_LIB_RM_VERSION_MISMATCH: "Driver/library version mismatch";
    IN_USE = nvmlReturn_enum_NVML_ERROR_IN_USE: "In use by another client";
    MEMORY = nvmlReturn_enum_NVML_ERROR_MEMORY: "Insufficient Memory";
    NO_DATA = nvmlReturn_enum_NVML_ERROR_NO_DATA: "No data";
    VGPU_ECC_NOT_SUPPORTED = nvmlReturn_enum_NVML_ERROR_VGPU_ECC_NOT_SUPPORTED: "vGPU with ECC enabled not supported";
    INSUFFICIENT_RESOURCES = nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_RESOURCES: "Insufficient Resources";
    FREQ_NOT_SUPPORTED = nvmlReturn_enum_NVML_ERROR_FREQ_NOT_SUPPORTED: "Frequency not supported";
    ARGUMENT_VERSION_MISMATCH = nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH: "Argument version mismatch";
    DEPRECATED = nvmlReturn_enum_NVML_ERROR_DEPRECATED: "Deprecated";
    NOT_READY = nvmlReturn_enum_NVML_ERROR_NOT_READY: "Not Ready";
    GPU_NOT_FOUND = nvmlReturn_enum_NVML_ERROR_GPU_NOT_FOUND: "GPU Not Found";
    INVALID_STATE = nvmlReturn_enum_NVML_ERROR_INVALID_STATE: "Invalid State";
    RESET_TYPE_NOT_SUPPORTED = nvmlReturn_enum_NVML_ERROR_RESET_TYPE_NOT_SUPPORTED: "Reset type not supported";
    UNKNOWN = nvmlReturn_enum_NVML_ERROR_UNKNOWN: "Unknown Error";
}

impl Code {
    /// Its name without `NVML_ERROR_`.
    #[must_use]
    pub fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(code, ..)| *code == self)
            .map_or("UNKNOWN", |(_, name, _)| name)
    }

    /// What `nvmlErrorString` says of a code of any kind.
    pub(crate) fn text(code: sys::nvmlReturn_t) -> &'static std::ffi::CStr {
        if code == sys::nvmlReturn_enum_NVML_SUCCESS {
            return c"The operation was successful";
        }
        Self::ALL
            .iter()
            .find(|(known, ..)| known.0 == code)
            .map_or(c"Unknown Error", |(.., text)| text)
    }
}

impl FromStr for Code {
    type Err = UnknownCode;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let short = name.strip_prefix("NVML_ERROR_").unwrap_or(name);
        Self::ALL
            .iter()
            .find(|(_, known, _)| known.eq_ignore_ascii_case(short))
            .map(|(code, ..)| *code)
            .ok_or_else(|| UnknownCode(name.to_owned()))
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl TryFrom<String> for Code {
    type Error = UnknownCode;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        name.parse()
    }
}

impl From<Code> for String {
    fn from(code: Code) -> Self {
        code.name().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_read_by_its_name_and_has_a_text() {
        for (code, name, text) in Code::ALL {
            assert_eq!(name.parse(), Ok(*code));
            assert_eq!(code.to_string(), *name);
            assert!(!text.is_empty());
        }
        assert_eq!("NVML_ERROR_GPU_IS_LOST".parse(), Ok(Code(15)));
        assert_eq!("gpu_is_lost".parse(), Ok(Code(15)));
        assert!("SUCCESS".parse::<Code>().is_err());
    }
}
