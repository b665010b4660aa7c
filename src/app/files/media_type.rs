//! The media type of a file, by its extension. Pure; it never reads content.

/// Types that the table of `mime_guess` lacks, or has under a name from before their registration.
const OVERRIDES: &[(&str, &str)] = &[
    ("avif", "image/avif"),
    ("br", "application/octet-stream"),
    ("cjs", "text/javascript"),
    ("deb", "application/vnd.debian.binary-package"),
    ("ico", "image/x-icon"),
    ("js", "text/javascript"),
    ("jsonl", "application/jsonl"),
    ("jxl", "image/jxl"),
    ("m3u8", "application/vnd.apple.mpegurl"),
    ("m4a", "audio/mp4"),
    ("m4s", "video/iso.segment"),
    ("map", "application/json"),
    ("mjs", "text/javascript"),
    ("mkv", "video/matroska"),
    ("mts", "video/mp2t"),
    ("ndjson", "application/x-ndjson"),
    ("obj", "model/obj"),
    ("otf", "font/otf"),
    ("rar", "application/vnd.rar"),
    ("rpm", "application/x-rpm"),
    ("stl", "model/stl"),
    ("tgz", "application/gzip"),
    ("toml", "application/toml"),
    ("ts", "video/mp2t"),
    ("usdz", "model/vnd.usdz+zip"),
    ("vcf", "text/vcard"),
    ("wasm", "application/wasm"),
    ("webmanifest", "application/manifest+json"),
    ("woff", "font/woff"),
    ("woff2", "font/woff2"),
    ("xml", "application/xml"),
    ("yaml", "application/yaml"),
    ("yml", "application/yaml"),
    ("zst", "application/zstd"),
];

/// The media type of the file with this name: from `configured`, which has pairs of extension (in
/// lower case) and type; else a known type; else `application/octet-stream`. A text type without
/// parameters gets `charset=utf-8`; JSON has no charset (RFC 8259 §11).
pub(super) fn media_type(name: &[u8], configured: &[(String, String)]) -> String {
    let file_name = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let extension = match file_name.iter().rposition(|byte| *byte == b'.') {
        Some(dot) => String::from_utf8_lossy(&file_name[dot + 1..]).to_ascii_lowercase(),
        None => String::new(),
    };
    let configured = configured.iter().map(|(own, media_type)| (own.as_str(), media_type.as_str()));
    let named = configured
        .chain(OVERRIDES.iter().copied())
        .find_map(|(own, media_type)| (own == extension).then_some(media_type));
    let media_type = match named {
        Some(media_type) => media_type.to_owned(),
        None => mime_guess::from_ext(&extension).first_or_octet_stream().to_string(),
    };
    if is_text(&media_type) { media_type + "; charset=utf-8" } else { media_type }
}

fn is_text(media_type: &str) -> bool {
    !media_type.contains(';')
        && (media_type.starts_with("text/")
            || matches!(media_type, "application/javascript" | "image/svg+xml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_by_extension() {
        for (name, expected) in [
            ("index.html", "text/html; charset=utf-8"),
            ("a/b.v1/STYLE.CSS", "text/css; charset=utf-8"),
            ("a.js", "text/javascript; charset=utf-8"),
            ("a.mjs", "text/javascript; charset=utf-8"),
            ("a.js.map", "application/json"),
            ("a.json", "application/json"),
            ("a.txt", "text/plain; charset=utf-8"),
            ("a.svg", "image/svg+xml; charset=utf-8"),
            ("a.png", "image/png"),
            ("a.webp", "image/webp"),
            ("a.wasm", "application/wasm"),
            ("a.woff2", "font/woff2"),
            ("a.pdf", "application/pdf"),
            ("a.mp4", "video/mp4"),
            ("a.xml", "application/xml"),
            ("a.css.gz", "application/gzip"),
            ("a.css.br", "application/octet-stream"),
            ("site.webmanifest", "application/manifest+json"),
            ("seg-1.ts", "video/mp2t"),
            ("live.m3u8", "application/vnd.apple.mpegurl"),
            ("chunk.m4s", "video/iso.segment"),
            ("a.mpd", "application/dash+xml"),
            ("a.otf", "font/otf"),
            ("a.ttf", "font/ttf"),
            ("a.woff", "font/woff"),
            ("a.cjs", "text/javascript; charset=utf-8"),
            ("a.jsonl", "application/jsonl"),
            ("a.ndjson", "application/x-ndjson"),
            ("a.geojson", "application/geo+json"),
            ("a.avif", "image/avif"),
            ("a.m4a", "audio/mp4"),
            ("a.yaml", "application/yaml"),
            ("a.toml", "application/toml"),
            ("a.md", "text/markdown; charset=utf-8"),
            ("a.rpm", "application/x-rpm"),
            ("a.stl", "model/stl"),
            ("a.unheard-of", "application/octet-stream"),
            ("LICENSE", "application/octet-stream"),
            ("a.d/LICENSE", "application/octet-stream"),
            ("a.", "application/octet-stream"),
        ] {
            assert_eq!(media_type(name.as_bytes(), &[]), expected, "{name}");
        }
        assert_eq!(media_type(b"a.\xff", &[]), "application/octet-stream");
    }

    #[test]
    fn configured_types_come_first() {
        let types = [
            ("html".to_owned(), "text/html; charset=latin1".to_owned()),
            ("gmi".to_owned(), "text/gemini".to_owned()),
        ];
        assert_eq!(media_type(b"a.HTML", &types), "text/html; charset=latin1");
        assert_eq!(media_type(b"a.gmi", &types), "text/gemini; charset=utf-8");
    }
}
