//! `tidegate init`: writes a first config. Needs no server.

use std::{
    fs::OpenOptions,
    io::{ErrorKind, Write as _},
    path::Path,
};

use clap::Args;

use super::{
    DONE, Place,
    failure::Failure,
    quick::{HOST, QuickApp, QuickListen, quoted},
    show,
};
use crate::config::Config;

/// The app, unless options name one.
const DEFAULT_APP: &str = r#"respond = { body = "Hello from Tidegate\n" }"#;

#[derive(Debug, Args)]
pub(super) struct Init {
    #[command(flatten)]
    app: QuickApp,

    #[command(flatten)]
    listen: QuickListen,
}

impl Init {
    pub(super) fn run(&self, place: &Place) -> Result<u8, Failure> {
        let file = place.config();
        let name = file.display();
        let folder = file.parent().unwrap_or(Path::new(""));
        let app = if self.app.is_given() { self.app.line(folder)? } else { DEFAULT_APP.to_owned() };
        let listen: Vec<String> =
            self.listen.addresses().iter().map(|address| quoted(&address.to_string())).collect();
        let text = text(&listen.join(", "), &app);
        if let Err(error) = Config::parse(&text, file, folder) {
            return Err(Failure::Usage(error.to_string()));
        }
        // Never overwrites a file.
        let written = OpenOptions::new().write(true).create_new(true).open(file);
        let written = written.and_then(|mut file| file.write_all(text.as_bytes()));
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                return Err(Failure::Unended(format!(
                    "{name} already exists and was not changed; choose another file with --config \
                     FILE"
                )));
            }
            Err(error) => return Err(Failure::Unended(format!("cannot write {name}: {error}"))),
        }
        let option = match place.named_config() {
            Some(file) => format!(" --config {}", file.display()),
            None => String::new(),
        };
        show::print(&show::clean_lines(&format!(
            "wrote {name}; next:\n  tidegate check{option}\n  tidegate serve{option}"
        )))?;
        show::print("\n")?;
        Ok(DONE)
    }
}

fn text(listen: &str, app: &str) -> String {
    format!(
        r#"# The config of Tidegate. `tidegate check` says what is wrong with it, `tidegate reload`
# has a running server read it again, without a lost request. Paths are relative to this file.

[server]
listen = [{listen}]
# The app that answers hosts which no app names. Without it they get 404.
default_app = "{HOST}"
# How long a stop, or an app's removal, may take before it cuts what is still in flight.
# drain_timeout = "30s"

[log]
# Lines for requests: "off", "combined" or "json".
access = "off"
# access_path = "access.log"

# The commands of `tidegate` find the server by this socket.
[admin]
listen = "unix:tidegate.sock"
# /healthz and /readyz for load balancers on other machines:
# health_listen = "0.0.0.0:8081"

# An app for each hostname. Exactly one of respond, redirect, files and proxy says what it does.
[apps."{HOST}"]
{app}

# [apps."www.example.com"]
# aliases = ["example.com", "*.example.com"]
# files = {{ root = "/srv/www", not_found = "404.html" }}

# [apps."app.example.com"]
# proxy = {{ upstreams = ["http://127.0.0.1:9000", "unix:/run/app.sock"] }}

# [apps."old.example.com"]
# redirect = {{ to = "https://www.example.com", status = 308 }}
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commented_settings_are_valid_too() {
        let text = text("\"127.0.0.1:8080\"", DEFAULT_APP);
        let is_example = |line: &str| line.starts_with('[') || line.split(' ').nth(1) == Some("=");
        let lines = text.lines().map(|line| match line.strip_prefix("# ") {
            Some(example) if is_example(example) => example,
            _ => line,
        });
        let lines: Vec<&str> = lines.collect();
        let here = Path::new("/");
        let config = Config::parse(&lines.join("\n"), Path::new("config.toml"), here);
        let config = config.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.apps.len(), 4);
        assert_eq!(config.log.access_path.as_deref(), Some(Path::new("/access.log")));
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    }
}
