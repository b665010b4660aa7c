//! The parser against whole texts: defaults, every key, every mistake with its place.

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use super::*;

const FULL: &str = r#"
[server]
listen = ["0.0.0.0:80", { address = "[::]:80", proxy_protocol = true }]
user = "www-data"
group = "www"
threads = 4
default_app = "Example.com"
drain_timeout = "1m30s"
idle_grace = "0s"
shutdown_delay = "500ms"

[limits]
connections = 1_000
connections_per_ip = 10
head_bytes = "8KiB"
headers = 50
body_bytes = "2GiB"
head_timeout = "1s"
body_timeout = "2s"
write_timeout = "3s"
keepalive_timeout = "4s"
linger_timeout = "5s"

[log]
level = "debug"
format = "json"
path = "logs/events.log"
access = "combined"
access_path = "/var/log/access.log"

[admin]
enabled = false
listen = "127.0.0.1:9901"
token = "0123456789abcdef"
health_listen = "0.0.0.0:8081"

[apps."www.Example.com."]
aliases = ["example.com", "*.Example.com"]
drain_timeout = "1m"
rate_limit = { requests = 100, per = "1m" }
respond = { status = 404, body = "no", content_type = "text/html; charset=utf-8", delay = "2s" }

[apps."old.example.com".redirect]
to = "https://example.com:8443/new//"
status = 301

[apps."[2001:DB8::1]"]
files = { root = "site", index = [], not_found = "errors/404.html", precompressed = false,
      try = ["{path}", "{path}.html", "/app/index.html"] }

[apps.static.files]
root = "/srv/static"
index = "listing"
cache_control = "max-age=60"
types = { WASM = "application/wasm", md = "text/markdown" }

[apps.headers.respond]
headers = { X-B = "2", X-A = "1" }
"#;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("config.toml"), Path::new("/etc/tidegate"))
}

/// `line:column message (help)` for every problem.
fn problems(text: &str) -> Vec<String> {
    let error = parse(text).expect_err(text);
    let show = |problem: &Problem| {
        let help = problem.help.as_ref().map_or(String::new(), |help| format!(" ({help})"));
        format!("{}:{} {}{help}", problem.line, problem.column, problem.message)
    };
    error.problems().iter().map(show).collect()
}

fn places(text: &str) -> Vec<String> {
    let place = |line: &String| line.split_once(' ').expect("a place").0.to_owned();
    problems(text).iter().map(place).collect()
}

/// Checks that each line after `header` is exactly one problem, at this position, with this
/// text.
fn assert_problems(header: &str, table: &[(&str, &str, &str)]) {
    for (line, place, words) in table {
        let found = problems(&format!("{header}\n{line}"));
        let right = found.len() == 1
            && found[0].split(' ').next() == Some(*place)
            && found[0].contains(words);
        assert!(right, "{line}\nexpected {place} {words}\nfound {found:#?}");
    }
}

#[test]
fn an_empty_file_means_the_defaults() {
    for text in ["", "# nothing\n", "[server]\n[limits]\n[log]\n[apps]\n", "\u{feff}"] {
        let config = parse(text).expect(text);
        assert_eq!(config.server, ServerConfig::default());
        assert_eq!(config.limits, Limits::default());
        assert_eq!(config.log, LogConfig::default());
        let listen = AdminListen::Unix("/etc/tidegate/tidegate.sock".into());
        assert_eq!(
            config.admin,
            AdminConfig {
                enabled: true,
                listen,
                token: None,
                token_file: None,
                mode: 0o600,
                group: None,
                health_listen: None,
            }
        );
        assert!(config.apps.is_empty());
    }
}

#[test]
fn the_admin_section_is_found_despite_mistakes_elsewhere() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("config.toml");
    let load = |text: &str| {
        fs::write(&path, text).expect("config.toml");
        Config::load_admin(&path)
    };
    let other = "[admin]\nlisten = \"unix:other.sock\"\n";
    for broken in ["[servr]\n", "[apps.\"a\"]\nrespond = {\n", "[server]\nlisten = 7 7\n"] {
        let admin = load(&format!("{other}{broken}")).expect(broken);
        assert_eq!(admin.listen, AdminListen::Unix(folder.path().join("other.sock")));
        let admin = load(broken).expect(broken);
        assert_eq!(admin, AdminConfig::in_folder(folder.path()));
    }
    assert!(load("[admin]\nlisten = 7\n").is_err());
}

#[test]
fn every_key_of_the_sections_is_read() {
    let config = parse(FULL).unwrap_or_else(|error| panic!("{error}"));
    let secs = Duration::from_secs;
    let server = ServerConfig {
        listen: vec![
            SocketAddr::from(([0; 4], 80)).into(),
            ListenConfig {
                address: "[::]:80".parse().unwrap(),
                options: ListenOptions { proxy_protocol: true, tls: false },
            },
        ],
        user: Some("www-data".to_owned()),
        group: Some("www".to_owned()),
        threads: 4,
        default_app: Some("www.example.com".to_owned()),
        drain_timeout: secs(90),
        idle_grace: Duration::ZERO,
        shutdown_delay: Duration::from_millis(500),
    };
    assert_eq!(config.server, server);
    let limits = Limits {
        connections: 1000,
        connections_per_ip: Some(10),
        head_bytes: 8192,
        headers: 50,
        body_bytes: 2 << 30,
        head_timeout: secs(1),
        body_timeout: secs(2),
        write_timeout: secs(3),
        keepalive_timeout: secs(4),
        linger_timeout: secs(5),
    };
    assert_eq!(config.limits, limits);
    let log = LogConfig {
        level: log::LevelFilter::Debug,
        format: LogFormat::Json,
        path: Some("/etc/tidegate/logs/events.log".into()),
        access: AccessFormat::Combined,
        access_path: Some("/var/log/access.log".into()),
    };
    assert_eq!(config.log, log);
    let admin = AdminConfig {
        enabled: false,
        listen: AdminListen::Tcp("127.0.0.1:9901".parse().unwrap()),
        token: Some("0123456789abcdef".to_owned()),
        health_listen: Some(([0, 0, 0, 0], 8081).into()),
        ..AdminConfig::in_folder(Path::new("/etc/tidegate"))
    };
    assert_eq!(config.admin, admin);
}

#[test]
fn every_key_of_the_apps_is_read() {
    let config = parse(FULL).unwrap_or_else(|error| panic!("{error}"));
    let hosts: Vec<_> = config.apps.iter().map(|app| app.host.as_str()).collect();
    let in_order = ["www.example.com", "old.example.com", "[2001:db8::1]", "static", "headers"];
    assert_eq!(hosts, in_order);
    assert_eq!(config.apps[0].aliases, ["example.com", "*.example.com"]);
    assert_eq!(config.apps[0].drain_timeout, Some(Duration::from_secs(60)));
    assert_eq!(config.apps[1].drain_timeout, None);
    let limit = filters::RateLimit { requests: 100, per: Duration::from_secs(60), burst: 100 };
    assert_eq!(config.apps[0].filters.rate_limit, Some(limit));
    assert_eq!(config.apps[1].filters.rate_limit, None);

    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let respond = RespondConfig {
        status: 404,
        body: "no".to_owned(),
        content_type: "text/html; charset=utf-8".to_owned(),
        headers: vec![],
        delay: Duration::from_secs(2),
    };
    let redirect = RedirectConfig { to: "https://example.com:8443/new".to_owned(), status: 301 };
    let site = FilesConfig {
        root: "/etc/tidegate/site".into(),
        index: vec![],
        listing: false,
        tries: Tries {
            endings: vec![String::new(), ".html".to_owned()],
            fallback: Some("app/index.html".to_owned()),
        },
        not_found: Some("errors/404.html".to_owned()),
        precompressed: false,
        cache_control: None,
        types: vec![],
    };
    let files = FilesConfig {
        root: "/srv/static".into(),
        index: vec!["index.html".to_owned()],
        listing: true,
        tries: Tries { endings: vec![String::new()], fallback: None },
        not_found: None,
        precompressed: true,
        cache_control: Some("max-age=60".to_owned()),
        types: vec![pair("wasm", "application/wasm"), pair("md", "text/markdown")],
    };
    let defaults = RespondConfig {
        status: 200,
        body: String::new(),
        content_type: "text/plain".to_owned(),
        headers: vec![pair("X-B", "2"), pair("X-A", "1")],
        delay: Duration::ZERO,
    };
    let kinds = [
        AppKind::Respond(respond),
        AppKind::Redirect(redirect),
        AppKind::Files(site),
        AppKind::Files(files),
        AppKind::Respond(defaults),
    ];
    assert!(config.apps.into_iter().map(|app| app.kind).eq(kinds));
}

#[test]
fn mistakes_at_the_top_level_have_a_place_and_a_suggestion() {
    let table = [
        ("[sever]", "2:2", "unknown key `sever` (did you mean `server`?)"),
        ("x = 1", "2:1", "unknown key `x` (known keys: server, limits, log, admin, tls, apps)"),
        ("server = 1", "2:10", "must be a table, not an integer (write [server])"),
        ("[[apps]]", "2:1", "`apps` must be a table, not an array (write [apps])"),
        ("[log]\n[log]", "3:2", "`log` is defined twice"),
    ];
    assert_problems("# a comment", &table);
}

#[test]
fn mistakes_in_server_have_a_place_and_a_suggestion() {
    let table = [
        ("listen = []", "2:10", "`server.listen` must have at least 1 entry"),
        (
            "listen = '[::1]:1'",
            "2:10",
            "an array of strings and tables, not a string (write [\"[::1]:1\"]",
        ),
        ("listen = [':80']", "2:11", "(write \"0.0.0.0:80\" for all IPv4 addresses"),
        ("listen = ['localhost:80']", "2:11", "(write \"127.0.0.1:80\")"),
        ("listen = ['::1']", "2:11", "(write \"[::1]:8080\")"),
        ("listen = ['10.0.0.1']", "2:11", "(write \"10.0.0.1:8080\")"),
        ("listen = ['1.1.1.1:65536']", "2:11", "`server.listen[0]` is not an IP address with"),
        ("listen = ['[::1]:0', 1]", "2:22", "`server.listen[1]` must be a string or a table"),
        ("listen = ['[::1]:0', '[0::1]:0']", "2:22", "`[::1]:0` is repeated"),
        ("listen = ['[::1]:0', {address = '[::1]:0'}]", "2:22", "`[::1]:0` is repeated"),
        ("listen = [{}]", "2:11", "`server.listen[0].address` is missing"),
        ("listen = [{address = ':80'}]", "2:22", "(write \"0.0.0.0:80\" for all IPv4"),
        ("listen = [{address = 80}]", "2:22", "`server.listen[0].address` must be a string"),
        (
            "listen = ['[::1]:0', {address = '[::1]:1', proxy_protocol = 1}]",
            "2:61",
            "`server.listen[1].proxy_protocol` must be true or false, not an integer",
        ),
        (
            "listen = [{address = '[::1]:1', proxy = true}]",
            "2:33",
            "unknown key `server.listen[0].proxy` (known keys: address, proxy_protocol, tls)",
        ),
        ("threads = 'x'", "2:11", "must be an integer from 0 to 1024, not a string"),
        ("threads = -1", "2:11", "`server.threads` must be an integer from 0 to 1024"),
        ("threads = 1025", "2:11", "`server.threads` must be an integer from 0 to 1024"),
        ("threads = 0xffff_ffff_ffff_ffff_f", "2:11", "must be an integer from 0 to"),
        ("threads =", "2:10", "the value is missing"),
        ("threads = 1\nthreads = 1", "3:1", "`threads` is defined twice"),
        ("thread = 1", "2:1", "`server.thread` (did you mean `threads`?)"),
        ("default_app = 'a b'", "2:15", "`server.default_app` is not a host name"),
        ("default_app = 'a'", "2:15", "names no app (there are no apps in this file)"),
        ("drain_timeout = 30", "2:17", "be a duration with its unit (write \"30s\")"),
        ("drain_timeout = 30s", "2:17", "must be quoted (write \"30s\")"),
        ("drain_timeout = '30'", "2:17", "is not a duration (write \"30s\")"),
        ("drain_timeout = '169h'", "2:17", "must be from 0s to 168h"),
        ("idle_grace = 1.5", "2:14", "must be a duration, not a float"),
    ];
    assert_problems("[server]", &table);
}

#[test]
fn habits_from_other_servers_in_the_sections_get_a_suggestion() {
    let all = "for all IPv4 addresses, \"[::]:80\" for all IPv6 addresses, or both; \"127.";
    let table = [
        ("listen = ['::1:80']", "2:11", "(write \"[::1]:80\")"),
        ("listen = ['fe80::1:8080']", "2:11", "(write \"[fe80::1]:8080\")"),
        ("listen = ['[::1]']", "2:11", "(write \"[::1]:8080\")"),
        ("listen = [':80']", "2:11", all),
        ("listen = ['80']", "2:11", all),
        ("listen = ['*:80']", "2:11", all),
        ("listen = [80]", "2:11", all),
        ("listen = 80", "2:10", all),
        ("listen = ['http://0.0.0.0:80/']", "2:11", "(write \"0.0.0.0:80\")"),
        ("listen = ['443 ssl']", "2:11", "(write { address = \"0.0.0.0:443\", tls = t"),
        ("listen = ['unix:/run/a']", "2:11", "(a socket file for clients is not in this"),
        ("tls = { cert = 'a' }", "2:1", "(`tls` belongs in `apps.\"HOST\"`)"),
        ("port = 80", "2:1", "unknown key `server.port` (did you mean `listen`?)"),
        ("workers = 4", "2:1", "(did you mean `threads`?)"),
        ("body_bytes = '1MiB'", "2:1", "(`body_bytes` belongs in [limits])"),
        ("level = 'info'", "2:1", "(`level` belongs in [log])"),
        ("drain_timeout = '10 sec'", "2:17", "(write \"10s\")"),
        ("drain_timeout = '5min'", "2:17", "(write \"5m\")"),
        ("drain_timeout = '1d'", "2:17", "(write \"24h\")"),
        ("drain_timeout = “10s”", "2:17", "this is a typographic quote (write \"10s\")"),
        ("listen = [“[::1]:1”]", "2:11", "this is a typographic quote (write \"[::1]:1\")"),
        ("default_app = bücher", "2:15", "must be quoted (write \"bücher\")"),
    ];
    assert_problems("[server]", &table);
    let table = [
        ("enabled = yes", "2:11", "must be quoted (write true)"),
        ("enabled = False", "2:11", "invalid boolean (expected `false`)"),
        ("enabled = 'off'", "2:11", "true or false, not a string (write false)"),
        ("enabled = 1", "2:11", "true or false, not an integer (write true)"),
        ("listen = 'unix:@tidegate'", "2:10", "an abstract socket, which has no file and no"),
    ];
    assert_problems("[admin]", &table);
    let table = [
        ("level = 'warning'", "2:9", "(did you mean \"warn\"?)"),
        ("level = 'none'", "2:9", "(did you mean \"off\"?)"),
        ("level = off", "2:9", "(write \"off\")"),
        ("format = 'JSON'", "2:10", "(did you mean \"json\"?)"),
        ("access = 'Combined'", "2:10", "(did you mean \"combined\"?)"),
    ];
    assert_problems("[log]", &table);
    let table = [
        ("listen = ['127.0.0.1:80']", "2:1", "(`listen` belongs in [server] or [admin])"),
        ("[tls]\ncert = 'a'", "3:1", "`tls.cert` (known keys: certificates, min_version)"),
        ("[apps.\"a.test/api\".respond]", "2:7", "has a path: this version has no apps for"),
        ("[apps.\"bücher.example\".respond]", "2:7", "\"xn--bcher-kva.example\")"),
        ("[apps.“a.test”]", "2:7", "this is a typographic quote (write \"a.test\")"),
    ];
    assert_problems("", &table);
}

#[test]
fn habits_from_other_servers_in_an_app_get_a_suggestion() {
    let table = [
        ("respnd = { body = 'x' }", "2:1", "key `apps.a.respnd` (did you mean `respond`?)"),
        ("root = 'site'", "2:1", "(`root` belongs in `files`)"),
        ("upstreams = ['http://b']", "2:1", "(`upstreams` belongs in `proxy`)"),
        ("backend = 'http://b'", "2:1", "(`upstreams` belongs in `proxy`)"),
        ("respond = {}\nthreads = 2", "3:1", "(`threads` belongs in [server])"),
        ("respond = {}\ntls = { acme = true }", "3:9", "(ACME is not in this version"),
        ("respond = {}\nssl = true", "3:1", "(TLS is `tls = true` of an address"),
        ("respond = {}\ntls = true", "3:7", "`apps.a.tls` must be a table"),
        ("respond = {}\ntls = { cert = 'a' }", "3:1", "`apps.a.tls.key` is missing"),
        (
            "respond = {}\ntls = { cert = 'a', key = 'b', self_signed = true }",
            "3:9",
            "has both a certificate and `self_signed` (keep one of them)",
        ),
        ("respond = {}\ntls = { min_version = '1.1' }", "3:23", "must be one of \"1.2\", \"1.3\""),
        ("proxy = 'http://b:1'", "2:9", "(write proxy = { upstreams = [\"http://b:1\"] })"),
        ("proxy = ['http://b']", "2:9", "(write proxy = { upstreams = [\"http://b\"] })"),
        ("proxy = 9000", "2:9", "{ upstreams = [\"http://127.0.0.1:9000\"] })"),
        ("proxy.upstreams = [9000]", "2:20", "(write [\"http://127.0.0.1:9000\"])"),
        ("proxy.upstreams = ['unix:@x']", "2:20", "an abstract socket, which has no file"),
        ("redirect = 'https://b'", "2:12", "(write redirect = { to = \"https://b\" })"),
        ("files = 'site'", "2:9", "(write files = { root = \"site\" })"),
        ("respond = {}\nrate_limit = '100/s'", "3:14", "{ requests = 100, per = \"1s\" })"),
        ("respond = {}\nrate_limit = '5r/m'", "3:14", "{ requests = 5, per = \"1m\" })"),
        (
            "proxy = { upstreams = ['http://b'], health = '/up' }",
            "2:46",
            "(write health = { path = \"/up\" })",
        ),
        ("redirect = { to = '/x' }", "2:19", "has no host: the app would redirect to itself"),
    ];
    assert_problems("[apps.a]", &table);
    let table = [
        (
            "[apps.\"b.test\".prxy]\nupstreams = ['http://b']",
            "2:16",
            "unknown key `apps.\"b.test\".prxy` (did you mean `proxy`?)",
        ),
        ("[apps.www.b.test]\nrespond = {}", "2:11", "needs quotes: [apps.\"www.b.test\"]"),
    ];
    assert_problems("", &table);
}

#[test]
fn a_file_of_another_program_is_one_problem() {
    for (text, what) in [
        ("server {\n  listen 80;\n  root /srv;\n}\n", "a config of nginx"),
        ("example.com {\n  root * /srv\n  file_server\n}\n", "a Caddyfile"),
        ("# ours\nserver:\n  listen: 127.0.0.1:8080\n", "YAML"),
        ("{\n  \"server\": { \"threads\": 1 }\n}\n", "JSON"),
    ] {
        let found = problems(text);
        let expected = format!("this looks like {what}, but the config must be TOML");
        assert!(found.len() == 1 && found[0].contains(&expected), "{found:#?}");
    }
}

#[test]
fn mistakes_in_limits_and_log_have_a_place_and_a_suggestion() {
    let table = [
        ("head_bytes = '16KB'", "2:14", "`limits.head_bytes` is not a size (write \"16KiB\")"),
        ("head_bytes = 16384", "2:14", "a size with its unit (write \"16384B\")"),
        ("head_bytes = '1023B'", "2:14", "`limits.head_bytes` must be from 1KiB to 1MiB"),
        ("headers = 257", "2:11", "must be an integer from 1 to 256"),
        ("connections = 0", "2:15", "must be an integer from 1 to 10000000"),
        ("connections_per_ip = 0", "2:22", "must be an integer from 1 to 10000000"),
        ("head_timeout = '0s'", "2:16", "`limits.head_timeout` must be from 1ms to 168h"),
    ];
    assert_problems("[limits]", &table);
    let table = [
        ("level = 'inf'", "2:9", "\"trace\" (did you mean \"info\"?)"),
        ("access = true", "2:10", "one of \"off\", \"combined\", \"json\", not a boolean"),
        ("path = ''", "2:8", "`log.path` is not a path"),
    ];
    assert_problems("[log]", &table);
}

#[test]
fn mistakes_in_admin_have_a_place_and_a_suggestion() {
    let long = format!("listen = 'unix:{}'", "x".repeat(94));
    let tcp = |listen: &str| format!("token = '0123456789abcdef'\nlisten = {listen}");
    let here = |token: &str| format!("listen = '[::1]:0'\ntoken = '{token}'");
    let table = [
        ("enabled = 'no'", "2:11", "`admin.enabled` must be true or false, not a string"),
        ("listen = 9901", "2:10", "`admin.listen` must be a string, not an integer"),
        ("listen = ''", "2:10", "is neither a socket nor an IP address with a port (wri"),
        ("listen = 'unix:'", "2:10", "`admin.listen` is not a path"),
        ("listen = '/run/x.sock'", "2:10", "(write \"unix:/run/x.sock\")"),
        ("listen = 'localhost:9901'", "2:10", "(write \"127.0.0.1:9901\")"),
        ("listen = '::1'", "2:10", "(write \"[::1]:9901\")"),
        (&long, "2:10", "is too long for a socket: 108 bytes with its folder (at most 107"),
        ("listen = '127.0.0.1:9901'", "2:10", "`admin.token` is missing (add `token = "),
        ("token_file = 't'", "2:1", "`admin.token_file` is for TCP addresses only"),
        (&(tcp("'[::1]:9'") + "\ntoken_file = 't'"), "4:1", "`admin.token` are both set"),
        ("mode = '0666'", "2:8", "every user of this machine control the server (write \""),
        ("mode = '0460'", "2:8", "must let the server's user read and write"),
        ("mode = '0o660'", "2:8", "`admin.mode` is not a mode in octal digits (write \"0660\")"),
        ("mode = 660", "2:8", "`admin.mode` must be a string, not an integer"),
        (&(tcp("'[::1]:9'") + "\nmode = '0660'"), "4:1", "`admin.mode` is for a socket only"),
        (&(tcp("'[::1]:9'") + "\ngroup = 'x'"), "4:1", "`admin.group` is for a socket only"),
        ("token = '0123456789abcdef'", "2:1", "`admin.token` is for TCP addresses only"),
        (&tcp("'unix:a'"), "2:1", "(remove it: the socket's mode protects it"),
        (&here("0123456789abcde"), "3:9", "`admin.token` must have at least 16 bytes"),
        (&here("0123456789 abcdef"), "3:9", "`admin.token` must be visible ASCII"),
        (&here("0123456789\u{fc}abcdef"), "3:9", "`admin.token` must be visible ASCII"),
        (&tcp("'10.0.0.1:1'"), "3:10", "must be a loopback address (write \"127.0.0.1:1\", and"),
        (&tcp("'[::]:99'"), "3:10", "must be a loopback address (write \"[::1]:99\", and"),
        (&tcp("'127.0.0.1:8080'"), "3:10", "is taken: `server.listen` has \"127.0.0.1:8080"),
        (&tcp("true"), "3:10", "`admin.listen` must be a string, not a boolean"),
        ("health_listen = 8081", "2:17", "`admin.health_listen` must be a string, not an int"),
        ("health_listen = ':8081'", "2:17", "with a port (write \"0.0.0.0:8081\")"),
        ("health_listen = 'localhost:81'", "2:17", "with a port (write \"127.0.0.1:81\")"),
        ("health_listen = '::'", "2:17", "with a port (write \"[::]:8081\")"),
        ("health_listen = 'unix:a'", "2:17", "is not an IP address with a port (write \"0.0.0.0:8"),
        ("health_listen = '0.0.0.0:8080'", "2:17", "`server.listen` has \"127.0.0.1:8080\""),
    ];
    assert_problems("[admin]", &table);
}

#[test]
fn the_admin_socket_can_have_a_group_and_the_token_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let read = |text: &str| {
        let config = Config::parse(text, Path::new("config.toml"), folder.path());
        config.unwrap_or_else(|error| panic!("{error}")).admin
    };
    let admin = read("[admin]\nmode = '0660'\ngroup = 'ops'");
    assert_eq!((admin.mode, admin.group.as_deref()), (0o660, Some("ops")));
    let admin = read("[admin]\nlisten = '127.0.0.1:1'\ntoken_file = 'token'");
    assert_eq!(admin.token_file, Some(folder.path().join("token")));
    let error = admin.read_token().unwrap_err().to_string();
    assert!(error.ends_with("token: No such file or directory (os error 2)"), "{error}");
    std::fs::write(folder.path().join("token"), "0123456789abcdef\n").unwrap();
    assert_eq!(admin.read_token().unwrap().as_deref(), Some("0123456789abcdef"));
    std::fs::write(folder.path().join("token"), "short\n").unwrap();
    let error = admin.read_token().unwrap_err().to_string();
    assert!(error.ends_with("the token must have at least 16 bytes"), "{error}");
}

#[test]
fn an_admin_address_that_server_listen_covers_is_refused() {
    let config = |server: &str, admin: &str| {
        let token = "token = '0123456789abcdef'";
        format!("server.listen = ['{server}']\n[admin]\nlisten = '{admin}'\n{token}")
    };
    for (server, admin) in [
        ("0.0.0.0:9901", "127.0.0.1:9901"),
        ("[::]:9901", "[::1]:9901"),
        ("[::ffff:127.0.0.1]:9901", "127.0.0.1:9901"),
    ] {
        let found = problems(&config(server, admin));
        assert!(found.len() == 1 && found[0].contains("is taken"), "{server} {admin}");
    }
    for (server, admin) in [
        ("127.0.0.1:0", "127.0.0.1:0"),
        ("127.0.0.2:9901", "127.0.0.1:9901"),
        ("[::]:9901", "127.0.0.1:9901"),
        ("127.0.0.1:9901", "127.0.0.1:9902"),
    ] {
        parse(&config(server, admin)).unwrap_or_else(|error| panic!("{error}"));
    }
    let off = config("127.0.0.1:9901", "127.0.0.1:9901") + "\nenabled = false";
    parse(&off).unwrap_or_else(|error| panic!("{error}"));
    let probed = config("127.0.0.1:80", "127.0.0.1:9901") + "\nhealth_listen = '0.0.0.0:9901'";
    let found = problems(&probed);
    assert!(found.len() == 1 && found[0].contains("`admin.listen` has"), "{found:?}");
    parse(&(probed + "\nenabled = false")).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_folder_too_deep_for_the_default_socket_is_an_error_if_the_socket_is_used() {
    let folder = PathBuf::from(format!("/{}", "x".repeat(92)));
    let parse = |text, folder| Config::parse(text, Path::new("config.toml"), folder);
    assert!(parse("", &folder).is_ok(), "107 bytes");
    let deeper = folder.join("y");
    for (text, place) in [("", (1, 1)), ("# a\n[admin]\nenabled = true", (2, 2))] {
        let error = parse(text, &deeper).unwrap_err();
        let [problem] = error.problems() else { panic!("{error}") };
        assert_eq!((problem.line, problem.column), place);
        assert!(problem.message.starts_with("`admin.listen` is too long"), "{error}");
        assert!(problem.help.as_ref().unwrap().contains("`admin.enabled = false`"));
    }
    for text in ["admin.enabled = false", "admin.listen = 'unix:/run/tidegate.sock'"] {
        parse(text, &deeper).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn the_token_is_not_in_a_report_that_shows_its_line() {
    for (text, line) in [
        ("[admin]\ntoken = 'sesame'\nlisten = '[::1]:1'", "2 | token = '******'"),
        ("[admin]\ntoken = 'ses\u{e4}me'\nlisten = '[::1]:1'", "2 | token = '***\u{e4}**'"),
        ("admin = { token = 'sesame', x = 1 }", "1 | admin = { token = '******', x = 1 }"),
    ] {
        let report = parse(text).unwrap_err().to_string();
        assert!(report.contains(line) && !report.contains("sesame"), "{report}");
    }
}

#[test]
fn the_token_is_not_in_debug_output() {
    let shown = format!("{:?}", parse(FULL).unwrap().admin);
    assert!(shown.contains("token: Some((secret))") && !shown.contains("0123"), "{shown}");
}

#[test]
fn mistakes_in_an_app_have_a_place_and_a_suggestion() {
    let table = [
        ("", "1:7", "`apps.a` has nothing to serve (add one of respond, redirect, files, proxy)"),
        ("proxy = {}", "2:1", "`apps.a.proxy.upstreams` is missing (add `upstreams`)"),
        ("respond = {}\nfiles = { root = '.' }", "3:1", "has both `respond` and `files`"),
        ("aliases = ['b', 'B.']\nrespond = {}", "2:17", "`b` is repeated"),
        ("aliases = ['A']\nrespond = {}", "2:12", "`a` is repeated"),
        ("aliases = ['*.a.*']\nrespond = {}", "2:12", "`apps.a.aliases[0]` is not a host name"),
        ("aliases = ['b:8']\nrespond = {}", "2:12", "must not have a port (write \"b\";"),
        (
            "respond = {}\nrate_limit = 5",
            "3:14",
            "(write rate_limit = { requests = 5, per = \"1s\" })",
        ),
        ("respond = {}\nrate_limit.per = '1s'", "3:1", "`apps.a.rate_limit.requests` is missing"),
        (
            "respond = {}\nrate_limit = { requests = 0, per = '1s' }",
            "3:27",
            "must be an integer from 1 to 1000000",
        ),
        (
            "respond = {}\nrate_limit = { requests = 1, per = '2h' }",
            "3:36",
            "must be from 1ms to 1h",
        ),
        ("respond = {}\n[apps.b.c]\nfiles = {}", "3:9", "needs quotes: [apps.\"b.c\"]"),
        ("respond = {}\n[apps.A.respond]", "3:7", "`a` is repeated"),
        ("respond = {}\n[apps.\"a.\".respond]", "3:7", "`a` is repeated"),
        ("respond = {}\n[apps.a]\nrespond = {}", "3:7", "`a` is defined twice"),
        ("respond = {}\n[apps.\"*\".respond]", "3:7", "set `server.default_app`"),
    ];
    assert_problems("[apps.a]", &table);
}

#[test]
fn mistakes_in_respond_and_redirect_have_a_place_and_a_suggestion() {
    let table = [
        ("respond = 'hello'", "2:11", "(write respond = { body = \"hello\" })"),
        ("respond = { status = 199 }", "2:22", "must be an integer from 200 to 599"),
        ("respond = { body = 'x', status = 304 }", "2:20", "cannot be sent with status 304"),
        ("respond = { content_type = 'text' }", "2:28", "is not a media type"),
        ("respond = { headers = { Date = 'x' } }", "2:25", "is written by the server itself"),
        ("respond = { headers = { content-type = 'x' } }", "2:25", "(use `content_type`)"),
        ("respond = { headers = { 'a b' = 'x' } }", "2:25", "is not a field name"),
        ("respond = { headers = { A = \"x\\r\\nB: y\" } }", "2:29", "is not a field value"),
        ("respond = { headers = { A = 'x', a = 'y' } }", "2:34", "`a` is repeated"),
        ("redirect = {}", "2:1", "`apps.a.redirect.to` is missing (add `to`)"),
        ("redirect = { to = '/' }", "2:19", "has no host: the app would redirect to itself"),
        ("redirect = { to = 'https://' }", "2:19", "has no valid host"),
        ("redirect = { to = 'https://a@b' }", "2:19", "has no valid host"),
        ("redirect = { to = 'https://a?b' }", "2:19", "must not have a query"),
        ("redirect = { to = 'https://a/#b' }", "2:19", "must not have a query or fragment"),
        ("redirect = { to = 'https://a/b c' }", "2:19", "must be percent-encoded"),
        ("redirect = { to = \"https://a/\\r\\n\" }", "2:19", "must be percent-encoded"),
        ("redirect = { to = 'http://a', status = 304 }", "2:40", "301, 302, 303, 307 or 308"),
    ];
    assert_problems("[apps.a]", &table);
}

#[test]
fn mistakes_in_files_have_a_place_and_a_suggestion() {
    let table = [
        ("", "1:9", "`apps.a.files.root` is missing (add `root`)"),
        ("root = ''", "2:8", "`apps.a.files.root` is not a path"),
        ("root = '.'\nindex = 'on'", "3:9", "`apps.a.files.index` must be one of \"off\""),
        ("root = '.'\nindex = 3", "3:9", "`apps.a.files.index` must be an array of strings"),
        ("root = '.'\ntry = []", "3:7", "`apps.a.files.try` must have at least 1 entry"),
        ("root = '.'\ntry = ['/a', '{path}']", "3:8", "`apps.a.files.try[0]` must come last"),
        ("root = '.'\ntry = ['{path}/x']", "3:8", "`apps.a.files.try[0]` has a slash after"),
        ("root = '.'\ntry = ['$uri']", "3:8", "`apps.a.files.try[0]` is not a path to try"),
        ("root = '.'\ntry = ['/../x']", "3:8", "`apps.a.files.try[0]` is not a path inside"),
        ("root = '.'\ntry = ['/{path}']", "3:8", "`apps.a.files.try[0]` must begin with `{path}`"),
        ("root = '.'\nindex = ['..']", "3:10", "`apps.a.files.index[0]` is not a file name"),
        ("root = '.'\nindex = ['a/b']", "3:10", "`apps.a.files.index[0]` is not a file name"),
        ("root = '.'\nnot_found = '../x'", "3:13", "is not a path inside the root"),
        ("root = '.'\nnot_found = '/x'", "3:13", "is not a path inside the root"),
        ("root = '.'\nprecompressed = 1", "3:17", "must be true or false, not an integer"),
        ("root = '.'\ntypes = { '.MD' = 'a/b' }", "3:11", "(write \"md\", without dots)"),
        ("root = '.'\ntypes = { md = 'text' }", "3:16", "is not a media type"),
        ("root = '.'\ncache_contrl = ''", "3:1", "(did you mean `cache_control`?)"),
    ];
    assert_problems("[apps.a.files]", &table);
}

#[test]
fn all_mistakes_of_a_file_are_found_in_one_pass() {
    let text = r#"
[server]
listen = ["127.0.0.1"]
threads = "x"
default_app = "c"
drain_timeot = "1s"
[limits]
headers = "x"
head_bytes = "16KB"
conections = 1
[log]
level = 3
[apps.a]
aliases = ["b:80"]
respond = { status = "x", hedaers = {} }
[apps.b]
redirect = { to = "/", status = 1 }
[apps.A]
"#;
    let expected = [
        "3:11", "4:11", "5:15", "6:1", "8:11", "9:14", "10:1", "12:9", "14:12", "15:22", "15:27",
        "17:19", "17:33", "18:7", "18:7",
    ];
    assert_eq!(places(text), expected);
}

#[test]
fn a_syntax_error_hides_no_other_mistake_and_invents_none() {
    let text = "[server]\nthreads = \ndrain_timeout = 5\n[apps.a]\nrespond = { status = x }\n\
                [apps.b]\nrespond = { status = 1 }\n[apps.c]\nredirect = { to = \"x\n";
    assert_eq!(places(text), ["2:11", "3:17", "5:22", "7:22", "9:21"]);
    // The unclosed list swallows the rest.
    let text = "[server]\nlisten = [\"127.0.0.1:80\"\nthreads = 1\n[log]\nlevel = \"info\"\n";
    assert_eq!(places(text), ["3:1"]);
    // The second table is merged into the first; its other keys are still checked.
    let text = "[log]\nlevel = \"off\"\n[log]\nlevel = \"off\"\npath = 1\npath = 2\n";
    assert_eq!(places(text), ["3:2", "5:8", "6:1"]);
    // A dotted key must not add to a table that has its own header.
    assert_eq!(places("[apps.a]\nrespond = {}\n[apps]\na.files = {}\n"), ["4:1"]);
}

#[test]
fn a_doubled_file_is_one_problem_per_table_not_per_key() {
    let once: String =
        (0..200).map(|n| format!("[apps.a{n}]\nrespond = {{}}\ndrain_timeout = '1s'\n")).collect();
    let text = format!("{once}{once}");
    let error = parse(&text).unwrap_err();
    assert_eq!(error.problems().len(), 200);
    let lines = error.problems().iter().map(|problem| problem.line);
    assert!(lines.eq((0..200).map(|n| 601 + 3 * n)), "{error}");
    let report = error.to_string();
    assert_eq!(report.matches("error: ").count(), ConfigError::SHOWN_MAX + 1);
    assert!(report.ends_with("error: 100 more problems"), "{report}");
}

#[test]
fn a_message_does_not_list_ten_thousand_names() {
    let apps: String = (0..10_000).map(|n| format!("[apps.a{n}]\nrespond = {{}}\n")).collect();
    let found = problems(&format!("server.default_app = 'other'\n{apps}"));
    assert!(found.len() == 1 && found[0].len() < 300, "{found:?}");
    assert!(found[0].ends_with("a18, a19, …)"), "{found:?}");
}

#[test]
fn a_report_shows_the_line_a_caret_and_both_places() {
    let named_twice = "[apps.a]\naliases = [\"b\"]\nrespond = {}\n[apps.B.respond]\n";
    let expected = "\
error: `b` is repeated
 --> config.toml:4:7
  |
2 | aliases = [\"b\"]
  |            --- first here
3 | respond = {}
4 | [apps.B.respond]
  |       ^ and again here";
    assert_eq!(parse(named_twice).unwrap_err().to_string(), expected);

    let defined_twice = "[apps.\"a\"]\nrespond = {}\n[apps.a]\nfiles = { root = \".\" }\n";
    let expected = "\
error: `a` is defined twice
 --> config.toml:3:7
  |
1 | [apps.\"a\"]
  |       --- defined here
2 | respond = {}
3 | [apps.a]
  |       ^ and again here";
    assert_eq!(parse(defined_twice).unwrap_err().to_string(), expected);
}

#[test]
fn a_file_that_cannot_be_read_is_a_problem_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.toml");
    let error = Config::load(&path).unwrap_err();
    assert!(error.to_string().contains("config.toml: No such file"), "{error}");
    assert_eq!(error.problems().len(), 1);

    fs::write(&path, b"[server]\nthreads = 1 # \xff\n").unwrap();
    let error = Config::load(&path).unwrap_err();
    assert_eq!((error.problems()[0].line, error.problems()[0].column), (2, 15));

    fs::write(&path, "[apps.a.files]\nroot = \"site\"\n").unwrap();
    let config = Config::load(&path).unwrap();
    let AppKind::Files(files) = &config.apps[0].kind else { panic!("{config:?}") };
    assert_eq!(files.root, folder.path().join("site"));
}

/// A file that is cut, doubled or overwritten anywhere gives a `Config`, or problems whose
/// positions match the report.
#[test]
fn no_text_panics() {
    const PIECES: [&str; 16] = [
        "[",
        "]",
        "{",
        "}",
        "\"",
        "'''",
        "=",
        ",",
        ".",
        "\n",
        "\r",
        "#",
        "\u{fc}",
        "\t",
        "\0",
        "[apps.a]\n",
    ];
    let mut state: u64 = 0x7469_6465_6761_7465;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % (below as u64)).unwrap()
    };
    for round in 0..1000 {
        let mut text = FULL.to_owned();
        for _ in 0..=random(4) {
            let mut cuts = [random(text.len() + 1), random(text.len() + 1)];
            cuts.sort_unstable();
            let [start, end] = cuts.map(|cut| text.floor_char_boundary(cut));
            let piece = match random(4) {
                0 => text[start..end].repeat(2),
                1 if end - start < 100 => String::new(),
                _ => PIECES[random(PIECES.len())].to_owned() + &text[start..end],
            };
            text.replace_range(start..end, &piece);
        }
        let Err(error) = parse(&text) else {
            assert!(toml::de::DeTable::parse(&text).is_ok(), "round {round}: {text}");
            continue;
        };
        let report = error.to_string();
        assert!(!error.problems().is_empty());
        for problem in error.problems() {
            let place = format!("config.toml:{}:{}\n", problem.line, problem.column);
            assert!(report.contains(&place), "round {round}: {place}{report}\n{text}");
        }
    }
}

#[test]
fn certificates_come_from_the_app_or_from_all() {
    let config = parse(
        "[server]\nlisten = [{ address = '[::]:443', tls = true }]\n\
         [tls]\nmin_version = '1.3'\ncertificates = ['certs', { cert = 'a.pem', key = 'a.key' }]\n\
         [apps.a]\nrespond = {}\ntls = {}\n\
         [apps.b]\nrespond = {}\ntls = { cert = 'b.pem', key = 'b.key', min_version = '1.2' }\n\
         [apps.c]\nrespond = {}\ntls = { self_signed = true }\n\
         [apps.d]\nrespond = {}\n",
    )
    .unwrap();
    assert!(config.server.listen[0].options.tls);
    let files = |name: &str| CertificateFiles {
        cert: Path::new("/etc/tidegate").join(format!("{name}.pem")),
        key: Path::new("/etc/tidegate").join(format!("{name}.key")),
    };
    let certificates = vec![
        CertificateSource::Folder(Path::new("/etc/tidegate").join("certs")),
        CertificateSource::Files(files("a")),
    ];
    assert_eq!(config.tls, TlsConfig { min_version: TlsVersion::V1_3, certificates });
    let tls = |certificate, min_version| {
        let (client, redirect_http, hsts) = (None, false, None);
        Some(AppTls { certificate, min_version, client, redirect_http, hsts })
    };
    let found: Vec<_> = config.apps.into_iter().map(|app| app.tls).collect();
    let expected = [
        tls(AppCertificate::Shared, None),
        tls(AppCertificate::Files(files("b")), Some(TlsVersion::V1_2)),
        tls(AppCertificate::SelfSigned, None),
        None,
    ];
    assert_eq!(found, expected);
}
