//! Lives that change while something else is under way.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::super::{
    changes::{LifeChanges, PutMode},
    drain_plan::CUT_GRACE,
    drain_view::{Cause, Verdict},
    test_support::{app, control},
    totals::Totals,
};
use crate::{
    hosted::Origin,
    registry::{NewLife, RegistryView},
};

#[test]
fn what_a_loop_cuts_after_the_end_of_a_drain_is_in_the_totals() {
    let (mut control, _commands) = control();
    let now = Instant::now();
    control.put_app(app("a.test", Origin::Admin), PutMode::Add, now).unwrap();
    let mut view = RegistryView::new(Arc::clone(&control.lives.registry), 0);
    let Ok(held) = view.admit(Some("a.test")) else { panic!("not admitted") };
    let ticket = control.remove_app("a.test", Some(Duration::ZERO), now).unwrap();
    // The loop is stuck: it obeys the cut when the drain was given up.
    control.on_time(now);
    control.on_time(now + CUT_GRACE);
    assert_eq!(ticket.wait(Duration::ZERO), Some(Verdict::Cut(1)));
    assert_eq!(control.lives.totals(), Totals { requests_total: 1, cut_total: 0 });
    held.cut();
    control.on_time(now + CUT_GRACE * 2);
    assert_eq!(control.lives.totals(), Totals { requests_total: 1, cut_total: 1 });
}

#[test]
fn a_removal_behind_the_deadline_of_a_drain_gives_no_more_time() {
    let (mut control, _commands) = control();
    let now = Instant::now();
    control.put_app(app("a.test", Origin::Admin), PutMode::Add, now).unwrap();
    let mut view = RegistryView::new(Arc::clone(&control.lives.registry), 0);
    let Ok(_held) = view.admit(Some("a.test")) else { panic!("not admitted") };
    let id = control.drain_app("a.test", Some(Duration::ZERO), now).unwrap().id();
    control.on_time(now);
    let ticket = control.remove_app("a.test", Some(Duration::from_secs(30)), now).unwrap();
    let view = control.lives.drains.view(id.into(), now).unwrap();
    assert_eq!((view.cause, view.remaining), (Cause::Remove, Duration::ZERO));
    control.on_time(now + CUT_GRACE);
    assert_eq!(ticket.wait(Duration::ZERO), Some(Verdict::Cut(1)));
}

#[test]
fn a_life_that_began_while_a_reload_was_prepared_drains_when_that_replaces_it() {
    let (mut control, _commands) = control();
    let now = Instant::now();
    let old = control.put_app(app("a.test", Origin::Config), PutMode::Add, now).unwrap().life;
    let begin = NewLife { app: app("a.test", Origin::Config), instead_of: Some(old) };
    let (remove, default_app) = (Vec::new(), None);
    let changes = LifeChanges { begin: vec![begin], remove, default_app };
    control.drain_app("a.test", None, now).map(drop).unwrap();
    let between = control.lives.resume_app(&mut control.cx, "a.test", None, now).unwrap();
    let changed = control.lives.reload(&mut control.cx, changes, now);
    assert!(between.drain().draining());
    assert_eq!(changed.drains, [between.id()]);
}

#[test]
fn an_app_that_cannot_be_loaded_does_not_replace_one_that_came_while_it_was_tried() {
    let (mut control, _commands) = control();
    let now = Instant::now();
    let came = control.put_app(app("a.test", Origin::Admin), PutMode::Add, now).unwrap().life;
    let mut broken = app("a.test", Origin::Config);
    broken.app.load_error = Some("no such directory".to_owned());
    let begin = vec![NewLife { app: broken, instead_of: None }];
    let changes = LifeChanges { begin, remove: Vec::new(), default_app: None };
    assert!(matches!(control.lives.reload(&mut control.cx, changes, now).begun[..], [None]));
    assert!(!came.drain().draining());
    assert_eq!(control.lives.find("a.test").map(|life| life.id()), Some(came.id()));
}
