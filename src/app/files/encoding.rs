//! The content codings of precompressed neighbours, and the choice among them (RFC 9110 §12.5.3).
//!
//! Pure. It does not allocate: it runs for every request for a file with neighbours.

use crate::http::RequestHead;

/// A content coding that a file can be stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    /// The file itself.
    Identity,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// RFC 7932.
    Brotli,
}

impl Coding {
    /// The codings that neighbours can have. Among equal weights the last is chosen.
    pub(super) const NEIGHBOURS: [Self; 3] = [Self::Gzip, Self::Zstd, Self::Brotli];

    /// The suffix that a file's name has for its neighbour in this coding.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::Identity => "",
            Self::Gzip => ".gz",
            Self::Zstd => ".zst",
            Self::Brotli => ".br",
        }
    }

    /// The name in `Content-Encoding`; `None` for the file itself.
    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
            Self::Brotli => Some("br"),
        }
    }

    fn named(token: &[u8]) -> Option<Self> {
        let is = |name: &str| token.eq_ignore_ascii_case(name.as_bytes());
        match () {
            () if is("br") => Some(Self::Brotli),
            () if is("zstd") => Some(Self::Zstd),
            () if is("gzip") || is("x-gzip") => Some(Self::Gzip),
            () if is("identity") => Some(Self::Identity),
            () => None,
        }
    }
}

/// The codings that a request's `Accept-Encoding` lines accept. The default accepts none, so the
/// file itself is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct AcceptedCodings {
    /// Weights in thousandths, by `Coding`.
    named: [Option<u16>; 4],
    /// The weight of `*`.
    others: Option<u16>,
}

impl AcceptedCodings {
    /// What a request accepts.
    pub(super) fn of(request: &RequestHead<'_>) -> Self {
        let mut accepted = Self::default();
        for line in request.fields_named("Accept-Encoding") {
            accepted.add(line);
        }
        accepted
    }

    /// Adds a field line. Malformed elements are ignored.
    fn add(&mut self, line: &[u8]) {
        for element in line.split(|byte| *byte == b',') {
            let mut parts = element.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let token = parts.next().unwrap_or_default();
            let Some(weight) = weight_of(parts) else { continue };
            if token == b"*" {
                self.others = Some(weight);
            } else if let Some(coding) = Coding::named(token) {
                self.named[coding as usize] = Some(weight);
            }
        }
    }

    /// Chooses among the file itself and its neighbours by the highest weight. Among equal weights
    /// a neighbour is preferred to the file, and br to zstd to gzip. The file itself need not be
    /// listed. It is also sent if nothing is acceptable: that helps a client more than a 406.
    pub(super) fn choose(&self, has_neighbour: impl Fn(Coding) -> bool) -> Coding {
        let mut best = (self.weight(Coding::Identity), Coding::Identity);
        for coding in Coding::NEIGHBOURS {
            let weight = self.weight(coding);
            if weight > 0 && weight >= best.0 && has_neighbour(coding) {
                best = (weight, coding);
            }
        }
        best.1
    }

    fn weight(&self, coding: Coding) -> u16 {
        self.named[coding as usize].or(self.others).unwrap_or(0)
    }
}

/// The weight among an element's parameters, in thousandths; 1000 without a weight
/// (RFC 9110 §12.4.2). `None` if a parameter is malformed.
fn weight_of<'a>(parameters: impl Iterator<Item = &'a [u8]>) -> Option<u16> {
    let mut weight = 1000;
    for parameter in parameters {
        let (b"q=" | b"Q=") = parameter.get(..2)? else { return None };
        weight = match &parameter[2..] {
            [b'0'] | [b'0', b'.'] => 0,
            [b'1'] | [b'1', b'.'] => 1000,
            [b'0', b'.', digits @ ..] if digits.len() <= 3 => thousandths(digits)?,
            [b'1', b'.', zeros @ ..] if zeros.len() <= 3 && zeros.iter().all(|b| *b == b'0') => {
                1000
            }
            _ => return None,
        };
    }
    Some(weight)
}

fn thousandths(digits: &[u8]) -> Option<u16> {
    let mut value = 0;
    for place in 0..3 {
        let digit = match digits.get(place) {
            None => 0,
            Some(byte) if byte.is_ascii_digit() => byte - b'0',
            Some(_) => return None,
        };
        value = value * 10 + u16::from(digit);
    }
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::test_support::request;

    fn choose(lines: &[&str], neighbours: &str) -> &'static str {
        let fields: Vec<_> = lines.iter().map(|line| ("accept-encoding", *line)).collect();
        let accepted = AcceptedCodings::of(&request("GET", "/", &fields));
        let has = |coding: Coding| neighbours.split(' ').any(|name| Some(name) == coding.name());
        accepted.choose(has).name().unwrap_or("identity")
    }

    #[test]
    fn the_coding_with_the_highest_weight_is_chosen() {
        for (line, chosen) in [
            ("", "identity"),
            ("gzip", "gzip"),
            ("GZIP", "gzip"),
            ("x-gzip", "gzip"),
            ("gzip, deflate, br, zstd", "br"),
            ("gzip, zstd", "zstd"),
            ("br;q=0.5, gzip", "gzip"),
            ("br;q=0.5, gzip;q=0.501", "gzip"),
            ("br;q=0, gzip", "gzip"),
            ("br;q=0.0,zstd;q=0.000", "identity"),
            ("*", "br"),
            ("*;q=0", "identity"),
            ("*;q=0, gzip", "gzip"),
            ("br;q=0, *", "zstd"),
            ("*;q=0.5, gzip;q=0.6", "gzip"),
            ("identity", "identity"),
            ("identity, gzip;q=0.5", "identity"),
            ("identity;q=0.5, gzip", "gzip"),
            ("identity, gzip", "gzip"),
            ("identity;q=0, gzip", "gzip"),
            ("identity;q=0", "identity"),
            ("gzip ; q=0.8 , br\t;\tq=0.9", "br"),
            ("deflate, compress", "identity"),
            ("gzip;q=1.000", "gzip"),
            ("gzip;q=1.", "gzip"),
            ("gzip;Q=0", "identity"),
            (",, gzip,,", "gzip"),
            ("gzip;q=1.1", "identity"),
            ("gzip;q=2, br;q=0.1", "br"),
            ("gzip;q=0.1234", "identity"),
            ("gzip;q=", "identity"),
            ("gzip;q=-1", "identity"),
            ("gzip;q=0.1x", "identity"),
            ("gzip;level=9", "identity"),
            ("\"gzip\"", "identity"),
        ] {
            assert_eq!(choose(&[line], "br zstd gzip"), chosen, "{line}");
        }
    }

    #[test]
    fn only_existing_neighbours_are_chosen() {
        assert_eq!(choose(&["gzip, br, zstd"], "gzip"), "gzip");
        assert_eq!(choose(&["gzip, br, zstd"], ""), "identity");
        assert_eq!(choose(&["*;q=1, gzip;q=0.5"], "gzip"), "identity");
        assert_eq!(choose(&["gzip", "br"], "gzip br"), "br", "lines are one list");
        assert_eq!(choose(&[], "gzip br"), "identity");
    }
}
