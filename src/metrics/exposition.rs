//! The two formats of the metrics page, and which one a client accepts.

/// The format of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exposition {
    /// Prometheus's text format 0.0.4.
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Exposition {
    /// The format for an `Accept` field: OpenMetrics if the field names it, else text.
    pub(crate) fn accepted(accept: Option<&str>) -> Self {
        let Some(accept) = accept else { return Self::Text };
        let weight = |media_types: [&str; 3]| {
            // The most specific matching range decides (RFC 9110 §12.5.1).
            media_types.iter().find_map(|media_type| weight_of(accept, media_type)).unwrap_or(0.0)
        };
        let open = weight_of(accept, "application/openmetrics-text").unwrap_or(0.0);
        let text = weight(["text/plain", "text/*", "*/*"]);
        let wanted = open > 0.0 && open >= text;
        if wanted { Self::OpenMetrics } else { Self::Text }
    }

    /// The value of `Content-Type`.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The weight that an Accept field gives to a media type or range; none if the field doesn't name
/// it.
fn weight_of(accept: &str, media_type: &str) -> Option<f64> {
    accept.split(',').find_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        if !parts.next()?.eq_ignore_ascii_case(media_type) {
            return None;
        }
        let weight = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
        Some(weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0)))
    })
}
