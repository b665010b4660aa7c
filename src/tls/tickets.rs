//! Session tickets: a client's session, sealed by keys that all loops share, kept by the client.
//!
//! ```text
//!  now:                next      current    previous
//!  one period later:   (new)     next       current     previous is forgotten
//! ```
//! Tickets are sealed with `current`. All three open tickets: `next` because another process that
//! got these keys in an upgrade may rotate a little earlier. A ticket dies at the second rotation
//! after its sealing.
//!
//! The keys are a value: a rotation makes a new one, and with it a new
//! [`CertificateTable`](super::CertificateTable). Nothing is locked, and nothing is stored.
//!
//! ```text
//!  ticket:  name of the key (4) │ nonce (12) │ session, sealed (AES-256-GCM) │ tag (16)
//!  in the associated data:  the digest of the policy that the session was made under
//! ```
//! rustls checks suite and name when a session is resumed, but not client certificates: without the
//! digest a ticket from before they were required would still let its client in (I12).

use std::{fmt, sync::Arc};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand,
};
use rustls::server::ProducesTickets;

use super::provider::Digest;

/// How long a key seals, in seconds. A ticket is good for this long at least.
pub(crate) const PERIOD_SECS: u64 = 12 * 60 * 60;

const SECRET_BYTES: usize = 32;
const NAME_BYTES: usize = 4;
const TAG_BYTES: usize = 16;

/// The secrets, and when `current` began to seal (seconds since 1970).
const EXPORTED_BYTES: usize = 3 * (NAME_BYTES + SECRET_BYTES) + 8;

/// The keys that tickets are sealed with.
#[derive(Clone)]
pub(crate) struct TicketKeys {
    next: TicketKey,
    current: TicketKey,
    previous: TicketKey,
    current_since_secs: u64,
}

#[derive(Clone)]
struct TicketKey {
    name: [u8; NAME_BYTES],
    secret: [u8; SECRET_BYTES],
    key: Arc<LessSafeKey>,
}

/// The system has no random bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NoRandom;

impl fmt::Display for NoRandom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the system has no random bytes")
    }
}

impl std::error::Error for NoRandom {}

impl TicketKeys {
    /// New keys, in use from now on (seconds since 1970).
    ///
    /// # Errors
    /// The system has no random bytes.
    pub(crate) fn generate(now_secs: u64) -> Result<Self, NoRandom> {
        Ok(Self {
            next: TicketKey::generate()?,
            current: TicketKey::generate()?,
            previous: TicketKey::generate()?,
            current_since_secs: now_secs,
        })
    }

    /// The keys of this time, if these are too old for it. A clock that goes back rotates nothing.
    ///
    /// # Errors
    /// The system has no random bytes.
    pub(crate) fn rotated(&self, now_secs: u64) -> Result<Option<Self>, NoRandom> {
        match now_secs.saturating_sub(self.current_since_secs) / PERIOD_SECS {
            0 => Ok(None),
            1 => Ok(Some(Self {
                next: TicketKey::generate()?,
                current: self.next.clone(),
                previous: self.current.clone(),
                current_since_secs: now_secs,
            })),
            // Asleep for more than a period: all tickets are too old.
            _ => Self::generate(now_secs).map(Some),
        }
    }

    /// When [`TicketKeys::rotated`] has something to do (seconds since 1970).
    #[cfg(test)]
    pub(crate) fn due_secs(&self) -> u64 {
        self.current_since_secs + PERIOD_SECS
    }

    /// The keys as bytes, for the process that takes over. They are secret: for its channel only.
    pub(crate) fn export(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(EXPORTED_BYTES);
        for key in [&self.next, &self.current, &self.previous] {
            bytes.extend_from_slice(&key.name);
            bytes.extend_from_slice(&key.secret);
        }
        bytes.extend_from_slice(&self.current_since_secs.to_be_bytes());
        bytes
    }

    /// The keys of another process; `None` if these are no exported keys.
    pub(crate) fn import(bytes: &[u8]) -> Option<Self> {
        let (keys, since) = bytes.split_at_checked(EXPORTED_BYTES - 8)?;
        let current_since_secs = u64::from_be_bytes(since.try_into().ok()?);
        let mut keys = keys.chunks_exact(NAME_BYTES + SECRET_BYTES).map(|key| {
            let (name, secret) = key.split_at(NAME_BYTES);
            Some(TicketKey::new(name.try_into().ok()?, secret.try_into().ok()?))
        });
        let mut key = || keys.next().flatten();
        Some(Self { next: key()?, current: key()?, previous: key()?, current_since_secs })
    }

    /// What seals and opens the tickets of one policy.
    pub(super) fn for_policy(&self, policy: Digest) -> Arc<dyn ProducesTickets> {
        Arc::new(PolicyTickets { keys: self.clone(), policy })
    }

    fn named(&self, name: &[u8]) -> Option<&TicketKey> {
        [&self.current, &self.previous, &self.next].into_iter().find(|key| key.name == name)
    }
}

impl TicketKey {
    fn generate() -> Result<Self, NoRandom> {
        let (mut name, mut secret) = ([0; NAME_BYTES], [0; SECRET_BYTES]);
        rand::fill(&mut name).map_err(|_| NoRandom)?;
        rand::fill(&mut secret).map_err(|_| NoRandom)?;
        Ok(Self::new(name, secret))
    }

    fn new(name: [u8; NAME_BYTES], secret: [u8; SECRET_BYTES]) -> Self {
        let key = UnboundKey::new(&AES_256_GCM, &secret).expect("the secret has the key's length");
        Self { name, secret, key: Arc::new(LessSafeKey::new(key)) }
    }

    /// Random nonces: a key seals for [`PERIOD_SECS`], far fewer than 2^32 tickets.
    fn seal(&self, policy: &Digest, session: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let len = NAME_BYTES + NONCE_LEN + session.len() + TAG_BYTES;
        let mut ticket = Vec::with_capacity(len);
        ticket.extend_from_slice(&self.name);
        ticket.extend_from_slice(&nonce);
        ticket.extend_from_slice(session);
        let sealed = &mut ticket[NAME_BYTES + NONCE_LEN..];
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self.key.seal_in_place_separate_tag(nonce, Aad::from(policy), sealed).ok()?;
        ticket.extend_from_slice(tag.as_ref());
        Some(ticket)
    }

    fn open(&self, policy: &Digest, ticket: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = ticket.get(NAME_BYTES..)?.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut session = sealed.to_vec();
        let len = self.key.open_in_place(nonce, Aad::from(policy), &mut session).ok()?.len();
        session.truncate(len);
        Some(session)
    }
}

/// The tickets of one policy.
struct PolicyTickets {
    keys: TicketKeys,
    policy: Digest,
}

/// Not derived: no key gets into a log.
impl fmt::Debug for PolicyTickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyTickets").finish_non_exhaustive()
    }
}

impl ProducesTickets for PolicyTickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        u32::try_from(PERIOD_SECS).unwrap_or(u32::MAX)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.keys.current.seal(&self.policy, plain)
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.keys.named(ticket.get(..NAME_BYTES)?)?.open(&self.policy, ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Digest = [1; 32];
    const OTHER: Digest = [2; 32];

    fn sealed(keys: &TicketKeys) -> Vec<u8> {
        keys.for_policy(ONE).encrypt(b"session").unwrap()
    }

    fn opened(keys: &TicketKeys, ticket: &[u8]) -> Option<Vec<u8>> {
        keys.for_policy(ONE).decrypt(ticket)
    }

    #[test]
    fn a_ticket_lives_through_one_rotation_and_dies_at_the_second() {
        let first = TicketKeys::generate(1000).unwrap();
        assert!(first.rotated(first.due_secs() - 1).unwrap().is_none());
        assert!(first.rotated(0).unwrap().is_none(), "a clock that went back");
        let second = first.rotated(first.due_secs()).unwrap().unwrap();
        let third = second.rotated(second.due_secs()).unwrap().unwrap();
        let ticket = sealed(&first);
        assert_eq!(opened(&first, &ticket).unwrap(), b"session");
        assert_eq!(opened(&second, &ticket).unwrap(), b"session");
        assert_eq!(opened(&third, &ticket), None);
        assert_eq!(opened(&first, &sealed(&second)).unwrap(), b"session", "by the next key");
        let late = first.rotated(first.due_secs() + PERIOD_SECS).unwrap().unwrap();
        assert_eq!(opened(&late, &ticket), None, "asleep for two periods");
    }

    #[test]
    fn keys_open_in_another_process_what_they_sealed_in_this_one() {
        let keys = TicketKeys::generate(7).unwrap();
        let taken = TicketKeys::import(&keys.export()).unwrap();
        assert_eq!(opened(&taken, &sealed(&keys)).unwrap(), b"session");
        assert_eq!(taken.due_secs(), keys.due_secs());
        let [next, taken_next] = [&keys, &taken].map(|keys| keys.rotated(keys.due_secs()));
        let (next, taken_next) = (next.unwrap().unwrap(), taken_next.unwrap().unwrap());
        assert_eq!(opened(&taken_next, &sealed(&next)).unwrap(), b"session");
        for bytes in [&keys.export()[1..], &[keys.export(), vec![0]].concat(), &[]] {
            assert!(TicketKeys::import(bytes).is_none());
        }
    }

    #[test]
    fn a_ticket_of_another_policy_and_a_changed_one_open_nothing() {
        let keys = TicketKeys::generate(0).unwrap();
        let ticket = sealed(&keys);
        assert_eq!(keys.for_policy(OTHER).decrypt(&ticket), None);
        for at in 0..ticket.len() {
            let mut changed = ticket.clone();
            changed[at] ^= 1;
            assert_eq!(opened(&keys, &changed), None, "byte {at}");
            assert_eq!(opened(&keys, &ticket[..at]), None, "{at} bytes");
        }
        assert_ne!(ticket, sealed(&keys), "no nonce twice");
    }

    #[test]
    fn what_seals_tickets_shows_no_key() {
        let keys = TicketKeys::generate(0).unwrap();
        assert_eq!(format!("{:?}", keys.for_policy(ONE)), "PolicyTickets { .. }");
    }
}
