//! Notices for operators: each is an event of the log, and goes to all subscribers of the event
//! stream of the admin API.
//!
//! All other events of the log, such as `upstream_down`, come to the stream by the log's tap.
//!
//! A process that takes over from another one holds its notices back until it serves: if it fails,
//! none of what it did has happened. They are logged with the time at which it serves.
//!
//! The stream does not depend on the log's level. A subscriber that is gone, or too slow for its
//! loop's patience, is forgotten.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use log::Level;
use serde_json::{Value, json};

use crate::{
    app::Stream,
    logging::{log_kept, rfc3339},
};

/// Tells operators: `notice!(notices, Info, "app_added", host = host, id = 7_u64)`. Values are what
/// the log and JSON both take: numbers, strings, bools.
macro_rules! notice {
    ($notices:expr, $level:ident, $name:literal $(, $key:ident = $value:expr)* $(,)?) => {{
        if $notices.are_held() {
            let fields = ::serde_json::json!({ $(stringify!($key): $value),* });
            $notices.keep(::log::Level::$level, $name, fields);
        } else {
            $crate::logging::event_to!(
                $crate::logging::NOTICE_TARGET, $level, $name $(, $key = $value)*
            );
            $notices.publish(::log::Level::$level, $name, || {
                ::serde_json::json!({ $(stringify!($key): $value),* })
            });
        }
    }};
}
pub(crate) use notice;

/// The subscribers of the event stream.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    subscribers: Mutex<Vec<Stream>>,
    are_held: AtomicBool,
    held: Mutex<Vec<Notice>>,
}

/// A notice that is held back.
#[derive(Debug)]
struct Notice {
    level: Level,
    name: &'static str,
    fields: Value,
}

impl Notices {
    /// Holds back what comes until [`Notices::release`].
    pub(crate) fn hold(&self) {
        self.are_held.store(true, Ordering::Release);
    }

    pub(crate) fn are_held(&self) -> bool {
        self.are_held.load(Ordering::Acquire)
    }

    /// Tells it at the release.
    pub(crate) fn keep(&self, level: Level, name: &'static str, fields: Value) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).push(Notice {
            level,
            name,
            fields,
        });
    }

    /// Takes what is held back, in order.
    #[cfg(test)]
    pub(super) fn take_held(&self) -> Vec<(&'static str, Value)> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.drain(..).map(|notice| (notice.name, notice.fields)).collect()
    }

    /// Tells what was held back, and holds nothing back any more.
    pub(crate) fn release(&self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for Notice { level, name, fields } in held.drain(..) {
            log_kept(level, name, &fields);
            self.publish(level, name, || fields);
        }
        self.are_held.store(false, Ordering::Release);
    }

    /// One more subscriber.
    pub(crate) fn subscribe(&self, stream: Stream) {
        self.subscribers().push(stream);
    }

    /// Sends an event to all subscribers; `fields` is asked only if there are any.
    pub(crate) fn publish(&self, level: Level, name: &str, fields: impl FnOnce() -> Value) {
        let mut subscribers = self.subscribers();
        if subscribers.is_empty() {
            return;
        }
        let ts = rfc3339(SystemTime::now());
        let data = json!({ "ts": ts, "level": level.as_str(), "pid": std::process::id(),
            "event": name, "fields": fields() });
        let text = format!("event: {name}\ndata: {data}\n\n");
        subscribers.retain(|stream| stream.send(text.clone().into_bytes()));
    }

    /// Finds subscribers that are gone, and keeps middleboxes from closing quiet connections.
    pub(crate) fn keep_alive(&self) {
        self.subscribers().retain(|stream| stream.send(b":\n\n".to_vec()));
    }

    /// Ends all streams.
    pub(crate) fn close(&self) {
        self.subscribers().clear();
    }

    fn subscribers(&self) -> MutexGuard<'_, Vec<Stream>> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
