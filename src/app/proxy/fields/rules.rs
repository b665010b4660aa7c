//! What becomes of a field: one table for each direction.
//!
//! Names are compared with `_` as `-`: CGI and its kin read both as one. A known field that is
//! written so is dropped, whoever sent it.

/// What becomes of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// Goes on, unless `Connection` names it.
    Pass,
    /// Goes on from a trusted peer.
    Identity,
    /// Belongs to one connection, or is written by somebody else.
    Drop,
    Connection,
    Date,
    MaxForwards,
    /// Says which trailer fields come: goes on with content that can have some.
    Trailer,
    Forwarded,
    ForwardedFor,
    ForwardedHost,
    ForwardedProto,
    RequestId,
    Upgrade,
    /// Goes on, whatever `Connection` names.
    Via,
}

/// Of a field of a request. By length first: most fields are none of these.
pub(super) fn of_request(name: &str) -> Rule {
    let known: &[(&str, Rule)] = match name.len() {
        2 => &[("te", Rule::Drop)],
        3 => &[("via", Rule::Via)],
        4 => &[("host", Rule::Drop), ("date", Rule::Date)],
        // CGI makes HTTP_PROXY of `Proxy`, which clients there take for their own.
        5 => &[("proxy", Rule::Drop)],
        6 => &[("expect", Rule::Drop)],
        7 => &[("trailer", Rule::Trailer), ("upgrade", Rule::Upgrade)],
        9 => &[("forwarded", Rule::Forwarded), ("x-real-ip", Rule::Identity)],
        10 => &[("connection", Rule::Connection), ("keep-alive", Rule::Drop)],
        12 => &[("x-request-id", Rule::RequestId), ("max-forwards", Rule::MaxForwards)],
        14 => &[("content-length", Rule::Drop), ("http2-settings", Rule::Drop)],
        15 => &[("x-forwarded-for", Rule::ForwardedFor)],
        16 => &[("x-forwarded-host", Rule::ForwardedHost)],
        17 => &[("x-forwarded-proto", Rule::ForwardedProto), ("transfer-encoding", Rule::Drop)],
        _ => &[],
    };
    let found = known.iter().find(|(known, _)| is_like(name, known)).map(|(_, rule)| *rule);
    let rule = found.unwrap_or_else(|| {
        let begins = |start: &str| name.get(..start.len()).is_some_and(|it| is_like(it, start));
        match name.as_bytes().first() {
            Some(b'p' | b'P') if begins("proxy-") => Rule::Drop,
            Some(b'x' | b'X') if begins("x-forwarded-") => Rule::Identity,
            _ => Rule::Pass,
        }
    });
    if rule != Rule::Pass && name.contains('_') { Rule::Drop } else { rule }
}

/// Of a field of a response: what belongs to one connection is listed in RFC 9110 §7.6.1, and all
/// else goes on. `Proxy-Status` and `Proxy-Authenticate` are for the client, too.
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
        Some(_) if name.contains('_') => Rule::Drop,
        found => found.unwrap_or(Rule::Pass),
    }
}

/// Whether a name is `known`, which is in lower case and has `-`.
pub(super) fn is_like(name: &str, known: &str) -> bool {
    let same = |(a, b): (u8, u8)| a.to_ascii_lowercase() == b || (a == b'_' && b == b'-');
    name.len() == known.len() && name.bytes().zip(known.bytes()).all(same)
}
