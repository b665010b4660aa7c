//! One file in one coding, ready to be sent: its encoded fields and its content.
//!
//! Content up to [`MEMORY_BYTES_MAX`] is held in memory; larger content is an open file that the
//! loop reads from. A representation never changes; a changed file gets a new one.
//!
//! - The entity tag changes whenever the content does (RFC 9110 §8.8.1), even if tools set the
//!   times of files. For content in memory it is a hash of the content, equal on every machine. For
//!   an open file it is a hash of the inode and its times; tools cannot set the inode's change
//!   time. The tag is weak while another change could leave that time as it is.
//! - `Last-Modified` is the file's modification time. Tools can set it, so it never permits a
//!   range. It is left out if it is 0 or 1, which reproducible builds set; if it is in the future,
//!   because it must not be later than `Date` (§8.8.2.1); and after the year 9999.

use std::{
    fs::File,
    hash::{DefaultHasher, Hasher},
    io::ErrorKind,
    os::unix::fs::FileExt,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use rustix::io::Errno;

use crate::{
    app::{Reply, Segment},
    http::{Bytes, Response},
};

use super::{
    conditional::Validators, directory::Stamp, encoding::Coding, failure::FileFailure,
    ranges::ByteRange,
};

/// The largest content that is held in memory, in bytes.
pub(super) const MEMORY_BYTES_MAX: u64 = 64 * 1024;

/// Most attempts to read a file that turns out shorter than its size: the content must have the
/// announced length.
const READ_ATTEMPTS_MAX: usize = 2;

/// How long a file must be unchanged, in seconds, before an equal stamp means equal content: a
/// second change within one tick of the file system's clock does not change the stamp.
const SETTLED_AFTER_S: i64 = 2;

/// The first modification time that is meant as one, in seconds since 1970.
const TIMES_START_S: i64 = 2;

/// The first second of the year 10000, which no HTTP date can express.
const DATES_END_S: i64 = 253_402_300_800;

/// What decides the fields of a representation.
#[derive(Clone, Copy, Debug)]
pub(super) struct FieldsSpec<'a> {
    /// `Content-Type`
    pub(super) media_type: &'a str,
    /// `Cache-Control`
    pub(super) cache_control: Option<&'a str>,
    /// Whether the answer depends on `Accept-Encoding`.
    pub(super) is_negotiated: bool,
    /// Whether it is the 404 page, whose only field is the type.
    pub(super) is_error_page: bool,
}

/// A file in one coding, ready to be sent.
#[derive(Clone, Debug)]
pub(super) struct Representation {
    fields: Arc<[u8]>,
    /// Where `Content-Type` ends: a multipart answer has its own.
    type_end: usize,
    /// Where the fields of a 304 begin.
    lasting_start: usize,
    etag: Arc<str>,
    modified_s: Option<u64>,
    length: u64,
    body: Storage,
    is_coded: bool,
    is_settled: bool,
}

#[derive(Clone, Debug)]
enum Storage {
    Memory(Arc<[u8]>),
    Open(Arc<File>),
}

impl Representation {
    /// Loads an open file. `stamp` is its state when it was opened, `wall_s` the time of day in
    /// seconds since 1970.
    pub(super) fn load(
        file: File,
        mut stamp: Stamp,
        coding: Coding,
        spec: &FieldsSpec<'_>,
        wall_s: i64,
    ) -> Result<Self, FileFailure> {
        for _ in 0..READ_ATTEMPTS_MAX {
            if stamp.size > MEMORY_BYTES_MAX {
                let body = Storage::Open(Arc::new(file));
                return Ok(Self::new(stamp, body, coding, spec, wall_s));
            }
            if let Some(content) = read_exact(&file, stamp.size)? {
                let body = Storage::Memory(content.into());
                return Ok(Self::new(stamp, body, coding, spec, wall_s));
            }
            stamp = Stamp::of_file(&file)?;
        }
        Err(FileFailure::Unsteady)
    }

    /// A listing, which is not a file.
    pub(super) fn of_page(page: String, spec: &FieldsSpec<'_>, wall_s: i64) -> Self {
        let stamp = Stamp::of_listing(page.len() as u64);
        Self::new(stamp, Storage::Memory(page.into_bytes().into()), Coding::Identity, spec, wall_s)
    }

    fn new(
        stamp: Stamp,
        body: Storage,
        coding: Coding,
        spec: &FieldsSpec<'_>,
        wall_s: i64,
    ) -> Self {
        let mut fields = Vec::with_capacity(256);
        push_field(&mut fields, "Content-Type", spec.media_type);
        let type_end = fields.len();
        if let Some(name) = coding.name() {
            push_field(&mut fields, "Content-Encoding", name);
        }
        let last_change_s = stamp.modified.0.max(stamp.changed.0);
        let is_settled = last_change_s.saturating_add(SETTLED_AFTER_S) <= wall_s;
        let etag = match &body {
            Storage::Memory(content) => content_tag(content, coding),
            Storage::Open(_) if is_settled => file_tag(&stamp, coding),
            // A new tag each second, so that it doesn't match content that was written meanwhile.
            Storage::Open(_) => format!("W/\"{:x}-{wall_s:x}\"", stamp.size),
        };
        let modified_s = last_modified(&stamp, wall_s);
        let mut lasting_start = fields.len();
        if !spec.is_error_page {
            push_field(&mut fields, "Accept-Ranges", "bytes");
            if let Some(modified_s) = modified_s {
                let time = UNIX_EPOCH + Duration::from_secs(modified_s);
                push_field(&mut fields, "Last-Modified", &httpdate::fmt_http_date(time));
            }
            lasting_start = fields.len();
            push_field(&mut fields, "ETag", &etag);
            if let Some(cache_control) = spec.cache_control {
                push_field(&mut fields, "Cache-Control", cache_control);
            }
            if spec.is_negotiated {
                push_field(&mut fields, "Vary", "Accept-Encoding");
            }
        }
        Self {
            fields: fields.into(),
            type_end,
            lasting_start,
            etag: etag.into(),
            modified_s,
            length: stamp.size,
            body,
            is_coded: coding != Coding::Identity,
            is_settled,
        }
    }

    /// The answer with the whole content.
    pub(super) fn reply(&self, status: u16) -> Reply<'static> {
        let head =
            Response::new(status).with_encoded_fields(Bytes::Shared(Arc::clone(&self.fields)));
        match &self.body {
            Storage::Memory(content) => {
                Reply::Full(head.with_content_bytes(Bytes::Shared(Arc::clone(content))))
            }
            Storage::Open(_) => {
                let whole = ByteRange { offset: 0, length: self.length };
                Reply::Files { head, content: vec![self.segment(whole)] }
            }
        }
    }

    /// A 304 with the fields that a cache needs to update its entry (RFC 9110 §15.4.5).
    pub(super) fn not_modified(&self) -> Reply<'static> {
        let fields = self.fields[self.lasting_start..].to_vec();
        Reply::Full(Response::new(304).with_encoded_fields(Bytes::Owned(fields)))
    }

    /// A 206 with one part, or with several as `multipart/byteranges` (RFC 9110 §15.3.7). The
    /// boundary must not occur in the content, so it must not be predictable.
    pub(super) fn partial(&self, parts: &[ByteRange], boundary: u64) -> Reply<'static> {
        if let [part] = parts {
            let mut fields = self.fields.to_vec();
            push_field(&mut fields, "Content-Range", &part.content_range(self.length));
            return partial_reply(fields, vec![self.segment(*part)]);
        }
        let media_type = format!("multipart/byteranges; boundary={boundary:016x}");
        let mut fields = Vec::with_capacity(self.fields.len() + 64);
        push_field(&mut fields, "Content-Type", &media_type);
        fields.extend_from_slice(&self.fields[self.type_end..]);
        let mut content = Vec::with_capacity(2 * parts.len() + 1);
        for part in parts {
            let delimiter = if content.is_empty() { "--" } else { "\r\n--" };
            let mut head = format!("{delimiter}{boundary:016x}\r\n").into_bytes();
            head.extend_from_slice(&self.fields[..self.type_end]);
            push_field(&mut head, "Content-Range", &part.content_range(self.length));
            head.extend_from_slice(b"\r\n");
            content.push(Segment::Bytes(head.into()));
            content.push(self.segment(*part));
        }
        let end = format!("\r\n--{boundary:016x}--\r\n").into_bytes();
        content.push(Segment::Bytes(end.into()));
        partial_reply(fields, content)
    }

    /// The validators for conditional requests.
    pub(super) fn validators(&self) -> Validators<'_> {
        Validators { etag: &self.etag, modified_s: self.modified_s }
    }

    /// The size of the content in bytes.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Whether the content is in another coding than the file itself.
    pub(super) fn is_coded(&self) -> bool {
        self.is_coded
    }

    /// Whether an equal stamp means equal content.
    pub(super) fn is_settled(&self) -> bool {
        self.is_settled
    }

    /// Whether it holds a descriptor.
    pub(super) fn is_open_file(&self) -> bool {
        matches!(self.body, Storage::Open(_))
    }

    /// The memory that it holds, in bytes.
    pub(super) fn memory_bytes(&self) -> usize {
        let content = match &self.body {
            Storage::Memory(content) => content.len(),
            Storage::Open(_) => 0,
        };
        self.fields.len() + self.etag.len() + content
    }

    fn segment(&self, part: ByteRange) -> Segment {
        match &self.body {
            Storage::Memory(content) => {
                let start = part.offset as usize;
                Segment::Bytes(content[start..start + part.length as usize].to_vec().into())
            }
            Storage::Open(file) => {
                Segment::File { file: Arc::clone(file), offset: part.offset, length: part.length }
            }
        }
    }
}

fn partial_reply(fields: Vec<u8>, content: Vec<Segment>) -> Reply<'static> {
    let head = Response::new(206).with_encoded_fields(Bytes::Owned(fields));
    Reply::Files { head, content }
}

/// The values come from the config and from this file, so they are valid.
fn push_field(fields: &mut Vec<u8>, name: &str, value: &str) {
    debug_assert!(crate::http::is_field_value(value), "{name}: {value:?}");
    for part in [name, ": ", value, "\r\n"] {
        fields.extend_from_slice(part.as_bytes());
    }
}

/// SipHash with the fixed key of std. Two contents of the same length have the same tag with a
/// probability of 2^-64, unless their author searches for such a pair. If a version of std changes
/// the hash, clients transfer each file once more.
fn content_tag(content: &[u8], coding: Coding) -> String {
    let mut hasher = DefaultHasher::new();
    hasher.write(content);
    format!("\"{:016x}-{:x}{}\"", hasher.finish(), content.len(), tag_end(coding))
}

fn file_tag(stamp: &Stamp, coding: Coding) -> String {
    let Stamp { identity: (device, inode), size, modified, changed } = *stamp;
    let mut hasher = DefaultHasher::new();
    for part in [device, inode, modified.0 as u64, modified.1.into(), changed.0 as u64] {
        hasher.write_u64(part);
    }
    hasher.write_u32(changed.1);
    format!("\"{:016x}-{size:x}{}\"", hasher.finish(), tag_end(coding))
}

fn tag_end(coding: Coding) -> String {
    coding.name().map_or_else(String::new, |name| format!("-{name}"))
}

fn last_modified(stamp: &Stamp, wall_s: i64) -> Option<u64> {
    let (modified_s, _) = stamp.modified;
    let is_sayable = (TIMES_START_S..DATES_END_S).contains(&modified_s) && modified_s <= wall_s;
    if is_sayable { u64::try_from(modified_s).ok() } else { None }
}

/// The first `size` bytes of a file; `None` if it has fewer.
fn read_exact(file: &File, size: u64) -> Result<Option<Vec<u8>>, FileFailure> {
    let mut content = vec![0; size as usize];
    match file.read_exact_at(&mut content, 0) {
        Ok(()) => Ok(Some(content)),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => {
            Err(Errno::from_io_error(&error)
                .map_or(FileFailure::Broken(Errno::IO), FileFailure::from))
        }
    }
}
