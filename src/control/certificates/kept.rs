//! What was read from files, and how it is kept when they can't be used any more.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::tls::FileStamp;

/// A file that changed less than this long ago may change again without another stamp: clocks of
/// file systems have steps of up to 2 s.
const UNTRUSTED_FOR: Duration = Duration::from_secs(2);

/// Which files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// All: an operator wants to know what is in them.
    All,
    /// Those that changed, and those that couldn't be used.
    Changed,
}

/// What was read from files.
#[derive(Debug)]
pub(super) struct Kept<T> {
    /// Of each file, before it was read; none where it can't be trusted.
    stamps: Vec<Option<FileStamp>>,
    /// The last that could be used.
    pub(super) good: Option<Arc<T>>,
    /// Why the files, as they are, can't be used.
    pub(super) error: Option<String>,
    /// What an operator should change about the files.
    pub(super) warnings: Vec<String>,
}

/// What files hold, and what an operator should change about them; none if they hold the same as
/// before.
pub(super) type Loaded<T> = Result<Option<(T, Vec<String>)>, Refused>;

/// Why files can't be used.
pub(super) struct Refused {
    pub(super) reason: String,
    /// This process may not read them.
    pub(super) is_denied: bool,
}

impl<T: PartialEq> Kept<T> {
    /// Reads the files by `load`, if they are to be read.
    pub(super) fn read(
        files: &[&Path],
        before: Option<&Arc<Self>>,
        (reading, now): (Reading, SystemTime),
        load: impl FnOnce(Option<&T>) -> Loaded<T>,
    ) -> Arc<Self> {
        // Before the files are read: a change in between is found by the next look.
        let stamps: Vec<_> = files.iter().map(|file| trusted(file, now)).collect();
        if let Some(before) = before
            && reading == Reading::Changed
            && before.error.is_none()
            && before.stamps == stamps
            && stamps.iter().all(Option::is_some)
        {
            return Arc::clone(before);
        }
        let good = before.and_then(|before| before.good.clone());
        Arc::new(match load(good.as_deref()) {
            Ok(None) => {
                let warnings = before.map(|before| before.warnings.clone()).unwrap_or_default();
                Self { stamps, good, error: None, warnings }
            }
            Ok(Some((read, warnings))) => {
                let same = good.filter(|good| **good == read);
                let good = Some(same.unwrap_or_else(|| Arc::new(read)));
                Self { stamps, good, error: None, warnings }
            }
            // Whether anything has changed is unknown. What was read as root stays, and an
            // operator knows since the start.
            Err(Refused { is_denied: true, .. })
                if reading == Reading::Changed
                    && files.iter().any(|file| FileStamp::of(file).is_none())
                    && let Some(before) = before.filter(|before| before.error.is_none()) =>
            {
                return Arc::clone(before);
            }
            Err(Refused { reason, .. }) => {
                Self { stamps, good, error: Some(reason), warnings: Vec::new() }
            }
        })
    }

    /// What another process has read from files; this one reads them before it uses it.
    pub(super) fn handed(good: Arc<T>) -> Arc<Self> {
        let (stamps, warnings) = (Vec::new(), Vec::new());
        Arc::new(Self { stamps, good: Some(good), error: None, warnings })
    }

    /// Whether a look at the files would find the same.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let good = |it: &Self| it.good.as_ref().map(Arc::as_ptr);
        self.stamps == other.stamps
            && good(self) == good(other)
            && self.error == other.error
            && self.warnings == other.warnings
    }
}

fn trusted(file: &Path, now: SystemTime) -> Option<FileStamp> {
    let stamp = FileStamp::of(file)?;
    let age = now.duration_since(stamp.changed()).unwrap_or_default();
    (age >= UNTRUSTED_FOR).then_some(stamp)
}
