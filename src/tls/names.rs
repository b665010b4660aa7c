//! The names in a certificate, and which hosts they cover (RFC 9525).

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// A name in a certificate's subjectAltName.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Name {
    /// A host name, or `*.` and a host name; lower case.
    Dns(Box<str>),
    /// An address.
    Ip(IpAddr),
}

impl Name {
    /// A dNSName; lower case and without a trailing dot.
    pub(super) fn dns(name: &str) -> Self {
        Self::Dns(name.trim_end_matches('.').to_ascii_lowercase().into())
    }

    /// An iPAddress: 4 or 16 bytes.
    pub(super) fn ip(bytes: &[u8]) -> Option<Self> {
        if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
            return Some(Self::Ip(Ipv4Addr::from(bytes).into()));
        }
        <[u8; 16]>::try_from(bytes).ok().map(|bytes| Self::Ip(Ipv6Addr::from(bytes).into()))
    }

    /// Whether it covers a host: a lower-case name, an address, an IPv6 address in brackets, or a
    /// pattern `*.NAME`. A wildcard stands for exactly one label.
    pub(crate) fn covers(&self, host: &str) -> bool {
        match self {
            Self::Ip(address) => {
                let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
                bare.unwrap_or(host).parse() == Ok(*address)
            }
            Self::Dns(name) if **name == *host => true,
            Self::Dns(name) => match (name.strip_prefix("*."), host.split_once('.')) {
                (Some(parent), Some((label, rest))) => {
                    !label.is_empty() && label != "*" && parent == rest
                }
                _ => false,
            },
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_covers_one_label_and_an_address_covers_itself() {
        let covers = |name: &str, host: &str| Name::dns(name).covers(host);
        assert!(covers("a.example", "a.example") && covers("A.Example.", "a.example"));
        assert!(covers("*.example", "a.example") && covers("*.example", "*.example"));
        for host in ["example", ".example", "a.b.example", "xexample", "a.example.com", ""] {
            assert!(!covers("*.example", host), "{host}");
        }
        assert!(!covers("a.*.example", "a.b.example") && !covers("127.0.0.1", "127.0.0.2"));
        let ip = |bytes: &[u8], host: &str| Name::ip(bytes).unwrap().covers(host);
        assert!(ip(&[127, 0, 0, 1], "127.0.0.1") && !ip(&[127, 0, 0, 1], "127.0.0.11"));
        let mut loopback = [0; 16];
        loopback[15] = 1;
        assert!(ip(&loopback, "[::1]") && ip(&loopback, "::1") && !ip(&loopback, "[::2]"));
        assert_eq!(Name::ip(&[1, 2, 3]), None);
    }
}
