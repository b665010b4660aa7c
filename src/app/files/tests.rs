//! The kind as a whole, on real directories.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileExt, PermissionsExt, symlink},
    path::Path,
    sync::Arc,
    time::Duration,
};

use tempfile::TempDir;

use super::{
    cache::{IDLE_AFTER, REVALIDATE_AFTER, Resource, Variant},
    directory::{ENTRIES_MAX, Opened},
    encoding::Coding,
    representation::{FieldsSpec, MEMORY_BYTES_MAX},
    *,
};
use crate::{
    app::{
        Segment,
        test_support::{context, request},
    },
    config::Tries,
};

/// A directory, an app that serves it, and the app's time.
struct Site {
    dir: TempDir,
    app: Files,
    context: Context<'static>,
}

impl Site {
    fn new(files: &[(&str, &str)]) -> Self {
        Self::with(files, |_| {})
    }

    fn with(files: &[(&str, &str)], adapt: impl FnOnce(&mut FilesConfig)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        adapt(&mut config);
        let app = Files::open(config, 2).unwrap();
        let site = Self { dir, app, context: context() };
        for (name, content) in files {
            site.write(name, content);
        }
        site
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // By rename, as a careful deployment does it: the inode is new.
        let fresh = path.with_added_extension("tmp");
        fs::write(&fresh, content).unwrap();
        fs::rename(fresh, path).unwrap();
    }

    fn set_modified(&self, name: &str, time: SystemTime) {
        let file = File::options().write(true).open(self.dir.path().join(name)).unwrap();
        file.set_modified(time).unwrap();
    }

    fn pass(&mut self, time: Duration) {
        self.context.now += time;
    }

    fn ask(&self, method: &str, target: &str, fields: &[(&str, &str)]) -> Answer {
        Answer::from(self.app.handle(&request(method, target, fields), &self.context))
    }

    fn get(&self, target: &str) -> Answer {
        self.ask("GET", target, &[])
    }

    fn status(&self, target: &str) -> u16 {
        self.get(target).status
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, LoopFiles> {
        self.app.loops.lock(0)
    }
}

/// The answer as a client sees it.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    fields: String,
    content: String,
}

impl Answer {
    fn from(reply: Reply<'_>) -> Self {
        let (head, content) = match reply {
            Reply::Full(response) => {
                let content = response.content().to_vec();
                (response, content)
            }
            Reply::Files { head, content } => (head, content.iter().flat_map(read).collect()),
            _ => panic!("neither a response nor a file"),
        };
        Self {
            status: head.status(),
            fields: String::from_utf8(head.fields().lines().to_vec()).unwrap(),
            content: String::from_utf8(content).unwrap(),
        }
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.fields.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }
}

fn read(segment: &Segment) -> Vec<u8> {
    match segment {
        Segment::Bytes(bytes) => bytes.as_slice().to_vec(),
        Segment::File { file, offset, length } => {
            let mut content = vec![0; *length as usize];
            file.read_exact_at(&mut content, *offset).unwrap();
            content
        }
    }
}

fn config(root: &Path) -> FilesConfig {
    FilesConfig {
        root: root.to_owned(),
        index: vec!["index.html".to_owned(), "index.htm".to_owned()],
        listing: false,
        tries: Tries { endings: vec![String::new()], fallback: None },
        not_found: None,
        precompressed: true,
        cache_control: None,
        types: Vec::new(),
    }
}

fn long() -> String {
    "0123456789abcdef".repeat(MEMORY_BYTES_MAX as usize / 16 + 1)
}

#[test]
fn a_file_is_sent_with_its_fields() {
    let site =
        Site::with(&[("a.css", "body {}")], |c| c.cache_control = Some("max-age=60".to_owned()));
    let time = UNIX_EPOCH + Duration::from_nanos(784_111_777_000_000_255);
    site.set_modified("a.css", time);
    let answer = site.get("/a.css?v=1");
    assert_eq!(
        answer.fields,
        "Content-Type: text/css; charset=utf-8\r\n\
         Accept-Ranges: bytes\r\n\
         Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
         ETag: \"63df01c2a529dd3c-7\"\r\n\
         Cache-Control: max-age=60\r\n\
         Vary: Accept-Encoding\r\n"
    );
    assert_eq!((answer.status, answer.content.as_str()), (200, "body {}"));
    assert_eq!(site.get("/a.css"), answer, "from the cache");
    assert_eq!(site.ask("HEAD", "/a.css", &[]), answer, "HEAD is GET; framing cuts the content");
}

#[test]
fn small_and_empty_files_come_from_memory_and_large_ones_from_the_file() {
    let long = long();
    let site = Site::new(&[("empty", ""), ("small", "s"), ("long", &long)]);
    let max = "m".repeat(MEMORY_BYTES_MAX as usize);
    site.write("max", &max);
    for name in ["/empty", "/small", "/max"] {
        for _ in 0..2 {
            let request = request("GET", name, &[]);
            assert!(matches!(site.app.handle(&request, &site.context), Reply::Full(_)), "{name}");
        }
    }
    let mut files = Vec::new();
    for _ in 0..2 {
        match site.app.handle(&request("GET", "/long", &[]), &site.context) {
            Reply::Files { head, content } => {
                assert!(head.content().is_empty());
                let [Segment::File { file, offset: 0, length }] = &content[..] else { panic!() };
                assert_eq!(*length, long.len() as u64);
                files.push(Arc::clone(file));
            }
            _ => panic!("not from the file"),
        }
    }
    assert!(Arc::ptr_eq(&files[0], &files[1]), "the descriptor is kept");
    assert_eq!(site.get("/empty").content, "");
    assert_eq!(site.get("/long").content, long);
}

#[test]
fn a_hit_shares_what_the_cache_holds() {
    let site = Site::new(&[("index.html", "i")]);
    let address = || match site.app.handle(&request("GET", "/", &[]), &site.context) {
        Reply::Full(response) => (response.fields().lines().as_ptr(), response.content().as_ptr()),
        _ => panic!("not whole"),
    };
    assert_eq!(address(), address());
}

#[test]
fn other_methods_get_the_allowed_methods() {
    let site = Site::new(&[("a", "")]);
    for method in ["POST", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "get", "BREW"] {
        let answer = site.ask(method, "/a", &[]);
        assert_eq!(answer.status, 405, "{method}");
        assert_eq!(answer.field("Allow"), Some("GET, HEAD, OPTIONS"));
    }
    for target in ["/a", "/none", "*"] {
        let answer = site.ask("OPTIONS", target, &[]);
        assert_eq!((answer.status, answer.content.as_str()), (204, ""));
        assert_eq!(answer.fields, "Allow: GET, HEAD, OPTIONS\r\n");
    }
    assert_eq!(site.status("*"), 400);
    assert_eq!(site.status(""), 400);
}

#[test]
fn nothing_outside_and_nothing_hidden_is_sent() {
    let site = Site::new(&[
        ("secret", "s"),
        ("root/a", "a"),
        ("root/d/b", "b"),
        ("root/.env", "e"),
        ("root/.git/config", "g"),
        ("root/.well-known/security.txt", "w"),
        ("root/.well-known/.x", "x"),
    ]);
    let root = site.dir.path().join("root");
    symlink("../secret", root.join("out")).unwrap();
    symlink("d/b", root.join("in")).unwrap();
    symlink("..", root.join("up")).unwrap();
    let fifo = root.join("fifo");
    let mode = rustix::fs::Mode::RUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let app = Files::open(config(&root), 1).unwrap();
    let status =
        |target: &str| Answer::from(app.handle(&request("GET", target, &[]), &site.context)).status;
    for target in ["/a", "/in", "//d///b", "/%61", "/.well-known/security.txt"] {
        assert_eq!(status(target), 200, "{target}");
    }
    for target in [
        "/../secret",
        "/d/../../secret",
        "/d/../a",
        "/..",
        "/../",
        "/%2e%2e/secret",
        "/%2e%2e%2fsecret",
        "/..%2fsecret",
        "/..%5csecret",
        "/..\\secret",
        "/%252e%252e/secret",
        "/d/%2e%2e/%2e%2e/secret",
        "/./a",
        "/.env",
        "/%2eenv",
        "/.git/config",
        "/.git/",
        "/.well-known/.x",
        "/.well-known/../a",
        "/out",
        "/up/secret",
        "/up/root/a",
        "/fifo",
        "/a/",
        "/a/b",
        "/d%2fb",
        "/none",
        "/c:/a",
        &format!("/{}", "n".repeat(300)),
        &format!("/{}", "n/".repeat(4000)),
    ] {
        assert_eq!(status(target), 404, "{target}");
    }
    for target in ["/a%00", "/%", "/%g0", "/a%0d%0ax", "/%7f"] {
        assert_eq!(status(target), 400, "{target}");
    }
}

#[test]
fn a_directory_is_answered_with_its_index() {
    let site = Site::new(&[
        ("index.html", "root"),
        ("both/index.htm", "second"),
        ("both/index.html", "first"),
        ("later/index.htm", "second"),
        ("odd/index.html/x", ""),
        ("odd/index.htm", "second"),
        ("empty/x", ""),
    ]);
    for (target, content) in [
        ("/", "root"),
        ("//", "root"),
        ("/?q", "root"),
        ("/both/", "first"),
        ("/later/", "second"),
        ("/odd/", "second"),
    ] {
        let answer = site.get(target);
        assert_eq!((answer.status, answer.content.as_str()), (200, content), "{target}");
        assert_eq!(answer.field("Content-Type"), Some("text/html; charset=utf-8"));
    }
    assert_eq!(site.status("/empty/"), 404, "no listing");
    let types = vec![("htm".to_owned(), "text/x-old".to_owned())];
    let site = Site::with(&[("d/index.htm", "")], |config| config.types = types);
    let media_type = site.get("/d/").field("Content-Type").map(ToOwned::to_owned);
    assert_eq!(media_type.as_deref(), Some("text/x-old; charset=utf-8"));
}

#[test]
fn a_directory_without_a_slash_is_redirected_on_the_same_host() {
    let site = Site::new(&[("d/e f/x", ""), ("evil.example/x", "")]);
    for (target, location) in [
        ("/d", "/d/"),
        ("/d?a=b&c", "/d/?a=b&c"),
        ("/d?", "/d/?"),
        ("/d/e%20f", "/d/e%20f/"),
        ("//evil.example", "/evil.example/"),
        ("///evil.example?q", "/evil.example/?q"),
    ] {
        let answer = site.get(target);
        assert_eq!(answer.status, 301, "{target}");
        assert_eq!(answer.field("Location"), Some(location), "{target}");
    }
    assert_eq!(site.status("/\\evil.example"), 404);
    assert_eq!(site.status("/%5cevil.example"), 404);
    assert_eq!(site.status("/d?x\r\ny: z"), 400);
}

fn tries(endings: &[&str], fallback: Option<&str>) -> Tries {
    let endings = endings.iter().map(|ending| (*ending).to_owned()).collect();
    Tries { endings, fallback: fallback.map(ToOwned::to_owned) }
}

#[test]
fn a_missing_file_is_tried_with_endings_and_then_answered_with_the_fallback() {
    let files = [
        ("index.html", "root"),
        ("about.html", "about"),
        ("both", "plain"),
        ("both.html", "page"),
        ("d/index.html", "d"),
        ("d/e.html", "e"),
        ("bare/x.txt", "x"),
        ("d.html", "beside the folder"),
        ("app/a b.html", "app"),
        (".html", "hidden"),
    ];
    let site = Site::with(&files, |config| {
        config.tries = tries(&["", ".html"], Some("app/a b.html"));
        config.not_found = Some("both".to_owned());
    });
    for (target, status, content) in [
        ("/", 200, "root"),
        ("/about", 200, "about"),
        ("/about.html", 200, "about"),
        ("/both", 200, "plain"),
        ("/d/", 200, "d"),
        ("/d/e?x", 200, "e"),
        ("/about/", 200, "app"),
        ("/bare/", 200, "app"),
        ("/no/such/route", 200, "app"),
        ("/.html", 200, "app"),
        ("/../x", 200, "app"),
        ("/%", 400, r#"{"error":"Bad request"}"#),
    ] {
        let answer = site.get(target);
        assert_eq!((answer.status, &*answer.content), (status, content), "{target}");
    }
    assert_eq!(site.get("/d").field("Location"), Some("/d/"), "the path itself comes first");
    let html = Some("text/html; charset=utf-8");
    assert_eq!(site.get("/about").field("Content-Type"), html);
    assert_eq!(site.get("/route").field("Content-Type"), html);
    let etag = site.get("/route").field("ETag").unwrap().to_owned();
    assert_eq!(site.ask("GET", "/other", &[("If-None-Match", &etag)]).status, 304);
    assert_eq!(site.ask("POST", "/route", &[]).status, 405);

    // Any number of paths share one entry.
    let entries = site.cache().cache.held().2;
    for i in 0..100 {
        assert_eq!(site.get(&format!("/route/{i}")).content, "app");
    }
    assert_eq!(site.cache().cache.held().2, entries);

    let site = Site::with(&[("x", "x")], |config| {
        config.tries = tries(&[""], Some("none.html"));
    });
    assert_eq!(site.status("/nothing"), 404, "a missing fallback");
}

#[test]
fn neither_try_nor_a_listing_leads_out_of_the_root() {
    let site = Site::new(&[
        ("secret.html", "s"),
        ("outside/x", "x"),
        ("root/a", "a"),
        ("root/d/b", "b"),
        ("root/.git/config", "g"),
    ]);
    let root = site.dir.path().join("root");
    symlink("../secret.html", root.join("out.html")).unwrap();
    symlink("../outside", root.join("up")).unwrap();
    symlink("d", root.join("in")).unwrap();
    symlink("../secret.html", root.join("fallback")).unwrap();
    let mut config = config(&root);
    config.listing = true;
    config.tries = tries(&["", ".html"], Some("fallback"));
    let app = Files::open(config, 1).unwrap();
    let get = |target: &str| Answer::from(app.handle(&request("GET", target, &[]), &site.context));
    for target in [
        "/out",
        "/../secret",
        "/%2e%2e/secret",
        "/..%2fsecret",
        "/up/",
        "/up/x",
        "/../",
        "/..",
        "/.git/",
        "/d/../../",
        "/%2e%2e/",
        "/d/%2e%2e/%2e%2e/outside/",
        "/a/",
        "/none/",
    ] {
        assert_eq!(get(target).status, 404, "{target}");
    }
    let page = get("/");
    assert_eq!(page.status, 200);
    for (name, is_shown) in [
        ("./a\"", true),
        ("./d/", true),
        ("./in/", true),
        ("out", false),
        ("up", false),
        ("git", false),
    ] {
        assert_eq!(page.content.contains(name), is_shown, "{name} in {}", page.content);
    }
    assert!(get("/in/").content.contains("./b\""));
    assert_eq!(get("/in").field("Location"), Some("/in/"));
}

#[test]
fn a_directory_is_listed_only_if_the_config_allows_it() {
    let files = [("d/<b>&.txt", "12345"), ("d/e/f", ""), ("d/.hidden", ""), ("i/index.html", "i")];
    let mut site = Site::with(&files, |config| config.listing = true);
    assert_eq!(site.get("/i/").content, "i", "an index comes first");
    let page = site.get("/d/");
    assert_eq!((page.status, page.field("Last-Modified")), (200, None));
    assert_eq!(page.field("Content-Type"), Some("text/html; charset=utf-8"));
    let [folder, file] = ["./e/\">e/<", "./%3Cb%3E%26.txt\">&lt;b&gt;&amp;.txt</a></td><td>5</td>"]
        .map(|row| page.content.find(row).unwrap_or_else(|| panic!("{row}: {}", page.content)));
    assert!(folder < file && !page.content.contains("hidden"));
    let etag = page.field("ETag").unwrap();
    assert_eq!(site.ask("GET", "/d/", &[("If-None-Match", etag)]).status, 304);
    site.write("d/new", "");
    site.pass(REVALIDATE_AFTER);
    assert!(site.ask("GET", "/d/", &[("If-None-Match", etag)]).content.contains("./new\""));
    for i in 0..=ENTRIES_MAX {
        fs::write(site.dir.path().join(format!("d/e/{i}")), "").unwrap();
    }
    let page = site.get("/d/e/").content;
    assert_eq!(page.matches("<tr><td>").count(), 1 + ENTRIES_MAX);
    assert!(page.contains("ends after 1000 entries"));
    let site = Site::with(&[("d/a", "")], |config| config.index = Vec::new());
    assert_eq!(site.status("/d/"), 404, "off");
}

#[test]
fn the_404_page_has_a_type_and_no_validators() {
    let page = |site: &mut Site| site.app.config.not_found = Some("/404.html".to_owned());
    let mut site = Site::new(&[("a", "")]);
    let built_in = site.get("/none");
    assert_eq!((built_in.status, built_in.content.as_str()), (404, r#"{"error":"Not found"}"#));
    assert_eq!(built_in.fields, "Content-Type: application/json\r\n");
    page(&mut site);
    assert_eq!(site.get("/none"), built_in, "a missing page");

    site.write("404.html", "gone");
    let fields = [("If-None-Match", "*"), ("Range", "bytes=0-0"), ("If-Match", "\"x\"")];
    for target in ["/none", "/.hidden", "/none/", "/n%2fn"] {
        let answer = site.ask("GET", target, &fields);
        assert_eq!((answer.status, answer.content.as_str()), (404, "gone"), "{target}");
        assert_eq!(answer.fields, "Content-Type: text/html; charset=utf-8\r\n");
    }
    assert_eq!(site.status("/404.html"), 200, "it is an ordinary file");
    site.write("404.html", &long());
    site.pass(REVALIDATE_AFTER);
    assert_eq!(site.get("/none").content, long());
    fs::remove_file(site.dir.path().join("404.html")).unwrap();
    site.pass(REVALIDATE_AFTER);
    assert_eq!(site.get("/none"), built_in);
}

#[test]
fn the_accepted_neighbour_is_sent() {
    let site = Site::new(&[
        ("a.css", "plain"),
        ("a.css.br", "brotli"),
        ("a.css.gz", "gzip"),
        ("index.html", "plain"),
        ("index.html.zst", "zstd"),
        ("alone.js", "plain"),
    ]);
    for (target, accept, content, coding) in [
        ("/a.css", "", "plain", None),
        ("/a.css", "gzip", "gzip", Some("gzip")),
        ("/a.css", "gzip, br, zstd", "brotli", Some("br")),
        ("/a.css", "zstd", "plain", None),
        ("/a.css", "gzip;q=0, br;q=0", "plain", None),
        ("/", "gzip, zstd", "zstd", Some("zstd")),
        ("/alone.js", "gzip, br", "plain", None),
    ] {
        let answer = site.ask("GET", target, &[("accept-encoding", accept)]);
        assert_eq!((answer.status, answer.content.as_str()), (200, content), "{target} {accept}");
        assert_eq!(answer.field("Content-Encoding"), coding);
        assert_eq!(answer.field("Vary"), Some("Accept-Encoding"));
        let etag = answer.field("ETag").unwrap();
        assert!(coding.is_none_or(|coding| etag.ends_with(&format!("-{coding}\""))), "{etag}");
        let media_type = answer.field("Content-Type").unwrap();
        assert!(media_type.starts_with("text/"), "{media_type}");
        let fields = [("Accept-Encoding", accept), ("If-None-Match", etag)];
        let unchanged = site.ask("GET", target, &fields);
        assert_eq!((unchanged.status, unchanged.field("ETag")), (304, Some(etag)));
        assert_eq!(unchanged.field("Vary"), Some("Accept-Encoding"));
    }
    let itself = site.ask("GET", "/a.css.gz", &[("Accept-Encoding", "gzip")]);
    assert_eq!(itself.field("Content-Type"), Some("application/gzip"));
    assert_eq!((itself.field("Content-Encoding"), itself.field("Vary")), (None, None));
}

#[test]
fn neighbours_that_are_old_or_not_accepted_are_not_sent() {
    let site = Site::new(&[("a.css", "plain"), ("a.css.gz", "gzip")]);
    let ask = |site: &Site| site.ask("GET", "/a.css", &[("Accept-Encoding", "gzip")]).content;
    let time = UNIX_EPOCH + Duration::from_millis(1_000_000_900);
    site.set_modified("a.css", time);
    site.set_modified("a.css.gz", time - Duration::from_millis(899));
    assert_eq!(ask(&site), "gzip", "a time without its fraction is not older");
    let mut site = site;
    site.set_modified("a.css.gz", time - Duration::from_secs(1));
    site.pass(REVALIDATE_AFTER);
    assert_eq!(ask(&site), "plain");
    let site = Site::with(&[("a.css", "plain"), ("a.css.gz", "gzip")], |config| {
        config.precompressed = false;
    });
    assert_eq!(ask(&site), "plain");
    assert_eq!(site.get("/a.css").field("Vary"), None);
}

#[test]
fn conditions_come_before_ranges() {
    let site = Site::with(&[("a", "0123456789")], |config| {
        config.cache_control = Some("no-cache".to_owned());
    });
    site.set_modified("a", UNIX_EPOCH + Duration::from_secs(784_111_777));
    let date = "Sun, 06 Nov 1994 08:49:37 GMT";
    let answer = site.get("/a");
    let etag = answer.field("ETag").unwrap();
    let range = ("Range", "bytes=2-3");
    for (fields, status, content) in [
        (&[("If-None-Match", etag)][..], 304, ""),
        (&[("If-Modified-Since", date)], 304, ""),
        (&[("If-None-Match", etag), range], 304, ""),
        (&[("If-Match", "\"x\""), range], 412, r#"{"error":"Precondition failed"}"#),
        (&[("If-Match", etag), range], 206, "23"),
        (&[("If-Range", etag), range], 206, "23"),
        (&[("If-Range", date), range], 200, "0123456789"),
        (&[("If-Range", "\"x\""), range], 200, "0123456789"),
        (&[("If-Range", "\"x\""), ("Range", "bytes=99-")], 200, "0123456789"),
        (&[("If-Range", "\"x\"")], 200, "0123456789"),
        (&[range, range], 200, "0123456789"),
    ] {
        let answer = site.ask("GET", "/a", fields);
        assert_eq!((answer.status, answer.content.as_str()), (status, content), "{fields:?}");
        if status == 304 {
            let kept =
                format!("ETag: {etag}\r\nCache-Control: no-cache\r\nVary: Accept-Encoding\r\n");
            assert_eq!(answer.fields, kept);
        }
    }
    assert_eq!(site.ask("HEAD", "/a", &[range]).status, 200, "only GET has ranges");
}

#[test]
fn one_range_is_a_part_with_the_fields_of_the_whole() {
    let long = long();
    let site = Site::new(&[("small", "0123456789"), ("long", &long), ("a.gz", ""), ("a", "xy")]);
    for (target, whole) in [("/small", "0123456789"), ("/long", &long)] {
        let fields = site.get(target).fields;
        let answer = site.ask("GET", target, &[("Range", "bytes=-4")]);
        let (first, last) = (whole.len() - 4, whole.len() - 1);
        assert_eq!((answer.status, answer.content.as_str()), (206, &whole[first..]));
        let range = format!("Content-Range: bytes {first}-{last}/{}\r\n", whole.len());
        assert_eq!(answer.fields, fields + &range);
        let answer = site.ask("GET", target, &[("Range", "bytes=99999999-")]);
        assert_eq!(answer.status, 416);
        let range = format!("bytes */{}", whole.len());
        assert_eq!(answer.field("Content-Range"), Some(range.as_str()));
    }
    let empty = site.ask("GET", "/a", &[("Range", "bytes=0-"), ("Accept-Encoding", "gzip")]);
    assert_eq!((empty.status, empty.field("Content-Encoding")), (200, Some("gzip")));
}

#[test]
fn several_ranges_are_a_multipart() {
    let long = long();
    let site = Site::new(&[("small.txt", "0123456789"), ("long.txt", &long)]);
    for (target, length) in [("/small.txt", 10), ("/long.txt", long.len())] {
        let answer = site.ask("GET", target, &[("Range", "bytes=0-1,9-9, 5-6,99999999-")]);
        assert_eq!(answer.status, 206);
        let media_type = answer.field("Content-Type").unwrap();
        let boundary = media_type.strip_prefix("multipart/byteranges; boundary=").unwrap();
        assert_eq!(answer.fields.matches("Content-Type").count(), 1);
        assert_eq!(answer.field("Content-Range"), None);
        assert!(answer.field("ETag").is_some() && answer.field("Accept-Ranges").is_some());
        let part = |range: &str, content: &str| {
            format!(
                "--{boundary}\r\nContent-Type: text/plain; charset=utf-8\r\n\
                 Content-Range: bytes {range}/{length}\r\n\r\n{content}\r\n"
            )
        };
        let parts = [part("0-1", "01"), part("9-9", "9"), part("5-6", "56")].concat();
        assert_eq!(answer.content, format!("{parts}--{boundary}--\r\n"));
    }
}

#[test]
fn a_coded_neighbour_has_single_ranges_of_its_own() {
    let site = Site::new(&[("a", "0123456789"), ("a.gz", "abcde")]);
    let ask = |range| site.ask("GET", "/a", &[("Accept-Encoding", "gzip"), ("Range", range)]);
    let answer = ask("bytes=1-2");
    assert_eq!((answer.status, answer.content.as_str()), (206, "bc"));
    assert_eq!(answer.field("Content-Encoding"), Some("gzip"));
    assert_eq!(answer.field("Content-Range"), Some("bytes 1-2/5"));
    assert_eq!(ask("bytes=0-0,2-2").status, 200, "the coding of a multipart would be ambiguous");
}

#[test]
fn changes_show_after_a_second() {
    let mut site = Site::new(&[("a", "one"), ("d/index.htm", "second")]);
    let ask = |site: &Site, target| {
        let answer = site.ask("GET", target, &[("Accept-Encoding", "gzip")]);
        (answer.status, answer.content)
    };
    let seen = |content: &str| (200, content.to_owned());
    assert_eq!(ask(&site, "/a"), seen("one"));
    assert_eq!(ask(&site, "/d/"), seen("second"));
    site.write("a", "two");
    site.write("d/index.html", "first");
    site.pass(REVALIDATE_AFTER - Duration::from_millis(1));
    assert_eq!(ask(&site, "/a"), seen("one"), "valid for a second");
    assert_eq!(ask(&site, "/d/"), seen("second"));
    site.pass(Duration::from_millis(1));
    assert_eq!(ask(&site, "/a"), seen("two"), "replaced");
    assert_eq!(ask(&site, "/d/"), seen("first"), "a better index appeared");
    fs::write(site.dir.path().join("a"), "2wo").unwrap();
    site.write("a.gz", "zipped");
    site.pass(REVALIDATE_AFTER);
    assert_eq!(ask(&site, "/a"), seen("zipped"), "a neighbour appeared");
    assert_eq!(site.get("/a").content, "2wo", "changed in place, to the same length");
    fs::remove_file(site.dir.path().join("a.gz")).unwrap();
    fs::remove_file(site.dir.path().join("d/index.html")).unwrap();
    site.pass(REVALIDATE_AFTER);
    assert_eq!(ask(&site, "/a"), seen("2wo"), "the neighbour vanished");
    assert_eq!(ask(&site, "/d/"), seen("second"), "the index vanished");
    fs::remove_file(site.dir.path().join("a")).unwrap();
    site.pass(REVALIDATE_AFTER);
    assert_eq!(ask(&site, "/a").0, 404, "vanished");
    site.write("a", "again");
    assert_eq!(ask(&site, "/a"), seen("again"), "a 404 is not cached");
}

#[test]
fn a_large_file_that_grows_or_shrinks_is_sent_completely() {
    let mut site = Site::new(&[("log", &long())]);
    let length = long().len();
    assert_eq!(site.get("/log").content.len(), length);
    let grown = long() + "more";
    fs::write(site.dir.path().join("log"), &grown).unwrap();
    assert_eq!(site.get("/log").content.len(), length, "the announced length");
    site.pass(REVALIDATE_AFTER);
    assert_eq!(site.get("/log").content, grown);
    fs::write(site.dir.path().join("log"), "short").unwrap();
    site.pass(REVALIDATE_AFTER);
    assert_eq!(site.get("/log").content, "short");
}

#[test]
fn unchanged_content_is_not_read_again_once_it_is_settled() {
    let site = Site::new(&[("a", "one")]);
    let opened = || site.app.root.open_file(b"a").unwrap();
    let spec = FieldsSpec {
        media_type: "text/plain",
        cache_control: None,
        is_negotiated: false,
        is_error_page: false,
    };
    for (later_s, is_kept) in [(0, false), (1, false), (3, true)] {
        let Opened::Regular(Some(file), stamp) = opened() else { panic!("no file") };
        let wall_s = seconds(SystemTime::now()) + later_s;
        let loaded = Representation::load(file, stamp, Coding::Identity, &spec, wall_s).unwrap();
        let variant = Variant { coding: Coding::Identity, stamp, loaded: Some(loaded) };
        let known = Resource::new(vec![variant]);
        assert_eq!(known.unchanged(Coding::Identity, &stamp).is_some(), is_kept, "{later_s} s");
    }
}

#[test]
fn dates_that_mean_nothing_or_cannot_be_expressed_are_left_out() {
    let site = Site::new(&[("a", "a")]);
    for time in [
        SystemTime::now() + Duration::from_secs(3600),
        UNIX_EPOCH - Duration::from_secs(3600),
        UNIX_EPOCH + Duration::from_secs(253_402_300_800),
    ] {
        site.set_modified("a", time);
        site.cache().cache.forget("/a");
        let answer = site.get("/a");
        assert_eq!((answer.status, answer.field("Last-Modified")), (200, None), "{time:?}");
        let tomorrow = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(86400));
        let fields = [("If-Modified-Since", tomorrow.as_str())];
        assert_eq!(site.ask("GET", "/a", &fields).status, 200, "{time:?}");
        assert_eq!(
            site.ask("GET", "/a", &[("If-None-Match", answer.field("ETag").unwrap())]).status,
            304
        );
    }
}

#[test]
fn the_cache_stays_within_its_bounds() {
    let mut site = Site::new(&[("index.html", "i"), ("long", &long())]);
    for i in 0..200 {
        site.write(&format!("f{i}"), &"x".repeat(MEMORY_BYTES_MAX as usize - i));
        let name = site.dir.path().join(format!("l{i}"));
        fs::hard_link(site.dir.path().join("long"), name).unwrap();
    }
    for i in 0..200 {
        assert_eq!(site.status("/"), 200);
        assert_eq!(site.status(&format!("/f{i}")), 200);
        assert_eq!(site.status(&format!("/l{i}")), 200);
        let state = site.cache();
        let (memory_bytes, open_files, entries) = state.cache.held();
        assert!(memory_bytes <= 8 << 20 && open_files <= 128 && entries <= 2048);
    }
    assert!(site.cache().cache.last_known("/").is_some(), "an entry in use stays");
    assert!(site.cache().cache.last_known("/f0").is_none());
    assert!(site.cache().cache.last_known("/l0").is_none());
    assert!(site.cache().cache.last_known("/l199").is_some());
    for i in 0..3000 {
        assert_eq!(site.status(&format!("/{}index.html", "/".repeat(i % 900))), 200);
    }
    assert!(site.cache().cache.held().2 <= 2048);
    site.cache().cache.forget_open_files();
    assert_eq!(site.cache().cache.held().1, 0);
    site.pass(IDLE_AFTER);
    site.app.release_idle(0, site.context.now);
    assert_eq!(site.cache().cache.held(), (0, 0, 0));
    assert_eq!(site.status("/"), 200);
}

#[test]
fn loops_do_not_share_a_cache() {
    let mut site = Site::new(&[("a", "one")]);
    assert_eq!(site.get("/a").content, "one");
    site.write("a", "two");
    site.context.loop_index = 1;
    assert_eq!(site.get("/a").content, "two");
}

#[test]
fn a_root_that_is_switched_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for release in ["1", "2"] {
        fs::create_dir(at(release)).unwrap();
        fs::write(at(release).join("a"), release).unwrap();
    }
    symlink("1", at("current")).unwrap();
    let app = Files::open(config(&at("current")), 1).unwrap();
    let mut site = Site { dir, app, context: context() };
    assert_eq!(site.get("/a").content, "1");
    symlink("2", site.dir.path().join("next")).unwrap();
    fs::rename(site.dir.path().join("next"), site.dir.path().join("current")).unwrap();
    site.pass(REVALIDATE_AFTER);
    assert_eq!(site.get("/a").content, "2");
    fs::remove_file(site.dir.path().join("current")).unwrap();
    site.pass(REVALIDATE_AFTER);
    assert_eq!(site.get("/a").content, "2", "in the middle of a switch");
}

/// Sets the modification time, as rsync -t, tar, npm and reproducible builds do.
fn write_with_time(path: &Path, content: &str, time: SystemTime) {
    let fresh = path.with_added_extension("tmp");
    fs::write(&fresh, content).unwrap();
    File::options().write(true).open(&fresh).unwrap().set_modified(time).unwrap();
    fs::rename(fresh, path).unwrap();
}

#[test]
fn other_content_of_the_same_size_and_time_has_another_tag() {
    let time = UNIX_EPOCH + Duration::from_secs(1_577_836_800);
    for repeat in [1, MEMORY_BYTES_MAX as usize] {
        let mut site = Site::new(&[]);
        // Long enough after the change that a large file's tag is strong.
        site.context.wall += Duration::from_secs(60);
        let path = site.dir.path().join("x.txt");
        write_with_time(&path, &"aaaa".repeat(repeat), time);
        let old = site.get("/x.txt");
        let etag = old.field("ETag").unwrap();
        assert!(etag.starts_with('"'), "{etag}");
        assert_eq!(site.ask("GET", "/x.txt", &[("If-None-Match", etag)]).status, 304);
        let range = ("Range", "bytes=2-3");
        assert_eq!(site.ask("GET", "/x.txt", &[("If-Range", etag), range]).status, 206);

        write_with_time(&path, &"bbbb".repeat(repeat), time);
        site.pass(REVALIDATE_AFTER);
        let new = site.ask("GET", "/x.txt", &[("If-None-Match", etag)]);
        assert_eq!((new.status, &new.content[..4]), (200, "bbbb"));
        let date = old.field("Last-Modified").unwrap();
        for validator in [etag, date] {
            let whole = site.ask("GET", "/x.txt", &[("If-Range", validator), range]);
            assert_eq!(whole.status, 200, "{validator} splices two contents");
        }
    }
}

#[test]
fn a_large_file_that_may_still_change_has_a_weak_tag() {
    let mut site = Site::new(&[("long", &long())]);
    let range = ("Range", "bytes=2-3");
    let young = site.get("/long");
    let etag = young.field("ETag").unwrap();
    assert!(etag.starts_with("W/"), "{etag}");
    assert_eq!(site.ask("GET", "/long", &[("If-Range", etag), range]).status, 200);
    site.pass(REVALIDATE_AFTER);
    site.context.wall += Duration::from_secs(60);
    let settled = site.get("/long");
    let strong = settled.field("ETag").unwrap();
    assert!(strong.starts_with('"'), "{strong}");
    assert_eq!(site.ask("GET", "/long", &[("If-None-Match", etag)]).status, 200);
    assert_eq!(site.ask("GET", "/long", &[("If-Range", strong), range]).status, 206);
}

#[test]
fn builds_with_the_same_time_have_different_tags_when_the_root_is_switched() {
    // nix, ostree and images: 0 or 1; npm: 1985.
    for (time_s, is_dated) in [(0, false), (1, false), (499_162_500, true)] {
        let time = UNIX_EPOCH + Duration::from_secs(time_s);
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (build, page) in [("1", "app.aaaa.js"), ("2", "app.bbbb.js")] {
            fs::create_dir(at(build)).unwrap();
            write_with_time(&at(build).join("index.html"), page, time);
            write_with_time(&at(build).join("index.html.gz"), &format!("gz {page}"), time);
            write_with_time(&at(build).join("same.txt"), "same", time);
        }
        symlink("1", at("current")).unwrap();
        let app = Files::open(config(&at("current")), 1).unwrap();
        let mut site = Site { dir, app, context: context() };
        let ask = |site: &Site, target, coding, etag: &str| {
            site.ask("GET", target, &[("Accept-Encoding", coding), ("If-None-Match", etag)])
        };
        let tags = ["identity", "gzip"].map(|coding| {
            let answer = ask(&site, "/", coding, "\"none\"");
            assert_eq!(answer.field("Last-Modified").is_some(), is_dated, "{time_s}");
            answer.field("ETag").unwrap().to_owned()
        });
        assert_ne!(tags[0], tags[1]);
        let same = site.get("/same.txt").field("ETag").unwrap().to_owned();
        let dated = [("If-Modified-Since", "Thu, 01 Jan 1970 00:00:01 GMT")];
        assert_eq!(site.ask("GET", "/", &dated).status, 200);

        symlink("2", site.dir.path().join("next")).unwrap();
        fs::rename(site.dir.path().join("next"), site.dir.path().join("current")).unwrap();
        site.pass(REVALIDATE_AFTER);
        for (coding, tag) in ["identity", "gzip"].into_iter().zip(&tags) {
            let answer = ask(&site, "/", coding, tag);
            assert_eq!(answer.status, 200, "{coding}");
            assert!(answer.content.ends_with("app.bbbb.js"), "{coding}: {}", answer.content);
        }
        assert_eq!(ask(&site, "/same.txt", "gzip", &same).status, 304, "the same content");
    }
}

#[test]
fn a_root_that_cannot_be_served_is_an_error_at_load() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none");
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let closed = dir.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o0)).unwrap();
    for (root, reason) in
        [(&missing, "no such directory"), (&file, "not a directory"), (&closed, "not readable")]
    {
        // Root may read everything.
        if *root == closed && rustix::process::geteuid().is_root() {
            continue;
        }
        let error =
            crate::app::load(&crate::config::AppKind::Files(config(root)), 1).err().unwrap();
        assert_eq!(error.to_string(), format!("{}: {reason}", root.display()));
        assert_eq!(error.path(), Some(&**root));
    }
}

#[test]
fn a_file_without_permission_is_forbidden() {
    if rustix::process::geteuid().is_root() {
        return;
    }
    let site = Site::new(&[("a", ""), ("d/b", ""), ("c", "plain"), ("c.gz", "")]);
    for name in ["a", "d", "c.gz"] {
        let path = site.dir.path().join(name);
        fs::set_permissions(path, fs::Permissions::from_mode(0o0)).unwrap();
    }
    assert_eq!((site.status("/a"), site.status("/d/b")), (403, 403));
    assert_eq!(site.ask("GET", "/c", &[("Accept-Encoding", "gzip")]).content, "plain");
    let path = site.dir.path().join("d");
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn a_file_of_procfs_is_sent_with_the_size_that_it_has() {
    // procfs reports a size of 0.
    let app = Files::open(config(Path::new("/proc")), 1).unwrap();
    let answer = Answer::from(app.handle(&request("GET", "/version", &[]), &context()));
    assert_eq!((answer.status, answer.content.as_str()), (200, ""));
    let answer =
        Answer::from(app.handle(&request("GET", "/self/root/etc/passwd", &[]), &context()));
    assert_eq!(answer.status, 404);
    let error = io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error());
    let errno = rustix::io::Errno::from_io_error(&error).unwrap();
    assert_eq!(FileFailure::from(errno), FileFailure::Broken(errno));
}
