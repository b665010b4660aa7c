//! Writes SVG: self-contained, for light and dark pages.
//!
//! Pure. Owns the frame, the colours of page and text, and the escaping; the caller places shapes
//! and texts, and adds the style of its classes. The benchmarks draw their charts with this file,
//! too.

use std::fmt::Write as _;

/// A drawing that is being written.
pub(crate) struct Svg(String);

impl Svg {
    /// An empty drawing of this size, with CSS for the classes of its shapes: `light` for all
    /// pages, `dark` for what differs on dark pages.
    pub(crate) fn new(width: f64, height: f64, light: &str, dark: &str) -> Self {
        Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
             role=\"img\"><style>\
             svg{{background:#fff;font:12px system-ui,sans-serif}}\
             text{{fill:#333}}.head{{font-size:15px;font-weight:600}}{light}\
             @media(prefers-color-scheme:dark){{\
             svg{{background:#15181c}}text{{fill:#ccc}}{dark}}}</style>\n"
        ))
    }

    /// Adds the heading; `x` and `y` are where its base line begins.
    pub(crate) fn heading(&mut self, x: f64, y: f64, text: &str) {
        let text = escape(text);
        let _ = writeln!(self.0, "<text class=\"head\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>");
    }

    /// Adds a text. `anchor` says which of its points is at `x`: `start`, `middle` or `end`.
    pub(crate) fn text(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        let text = escape(text);
        let _ = writeln!(
            self.0,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
        );
    }

    /// Adds a path of this class; `line` is the value of its attribute `d`.
    pub(crate) fn path(&mut self, class: &str, line: &str) {
        let _ = writeln!(self.0, "<path class=\"{class}\" d=\"{line}\"/>");
    }

    /// Adds a rectangle of this class; `x` and `y` are its upper left corner.
    pub(crate) fn rectangle(&mut self, class: &str, x: f64, y: f64, width: f64, height: f64) {
        let _ = writeln!(
            self.0,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" \
             height=\"{height:.1}\"/>"
        );
    }

    /// The complete document.
    pub(crate) fn finish(self) -> String {
        self.0 + "</svg>\n"
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
