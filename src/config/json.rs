//! One app from JSON, as the admin API receives it.
//!
//! The JSON becomes the tree that the TOML parser makes of a file, so there is one reader and one
//! set of checks. Handles what only JSON has: null, and unlimited depth.

use std::{borrow::Cow, collections::HashSet, path::Path, slice};

use serde_json::Value;
use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue},
};

use super::{
    AppConfig, Problem,
    apps::{self, Apps},
    error::{Finding, Span},
    reader::{Table, dotted_path},
    values::Fault,
};

/// Deeper values are omitted: no key is that deep.
const DEPTH_MAX: usize = 16;

impl AppConfig {
    /// Reads an app from its table as JSON, such as `{"respond": {"body": "hi"}}`: the content of
    /// `[apps."host"]` in a file. Relative paths start from `base`. `headers` and `types` keep the
    /// order of the map.
    ///
    /// # Errors
    /// All problems of the host and the table, never empty. Their lines and columns are 0.
    pub fn from_json(host: &str, table: &Value, base: &Path) -> Result<Self, Vec<Problem>> {
        let mut numbers = Vec::new();
        push_numbers(table, 0, &mut numbers);
        let mut builder = TreeBuilder { numbers: numbers.iter(), next: 0, nulls: Vec::new() };
        let tree = builder.value(table, host, "", 0);
        let (mut findings, mut apps) = (Vec::new(), Apps::default());
        Table::read_json(host, &tree, &mut findings, |table| apps::app(table, base, &mut apps));
        // The placeholder for a null may have got an error about its type.
        let nulls: HashSet<Span> = builder.nulls.iter().map(|null| null.span.clone()).collect();
        findings.retain(|finding| !nulls.contains(&finding.span));
        findings.append(&mut builder.nulls);
        findings.sort_by_key(|finding| (finding.span.start, finding.span.end));
        let problem = |Finding { message, help, .. }| Problem { line: 0, column: 0, message, help };
        match apps.list.pop() {
            Some(app) if findings.is_empty() => Ok(app),
            _ => Err(findings.into_iter().map(problem).collect()),
        }
    }
}

/// The numbers of a value as text, in the order in which [`TreeBuilder`] meets them: a tree holds
/// its numbers as the parser found them.
fn push_numbers(value: &Value, depth: usize, numbers: &mut Vec<String>) {
    match value {
        Value::Number(number) => numbers.push(number.to_string()),
        Value::Array(items) if depth < DEPTH_MAX => {
            items.iter().for_each(|item| push_numbers(item, depth + 1, numbers));
        }
        Value::Object(entries) if depth < DEPTH_MAX => {
            entries.values().for_each(|value| push_numbers(value, depth + 1, numbers));
        }
        _ => {}
    }
}

/// Builds the tree. A span counts keys and values: it only tells them apart, and which comes first.
struct TreeBuilder<'t> {
    numbers: slice::Iter<'t, String>,
    next: usize,
    nulls: Vec<Finding>,
}

impl<'t> TreeBuilder<'t> {
    /// A value that messages call `name`. The paths of its keys begin with `path`.
    fn value(
        &mut self,
        value: &'t Value,
        name: &str,
        path: &str,
        depth: usize,
    ) -> Spanned<DeValue<'t>> {
        let start = self.position();
        let is_shown = depth < DEPTH_MAX;
        let value = match value {
            Value::Null => {
                // TOML has no null. With a placeholder other errors are still found.
                let fault = Fault::new("is null").help("leave it out, or give it a value");
                self.nulls.push(fault.into_finding(name, start..self.next));
                DeValue::Boolean(false)
            }
            Value::Bool(flag) => DeValue::Boolean(*flag),
            Value::Number(_) => {
                let text = self.numbers.next().expect("every number was pushed");
                DeValue::parse(text).expect("JSON's numbers are TOML's").into_inner()
            }
            Value::String(text) => DeValue::String(Cow::Borrowed(text)),
            Value::Array(items) => {
                let mut array = DeArray::new();
                for (index, item) in items.iter().enumerate().filter(|_| is_shown) {
                    let path = format!("{path}[{index}]");
                    array.push(self.value(item, &path, &path, depth + 1));
                }
                DeValue::Array(array)
            }
            Value::Object(entries) => {
                let mut table = DeTable::new();
                for (key, value) in entries.iter().filter(|_| is_shown) {
                    let path = dotted_path(path, key);
                    let at = self.position();
                    let spanned = Spanned::new(at..self.next, Cow::Borrowed(&**key));
                    table.insert(spanned, self.value(value, &path, &path, depth + 1));
                }
                DeValue::Table(table)
            }
        };
        Spanned::new(start..self.next, value)
    }

    fn position(&mut self) -> usize {
        self.next += 1;
        self.next - 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::config::{AppKind, Config};

    const BASE: &str = "/etc/tidegate";

    fn read(host: &str, table: &Value) -> Result<AppConfig, Vec<Problem>> {
        AppConfig::from_json(host, table, Path::new(BASE))
    }

    /// `message (help)` for every problem.
    fn problems(host: &str, table: &Value) -> Vec<String> {
        let show = |problem: Problem| {
            assert_eq!((problem.line, problem.column), (0, 0));
            let help = problem.help.map_or(String::new(), |help| format!(" ({help})"));
            problem.message + &help
        };
        read(host, table).expect_err("problems").into_iter().map(show).collect()
    }

    #[test]
    fn an_app_is_the_same_from_json_as_from_a_file() {
        let file = r#"
[apps."WWW.Example.com."]
aliases = ["example.com", "*.Example.com"]
drain_timeout = "1m"
respond = { status = 404, body = "no", headers = { X-A = "1", X-B = "2" }, delay = "2s" }
[apps.static.files]
root = "site"
index = []
not_found = "errors/404.html"
precompressed = false
types = { WASM = "application/wasm" }
[apps."[2001:DB8::1]"]
redirect = { to = "https://example.com", status = 301 }
"#;
        let config = Config::parse(file, Path::new("config.toml"), Path::new(BASE)).unwrap();
        let tables = [
            (
                "www.example.com",
                json!({
                    "aliases": ["example.com", "*.Example.com"],
                    "drain_timeout": "1m",
                    "respond": {
                        "status": 404, "body": "no", "delay": "2s",
                        "headers": {"X-A": "1", "X-B": "2"},
                    },
                }),
            ),
            (
                "Static",
                json!({"files": {
                    "root": "site", "index": [], "not_found": "errors/404.html",
                    "precompressed": false, "types": {"WASM": "application/wasm"}
                }}),
            ),
            ("[2001:db8::1]", json!({"redirect": {"to": "https://example.com", "status": 301}})),
        ];
        let apps: Vec<_> = tables.iter().map(|(host, table)| read(host, table).unwrap()).collect();
        assert_eq!(apps, config.apps);
    }

    #[test]
    fn mistakes_have_a_path_and_a_suggestion() {
        for (table, expected) in [
            (json!([]), "`a` must be an object, not an array (write {…})"),
            (json!("x"), "`a` must be an object, not a string (write {…})"),
            (json!(null), "`a` is null (leave it out, or give it a value)"),
            (json!({}), "`a` has nothing to serve (add one of respond, redirect, files, pr"),
            (json!({"respond": null}), "`respond` is null (leave it out, or give it a value)"),
            (json!({"respond": {"status": null}}), "`respond.status` is null (leave it out, or"),
            (json!({"respond": {}, "aliases": ["b", null]}), "`aliases[1]` is null (leave it"),
            (json!({"respond": 1}), "`respond` must be an object, not an integer (write {…})"),
            (json!({"respond": {"a b": 1}}), "unknown key `respond.\"a b\"` (known keys: status,"),
            (json!({"respond": {}, "www": {"x": {}}}), "unknown key `www` (known keys: "),
            (json!({"respond": {"status": 199}}), "`respond.status` must be an integer from 200"),
            (json!({"respond": {"status": -1}}), "`respond.status` must be an integer from 200"),
            (json!({"respond": {"status": u64::MAX}}), "`respond.status` must be an integer from"),
            (json!({"respond": {"status": 200.5}}), "to 599, not a float"),
            (json!({"respond": {"status": 1e300}}), "to 599, not a float"),
            (json!({"respond": {"status": -1e-300}}), "to 599, not a float"),
            (json!({"respond": {"delay": 30}}), "`respond.delay` must be a duration with its unit"),
            (json!({"respond": {}, "drain_timeout": "169h"}), "`drain_timeout` must be from 0s to"),
            (json!({"respond": {}, "aliases": "b"}), "must be an array of strings, not a string"),
            (json!({"respond": {}, "aliases": ["A"]}), "`a` is repeated"),
            (json!({"proxy": {}}), "`proxy.upstreams` is missing (add `upstreams`)"),
            (json!({"respond": {}, "redirect": {"to": "http://b"}}), "`a` has both `"),
            (json!({"files": {}}), "`files.root` is missing (add `root`)"),
        ] {
            let found = problems("a", &table);
            assert!(found.len() == 1 && found[0].contains(expected), "{table}: {found:#?}");
        }
    }

    #[test]
    fn all_mistakes_are_found_in_one_pass() {
        let table = json!({
            "aliases": ["b:80", 1], "drain_timeot": "1s",
            "respond": {"status": "x", "body": null, "hedaers": {}}
        });
        let found = problems("a:80", &table);
        let starts = [
            "`a:80` must not have a port",
            "`aliases[0]` must not have a port",
            "`aliases[1]` must be a string",
            "unknown key `drain_timeot`",
            "`respond.body` is null",
            "unknown key `respond.hedaers`",
            "`respond.status` must be an integer",
        ];
        assert_eq!(found.len(), starts.len(), "{found:#?}");
        for (found, start) in found.iter().zip(starts) {
            assert!(found.starts_with(start), "{found:?}: {start}");
        }
    }

    #[test]
    fn too_deep_a_value_is_reported_as_a_wrong_type() {
        let mut deep = json!(1);
        for level in 0..100 {
            deep = if level % 2 == 0 { json!([deep]) } else { json!({"x": deep}) };
        }
        let found = problems("a", &json!({"respond": {"body": deep}}));
        assert_eq!(found, ["`respond.body` must be a string, not a table"]);
    }

    proptest! {
        #[test]
        fn any_text_survives(body: String, extra in proptest::char::any()) {
            let body = format!("{body}{extra}\0\u{7f}\u{85}\r\n\t\"\\");
            let app = read("a", &json!({"respond": {"body": body.as_str()}})).unwrap();
            let AppKind::Respond(respond) = app.kind else { panic!("another kind") };
            prop_assert_eq!(respond.body, body);
        }

        #[test]
        fn any_key_and_any_number_is_read_as_what_it_is(key: String, float: f64, integer: i64) {
            for number in [json!(float), json!(integer)] {
                let found = problems("a", &json!({"respond": {"headers": {key.as_str(): number}}}));
                let words = if number.is_null() { "is null" } else { "must be a string" };
                prop_assert!(found.iter().any(|line| line.contains(words)), "{:?}", found);
                prop_assert!(found.len() <= 2, "{:?}", found);
            }
        }
    }
}
