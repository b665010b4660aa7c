//! The `files` kind: a folder of files.
//!
//! Owns the open root and, per loop, a cache of what was asked for. GET and HEAD answer with the
//! file that the path names, its index file for a path that ends with a slash, or its precompressed
//! neighbour; OPTIONS with 204; any other method with 405.
//!
//! - Nothing outside the root is ever sent, nor a dot file, nor anything but a regular file.
//! - The length that is told is the length that is sent, or the connection ends.
//! - A change on disk shows within [`cache::REVALIDATE_AFTER`], also of the root itself when it is
//!   a symbolic link that is switched; while the root is missing, the last one serves on.
//! - A neighbour is sent only if it is not older than its file, by whole seconds: tools that copy
//!   the time to the compressed file may cut its fraction off.
//! - Opening and reading small files blocks the loop on the disk. That is accepted: they are in the
//!   page cache or a few blocks long, and the cache asks for each at most once a second. Large
//!   files are sent by the loop, straight from the page cache.
//! - No `X-Content-Type-Options`: every answer declares a type, no client sniffs
//!   `application/octet-stream`, and the operator could not take it back.

mod cache;
mod conditional;
mod directory;
mod encoding;
mod media_type;
mod path;
mod ranges;
mod representation;

use std::{
    fs::File,
    hash::{BuildHasher, Hasher, RandomState},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use crate::{
    config::FilesConfig,
    http::{Bytes, Method, RequestHead, Response, is_field_value},
};

use self::{
    cache::{Cache, Resource, Variant},
    conditional::Outcome,
    directory::{Directory, Opened, Stamp},
    encoding::{AcceptedCodings, Coding},
    media_type::media_type,
    path::FilePath,
    ranges::Ranges,
    representation::{FieldsSpec, Representation},
};
use super::{App, Context, LoadError, Reply, error_response, per_loop::PerLoop};

/// An app that serves a folder of files.
pub struct Files {
    config: FilesConfig,
    root: Directory,
    loops: PerLoop<LoopState>,
}

/// What a loop has for itself.
#[derive(Default)]
struct LoopState {
    cache: Cache,
    /// The root, when it is another now than when the app was loaded.
    root: Option<Directory>,
}

/// Why a request is not answered with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// 400: the path can't be read.
    Malformed,
    /// 301: a directory, asked for without the slash at its end.
    IsDirectory,
    /// 403
    Forbidden,
    /// 404
    NotFound,
    /// 503: out of descriptors or memory.
    Exhausted,
    /// 500: the file system failed.
    Broken,
}

/// The key of the 404 page, which no request path is.
const NOT_FOUND_KEY: &str = "";

const ALLOW: &[u8] = b"Allow: GET, HEAD, OPTIONS\r\n";

impl Files {
    /// Opens the root, for an app on `loops` loops.
    ///
    /// # Errors
    /// When the root is missing, no directory or not to be searched, or the system has no
    /// `openat2`.
    pub fn open(config: FilesConfig, loops: usize) -> Result<Self, LoadError> {
        match Directory::open(&config.root) {
            Ok(root) => Ok(Self { config, root, loops: PerLoop::new(loops) }),
            Err(source) => Err(LoadError { path: config.root, source }),
        }
    }

    fn serve(&self, request: &RequestHead<'_>, context: &Context) -> Reply<'static> {
        let key = request.path();
        if !key.starts_with('/') {
            return Reply::Full(error_response(400));
        }
        let asked = Asked::read(request);
        let accepted = || AcceptedCodings::of(request);
        let mut state = self.loops.lock(context.loop_index);
        if let Some(found) = state.cache.find(key, accepted, context.now) {
            return answer(request, &asked, found);
        }
        let send = |found: &Representation| answer(request, &asked, found);
        match self.resolve(&mut state, key, accepted(), context, send) {
            Ok(reply) => reply,
            Err(Failure::NotFound) => self.not_found(&mut state, context),
            Err(Failure::IsDirectory) => Reply::Full(redirect_into(request)),
            Err(Failure::Malformed) => Reply::Full(error_response(400)),
            Err(Failure::Forbidden) => Reply::Full(error_response(403)),
            Err(Failure::Exhausted) => Reply::Full(error_response(503)),
            Err(Failure::Broken) => Reply::Full(error_response(500)),
        }
    }

    /// 404 with the configured page, else with the built-in one.
    fn not_found(&self, state: &mut LoopState, context: &Context) -> Reply<'static> {
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

    /// Finds what a key names on disk, sends it, and remembers it. Out of descriptors, lets go of
    /// the ones that this loop's cache holds, and tries once more.
    fn resolve(
        &self,
        state: &mut LoopState,
        key: &str,
        accepted: AcceptedCodings,
        context: &Context,
        send: impl Fn(&Representation) -> Reply<'static>,
    ) -> Result<Reply<'static>, Failure> {
        let root = state.root.as_ref().unwrap_or(&self.root);
        if let Some(successor) = root.successor(&self.config.root) {
            state.root = Some(successor);
        }
        let root = state.root.as_ref().unwrap_or(&self.root);
        let wall_s = seconds(context.wall);
        let mut outcome = self.look_up(root, key, accepted, state.cache.last_known(key), wall_s);
        if matches!(outcome, Err(Failure::Exhausted)) {
            state.cache.forget_open_files();
            outcome = self.look_up(root, key, accepted, state.cache.last_known(key), wall_s);
        }
        match outcome {
            Ok(resource) => {
                let reply = resource.select(|| accepted).map(send).ok_or(Failure::Broken)?;
                state.cache.store(key, resource, context.now);
                Ok(reply)
            }
            Err(failure) => {
                state.cache.forget(key);
                Err(failure)
            }
        }
    }

    /// The file that a key names and its neighbours, with the accepted one loaded.
    fn look_up(
        &self,
        root: &Directory,
        key: &str,
        accepted: AcceptedCodings,
        last_known: Option<&Resource>,
        wall_s: i64,
    ) -> Result<Resource, Failure> {
        let is_error_page = key == NOT_FOUND_KEY;
        let (name, file, stamp) = match &self.config.not_found {
            Some(page) if is_error_page => {
                open_file(root, page.trim_start_matches('/').as_bytes().to_vec())?
            }
            _ => self.open_requested(root, &FilePath::parse(key)?)?,
        };
        let is_negotiated = self.config.precompressed && !is_error_page && !is_coded_name(&name);
        let mut opened = vec![(Coding::Identity, file, stamp)];
        if is_negotiated {
            for coding in Coding::NEIGHBOURS {
                if let Some((file, stamp)) = open_neighbour(root, &name, coding, &stamp)? {
                    opened.push((coding, file, stamp));
                }
            }
        }
        let spec = FieldsSpec {
            media_type: &media_type(&name, &self.config.types),
            cache_control: self.config.cache_control.as_deref(),
            is_negotiated,
            is_error_page,
        };
        let chosen = accepted.choose(|coding| opened.iter().any(|(own, ..)| *own == coding));
        let mut variants = Vec::with_capacity(opened.len());
        for (coding, file, stamp) in opened {
            let known = last_known.and_then(|known| known.unchanged(coding, &stamp));
            let loaded = match known {
                Some(known) => Some(known.clone()),
                None if coding != chosen => None,
                None => Some(Representation::load(file, stamp, coding, &spec, wall_s)?),
            };
            variants.push(Variant { coding, stamp, loaded });
        }
        Ok(Resource::new(variants))
    }

    fn open_requested(
        &self,
        root: &Directory,
        path: &FilePath,
    ) -> Result<(Vec<u8>, File, Stamp), Failure> {
        if !path.is_directory {
            return open_file(root, path.relative.clone());
        }
        for index in &self.config.index {
            match open_file(root, path.join(index)) {
                Err(Failure::NotFound | Failure::IsDirectory) => {}
                outcome => return outcome,
            }
        }
        Err(Failure::NotFound)
    }
}

impl App for Files {
    fn handle<'a>(&'a self, request: &RequestHead<'_>, context: &Context) -> Reply<'a> {
        match request.method() {
            Method::Get | Method::Head => self.serve(request, context),
            Method::Options => {
                Reply::Full(Response::new(204).with_encoded_fields(Bytes::Borrowed(ALLOW)))
            }
            _ => {
                let refusal = error_response(405);
                let fields = [ALLOW, refusal.fields()].concat();
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

/// Which fields of a request stand in the way of a plain answer, found in one pass.
#[derive(Default)]
struct Asked {
    is_conditional: bool,
    has_range: bool,
}

impl Asked {
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

/// Answers with a file, as far as the request's conditions and ranges let it (RFC 9110 §13.2.2).
fn answer(request: &RequestHead<'_>, asked: &Asked, found: &Representation) -> Reply<'static> {
    if asked.is_conditional {
        match found.validators().evaluate(request) {
            Outcome::Proceed => {}
            Outcome::NotModified => return found.not_modified(),
            Outcome::Failed => return Reply::Full(error_response(412)),
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
        // A Content-Encoding would stand over the multipart, but mean what is in its parts.
        Ranges::Parts(parts) if parts.len() > 1 && found.is_coded() => Ranges::Ignored,
        ranges if found.validators().allow_range(request) => ranges,
        _ => Ranges::Ignored,
    }
}

/// Sends on to the same path with a slash at its end. The Location is a path of this host: it
/// begins with one slash, as `//evil` would name a host, and backslashes were refused before.
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

fn open_file(root: &Directory, name: Vec<u8>) -> Result<(Vec<u8>, File, Stamp), Failure> {
    match root.open_file(&name)? {
        Opened::Regular(file, stamp) => Ok((name, file, stamp)),
        Opened::Directory => Err(Failure::IsDirectory),
    }
}

/// A neighbour that may be sent for a file; one that can't be opened might as well not be there.
fn open_neighbour(
    root: &Directory,
    name: &[u8],
    coding: Coding,
    original: &Stamp,
) -> Result<Option<(File, Stamp)>, Failure> {
    match root.open_file(&[name, coding.suffix().as_bytes()].concat()) {
        Ok(Opened::Regular(file, stamp)) if stamp.modified.0 >= original.modified.0 => {
            Ok(Some((file, stamp)))
        }
        Err(Failure::Exhausted) => Err(Failure::Exhausted),
        _ => Ok(None),
    }
}

/// Whether a file is compressed itself, and has no neighbours.
fn is_coded_name(name: &[u8]) -> bool {
    Coding::NEIGHBOURS.iter().any(|coding| name.ends_with(coding.suffix().as_bytes()))
}

/// The time in seconds since 1970.
fn seconds(wall: SystemTime) -> i64 {
    let since = wall.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// An unpredictable number: the hash of nothing under a new random key.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests;
