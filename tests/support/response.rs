//! A small and strict response parser: what the server writes has to be exact.

/// One response.
#[derive(Clone, Debug)]
pub struct Response {
    pub status: u16,
    /// The head as it was sent, with the blank line.
    pub head: String,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
}

/// The result of parsing bytes.
#[derive(Debug)]
pub enum Parsed {
    /// A response, and how many bytes it took.
    Whole(Response, usize),
    /// More is needed.
    Partial,
    /// Not a response, and why.
    Malformed(String),
}

impl Response {
    /// Parses the first response in `bytes`. `to_head`: it answers a HEAD request. `ended`: no more
    /// bytes come.
    pub fn parse(bytes: &[u8], to_head: bool, ended: bool) -> Parsed {
        let Some(head_len) = find(bytes, b"\r\n\r\n").map(|at| at + 4) else {
            return Parsed::Partial;
        };
        let mut response = match parse_head(&bytes[..head_len]) {
            Ok(response) => response,
            Err(why) => return Parsed::Malformed(why),
        };
        match content(&response, &bytes[head_len..], to_head, ended) {
            Ok(Some((body, body_len))) => {
                response.body = body;
                Parsed::Whole(response, head_len + body_len)
            }
            Ok(None) => Parsed::Partial,
            Err(why) => Parsed::Malformed(why),
        }
    }

    /// The value of the first field of this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(own, _)| own.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Whether the server says that this is the connection's last response.
    pub fn says_close(&self) -> bool {
        self.field("Connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    /// The content as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the content is text")
    }
}

fn parse_head(head: &[u8]) -> Result<Response, String> {
    let head = std::str::from_utf8(head).map_err(|_| "head is no text".to_owned())?;
    let mut lines = head[..head.len() - 4].split("\r\n");
    let line = lines.next().unwrap_or("");
    let rest = line.strip_prefix("HTTP/1.1 ").ok_or_else(|| format!("status line {line:?}"))?;
    let code = rest.split(' ').next().unwrap_or("");
    let status = match code.parse() {
        Ok(status) if code.len() == 3 && rest.len() > 3 => status,
        _ => return Err(format!("status line {line:?}")),
    };
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or_else(|| format!("field line {line:?}"))?;
        let clean = !name.is_empty() && !name.contains([' ', '\t']) && !line.contains(['\r', '\n']);
        if !clean {
            return Err(format!("field line {line:?}"));
        }
        let single = ["content-length", "transfer-encoding", "connection", "date"];
        let twice = fields.iter().any(|(own, _)| own.eq_ignore_ascii_case(name));
        if twice && single.contains(&name.to_ascii_lowercase().as_str()) {
            return Err(format!("{name} stands twice"));
        }
        fields.push((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()));
    }
    Ok(Response { status, head: head.to_owned(), fields, body: Vec::new() })
}

/// The content at the beginning of `bytes`, and how many bytes it took; `None` if more are needed.
fn content(
    response: &Response,
    bytes: &[u8],
    to_head: bool,
    ended: bool,
) -> Result<Option<(Vec<u8>, usize)>, String> {
    let length = response.field("Content-Length");
    let coding = response.field("Transfer-Encoding");
    if length.is_some() && coding.is_some() {
        return Err("Content-Length beside Transfer-Encoding".to_owned());
    }
    let bare = response.status < 200 || response.status == 204;
    if bare && (length.is_some() || coding.is_some()) {
        return Err(format!("framing in a {}", response.status));
    }
    if to_head || bare || response.status == 304 {
        return Ok(Some((Vec::new(), 0)));
    }
    if let Some(coding) = coding {
        return match coding {
            "chunked" => chunked(bytes),
            other => Err(format!("transfer coding {other:?}")),
        };
    }
    if let Some(length) = length {
        let length: usize = length.parse().map_err(|_| format!("length {length:?}"))?;
        return Ok((bytes.len() >= length).then(|| (bytes[..length].to_vec(), length)));
    }
    if !response.says_close() {
        return Err("content without a length on a connection that stays".to_owned());
    }
    Ok(ended.then(|| (bytes.to_vec(), bytes.len())))
}

fn chunked(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, String> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let Some(line_len) = find(&bytes[at..], b"\r\n") else { return Ok(None) };
        let line = std::str::from_utf8(&bytes[at..at + line_len]).unwrap_or("?");
        let size = usize::from_str_radix(line, 16).map_err(|_| format!("chunk size {line:?}"))?;
        at += line_len + 2;
        if bytes.len() < at + size + 2 {
            return Ok(None);
        }
        if &bytes[at + size..at + size + 2] != b"\r\n" {
            return Err("a chunk without its CRLF".to_owned());
        }
        body.extend_from_slice(&bytes[at..at + size]);
        at += size + 2;
        if size == 0 {
            return Ok(Some((body, at)));
        }
    }
}

/// The first position of `needle` in `bytes`.
pub fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}
