//! What `tls` of an app demands of its requests, and adds to its answers.
//!
//! - A required client certificate: without one a request is misdirected. A TLS connection of the
//!   app's policy has shown it in its handshake; plain HTTP can't (I12).
//! - `redirect_http`: plain HTTP is redirected, except for what authorities ask for over plain HTTP
//!   before they issue a certificate (RFC 8555 §8.3).
//! - `hsts`: over TLS only, where clients may believe it (RFC 6797 §7.2).

use super::{
    super::redirect::redirect,
    contract::{Arrival, Filter},
};
use crate::{
    app::{Scheme, error_response},
    config::{AppConfig, ClientAuth},
    http::{Fields, Host, RequestHead, Response},
};

/// Below this path, authorities check who has a host.
const ACME_CHALLENGE: &str = "/.well-known/acme-challenge/";

#[derive(Clone)]
struct TlsRules {
    needs_certificate: bool,
    /// The host to redirect to if a request names none.
    redirect: Option<String>,
    /// The value of `Strict-Transport-Security`.
    hsts: Option<String>,
}

/// The filter, if the app has such a rule.
pub(super) fn load(config: &AppConfig) -> Option<Box<dyn Filter>> {
    let tls = config.tls.as_ref()?;
    let rules = TlsRules {
        needs_certificate: tls.client.as_ref().is_some_and(|it| it.auth == ClientAuth::Require),
        redirect: tls.redirect_http.then(|| config.host.clone()),
        hsts: tls.hsts.map(|max_age| format!("max-age={}", max_age.as_secs())),
    };
    let is_needed = rules.needs_certificate || rules.redirect.is_some() || rules.hsts.is_some();
    is_needed.then(|| Box::new(rules) as Box<dyn Filter>)
}

impl Filter for TlsRules {
    fn on_request(&self, request: &RequestHead<'_>, arrival: Arrival) -> Option<Response<'static>> {
        if let (Scheme::Http, Some(host)) = (arrival.scheme, &self.redirect)
            && !request.path().starts_with(ACME_CHALLENGE)
        {
            return Some(to_https(request, host, arrival.tls_port));
        }
        if self.needs_certificate && !arrival.has_client_certificate {
            let document = r#"{"error":"This app needs a client certificate: use https"}"#;
            return Some(Response::json(421, document));
        }
        None
    }

    fn on_response(&self, _: u16, scheme: Scheme, fields: &mut Fields<'_>) {
        let Some(hsts) = &self.hsts else { return };
        const NAME: &str = "Strict-Transport-Security";
        // The field of an app or upstream holds: clients obey the first.
        let is_there = fields.iter().any(|(name, _)| name.eq_ignore_ascii_case(NAME));
        if scheme == Scheme::Https && !is_there {
            fields.push(NAME, hsts);
        }
    }

    fn again(&self) -> Box<dyn Filter> {
        Box::new(self.clone())
    }
}

/// Redirects a request to the same URL over TLS. `own`: the host, if the request names none.
fn to_https(request: &RequestHead<'_>, own: &str, port: Option<u16>) -> Response<'static> {
    let host = request.host().as_ref().map_or(own, Host::name);
    if host.starts_with('*') {
        return error_response(400);
    }
    match port.filter(|port| *port != 443) {
        Some(port) => redirect(request, &format!("https://{host}:{port}"), 308),
        None => redirect(request, &format!("https://{host}"), 308),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;
    use crate::app::{Filters, Peer, test_support::request};

    const PLAIN: Arrival = Arrival {
        peer: Peer::Unix,
        scheme: Scheme::Http,
        has_client_certificate: false,
        tls_port: Some(443),
        now_ns: 0,
    };
    const TLS: Arrival = Arrival { scheme: Scheme::Https, ..PLAIN };

    fn filters(host: &str, tls: &Value) -> Filters {
        let table = json!({ "respond": {}, "tls": tls });
        Filters::load(&AppConfig::from_json(host, &table, Path::new("/")).unwrap())
    }

    /// Status and fields of the answer to a GET, if the filters answer it.
    fn answer(
        filters: &Filters,
        target: &str,
        host: &'static str,
        arrival: Arrival,
    ) -> Option<String> {
        let host = Host::parse(host.as_bytes());
        let request = RequestHead { host, ..request("GET", target, &[]) };
        let answer = filters.answer(&request, arrival)?;
        let lines = String::from_utf8_lossy(answer.fields().lines()).into_owned();
        Some(format!("{} {}", answer.status(), lines.trim_end()))
    }

    #[test]
    fn plain_http_is_redirected_to_the_same_url_over_tls() {
        let filters = filters("a.example", &json!({ "redirect_http": true }));
        let at = |port| Arrival { tls_port: port, ..PLAIN };
        for (target, host, port, there) in [
            ("/", "a.example", Some(443), "https://a.example/"),
            ("/a%2Fb?x=%20&y", "A.Example:80", Some(8443), "https://A.Example:8443/a%2Fb?x=%20&y"),
            ("/a?", "a.example", None, "https://a.example/a?"),
            ("//evil.example", "[::1]", Some(443), "https://[::1]//evil.example"),
            ("/", "", Some(443), "https://a.example/"),
            ("/.well-known/other", "a.example", Some(443), "https://a.example/.well-known/other"),
        ] {
            let expected = format!("308 Location: {there}");
            assert_eq!(answer(&filters, target, host, at(port)), Some(expected), "{target}");
        }
        for target in ["/a\r\nSet-Cookie: x=1", "/a?b\r\n\r\nc"] {
            let answer = answer(&filters, target, "a.example", PLAIN).unwrap();
            assert!(answer.starts_with("400 "), "{answer}");
        }
        assert_eq!(answer(&filters, "/", "a.example", TLS), None);
        let challenge = "/.well-known/acme-challenge/token";
        assert_eq!(answer(&filters, challenge, "a.example", PLAIN), None, "authorities ask there");
    }

    #[test]
    fn a_wildcard_app_redirects_only_requests_that_name_a_host() {
        let filters = filters("*.example", &json!({ "redirect_http": true }));
        let there = Some("308 Location: https://x.example/".to_owned());
        assert_eq!(answer(&filters, "/", "x.example", PLAIN), there);
        assert!(answer(&filters, "/", "", PLAIN).unwrap().starts_with("400 "));
    }

    #[test]
    fn a_required_client_certificate_cannot_be_got_around_over_plain_http() {
        let required = filters("a.example", &json!({ "client_ca": "ca.pem" }));
        let shown = Arrival { has_client_certificate: true, ..TLS };
        let status = |filters: &Filters, arrival| {
            Some(answer(filters, "/", "a.example", arrival)?[..3].to_owned())
        };
        assert_eq!(status(&required, PLAIN).as_deref(), Some("421"));
        assert_eq!(status(&required, TLS).as_deref(), Some("421"));
        assert_eq!(status(&required, shown), None);
        let both = filters("a.example", &json!({ "client_ca": "ca.pem", "redirect_http": true }));
        assert_eq!(status(&both, PLAIN).as_deref(), Some("308"));
        let challenge = answer(&both, "/.well-known/acme-challenge/t", "a.example", PLAIN);
        assert!(challenge.unwrap().starts_with("421 "));
        let optional = json!({ "client_ca": "ca.pem", "client_auth": "optional" });
        assert!(
            filters("a.example", &optional).is_empty(),
            "it decides by the fields that it gets"
        );
    }

    #[test]
    fn hsts_is_said_over_tls_and_once() {
        let filters = filters("a.example", &json!({ "hsts": "1y" }));
        let fields = |scheme, own: Option<&str>| {
            let mut answer = Response::new(200);
            if let Some(own) = own {
                answer = answer.with_field("strict-transport-security", own);
            }
            filters.change(scheme, &mut answer);
            String::from_utf8(answer.fields().lines().to_vec()).unwrap()
        };
        assert_eq!(fields(Scheme::Http, None), "");
        let ours = "Strict-Transport-Security: max-age=31536000\r\n";
        assert_eq!(fields(Scheme::Https, None), ours);
        let own = "strict-transport-security: max-age=1\r\n";
        assert_eq!(fields(Scheme::Https, Some("max-age=1")), own);
    }
}
