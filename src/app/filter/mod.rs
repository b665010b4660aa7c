//! Filters: policies for the requests and answers of an app of any kind.
//!
//! ```text
//! request ──► first ──pass──► … last ──pass──► the app
//!               └─answer─┐       └─answer─┐       │
//! response ◄── first ◄────── … last ◄─────────────┘   the server's own answers for the app, too
//! ```
//! - **Request side**: a filter lets a request pass, or answers it. After an answer neither a later
//!   filter nor the app sees the request.
//! - **Response side**: every answer for the app passes all filters once, from the last to the
//!   first, when its head is written: answers of the app, an upstream or a filter, and those of the
//!   server in the app's place (500, 502, 413). A filter sees the status and can change the fields.
//!   Interim responses and 101 bypass the filters.
//! - A filter belongs to one life of its app. It can take over state from the previous life.
//!
//! The order is fixed: [`ALL`]. For an app without filters each side costs one check for an empty
//! list. A new filter is one file here, two lines in this file, and its key in `config`
//! (`filters.rs`, `keys.rs`).
//!
//! A filter that changes the content of answers returns a [`Stage`] for a request. The loop writes
//! all content of the answer through it, whatever its kind (`exchange/content.rs`). Without a stage
//! that costs one check.

mod contract;
mod rate_limit;
mod stage;
mod tls;

pub(crate) use contract::Arrival;
use contract::Filter;
pub(crate) use stage::Stage;

use crate::{
    app::Scheme,
    config::AppConfig,
    http::{RequestHead, Response},
};

/// All filters, in the order in which they see a request. Each is loaded if its key is in the
/// config.
const ALL: &[LoadFilter] = &[tls::load, rate_limit::load];

type LoadFilter = fn(&AppConfig) -> Option<Box<dyn Filter>>;

/// The filters of one life of an app, in their order.
#[derive(Default)]
pub(crate) struct Filters {
    list: Vec<Box<dyn Filter>>,
}

impl Filters {
    /// The filters that a config asks for.
    pub(crate) fn load(config: &AppConfig) -> Self {
        Self { list: ALL.iter().filter_map(|load| load(config)).collect() }
    }

    /// Whether there are no filters.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The answer of the first filter that does not let a request pass.
    pub(crate) fn answer(
        &self,
        request: &RequestHead<'_>,
        arrival: Arrival,
    ) -> Option<Response<'static>> {
        self.list.iter().find_map(|filter| filter.on_request(request, arrival))
    }

    /// What changes the content of the answer to a request that all filters let pass.
    pub(crate) fn stage(&self, request: &RequestHead<'_>) -> Option<Box<dyn Stage>> {
        self.list.iter().rev().find_map(|filter| filter.stage(request))
    }

    /// Lets all filters change the fields of an answer.
    // Cold: most apps have no filters.
    #[cold]
    pub(crate) fn change(&self, scheme: Scheme, answer: &mut Response<'_>) {
        let (status, fields) = (answer.status(), answer.fields_mut());
        self.list.iter().rev().for_each(|filter| filter.on_response(status, scheme, fields));
    }

    /// Copies of these filters for the app's next life.
    pub(crate) fn again(&self) -> Self {
        Self { list: self.list.iter().map(|filter| filter.again()).collect() }
    }

    /// Takes over state from the filters of the previous life.
    pub(crate) fn take_over(&mut self, before: &Self) {
        for filter in &mut self.list {
            before.list.iter().for_each(|before| filter.take_over(&**before));
        }
    }

    /// The names and counts for the app's row in the admin API.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.list.iter().filter_map(|filter| filter.count())
    }
}

/// Filters for the tests of other parts.
#[cfg(test)]
pub(crate) mod test_support {
    use super::*;
    use crate::http::Fields;

    /// Answers a request for the path that is its name with 418, and adds its name to each answer.
    struct Marks(&'static str);

    impl Filter for Marks {
        fn on_request(&self, request: &RequestHead<'_>, _: Arrival) -> Option<Response<'static>> {
            (request.path() == self.0).then(|| Response::new(418).with_content(self.0))
        }

        fn on_response(&self, status: u16, _: Scheme, fields: &mut Fields<'_>) {
            fields.push("Passed", &format!("{} {status}", self.0));
        }

        fn again(&self) -> Box<dyn Filter> {
            Box::new(Self(self.0))
        }
    }

    /// Changes content of 200 to upper case, with a mark before each piece and one at the end.
    struct UpperCase;

    impl Filter for UpperCase {
        fn stage(&self, _: &RequestHead<'_>) -> Option<Box<dyn Stage>> {
            Some(Box::new(Self))
        }

        fn again(&self) -> Box<dyn Filter> {
            Box::new(Self)
        }
    }

    impl Stage for UpperCase {
        fn begin(&mut self, status: u16, fields: &mut Fields<'_>) -> bool {
            if status == 200 {
                fields.push("Case", "upper");
            }
            status == 200
        }

        fn write(&mut self, piece: &[u8], out: &mut Vec<u8>) {
            assert!(!piece.is_empty() && piece.len() <= 16 * 1024);
            out.push(b'<');
            out.extend(piece.iter().map(u8::to_ascii_uppercase));
        }

        fn end(&mut self, out: &mut Vec<u8>) {
            out.push(b'>');
        }
    }

    /// A filter that changes all content of 200.
    pub(crate) fn upper_case() -> Filters {
        Filters { list: vec![Box::new(UpperCase)] }
    }

    /// A filter for each name, in this order.
    pub(crate) fn marks(names: &[&'static str]) -> Filters {
        let filter = |name: &&'static str| Box::new(Marks(name)) as Box<dyn Filter>;
        Filters { list: names.iter().map(filter).collect() }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::{super::test_support::request, test_support::marks, *};
    use crate::app::Peer;

    const ARRIVAL: Arrival = Arrival {
        peer: Peer::Unix,
        scheme: Scheme::Http,
        has_client_certificate: false,
        tls_port: None,
        now_ns: 0,
    };

    fn fields(filters: &Filters) -> String {
        let mut answer = Response::new(204);
        filters.change(Scheme::Http, &mut answer);
        String::from_utf8(answer.fields().lines().to_vec()).unwrap()
    }

    #[test]
    fn a_request_passes_the_filters_in_order_and_its_answer_in_reverse() {
        let filters = marks(&["/a", "/b", "/a"]);
        let status = |path| Some(filters.answer(&request("GET", path, &[]), ARRIVAL)?.status());
        assert_eq!([status("/a"), status("/b"), status("/c")], [Some(418), Some(418), None]);
        for filters in [&filters, &filters.again()] {
            assert_eq!(fields(filters), "Passed: /a 204\r\nPassed: /b 204\r\nPassed: /a 204\r\n");
        }
        assert_eq!(fields(&marks(&["/a", "/b"])), "Passed: /b 204\r\nPassed: /a 204\r\n");
    }

    #[test]
    fn an_app_without_filters_lets_all_requests_pass_and_has_no_counts() {
        let table = json!({ "respond": {} });
        let config = AppConfig::from_json("a", &table, Path::new("/")).unwrap();
        let filters = Filters::load(&config);
        assert!(filters.is_empty() && filters.counts().next().is_none());
        assert!(filters.answer(&request("GET", "/", &[]), ARRIVAL).is_none());
    }

    #[test]
    fn a_filter_takes_over_from_a_filter_of_its_kind_at_any_position() {
        let table = json!({ "respond": {}, "rate_limit": { "requests": 1, "per": "9s" } });
        let config = AppConfig::from_json("a", &table, Path::new("/")).unwrap();
        let limited = || Filters::load(&config);
        let retry_after = |filters: &Filters| {
            let answer = filters.answer(&request("GET", "/", &[]), ARRIVAL)?;
            Some(answer.fields().iter().map(|(_, value)| value.to_vec()).last().unwrap())
        };
        let mut before = marks(&["/a"]);
        before.list.extend(limited().list);
        assert_eq!(retry_after(&before), None);
        let (mut after, mut apart) = (limited(), limited());
        after.take_over(&before);
        apart.take_over(&marks(&["/a"]));
        assert_eq!(retry_after(&after), Some(b"9".to_vec()));
        assert_eq!(retry_after(&apart), None);
        assert_eq!(after.counts().collect::<Vec<_>>(), [("limited", 1)]);
    }
}
