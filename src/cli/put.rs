//! `tidegate add` and `replace`: an app from the arguments or from a JSON file.
//!
//! The app isn't validated here: the server validates it like its config.

use std::{
    fs::File,
    io::{self, Read},
    path::{self, Path, PathBuf},
};

use clap::{ArgGroup, Args};
use serde_json::{Map, Value, json};

use super::{
    DONE, Host, Place,
    admin::{Admin, ServerOptions, app_path},
    answers::Changed,
    failure::Failure,
    show, time_argument,
    wait::finish_all,
};

/// The largest accepted JSON file.
const FILE_BYTES_MAX: u64 = 16 << 20;

#[derive(Debug, Args)]
pub(super) struct Add {
    #[command(flatten)]
    host: Host,

    #[command(flatten)]
    app: AppOptions,

    #[command(flatten)]
    server: ServerOptions,
}

impl Add {
    pub(super) fn run(&self, place: &Place) -> Result<u8, Failure> {
        let mut admin = self.server.admin(place)?;
        put(&mut admin, &self.host, &self.app, "add")?;
        Ok(DONE)
    }
}

#[derive(Debug, Args)]
pub(super) struct Replace {
    #[command(flatten)]
    host: Host,

    #[command(flatten)]
    app: AppOptions,

    /// Wait until the old app has answered all its requests
    #[arg(long)]
    wait: bool,

    #[command(flatten)]
    server: ServerOptions,
}

impl Replace {
    pub(super) fn run(&self, place: &Place) -> Result<u8, Failure> {
        let mut admin = self.server.admin(place)?;
        let changed = put(&mut admin, &self.host, &self.app, "replace")?;
        match changed.drain {
            Some(drain) if self.wait => finish_all(&mut admin, &[drain]),
            _ => Ok(DONE),
        }
    }
}

/// An app's kind, settings and names.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("kind").required(true))]
pub(super) struct AppOptions {
    /// Answer with this text
    #[arg(long, value_name = "BODY", group = "kind")]
    respond: Option<String>,

    /// Redirect to this URL
    #[arg(long, value_name = "URL", group = "kind")]
    redirect: Option<String>,

    /// Serve the files of this folder
    #[arg(long, value_name = "DIR", group = "kind")]
    files: Option<PathBuf>,

    /// Forward requests to this server, http://HOST:PORT or unix:PATH; can be repeated
    #[arg(long, value_name = "URL", group = "kind")]
    proxy: Vec<String>,

    /// Read the app's table from this JSON file; - is standard input
    #[arg(long, value_name = "FILE", group = "kind")]
    from: Option<PathBuf>,

    /// The status of the answer or redirect
    #[arg(long, value_name = "N", conflicts_with_all = ["files", "proxy", "from"])]
    status: Option<u16>,

    /// The media type of the answer
    #[arg(long, value_name = "TYPE", conflicts_with_all = ["redirect", "files", "proxy", "from"])]
    content_type: Option<String>,

    /// How long to delay the answer: 500ms, 2s
    #[arg(long, value_name = "TIME", value_parser = time_argument)]
    #[arg(conflicts_with_all = ["redirect", "files", "proxy", "from"])]
    delay: Option<String>,

    /// Another name for the app; can be repeated
    #[arg(long, value_name = "NAME")]
    alias: Vec<String>,

    /// How long a drain of the app may take before it cuts exchanges: 30s, 2m
    #[arg(long, value_name = "TIME", value_parser = time_argument)]
    drain_timeout: Option<String>,

    /// How many requests each client may make per time: 100/1s, 6000/1m
    #[arg(long, value_name = "N/TIME", value_parser = rate)]
    rate_limit: Option<(u64, String)>,

    /// How many of them may come at once. Default: the whole limit
    #[arg(long, value_name = "N", requires = "rate_limit")]
    burst: Option<u64>,
}

impl AppOptions {
    /// The app's table as JSON.
    pub(super) fn table(&self) -> Result<String, Failure> {
        let mut table = Map::new();
        if let Some(body) = &self.respond {
            let mut respond = json!({ "body": body });
            set(&mut respond, "status", self.status);
            set(&mut respond, "content_type", self.content_type.as_deref());
            set(&mut respond, "delay", self.delay.as_deref());
            table.insert("respond".to_owned(), respond);
        } else if let Some(url) = &self.redirect {
            let mut redirect = json!({ "to": url });
            set(&mut redirect, "status", self.status);
            table.insert("redirect".to_owned(), redirect);
        } else if let Some(folder) = &self.files {
            table.insert("files".to_owned(), json!({ "root": absolute_path("--files", folder)? }));
        } else if !self.proxy.is_empty() {
            let urls: Result<Vec<String>, Failure> =
                self.proxy.iter().map(|url| absolute_url("--proxy", url, Path::new(""))).collect();
            table.insert("proxy".to_owned(), json!({ "upstreams": urls? }));
        } else if let Some(file) = &self.from {
            let (text, mut read) = from_file(file)?;
            // Like in a config, paths are relative to the file.
            let folder = file.parent().unwrap_or(Path::new(""));
            let is_changed = make_paths_absolute(&mut read, folder)?;
            if !is_changed
                && self.alias.is_empty()
                && self.drain_timeout.is_none()
                && self.rate_limit.is_none()
            {
                // Sent unchanged, so that positions in the server's errors match the file.
                return Ok(text);
            }
            table = read;
        }
        if !self.alias.is_empty() {
            table.insert("aliases".to_owned(), json!(self.alias));
        }
        if let Some(timeout) = &self.drain_timeout {
            table.insert("drain_timeout".to_owned(), json!(timeout));
        }
        if let Some((requests, per)) = &self.rate_limit {
            let mut limit = json!({ "requests": requests, "per": per });
            set(&mut limit, "burst", self.burst);
            table.insert("rate_limit".to_owned(), limit);
        }
        Ok(Value::Object(table).to_string())
    }
}

/// Adds or replaces the app and prints the result.
fn put(admin: &mut Admin, host: &Host, app: &AppOptions, only: &str) -> Result<Changed, Failure> {
    let path = app_path(&host.name, &format!("?only={only}"));
    let answer = admin.put(&path, &app.table()?)?;
    admin.print(&answer, changed)?;
    Ok(answer.value)
}

/// The result of a change, on one line.
pub(super) fn changed(changed: &Changed) -> String {
    let Changed { result, app, drain } = changed;
    let mut text = format!("{}: {result}, {} with id {}", app.host, app.kind, app.id);
    if let Some(drain) = drain {
        text += &format!("; id {drain} drains");
    }
    show::clean(&text) + "\n"
}

fn set(table: &mut Value, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        table[key] = value.into();
    }
}

/// Splits a rate into its number and its time. The server parses the time.
fn rate(text: &str) -> Result<(u64, String), String> {
    let parts =
        text.split_once('/').and_then(|(requests, per)| Some((requests.parse().ok()?, per)));
    let (requests, per) = parts.ok_or("write a rate such as 100/1s")?;
    let per = time_argument(per).map_err(|error| error.to_string())?;
    Ok((requests, per))
}

/// Makes paths in an app's table absolute if they are relative to `folder`, and returns whether
/// there are any. Invalid values stay as they are; the server reports them.
fn make_paths_absolute(table: &mut Map<String, Value>, folder: &Path) -> Result<bool, Failure> {
    let mut is_changed = false;
    let mut change = |value: &mut Value, new: String| {
        is_changed |= value.as_str() != Some(&new);
        *value = new.into();
    };
    if let Some(root) = table.get_mut("files").and_then(|files| files.get_mut("root"))
        && let Some(text) = root.as_str().filter(|text| !text.is_empty())
    {
        let new = absolute_path("files.root", &folder.join(text))?;
        change(root, new);
    }
    let upstreams = table.get_mut("proxy").and_then(|proxy| proxy.get_mut("upstreams"));
    for upstream in upstreams.and_then(Value::as_array_mut).into_iter().flatten() {
        let url = if upstream.is_object() { upstream.get_mut("url") } else { Some(upstream) };
        if let Some(url) = url
            && let Some(text) = url.as_str()
        {
            let new = absolute_url("proxy.upstreams", text, folder)?;
            change(url, new);
        }
    }
    Ok(is_changed)
}

/// An upstream's URL with an absolute socket path. `what` names it in errors.
pub(super) fn absolute_url(what: &str, url: &str, folder: &Path) -> Result<String, Failure> {
    match url.strip_prefix("unix:").filter(|path| !path.is_empty()) {
        Some(path) => Ok(format!("unix:{}", absolute_path(what, &folder.join(path))?)),
        None => Ok(url.to_owned()),
    }
}

/// Made absolute because the server may run in another folder.
fn absolute_path(what: &str, path: &Path) -> Result<String, Failure> {
    let usage = |why: String| Failure::Usage(format!("{what} {}: {why}", path.display()));
    let absolute = path::absolute(path).map_err(|error| usage(error.to_string()))?;
    let text = absolute.into_os_string().into_string();
    text.map_err(|_| usage("the path is not UTF-8, which JSON can't hold".to_owned()))
}

/// Reads a JSON file. Returns its text and its table.
fn from_file(file: &Path) -> Result<(String, Map<String, Value>), Failure> {
    let is_stdin = file == Path::new("-");
    let name = if is_stdin { "standard input".to_owned() } else { file.display().to_string() };
    let usage = |what: String| Failure::Usage(format!("--from {name}: {what}"));
    let mut text = String::new();
    let length = if is_stdin {
        io::stdin().take(FILE_BYTES_MAX).read_to_string(&mut text)
    } else {
        File::open(file).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text))
    };
    let length = length.map_err(|error| usage(error.to_string()))?;
    if length as u64 == FILE_BYTES_MAX {
        return Err(usage(format!("larger than {} MiB", FILE_BYTES_MAX >> 20)));
    }
    match serde_json::from_str(&text) {
        Ok(table) => Ok((text, table)),
        Err(error) if !error.is_data() => Err(usage(format!("not valid JSON: {error}"))),
        Err(_) => Err(usage(
            "the app's table must be a JSON object, such as {\"respond\": {\"body\": \"hi\"}}"
                .to_owned(),
        )),
    }
}
