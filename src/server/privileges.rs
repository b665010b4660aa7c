//! The account that the process runs as: root becomes the user that the config names.
//!
//! It does so before the first thread is started and before anything is opened, except the config
//! and the files of certificates: these are only read, and keys may be readable for root alone.
//! Nothing is made, written or removed as root in folders that belong to others, and what the
//! server can open at its start it can open again later: its logs, its config, its addresses. Keys
//! that it can't read again are kept in memory, and warned of.
//!
//! Of root's rights one stays, CAP_NET_BIND_SERVICE (capabilities(7)): a reload may bring ports
//! below 1024. It is ambient, so that an upgrade's new process has it. All others are gone for
//! good, also for programs that are started.

use std::{ffi::CString, fs, io};

use nix::unistd::{
    Gid, Group, ResGid, ResUid, Uid, User, geteuid, getgrouplist, getresgid, getresuid, setgroups,
    setresgid, setresuid, setuid,
};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, configure_capability_in_ambient_set, no_new_privs,
    set_capabilities, set_keep_capabilities, set_no_new_privs,
};

use crate::{config::ServerConfig, logging::event};

/// A user of this machine and its groups.
pub(crate) struct Account {
    name: String,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

/// What is wrong with the account that a config names.
#[derive(Debug)]
pub(crate) struct AccountError {
    /// The key of `[server]`.
    pub(crate) key: &'static str,
    /// The end of a sentence that begins with the key.
    pub(crate) predicate: String,
}

/// What the process may do.
pub(crate) enum Privileges {
    /// Everything: the config names no account.
    Root,
    /// What it was started with, as another account than root.
    Given,
    /// What this account may do, and these capabilities.
    Dropped(Account, CapabilitySet),
}

impl Account {
    /// Looks up the account that the config names, if it names one.
    ///
    /// # Errors
    /// When there is no such user or group, or it is root.
    pub(crate) fn of(config: &ServerConfig) -> Result<Option<Self>, AccountError> {
        let Some(name) = &config.user else { return Ok(None) };
        let user = found("user", User::from_name(name))?;
        if user.uid.is_root() {
            let predicate = "is root: name another user, or remove the key".to_owned();
            return Err(AccountError { key: "user", predicate });
        }
        let gid = match &config.group {
            Some(group) => found("group", Group::from_name(group))?.gid,
            None => user.gid,
        };
        let c_name = CString::new(user.name.as_str()).expect("it comes from a C string");
        let groups = found("user", getgrouplist(&c_name, gid).map(Some))?;
        Ok(Some(Self { name: user.name, uid: user.uid, gid, groups }))
    }

    /// The process is that already, or is root and can become it.
    ///
    /// # Errors
    /// The account that it is instead.
    pub(crate) fn check_reachable(&self) -> Result<(), String> {
        if self.is_current() || geteuid().is_root() {
            return Ok(());
        }
        Err(format!("cannot run as {}: only root can, and this is uid {}", self.name, geteuid()))
    }

    fn is_current(&self) -> bool {
        let Self { uid, gid, .. } = *self;
        getresuid() == Ok(ResUid { real: uid, effective: uid, saved: uid })
            && getresgid() == Ok(ResGid { real: gid, effective: gid, saved: gid })
    }

    /// Becomes this account, from root; the capabilities that stay.
    fn assume(&self) -> io::Result<CapabilitySet> {
        // Capabilities belong to threads: a thread that was there before would keep all.
        assert!(fs::read_dir("/proc/self/task")?.count() == 1, "a thread runs as root");
        let kept = capabilities(None)?.permitted & CapabilitySet::NET_BIND_SERVICE;
        set_keep_capabilities(true)?;
        setgroups(&self.groups)?;
        setresgid(self.gid, self.gid, self.gid)?;
        setresuid(self.uid, self.uid, self.uid)?;
        set_capabilities(None, sets(kept))?;
        for capability in kept.iter() {
            configure_capability_in_ambient_set(capability, true)?;
        }
        set_no_new_privs(true)?;
        let is_done = self.is_current()
            && setuid(Uid::from_raw(0)).is_err()
            && capabilities(None)? == sets(kept)
            && no_new_privs()?;
        is_done.then_some(kept).ok_or_else(|| io::Error::other("root's rights did not go"))
    }
}

impl Privileges {
    /// Gives up root for this account, if there is one. To be called before any thread is started.
    ///
    /// # Errors
    /// When the process is neither root nor the account, or the kernel refuses. It must end then.
    pub(crate) fn settle(account: Option<Account>) -> Result<Self, String> {
        let Some(account) = account else {
            return Ok(if geteuid().is_root() { Self::Root } else { Self::Given });
        };
        account.check_reachable()?;
        if account.is_current() {
            return Ok(Self::Given);
        }
        match account.assume() {
            Ok(kept) => Ok(Self::Dropped(account, kept)),
            Err(error) => Err(format!("cannot run as {}: {error}", account.name)),
        }
    }

    /// Says in the log what came of it.
    pub(crate) fn log(&self) {
        match self {
            Self::Root => event!(Warn, "running_as_root", hint = "name a server.user"),
            Self::Given => {}
            Self::Dropped(Account { name, uid, gid, .. }, kept) => {
                let kept: Vec<_> = kept.iter_names().map(|(name, _)| name).collect();
                event!(
                    Info,
                    "privileges_dropped",
                    user = &**name,
                    uid = uid.as_raw(),
                    gid = gid.as_raw(),
                    capabilities = &*kept.join(","),
                );
            }
        }
    }
}

fn found<T>(key: &'static str, result: nix::Result<Option<T>>) -> Result<T, AccountError> {
    let predicate = match result {
        Ok(Some(found)) => return Ok(found),
        Ok(None) => format!("names no {key} of this machine"),
        Err(error) => format!("cannot be looked up: {error}"),
    };
    Err(AccountError { key, predicate })
}

fn sets(kept: CapabilitySet) -> CapabilitySets {
    CapabilitySets { effective: kept, permitted: kept, inheritable: kept }
}
