//! Converts the path of a request into the name of a file below the root.
//!
//! Pure. Percent-escapes are decoded once, segment by segment, so a decoded slash never becomes a
//! separator. Empty segments are dropped (`//a///b` names `a/b`, as in other servers). The result
//! has no dot segments; openat2(2) would refuse to leave the root anyway.
//!
//! Refused as malformed (400): broken escapes and control bytes. Refused as not found (404):
//! segments that begin with a dot (`.`, `..` and dot files), except a first segment `.well-known`
//! (RFC 8615); escaped slashes; backslashes, which other parsers read as slashes.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use super::failure::FileFailure;

/// The bytes that a path percent-encodes: all but the unreserved characters (RFC 3986 §2.3) and the
/// slash.
const ENCODED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// A name relative to the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FilePath {
    /// Without a slash at either end; empty for the root itself.
    pub(super) relative: Vec<u8>,
    /// Whether the request's path ended with a slash and so names a directory.
    pub(super) is_directory: bool,
}

impl FilePath {
    /// Parses a request's percent-encoded path.
    pub(super) fn parse(encoded: &str) -> Result<Self, FileFailure> {
        let segments = encoded.strip_prefix('/').ok_or(FileFailure::Malformed)?;
        let mut relative = Vec::with_capacity(segments.len());
        for segment in segments.split('/').filter(|segment| !segment.is_empty()) {
            let is_first = relative.is_empty();
            if !is_first {
                relative.push(b'/');
            }
            let start = relative.len();
            decode_onto(&mut relative, segment.as_bytes())?;
            let decoded = &relative[start..];
            let is_hidden = decoded[0] == b'.' && !(is_first && decoded == b".well-known");
            if is_hidden || decoded.iter().any(|byte| matches!(byte, b'/' | b'\\')) {
                return Err(FileFailure::NotFound);
            }
        }
        Ok(Self { relative, is_directory: encoded.ends_with('/') })
    }

    /// The name of a file in this directory.
    pub(super) fn join(&self, name: &str) -> Vec<u8> {
        let separator: &[u8] = if self.relative.is_empty() { b"" } else { b"/" };
        [&self.relative, separator, name.as_bytes()].concat()
    }
}

/// A path below the root, percent-encoded as in a request.
pub(super) fn encoded(path: &str) -> impl fmt::Display {
    percent_encode(path.as_bytes(), ENCODED)
}

fn decode_onto(decoded: &mut Vec<u8>, segment: &[u8]) -> Result<(), FileFailure> {
    let mut rest = segment.iter();
    while let Some(&byte) = rest.next() {
        let byte = match byte {
            b'%' => {
                let high = hex_digit(rest.next()).ok_or(FileFailure::Malformed)?;
                let low = hex_digit(rest.next()).ok_or(FileFailure::Malformed)?;
                high << 4 | low
            }
            plain => plain,
        };
        if byte.is_ascii_control() {
            return Err(FileFailure::Malformed);
        }
        decoded.push(byte);
    }
    Ok(())
}

fn hex_digit(byte: Option<&u8>) -> Option<u8> {
    char::from(*byte?).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_that_name_a_file() {
        for (encoded, relative, is_directory) in [
            ("/", "", true),
            ("//", "", true),
            ("/a", "a", false),
            ("/a/", "a", true),
            ("/a/b.css", "a/b.css", false),
            ("//a///b", "a/b", false),
            ("/a%20b", "a b", false),
            ("/%61%2Ecss", "a.css", false),
            ("/100%25", "100%", false),
            ("/%252e%252e/a", "%2e%2e/a", false),
            ("/b%C3%BCcher", "b\u{fc}cher", false),
            ("/b\u{fc}cher", "b\u{fc}cher", false),
            ("/a..b/c.", "a..b/c.", false),
            ("/.well-known/acme-challenge/x", ".well-known/acme-challenge/x", false),
            ("/%2ewell-known/", ".well-known", true),
            ("/~user;v=1/@x:y", "~user;v=1/@x:y", false),
        ] {
            let relative = relative.as_bytes().to_vec();
            let expected = FilePath { relative, is_directory };
            assert_eq!(FilePath::parse(encoded), Ok(expected), "{encoded}");
        }
        let name = FilePath::parse("/%ff").map(|path| path.relative);
        assert_eq!(name, Ok(vec![0xff]), "names are bytes, not text");
    }

    #[test]
    fn paths_that_are_refused() {
        for encoded in ["", "*", "a", "/%", "/%4", "/%zz", "/%+1", "/a%00", "/a\0", "/%0d%0a"] {
            assert_eq!(FilePath::parse(encoded), Err(FileFailure::Malformed), "{encoded:?}");
        }
        assert_eq!(FilePath::parse("/%7f"), Err(FileFailure::Malformed));
        for encoded in [
            "/.",
            "/..",
            "/../etc/passwd",
            "/a/../b",
            "/a/..",
            "/%2e%2e/etc/passwd",
            "/.%2e/x",
            "/%2E./x",
            "/a/./b",
            "/...",
            "/.git/config",
            "/a/.htaccess",
            "/a/.well-known/x",
            "/.well-known/../x",
            "/.well-known/.x",
            "/.well-knownx",
            "/a%2fb",
            "/..%2f..%2fetc",
            "/%2F",
            "/a\\b",
            "/..\\..\\x",
            "/%5c%5cevil",
        ] {
            assert_eq!(FilePath::parse(encoded), Err(FileFailure::NotFound), "{encoded}");
        }
    }

    #[test]
    fn an_index_is_joined_to_its_directory() {
        let join = |encoded| FilePath::parse(encoded).unwrap().join("index.html");
        assert_eq!(join("/"), b"index.html");
        assert_eq!(join("/a/b/"), b"a/b/index.html");
    }

    proptest! {
        #[test]
        fn accepted_paths_stay_below_the_root(encoded in "/[./%25eEfF\\\\a0-9]{0,24}") {
            if let Ok(path) = FilePath::parse(&encoded) {
                prop_assert!(!path.relative.starts_with(b"/"));
                for segment in path.relative.split(|byte| *byte == b'/') {
                    prop_assert!(!segment.starts_with(b"."));
                    prop_assert!(!segment.is_empty() || path.relative.is_empty());
                    prop_assert!(!segment.contains(&b'\\') && !segment.contains(&0));
                }
            }
        }
    }
}
