//! What operators are told: each notice is an event of the log, and goes to whoever has subscribed
//! to the event stream of the admin API.
//!
//! All other events of the log, such as `upstream_down`, come to the stream by the log's tap.
//!
//! The stream does not depend on the log's level. A subscriber that is gone, or too slow for its
//! loop's patience, is forgotten.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use log::Level;
use serde_json::{Value, json};

use crate::{app::Stream, logging::rfc3339};

/// Tells operators: `notice!(notices, Info, "app_added", host = host, id = 7_u64)`. Values are what
/// the log and JSON both take: numbers, strings, bools.
macro_rules! notice {
    ($notices:expr, $level:ident, $name:literal $(, $key:ident = $value:expr)* $(,)?) => {{
        $crate::logging::event_to!(
            $crate::logging::TOLD_TARGET, $level, $name $(, $key = $value)*
        );
        $notices.publish(::log::Level::$level, $name, || {
            ::serde_json::json!({ $(stringify!($key): $value),* })
        });
    }};
}
pub(crate) use notice;

/// The subscribers of the event stream.
#[derive(Debug, Default)]
pub(crate) struct Notices {
    subscribers: Mutex<Vec<Stream>>,
}

impl Notices {
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
        let data = json!({ "ts": ts, "level": level.as_str(), "event": name, "fields": fields() });
        let text = format!("event: {name}\ndata: {data}\n\n");
        subscribers.retain(|stream| stream.send(text.clone().into_bytes()));
    }

    /// Finds out who is gone, and keeps what stands between from closing quiet connections.
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
