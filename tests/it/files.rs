//! Files as a client sees them: every byte, no byte from outside the root, and what happens when a
//! file changes while it is being sent.

use std::{
    fs::{self, File, OpenOptions},
    io::Read,
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::support::{
    Client, End, PATIENCE, Response, Server, Setup, find, get, give_way, pattern, wait_until,
};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
const HOST: &str = "files.test";

fn setup() -> Setup {
    Setup::new().app(HOST, "files = { root = \"site\" }").file("site/index.html", "<p>index</p>")
}

/// A GET with these field lines.
fn get_with(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n{fields}\r\n\r\n")
}

/// Sets a file's time far enough back to be a strong validator.
fn age(path: &Path) {
    let then = SystemTime::now() - Duration::from_secs(3600);
    File::options().write(true).open(path).and_then(|file| file.set_modified(then)).expect("mtime");
}

#[test]
fn every_size_arrives_whole() {
    let sizes = [0, 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, MIB, 20 * MIB];
    let mut setup = setup();
    for size in sizes {
        setup = setup.file(&format!("site/{size}.bin"), pattern(size));
    }
    let server = setup.start();
    let mut client = server.connect();
    // The tag of a file that was just written is weak, and changes with every second.
    let is_settled = wait_until(PATIENCE, || {
        client.send(format!("HEAD /{}.bin HTTP/1.1\r\nHost: {HOST}\r\n\r\n", 20 * MIB));
        !client.response_to_head().field("ETag").expect("ETag").starts_with("W/")
    });
    assert!(is_settled, "the tag stays weak");
    // The second time it may come from a cache.
    for size in sizes.iter().chain(&sizes) {
        let response = client.exchange(get(HOST, &format!("/{size}.bin")));
        assert_eq!((response.status, response.body.len()), (200, *size));
        assert!(response.body == pattern(*size), "{size} bytes, but not the file's");
        client.send(format!("HEAD /{size}.bin HTTP/1.1\r\nHost: {HOST}\r\n\r\n"));
        let head = client.response_to_head();
        assert_eq!(head.field("Content-Length"), Some(size.to_string().as_str()));
        assert_eq!(head.field("ETag"), response.field("ETag"));
    }
}

#[test]
fn many_readers_of_large_files_all_get_every_byte() {
    let content = pattern(4 * MIB);
    let server = setup().file("site/large.bin", &content).start();
    let mut clients: Vec<Client> =
        (0..8).map(|_| Client::connect_narrow(server.address())).collect();
    for client in &mut clients {
        client.send(get(HOST, "/large.bin") + &get(HOST, "/") + &get(HOST, "/large.bin"));
    }
    for client in &mut clients {
        assert!(client.response().body == content);
        assert_eq!(client.response().text(), "<p>index</p>");
        assert!(client.response().body == content);
    }
}

#[test]
fn single_ranges_are_served() {
    let small = pattern(100);
    let large = pattern(5 * MIB);
    let server = setup().file("site/small", &small).file("site/large", &large).start();
    let mut client = server.connect();
    for (path, content) in [("/small", &small), ("/large", &large)] {
        let length = content.len();
        let last = length - 1;
        for (range, first, last) in [
            ("bytes=0-9".to_owned(), 0, 9),
            ("bytes=5-5".to_owned(), 5, 5),
            ("bytes=90-".to_owned(), 90, last),
            ("bytes=-10".to_owned(), length - 10, last),
            (format!("bytes=-{}", length + 1), 0, last),
            (format!("bytes=10-{}", length + 5), 10, last),
            (format!("bytes={last}-"), last, last),
            ("BYTES=0-9".to_owned(), 0, 9),
            ("bytes=0-99999999999999999999999".to_owned(), 0, last),
        ] {
            let response = client.exchange(get_with(path, &format!("Range: {range}")));
            assert_eq!(response.status, 206, "{path} {range}");
            let place = format!("bytes {first}-{last}/{length}");
            assert_eq!(response.field("Content-Range"), Some(place.as_str()), "{path} {range}");
            assert!(response.body == content[first..=last], "{path} {range}");
        }
    }
}

#[test]
fn unsatisfiable_ranges_are_416_and_invalid_ones_are_ignored() {
    let server = setup().file("site/small", pattern(100)).file("site/empty", "").start();
    let mut client = server.connect();
    for (path, range) in [
        ("/small", "bytes=100-"),
        ("/small", "bytes=200-300"),
        ("/small", "bytes=-0"),
        ("/small", "bytes=100-101,-0"),
    ] {
        let response = client.exchange(get_with(path, &format!("Range: {range}")));
        assert_eq!(response.status, 416, "{range}");
        assert_eq!(response.field("Content-Range"), Some("bytes */100"), "{range}");
    }
    for range in ["bytes=9-0", "bytes=x-y", "bytes=", "bytes=-", "lines=0-9", "0-9", "bytes=0x0-9"]
    {
        let response = client.exchange(get_with("/small", &format!("Range: {range}")));
        assert_eq!((response.status, response.body.len()), (200, 100), "{range}");
    }
    let empty = client.exchange(get_with("/empty", "Range: bytes=0-0"));
    assert!([200, 416].contains(&empty.status), "{}", empty.status);
    // Only GET has ranges (RFC 9110 §14.2).
    client.send(format!("HEAD /small HTTP/1.1\r\nHost: {HOST}\r\nRange: bytes=0-9\r\n\r\n"));
    let head = client.response_to_head();
    assert_eq!((head.status, head.field("Content-Length")), (200, Some("100")));
}

#[test]
fn several_ranges_come_as_multipart() {
    let content = pattern(5 * MIB);
    let server = setup().file("site/large.bin", &content).start();
    let mut client = server.connect();
    let ranges = "Range: bytes=0-9, 1000000-3000000,-5";
    let response = client.exchange(get_with("/large.bin", ranges));
    assert_eq!((response.status, response.field("Content-Range")), (206, None));
    let parts = multipart(&response);
    let places: Vec<&str> = parts.iter().map(|(place, _)| place.as_str()).collect();
    assert_eq!(places, ["bytes 0-9/5242880", "bytes 1000000-3000000/5242880", LAST_FIVE]);
    assert!(parts[0].1 == content[..10]);
    assert!(parts[1].1 == content[1_000_000..=3_000_000]);
    assert!(parts[2].1 == content[content.len() - 5..]);
    // An empty range is omitted, and a single range is no multipart.
    let one = client.exchange(get_with("/large.bin", "Range: bytes=0-1,9999999-"));
    assert_eq!(one.status, 206);
    assert!(one.body == content[..2] || multipart(&one)[0].1 == content[..2]);
}

const LAST_FIVE: &str = "bytes 5242875-5242879/5242880";

/// The parts of a `multipart/byteranges` answer, by their Content-Range.
fn multipart(response: &Response) -> Vec<(String, Vec<u8>)> {
    let kind = response.field("Content-Type").expect("Content-Type");
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").expect(kind);
    let delimiter = format!("\r\n--{}", boundary.trim_matches('"'));
    // The first delimiter may stand without its line break.
    let body = [b"\r\n", &response.body[..]].concat();
    let mut parts = Vec::new();
    let mut at = find(&body, delimiter.as_bytes()).expect("a part") + delimiter.len();
    while !body[at..].starts_with(b"--") {
        let head_len = find(&body[at..], b"\r\n\r\n").expect("a part's head");
        let head = std::str::from_utf8(&body[at..at + head_len]).expect("text");
        let place = head
            .lines()
            .find_map(|line| {
                line.to_ascii_lowercase().strip_prefix("content-range: ").map(str::to_owned)
            })
            .expect("Content-Range");
        at += head_len + 4;
        let (first, last) = place["bytes ".len()..]
            .split('/')
            .next()
            .and_then(|range| range.split_once('-'))
            .expect("a range");
        let length = last.parse::<usize>().unwrap() - first.parse::<usize>().unwrap() + 1;
        parts.push((place.clone(), body[at..at + length].to_vec()));
        at += length;
        assert!(
            body[at..].starts_with(delimiter.as_bytes()),
            "a part that ends at another position"
        );
        at += delimiter.len();
    }
    parts
}

#[test]
fn overlapping_ranges_do_not_multiply_the_answer() {
    let server = setup().file("site/large.bin", pattern(MIB)).start();
    let many: Vec<String> = (0..500).map(|n| format!("{n}-")).collect();
    let request = get_with("/large.bin", &format!("Range: bytes={}", many.join(",")));
    let response = server.connect().exchange(request);
    assert!([200, 206, 416].contains(&response.status), "{}", response.status);
    assert!(response.body.len() < 3 * MIB, "{} bytes of a file of 1 MiB", response.body.len());
}

#[test]
fn conditional_requests_are_decided_by_etag_and_date() {
    let setup = setup().file("site/page.html", "page");
    age(&setup.dir().join("site/page.html"));
    let server = setup.start();
    let mut client = server.connect();
    let whole = client.exchange(get(HOST, "/page.html"));
    let etag = whole.field("ETag").expect("ETag").to_owned();
    let modified = whole.field("Last-Modified").expect("Last-Modified").to_owned();
    assert!(etag.starts_with('"') && etag.ends_with('"') && etag.len() > 2, "{etag}");
    let at = httpdate::parse_http_date(&modified).expect("a date");
    let before = httpdate::fmt_http_date(at - Duration::from_secs(60));
    let after = httpdate::fmt_http_date(at + Duration::from_secs(60));
    for (fields, status) in [
        (format!("If-None-Match: {etag}"), 304),
        (format!("If-None-Match: W/{etag}"), 304),
        (format!("If-None-Match: \"x\", {etag} , \"y\""), 304),
        (format!("If-None-Match: \"x\"\r\nIf-None-Match: {etag}"), 304),
        ("If-None-Match: *".to_owned(), 304),
        ("If-None-Match: \"x\"".to_owned(), 200),
        ("If-None-Match: \"a,b\", \"\"".to_owned(), 200),
        (format!("If-Modified-Since: {modified}"), 304),
        (format!("If-Modified-Since: {after}"), 304),
        (format!("If-Modified-Since: {before}"), 200),
        ("If-Modified-Since: yesterday".to_owned(), 200),
        (format!("If-None-Match: \"x\"\r\nIf-Modified-Since: {modified}"), 200),
        (format!("If-None-Match: {etag}\r\nIf-Modified-Since: {before}"), 304),
        (format!("If-Match: {etag}"), 200),
        (format!("If-Match: \"x\", {etag}"), 200),
        ("If-Match: *".to_owned(), 200),
        ("If-Match: \"x\"".to_owned(), 412),
        (format!("If-Match: W/{etag}"), 412),
        (format!("If-Unmodified-Since: {modified}"), 200),
        (format!("If-Unmodified-Since: {after}"), 200),
        (format!("If-Unmodified-Since: {before}"), 412),
        (format!("If-Match: {etag}\r\nIf-Unmodified-Since: {before}"), 200),
        (format!("If-Match: {etag}\r\nIf-None-Match: {etag}"), 304),
        (format!("Range: bytes=0-1\r\nIf-Range: {etag}"), 206),
        (format!("Range: bytes=0-1\r\nIf-Range: {modified}"), 200),
        ("Range: bytes=0-1\r\nIf-Range: \"x\"".to_owned(), 200),
        (format!("Range: bytes=0-1\r\nIf-Range: W/{etag}"), 200),
        (format!("Range: bytes=0-1\r\nIf-Range: {before}"), 200),
        (format!("Range: bytes=0-1\r\nIf-Range: {after}"), 200),
        ("Range: bytes=9-\r\nIf-Range: \"x\"".to_owned(), 200),
        (format!("Range: bytes=0-1\r\nIf-None-Match: {etag}"), 304),
        ("Range: bytes=0-1\r\nIf-Match: \"x\"".to_owned(), 412),
    ] {
        let response = client.exchange(get_with("/page.html", &fields));
        assert_eq!(response.status, status, "{fields}");
        if status == 304 || status == 200 {
            assert_eq!(response.field("ETag"), Some(etag.as_str()), "{fields}");
        }
    }
}

#[test]
fn precompressed_files_go_to_clients_that_accept_them() {
    let app = "files = { root = \"site\", precompressed = true }";
    let mut setup = Setup::new().app(HOST, app);
    for (name, content) in [
        ("site/app.js", "plain"),
        ("site/app.js.gz", "as gzip"),
        ("site/app.js.br", "as br"),
        ("site/app.js.zst", "as zstd"),
        ("site/only.css", "plain"),
        ("site/only.css.gz", "as gzip"),
        ("site/none.txt", "plain"),
        ("site/lonely.txt.gz", "as gzip"),
    ] {
        setup = setup.file(name, content);
    }
    let server = setup.start();
    let mut client = server.connect();
    for (path, accept, coding) in [
        ("/app.js", "gzip", "gzip"),
        ("/app.js", "br", "br"),
        ("/app.js", "zstd", "zstd"),
        ("/app.js", "GZIP", "gzip"),
        ("/app.js", "x, gzip ; q=0.5", "gzip"),
        ("/app.js", "gzip, deflate, br", "br"),
        ("/app.js", "br;q=0.1, gzip;q=1.0", "gzip"),
        ("/app.js", "br;q=0, gzip", "gzip"),
        ("/app.js", "gzip;q=0", "plain"),
        ("/app.js", "gzip;q=0.000", "plain"),
        ("/app.js", "", "plain"),
        ("/app.js", "identity", "plain"),
        ("/app.js", "deflate", "plain"),
        ("/only.css", "br, gzip", "gzip"),
        ("/only.css", "br", "plain"),
        ("/none.txt", "br, gzip", "plain"),
    ] {
        let response = client.exchange(get_with(path, &format!("Accept-Encoding: {accept}")));
        let expected = if coding == "plain" { None } else { Some(coding) };
        assert_eq!(response.field("Content-Encoding"), expected, "{path} {accept:?}");
        let text = expected.map_or("plain".to_owned(), |coding| format!("as {coding}"));
        assert_eq!(response.text(), text, "{path} {accept:?}");
        if path != "/none.txt" {
            let vary = response.field("Vary").expect("Vary").to_ascii_lowercase();
            assert!(vary.contains("accept-encoding"), "{path} {accept:?}: {vary}");
        }
    }
    let plain = client.exchange(get(HOST, "/app.js"));
    let gzip = client.exchange(get_with("/app.js", "Accept-Encoding: gzip"));
    assert_eq!(plain.text(), "plain");
    assert_ne!(plain.field("ETag"), gzip.field("ETag"));
    assert_eq!(plain.field("Content-Type"), gzip.field("Content-Type"));
    // A neighbour without its file is an ordinary file.
    assert_eq!(client.exchange(get_with("/lonely.txt", "Accept-Encoding: gzip")).status, 404);
    let own = client.exchange(get_with("/lonely.txt.gz", "Accept-Encoding: gzip"));
    assert_eq!((own.text(), own.field("Content-Encoding")), ("as gzip", None));
}

#[test]
fn nothing_outside_the_root_is_served() {
    let setup = setup()
        .file("secret.txt", "TOP SECRET")
        .file("site/sub/page.html", "page")
        .file("site/.hidden", "TOP SECRET")
        .file("site/.git/config", "TOP SECRET")
        .file("site/sub/.env", "TOP SECRET");
    let site = setup.dir().join("site");
    symlink("../secret.txt", site.join("out")).expect("symlink");
    symlink("..", site.join("up")).expect("symlink");
    symlink(setup.dir().join("secret.txt"), site.join("absolute")).expect("symlink");
    symlink("/", site.join("everything")).expect("symlink");
    symlink("out", site.join("twice")).expect("symlink");
    symlink(".hidden", site.join("shown")).expect("symlink");
    symlink("loop", site.join("loop")).expect("symlink");
    let secret = setup.dir().join("secret.txt").to_str().expect("text").to_owned();
    let mut targets: Vec<Vec<u8>> = [
        "/../secret.txt",
        "/../../../../../../../../etc/passwd",
        "/sub/../../secret.txt",
        "/sub/..%2f..%2fsecret.txt",
        "/..%2fsecret.txt",
        "/..%2Fsecret.txt",
        "/%2e%2e/secret.txt",
        "/%2E%2E%2Fsecret.txt",
        "/.%2e/secret.txt",
        "/%252e%252e/secret.txt",
        "/..%5csecret.txt",
        "/..\\secret.txt",
        "/..;/secret.txt",
        "//../secret.txt",
        "/./../secret.txt",
        "/sub/./../../secret.txt",
        "/%c0%ae%c0%ae/secret.txt",
        "/%00/../secret.txt",
        "/../secret.txt%00.html",
        "/index.html%00",
        "/..",
        "/../",
        "/../site/../secret.txt",
        "/out",
        "/up/secret.txt",
        "/absolute",
        "/twice",
        "/everything/etc/passwd",
        "/loop",
        "/.hidden",
        "/%2ehidden",
        "/.git/config",
        "/sub/.env",
        "/sub/%2eenv",
    ]
    .iter()
    .map(|target| target.as_bytes().to_vec())
    .collect();
    targets.push(format!("/{secret}").into_bytes());
    targets.push(secret.replace('/', "%2f").into_bytes());
    targets.push(format!("http://{HOST}/../secret.txt").into_bytes());
    let server = setup.start();
    for target in targets {
        let mut client = server.connect();
        client.send([b"GET ", &target[..], b" HTTP/1.1\r\nHost: files.test\r\n\r\n"].concat());
        let response = client.response();
        let shown = target.escape_ascii().to_string();
        assert!([400, 403, 404].contains(&response.status), "{shown}: {}", response.status);
        assert_eq!(find(&response.body, b"SECRET"), None, "{shown}");
        assert_eq!(find(&response.body, b"root:"), None, "{shown}");
    }
    // A hidden file behind a link with another name may be served: it is inside the root.
    let shown = server.connect().exchange(get(HOST, "/shown"));
    assert!([200, 403, 404].contains(&shown.status), "{}", shown.status);
}

#[test]
fn links_inside_the_root_are_followed() {
    let setup = setup().file("site/real/page.html", "page");
    let site = setup.dir().join("site");
    symlink("real", site.join("folder")).expect("symlink");
    symlink("../real/page.html", site.join("real/link.html")).expect("symlink");
    let server = setup.start();
    let mut client = server.connect();
    for path in ["/folder/page.html", "/real/link.html"] {
        assert_eq!(client.exchange(get(HOST, path)).text(), "page", "{path}");
    }
}

#[test]
fn only_regular_files_are_opened() {
    let setup = setup();
    let site = setup.dir().join("site");
    let made = std::process::Command::new("mkfifo").arg(site.join("pipe")).status();
    assert!(made.is_ok_and(|status| status.success()), "mkfifo");
    let _socket = std::os::unix::net::UnixListener::bind(site.join("socket")).expect("socket");
    let server = setup.start();
    let mut client = server.connect();
    for path in ["/pipe", "/socket", "/pipe/", "/index.html/", "/index.html/x"] {
        let status = client.exchange(get(HOST, path)).status;
        assert!([403, 404].contains(&status), "{path}: {status}");
    }
}

#[test]
fn folders_have_an_index_or_nothing() {
    let setup = setup()
        .file("site/sub/index.html", "sub")
        .file("site/evil.test/index.html", "evil")
        .file("site/bare/file.txt", "file");
    let server = setup.start();
    let mut client = server.connect();
    assert_eq!(client.exchange(get(HOST, "/")).text(), "<p>index</p>");
    assert_eq!(client.exchange(get(HOST, "/sub/")).text(), "sub");
    for (path, location) in [("/sub", "/sub/"), ("/sub?a=b", "/sub/?a=b")] {
        let response = client.exchange(get(HOST, path));
        assert!([301, 302, 307, 308].contains(&response.status), "{path}: {}", response.status);
        let target = response.field("Location").expect("Location");
        let target = target.strip_prefix("http://files.test").unwrap_or(target);
        assert_eq!(target, location);
    }
    // A browser reads a Location of two slashes as another host.
    let response = client.exchange(get(HOST, "//evil.test"));
    let target = response.field("Location").unwrap_or("/");
    assert!(!target.starts_with("//"), "{target}");
    for path in ["/bare", "/bare/"] {
        let response = client.exchange(get(HOST, path));
        assert_ne!(response.status, 200, "{path}");
        assert_eq!(find(&response.body, b"file.txt"), None, "{path} is listed");
    }
}

/// Asks until the cache has checked the file again.
fn for_a_while(mut ask: impl FnMut()) {
    let end = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < end {
        ask();
        give_way();
    }
}

#[test]
fn a_file_in_memory_is_served_without_descriptors() {
    let mut setup = setup().server("threads = 1");
    for name in ["a.js", "a.js.gz", "a.js.br", "a.js.zst"] {
        setup = setup.file(&format!("site/{name}"), name);
    }
    let server = setup.start();
    let mut client = server.connect();
    let plain = get(HOST, "/");
    let coded = get_with("/a.js", "Accept-Encoding: gzip");
    assert_eq!(client.exchange(&plain).text(), "<p>index</p>");
    assert_eq!(client.exchange(&coded).text(), "a.js.gz");
    server.lower_descriptor_limit(5);
    for_a_while(|| {
        assert_eq!(client.exchange(&plain).text(), "<p>index</p>");
        assert_eq!(client.exchange(&coded).text(), "a.js.gz");
    });
    assert_eq!(client.exchange(get(HOST, "/a.js.zst")).status, 503, "it was never read");
    let logged = server.wait_event("file_not_sent");
    assert_eq!(logged.field("reason"), Some("out of descriptors or memory"));
    assert_eq!((logged.field("path"), logged.field("status")), (Some("/a.js.zst"), Some("503")));
}

#[test]
fn one_free_descriptor_is_enough_for_a_file_with_neighbours() {
    let mut setup = setup().server("threads = 1");
    for name in ["a.js", "a.js.gz", "a.js.br", "a.js.zst"] {
        setup = setup.file(&format!("site/{name}"), name);
    }
    let server = setup.start();
    let mut client = server.connect();
    assert_eq!(client.exchange(get(HOST, "/")).status, 200);
    server.lower_descriptor_limit(server.lowest_free_descriptor() + 1);
    for_a_while(|| {
        let answer = client.exchange(get_with("/a.js", "Accept-Encoding: br"));
        assert_eq!((answer.status, answer.text()), (200, "a.js"));
    });
    // The second descriptor is for the neighbour, whichever it is.
    server.lower_descriptor_limit(server.lowest_free_descriptor() + 2);
    let answer =
        || client.exchange(get_with("/a.js", "Accept-Encoding: zstd")).text() == "a.js.zst";
    assert!(wait_until(PATIENCE, answer));
}

/// A process that has a write lease on a file, as Samba has for its clients.
fn lease(path: &Path) -> Child {
    const HOLD: &str = "use Fcntl; $SIG{IO} = 'IGNORE'; open(my $f, '+<', $ARGV[0]) or die; \
                        fcntl($f, 1024, F_WRLCK) or die; $| = 1; print \"held\\n\"; sleep 60;";
    let mut perl = Command::new("perl");
    perl.args(["-e", HOLD]).arg(path).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = perl.spawn().expect("perl");
    let mut held = [0; 5];
    child.stdout.as_mut().expect("piped").read_exact(&mut held).expect("a lease");
    child
}

#[test]
fn a_file_under_a_lease_holds_up_no_loop_and_says_when_to_come_again() {
    if Command::new("perl").arg("-v").output().is_err() {
        eprintln!("skipped: no perl, which can take a lease");
        return;
    }
    let setup = setup().server("threads = 1").file("site/known", "known").file("site/new", "new");
    age(&setup.dir().join("site/known"));
    let server = setup.start();
    let mut client = server.connect();
    // From two seconds after a change on, an equal stamp means equal content.
    let folder = server.dir().join("site");
    let known = fs::metadata(folder.join("known")).expect("it");
    let settled = UNIX_EPOCH + Duration::from_secs(known.ctime() as u64 + 3);
    assert!(wait_until(PATIENCE, || SystemTime::now() > settled));
    assert_eq!(client.exchange(get(HOST, "/known")).text(), "known");

    let mut holders = ["known", "new"].map(|name| lease(&folder.join(name)));
    for_a_while(|| assert_eq!(client.exchange(get(HOST, "/known")).text(), "known"));
    let begun = Instant::now();
    let refused = client.exchange(get(HOST, "/new"));
    assert_eq!((refused.status, refused.field("Retry-After")), (503, Some("1")));
    assert!(begun.elapsed() < Duration::from_secs(5), "the loop waited for the holder");
    let logged = server.wait_event("file_not_sent");
    assert_eq!(logged.field("reason"), Some("another process has a lease on the file"));
    for holder in &mut holders {
        holder.kill().expect("kill");
        holder.wait().expect("wait");
    }
    assert!(wait_until(PATIENCE, || client.exchange(get(HOST, "/new")).text() == "new"));
}

#[test]
fn an_app_of_one_page_has_its_routes_and_its_files() {
    let app = "files = { root = \"site\", try = [\"{path}\", \"{path}.html\", \"/index.html\"] }";
    let server = Setup::new()
        .app(HOST, app)
        .app("list.test", "files = { root = \"site\", index = \"listing\" }")
        .file("site/index.html", "the app")
        .file("site/about.html", "about")
        .file("site/assets/a.js", "script")
        .start();
    let mut client = server.connect();
    for (path, text) in [
        ("/", "the app"),
        ("/about", "about"),
        ("/assets/a.js", "script"),
        ("/settings/profile?tab=1", "the app"),
        ("/assets/", "the app"),
    ] {
        let response = client.exchange(get(HOST, path));
        assert_eq!((response.status, response.text()), (200, text), "{path}");
    }
    let listed = client.exchange(get("list.test", "/assets/"));
    assert_eq!(listed.status, 200);
    assert!(find(&listed.body, b"<a href=\"./a.js\">a.js</a>").is_some(), "{}", listed.text());
    assert_eq!(client.exchange(get("list.test", "/assets")).status, 301);
    assert_eq!(client.exchange(get("list.test", "/")).text(), "the app");
    assert_eq!(client.exchange(get("list.test", "/none/")).status, 404);
}

#[test]
fn names_are_percent_decoded() {
    let server = setup()
        .file("site/a b.txt", "space")
        .file("site/caf\u{e9}.txt", "accent")
        .file("site/100%.txt", "percent")
        .file("site/a+b.txt", "plus")
        .file("site/q?.txt", "question")
        .start();
    let mut client = server.connect();
    for (path, text) in [
        ("/a%20b.txt", "space"),
        ("/%61%20%62.txt", "space"),
        ("/caf%C3%A9.txt", "accent"),
        ("/caf%c3%a9.txt", "accent"),
        ("/100%25.txt", "percent"),
        ("/a+b.txt", "plus"),
        ("/q%3F.txt?query", "question"),
    ] {
        let response = client.exchange(get(HOST, path));
        assert_eq!((response.status, response.text()), (200, text), "{path}");
    }
    for path in ["/100%.txt", "/a%2", "/%zz", "/%", "/a%2fb"] {
        let status = client.exchange(get(HOST, path)).status;
        assert!([400, 404].contains(&status), "{path}: {status}");
    }
}

#[test]
fn media_types_follow_the_extension() {
    let app = "files = { root = \"site\", types = { tide = \"text/x-tide\" } }";
    let names = ["a.html", "a.css", "a.js", "a.mjs", "a.json", "a.svg", "a.png", "a.wasm", "a.txt"];
    let mut setup = Setup::new().app(HOST, app);
    for name in names.iter().chain(&["a.tide", "a.unknown", "a", "a.HTML"]) {
        setup = setup.file(&format!("site/{name}"), "content");
    }
    let server = setup.start();
    let mut client = server.connect();
    for (path, kind) in [
        ("/a.html", "text/html"),
        ("/a.HTML", "text/html"),
        ("/a.css", "text/css"),
        ("/a.js", "text/javascript"),
        ("/a.mjs", "text/javascript"),
        ("/a.json", "application/json"),
        ("/a.svg", "image/svg+xml"),
        ("/a.png", "image/png"),
        ("/a.wasm", "application/wasm"),
        ("/a.txt", "text/plain"),
        ("/a.tide", "text/x-tide"),
        ("/a.unknown", "application/octet-stream"),
        ("/a", "application/octet-stream"),
    ] {
        let response = client.exchange(get(HOST, path));
        let actual = response.field("Content-Type").unwrap_or("none");
        assert_eq!(actual.split(';').next(), Some(kind), "{path}: {actual}");
    }
}

#[test]
fn only_get_and_head_reach_files() {
    let server = setup().start();
    let mut client = server.connect();
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        let response = client.exchange(format!(
            "{method} /index.html HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 0\r\n\r\n"
        ));
        assert_eq!(response.status, 405, "{method}");
        let allow = response.field("Allow").expect("Allow");
        assert!(allow.contains("GET") && allow.contains("HEAD"), "{method}: {allow}");
    }
}

#[test]
fn a_missing_page_is_the_configured_one() {
    let app = "files = { root = \"site\", not_found = \"errors/404.html\" }";
    let server = Setup::new()
        .app(HOST, app)
        .named_app("other.test")
        .file("site/errors/404.html", "not here")
        .start();
    let mut client = server.connect();
    let response = client.exchange(get(HOST, "/nothing"));
    assert_eq!((response.status, response.text()), (404, "not here"));
    // Preconditions and ranges don't apply to the 404 page.
    let ranged = client.exchange(get_with("/nothing", "Range: bytes=0-1\r\nIf-None-Match: *"));
    assert_eq!((ranged.status, ranged.text()), (404, "not here"));
    assert_eq!(client.exchange(get("other.test", "/")).text(), "other.test");
}

#[test]
fn cache_control_is_as_configured() {
    let app = "files = { root = \"site\", cache_control = \"max-age=60\" }";
    let server = Setup::new().app(HOST, app).file("site/a.txt", "a").start();
    let response = server.connect().exchange(get(HOST, "/a.txt"));
    assert_eq!(response.field("Cache-Control"), Some("max-age=60"));
}

/// A server with a file too large for any socket's buffers, and a client that began to read it.
fn large_being_sent(length: usize) -> (Server, Client) {
    let setup = setup();
    let file = File::create(setup.dir().join("site/large.bin")).expect("file");
    file.set_len(length as u64).expect("a sparse file");
    let server = setup.start();
    let mut client = Client::connect_narrow(server.address());
    client.send(get(HOST, "/large.bin"));
    client.buffer_at_least(1);
    (server, client)
}

#[test]
fn a_file_truncated_while_being_sent_ends_the_connection_short() {
    let length = 32 * MIB;
    let (server, mut client) = large_being_sent(length);
    let path = server.dir().join("site/large.bin");
    let file = OpenOptions::new().write(true).open(path).expect("file");
    file.set_len(MIB as u64).expect("truncate");
    let (received, end) = client.read_to_end();
    assert_ne!(end, End::Open);
    assert!(received.len() < length, "{} bytes", received.len());
    assert!(received.starts_with(b"HTTP/1.1 200 "));
    assert_eq!(server.connect().exchange(get(HOST, "/")).text(), "<p>index</p>");
}

#[test]
fn a_file_replaced_while_being_sent_arrives_as_the_old_one() {
    let old = pattern(20 * MIB);
    let server = setup().file("site/large.bin", &old).file("new.bin", "the new one").start();
    let mut client = Client::connect_narrow(server.address());
    client.send(get(HOST, "/large.bin"));
    client.buffer_at_least(1);
    let target = server.dir().join("site/large.bin");
    fs::rename(server.dir().join("new.bin"), target).expect("rename");
    assert!(client.response().body == old);
    let mut second = server.connect();
    let seen =
        wait_until(PATIENCE, || second.exchange(get(HOST, "/large.bin")).body == b"the new one");
    assert!(seen, "the new file isn't seen");
}

#[test]
fn a_file_removed_while_being_sent_arrives_whole() {
    let length = 20 * MIB;
    let (server, mut client) = large_being_sent(length);
    fs::remove_file(server.dir().join("site/large.bin")).expect("remove");
    assert_eq!(client.response().body.len(), length);
    let mut second = server.connect();
    let gone = wait_until(PATIENCE, || second.exchange(get(HOST, "/large.bin")).status == 404);
    assert!(gone, "the file is still there");
}

#[test]
fn a_small_file_that_changes_is_soon_seen() {
    let server = setup().file("site/page.html", "one").start();
    let mut client = server.connect();
    let first = client.exchange(get(HOST, "/page.html"));
    assert_eq!(first.text(), "one");
    for (content, text) in [("two", "two"), ("three and more", "three and more"), ("", "")] {
        fs::write(server.dir().join("site/page.html"), content).expect("write");
        let seen = wait_until(PATIENCE, || client.exchange(get(HOST, "/page.html")).text() == text);
        assert!(seen, "{text:?} isn't seen");
    }
    let last = client.exchange(get(HOST, "/page.html"));
    assert_ne!(last.field("ETag"), first.field("ETag"));
    fs::remove_file(server.dir().join("site/page.html")).expect("remove");
    let gone = wait_until(PATIENCE, || client.exchange(get(HOST, "/page.html")).status == 404);
    assert!(gone, "the file is still there");
    fs::write(server.dir().join("site/page.html"), "back").expect("write");
    let back = wait_until(PATIENCE, || client.exchange(get(HOST, "/page.html")).status == 200);
    assert!(back, "the file isn't seen again");
}
