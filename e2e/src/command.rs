//! Running other programs, with what they said in the error.

use std::{
    ffi::OsStr,
    io::{self, BufRead as _, BufReader, Read as _},
    process::{Command, Stdio},
    thread,
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

/// Runs a program to its end and shows what it writes to its standard output
/// line by line as it comes.
///
/// # Errors
///
/// It cannot be started or ends with a failure; the error carries the last
/// lines of its standard error.
pub fn output_by_line(command: &mut Command, said: impl Fn(&str)) -> Result<()> {
    let shown = shown(command);
    let doing = || format!("running `{shown}`");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .doing(doing)?;
    let errors = child.stderr.take().map(|mut errors| {
        // Read beside, so that a program that complains at length is not stopped by it.
        thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = errors.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        })
    });
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines().map_while(io::Result::ok) {
            said(&line);
        }
    }
    let status = child.wait().doing(doing)?;
    let errors = errors
        .and_then(|reader| reader.join().ok())
        .unwrap_or_default();
    if status.success() {
        return Ok(());
    }
    Err(Error::Command {
        command: shown,
        status: status.to_string(),
        output: last_lines(&errors, 40),
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
