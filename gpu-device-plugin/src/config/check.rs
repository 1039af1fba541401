//! Reading a document strictly: everything that is wrong with it is told, each with its line,
//! its path, what is wrong and what is needed.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::tree::{Node, Value};

/// Most entries of a list.
const LIST_MOST: usize = 256;
/// Longest text, in characters.
const TEXT_MOST: usize = 256;
/// Most of a wrong value that is repeated in a message, in characters.
const REPEATED_MOST: usize = 60;

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The line, from 1; 0 where it has none.
    pub line: u64,
    /// Where it is, such as `sharing.cards[0].replicas`; empty for the whole document.
    pub path: String,
    /// What is wrong, and what is needed.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// Collects what is wrong.
#[derive(Debug, Default)]
pub struct Problems(RefCell<BTreeSet<Problem>>);

impl Problems {
    /// Everything that was wrong, by line.
    #[must_use]
    pub fn into_list(self) -> Vec<Problem> {
        self.0.into_inner().into_iter().collect()
    }
}

/// A value of the document, with its place.
#[derive(Debug, Clone)]
pub struct Field<'a> {
    path: String,
    line: u64,
    node: &'a Node,
    problems: &'a Problems,
}

/// The keys of a map. What nobody asks for is unknown, and told when it is dropped.
#[derive(Debug)]
pub struct Keys<'a> {
    field: Field<'a>,
    asked: BTreeSet<&'static str>,
}

impl<'a> Field<'a> {
    /// The whole document.
    #[must_use]
    pub fn document(node: &'a Node, problems: &'a Problems) -> Self {
        Self {
            path: String::new(),
            line: node.line,
            node,
            problems,
        }
    }

    /// Says that something is wrong here.
    pub fn wrong(&self, message: impl Into<String>) {
        self.problems.0.borrow_mut().insert(Problem {
            line: self.line,
            path: self.path.clone(),
            message: message.into(),
        });
    }

    /// Says that something else is needed here.
    pub fn needs(&self, what: &str) {
        self.wrong(format!("{} is given; {what} is needed", self.given()));
    }

    /// What stands here, for a message.
    fn given(&self) -> String {
        match &self.node.value {
            Value::Nothing => "nothing".to_owned(),
            Value::Truth(truth) => truth.to_string(),
            Value::Whole(number) => number.to_string(),
            Value::Fraction(number) => number.to_string(),
            Value::Text(text) => {
                let text: String = text.chars().take(REPEATED_MOST).collect();
                format!("{text:?}")
            }
            Value::List(_) => "a list".to_owned(),
            Value::Map(_) => "a map of keys".to_owned(),
        }
    }

    /// The document below.
    #[must_use]
    pub fn node(&self) -> &'a Node {
        self.node
    }

    /// The keys of the map that stands here.
    #[must_use]
    pub fn keys(self) -> Option<Keys<'a>> {
        if !matches!(self.node.value, Value::Map(_)) {
            self.needs("a map of keys");
            return None;
        }
        Some(Keys {
            field: self,
            asked: BTreeSet::new(),
        })
    }

    /// The entries of the list that stands here.
    #[must_use]
    pub fn entries(self) -> Vec<Self> {
        let Value::List(entries) = &self.node.value else {
            self.needs("a list");
            return Vec::new();
        };
        if entries.len() > LIST_MOST {
            self.wrong(format!(
                "{} entries are given; at most {LIST_MOST} are possible",
                entries.len()
            ));
            return Vec::new();
        }
        entries
            .iter()
            .enumerate()
            .map(|(number, node)| Self {
                path: format!("{}[{number}]", self.path),
                line: node.line,
                node,
                problems: self.problems,
            })
            .collect()
    }

    /// The text that stands here.
    #[must_use]
    pub fn text(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::Text(text) if text.is_empty() => {
                self.needs("a text");
                None
            }
            Value::Text(text) if text.chars().count() > TEXT_MOST => {
                self.wrong(format!("the text is longer than {TEXT_MOST} characters"));
                None
            }
            Value::Text(text) => Some(text),
            Value::Truth(_) | Value::Whole(_) | Value::Fraction(_) => {
                self.needs("a text, in quotes,");
                None
            }
            Value::Nothing | Value::List(_) | Value::Map(_) => {
                self.needs("a text");
                None
            }
        }
    }

    /// Whether yes or no stands here.
    #[must_use]
    pub fn truth(&self) -> Option<bool> {
        if let Value::Truth(truth) = self.node.value {
            return Some(truth);
        }
        self.needs("true or false");
        None
    }

    /// The whole number that stands here.
    #[must_use]
    pub fn whole<T: TryFrom<i128> + Into<i128> + Copy>(
        &self,
        range: RangeInclusive<T>,
    ) -> Option<T> {
        let (least, most): (i128, i128) = ((*range.start()).into(), (*range.end()).into());
        match self.node.value {
            Value::Whole(number) if (least..=most).contains(&number) => T::try_from(number).ok(),
            _ => {
                self.needs(&format!("a whole number from {least} to {most}"));
                None
            }
        }
    }

    /// The one of these words that stands here.
    #[must_use]
    pub fn one_of<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let needed = format!("one of {}", known.join(", "));
        let Value::Text(given) = &self.node.value else {
            self.needs(&needed);
            return None;
        };
        let found = words.iter().find(|(word, _)| word == given);
        if found.is_none() {
            let hint = nearest(given, &known)
                .map_or_else(String::new, |word| format!("; did you mean {word}?"));
            let given = self.given();
            self.wrong(format!("{given} is given; {needed} is needed{hint}"));
        }
        found.map(|(_, value)| *value)
    }

    /// What the text that stands here means.
    #[must_use]
    pub fn parsed<T: FromStr<Err: fmt::Display>>(&self) -> Option<T> {
        self.parsed_by(str::parse)
    }

    /// What the text that stands here means to this function.
    #[must_use]
    pub fn parsed_by<T, E: fmt::Display>(&self, parse: impl Fn(&str) -> Result<T, E>) -> Option<T> {
        let text = self.text()?;
        match parse(text) {
            Ok(value) => Some(value),
            Err(why) => {
                self.wrong(why.to_string());
                None
            }
        }
    }
}

impl<'a> Keys<'a> {
    /// What stands under this key, if anything does.
    pub fn get(&mut self, key: &'static str) -> Option<Field<'a>> {
        self.asked.insert(key);
        let Value::Map(entries) = &self.field.node.value else {
            return None;
        };
        let entry = entries.iter().find(|entry| entry.key == key)?;
        // A key whose values are all commented out.
        if entry.value.value == Value::Nothing {
            return None;
        }
        Some(Field {
            path: join(&self.field.path, key),
            line: entry.line,
            node: &entry.value,
            problems: self.field.problems,
        })
    }

    /// What stands under this key, which has to be there.
    pub fn need(&mut self, key: &'static str) -> Option<Field<'a>> {
        let found = self.get(key);
        if found.is_none() {
            self.field.wrong(format!("{key} is missing"));
        }
        found
    }

    /// The map itself.
    #[must_use]
    pub fn field(&self) -> &Field<'a> {
        &self.field
    }
}

impl Drop for Keys<'_> {
    fn drop(&mut self) {
        let Value::Map(entries) = &self.field.node.value else {
            return;
        };
        let known: Vec<&str> = self.asked.iter().copied().collect();
        for entry in entries
            .iter()
            .filter(|entry| !self.asked.contains(entry.key.as_str()))
        {
            let hint = match nearest(&entry.key, &known) {
                Some(word) => format!("did you mean {word}?"),
                None => format!("known here are {}", known.join(", ")),
            };
            let key: String = entry.key.chars().take(REPEATED_MOST).collect();
            let unknown = Problem {
                line: entry.line,
                path: self.field.path.clone(),
                message: format!("unknown key {key:?}; {hint}"),
            };
            self.field.problems.0.borrow_mut().insert(unknown);
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_owned()
    } else {
        format!("{path}.{key}")
    }
}

/// The word that was probably meant.
fn nearest<'w>(given: &str, words: &[&'w str]) -> Option<&'w str> {
    let given: Vec<char> = given.to_lowercase().chars().take(TEXT_MOST).collect();
    let distances = words.iter().map(|word| {
        let letters: Vec<char> = word.to_lowercase().chars().collect();
        // About a third of a word may be wrong; and a beginning is as good as the word.
        let enough = (letters.len() / 3).max(1);
        let begins =
            given.len() >= 3 && (letters.starts_with(&given) || given.starts_with(&letters));
        let distance = if begins {
            0
        } else {
            distance(&given, &letters)
        };
        (distance, enough, *word)
    });
    distances
        .filter(|(distance, enough, _)| distance <= enough)
        .min()
        .map(|(_, _, word)| word)
}

/// How many letters have to be added, taken away or changed.
fn distance(one: &[char], other: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (line, letter) in one.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, wanted) in other.iter().enumerate() {
            let changed = diagonal + usize::from(letter != wanted);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_the_one_that_was_meant() {
        let words = ["resource", "unlike", "mig", "sharing", "outOfService"];
        for (given, meant) in [
            ("resources", Some("resource")),
            ("Resource", Some("resource")),
            ("out_of_service", Some("outOfService")),
            ("migStrategy", Some("mig")),
            ("shairng", Some("sharing")),
            ("unlik", Some("unlike")),
            ("timeSlicing", None),
            ("", None),
        ] {
            assert_eq!(nearest(given, &words), meant, "{given}");
        }
    }
}
