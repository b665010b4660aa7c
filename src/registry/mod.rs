//! Which app serves which host, and the drain of each life.
//!
//! Owns the map of names, which is the truth, under one lock; each loop asks through its own
//! [`RegistryView`] and takes that lock only when something changed. Knows nothing of sockets,
//! messages or what an app is (`A`), so that loom can check it whole: `tests/loom.rs`.

mod drain;
mod view;

use std::{collections::HashMap, fmt, time::Duration};

pub use drain::{Announce, AppDrainState, Draining, InFlightGuard};
use view::Seat;
pub use view::{Refusal, RegistryView};

use crate::sync::{Arc, AtomicU64, Ordering, RwLock};

/// Names one life of an app. Never used twice in a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AppId(u64);

impl fmt::Display for AppId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The map of hosts to lives.
///
/// Names are lower case; a name `*.example.com` stands for every host below `example.com`.
pub struct AppRegistry<A> {
    loops: usize,
    routes: RwLock<Routes<A>>,
    /// Moves with every change of the routes; views compare it before they trust their copies.
    generation: AtomicU64,
    next_id: AtomicU64,
}

struct Routes<A> {
    names: HashMap<String, Arc<AppEntry<A>>>,
    default_app: Option<String>,
}

/// What an app is to be registered as.
#[derive(Debug)]
pub struct NewApp<A> {
    /// The primary name, lower case.
    pub host: String,
    /// Further names, lower case.
    pub aliases: Vec<String>,
    /// How long a drain of this app may take.
    pub drain_timeout: Duration,
    /// The app itself.
    pub app: A,
}

/// One life of an app.
#[derive(Debug)]
pub struct AppEntry<A> {
    id: AppId,
    host: String,
    aliases: Vec<String>,
    drain_timeout: Duration,
    app: A,
    drain: AppDrainState,
}

impl<A> AppEntry<A> {
    /// The life's name.
    pub fn id(&self) -> AppId {
        self.id
    }

    /// The primary host name.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Further names.
    pub fn aliases(&self) -> &[String] {
        &self.aliases
    }

    /// How long a drain of this app may take.
    pub fn drain_timeout(&self) -> Duration {
        self.drain_timeout
    }

    /// The app itself.
    pub fn app(&self) -> &A {
        &self.app
    }

    /// Who is in flight, and whether the life is draining.
    pub fn drain(&self) -> &AppDrainState {
        &self.drain
    }

    fn names(&self) -> impl Iterator<Item = &String> {
        std::iter::once(&self.host).chain(&self.aliases)
    }
}

/// A name is held by an app that serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameTaken {
    /// The name.
    pub name: String,
    /// The host of the app that holds it.
    pub by: String,
}

impl fmt::Display for NameTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the name {} is served by the app {}", self.name, self.by)
    }
}

impl std::error::Error for NameTaken {}

impl<A> AppRegistry<A> {
    /// An empty registry for this many loops.
    pub fn new(loops: usize, default_app: Option<String>) -> Self {
        Self {
            loops,
            routes: RwLock::new(Routes { names: HashMap::new(), default_app }),
            generation: AtomicU64::new(0),
            next_id: AtomicU64::new(1),
        }
    }

    /// How many loops there are.
    pub fn loops(&self) -> usize {
        self.loops
    }

    /// Begins a new life. It takes over names whose life is draining: the old life ends outside
    /// the map (I4).
    ///
    /// # Errors
    /// [`NameTaken`] when another life serves one of the names; then nothing changed.
    pub fn insert(&self, new: NewApp<A>) -> Result<Arc<AppEntry<A>>, NameTaken> {
        let entry = Arc::new(AppEntry {
            id: AppId(self.next_id.fetch_add(1, Ordering::Relaxed)),
            host: new.host,
            aliases: new.aliases,
            drain_timeout: new.drain_timeout,
            app: new.app,
            drain: AppDrainState::new(self.loops),
        });
        self.change(|routes| {
            let taken = entry.names().find_map(|name| {
                routes
                    .names
                    .get(name)
                    .filter(|held| !held.drain.draining())
                    .map(|held| NameTaken { name: name.clone(), by: held.host.clone() })
            });
            if let Some(taken) = taken {
                return Err(taken);
            }
            for name in entry.names() {
                routes.names.insert(name.clone(), Arc::clone(&entry));
            }
            Ok(Arc::clone(&entry))
        })
    }

    /// Takes the names of a life out of the map, those that are still its own.
    pub fn forget(&self, life: &AppEntry<A>) {
        self.change(|routes| {
            for name in life.names() {
                if routes.names.get(name).is_some_and(|held| held.id == life.id) {
                    routes.names.remove(name);
                }
            }
        });
    }

    /// The life whose primary host or alias is exactly this name.
    pub fn find(&self, name: &str) -> Option<Arc<AppEntry<A>>> {
        self.read(|routes| routes.names.get(name).map(Arc::clone))
    }

    /// The life that answers a host: exact name, then the longest wildcard, then the default app.
    pub fn resolve(&self, host: Option<&str>) -> Option<Arc<AppEntry<A>>> {
        let host = host.map(str::to_ascii_lowercase);
        self.read(|routes| {
            let named = host.as_deref().and_then(|host| routes.named(host));
            let default = || routes.names.get(routes.default_app.as_deref()?);
            named.or_else(default).map(Arc::clone)
        })
    }

    /// All lives in the map, each once, in no order.
    pub fn entries(&self) -> Vec<Arc<AppEntry<A>>> {
        self.read(|routes| {
            let primary = |(name, entry): &(&String, &Arc<AppEntry<A>>)| **name == entry.host;
            routes.names.iter().filter(primary).map(|(_, entry)| Arc::clone(entry)).collect()
        })
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn read<T>(&self, look: impl FnOnce(&Routes<A>) -> T) -> T {
        look(&self.routes.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Routes<A>) -> T) -> T {
        let mut routes = self.routes.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let result = change(&mut routes);
        // Inside the lock: whoever sees the new generation also finds the new routes.
        self.generation.fetch_add(1, Ordering::Release);
        result
    }
}

impl<A> fmt::Debug for AppRegistry<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppRegistry").field("loops", &self.loops).finish_non_exhaustive()
    }
}

impl<A> Routes<A> {
    fn named(&self, host: &str) -> Option<&Arc<AppEntry<A>>> {
        if let Some(entry) = self.names.get(host) {
            return Some(entry);
        }
        // Each dot opens a shorter suffix, so the first hit is the longest wildcard.
        host.match_indices('.').find_map(|(dot, _)| self.names.get(&format!("*{}", &host[dot..])))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn registry(names: &[(&str, &[&str])], default_app: Option<&str>) -> AppRegistry<()> {
        let registry = AppRegistry::new(1, default_app.map(Into::into));
        for (host, aliases) in names {
            registry.insert(new(host, aliases)).unwrap();
        }
        registry
    }

    fn new(host: &str, aliases: &[&str]) -> NewApp<()> {
        NewApp {
            host: host.into(),
            aliases: aliases.iter().map(|alias| (*alias).into()).collect(),
            drain_timeout: Duration::from_secs(1),
            app: (),
        }
    }

    fn answers(registry: &AppRegistry<()>, host: &str) -> Option<String> {
        registry.resolve(Some(host)).map(|entry| entry.host().to_owned())
    }

    #[test]
    fn exact_names_come_before_the_longest_wildcard_and_that_before_the_default() {
        let apps: &[(&str, &[&str])] = &[
            ("a.example.com", &["*.a.example.com"]),
            ("*.example.com", &[]),
            ("fallback.test", &[]),
        ];
        let with_default = registry(apps, Some("fallback.test"));
        for (host, app) in [
            ("a.example.com", "a.example.com"),
            ("A.Example.COM", "a.example.com"),
            ("x.a.example.com", "a.example.com"),
            ("y.x.a.example.com", "a.example.com"),
            ("b.example.com", "*.example.com"),
            ("y.b.example.com", "*.example.com"),
            ("example.com", "fallback.test"),
            ("[::1]", "fallback.test"),
        ] {
            assert_eq!(answers(&with_default, host).as_deref(), Some(app), "{host}");
        }
        let without = registry(apps, None);
        for host in ["example.com", "com", "", "aexample.com", "other.test"] {
            assert_eq!(answers(&without, host), None, "I10: {host}");
        }
        assert!(without.resolve(None).is_none());
    }

    #[test]
    fn a_name_that_is_served_is_not_given_away() {
        let registry = registry(&[("a.test", &["b.test"])], None);
        let taken = registry.insert(new("c.test", &["b.test"])).unwrap_err();
        assert_eq!((taken.name.as_str(), taken.by.as_str()), ("b.test", "a.test"));
        assert!(registry.find("c.test").is_none(), "a refused insert changes nothing");
    }

    #[test]
    fn forgetting_an_old_life_leaves_the_new_one() {
        let registry = registry(&[("a.test", &[])], None);
        let old = registry.find("a.test").unwrap();
        old.drain().begin_drain(1, 2, Box::new(|| ())).unwrap();
        let new = registry.insert(new("a.test", &[])).unwrap();
        registry.forget(&old);
        assert_eq!(registry.find("a.test").unwrap().id(), new.id());
        registry.forget(&new);
        assert!(registry.find("a.test").is_none());
    }
}
