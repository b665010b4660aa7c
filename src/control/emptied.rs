//! Whether a config takes away everything that is served: every app, or every address.
//!
//! A file that was emptied, or cut off in the middle of a write, is often a valid config. So a
//! reload or an upgrade that leaves nothing is refused, unless the operator allows it.
//! Pure: compares names and addresses.

use std::{collections::HashSet, fmt, net::SocketAddr};

use crate::config::Config;

/// The most names that a message lists.
const SHOWN_MAX: usize = 5;

/// What a config would take away: all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emptied {
    /// The hosts of all apps, if none of them is in the config.
    apps: Vec<String>,
    /// All addresses, if the config has none of them.
    addresses: Vec<SocketAddr>,
}

impl Emptied {
    /// Compares what is served with the config.
    ///
    /// # Errors
    /// When the config has none of these apps, or none of these addresses. Where there was none,
    /// none is missed.
    pub(crate) fn check<'a>(
        apps: impl Iterator<Item = &'a str>,
        addresses: impl Iterator<Item = SocketAddr>,
        config: &Config,
    ) -> Result<(), Self> {
        let names = config.apps.iter().flat_map(|app| app.aliases.iter().chain([&app.host]));
        let names: HashSet<&str> = names.map(String::as_str).collect();
        let is_named = |host: &str| names.contains(host);
        let is_listened_on = |address: &SocketAddr| {
            config.server.listen.iter().any(|entry| overlap(*address, entry.address))
        };
        let mut none_left = Self {
            apps: all_without(apps.map(str::to_owned), |host| is_named(host)),
            addresses: all_without(addresses, is_listened_on),
        };
        none_left.apps.sort_unstable();
        let is_empty = none_left.apps.is_empty() && none_left.addresses.is_empty();
        if is_empty { Ok(()) } else { Err(none_left) }
    }
}

/// All items, unless one of them stays.
fn all_without<T>(items: impl Iterator<Item = T>, stays: impl Fn(&T) -> bool) -> Vec<T> {
    let items: Vec<T> = items.collect();
    if items.iter().any(stays) { Vec::new() } else { items }
}

/// Whether clients of one address find the other. An address that is narrowed or widened stays,
/// and so does one whose port the kernel chose.
fn overlap(served: SocketAddr, configured: SocketAddr) -> bool {
    let (a, b) = (served.ip().to_canonical(), configured.ip().to_canonical());
    let is_part = a == b || a.is_unspecified() || b.is_unspecified();
    is_part
        && a.is_ipv4() == b.is_ipv4()
        && (served.port() == configured.port() || configured.port() == 0)
}

impl fmt::Display for Emptied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { apps, addresses } = self;
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        let lost = [("app", apps, "removed"), ("address", &addresses, "closed")];
        let mut before = "";
        for (noun, names, what) in lost.into_iter().filter(|(_, names, _)| !names.is_empty()) {
            let shown: Vec<_> = names.iter().take(SHOWN_MAX).map(String::as_str).collect();
            write!(f, "{before}every {noun} would be {what}: {}", shown.join(", "))?;
            match names.len() - shown.len() {
                0 => {}
                more => write!(f, " and {more} more")?,
            }
            before = "; ";
        }
        Ok(())
    }
}

impl std::error::Error for Emptied {}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn check(apps: &[&str], addresses: &[&str], config: &str) -> Result<(), String> {
        let config = Config::parse(config, Path::new("config.toml"), Path::new("/"));
        let config = config.unwrap_or_else(|error| panic!("{error}"));
        let addresses = addresses.iter().map(|address| address.parse().expect(address));
        Emptied::check(apps.iter().copied(), addresses, &config).map_err(|lost| lost.to_string())
    }

    #[test]
    fn a_config_that_takes_every_app_is_found_and_one_that_leaves_one_is_not() {
        let listen = ["127.0.0.1:8080"];
        let app = |host: &str| format!("[apps.\"{host}\"]\nrespond = {{}}\n");
        for (apps, config, lost) in [
            (&["a"][..], app("a"), ""),
            (&["a", "b"], app("b"), ""),
            (&[], String::new(), ""),
            (&["a"], app("b") + "aliases = ['a']\n", ""),
            (&["a"], String::new(), "every app would be removed: a"),
            (&["a", "b"], app("c"), "every app would be removed: a, b"),
            (
                &["a", "b", "c", "d", "e", "f", "g"],
                app("h"),
                "every app would be removed: a, b, c, d, e and 2 more",
            ),
        ] {
            let expected = if lost.is_empty() { Ok(()) } else { Err(lost.to_owned()) };
            assert_eq!(check(apps, &listen, &config), expected, "{apps:?} {config}");
        }
    }

    #[test]
    fn a_config_that_takes_every_address_is_found_and_one_that_widens_it_is_not() {
        let listen = |entries: &[&str]| format!("server.listen = {entries:?}\n");
        for (served, config, lost) in [
            (&["127.0.0.1:80"][..], listen(&["127.0.0.1:80"]), ""),
            (&["127.0.0.1:80"], listen(&["0.0.0.0:80"]), ""),
            (&["0.0.0.0:80"], listen(&["10.0.0.1:80"]), ""),
            (&["127.0.0.1:40001"], listen(&["127.0.0.1:0"]), ""),
            (&["1.1.1.1:80", "1.1.1.1:81"], listen(&["1.1.1.1:81"]), ""),
            // No IPv4 client finds it.
            (&["0.0.0.0:80"], listen(&["[::]:80"]), "every address would be closed: 0.0.0.0:80"),
            (&["0.0.0.0:80"], String::new(), "every address would be closed: 0.0.0.0:80"),
            (&["1.1.1.1:80"], listen(&["1.1.1.2:80"]), "every address would be closed: 1.1.1.1:80"),
            (&["1.1.1.1:80"], listen(&["1.1.1.1:81"]), "every address would be closed: 1.1.1.1:80"),
        ] {
            let expected = if lost.is_empty() { Ok(()) } else { Err(lost.to_owned()) };
            assert_eq!(check(&[], served, &config), expected, "{served:?} {config}");
        }
        let both = check(&["a"], &["1.1.1.1:80"], "").unwrap_err();
        let expected = "every app would be removed: a; every address would be closed: 1.1.1.1:80";
        assert_eq!(both, expected);
    }
}
