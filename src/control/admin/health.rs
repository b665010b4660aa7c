//! What probes ask: whether the process lives, and whether it is to get requests.
//!
//! The admin listener answers them, too. The health listener answers nothing else, so that load
//! balancers on other machines can reach it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use serde_json::json;

use super::answers::{error, json as json_response};
use crate::{
    app::{App, Context, Reply},
    http::{Method, RequestHead, Response},
};

/// What the health listener serves.
pub(crate) struct HealthApp {
    /// A stop has begun.
    stopping: Arc<AtomicBool>,
}

impl HealthApp {
    /// `stopping` is set from the first moment of a stop.
    pub(crate) fn new(stopping: Arc<AtomicBool>) -> Self {
        Self { stopping }
    }
}

impl App for HealthApp {
    fn handle<'a>(&'a self, request: &RequestHead<'_>, _context: &Context<'_>) -> Reply<'a> {
        let answer = probe(request, &self.stopping).unwrap_or_else(|| match request.path() {
            "/healthz" | "/readyz" => {
                error(405, "a probe is GET or HEAD").with_field("Allow", "GET, HEAD")
            }
            _ => error(404, "here are /healthz and /readyz only"),
        });
        Reply::Full(answer)
    }

    fn kind(&self) -> &'static str {
        "health"
    }
}

/// The answer to a probe, if the request is one.
pub(super) fn probe(request: &RequestHead<'_>, stopping: &AtomicBool) -> Option<Response<'static>> {
    if !matches!(request.method(), Method::Get | Method::Head) {
        return None;
    }
    match request.path() {
        "/healthz" => Some(json_response(200, &json!({ "status": "ok" }))),
        "/readyz" if stopping.load(Ordering::Acquire) => {
            Some(json_response(503, &json!({ "status": "stopping" })))
        }
        "/readyz" => Some(json_response(200, &json!({ "status": "ready" }))),
        _ => None,
    }
}
