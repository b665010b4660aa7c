//! The first minute with Tidegate: a server without a config, a first config, and the messages for
//! a user who has neither.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use tempfile::TempDir;

use crate::cli_support::{Ran, Terminal, run, tidegate};

/// A folder for commands, and a folder for the sockets of servers without a config.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join("work")).expect("a folder");
        Self { dir }
    }

    /// The folder in which commands run.
    fn work(&self) -> std::path::PathBuf {
        self.dir.path().join("work")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = tidegate(&self.work(), arguments);
        command.env("XDG_RUNTIME_DIR", self.dir.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        run(self.command(arguments))
    }

    /// Starts a server and reads its address from its output.
    fn serve(&self, arguments: &[&str]) -> (Served, SocketAddr) {
        let arguments = [&["serve", "--listen", "0"], arguments].concat();
        let mut child = self.command(&arguments).stdout(Stdio::null()).spawn().expect("it starts");
        let mut lines = BufReader::new(child.stderr.take().expect("a pipe"));
        let served = Served(child);
        let mut said = Vec::new();
        let url = (&mut lines).lines().map_while(Result::ok).find_map(|line| {
            let url = line.strip_prefix("serving http://").map(str::to_owned);
            said.push(line);
            url
        });
        let address = url.as_deref().and_then(|url| url.split('/').next()?.parse().ok());
        let address = address.unwrap_or_else(|| panic!("{said:?}"));
        // The log must not fill the pipe.
        thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        (served, address)
    }
}

/// A server that is ended when this is dropped.
struct Served(Child);

impl Drop for Served {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The answer to a request on a connection of its own.
fn ask(address: SocketAddr, host: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn without_a_config_the_error_shows_the_options() {
    let place = Place::new();
    for arguments in [&[][..], &["serve"]] {
        let ran = place.run(arguments);
        let hints = ["no config.toml here", "tidegate init", "--config FILE", "serve --files ."];
        ran.expect_failure(2, &hints);
    }
    // A missing config that was named has its own error.
    let ran = place.run(&["--config", "none.toml"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("none.toml: No such file"), "{ran:?}");
}

#[test]
fn one_app_is_served_without_a_config_for_every_host() {
    let place = Place::new();
    fs::write(place.work().join("page.txt"), "a page").expect("a file");
    for (arguments, path, expected) in [
        (&["--respond", "hi"][..], "/", "\r\n\r\nhi"),
        (&["--files", "."], "/page.txt", "\r\n\r\na page"),
    ] {
        let (mut server, address) = place.serve(arguments);
        for host in ["localhost", "shop.example", "127.0.0.1:1"] {
            let answer = ask(address, host, path);
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(expected), "{answer}");
        }
        // The commands find it without options.
        let ran = place.run(&["status"]);
        assert!(ran.code == Some(0) && ran.out.contains(&address.to_string()), "{ran:?}");
        let ran = place.run(&["upgrade", "--wait"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert!(ask(address, "x", path).ends_with(expected), "after an upgrade");
        place.run(&["reload"]).expect_failure(1, &["not started from a config file"]);
        let ran = place.run(&["stop"]);
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert_eq!(server.0.wait().expect("its end").code(), Some(0));
        place.run(&["status"]).expect_failure(2, &["no server without a config"]);
    }
    // A proxy to another server without a config.
    let (_upstream, behind) = place.serve(&["--respond", "behind", "--admin", "unix:behind.sock"]);
    let (_proxy, address) = place.serve(&["--proxy", &format!("http://{behind}")]);
    assert!(ask(address, "x.test", "/").ends_with("behind"));
}

#[test]
fn servers_without_a_config_differ_by_their_sockets() {
    let place = Place::new();
    let (_one, _) = place.serve(&["--respond", "1", "--listen", "127.0.0.1:0"]);
    let own = place.dir.path().join("tidegate");
    fs::rename(own.join("127.0.0.1:0.sock"), own.join("other.sock")).expect("its socket");
    let (_two, address) = place.serve(&["--respond", "2"]);
    let ran = place.run(&["status"]);
    ran.expect_failure(2, &["2 servers", "--admin", "127.0.0.1:0.sock", "other.sock"]);
    let socket = format!("unix:{}", own.join("127.0.0.1:0.sock").display());
    let ran = place.run(&["status", "--admin", &socket]);
    assert!(ran.out.contains(&address.to_string()), "{ran:?}");
}

#[test]
fn what_cannot_be_served_without_a_config_is_a_usage_error() {
    let place = Place::new();
    for (arguments, says) in [
        (&["--files", "nowhere"][..], "--files nowhere: no such folder"),
        (&["--proxy", "ftp://x"], "http://"),
        (&["--respond", "a", "--files", "."], "cannot be used with"),
        (&["--listen", ":8000"], "--files"),
        (&["--respond", "a", "--listen", "shop"], "write 127.0.0.1:8080"),
        (&["--respond", "a", "--config", "c.toml"], "--config c.toml cannot be used with"),
        (&["--respond", "a", "--admin", "127.0.0.1:1"], "--token-file"),
    ] {
        let Ran { code, out, err } = place.run(&[&["serve"], arguments].concat());
        assert_eq!((code, out.as_str()), (Some(2), ""), "{arguments:?}: {err}");
        assert!(err.contains(says), "{arguments:?}: {err}");
    }
}

#[test]
fn a_terminal_shows_the_urls_and_what_an_interrupt_does() {
    let place = Place::new();
    let apps: String =
        (10..22).map(|n| format!("[apps.\"a{n}.test\"]\nrespond = {{}}\n")).collect();
    let config = format!("[server]\nlisten = [\"127.0.0.1:0\"]\n{apps}");
    fs::write(place.work().join("config.toml"), config).expect("a file");
    let written = greeting(&place);
    for part in [
        "serving http://a10.test:",
        "serving http://a19.test:",
        "… and 2 apps: `tidegate apps` lists them",
        "^C drains and stops; ^C twice stops at once",
    ] {
        assert!(written.contains(part), "{part:?} isn't in {written}");
    }
    assert!(!written.contains("a20.test:"), "{written}");
}

/// What a server writes to a terminal until it is stopped.
fn greeting(place: &Place) -> String {
    let terminal = Terminal::open();
    let mut child = place.command(&[]).stderr(terminal.writer()).spawn().expect("it starts");
    // When everything is printed, it listens for commands.
    let stopped = || place.run(&["stop"]).code == Some(0);
    let ended = (0..400).any(|_| stopped() || child.try_wait().expect("wait").is_some());
    assert!(ended, "no stop");
    assert_eq!(child.wait().expect("its end").code(), Some(0));
    terminal.written()
}

#[test]
fn an_app_with_tls_is_shown_by_its_https_url() {
    let place = Place::new();
    let listen = "{ address = \"127.0.0.1:0\", tls = true }";
    let apps = "[apps.\"plain.test\"]\nrespond = {}\n[apps.\"localhost\"]\nrespond = {}\n\
                tls.self_signed = true\n";
    let config = |listen: &str| format!("[server]\nlisten = [{listen}]\n{apps}");
    let file = place.work().join("config.toml");
    fs::write(&file, config(listen)).expect("a file");
    let written = greeting(&place);
    assert!(written.contains("serving https://localhost:"), "{written}");
    assert!(!written.contains("http://"), "nothing is served without TLS: {written}");
    fs::write(&file, config(&format!("{listen}, \"127.0.0.2:0\""))).expect("a file");
    let written = greeting(&place);
    assert!(written.contains("serving https://localhost:"), "{written}");
    assert!(written.contains("serving http://plain.test:"), "{written}");
}

#[test]
fn a_first_config_is_right_and_never_takes_the_place_of_another() {
    let place = Place::new();
    let config = place.work().join("config.toml");
    place
        .run(&["init"])
        .expect_output(0, "wrote config.toml; next:\n  tidegate check\n  tidegate serve\n");
    place.run(&["check"]).expect_output(0, "config.toml: ok, 1 app, 1 address\n");
    fs::write(&config, "precious").expect("a file");
    place.run(&["init"]).expect_failure(1, &["config.toml already exists"]);
    assert_eq!(fs::read_to_string(&config).expect("the file"), "precious");

    // Options choose what it serves; paths are relative to the config's folder.
    fs::create_dir(place.work().join("site")).expect("a folder");
    fs::create_dir(place.work().join("etc")).expect("a folder");
    let text = |arguments: &[&str], file: &str| {
        let ran = place.run(&[&["init", "--config", file], arguments].concat());
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
        assert_eq!(place.run(&["check", "--config", file]).code, Some(0));
        fs::read_to_string(place.work().join(file)).expect("the file")
    };
    let files = text(&["--files", "site", "--listen", "8123"], "a.toml");
    assert!(files.contains("\nfiles = { root = \"site\" }\n"), "{files}");
    assert!(files.contains("listen = [\"127.0.0.1:8123\"]"), "{files}");
    let here = place.work().canonicalize().expect("a folder").display().to_string();
    let files = text(&["--files", "site"], "etc/b.toml");
    assert!(files.contains(&format!("root = \"{here}/site\"")), "{files}");
    let proxy = text(&["--proxy", "http://127.0.0.1:1", "--proxy", "unix:p.sock"], "etc/c.toml");
    let upstreams = format!("[\"http://127.0.0.1:1\", \"unix:{here}/p.sock\"]");
    assert!(proxy.contains(&format!("upstreams = {upstreams}")), "{proxy}");
    place.run(&["init", "--proxy", "nothing"]).expect_failure(2, &["http://"]);
    place.run(&["init", "--config", "none/a.toml"]).expect_failure(1, &["cannot write none/a"]);
    assert!(!Path::new(&place.work().join("none")).exists());
}

#[test]
fn an_address_in_use_is_reported_with_its_process() {
    let place = Place::new();
    let (server, address) = place.serve(&["--respond", "1"]);
    let arguments = ["serve", "--respond", "2", "--listen", &address.to_string()];
    let ran = place.run(&[&arguments[..], &["--admin", "unix:other.sock"]].concat());
    let holder = format!("it is in use by tidegate, pid {}", server.0.id());
    assert!(ran.code == Some(1) && ran.err.contains(&holder), "{ran:?}");

    let config = format!("[server]\nlisten = [\"{address}\"]\n[apps.\"a.test\"]\nrespond = {{}}\n");
    fs::write(place.work().join("config.toml"), &config).expect("a file");
    drop(server);
    let first = place.command(&["serve"]).stderr(Stdio::null()).spawn().expect("it starts");
    let first = Served(first);
    let answers = || TcpStream::connect(address).is_ok();
    assert!((0..2000).any(|_| answers() || place.run(&["version"]).code.is_none()), "no server");
    let ran = place.run(&["serve", "--config", "config.toml"]);
    let holder = format!("tidegate, pid {}, which serves /", first.0.id());
    assert!(ran.code == Some(1) && ran.err.contains(&holder), "{ran:?}");
    assert!(ran.err.contains("/config.toml"), "{ran:?}");
}

#[test]
fn a_server_is_found_after_its_admin_address_changed_in_the_config() {
    let place = Place::new();
    let write = |socket: &str| {
        let config = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\n[admin]\nlisten = \"unix:{socket}\"\n\
             [apps.\"a.test\"]\nrespond = {{}}\n"
        );
        fs::write(place.work().join("config.toml"), config).expect("a file");
    };
    write("first.sock");
    let server = place.command(&["serve"]).stderr(Stdio::null()).spawn().expect("it starts");
    let mut server = Served(server);
    assert!((0..400).any(|_| place.run(&["status"]).code == Some(0)), "it does not serve");
    write("second.sock");
    let ran = place.run(&["status"]);
    assert!(ran.code == Some(0) && ran.out.contains("serving"), "{ran:?}");
    let pid = format!("pid {}", server.0.id());
    for text in ["second.sock, which config.toml names", &pid, "first.sock, and stays there"] {
        assert!(ran.err.contains(text), "{text:?} isn't in {ran:?}");
    }
    let ran = place.run(&["stop"]);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(server.0.wait().expect("its end").code(), Some(0));
    place.run(&["status"]).expect_failure(1, &["second.sock; is it running?"]);
}
