//! Running other programs, with what they said in the error.

use std::{
    ffi::OsStr,
    process::{Command, Stdio},
};

use crate::error::{Context as _, Error, Result, last_lines};

/// Runs a program to its end and gives what it wrote to its standard output.
///
/// # Errors
///
/// It cannot be started or ends with a failure; the error carries the last
/// lines of what it wrote.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = shown(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .doing(|| format!("starting `{shown}`"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let mut said = String::from_utf8_lossy(&output.stderr).into_owned();
    if said.trim().is_empty() {
        said = String::from_utf8_lossy(&output.stdout).into_owned();
    }
    Err(Error::Command {
        command: shown,
        status: output.status.to_string(),
        output: last_lines(&said, 20),
    })
}

/// A command as a person would type it.
#[must_use]
pub fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}
