//! Looks at the certificates of a config that isn't served.

use std::{sync::Arc, time::SystemTime};

use super::{
    kept::Reading,
    sources::Sources,
    state::Held,
    wanted::{Place, Wanted},
};
use crate::config::Config;

/// Reads the files of certificates that a config names: what an operator should change, and the
/// place of the key that it is about.
pub(crate) fn certificate_warnings(config: &Config, now: SystemTime) -> Vec<(Place, String)> {
    let wanted = Arc::new(Wanted::of(config, None));
    let how = (Reading::All, now);
    let sources = Sources::read(&wanted, &Sources::default(), how, &|_| {});
    let (_, remarks) = Held::new(Arc::clone(&wanted), sources, &[], now);
    remarks.warnings(&wanted, now)
}
