//! One loop's copy of an upstream's addresses, and the choice among them.
//!
//! The addresses are copied only when their generation changed, so no lock is taken otherwise.

use std::net::SocketAddr;

use smallvec::SmallVec;

use super::endpoint::Endpoint;

/// One loop's copy of an upstream's addresses.
#[derive(Debug, Default)]
pub(super) struct LoopAddresses {
    generation: u64,
    /// Each address with the time until which the others are preferred.
    list: SmallVec<[(SocketAddr, u64); 2]>,
    next: usize,
}

impl LoopAddresses {
    /// The next address in turn. An address that recently failed is used only if there is no other.
    /// `None` for a unix socket.
    pub(super) fn pick(&mut self, endpoint: &Endpoint, now_ns: u64) -> Option<SocketAddr> {
        let generation = endpoint.generation();
        if generation != self.generation {
            // If the addresses change meanwhile, so does the generation, and the next call copies
            // them again.
            self.list = endpoint.addresses().into_iter().map(|address| (address, 0)).collect();
            (self.generation, self.next) = (generation, 0);
        }
        let count = self.list.len();
        let in_turn = |step: usize| (self.next + step) % count;
        let good = (0..count).map(in_turn).find(|index| self.list[*index].1 <= now_ns);
        let index = good.or_else(|| (count > 0).then(|| in_turn(0)))?;
        self.next = (index + 1) % count;
        Some(self.list[index].0)
    }

    /// This address failed: until then, others are preferred.
    pub(super) fn avoid(&mut self, address: SocketAddr, until_ns: u64) {
        for (known, avoided_until) in &mut self.list {
            if *known == address {
                *avoided_until = until_ns;
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }
}
