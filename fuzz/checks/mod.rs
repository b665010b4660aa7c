//! What has to hold for any bytes: one check for each fuzz target.
//!
//! The targets and the replay of their corpora (`tests/it/fuzz_corpus.rs`) include these files, so
//! both check the same. The first bytes of most inputs decide how the rest is run: limits, what is
//! asked or answered, and where the rest is cut.

// A target uses its own part of this.
#![allow(dead_code, unreachable_pub)]

pub mod chunked_body;
pub mod config;
pub mod connection;
pub mod exchange;
mod input;
mod oracle;
pub mod proxy_fields;
pub mod proxy_header;
pub mod request_head;
pub mod tls_opening;
pub mod tls_records;
pub mod upstream_response;

use input::{in_any_split, limits, place};

/// Panics where something does not hold.
pub type Check = fn(&[u8]);

/// All checks, by the names of their targets.
pub const CHECKS: &[(&str, Check)] = &[
    ("chunked_body", chunked_body::check),
    ("config", config::check),
    ("connection", connection::check),
    ("exchange", exchange::check),
    ("proxy_fields", proxy_fields::check),
    ("proxy_header", proxy_header::check),
    ("request_head", request_head::check),
    ("tls_opening", tls_opening::check),
    ("tls_records", tls_records::check),
    ("upstream_response", upstream_response::check),
];
