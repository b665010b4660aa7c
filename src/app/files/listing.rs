//! The page that lists a directory.
//!
//! Pure. File names are untrusted: every name is escaped where it is shown, and percent-encoded in
//! its link. A link begins with `./`, so that no name can be taken for a scheme.

use std::{
    fmt::Write as _,
    time::{Duration, UNIX_EPOCH},
};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

use super::directory::{ListedFile, Listing};

/// The bytes that a link percent-encodes: all but the unreserved characters (RFC 3986 §2.3).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The times that an HTTP date can express, in seconds since 1970: up to the year 9999.
const TIMES_S: std::ops::Range<i64> = 0..253_402_300_800;

/// The page of the directory with this path below the root. The path has no slash at either end.
pub(super) fn page(path: &[u8], listing: &Listing) -> String {
    let mut title = "Index of /".to_owned();
    push_escaped(&mut title, path);
    title.push_str(if path.is_empty() { "" } else { "/" });
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         </head>\n<body>\n<h1>{title}</h1>\n<table>\n\
         <tr><th>Name</th><th>Size</th><th>Modified</th></tr>\n"
    );
    if !path.is_empty() {
        page.push_str("<tr><td><a href=\"../\">../</a></td><td></td><td></td></tr>\n");
    }
    for entry in &listing.entries {
        push_row(&mut page, entry);
    }
    page.push_str("</table>\n");
    if listing.is_cut {
        let count = listing.entries.len();
        let _ = writeln!(page, "<p>The list ends after {count} entries.</p>");
    }
    page.push_str("</body>\n</html>\n");
    page
}

fn push_row(page: &mut String, entry: &ListedFile) {
    let slash = if entry.is_directory { "/" } else { "" };
    let _ = write!(page, "<tr><td><a href=\"./{}{slash}\">", percent_encode(&entry.name, ENCODED));
    push_escaped(page, &entry.name);
    let _ = write!(page, "{slash}</a></td><td>");
    if !entry.is_directory {
        let _ = write!(page, "{}", entry.size);
    }
    page.push_str("</td><td>");
    if TIMES_S.contains(&entry.modified_s) {
        let time = UNIX_EPOCH + Duration::from_secs(entry.modified_s as u64);
        page.push_str(&httpdate::fmt_http_date(time));
    }
    page.push_str("</td></tr>\n");
}

fn push_escaped(page: &mut String, name: &[u8]) {
    for char in String::from_utf8_lossy(name).chars() {
        match char {
            '&' => page.push_str("&amp;"),
            '<' => page.push_str("&lt;"),
            '>' => page.push_str("&gt;"),
            '"' => page.push_str("&quot;"),
            '\'' => page.push_str("&#39;"),
            // Also the characters that change the direction of text.
            control if control.is_control() || is_directional(control) => page.push('\u{fffd}'),
            other => page.push(other),
        }
    }
}

fn is_directional(char: char) -> bool {
    matches!(char, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_where_they_are_shown_and_linked() {
        let entry = |name: &[u8], is_directory| ListedFile {
            name: name.to_vec(),
            is_directory,
            size: 12,
            modified_s: 784_111_777,
        };
        let names: [&[u8]; 5] = [
            b"<script>alert('1')</script>",
            b"javascript:alert(1)",
            b"a\"b&c?d#e%f g",
            b"\xff\n",
            "\u{202e}txt.exe".as_bytes(),
        ];
        let entries = names.map(|name| entry(name, false)).into_iter();
        let entries = [entry(b"d", true)].into_iter().chain(entries).collect();
        let page = page(b"a/<b>", &Listing { entries, is_cut: true });
        for row in [
            "<title>Index of /a/&lt;b&gt;/</title>",
            "<a href=\"../\">../</a>",
            "<a href=\"./d/\">d/</a></td><td></td><td>Sun, 06 Nov 1994 08:49:37 GMT</td>",
            "<a href=\"./%3Cscript%3Ealert%28%271%27%29%3C%2Fscript%3E\">&lt;script&gt;",
            "<a href=\"./javascript%3Aalert%281%29\">javascript:alert(1)</a></td><td>12</td>",
            "<a href=\"./a%22b%26c%3Fd%23e%25f%20g\">a&quot;b&amp;c?d#e%f g</a>",
            "<a href=\"./%FF%0A\">\u{fffd}\u{fffd}</a>",
            "\">\u{fffd}txt.exe</a>",
            "ends after 6 entries",
        ] {
            assert!(page.contains(row), "{row} in\n{page}");
        }
        let root = super::page(b"", &Listing { entries: Vec::new(), is_cut: false });
        assert!(root.contains("Index of /<") && !root.contains("..") && !root.contains("more"));
    }
}
