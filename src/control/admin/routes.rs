//! The routes of the admin API: one table, by which a request finds what answers it, and by which
//! `Allow` says what a path takes.
//!
//! A path names at most one thing, where its route has [`NAME`].

use super::{
    super::{DrainApp, Input, RemoveApp},
    Admin, AdminRequest,
    answers::error,
    call::Call,
};
use crate::{app::Later, http::Response};

/// Stands for any segment of a path: what the request is about.
const NAME: &str = "{name}";

/// One path with one method.
struct Route {
    method: &'static str,
    path: &'static [&'static str],
    /// Answers it, now or later. The name is the host of an app where the path begins with `apps`.
    act: fn(&Admin, &str, &Call<'_>, Later),
}

const ROUTES: &[Route] = &[
    // The loops answer these two themselves, but for another method.
    route("GET", &["healthz"], |_, _, _, later| later.respond(no_path())),
    route("GET", &["readyz"], |_, _, _, later| later.respond(no_path())),
    route("GET", &["status"], |admin, _, _, later| respond(later, admin.status())),
    route("GET", &["certificates"], |admin, _, _, later| respond(later, admin.certificates())),
    route("GET", &["metrics"], |admin, _, call, later| respond(later, admin.metrics(call.accept))),
    route("GET", &["events"], |admin, _, call, later| admin.stream_events(call, later)),
    route("GET", &["drains"], |admin, _, _, later| respond(later, admin.drains())),
    route("GET", &["drains", NAME], Admin::watch),
    route("GET", &["apps"], |admin, _, _, later| respond(later, admin.apps())),
    route("GET", &["apps", NAME], |admin, host, _, later| respond(later, admin.app(host))),
    route("PUT", &["apps", NAME], Admin::put),
    route("DELETE", &["apps", NAME], |admin, host, call, later| {
        admin.begin_drain(host, call, later, |host, timeout, answer| {
            Input::Remove(RemoveApp { host, timeout, answer })
        });
    }),
    route("GET", &["apps", NAME, "deploy"], |admin, host, _, later| {
        respond(later, admin.deploy_progress(host));
    }),
    route("POST", &["apps", NAME, "deploy"], Admin::deploy),
    route("DELETE", &["apps", NAME, "deploy"], |admin, host, _, later| {
        respond(later, admin.abort_deploy(host));
    }),
    route("POST", &["apps", NAME, "drain"], |admin, host, call, later| {
        admin.begin_drain(host, call, later, |host, timeout, answer| {
            Input::Drain(DrainApp { host, timeout, answer })
        });
    }),
    route("POST", &["apps", NAME, "resume"], |admin, host, _, later| admin.resume(host, later)),
    route("GET", &["apps", NAME, "connections"], |admin, host, _, later| {
        admin.connections(host, later);
    }),
    route("POST", &["apps", NAME, "upstreams", "drain"], Admin::drain_upstream),
    route("POST", &["apps", NAME, "upstreams", "resume"], Admin::resume_upstream),
    route("DELETE", &["connections", NAME], |admin, id, _, later| admin.cut_connection(id, later)),
    route("POST", &["reload"], |admin, _, call, later| admin.reload(call, later)),
    route("POST", &["stop"], |admin, _, call, later| admin.stop(call, later)),
    route("POST", &["upgrade"], |admin, _, call, later| admin.upgrade(call, later)),
];

const fn route(
    method: &'static str,
    path: &'static [&'static str],
    act: fn(&Admin, &str, &Call<'_>, Later),
) -> Route {
    Route { method, path, act }
}

impl Route {
    /// What the path names, if it is this route's: empty where nothing is named.
    fn name<'a>(&self, path: &[&'a str]) -> Option<&'a str> {
        let mut name = "";
        let is_same = self.path.len() == path.len()
            && self.path.iter().zip(path).all(|(own, segment)| {
                if *own == NAME {
                    name = segment;
                }
                *own == NAME || own == segment
            });
        is_same.then_some(name)
    }
}

impl Admin {
    /// Has a request answered.
    pub(super) fn answer(&self, request: &AdminRequest, later: Later) {
        let Some((path, call)) = Call::parse(request) else {
            return later.respond(error(400, "the path or the query is not percent-encoded UTF-8"));
        };
        let path: Vec<&str> = path.iter().map(|part| &**part).collect();
        let found = ROUTES.iter().filter(|route| call.is(route.method));
        let found = found.filter_map(|route| Some((route, route.name(&path)?))).next();
        let Some((route, name)) = found else { return later.respond(refusal(&path)) };
        // A new app has the name that it is given; all else is for the app that has it.
        let is_new = call.is("PUT") && call.value("only") != Some("replace");
        if path[0] == "apps" && !is_new {
            return (route.act)(self, &self.host_named(name), &call, later);
        }
        (route.act)(self, name, &call, later);
    }
}

/// The methods that a path takes, in the table's order; none if it is no path of the API.
fn allowed(path: &[&str]) -> Option<String> {
    let routes = ROUTES.iter().filter(|route| route.name(path).is_some());
    let methods: Vec<_> = routes.map(|route| route.method).collect();
    (!methods.is_empty()).then(|| methods.join(", "))
}

/// The path is not known, or not with this method.
fn refusal(path: &[&str]) -> Response<'static> {
    let Some(allow) = allowed(path) else { return no_path() };
    error(405, &format!("this path takes {allow}")).with_field("Allow", &allow)
}

fn no_path() -> Response<'static> {
    error(404, "the admin API has no such path")
}

fn respond(later: Later, answered: super::answers::Answered) {
    later.respond(answered.unwrap_or_else(|refusal| refusal));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_says_what_it_takes() {
        for (path, methods) in [
            ("healthz", Some("GET")),
            ("readyz", Some("GET")),
            ("status", Some("GET")),
            ("certificates", Some("GET")),
            ("metrics", Some("GET")),
            ("events", Some("GET")),
            ("drains", Some("GET")),
            ("drains/7", Some("GET")),
            ("apps", Some("GET")),
            ("apps/a.test", Some("GET, PUT, DELETE")),
            ("apps/drain", Some("GET, PUT, DELETE")),
            ("apps/a.test/deploy", Some("GET, POST, DELETE")),
            ("apps/a.test/drain", Some("POST")),
            ("apps/a.test/resume", Some("POST")),
            ("apps/a.test/connections", Some("GET")),
            ("apps/a.test/upstreams/drain", Some("POST")),
            ("apps/a.test/upstreams/resume", Some("POST")),
            ("connections/0-1", Some("DELETE")),
            ("reload", Some("POST")),
            ("stop", Some("POST")),
            ("upgrade", Some("POST")),
            ("", None),
            ("connections", None),
            ("apps/a.test/upstreams", None),
            ("apps/a.test/drain/x", None),
            ("{name}", None),
        ] {
            let path: Vec<_> = path.split('/').collect();
            assert_eq!(allowed(&path).as_deref(), methods, "{path:?}");
        }
    }

    #[test]
    fn no_route_hides_another() {
        for (index, route) in ROUTES.iter().enumerate() {
            let same =
                |other: &&Route| other.method == route.method && other.name(route.path).is_some();
            assert_eq!(ROUTES.iter().filter(same).count(), 1, "{} {:?}", index, route.path);
        }
    }
}
