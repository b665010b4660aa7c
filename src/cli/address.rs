//! The address of an admin listener, as in flags and the environment.

use std::{fmt, fs, io, net::SocketAddr, os::unix::fs::FileTypeExt, path::PathBuf};

use socket2::{Domain, SockAddr};

/// The address of an admin listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// The path of a unix socket.
    Unix(PathBuf),
    /// A loopback address.
    Tcp(SocketAddr),
}

impl Address {
    /// Reads `unix:PATH` or `ADDRESS:PORT`. The error shows the right form.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().to_canonical().is_loopback() => Ok(Self::Tcp(address)),
            Ok(_) => Err(format!(
                "`{text}` is not a loopback address; run tidegate on that machine, or use a tunnel \
                 to 127.0.0.1"
            )),
            Err(_) => Err(format!(
                "`{text}` is not an admin address; write unix:/run/tidegate.sock or 127.0.0.1:9901"
            )),
        }
    }

    /// Whether the path exists but isn't a socket.
    pub(super) fn is_no_socket(&self) -> bool {
        let Self::Unix(path) = self else { return false };
        fs::metadata(path).is_ok_and(|found| !found.file_type().is_socket())
    }

    /// The address in the form that a socket needs.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_as_they_were_written() {
        for text in ["unix:/run/tidegate.sock", "unix:a", "127.0.0.1:9901", "[::1]:9901"] {
            assert_eq!(Address::parse(text).expect(text).to_string(), text);
        }
    }

    #[test]
    fn an_invalid_address_gets_an_error_with_the_right_form() {
        for text in
            ["", "unix:", "/run/tidegate.sock", "127.0.0.1", "localhost:1", "http://[::1]:1"]
        {
            let error = Address::parse(text).unwrap_err();
            assert!(error.contains("write unix:/run/tidegate.sock or 127.0.0.1:9901"), "{error}");
        }
        let error = Address::parse("10.0.0.1:9901").unwrap_err();
        assert!(error.contains("not a loopback address"), "{error}");
    }
}
