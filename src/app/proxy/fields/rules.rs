//! What a proxy does with each field: one table per direction.
//!
//! `_` in a name counts as `-`, because CGI and similar interfaces cannot tell them apart. A known
//! field that is written with `_` is dropped, even from a trusted peer.

/// What the proxy does with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// Forwarded, unless `Connection` names it.
    Pass,
    /// Identifies the client: forwarded only from a trusted peer.
    Identity,
    /// What a client's certificate says, or the certificate (RFC 9440): forwarded only from a
    /// trusted peer, and only if this server saw no certificate itself.
    Certificate,
    /// Dropped: it is hop-by-hop, or the proxy writes its own.
    Drop,
    Connection,
    Date,
    MaxForwards,
    /// Announces trailer fields: forwarded with chunked content, which can have them.
    Trailer,
    Forwarded,
    ForwardedFor,
    ForwardedHost,
    ForwardedProto,
    RequestId,
    Upgrade,
    /// Forwarded, even if `Connection` names it.
    Via,
}

/// The rule for a field of a request.
pub(super) fn of_request(name: &str) -> Rule {
    // By length first: most fields are none of these.
    let known: &[(&str, Rule)] = match name.len() {
        2 => &[("te", Rule::Drop)],
        3 => &[("via", Rule::Via)],
        4 => &[("host", Rule::Drop), ("date", Rule::Date)],
        // CGI passes `Proxy` as HTTP_PROXY, which HTTP clients in the script would obey (httpoxy).
        5 => &[("proxy", Rule::Drop)],
        6 => &[("expect", Rule::Drop)],
        7 => &[("trailer", Rule::Trailer), ("upgrade", Rule::Upgrade)],
        9 => &[("forwarded", Rule::Forwarded), ("x-real-ip", Rule::Identity)],
        10 => &[("connection", Rule::Connection), ("keep-alive", Rule::Drop)],
        11 => &[("client-cert", Rule::Certificate)],
        12 => &[("x-request-id", Rule::RequestId), ("max-forwards", Rule::MaxForwards)],
        14 => &[("content-length", Rule::Drop), ("http2-settings", Rule::Drop)],
        15 => &[("x-forwarded-for", Rule::ForwardedFor)],
        16 => &[("x-forwarded-host", Rule::ForwardedHost)],
        17 => &[
            ("x-forwarded-proto", Rule::ForwardedProto),
            ("transfer-encoding", Rule::Drop),
            ("client-cert-chain", Rule::Certificate),
        ],
        _ => &[],
    };
    let found = known.iter().find(|(known, _)| is_like(name, known)).map(|(_, rule)| *rule);
    let rule = found.unwrap_or_else(|| {
        let begins = |start: &str| name.get(..start.len()).is_some_and(|it| is_like(it, start));
        match name.as_bytes().first() {
            Some(b'p' | b'P') if begins("proxy-") => Rule::Drop,
            Some(b'x' | b'X') if begins("x-forwarded-") => Rule::Identity,
            Some(b'x' | b'X') if begins("x-client-cert-") => Rule::Certificate,
            _ => Rule::Pass,
        }
    });
    if !matches!(rule, Rule::Pass | Rule::Drop) && name.contains('_') { Rule::Drop } else { rule }
}

/// The rule for a field of a response. Hop-by-hop fields are those of RFC 9110 §7.6.1; all others
/// are forwarded, also `Proxy-Status` and `Proxy-Authenticate`.
pub(super) fn of_response(name: &str) -> Rule {
    let known: &[(&str, Rule)] = match name.len() {
        2 => &[("te", Rule::Drop)],
        3 => &[("via", Rule::Via)],
        4 => &[("date", Rule::Date)],
        7 => &[("upgrade", Rule::Upgrade)],
        10 => &[("connection", Rule::Connection), ("keep-alive", Rule::Drop)],
        14 => &[("content-length", Rule::Drop)],
        16 => &[("proxy-connection", Rule::Drop)],
        17 => &[("transfer-encoding", Rule::Drop)],
        _ => &[],
    };
    let found = known.iter().find(|(known, _)| is_like(name, known)).map(|(_, rule)| *rule);
    match found {
        None => Rule::Pass,
        Some(Rule::Drop) => Rule::Drop,
        Some(_) if name.contains('_') => Rule::Drop,
        Some(rule) => rule,
    }
}

/// Whether a name is `known`, which is in lower case and with `-`.
pub(super) fn is_like(name: &str, known: &str) -> bool {
    let same = |(a, b): (u8, u8)| FOLDED[usize::from(a)] == b;
    name.len() == known.len() && name.bytes().zip(known.bytes()).all(same)
}

/// Each byte as it is compared: in lower case, and `_` as `-`.
const FOLDED: [u8; 256] = {
    let mut folded = [0; 256];
    let mut byte = 0;
    while byte < folded.len() {
        folded[byte] = match byte as u8 {
            b'_' => b'-',
            other => other.to_ascii_lowercase(),
        };
        byte += 1;
    }
    folded
};
