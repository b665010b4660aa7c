//! The fields that a proxy writes: what goes to the upstream is one request that any server reads
//! alike, with nothing in it of the connection, and with the client that was really there; what
//! goes back to the client is as clear.

use std::{
    path::Path,
    sync::OnceLock,
    time::{Instant, SystemTime},
};

use tidegate::{
    app::{App, Context, Peer, Proxy, Reply, Scheme},
    config::{AppKind, Config},
    http::{
        FieldTable, Limits, RequestHead, ResponseHead, ServerEvent,
        h1::{self, ClientEvent},
    },
};

use super::{oracle::Head, upstream_response::Asked};

/// What belongs to one connection, or says who asks.
const OF_CONNECTION: &[&str] = &[
    "connection",
    "keep-alive",
    "te",
    "transfer-encoding",
    "content-length",
    "expect",
    "proxy",
    "proxy-connection",
    "proxy-authorization",
    "http2-settings",
    "trailer",
];

pub fn check(data: &[u8]) {
    let Some((&[choice], wire)) = data.split_first_chunk() else { return };
    let limits = super::limits(0);
    let mut fields = FieldTable::new();
    if let (_, ServerEvent::Request(_, request, None)) =
        h1::Server::new().next_event(wire, &mut fields, &limits)
    {
        check_request(&request, choice);
    }
    let mut fields = FieldTable::new();
    let mut exchange = Asked::Upgrade.begin();
    match exchange.next_event(wire, &mut fields, &limits).1 {
        ClientEvent::Response(head) | ClientEvent::Interim(head) => check_response(&head),
        _ => {}
    }
}

/// Proxies that trust nobody, or the peer; each way of choosing and of writing Host.
fn proxies() -> &'static [Proxy] {
    static PROXIES: OnceLock<Vec<Proxy>> = OnceLock::new();
    let open = |more: &&str| {
        let text = format!("[apps.a.proxy]\nupstreams = [\"http://127.0.0.1:1\"]\n{more}\n");
        let config = Config::parse(&text, Path::new("config.toml"), Path::new("/"));
        let mut config = config.unwrap_or_else(|error| panic!("{error}"));
        let AppKind::Proxy(config) = config.apps.remove(0).kind else { panic!("another kind") };
        Proxy::open(*config, 1).expect("no file is read")
    };
    let trusted = "trusted_proxies = [\"::1\"]";
    PROXIES.get_or_init(|| {
        [
            "",
            &*format!("{trusted}\nbalance = \"hash\"\nhash_by = \"client\""),
            &*format!(
                "{trusted}\nbalance = \"hash\"\nhash_by = \"cookie:sid\"\nhost = \"upstream\""
            ),
            "host = \"fixed.example\"\nbalance = \"hash\"\nhash_by = \"header:X-Key\"",
        ]
        .iter()
        .map(open)
        .collect()
    })
}

fn check_request(request: &RequestHead<'_>, choice: u8) {
    let which = usize::from(choice % 4);
    let peer = Peer::Tcp("[::1]:40000".parse().expect("an address"));
    let (now, wall) = (Instant::now(), SystemTime::now());
    let context = Context {
        loop_index: 0,
        now,
        wall,
        peer,
        scheme: Scheme::Http,
        client_certificate: None,
        request_id: None,
    };
    let forward = match proxies()[which].handle(request, &context) {
        Reply::Forward(forward) => forward,
        Reply::Full(response) => {
            return assert!([204, 400, 508].contains(&response.status()));
        }
        _ => panic!("another reply"),
    };
    let bytes = [&forward.upstream_head()[..], b"\r\n"].concat();
    let head = Head::read(&bytes);
    let start_line = str::from_utf8(head.start_line).expect("a request line in ASCII");
    let target = match request.query() {
        Some(query) => format!("{}?{query}", request.path()),
        None => request.path().to_owned(),
    };
    let method = request.method().as_str();
    let lines = [format!("{method} {target} HTTP/1.1"), "OPTIONS * HTTP/1.1".to_owned()];
    assert!(lines.iter().any(|line| line == start_line), "{start_line}");
    // Our own server takes it for a request with the same host, and keeps the connection.
    let (mut fields, mut exchange) = (FieldTable::new(), h1::Server::new());
    // What the proxy adds may exceed the limits of what came.
    let limits = Limits { head_bytes: bytes.len(), ..super::limits(3) };
    match exchange.next_event(&bytes, &mut fields, &limits).1 {
        ServerEvent::Request(_, again, None) => assert_eq!(again.method(), request.method()),
        event => panic!("{event:?}: {}", bytes.escape_ascii()),
    }
    assert_eq!(head.all("host").len(), 1);
    check_names(request, &head, forward.asks_upgrade());
    check_origin(request, &head, [1, 2].contains(&which));
}

/// Nothing that belongs to the client's connection goes on, in any spelling. What says who asks is
/// not lost because `Connection` names it: a client could hide itself so.
fn check_names(request: &RequestHead<'_>, head: &Head<'_>, is_upgrade: bool) {
    let own = |name: &str| {
        let always =
            ["host", "via", "date", "forwarded", "x-request-id", "max-forwards", "upgrade"];
        let identity = name == "x-real-ip" || name.starts_with("x-forwarded-");
        always.contains(&name) || identity
    };
    let named: Vec<_> = request
        .fields_named("connection")
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(|option| option.trim_ascii().to_ascii_lowercase())
        .collect();
    for (name, _) in &head.fields {
        let lower = name.to_ascii_lowercase();
        let spelt = lower.replace('_', "-");
        let is_trailer = spelt == "trailer" && !lower.contains('_');
        let is_chunked = request.content() == tidegate::http::RequestContent::Chunked;
        assert!(!OF_CONNECTION.contains(&&*spelt) || (is_trailer && is_chunked), "{name}");
        assert!(!spelt.starts_with("proxy-"), "{name}");
        assert!(lower == spelt || !own(&spelt), "{name}");
        assert!(own(&lower) || !named.iter().any(|option| option == lower.as_bytes()), "{name}");
    }
    let upgrades = head.all("upgrade");
    assert_eq!(upgrades, if is_upgrade { vec![&b"websocket"[..]] } else { vec![] });
}

/// Who asks: the peer, behind what it says if it is trusted.
fn check_origin(request: &RequestHead<'_>, head: &Head<'_>, is_trusted: bool) {
    for name in ["x-forwarded-for", "x-forwarded-proto", "forwarded", "x-request-id"] {
        assert_eq!(head.all(name).len(), 1, "{name}");
    }
    assert!(head.all("x-forwarded-host").len() <= 1);
    let hops = head.list("x-forwarded-for");
    assert_eq!(hops.last().map(Vec::as_slice), Some(&b"::1"[..]));
    let forwarded = head.all("forwarded")[0];
    let own_part = b"for=\"[::1]\"";
    let own_at = forwarded.windows(own_part.len()).rposition(|part| part == own_part);
    assert!(
        own_at.is_some() && forwarded.ends_with(b";proto=http"),
        "{}",
        forwarded.escape_ascii()
    );
    if is_trusted {
        return;
    }
    assert_eq!((hops.len(), own_at), (1, Some(0)));
    assert_eq!(head.all("x-forwarded-proto"), [b"http"]);
    let id = head.all("x-request-id")[0];
    assert!(id.len() == 16 && id.iter().all(u8::is_ascii_hexdigit), "{}", id.escape_ascii());
    let host = request.host().map(|host| host.name().to_ascii_lowercase());
    let told = head.all("x-forwarded-host").first().map(|host| host.to_ascii_lowercase());
    let same = told
        .as_deref()
        .is_none_or(|told| host.as_deref().is_some_and(|host| told.starts_with(host.as_bytes())));
    assert!(same, "{told:?} {host:?}");
    assert!(head.all("x-real-ip").is_empty());
}

fn check_response(response: &ResponseHead<'_>) {
    let status = response.status();
    let (fields, has_date) = Proxy::response_fields(response);
    let bytes = [format!("HTTP/1.1 {status} X\r\n").as_bytes(), &fields, b"\r\n"].concat();
    let head = Head::read(&bytes);
    assert_eq!(head.all("date").len(), usize::from(has_date));
    let offers = status == 426 && !head.all("upgrade").is_empty();
    if offers {
        assert_eq!(head.all("upgrade"), [b"websocket"]);
    }
    assert_eq!(head.list("connection"), if offers { vec![b"upgrade".to_vec()] } else { vec![] });
    assert!([101, 426].contains(&status) || head.all("upgrade").is_empty());
    for (name, _) in &head.fields {
        let spelt = name.to_ascii_lowercase().replace('_', "-");
        let dropped =
            ["keep-alive", "te", "transfer-encoding", "content-length", "proxy-connection"];
        assert!(!dropped.contains(&&*spelt), "{name}");
    }
    let via = head.all("via");
    assert!(via.last().is_some_and(|via| via.ends_with(b" tidegate")));
    // All else is there, in order.
    let named: Vec<_> = response
        .fields_named("connection")
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(|option| option.trim_ascii().to_ascii_lowercase())
        .collect();
    let ends_here = |name: &str| {
        let spelt = name.to_ascii_lowercase().replace('_', "-");
        let known = ["connection", "keep-alive", "te", "upgrade", "date", "via"];
        let framing = ["transfer-encoding", "content-length", "proxy-connection"];
        known.contains(&&*spelt)
            || framing.contains(&&*spelt)
            || named.contains(&name.to_ascii_lowercase().into_bytes())
    };
    let expected: Vec<_> = response.fields().filter(|(name, _)| !ends_here(name)).collect();
    let passed: Vec<_> = head.fields.iter().copied().filter(|(name, _)| !ends_here(name)).collect();
    assert_eq!(passed, expected);
}
