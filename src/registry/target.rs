//! What a request asks for, as far as its route depends on it.

/// What a request asks for: a host, and a path there. Routes depend on the host alone so far.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    host: Option<&'a [u8]>,
    path: &'a str,
}

impl<'a> Target<'a> {
    /// The target of a request for this path of a host. The host is as it was sent, in any case;
    /// `None` if the request names none.
    #[inline]
    pub fn new(host: Option<&'a [u8]>, path: &'a str) -> Self {
        Self { host, path }
    }

    /// The host, as it was sent.
    #[inline]
    pub fn host(self) -> Option<&'a [u8]> {
        self.host
    }

    /// The host in lower case; empty if it isn't UTF-8, which no name is.
    pub fn host_name(self) -> Option<String> {
        let text = |host| std::str::from_utf8(host).unwrap_or_default();
        self.host.map(|host| text(host).to_ascii_lowercase())
    }

    /// The path.
    #[inline]
    pub fn path(self) -> &'a str {
        self.path
    }
}

impl<'a> From<Option<&'a str>> for Target<'a> {
    /// The root of a host.
    fn from(host: Option<&'a str>) -> Self {
        Self { host: host.map(str::as_bytes), path: "/" }
    }
}
