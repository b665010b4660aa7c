//! Durations in the arguments.

use crate::config::{UnitError, parse_duration};

/// Checks a duration in the arguments. The server gets the original text.
pub(super) fn time_argument(text: &str) -> Result<String, UnitError> {
    parse_duration(text).map(|_| text.to_owned())
}
