//! The C functions, under the names and with the layouts of NVML.
//!
//! Each file has one table of functions: their names, their arguments and what they answer.
//! `export!` makes C functions of them that check their arguments first.

/// Makes C functions of a table, and a list of their names.
///
/// `fn name(call, argument: type, ...) { answer }` can be called in a session only,
/// `always fn` at any time, and `old => new(...)` is a function under an older name.
macro_rules! export {
    (@when) => { crate::exports::abi::When::InSession };
    (@when always) => { crate::exports::abi::When::Always };
    ($($(#[$when:ident])? fn $name:ident($call:ident $(, $argument:ident: $type:ty)* $(,)?) $body:block)+) => {
        /// Names of these functions.
        pub(crate) const NAMES: &[&str] = &[$(stringify!($name)),+];
        $(
            /// # Safety
            ///
            /// Every pointer is null or as NVML's documentation of this function demands.
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($argument: $type),*) -> nvml_wrapper_sys::bindings::nvmlReturn_t {
                crate::exports::abi::answer(
                    stringify!($name),
                    export!(@when $($when)?),
                    &[$(&$argument),*],
                    |$call| $body,
                )
            }
        )+
    };
}

mod abi;
mod events;
mod fields;
mod identity;
mod library;
mod memory;
mod mig;
mod processes;
mod readings;
mod topology;

/// Names of all functions of the library.
pub(crate) fn functions() -> impl Iterator<Item = &'static str> {
    [
        events::NAMES,
        fields::NAMES,
        identity::NAMES,
        library::NAMES,
        memory::NAMES,
        mig::NAMES,
        processes::NAMES,
        readings::NAMES,
        topology::NAMES,
    ]
    .into_iter()
    .flatten()
    .copied()
    // Its answer is a text and no code.
    .chain(["nvmlErrorString"])
}
