//! The fields of an event: in a line, or as JSON.

use std::{fmt, io::Write as _};

use log::kv::{self, Key, Value, VisitSource, VisitValue};

use super::escape;
use crate::config::LogFormat;

/// The fields of an event as JSON.
#[derive(Default)]
pub(super) struct JsonFields(pub(super) serde_json::Map<String, serde_json::Value>);

impl<'kvs> VisitSource<'kvs> for JsonFields {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        let mut json = JsonValue(serde_json::Value::Null);
        value.visit(&mut json)?;
        self.0.insert(key.to_string(), json.0);
        Ok(())
    }
}

struct JsonValue(serde_json::Value);

impl<'v> VisitValue<'v> for JsonValue {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), kv::Error> {
        self.0 = value.to_string().into();
        Ok(())
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.0 = value.into();
        Ok(())
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        self.0 = value.into();
        Ok(())
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        self.0 = value.into();
        Ok(())
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        self.0 = value.into();
        Ok(())
    }
}

/// Appends fields to a line.
pub(super) struct Fields<'a> {
    pub(super) out: &'a mut Vec<u8>,
    pub(super) format: LogFormat,
    pub(super) is_first: bool,
}

impl Fields<'_> {
    pub(super) fn push_pair(&mut self, key: &str, value: &str) {
        self.push_key(key);
        self.push_text(value);
    }

    pub(super) fn push_key(&mut self, key: &str) {
        match self.format {
            LogFormat::Text => {
                self.out.push(b' ');
                escape::push_text_value(self.out, key);
                self.out.push(b'=');
            }
            LogFormat::Json => {
                if !self.is_first {
                    self.out.push(b',');
                }
                self.is_first = false;
                escape::push_json_string(self.out, key.as_bytes());
                self.out.push(b':');
            }
        }
    }

    fn push_text(&mut self, value: &str) {
        match self.format {
            LogFormat::Text => escape::push_text_value(self.out, value),
            LogFormat::Json => escape::push_json_string(self.out, value.as_bytes()),
        }
    }

    /// A number or bool, which looks the same in both formats.
    pub(super) fn push_plain(&mut self, value: impl fmt::Display) -> Result<(), kv::Error> {
        let _ = write!(self.out, "{value}");
        Ok(())
    }
}

impl<'kvs> VisitSource<'kvs> for Fields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        self.push_key(key.as_str());
        value.visit(self)
    }
}

impl<'v> VisitValue<'v> for Fields<'_> {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), kv::Error> {
        self.visit_str(&value.to_string())
    }

    fn visit_null(&mut self) -> Result<(), kv::Error> {
        self.push_plain(if self.format == LogFormat::Json { "null" } else { "-" })
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.push_plain(value)
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        self.push_plain(value)
    }

    fn visit_u128(&mut self, value: u128) -> Result<(), kv::Error> {
        self.push_plain(value)
    }

    fn visit_i128(&mut self, value: i128) -> Result<(), kv::Error> {
        self.push_plain(value)
    }

    fn visit_f64(&mut self, value: f64) -> Result<(), kv::Error> {
        // JSON has no infinities.
        if value.is_finite() { self.push_plain(value) } else { self.visit_null() }
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        self.push_plain(value)
    }

    fn visit_str(&mut self, value: &str) -> Result<(), kv::Error> {
        self.push_text(value);
        Ok(())
    }
}
