//! Finds the server's admin address and token: from a flag, the environment, the config, or the
//! default places of servers.
//!
//! The config isn't read when the flags or the environment name the address. A broken config
//! therefore never prevents commands to a running server.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use super::{Place, address::Address, failure::Failure, run_dir};
use crate::config::{AdminListen, Config};

const ADMIN_VARIABLE: &str = "TIDEGATE_ADMIN";
const TOKEN_VARIABLE: &str = "TIDEGATE_TOKEN";

/// A token and its source.
#[derive(Clone)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) source: String,
}

/// The server's admin address, and the config that names it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) address: Address,
    pub(super) config: Option<PathBuf>,
}

/// The default places to look for a server.
struct Search<'a> {
    config: &'a Path,
    /// The folder with the admin sockets of servers without a config.
    run_dir: &'a Path,
    /// The config that the package installs.
    system_config: &'a Path,
    system_socket: &'a Path,
}

/// Finds the address: `--admin`, else the environment, else the config, else a server that was
/// started without a config or by the package.
pub(super) fn find(place: &Place) -> Result<Found, Failure> {
    if let Some(address) = named(place.admin.as_deref())? {
        return Ok(Found { address, config: None });
    }
    if let Some(config) = place.named_config() {
        return from_config(config).map(|(found, _)| found);
    }
    let search = Search {
        config: place.config(),
        run_dir: &run_dir::path(),
        system_config: Path::new("/etc/tidegate/config.toml"),
        system_socket: Path::new("/run/tidegate/tidegate.sock"),
    };
    search.find()
}

/// The address in `flag` or in the environment.
pub(super) fn named(flag: Option<&str>) -> Result<Option<Address>, Failure> {
    let read = |text: &str, source| {
        let address = Address::parse(text).map(Some);
        address.map_err(|error| Failure::Usage(format!("{source}: {error}")))
    };
    match (flag, variable(ADMIN_VARIABLE)?) {
        (Some(flag), _) => read(flag, "--admin"),
        (None, Some(text)) => read(&text, ADMIN_VARIABLE),
        (None, None) => Ok(None),
    }
}

impl Search<'_> {
    fn find(&self) -> Result<Found, Failure> {
        if is_there(self.config) {
            return from_config(self.config).map(|(found, _)| found);
        }
        let without_config = |path: &PathBuf| Address::Unix(path.clone());
        let live: Vec<Address> =
            run_dir::live_sockets(self.run_dir).iter().map(without_config).collect();
        if let [address] = &live[..] {
            return Ok(Found { address: address.clone(), config: None });
        }
        if !live.is_empty() {
            let names: Vec<String> = live.iter().map(ToString::to_string).collect();
            return Err(Failure::Usage(format!(
                "{} servers without a config are running: choose one with --admin\n{}",
                names.len(),
                names.join("\n")
            )));
        }
        // The config or its folder may be unreadable while the socket is accessible.
        let system = is_there(self.system_config).then(|| from_config(self.system_config));
        match system {
            Some(Ok((found, _))) => Ok(found),
            None | Some(Err(_)) if is_there(self.system_socket) => {
                Ok(Found { address: Address::Unix(self.system_socket.to_owned()), config: None })
            }
            Some(Err(failure)) => Err(failure),
            None => Err(Failure::Usage(format!(
                "there is no {} here, no {}, and no server without a config is running; name the \
                 server's config with --config FILE, or the server with --admin unix:PATH or \
                 --admin 127.0.0.1:PORT",
                self.config.display(),
                self.system_config.display()
            ))),
        }
    }
}

/// Whether the path exists. True if we lack the permission to look.
fn is_there(path: &Path) -> bool {
    path.try_exists().unwrap_or(false)
}

/// Finds the token for `address`: from the file, else the environment, else the config. A unix
/// socket needs none.
pub(super) fn find_token(
    address: &Address,
    file: Option<&Path>,
    config: Option<&Path>,
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
    } else if let Some(config) = config
        && let Ok((_, Some(text))) = from_config(config)
    {
        (text, format!("admin.token in {}", config.display()))
    } else {
        return Ok(None);
    };
    let text = text.trim().to_owned();
    // The token goes into a request head.
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        let error = format!("{source}: a token must be visible ASCII characters without spaces");
        return Err(Failure::Usage(error));
    }
    Ok(Some(Token { text, source }))
}

/// The address and the token in the config.
fn from_config(path: &Path) -> Result<(Found, Option<String>), Failure> {
    let usage = |error: &str| {
        let error = error.strip_prefix("error: ").unwrap_or(error);
        Failure::Usage(format!(
            "{error}\nthis file tells where the server is: name another one with --config, or the \
             server with --admin unix:PATH or --admin 127.0.0.1:PORT"
        ))
    };
    let admin = Config::load_admin(path).map_err(|error| usage(&error.to_string()))?;
    if !admin.enabled {
        return Err(usage(&format!("{}: `admin.enabled` is false", path.display())));
    }
    let token = admin.read_token();
    let address = match admin.listen {
        AdminListen::Unix(path) => Address::Unix(path),
        AdminListen::Tcp(address) if address.port() == 0 => {
            return Err(usage(&format!("{}: `admin.listen` has port 0", path.display())));
        }
        AdminListen::Tcp(address) => Address::Tcp(address),
    };
    // The token file may be unreadable while --token-file or the environment provides the token.
    Ok((Found { address, config: Some(path.to_owned()) }, token.ok().flatten()))
}

/// An environment variable; empty counts as unset.
fn variable(name: &str) -> Result<Option<String>, Failure> {
    let Some(value) = env::var_os(name).filter(|value| !value.is_empty()) else { return Ok(None) };
    value.into_string().map(Some).map_err(|_| Failure::Usage(format!("{name} is not UTF-8")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_server_is_found_in_the_default_places() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = |name: &str| dir.path().join(name);
        let (config, run_dir) = (path("config.toml"), path("run"));
        let (system_config, system_socket) = (path("system.toml"), path("system.sock"));
        let search = Search {
            config: &config,
            run_dir: &run_dir,
            system_config: &system_config,
            system_socket: &system_socket,
        };
        let found = |name: &str, config: Option<&Path>| Found {
            address: Address::Unix(path(name)),
            config: config.map(Path::to_owned),
        };
        let error = search.find().expect_err("nothing is there").to_string();
        assert!(error.contains("config.toml here") && error.contains("--admin"), "{error}");
        let _system = UnixListener::bind(&system_socket).expect("a socket");
        assert_eq!(search.find().expect("it"), found("system.sock", None));
        // An unreadable or invalid config doesn't hide other servers.
        fs::write(&system_config, "[admin]\nlisten = 7\n").expect("a file");
        assert_eq!(search.find().expect("it"), found("system.sock", None));
        fs::write(&system_config, "[admin]\nlisten = \"unix:x.sock\"\n").expect("a file");
        assert_eq!(search.find().expect("it"), found("x.sock", Some(&system_config)));
        fs::create_dir(&run_dir).expect("a folder");
        let _first = UnixListener::bind(path("run/1.sock")).expect("a socket");
        assert_eq!(search.find().expect("it"), found("run/1.sock", None));
        let _second = UnixListener::bind(path("run/2.sock")).expect("a socket");
        let error = search.find().expect_err("there are two").to_string();
        assert!(error.contains("run/1.sock\n") && error.ends_with("run/2.sock"), "{error}");
        fs::write(&config, "").expect("a file");
        assert_eq!(search.find().expect("it"), found("tidegate.sock", Some(&config)));
    }
}
