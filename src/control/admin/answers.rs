//! How the admin API says that something is done, or why not.

use serde::Serialize;
use serde_json::json;

use super::{
    super::{ChangeError, PutError},
    show,
};
use crate::{config::nearest, hosted::Apps, http::Response};

/// Of whom an error speaks that is not an app's.
pub(super) const SERVER: &str = "tidegate";

/// The answer to a request, as far as it is known at once.
pub(super) type Answered = Result<Response<'static>, Response<'static>>;

/// An answer that says what is wrong, and what to do.
pub(super) fn error(status: u16, message: &str) -> Response<'static> {
    json(status, &json!({ "error": message }))
}

pub(super) fn json(status: u16, document: &impl Serialize) -> Response<'static> {
    // Nothing here can fail to be JSON: no map has keys other than strings.
    let mut text = serde_json::to_vec(document).unwrap_or_default();
    text.push(b'\n');
    Response::json(status, text).with_field("Cache-Control", "no-store")
}

pub(super) fn ok(document: &impl Serialize) -> Answered {
    Ok(json(200, document))
}

/// Says of an app, or of the server, why not.
pub(super) fn refused(whose: &str, reason: &ChangeError) -> Response<'static> {
    let status = match reason {
        ChangeError::UnknownHost | ChangeError::UnknownUpstream(_) => 404,
        ChangeError::Ended | ChangeError::Busy { .. } | ChangeError::UnderWay { .. } => 503,
        ChangeError::NameTaken(_)
        | ChangeError::BeingRemoved
        | ChangeError::NotDrained
        | ChangeError::Changed
        | ChangeError::Stopping
        | ChangeError::HandedOver(_) => 409,
    };
    let mut answer = json!({ "error": format!("{whose}: {reason}") });
    if let ChangeError::HandedOver(pid) = reason {
        answer["successor"] = json!(pid);
    }
    json(status, &answer)
}

/// The same for an app. If no app has this name, the answer suggests the nearest name.
pub(super) fn refused_app(registry: &Apps, host: &str, reason: &ChangeError) -> Response<'static> {
    if *reason != ChangeError::UnknownHost {
        return refused(host, reason);
    }
    let entries = registry.entries();
    let names = entries.iter().flat_map(|life| {
        std::iter::once(life.host()).chain(life.aliases().iter().map(String::as_str))
    });
    match nearest(host, names) {
        Some(near) => error(404, &format!("{host}: {reason} (did you mean `{near}`?)")),
        None => refused(host, reason),
    }
}

pub(super) fn put_failed(registry: &Apps, host: &str, reason: PutError) -> Response<'static> {
    match reason {
        PutError::Table(wrong) => {
            let error = format!("{host}: the app's table is wrong, and nothing changed");
            json(422, &json!({ "error": error, "problems": show::problems(&wrong, None) }))
        }
        PutError::Load(reason) => {
            error(500, &format!("{host}: the app cannot be loaded, and nothing changed: {reason}"))
        }
        PutError::Change(reason) => refused_app(registry, host, &reason),
    }
}
