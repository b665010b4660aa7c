//! The tests that see Tidegate from outside, in one program: a module a subject.
//!
//! `cargo test --test it upgrade::` runs one of them. All tests share one process, so no test
//! changes its environment, working directory, umask or signal handlers. Two settings are the same
//! for all: the process raises its limit on descriptors, and it adopts orphans. A test that needs a
//! process of its own is a program of its own, such as `chaos`.
#![cfg(not(loom))]
// Nothing depends on this crate.
#![allow(unreachable_pub)]

mod admin;
mod attacks;
mod balance;
mod cli;
mod cli_support;
mod config;
mod deploy;
mod disk;
mod documents;
mod drain;
mod drain_log;
mod drill;
mod drill_tls;
mod embed;
mod exchange_support;
mod faults;
mod files;
mod first_minute;
mod fuzz_corpus;
mod health;
mod later;
mod limits;
mod logs;
mod operators;
mod privileges;
mod protocol;
mod proxy;
mod proxy_protocol;
mod reload;
mod service_manager;
mod signals;
mod simulate;
mod smuggling;
mod stress;
#[path = "../support/mod.rs"]
mod support;
mod tls;
mod tls_policy;
mod tls_seen;
mod tls_upstreams;
mod transcripts;
mod upgrade;
mod upstream;
mod upstream_drains;
mod upstream_failures;
mod watchdog;
