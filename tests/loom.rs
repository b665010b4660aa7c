//! The drain protocol under every interleaving that loom can make (`--cfg loom`), by invariant.
#![cfg(loom)]

use std::sync::atomic::{AtomicUsize, Ordering};

use loom::{sync::Arc, thread};
use tidegate::registry::{AppEntry, AppRegistry, NewApp, NewLife, Refusal, RegistryView};

const HOST: Option<&str> = Some("a.test");

fn new_app() -> NewApp<()> {
    NewApp { host: "a.test".into(), aliases: Vec::new(), app: () }
}

fn registry(loops: usize) -> (Arc<AppRegistry<()>>, Arc<AppEntry<()>>) {
    let registry = Arc::new(AppRegistry::new(loops, None));
    let life = registry.insert(new_app()).unwrap();
    (registry, life)
}

/// A counter outside the model: an observer must not order what it observes.
fn counter() -> std::sync::Arc<AtomicUsize> {
    std::sync::Arc::new(AtomicUsize::new(0))
}

/// Starts a drain that counts its announcements and checks that nothing is in flight then.
fn drain(life: &Arc<AppEntry<()>>, announced: &std::sync::Arc<AtomicUsize>) {
    let (seen, announced) = (Arc::clone(life), std::sync::Arc::clone(announced));
    let announce = move || {
        assert_eq!(seen.drain().active_connections(), 0, "announced with exchanges in flight");
        announced.fetch_add(1, Ordering::SeqCst);
    };
    life.drain().begin_drain(1, 2, Box::new(announce)).unwrap();
}

#[test]
fn i1_nothing_is_admitted_after_begin_drain() {
    loom::model(|| {
        let (registry, life) = registry(2);
        let begun = Arc::new(loom::sync::atomic::AtomicBool::new(false));
        let looper = {
            let (registry, begun) = (Arc::clone(&registry), Arc::clone(&begun));
            thread::spawn(move || {
                let mut view = RegistryView::new(registry, 0);
                for _ in 0..2 {
                    let after = begun.load(loom::sync::atomic::Ordering::Acquire);
                    let admitted = view.admit(HOST);
                    assert!(!(after && admitted.is_ok()), "I1: admitted to a draining life");
                    if let Ok(guard) = &admitted {
                        let after = begun.load(loom::sync::atomic::Ordering::Acquire);
                        let again = guard.enter_again();
                        assert!(!(after && again.is_ok()), "I1: admitted again");
                    }
                }
            })
        };
        drain(&life, &counter());
        begun.store(true, loom::sync::atomic::Ordering::Release);
        looper.join().unwrap();
        assert_eq!(life.drain().active_connections(), 0, "I3");
    });
}

#[test]
fn i2_a_drain_announces_its_end_exactly_once() {
    loom::model(|| {
        let (registry, life) = registry(2);
        let announced = counter();
        let loopers: Vec<_> = (0..2)
            .map(|index| {
                let registry = Arc::clone(&registry);
                thread::spawn(move || {
                    let mut view = RegistryView::new(registry, index);
                    drop(view.admit(HOST));
                })
            })
            .collect();
        drain(&life, &announced);
        assert!(life.drain().begin_drain(1, 2, Box::new(|| panic!("I2"))).is_err());
        for looper in loopers {
            looper.join().unwrap();
        }
        assert_eq!(announced.load(Ordering::SeqCst), 1, "I2");
    });
}

#[test]
fn i2_two_that_begin_a_drain_at_once_are_one_drain() {
    loom::model(|| {
        let (registry, life) = registry(1);
        let announced = counter();
        let begin = |life: Arc<AppEntry<()>>, announced: std::sync::Arc<AtomicUsize>| {
            let count = move || {
                announced.fetch_add(1, Ordering::SeqCst);
            };
            life.drain().begin_drain(1, 2, Box::new(count)).is_ok()
        };
        let other = {
            let (life, announced) = (Arc::clone(&life), std::sync::Arc::clone(&announced));
            thread::spawn(move || begin(life, announced))
        };
        let mut view = RegistryView::new(registry, 0);
        let guard = view.admit(HOST);
        let mine = begin(Arc::clone(&life), std::sync::Arc::clone(&announced));
        drop(guard);
        assert!(mine ^ other.join().unwrap(), "exactly one begins the drain");
        assert_eq!(announced.load(Ordering::SeqCst), 1, "I2");
    });
}

#[test]
fn i3_every_count_returns_to_zero_also_by_panic_and_cut() {
    loom::model(|| {
        let (registry, life) = registry(2);
        let announced = counter();
        let looper = {
            let registry = Arc::clone(&registry);
            thread::spawn(move || {
                let mut view = RegistryView::new(registry, 0);
                let guards = [view.admit(HOST), view.admit(HOST)];
                let [first, second] = guards;
                let fall = std::panic::AssertUnwindSafe(|| {
                    let _held = second;
                    std::panic::resume_unwind(Box::new("an app fell"));
                });
                assert!(std::panic::catch_unwind(fall).is_err());
                if let Ok(guard) = first {
                    guard.cut();
                }
            })
        };
        drain(&life, &announced);
        looper.join().unwrap();
        assert_eq!(life.drain().active_connections(), 0, "I3");
        assert_eq!(announced.load(Ordering::SeqCst), 1, "I2");
    });
}

#[test]
fn i4_lives_never_mix() {
    loom::model(|| {
        let (registry, old) = registry(1);
        let announced = counter();
        let mut view = RegistryView::new(Arc::clone(&registry), 0);
        let held = view.admit(HOST).expect("the old life serves");
        let control = {
            let (registry, old) = (Arc::clone(&registry), Arc::clone(&old));
            let announced = std::sync::Arc::clone(&announced);
            thread::spawn(move || {
                drain(&old, &announced);
                registry.insert(new_app()).expect("a draining name can be taken over")
            })
        };
        let during = view.admit(HOST);
        match &during {
            Ok(guard) => assert!(guard.id() >= old.id()),
            Err(Refusal::Draining(life)) => assert_eq!(life.id(), old.id()),
            Err(Refusal::UnknownHost) => panic!("the host was never unknown"),
        }
        let new = control.join().unwrap();
        let to_new = view.admit(HOST).expect("the new life serves");
        assert_eq!(to_new.id(), new.id());
        let on_new = 1 + u64::from(during.as_ref().is_ok_and(|guard| guard.id() == new.id()));
        assert_eq!(new.drain().active_connections(), on_new, "I4");
        assert_eq!(announced.load(Ordering::SeqCst), 0);
        drop(during);
        drop(held);
        assert_eq!(announced.load(Ordering::SeqCst), 1, "I2");
        assert_eq!(new.drain().active_connections(), 1, "I4: an old guard left the new life");
        registry.forget(&old);
        assert_eq!(registry.find("a.test").map(|entry| entry.id()), Some(new.id()), "I4");
    });
}

#[test]
fn i1_i4_a_replace_has_no_gap_and_the_old_life_still_announces_its_end() {
    loom::model(|| {
        let (registry, old) = registry(1);
        let announced = counter();
        let control = {
            let (registry, old) = (Arc::clone(&registry), Arc::clone(&old));
            let announced = std::sync::Arc::clone(&announced);
            thread::spawn(move || {
                let life = NewLife { app: new_app(), instead_of: Some(Arc::clone(&old)) };
                let begun = registry.update(vec![life], |_| false);
                drain(&old, &announced);
                begun.into_iter().next().expect("one life").expect("the old one leaves")
            })
        };
        let mut view = RegistryView::new(Arc::clone(&registry), 0);
        for _ in 0..2 {
            let guard = view.admit(HOST).expect("there is always a life that serves");
            assert!(guard.id() >= old.id());
        }
        let new = control.join().unwrap();
        assert_eq!(view.admit(HOST).expect("the new life").id(), new.id());
        assert_eq!(announced.load(Ordering::SeqCst), 1, "I2");
        assert_eq!(new.drain().active_connections(), 0, "I3");
    });
}
