//! `[apps."host"]`: the names of an app and its kind.
//!
//! The names of all apps are kept apart from the contents, so that an error in an app doesn't make
//! its names unknown.

use std::{ops::RangeInclusive, path::Path, time::Duration};

use toml::de::{DeTable, DeValue};

use super::{
    AppConfig, AppKind, FilesConfig, RedirectConfig, RespondConfig, Tries,
    error::{Finding, Span},
    filters,
    hosts::host_pattern,
    keys, proxy,
    reader::{ANY_COUNT, Meant, Syntax, Table, WordOrList, quoted},
    repeats::Repeats,
    sections::{absolute_path, wait},
    tls,
    values::{Fault, boolean, integer, nearest, string},
};
use crate::http::{Host, is_field_name, is_field_value, is_framing_field};

/// All apps, and the names of each.
#[derive(Default)]
pub(super) struct Apps {
    pub(super) list: Vec<AppConfig>,
    /// Every host and alias, with the host of its app.
    names: Vec<(String, String)>,
    repeats: Repeats,
}

impl Apps {
    /// The host of the app that has this host or alias.
    pub(super) fn host_of(&self, name: &str) -> Result<String, Fault> {
        if let Some((_, host)) = self.names.iter().find(|(known, _)| known == name) {
            return Ok(host.clone());
        }
        let fault = Fault::new("names no app").fragile();
        let known = || self.names.iter().map(|(name, _)| name.as_str());
        Err(match nearest(name, known()) {
            Some(near) => fault.help(format!("did you mean \"{near}\"?")),
            None if self.names.is_empty() => fault.help("there are no apps in this file"),
            None => {
                let shown: Vec<_> = known().take(NAMES_SHOWN_MAX).collect();
                let more = if shown.len() < self.names.len() { ", …" } else { "" };
                fault.help(format!("known names: {}{more}", shown.join(", ")))
            }
        })
    }
}

/// Statuses of a fixed answer. Informational ones (1xx) can't end an exchange.
const STATUS: RangeInclusive<u16> = 200..=599;

/// Statuses of a redirect (RFC 9110 §15.4).
const REDIRECT_STATUS: [u16; 5] = [301, 302, 303, 307, 308];

/// Statuses whose answers have no content (RFC 9110 §15.3.5, §15.3.6, §15.4.5).
const WITHOUT_CONTENT: [u16; 3] = [204, 205, 304];

/// The most names that a message lists.
const NAMES_SHOWN_MAX: usize = 20;

const KINDS: [&str; 4] = ["respond", "redirect", "files", "proxy"];

/// Reads `[apps]`.
pub(super) fn read(table: &mut Table<'_, '_>, base: &Path) -> Apps {
    let mut apps = Apps::default();
    table.each_table(|table| app(table, base, &mut apps));
    apps
}

/// Reads one app, whose host is the table's key.
pub(super) fn app(table: &mut Table<'_, '_>, base: &Path, apps: &mut Apps) {
    let host_span = table.span();
    let host = table.keep(&table.name(), host_span.clone(), host_pattern(table.key()));
    let aliases = table.list("aliases", ANY_COUNT, host_pattern).unwrap_or_default();
    let names = host.iter().map(|host| (host, &host_span));
    for (name, span) in names.chain(aliases.iter().map(|(alias, span)| (alias, span))) {
        let repeat = apps.repeats.add(name, span.clone());
        repeat.into_iter().for_each(|finding| table.report(finding));
        apps.names.push((name.clone(), host.clone().unwrap_or_default()));
    }
    let drain_timeout = table.optional("drain_timeout", wait);
    let filters = filters::read(table);
    let tls = table.table("tls", |table| tls::app(table, base)).flatten();
    let kind = kind(table, base);
    if let (Some(host), Some(kind)) = (host, kind) {
        let aliases = aliases.into_iter().map(|(alias, _)| alias).collect();
        apps.list.push(AppConfig { host, aliases, drain_timeout, filters, tls, kind });
    }
}

/// Reads the one kind of an app. Reports the other keys.
fn kind(table: &mut Table<'_, '_>, base: &Path) -> Option<AppKind> {
    let unquoted = unquoted_host(table);
    let mut places: Vec<(Span, &str)> =
        KINDS.iter().filter_map(|kind| Some((table.key_span(kind)?, *kind))).collect();
    places.sort_by_key(|(span, _)| span.start);
    match &places[..] {
        // A kind under a wrong name is already reported as an unknown key.
        [] if !unquoted && table.in_order().iter().all(|(key, ..)| keys::is_of_app(key)) => {
            let message = format!("`{}` has nothing to serve", table.name());
            let help = format!("add one of {}", KINDS.join(", "));
            table.report(Finding::new(table.span(), message).help(help).fragile());
        }
        [(first_span, first), more @ ..] => {
            for (span, kind) in more {
                let message = format!("`{}` has both `{first}` and `{kind}`", table.name());
                let finding = Finding::new(span.clone(), message).label("and this").fragile();
                let finding = finding.related(first_span.clone(), "this");
                table.report(finding.help("an app has one kind: keep one of them"));
            }
        }
        [] => {}
    }
    let respond = table.table_meant("respond", |value| one_string("body", value), respond);
    let redirect = table.table_meant("redirect", |value| one_string("to", value), redirect);
    let files = table
        .table_meant("files", |value| one_string("root", value), |table| files(table, base))
        .flatten();
    let proxy = table.table_meant("proxy", meant_proxy, |table| proxy::read(table, base));
    let (redirect, proxy) = (redirect.flatten(), proxy.flatten());
    let respond = respond.map(AppKind::Respond).or(redirect.map(AppKind::Redirect));
    respond.or(files.map(AppKind::Files)).or(proxy.map(|proxy| AppKind::Proxy(Box::new(proxy))))
}

/// A kind with its only required key given directly: `redirect = "https://…"`.
fn one_string(key: &'static str, value: &DeValue<'_>) -> Option<Meant> {
    Some(vec![(key, quoted(value.as_str()?))])
}

/// `proxy = "http://…"`, an array of such strings, or a port.
fn meant_proxy(value: &DeValue<'_>) -> Option<Meant> {
    let upstreams = match value {
        DeValue::String(url) => vec![quoted(url)],
        DeValue::Integer(port) => vec![quoted(&format!("http://127.0.0.1:{}", port.as_str()))],
        DeValue::Array(urls) => {
            urls.iter().map(|url| url.get_ref().as_str().map(quoted)).collect::<Option<_>>()?
        }
        _ => return None,
    };
    Some(vec![("upstreams", format!("[{}]", upstreams.join(", ")))])
}

/// Reports `[apps.www.example.com]`, which TOML reads as nested tables.
fn unquoted_host(table: &mut Table<'_, '_>) -> bool {
    let mut found = false;
    if table.syntax() == Syntax::Json {
        return found;
    }
    for (key, span, value) in table.in_order() {
        let DeValue::Table(inner) = value.get_ref() else { continue };
        if keys::is_of_app(key) {
            continue;
        }
        let mut host = format!("{}.{key}", table.key());
        let mut inner: &DeTable<'_> = inner;
        while let Some((key, value)) = inner.iter().next()
            && let (false, DeValue::Table(next)) = (keys::is_of_app(key.get_ref()), value.get_ref())
        {
            host = format!("{host}.{}", key.get_ref());
            inner = next;
        }
        let is_app = inner.keys().any(|key| keys::is_of_app(key.get_ref()));
        let is_slip = nearest(key, keys::of_app()).is_some() || table.key().contains('.');
        let is_elsewhere = keys::advice("apps.HOST", key).is_some();
        if !is_app && (is_slip || is_elsewhere) {
            // Already reported as an unknown key, with a suggestion.
            continue;
        }
        table.accept(key);
        let message = format!("unknown table `{}`", table.path_of(key));
        let help = format!("a host with dots needs quotes: [apps.\"{}\"]", host.escape_debug());
        table.report(Finding::new(span, message).help(help));
        found = true;
    }
    found
}

fn respond(table: &mut Table<'_, '_>) -> RespondConfig {
    let status = table.or("status", 200, |value| integer(value, STATUS));
    let body = table.or("body", String::new(), |value| {
        let body = string(value)?;
        if !body.is_empty() && WITHOUT_CONTENT.contains(&status) {
            return Err(Fault::new(format!("cannot be sent with status {status}"))
                .help("remove the body, or use another status"));
        }
        Ok(body.to_owned())
    });
    RespondConfig {
        status,
        body,
        content_type: table
            .or("content_type", "text/plain".to_owned(), |value| media_type(string(value)?)),
        headers: table.pairs("headers", header_name, header_value),
        delay: table.or("delay", Duration::ZERO, wait),
    }
}

fn redirect(table: &mut Table<'_, '_>) -> Option<RedirectConfig> {
    let to = table.required("to", |value| redirect_target(string(value)?));
    let status = table.or("status", 308, |value| {
        let allowed = Fault::new("must be 301, 302, 303, 307 or 308");
        let status = integer(value, 300..=399);
        status.ok().filter(|status| REDIRECT_STATUS.contains(status)).ok_or(allowed)
    });
    Some(RedirectConfig { to: to?, status })
}

fn files(table: &mut Table<'_, '_>, base: &Path) -> Option<FilesConfig> {
    let root = table.required("root", |value| absolute_path(string(value)?, base));
    let default = || vec!["index.html".to_owned()];
    let words = [("off", (Vec::new(), false)), ("listing", (default(), true))];
    let (index, listing) = match table.word_or_list("index", &words, file_name) {
        Some(WordOrList::Word(chosen)) => chosen,
        Some(WordOrList::List(names)) => (names.into_iter().map(|(name, _)| name).collect(), false),
        None => (default(), false),
    };
    let tries = tries(table);
    let not_found = table.optional("not_found", |value| path_inside(string(value)?));
    let precompressed = table.or("precompressed", true, boolean);
    let cache_control = table.optional("cache_control", |value| header_value(string(value)?));
    let types = table.pairs("types", extension, media_type);
    Some(FilesConfig {
        root: root?,
        index,
        listing,
        tries,
        not_found,
        precompressed,
        cache_control,
        types,
    })
}

/// The meaning of one entry of `files.try`.
enum Try {
    Ending(String),
    File(String),
}

fn tries(table: &mut Table<'_, '_>) -> Tries {
    let mut tries = Tries { endings: Vec::new(), fallback: None };
    let Some(entries) = table.list("try", 1..=usize::MAX, try_entry) else {
        return Tries { endings: vec![String::new()], ..tries };
    };
    let last = entries.len().saturating_sub(1);
    for (index, (entry, span)) in entries.into_iter().enumerate() {
        match entry {
            Try::Ending(ending) => tries.endings.push(ending),
            Try::File(_) if index < last => {
                let path = table.path_of("try");
                let message = format!("`{path}[{index}]` must come last: it exists for every path");
                table.report(Finding::new(span, message));
            }
            Try::File(path) => tries.fallback = Some(path),
        }
    }
    tries
}

/// `{path}`, with an ending or without, or a file below the root.
fn try_entry(text: &str) -> Result<Try, Fault> {
    let advice = "write \"{path}\", \"{path}.html\" or a file such as \"/index.html\"";
    if let Some(ending) = text.strip_prefix("{path}") {
        if ending.contains('/') {
            return Err(Fault::new("has a slash after `{path}`").help(advice));
        }
        if ending.contains(|c: char| c.is_control() || "{}\\".contains(c)) {
            return Err(Fault::new("is not a path to try").help(advice));
        }
        return Ok(Try::Ending(ending.to_owned()));
    }
    if text.contains("{path}") {
        return Err(Fault::new("must begin with `{path}`").help(advice));
    }
    let Some(file) = text.strip_prefix('/') else {
        let advice = if text.starts_with('=') {
            "remove it: a missing file gives 404 anyway"
        } else {
            advice
        };
        return Err(Fault::new("is not a path to try").help(advice));
    };
    path_inside(file).map(Try::File)
}

fn header_name(name: &str) -> Result<String, Fault> {
    if !is_field_name(name) {
        return Err(Fault::new("is not a field name").help("write a name such as \"X-Robots-Tag\""));
    }
    if is_framing_field(name) {
        return Err(Fault::new("is written by the server itself").help("remove it"));
    }
    if name.eq_ignore_ascii_case("content-type") {
        return Err(Fault::new("has a key of its own").help("use `content_type`"));
    }
    Ok(name.to_owned())
}

fn header_value(text: &str) -> Result<String, Fault> {
    if text.is_empty() || !is_field_value(text) {
        return Err(Fault::new("is not a field value")
            .help("write one line, without control characters and without spaces around it"));
    }
    Ok(text.to_owned())
}

/// `type/subtype`, with parameters or without (RFC 9110 §8.3.1).
fn media_type(text: &str) -> Result<String, Fault> {
    let essence = text.split(';').next().unwrap_or_default().trim_end();
    let is_type = essence
        .split_once('/')
        .is_some_and(|(kind, subtype)| is_field_name(kind) && is_field_name(subtype));
    if !is_type || !is_field_value(text) {
        return Err(Fault::new("is not a media type").help("write a type such as \"text/html\""));
    }
    Ok(text.to_owned())
}

/// A file's extension in lower case.
fn extension(text: &str) -> Result<String, Fault> {
    let last = text.rsplit(['.', '/']).next().unwrap_or_default();
    if text.is_empty() || last != text || text.contains(char::is_control) {
        let fault = Fault::new("is not a file extension");
        let meant = if last.is_empty() { "html" } else { last };
        let meant = meant.to_ascii_lowercase();
        return Err(fault.help(format!("write \"{}\", without dots", meant.escape_debug())));
    }
    Ok(text.to_ascii_lowercase())
}

/// A file name without a folder.
fn file_name(text: &str) -> Result<String, Fault> {
    if ["", ".", ".."].contains(&text) || text.contains(|c: char| c == '/' || c.is_control()) {
        return Err(Fault::new("is not a file name")
            .help("write a name such as \"index.html\", without a folder"));
    }
    Ok(text.to_owned())
}

/// A relative path that stays inside its root.
fn path_inside(text: &str) -> Result<String, Fault> {
    if text.split('/').any(|part| file_name(part).is_err()) {
        return Err(Fault::new("is not a path inside the root")
            .help("write a path such as \"404.html\", relative to `root`"));
    }
    Ok(text.to_owned())
}

/// An absolute URL to which a request's path and query can be appended.
fn redirect_target(text: &str) -> Result<String, Fault> {
    let fault =
        |reason: &str| Err(Fault::new(reason).help("write a URL such as \"https://example.com\""));
    if text.starts_with('/') && !text.starts_with("//") {
        let fault = Fault::new("has no host: the app would redirect to itself");
        return Err(fault.help("write a URL with another host, such as \"https://example.com\""));
    }
    let Some(rest) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) else {
        return fault("must begin with https:// or http://");
    };
    if text.contains(['?', '#']) {
        return fault("must not have a query or fragment: the request's own query is appended");
    }
    let authority = rest.split('/').next().unwrap_or_default();
    if Host::parse(authority.as_bytes()).is_none() {
        return fault("has no valid host");
    }
    // The characters of a URI path (RFC 3986 §3.3), encoded.
    let in_path = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@%/".contains(&byte);
    if !rest[authority.len()..].bytes().all(in_path) {
        return fault("has a character that must be percent-encoded");
    }
    Ok(text.trim_end_matches('/').to_owned())
}
