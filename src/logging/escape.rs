//! Escapes values for log lines: what a peer sends can't end a line or look like another line.
//!
//! Pure: bytes in, text out. Every function appends to `out`, and none can fail.

use std::io::Write as _;

/// Appends a quoted JSON string. Bytes that are not UTF-8 become U+FFFD, like in
/// [`String::from_utf8_lossy`]. Characters that are [`is_deceptive`] are escaped.
pub(super) fn push_json_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    if all_plain(bytes) {
        out.extend_from_slice(bytes);
    } else {
        for chunk in bytes.utf8_chunks() {
            push_json_text(out, chunk.valid());
            if !chunk.invalid().is_empty() {
                out.extend_from_slice("\u{fffd}".as_bytes());
            }
        }
    }
    out.push(b'"');
}

/// Appends the value of `key=value` in a text line: bare if it is one plain word, else quoted and
/// escaped.
pub(super) fn push_text_value(out: &mut Vec<u8>, value: &str) {
    let is_bare = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'=' | b'\\');
    if !value.is_empty() && value.bytes().all(is_bare) {
        out.extend_from_slice(value.as_bytes());
    } else {
        // `Debug` of str escapes quotes, backslashes and nearly all invisible characters.
        for ch in format!("{value:?}").chars() {
            let _ = if is_deceptive(ch) {
                write!(out, "{}", ch.escape_unicode())
            } else {
                write!(out, "{ch}")
            };
        }
    }
}

/// Whether a character may deceive the reader of a line: it ends the line, controls the terminal,
/// changes the direction of its neighbours (UTS #39, UAX #9), or is invisible.
pub(crate) fn is_deceptive(char: char) -> bool {
    char.is_control()
        || matches!(
            char,
            '\u{ad}'
                | '\u{34f}'
                | '\u{61c}'
                | '\u{115f}'..='\u{1160}'
                | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

/// Appends the content of a quoted field in the Combined Log Format: quotes, backslashes, control
/// and non-ASCII bytes become `\xHH`, like in nginx.
pub(super) fn push_combined(out: &mut Vec<u8>, bytes: &[u8]) {
    if all_plain(bytes) {
        return out.extend_from_slice(bytes);
    }
    for &byte in bytes {
        if is_plain(byte) {
            out.push(byte);
        } else {
            let _ = write!(out, "\\x{byte:02X}");
        }
    }
}

/// Whether nothing needs an escape, the most common case. Without an early exit the compiler checks
/// a whole block at once; the remainder is checked byte by byte.
fn all_plain(bytes: &[u8]) -> bool {
    static PLAIN: [bool; 256] = {
        let mut plain = [false; 256];
        let mut byte = 0;
        while byte < 256 {
            plain[byte] = is_plain(byte as u8);
            byte += 1;
        }
        plain
    };
    let (blocks, rest) = bytes.as_chunks::<16>();
    let is_block_plain =
        |block: &[u8; 16]| block.iter().fold(true, |all, &byte| all & is_plain(byte));
    blocks.iter().all(is_block_plain) && rest.iter().all(|&byte| PLAIN[usize::from(byte)])
}

const fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') & (byte != b'"') & (byte != b'\\')
}

fn push_json_text(out: &mut Vec<u8>, text: &str) {
    let mut copied = 0;
    for (at, ch) in text.char_indices() {
        let short = match ch {
            '"' | '\\' => Some(ch),
            '\n' => Some('n'),
            '\r' => Some('r'),
            '\t' => Some('t'),
            _ if is_deceptive(ch) => None,
            _ => continue,
        };
        out.extend_from_slice(&text.as_bytes()[copied..at]);
        copied = at + ch.len_utf8();
        match short {
            Some(short) => {
                let _ = write!(out, "\\{short}");
            }
            None => {
                for unit in ch.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out.extend_from_slice(&text.as_bytes()[copied..]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn json(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        push_json_string(&mut out, bytes);
        String::from_utf8(out).unwrap()
    }

    fn text(value: &str) -> String {
        let mut out = Vec::new();
        push_text_value(&mut out, value);
        String::from_utf8(out).unwrap()
    }

    fn combined(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        push_combined(&mut out, bytes);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_strings() {
        for (bytes, expected) in [
            (&b""[..], r#""""#),
            (b"plain words", r#""plain words""#),
            (b"a\"b\\c/", r#""a\"b\\c/""#),
            (b"\n\r\t\0\x1b\x7f", r#""\n\r\t\u0000\u001b\u007f""#),
            ("b\u{fc}cher \u{1f980}".as_bytes(), "\"b\u{fc}cher \u{1f980}\""),
            ("\u{85}\u{2028}\u{2029}".as_bytes(), r#""\u0085\u2028\u2029""#),
            ("a\u{202e}\u{2066}b\u{200b}".as_bytes(), r#""a\u202e\u2066b\u200b""#),
            ("\u{e0041}".as_bytes(), r#""\udb40\udc41""#),
            (b"a\xff\xfeb\xe2\x82", "\"a\u{fffd}\u{fffd}b\u{fffd}\""),
        ] {
            assert_eq!(json(bytes), expected);
        }
    }

    #[test]
    fn text_values() {
        for (value, expected) in [
            ("", r#""""#),
            ("shop.example", "shop.example"),
            ("[::1]:8080,x", "[::1]:8080,x"),
            ("two words", r#""two words""#),
            ("a=b", r#""a=b""#),
            ("a\"b", r#""a\"b""#),
            ("a\\b", r#""a\\b""#),
            ("it's", "it's"),
            ("a\nb\r\tc", r#""a\nb\r\tc""#),
            ("\0\u{1b}[0m", r#""\0\u{1b}[0m""#),
            ("b\u{fc}cher", "\"b\u{fc}cher\""),
            ("\u{85}\u{2028}\u{202e}", r#""\u{85}\u{2028}\u{202e}""#),
            ("\u{200f}\u{2069}\u{3164}", r#""\u{200f}\u{2069}\u{3164}""#),
        ] {
            assert_eq!(text(value), expected, "{value:?}");
        }
    }

    #[test]
    fn combined_fields() {
        for (bytes, expected) in [
            (&b""[..], ""),
            (b"/a?b=c", "/a?b=c"),
            (b"Agent (X; Y)", "Agent (X; Y)"),
            (b"a\"b\\c", r"a\x22b\x5Cc"),
            (b"\n\x00\x7f\xff", r"\x0A\x00\x7F\xFF"),
            ("\u{fc}".as_bytes(), r"\xC3\xBC"),
        ] {
            assert_eq!(combined(bytes), expected);
            // In every position: in a block and in the remainder.
            for padding in 1..=32 {
                let padded = [&b"x".repeat(padding), bytes, &b"x".repeat(padding)].concat();
                let around = "x".repeat(padding);
                assert_eq!(combined(&padded), format!("{around}{expected}{around}"));
            }
        }
    }

    proptest! {
        #[test]
        fn json_reads_back_as_the_lossy_text(bytes: Vec<u8>) {
            let read: String = serde_json::from_str(&json(&bytes)).unwrap();
            prop_assert_eq!(read, String::from_utf8_lossy(&bytes));
        }

        #[test]
        fn json_of_any_text_reads_back(value in "\\PC*|[\\x00-\\x24\\\\\u{80}-\u{a0}]*") {
            let read: String = serde_json::from_str(&json(value.as_bytes())).unwrap();
            prop_assert_eq!(read, value);
        }

        #[test]
        fn no_value_breaks_its_line(bytes: Vec<u8>) {
            let lossy = String::from_utf8_lossy(&bytes);
            for out in [json(&bytes), text(&lossy), combined(&bytes)] {
                prop_assert!(!out.chars().any(is_deceptive), "{:?}", out);
            }
        }
    }
}
