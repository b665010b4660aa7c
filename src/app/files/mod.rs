//! The `files` kind: serves a directory of files.
//!
//! Owns the open root and a cache per loop. GET and HEAD are answered with the file that the path
//! names, with the index file if the path ends with a slash, or with a precompressed neighbour. If
//! there is none, the endings and the fallback of `try` follow. OPTIONS gets a 204, any other
//! method a 405.
//!
//! - Never sends anything from outside the root, a dot file (but for `.well-known`), or anything
//!   but a regular file.
//! - Sends exactly the announced length, or ends the connection.
//! - A change on disk shows within [`cache::REVALIDATE_AFTER`]. So does a change of the root, when
//!   it is a symbolic link that is switched. While the root is missing, the old one is served.
//! - A neighbour is sent only if it is not older than its file, in whole seconds: tools that copy
//!   the time to the compressed file may drop the fraction.
//! - Opening and reading a small file may block the loop on the disk. That is accepted: small files
//!   are usually in the page cache or a few blocks long, and the cache opens each at most once a
//!   second. Large files are read in pieces while they are sent, which may block in the same way.
//! - Without free descriptors, a file that is in memory is sent as it was last known. A file on
//!   which another process has a lease is sent from memory if it is unchanged; else the answer is
//!   503 with `Retry-After`. A loop does not wait for the holder of a lease, which may take 45 s.
//! - No `X-Content-Type-Options`: every answer declares a type, clients don't sniff
//!   `application/octet-stream`, and an operator could not remove the field.

mod cache;
mod conditional;
mod directory;
mod encoding;
mod failure;
mod listing;
mod look_up;
mod media_type;
mod path;
mod ranges;
mod representation;

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    config::FilesConfig,
    http::{Bytes, Method, RequestHead, Response, is_field_value},
    logging::event,
};

use self::{
    cache::Cache,
    conditional::Preconditions,
    directory::Directory,
    encoding::AcceptedCodings,
    failure::FileFailure,
    look_up::{LookUp, NOT_FOUND_KEY},
    ranges::Ranges,
    representation::Representation,
};
use super::{App, Context, LoadError, Reply, error_response, per_loop::PerLoop};

/// An app that serves a directory of files.
pub struct Files {
    config: FilesConfig,
    root: Directory,
    /// The request path of the fallback: the file that is sent if the requested one is not found.
    fallback_key: Option<String>,
    loops: PerLoop<LoopFiles>,
}

/// The state of one loop.
#[derive(Default)]
struct LoopFiles {
    cache: Cache,
    /// The root, if it changed since the app was loaded.
    root: Option<Directory>,
    /// When a failure may be logged again.
    log_after: Option<Instant>,
}

/// A loop logs failures of one app at most this often.
const LOG_EVERY: Duration = Duration::from_secs(1);

const ALLOW: &[u8] = b"Allow: GET, HEAD, OPTIONS\r\n";

impl Files {
    /// Opens the root, for an app on `loops` loops.
    ///
    /// # Errors
    /// When the root is missing, is not a directory or cannot be searched, or the system has no
    /// openat2(2).
    pub fn open(config: FilesConfig, loops: usize) -> Result<Self, LoadError> {
        match Directory::open(&config.root) {
            Ok(root) => {
                let fallback = config.tries.fallback.as_deref();
                let fallback_key = fallback.map(|path| format!("/{}", path::encoded(path)));
                Ok(Self { config, root, fallback_key, loops: PerLoop::new(loops) })
            }
            Err(source) => Err(LoadError::directory(config.root, source)),
        }
    }

    fn serve(&self, request: &RequestHead<'_>, context: &Context<'_>) -> Reply<'static> {
        let key = request.path();
        if !key.starts_with('/') {
            return Reply::Full(error_response(400));
        }
        let asked = AskedFields::read(request);
        let accepted = || AcceptedCodings::of(request);
        let mut state = self.loops.lock(context.loop_index);
        if let Some(found) = state.cache.find(key, accepted, context.now) {
            return answer(request, &asked, found);
        }
        let send = |found: &Representation| answer(request, &asked, found);
        match self.resolve(&mut state, key, accepted(), context, send) {
            Ok(reply) => reply,
            Err(FileFailure::NotFound) => self.fall_back(&mut state, request, &asked, context),
            Err(FileFailure::IsDirectory) => Reply::Full(redirect_into(request)),
            Err(FileFailure::Malformed) => Reply::Full(FileFailure::Malformed.response()),
            Err(failure) => {
                self.log(&mut state, key, failure, context.now);
                Reply::Full(failure.response())
            }
        }
    }

    /// Answers with the fallback, if there is one. It is looked up by its own path, so all requests
    /// for it share one entry of the cache.
    fn fall_back(
        &self,
        state: &mut LoopFiles,
        request: &RequestHead<'_>,
        asked: &AskedFields,
        context: &Context<'_>,
    ) -> Reply<'static> {
        let Some(key) = &self.fallback_key else { return self.not_found(state, context) };
        if let Some(found) = state.cache.find(key, || AcceptedCodings::of(request), context.now) {
            return answer(request, asked, found);
        }
        let accepted = AcceptedCodings::of(request);
        let send = |found: &Representation| answer(request, asked, found);
        match self.resolve(state, key, accepted, context, send) {
            Ok(reply) => reply,
            Err(_) => self.not_found(state, context),
        }
    }

    /// Logs why an existing file is not sent.
    fn log(&self, state: &mut LoopFiles, key: &str, failure: FileFailure, now: Instant) {
        if state.log_after.is_some_and(|after| now < after) {
            return;
        }
        state.log_after = Some(now + LOG_EVERY);
        let reason = match failure {
            FileFailure::Broken(errno) => errno.to_string(),
            other => other.reason().to_owned(),
        };
        event!(
            Warn,
            "file_not_sent",
            root:% = self.config.root.display(),
            path = key,
            status = failure.response().status(),
            reason = &*reason,
        );
    }

    /// Answers 404 with the configured page, or with the built-in answer.
    fn not_found(&self, state: &mut LoopFiles, context: &Context<'_>) -> Reply<'static> {
        let built_in = || Reply::Full(error_response(404));
        if self.config.not_found.is_none() {
            return built_in();
        }
        let accepted = AcceptedCodings::default();
        if let Some(page) = state.cache.find(NOT_FOUND_KEY, || accepted, context.now) {
            return page.reply(404);
        }
        let send = |page: &Representation| page.reply(404);
        self.resolve(state, NOT_FOUND_KEY, accepted, context, send).unwrap_or_else(|_| built_in())
    }

    /// Looks a key up on disk, sends the result, and caches it. Without free descriptors, closes
    /// those of this loop's cache and tries once more. If that fails too, sends what is in memory.
    fn resolve(
        &self,
        state: &mut LoopFiles,
        key: &str,
        accepted: AcceptedCodings,
        context: &Context<'_>,
        send: impl Fn(&Representation) -> Reply<'static>,
    ) -> Result<Reply<'static>, FileFailure> {
        let root = state.root.as_ref().unwrap_or(&self.root);
        if let Some(successor) = root.successor(&self.config.root) {
            state.root = Some(successor);
        }
        let root = state.root.as_ref().unwrap_or(&self.root);
        let wall_s = seconds(context.wall);
        let mut look_up =
            LookUp { config: &self.config, key, accepted, wall_s, needs_neighbours: true };
        let mut outcome = look_up.run(root, state.cache.last_known(key));
        if matches!(outcome, Err(FileFailure::Exhausted)) {
            state.cache.forget_open_files();
            look_up.needs_neighbours = false;
            outcome = look_up.run(root, state.cache.last_known(key));
        }
        match outcome {
            Ok(resource) => {
                let reply = resource.select(|| accepted).map(send).ok_or(FileFailure::Unsteady)?;
                state.cache.store(key, resource, context.now);
                Ok(reply)
            }
            Err(FileFailure::Exhausted) => {
                let known = state.cache.last_known(key);
                let known = known.and_then(|known| known.select(|| accepted)).map(send);
                state.cache.believe(key, context.now);
                known.ok_or(FileFailure::Exhausted)
            }
            Err(FileFailure::Leased) => Err(FileFailure::Leased),
            Err(failure) => {
                state.cache.forget(key);
                Err(failure)
            }
        }
    }
}

impl App for Files {
    fn handle<'a>(&'a self, request: &RequestHead<'_>, context: &Context<'_>) -> Reply<'a> {
        match request.method() {
            Method::Get | Method::Head => self.serve(request, context),
            Method::Options => {
                Reply::Full(Response::new(204).with_encoded_fields(Bytes::Borrowed(ALLOW)))
            }
            _ => {
                let refusal = error_response(405);
                let fields = [ALLOW, refusal.fields().lines()].concat();
                Reply::Full(refusal.with_encoded_fields(Bytes::Owned(fields)))
            }
        }
    }

    fn kind(&self) -> &'static str {
        "files"
    }

    fn release_idle(&self, loop_index: usize, now: Instant) {
        self.loops.lock(loop_index).cache.forget_idle(now);
    }
}

/// Whether a request has preconditions or ranges, found in one pass.
#[derive(Default)]
struct AskedFields {
    is_conditional: bool,
    has_range: bool,
}

impl AskedFields {
    fn read(request: &RequestHead<'_>) -> Self {
        let mut asked = Self::default();
        for (name, _) in request.fields() {
            let is = |other: &str| name.eq_ignore_ascii_case(other);
            match name.len() {
                5 if is("Range") => asked.has_range = true,
                8 if is("If-Match") => asked.is_conditional = true,
                13 if is("If-None-Match") => asked.is_conditional = true,
                17 if is("If-Modified-Since") => asked.is_conditional = true,
                19 if is("If-Unmodified-Since") => asked.is_conditional = true,
                _ => {}
            }
        }
        asked
    }
}

/// Answers with a file, after the request's preconditions and ranges (RFC 9110 §13.2.2).
fn answer(
    request: &RequestHead<'_>,
    asked: &AskedFields,
    found: &Representation,
) -> Reply<'static> {
    if asked.is_conditional {
        match found.validators().evaluate(request) {
            Preconditions::Proceed => {}
            Preconditions::NotModified => return found.not_modified(),
            Preconditions::Failed => return Reply::Full(error_response(412)),
        }
    }
    if asked.has_range && request.method() == Method::Get {
        match ranges(request, found) {
            Ranges::Ignored => {}
            Ranges::Parts(parts) => return found.partial(&parts, random()),
            Ranges::Unsatisfiable => {
                let value = format!("bytes */{}", found.length());
                return Reply::Full(error_response(416).with_field("Content-Range", &value));
            }
        }
    }
    found.reply(200)
}

fn ranges(request: &RequestHead<'_>, found: &Representation) -> Ranges {
    let mut lines = request.fields_named("Range");
    let (Some(line), None) = (lines.next(), lines.next()) else { return Ranges::Ignored };
    match Ranges::parse(line, found.length()) {
        // `Content-Encoding` would apply to the multipart document, but its parts are what is
        // coded.
        Ranges::Parts(parts) if parts.len() > 1 && found.is_coded() => Ranges::Ignored,
        ranges if found.validators().allow_range(request) => ranges,
        _ => Ranges::Ignored,
    }
}

/// Redirects to the same path with a slash at its end. The Location is a path on this host: it
/// begins with a single slash (`//evil` would name a host), and paths with backslashes were refused
/// before.
fn redirect_into(request: &RequestHead<'_>) -> Response<'static> {
    let path = request.path().trim_start_matches('/');
    let location = match request.query() {
        Some(query) => format!("/{path}/?{query}"),
        None => format!("/{path}/"),
    };
    if is_field_value(&location) {
        Response::new(301).with_field("Location", &location)
    } else {
        error_response(400)
    }
}

/// The time in seconds since 1970.
fn seconds(wall: SystemTime) -> i64 {
    let since = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// An unpredictable number: the hash of no bytes under a new random key.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests;
