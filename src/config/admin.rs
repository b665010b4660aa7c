//! `[admin]`: the admin listener, its access rules, and the health listener.
//!
//! Decides what is safe to listen on: a socket file, protected by its mode, or a loopback address
//! with a token. Never checks whether the address is free.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use toml::{Spanned, de::DeTable};

use super::{
    ListenConfig,
    error::{Finding, Span},
    reader::Table,
    regular::read_regular,
    sections::absolute_path,
    values::{Fault, boolean, string},
};

/// `[admin]`: the listener for commands. `Debug` omits the token.
#[derive(Clone, PartialEq, Eq)]
pub struct AdminConfig {
    /// Whether there is an admin listener. Default: true.
    pub enabled: bool,
    /// Where it listens. Default: the socket [`AdminConfig::SOCKET_NAME`] in the config's folder.
    pub listen: AdminListen,
    /// The token that each request must carry: at least 16 bytes of visible ASCII. With
    /// [`AdminListen::Tcp`], either this or `token_file` is set; with a socket, neither.
    pub token: Option<String>,
    /// The file with the token, surrounded by white space or not: an absolute path.
    pub token_file: Option<PathBuf>,
    /// The mode of the socket file; others never have access. Default: 0600.
    pub mode: u32,
    /// The group of the socket file. Default: the server's group.
    pub group: Option<String>,
    /// Where load balancers request `/healthz` and `/readyz`, even if `enabled` is false: an
    /// address that no other listener has. Default: none; the admin listener answers them.
    pub health_listen: Option<SocketAddr>,
}

/// Where the admin listener listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminListen {
    /// A socket file: an absolute path of at most 107 bytes.
    Unix(PathBuf),
    /// A loopback address. While enabled it differs from all of `server.listen`, unless its port is
    /// 0.
    Tcp(SocketAddr),
}

/// The longest socket path that the kernel accepts: `sun_path` without the final NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The minimum length of a token; shorter ones could be guessed.
const TOKEN_BYTES_MIN: usize = 16;

impl AdminConfig {
    /// The socket's default name.
    pub const SOCKET_NAME: &str = "tidegate.sock";

    /// The default mode of a socket file.
    pub const MODE: u32 = 0o600;

    /// The defaults of a config whose folder is `base`.
    pub fn in_folder(base: &Path) -> Self {
        let listen = AdminListen::Unix(base.join(Self::SOCKET_NAME));
        let (token, token_file, group) = (None, None, None);
        let (enabled, mode, health_listen) = (true, Self::MODE, None);
        Self { enabled, listen, token, token_file, mode, group, health_listen }
    }

    /// The token, from its file if there is one. None for a socket.
    ///
    /// # Errors
    /// The error of reading the file, or what is wrong with the token in it.
    pub fn read_token(&self) -> io::Result<Option<String>> {
        let (Some(path), AdminListen::Tcp(_)) = (&self.token_file, &self.listen) else {
            return Ok(self.token.clone());
        };
        let failed = |error: String| io::Error::other(format!("{}: {error}", path.display()));
        let bytes = read_regular(path).map_err(|error| failed(error.to_string()))?;
        let text = String::from_utf8_lossy(&bytes);
        token(text.trim()).map(Some).map_err(|fault| failed(fault.about("the token")))
    }
}

impl fmt::Debug for AdminConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { enabled, listen, token, token_file, mode, group, health_listen } = self;
        let token = token.as_ref().map(|_| format_args!("(secret)"));
        f.debug_struct("AdminConfig")
            .field("enabled", enabled)
            .field("listen", listen)
            .field("token", &token)
            .field("token_file", token_file)
            .field("mode", &format_args!("{mode:04o}"))
            .field("group", group)
            .field("health_listen", health_listen)
            .finish()
    }
}

/// The text of a config with its token replaced by stars, so that reports can show its lines.
/// Positions don't change.
pub(super) fn hide_token(text: &str, tree: &DeTable<'_>) -> String {
    let token = tree.get("admin").and_then(|admin| admin.get_ref().as_table()?.get("token"));
    let Some(span) = token.map(Spanned::span) else { return text.to_owned() };
    // The string without its quotes.
    let inside = span.start + 1..span.end.max(span.start + 2) - 1;
    let star = |(at, c): (usize, char)| {
        if inside.contains(&at) && (c == ' ' || c.is_ascii_graphic()) { '*' } else { c }
    };
    text.char_indices().map(star).collect()
}

/// Reads `[admin]` in the root of a config that listens on `taken`.
pub(super) fn read(root: &mut Table<'_, '_>, base: &Path, taken: &[ListenConfig]) -> AdminConfig {
    let read = root.table("admin", |table| section(table, base, taken));
    let (admin, is_listen_given) = read.unwrap_or_else(|| (AdminConfig::in_folder(base), false));
    if admin.enabled
        && !is_listen_given
        && let AdminListen::Unix(path) = &admin.listen
        && let Err(fault) = check_length(path)
    {
        let span = root.key_span("admin").unwrap_or(0..0);
        let fault = fault.help("write a shorter `admin.listen`, or `admin.enabled = false`");
        root.report(fault.into_finding("admin.listen", span));
    }
    admin
}

/// The section, and whether it sets `listen`.
fn section(table: &mut Table<'_, '_>, base: &Path, taken: &[ListenConfig]) -> (AdminConfig, bool) {
    let default = AdminConfig::in_folder(base);
    let enabled = table.or("enabled", default.enabled, boolean);
    let given = table.optional("listen", |value| Ok((string(value)?, value.span())));
    let is_listen_given = table.key_span("listen").is_some();
    let token_span = table.key_span("token").or(table.key_span("token_file"));
    let token = table.optional("token", |value| token(string(value)?));
    let token_file = table.optional("token_file", |value| absolute_path(string(value)?, base));
    if let (Some(_), Some(span)) = (table.key_span("token"), table.key_span("token_file")) {
        let fault = Fault::new("and `admin.token` are both set").fragile();
        let fault = fault.help("keep one of them");
        table.report(fault.into_finding(&table.path_of("token_file"), span));
    }
    let mode = table.or("mode", default.mode, |value| mode(string(value)?));
    let group = table.optional("group", |value| string(value).map(str::to_owned));
    let path = table.path_of("listen");
    let listen = match given {
        None => Some(default.listen).filter(|_| !is_listen_given),
        Some((text, span)) => {
            let listen = listen(text, base).and_then(|listen| match listen {
                AdminListen::Tcp(address) if enabled => free(address, taken).map(|()| listen),
                _ => Ok(listen),
            });
            let listen = table.keep(&path, span.clone(), listen);
            if matches!(listen, Some(AdminListen::Tcp(_))) && token_span.is_none() {
                table.report(token_missing(&table.path_of("token"), span));
            }
            listen
        }
    };
    if let (Some(AdminListen::Unix(_)), Some(span)) = (&listen, token_span) {
        let fault = Fault::new("is for TCP addresses only").fragile();
        let fault = fault.help("remove it: the socket's mode protects it, 0600 for its owner");
        let is_token = table.key_span("token").is_some();
        let key = if is_token { "token" } else { "token_file" };
        table.report(fault.into_finding(&table.path_of(key), span));
    }
    if let Some(AdminListen::Tcp(_)) = &listen {
        for key in ["mode", "group"] {
            if let Some(span) = table.key_span(key) {
                let fault = Fault::new("is for a socket only").fragile().help("remove it");
                table.report(fault.into_finding(&table.path_of(key), span));
            }
        }
    }
    let listen = listen.unwrap_or_else(|| AdminConfig::in_folder(base).listen);
    let admin = Some(&listen).filter(|_| enabled);
    let health_listen =
        table.optional("health_listen", |value| health_listen(string(value)?, admin, taken));
    let admin = AdminConfig { enabled, listen, token, token_file, mode, group, health_listen };
    (admin, is_listen_given)
}

fn token_missing(path: &str, span: Span) -> Finding {
    Finding::new(span, format!("`{path}` is missing"))
        .label("anyone that reaches this address could control the server")
        .help(
            "add `token = \"…\"`, such as from `openssl rand -hex 16`, or `token_file = \"…\"`, or \
             listen on a socket",
        )
        .fragile()
}

fn listen(text: &str, base: &Path) -> Result<AdminListen, Fault> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok(AdminListen::Unix(socket_path(path, base)?));
    }
    let Ok(address) = text.parse::<SocketAddr>() else { return Err(no_listen(text)) };
    if address.ip().to_canonical().is_loopback() {
        return Ok(AdminListen::Tcp(address));
    }
    let here = if address.is_ipv4() { "127.0.0.1" } else { "[::1]" };
    Err(Fault::new("must be a loopback address")
        .help(format!("write \"{here}:{}\", and use a tunnel to reach it", address.port())))
}

/// Suggests what was probably meant.
fn no_listen(text: &str) -> Fault {
    let fault = Fault::new("is neither a socket nor an IP address with a port");
    if let Ok(ip) = text.parse::<IpAddr>() {
        return fault.help(format!("write \"{}\"", SocketAddr::new(ip, 9901)));
    }
    let port = text.rsplit_once(':').filter(|(host, _)| ["", "localhost"].contains(host));
    if let Some(port) = port.and_then(|(_, port)| port.parse::<u16>().ok()) {
        return fault.help(format!("write \"127.0.0.1:{port}\""));
    }
    if text.contains('/') || text.ends_with(".sock") {
        return fault.help(format!("write \"unix:{}\"", text.escape_debug()));
    }
    fault.help(r#"write "unix:tidegate.sock" or "127.0.0.1:9901""#)
}

/// The path of a socket file, made absolute from `base`.
pub(super) fn socket_path(text: &str, base: &Path) -> Result<PathBuf, Fault> {
    if text.starts_with('@') {
        let fault = Fault::new("names an abstract socket, which has no file and no owner");
        let help = format!("write \"unix:./{}\" for a file of this name", text.escape_debug());
        return Err(fault.help(help));
    }
    let path = absolute_path(text, base)?;
    check_length(&path)?;
    Ok(path)
}

fn check_length(path: &Path) -> Result<(), Fault> {
    let length = path.as_os_str().len();
    if length <= SOCKET_PATH_BYTES_MAX {
        return Ok(());
    }
    let fault = Fault::new(format!("is too long for a socket: {length} bytes with its folder"));
    Err(fault.help(format!("at most {SOCKET_PATH_BYTES_MAX} bytes are possible")))
}

/// Reads the address for load balancers. `admin` is the address for operators.
fn health_listen(
    text: &str,
    admin: Option<&AdminListen>,
    taken: &[ListenConfig],
) -> Result<SocketAddr, Fault> {
    let address = text.parse::<SocketAddr>().map_err(|_| no_health_listen(text))?;
    free(address, taken)?;
    match admin {
        Some(AdminListen::Tcp(other)) if collide(address, *other) => {
            Err(Fault::new(format!("is taken: `admin.listen` has \"{other}\""))
                .help("write another port"))
        }
        _ => Ok(address),
    }
}

/// Suggests what was probably meant.
fn no_health_listen(text: &str) -> Fault {
    let fault = Fault::new("is not an IP address with a port");
    if let Ok(ip) = text.parse::<IpAddr>() {
        return fault.help(format!("write \"{}\"", SocketAddr::new(ip, 8081)));
    }
    let port = text.rsplit_once(':').filter(|(host, _)| ["", "*", "localhost"].contains(host));
    let (host, port) = match port.and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?))) {
        Some(("localhost", port)) => ("127.0.0.1", port),
        Some((_, port)) => ("0.0.0.0", port),
        None => ("0.0.0.0", 8081),
    };
    fault.help(format!("write \"{host}:{port}\""))
}

/// Whether the two addresses exclude each other.
fn collide(one: SocketAddr, other: SocketAddr) -> bool {
    // A wildcard address takes its port on all addresses of its family.
    let for_all = |all: SocketAddr, ip: IpAddr| {
        all.ip().is_unspecified() && all.is_ipv4() == ip.to_canonical().is_ipv4()
    };
    let is_same = one.ip().to_canonical() == other.ip().to_canonical();
    let is_within = for_all(one, other.ip()) || for_all(other, one.ip());
    one.port() == other.port() && one.port() != 0 && (is_same || is_within)
}

fn free(address: SocketAddr, taken: &[ListenConfig]) -> Result<(), Fault> {
    match taken.iter().map(|listen| listen.address).find(|other| collide(address, *other)) {
        Some(other) => Err(Fault::new(format!("is taken: `server.listen` has \"{other}\""))
            .help("write another port")),
        None => Ok(()),
    }
}

/// The mode of a socket file, in octal digits.
fn mode(text: &str) -> Result<u32, Fault> {
    let digits = (3..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let mode = digits.then(|| u32::from_str_radix(text, 8).ok()).flatten();
    match mode {
        Some(mode) if mode > 0o777 || mode & 0o600 != 0o600 => {
            Err(Fault::new("must let the server's user read and write").help("write \"0660\""))
        }
        Some(mode) if mode & 0o007 != 0 => {
            Err(Fault::new("would let every user of this machine control the server")
                .help("write \"0660\", and set `admin.group` to their group"))
        }
        Some(mode) => Ok(mode),
        None => Err(Fault::new("is not a mode in octal digits").help("write \"0660\"")),
    }
}

fn token(text: &str) -> Result<String, Fault> {
    let fault = if text.len() < TOKEN_BYTES_MIN {
        Fault::new(format!("must have at least {TOKEN_BYTES_MIN} bytes"))
    } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Fault::new("must be visible ASCII, without spaces")
    } else {
        return Ok(text.to_owned());
    };
    Err(fault.help("take one from `openssl rand -hex 16`"))
}
