//! The map of hosts to lives.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use super::{AppDrainState, AppEntry, AppId, NewApp, NewLife, Target};
use crate::sync::{Arc, AtomicU64, Ordering, ShardedLock};

/// The map of hosts to lives.
///
/// Names are lower case; a name `*.example.com` stands for every host below `example.com`.
pub struct AppRegistry<A> {
    loops: usize,
    /// Sharded, so that readers don't contend: unknown hosts are looked up here each time.
    routes: ShardedLock<Routes<A>>,
    /// Incremented with every change of the routes. Views compare it before they use their copies.
    generation: AtomicU64,
    next_id: AtomicU64,
}

struct Routes<A> {
    names: HashMap<String, Arc<AppEntry<A>>>,
    default_app: Option<String>,
}

/// Another app already serves a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameTaken {
    /// The name.
    pub name: String,
    /// The primary host of the app that serves it.
    pub by: String,
}

impl fmt::Display for NameTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the name {} is served by the app {}", self.name, self.by)
    }
}

impl std::error::Error for NameTaken {}

impl<A> AppRegistry<A> {
    /// The id that the next life gets.
    pub fn next_id(&self) -> u64 {
        self.next_id.load(Ordering::Relaxed)
    }

    /// Makes ids continue from here, so that ids of another process are not used again.
    pub fn skip_ids(&self, next_id: u64) {
        self.next_id.fetch_max(next_id, Ordering::Relaxed);
    }

    /// An empty registry for this many loops.
    pub fn new(loops: usize, default_app: Option<String>) -> Self {
        Self {
            loops,
            routes: ShardedLock::new(Routes { names: HashMap::new(), default_app }),
            generation: AtomicU64::new(0),
            next_id: AtomicU64::new(1),
        }
    }

    /// The number of loops.
    pub fn loops(&self) -> usize {
        self.loops
    }

    /// Begins a new life. It takes over names of lives that are draining: they end outside the map
    /// (I4).
    ///
    /// # Errors
    /// [`NameTaken`] when another life serves one of the names; then nothing changes.
    pub fn insert(&self, app: NewApp<A>) -> Result<Arc<AppEntry<A>>, NameTaken> {
        let life = NewLife { app, instead_of: None };
        self.update(vec![life], |held| held.drain.draining()).pop().expect("one life, one result")
    }

    /// Begins several lives in one step; each gets all of its names or none. They take over the
    /// names of lives that are replaced in this step, and of lives for which `yields` returns true.
    /// `yields` is called under the registry's lock.
    ///
    /// # Errors
    /// For each life, [`NameTaken`] when a life that is neither replaced nor yields serves one of
    /// its names. Then it does not begin, and the life that it would replace stays.
    pub fn update(
        &self,
        lives: Vec<NewLife<A>>,
        yields: impl Fn(&AppEntry<A>) -> bool,
    ) -> Vec<Result<Arc<AppEntry<A>>, NameTaken>> {
        self.update_after(lives, yields, || {})
    }

    /// Like [`AppRegistry::update`]. `first` is called right before the routes change, if they do;
    /// it must not use the registry.
    pub fn update_after(
        &self,
        lives: Vec<NewLife<A>>,
        yields: impl Fn(&AppEntry<A>) -> bool,
        first: impl FnOnce(),
    ) -> Vec<Result<Arc<AppEntry<A>>, NameTaken>> {
        if lives.is_empty() {
            return Vec::new();
        }
        let leaving: Vec<_> = lives.iter().map(|life| life.instead_of.clone()).collect();
        let begun: Vec<_> = lives.into_iter().map(|life| self.begin(life.app)).collect();
        let leaves: HashSet<_> = leaving.iter().flatten().map(|old| old.id).collect();
        self.change(|routes| {
            let taken = |name: &String| {
                let held = routes.names.get(name)?;
                let is_free = leaves.contains(&held.id) || yields(held);
                (!is_free).then(|| NameTaken { name: name.clone(), by: held.host.clone() })
            };
            let checked: Vec<_> = begun
                .into_iter()
                .map(|life| {
                    let taken = life.names().find_map(taken);
                    taken.map_or(Ok(life), Err)
                })
                .collect();
            if checked.iter().any(Result::is_ok) {
                first();
            }
            for (life, old) in checked.iter().zip(&leaving) {
                if let (Ok(_), Some(old)) = (life, old) {
                    routes.forget(old);
                }
            }
            for life in checked.iter().flatten() {
                for name in life.names() {
                    routes.names.insert(name.clone(), Arc::clone(life));
                }
            }
            checked
        })
    }

    /// Sets the default app, which answers unknown hosts.
    pub fn set_default_app(&self, host: Option<String>) {
        if !self.read(|routes| routes.default_app == host) {
            self.change(|routes| routes.default_app = host);
        }
    }

    /// Removes a life's names from the map, unless another life has taken them over. Returns
    /// whether there were any.
    pub fn forget(&self, life: &AppEntry<A>) -> bool {
        // A life that left the map before changes no route.
        let has_names = |routes: &Routes<A>| life.names().any(|name| routes.holds(name, life));
        self.read(has_names) && self.change(|routes| routes.forget(life))
    }

    /// The life whose primary host or alias is exactly this name.
    pub fn find(&self, name: &str) -> Option<Arc<AppEntry<A>>> {
        self.read(|routes| routes.names.get(name).map(Arc::clone))
    }

    /// The life that answers a target: exact name of the host, then the longest wildcard, then the
    /// default app.
    pub fn resolve<'a>(&self, target: impl Into<Target<'a>>) -> Option<Arc<AppEntry<A>>> {
        let host = target.into().host_name();
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

    fn begin(&self, new: NewApp<A>) -> Arc<AppEntry<A>> {
        Arc::new(AppEntry {
            id: AppId(self.next_id.fetch_add(1, Ordering::Relaxed)),
            host: new.host,
            aliases: new.aliases,
            app: new.app,
            drain: AppDrainState::new(self.loops),
        })
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn read<T>(&self, look: impl FnOnce(&Routes<A>) -> T) -> T {
        look(&self.routes.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Routes<A>) -> T) -> T {
        let mut routes = self.routes.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let result = change(&mut routes);
        // Inside the lock: a view that sees the new generation also finds the new routes.
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
    /// Removes the names that this life still has. Returns whether there were any.
    fn forget(&mut self, life: &AppEntry<A>) -> bool {
        let mut had_names = false;
        for name in life.names() {
            if self.holds(name, life) {
                self.names.remove(name);
                had_names = true;
            }
        }
        had_names
    }

    fn holds(&self, name: &str, life: &AppEntry<A>) -> bool {
        self.names.get(name).is_some_and(|held| held.id == life.id)
    }

    fn named(&self, host: &str) -> Option<&Arc<AppEntry<A>>> {
        if let Some(entry) = self.names.get(host) {
            return Some(entry);
        }
        // Each dot begins a shorter suffix, so the first hit is the longest wildcard.
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
    fn a_name_that_is_served_cannot_be_taken_over() {
        let registry = registry(&[("a.test", &["b.test"])], None);
        let taken = registry.insert(new("c.test", &["b.test"])).unwrap_err();
        assert_eq!((taken.name.as_str(), taken.by.as_str()), ("b.test", "a.test"));
        assert!(registry.find("c.test").is_none(), "a refused insert changes nothing");
    }

    #[test]
    fn names_move_between_apps_in_one_step_and_a_conflict_stays_with_its_app() {
        let registry = registry(&[("a.test", &["x.test"]), ("b.test", &[]), ("c.test", &[])], None);
        let old = |host| Some(registry.find(host).unwrap());
        let c = registry.find("c.test").unwrap();
        let lives = vec![
            NewLife { app: new("b.test", &["x.test"]), instead_of: old("b.test") },
            NewLife { app: new("a.test", &["y.test"]), instead_of: old("a.test") },
            NewLife { app: new("d.test", &["c.test"]), instead_of: None },
        ];
        let results = registry.update(lives, |_| false);
        assert!(results[0].is_ok() && results[1].is_ok());
        assert_eq!(results[2].as_ref().unwrap_err().by, "c.test");
        for (host, app) in [("x.test", "b.test"), ("y.test", "a.test"), ("c.test", "c.test")] {
            assert_eq!(answers(&registry, host).as_deref(), Some(app));
        }
        assert!(registry.find("d.test").is_none());
        assert_eq!(registry.entries().len(), 3);
        let life = NewLife { app: new("d.test", &["c.test"]), instead_of: None };
        assert!(registry.update(vec![life], |held| held.id() == c.id())[0].is_ok());
        assert_eq!(answers(&registry, "c.test").as_deref(), Some("d.test"));
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
