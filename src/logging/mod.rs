//! Logs: events (what the server does) and access lines (what its peers asked for).
//!
//! Owns one thread for each log; what is logged goes there through a bounded queue. Never makes
//! who logs wait for a disk, a pipe or a terminal: what finds a queue full is lost, counted, and
//! reported in the log itself.
//!
//! Memory is bounded: at most 1 MiB of events and 16 MiB of access lines wait for the disk; a log's
//! thread holds less than 2 MiB more, and each loop less than 384 KiB. At worst that is 21 MiB and
//! 384 KiB for every loop.

mod escape;
mod stamp;
