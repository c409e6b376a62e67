//! A record of what was flushed from the TLB.

use belljar_x86::paging::Flush;

/// The most addresses that [`Flushes`] names one by one.
const MOST_ADDRESSES: usize = 16;

/// What was flushed, for an engine that caches where code lies.
#[derive(Debug, Default)]
pub struct Flushes {
    /// Every translation.
    pub all: bool,
    /// Every translation that is not global.
    pub non_global: bool,
    /// Those of these addresses' pages.
    pub addresses: Vec<u64>,
}

impl Flushes {
    /// Whether nothing was flushed.
    #[inline]
    pub fn is_empty(&self) -> bool {
        !self.all && !self.non_global && self.addresses.is_empty()
    }

    pub(crate) fn add(&mut self, what: Flush) {
        match what {
            Flush::None => {}
            Flush::Address { linear, .. } if self.addresses.len() < MOST_ADDRESSES => {
                self.addresses.push(linear);
            }
            Flush::Pcid(_) | Flush::NonGlobal => self.non_global = true,
            Flush::Address { .. } | Flush::All => self.all = true,
        }
    }
}
