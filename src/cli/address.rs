//! Where the server listens for commands, and the token for it: flag, environment or config.
//!
//! Never reads the config when the flags or the environment say enough, so that a broken config
//! keeps nobody from steering the server that runs.

use std::{
    env, fmt, fs, io,
    net::SocketAddr,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use socket2::{Domain, SockAddr};

use super::failure::Failure;
use crate::config::{AdminListen, Config};

const ADMIN_VARIABLE: &str = "TIDEGATE_ADMIN";
const TOKEN_VARIABLE: &str = "TIDEGATE_TOKEN";

/// The address of an admin listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// The path of a unix socket.
    Unix(PathBuf),
    /// A loopback address.
    Tcp(SocketAddr),
}

impl Address {
    /// Reads `unix:PATH` or `ADDRESS:PORT`; the error says what is right.
    fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().to_canonical().is_loopback() => Ok(Self::Tcp(address)),
            Ok(_) => Err(format!(
                "`{text}` is no loopback address; on another machine, run tidegate there or use a \
                 tunnel to 127.0.0.1"
            )),
            Err(_) => Err(format!(
                "`{text}` is no admin address; write unix:/run/tidegate.sock or 127.0.0.1:9901"
            )),
        }
    }

    /// Whether there is something else at the path.
    pub(super) fn is_no_socket(&self) -> bool {
        let Self::Unix(path) = self else { return false };
        fs::metadata(path).is_ok_and(|found| !found.file_type().is_socket())
    }

    /// For a socket.
    pub(super) fn socket_address(&self) -> io::Result<(Domain, SockAddr)> {
        match self {
            Self::Unix(path) => Ok((Domain::UNIX, SockAddr::unix(path)?)),
            Self::Tcp(address) => Ok((Domain::for_address(*address), (*address).into())),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

/// A token and the place where it was found.
pub(super) struct Token {
    pub(super) text: String,
    pub(super) source: String,
}

/// Finds the address: `flag`, else the environment, else the config.
pub(super) fn find(flag: Option<&str>, config: &Path) -> Result<Address, Failure> {
    let read = |text: &str, source| {
        Address::parse(text).map_err(|error| Failure::Usage(format!("{source}: {error}")))
    };
    match (flag, variable(ADMIN_VARIABLE)?) {
        (Some(flag), _) => read(flag, "--admin"),
        (None, Some(text)) => read(&text, ADMIN_VARIABLE),
        (None, None) => Ok(from_config(config)?.0),
    }
}

/// Finds the token for `address`: the file, else the environment, else the config. A unix socket
/// needs none.
pub(super) fn find_token(
    address: &Address,
    file: Option<&Path>,
    config: &Path,
) -> Result<Option<Token>, Failure> {
    if matches!(address, Address::Unix(_)) {
        return Ok(None);
    }
    let (text, source) = if let Some(file) = file {
        let text = fs::read_to_string(file)
            .map_err(|error| Failure::Usage(format!("--token-file {}: {error}", file.display())))?;
        (text, file.display().to_string())
    } else if let Some(text) = variable(TOKEN_VARIABLE)? {
        (text, TOKEN_VARIABLE.to_owned())
    } else if let Ok((_, Some(text))) = from_config(config) {
        (text, format!("admin.token in {}", config.display()))
    } else {
        return Ok(None);
    };
    let text = text.trim().to_owned();
    // It becomes part of a request's head.
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        let error = format!("{source}: a token is one word of visible ASCII characters");
        return Err(Failure::Usage(error));
    }
    Ok(Some(Token { text, source }))
}

/// What the config says: the address and the token.
fn from_config(path: &Path) -> Result<(Address, Option<String>), Failure> {
    let usage = |error: &str| {
        let error = error.strip_prefix("error: ").unwrap_or(error);
        Failure::Usage(format!(
            "{error}\nthe server is found by this file: name another one with --config, or the \
             server itself with --admin unix:PATH or --admin 127.0.0.1:PORT"
        ))
    };
    let admin = Config::load_admin(path).map_err(|error| usage(&error.to_string()))?;
    if !admin.enabled {
        return Err(usage(&format!("{}: `admin.enabled` is false", path.display())));
    }
    let address = match admin.listen {
        AdminListen::Unix(path) => Address::Unix(path),
        AdminListen::Tcp(address) if address.port() == 0 => {
            return Err(usage(&format!("{}: `admin.listen` has port 0", path.display())));
        }
        AdminListen::Tcp(address) => Address::Tcp(address),
    };
    Ok((address, admin.token))
}

/// A variable of the environment; an empty one counts as none.
fn variable(name: &str) -> Result<Option<String>, Failure> {
    let Some(value) = env::var_os(name).filter(|value| !value.is_empty()) else { return Ok(None) };
    value.into_string().map(Some).map_err(|_| Failure::Usage(format!("{name} is not UTF-8")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown_alike() {
        for text in ["unix:/run/tidegate.sock", "unix:a", "127.0.0.1:9901", "[::1]:9901"] {
            assert_eq!(Address::parse(text).expect(text).to_string(), text);
        }
    }

    #[test]
    fn other_forms_are_refused_with_the_right_one() {
        for text in
            ["", "unix:", "/run/tidegate.sock", "127.0.0.1", "localhost:1", "http://[::1]:1"]
        {
            let error = Address::parse(text).unwrap_err();
            assert!(error.contains("write unix:/run/tidegate.sock or 127.0.0.1:9901"), "{error}");
        }
        let error = Address::parse("10.0.0.1:9901").unwrap_err();
        assert!(error.contains("no loopback address"), "{error}");
    }
}
