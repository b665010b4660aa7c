//! Checks of values: a string, a number in a range, one of some words.
//!
//! Each check returns the value, or a [`Fault`] with a suggestion. Doesn't know the value's key.

use std::{fmt::Display, ops::RangeInclusive, time::Duration};

use toml::{Spanned, de::DeValue};

use super::{
    error::{Finding, Span},
    units::{parse_duration, parse_long_duration, parse_size, show_duration, show_size},
};

/// A value and its position.
pub(super) type Value<'d> = &'d Spanned<DeValue<'d>>;

/// What is wrong with a value: the end of a sentence that begins with its key.
#[derive(Debug)]
pub(super) struct Fault {
    predicate: String,
    help: Option<String>,
    fragile: bool,
}

impl Fault {
    pub(super) fn new(predicate: impl Into<String>) -> Self {
        Self { predicate: predicate.into(), help: None, fragile: false }
    }

    /// The sentence with this subject.
    pub(super) fn about(&self, subject: &str) -> String {
        format!("{subject} {}", self.predicate)
    }

    pub(super) fn wrong_type(wanted: &str, value: &DeValue<'_>) -> Self {
        Self::new(format!("must be {wanted}, not {}", type_name(value)))
    }

    pub(super) fn help(self, help: impl Into<String>) -> Self {
        self.help_if(Some(help.into()))
    }

    pub(super) fn help_if(mut self, help: Option<String>) -> Self {
        self.help = help;
        self
    }

    /// Adds the help, unless there is none.
    pub(super) fn help_or(mut self, help: Option<String>) -> Self {
        self.help = help.or(self.help);
        self
    }

    /// See [`Finding::fragile`].
    pub(super) fn fragile(mut self) -> Self {
        self.fragile = true;
        self
    }

    pub(super) fn into_finding(self, path: &str, span: Span) -> Finding {
        let mut finding = Finding::new(span, format!("`{path}` {}", self.predicate));
        finding.help = self.help;
        finding.fragile = self.fragile;
        finding
    }
}

pub(super) fn string<'d>(value: Value<'d>) -> Result<&'d str, Fault> {
    value.get_ref().as_str().ok_or_else(|| Fault::wrong_type("a string", value.get_ref()))
}

pub(super) fn boolean(value: Value<'_>) -> Result<bool, Fault> {
    let value = value.get_ref();
    let word = match value {
        DeValue::String(text) => truth(text),
        DeValue::Integer(integer) => truth(integer.as_str()),
        _ => None,
    };
    let help = word.map(|word| format!("write {word}"));
    value.as_bool().ok_or_else(|| Fault::wrong_type("true or false", value).help_if(help))
}

/// The meaning of a word for yes or no.
pub(super) fn truth(word: &str) -> Option<bool> {
    match word.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Some(true),
        "false" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// An integer in a range.
pub(super) fn integer<T>(value: Value<'_>, range: RangeInclusive<T>) -> Result<T, Fault>
where
    T: TryFrom<u64> + PartialOrd + Display,
{
    let wanted = format!("an integer from {} to {}", range.start(), range.end());
    let DeValue::Integer(integer) = value.get_ref() else {
        return Err(Fault::wrong_type(&wanted, value.get_ref()));
    };
    let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
    let number = number.and_then(|number| T::try_from(number).ok());
    let number = number.filter(|number| range.contains(number));
    number.ok_or_else(|| Fault::new(format!("must be {wanted}")))
}

/// A duration in a range.
pub(super) fn duration(
    value: Value<'_>,
    range: RangeInclusive<Duration>,
) -> Result<Duration, Fault> {
    let text = quantity(value, "a duration", |n| format!("{n}s"))?;
    let duration = parse_duration(text)
        .map_err(|error| Fault::new("is not a duration").help(error.to_string()))?;
    if range.contains(&duration) {
        return Ok(duration);
    }
    let (least, most) = (show_duration(*range.start()), show_duration(*range.end()));
    Err(Fault::new(format!("must be from {least} to {most}")))
}

/// A duration that may be days or years, in a range.
pub(super) fn long_duration(
    value: Value<'_>,
    range: RangeInclusive<Duration>,
) -> Result<Duration, Fault> {
    let text = quantity(value, "a duration", |n| format!("{n}d"))?;
    match parse_long_duration(text) {
        None => Err(Fault::new("is not a duration")
            .help(r#"write a duration such as "1y", "180d" or "24h""#)),
        Some(duration) if range.contains(&duration) => Ok(duration),
        Some(_) => {
            let most = range.end().as_secs() / 86_400;
            Err(Fault::new(format!("must be at most {most}d")))
        }
    }
}

/// A size in bytes, in a range.
pub(super) fn size(value: Value<'_>, range: RangeInclusive<u64>) -> Result<u64, Fault> {
    let text = quantity(value, "a size", |n| format!("{n}B"))?;
    let size =
        parse_size(text).map_err(|error| Fault::new("is not a size").help(error.to_string()))?;
    if range.contains(&size) {
        return Ok(size);
    }
    let (least, most) = (show_size(*range.start()), show_size(*range.end()));
    Err(Fault::new(format!("must be from {least} to {most}")))
}

/// One of several words.
pub(super) fn choice<T: Copy>(value: Value<'_>, choices: &[(&str, T)]) -> Result<T, Fault> {
    let quoted: Vec<_> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
    let wanted = format!("one of {}", quoted.join(", "));
    let Some(text) = value.get_ref().as_str() else {
        return Err(Fault::wrong_type(&wanted, value.get_ref()));
    };
    let found = choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice);
    found.ok_or_else(|| {
        let words = || choices.iter().map(|(word, _)| *word);
        let near = meant(text, words()).or_else(|| nearest(text, words()));
        let help = near.map(|word| format!("did you mean \"{word}\"?"));
        Fault::new(format!("must be {wanted}")).help_if(help)
    })
}

/// The word that another spelling stands for: `JSON`, `least-active`, `warning`, `none`.
fn meant<'w>(text: &str, mut words: impl Iterator<Item = &'w str> + Clone) -> Option<&'w str> {
    let text = text.trim().to_ascii_lowercase().replace(['-', ' '], "_");
    let text = if text == "none" { "off" } else { &text };
    let same = words.clone().find(|word| *word == text);
    // At least three letters: `in` is not `info`.
    let is_part = |word: &&str| {
        word.len().min(text.len()) >= 3 && (word.starts_with(text) || text.starts_with(*word))
    };
    same.or_else(|| words.find(is_part))
}

/// The text of a number with a unit. A bare number gets a suggestion with its likely unit.
fn quantity<'d>(
    value: Value<'d>,
    wanted: &str,
    suggest: impl Fn(u64) -> String,
) -> Result<&'d str, Fault> {
    match value.get_ref() {
        DeValue::String(text) => Ok(text),
        DeValue::Integer(integer) => {
            let number = u64::from_str_radix(integer.as_str(), integer.radix()).ok();
            let help = number.map(|number| format!("write \"{}\"", suggest(number)));
            Err(Fault::new(format!("must be {wanted} with its unit")).help_if(help))
        }
        other => Err(Fault::wrong_type(wanted, other)),
    }
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// The word that `text` was probably meant to be, if one is close enough.
pub(crate) fn nearest<'w>(text: &str, words: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let near = words.map(|word| (edit_distance(text, word), word)).min_by_key(|(steps, _)| *steps);
    near.filter(|(steps, word)| *steps <= 1 + word.len() / 4).map(|(_, word)| word)
}

/// The Levenshtein distance in characters; swapping two neighbours counts as one step.
fn edit_distance(from: &str, to: &str) -> usize {
    // No known word is close to a text this long, and the table below is quadratic.
    if from.len() > 256 {
        return usize::MAX;
    }
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut rows = vec![vec![0; to.len() + 1]; from.len() + 1];
    rows[0] = (0..=to.len()).collect();
    for i in 1..=from.len() {
        rows[i][0] = i;
        for j in 1..=to.len() {
            let changed = usize::from(from[i - 1] != to[j - 1]);
            let mut least = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            least = least.min(rows[i - 1][j - 1] + changed);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_finds_its_word_and_other_words_find_none() {
        let words = ["threads", "listen", "default_app", "drain_timeout"];
        for (text, word) in [
            ("thread", Some("threads")),
            ("lisetn", Some("listen")),
            ("default-app", Some("default_app")),
            ("drain_time", Some("drain_timeout")),
            ("port", None),
            ("", None),
            ("workers", None),
        ] {
            assert_eq!(nearest(text, words.into_iter()), word, "{text:?}");
        }
    }
}
