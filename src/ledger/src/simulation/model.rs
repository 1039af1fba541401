use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use super::Transcript;

/// A program in another language that lets the same histories happen: it reads
/// them from its standard input, each ended by a line `end`, and writes what
/// became of each, ended so as well.
pub struct Model {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Model {
    /// Starts a model in Python.
    ///
    /// # Errors
    ///
    /// Python cannot be started.
    pub fn start(program: &Path) -> Result<Self, String> {
        let failed = |error: &dyn std::fmt::Display| {
            format!("python3 {} cannot be started: {error}", program.display())
        };
        let mut process = Command::new("python3")
            .arg("-B")
            .arg(program)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| failed(&error))?;
        let pipes = process.stdin.take().zip(process.stdout.take());
        let (input, output) = pipes.ok_or_else(|| failed(&"it has no pipes"))?;
        Ok(Self {
            process,
            input,
            output: BufReader::new(output),
        })
    }

    /// Lets a history happen in the model too, and compares what became of it.
    ///
    /// # Errors
    ///
    /// The first line that differs, or that the model has ended.
    pub fn compare(&mut self, history: &str, transcript: &Transcript) -> Result<(), String> {
        let ended = |error: &dyn std::fmt::Display| format!("the model has ended: {error}");
        writeln!(self.input, "{history}end")
            .and_then(|()| self.input.flush())
            .map_err(|error| ended(&error))?;
        let mut expected = transcript.text.lines();
        for number in 1.. {
            let mut line = String::new();
            let read = self.output.read_line(&mut line);
            if read.map_err(|error| ended(&error))? == 0 {
                return Err(ended(&"it wrote no more"));
            }
            let (theirs, ours) = (line.trim_end(), expected.next().unwrap_or("end"));
            if theirs != ours {
                return Err(format!(
                    "result {number}: {ours}, and the model says {theirs}"
                ));
            }
            if theirs == "end" {
                break;
            }
        }
        Ok(())
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // Without an input it would end by itself; nobody waits for that.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
