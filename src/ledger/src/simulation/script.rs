use std::fmt::Write as _;

use creo_market::money::{epoch::DAY_MS, pseudonym::Secret};
use thiserror::Error;

use crate::{Account, Entry, LedgerParameters, Operation, Refusal, Sign, State, Stop};

/// A line of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    /// `@ DAY HH:MM:SS.mmm`: from now on it is this time.
    At(i64),
    /// `? OPERATION`: happens or is refused, for whatever reason.
    Try(Operation),
    /// `> OPERATION`: happens.
    Accept(Operation),
    /// `! REASON OPERATION`: is refused for this reason.
    Refuse(String, Operation),
    /// `settle EPOCH`: a closed epoch is settled.
    Settle(i64),
    /// `= ACCOUNT AMOUNT`: an account has this balance.
    Balance(Account, i64),
}

/// A history, line by line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    lines: Vec<(usize, Line)>,
}

/// What became of a history.
#[derive(Clone, Debug)]
pub struct Transcript {
    /// The state at its end.
    pub state: State,
    /// All entries.
    pub entries: Vec<Entry>,
    /// Every operation that was posted, with its time, in order.
    pub posted: Vec<(i64, Operation)>,
    /// Operations that were refused.
    pub refused: usize,
    /// A word a line that did something, then every balance that is not 0 and
    /// the number of entries.
    pub text: String,
}

/// Why a history is none, or did not go as it says.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}: {what}")]
pub struct ScriptError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong.
    pub what: String,
}

impl Script {
    /// Reads a history. Empty lines and lines that begin with `#` say nothing.
    ///
    /// # Errors
    ///
    /// A line is not as the grammar says.
    pub fn parse(text: &str) -> Result<Self, ScriptError> {
        let mut lines = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let parsed = parse(line).map_err(|what| ScriptError {
                line: index + 1,
                what,
            })?;
            lines.push((index + 1, parsed));
        }
        Ok(Self { lines })
    }

    /// Lets it happen on an empty ledger, every operation as often as `times`.
    ///
    /// # Errors
    ///
    /// Something did not go as the history says.
    pub fn run(&self, secret: &Secret, times: usize) -> Result<Transcript, ScriptError> {
        let mut run = Run {
            state: State::new(LedgerParameters::default()),
            now_ms: 0,
            entries: Vec::new(),
            posted: Vec::new(),
            refused: 0,
            text: String::new(),
            times,
        };
        for (number, line) in &self.lines {
            run.line(line, secret).map_err(|what| ScriptError {
                line: *number,
                what,
            })?;
        }
        let mut text = run.text;
        for (account, state) in run.state.accounts() {
            if state.balance_micro != 0 {
                let _ = writeln!(text, "{account} {}", state.balance_micro);
            }
        }
        let _ = writeln!(text, "entries {}", run.entries.len());
        Ok(Transcript {
            state: run.state,
            entries: run.entries,
            posted: run.posted,
            refused: run.refused,
            text,
        })
    }
}

struct Run {
    state: State,
    now_ms: i64,
    entries: Vec<Entry>,
    posted: Vec<(i64, Operation)>,
    refused: usize,
    text: String,
    times: usize,
}

impl Run {
    fn line(&mut self, line: &Line, secret: &Secret) -> Result<(), String> {
        match line {
            Line::At(at_ms) => self.now_ms = *at_ms,
            Line::Try(operation) => {
                let word = self.post(operation)?.unwrap_or("refused");
                let _ = writeln!(self.text, "{word}");
            }
            Line::Accept(operation) => {
                let word = self
                    .post(operation)?
                    .map_err(|refusal| refusal.to_string())?;
                let _ = writeln!(self.text, "{word}");
            }
            Line::Refuse(reason, operation) => match self.post(operation)? {
                Ok(_) => return Err(format!("must be refused as {reason}, and was not")),
                Err(refusal) if refusal.reason() == reason => {
                    let _ = writeln!(self.text, "{reason}");
                }
                Err(refusal) => {
                    let other = refusal.reason();
                    return Err(format!(
                        "must be refused as {reason}, and was as {other}: {refusal}"
                    ));
                }
            },
            Line::Settle(epoch) => self.settle(*epoch, secret)?,
            Line::Balance(account, expected) => {
                let state = self.state.accounts().get(account);
                let balance = state.map_or(0, |state| state.balance_micro);
                if balance != *expected {
                    return Err(format!("{account} must have {expected}, and has {balance}"));
                }
            }
        }
        Ok(())
    }

    fn post(&mut self, operation: &Operation) -> Result<Result<&'static str, Refusal>, String> {
        self.posted.push((self.now_ms, operation.clone()));
        let mut word = Ok("again");
        for time in 0..self.times {
            let before = (time > 0).then(|| self.state.clone());
            match self.state.apply(operation.role(), self.now_ms, operation) {
                Ok(applied) if time == 0 && !applied.is_repetition() => {
                    word = Ok("ok");
                    self.entries.extend(applied.entries);
                }
                Ok(_) => {}
                Err(Stop::Refused(refusal)) => {
                    self.refused += usize::from(time == 0);
                    word = Err(refusal);
                }
                Err(missing @ Stop::Missing(_)) => return Err(missing.to_string()),
            }
            if before.is_some_and(|before| before != self.state) {
                return Err("the same operation again changed something".to_owned());
            }
        }
        Ok(word)
    }

    fn settle(&mut self, epoch: i64, secret: &Secret) -> Result<(), String> {
        let plan = self
            .state
            .settlement(epoch, secret)
            .map_err(|error| error.to_string())?;
        let word = match plan {
            None => "unknown",
            Some(plan) => {
                plan.export.verify().map_err(|error| error.to_string())?;
                let mut word = "ok";
                for operation in plan.operations {
                    if self.post(&operation)?.is_err() {
                        word = "refused";
                        break;
                    }
                }
                word
            }
        };
        let _ = writeln!(self.text, "settled {word}");
        Ok(())
    }
}

fn parse(line: &str) -> Result<Line, String> {
    let (word, rest) = line
        .split_once(' ')
        .ok_or_else(|| format!("'{line}' is no line of a history"))?;
    let operation = |json: &str| -> Result<Operation, String> {
        serde_json::from_str(json).map_err(|error| format!("no operation: {error}"))
    };
    match word {
        "@" => time_ms(rest)
            .map(Line::At)
            .ok_or_else(|| format!("'{rest}' is no time")),
        "?" => operation(rest).map(Line::Try),
        ">" => operation(rest).map(Line::Accept),
        "!" => {
            let (reason, json) = rest.split_once(' ').unwrap_or((rest, ""));
            Ok(Line::Refuse(reason.to_owned(), operation(json)?))
        }
        "settle" => rest
            .parse()
            .map(Line::Settle)
            .map_err(|error| format!("no epoch: {error}")),
        "=" => {
            let (account, amount) = rest.split_once(' ').unwrap_or((rest, ""));
            let account = account
                .parse::<Account>()
                .map_err(|error| error.to_string())?;
            let amount = amount
                .replace(',', "")
                .parse()
                .map_err(|error| format!("no amount: {error}"))?;
            Ok(Line::Balance(account, amount))
        }
        _ => Err(format!("'{word}' begins no line of a history")),
    }
}

/// `DAY HH:MM:SS.mmm` in milliseconds.
fn time_ms(text: &str) -> Option<i64> {
    let (day, clock) = text.split_once(' ')?;
    let (seconds, milliseconds) = clock.split_once('.')?;
    let mut parts = seconds.split(':').map(|part| part.parse::<i64>().ok());
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next()??);
    let clock_ms = ((hours * 60 + minutes) * 60 + seconds) * 1_000;
    Some(day.parse::<i64>().ok()? * DAY_MS + clock_ms + milliseconds.parse::<i64>().ok()?)
}

/// Writes a time as a history has it.
pub(super) fn time_text(at_ms: i64) -> String {
    let (day, clock_ms) = (at_ms.div_euclid(DAY_MS), at_ms.rem_euclid(DAY_MS));
    let seconds = clock_ms / 1_000;
    format!(
        "{day} {:02}:{:02}:{:02}.{:03}",
        seconds / 3_600,
        seconds / 60 % 60,
        seconds % 60,
        clock_ms % 1_000
    )
}

/// Whether a balance is what its kind allows.
pub(super) fn allowed(account: &Account, balance_micro: i64) -> bool {
    let sign: Sign = account.kind().sign();
    sign.allows(balance_micro)
}
