//! Times among the arguments.

use crate::config::{UnitError, parse_duration};

/// Checks a time among the arguments; the server gets it as it is.
pub(super) fn time_argument(text: &str) -> Result<String, UnitError> {
    parse_duration(text).map(|_| text.to_owned())
}
