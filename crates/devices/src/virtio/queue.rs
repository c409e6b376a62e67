//! A virtqueue, seen from the device: `virtio-queue`'s, with chains checked as a whole and the
//! interrupt that belongs to it.

use super::chain::{Chain, ChainError};
use super::signals::Signals;
use belljar_memory::DmaMemory;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use thiserror::Error;
use virtio_queue::{QueueOwnedT, QueueState, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

/// What the driver has done wrong with a queue, so that the device cannot go on.
#[derive(Debug, Error)]
pub enum QueueError {
    /// The rings.
    #[error("the rings of queue {index} are broken")]
    Rings {
        /// The queue.
        index: u16,
        /// What of them.
        #[source]
        source: virtio_queue::Error,
    },
    /// More chains under way than the queue has entries.
    #[error("queue {index} has more chains under way than entries")]
    TooMany {
        /// The queue.
        index: u16,
    },
    /// A chain.
    #[error("a chain in queue {index} is broken")]
    Chain {
        /// The queue.
        index: u16,
        /// What of it.
        #[source]
        source: ChainError,
    },
}

/// What the driver says about a queue, and how far the device has come: the queue's whole state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSetup {
    /// The most entries.
    pub max_size: u16,
    /// Number of entries.
    pub size: u16,
    /// Whether the driver has enabled the queue.
    pub enabled: bool,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the driver's (available) ring.
    pub driver: u64,
    /// Guest-physical address of the device's (used) ring.
    pub device: u64,
    /// How many chains the device has taken, modulo 2^16.
    pub next_available: u16,
    /// How many chains the device has given back, modulo 2^16.
    pub next_used: u16,
}

impl QueueSetup {
    /// A queue of at most `max_size` entries after reset.
    pub fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            enabled: false,
            descriptors: 0,
            driver: 0,
            device: 0,
            next_available: 0,
            next_used: 0,
        }
    }
}

/// One virtqueue with the interrupt that tells the driver of what was given back.
#[derive(Debug)]
pub struct Queue {
    index: u16,
    rings: virtio_queue::Queue,
    memory: Arc<DmaMemory>,
    signals: Arc<Signals>,
    /// Chains that were taken and not yet given back.
    taken: u16,
    /// Chains that were given back since the driver was last told of it, or not told because it did
    /// not want to be.
    untold: u16,
}

impl Queue {
    /// The queue that `setup` describes. A queue that is not enabled is empty.
    ///
    /// # Errors
    /// [`QueueError::Rings`] if a ring of an enabled queue is misaligned or not RAM.
    pub(super) fn new(
        index: u16,
        setup: &QueueSetup,
        event_idx: bool,
        memory: &Arc<DmaMemory>,
        signals: &Arc<Signals>,
    ) -> Result<Self, QueueError> {
        let broken = |source| QueueError::Rings { index, source };
        let state = QueueState {
            max_size: setup.max_size,
            next_avail: setup.next_available,
            next_used: setup.next_used,
            event_idx_enabled: event_idx,
            size: setup.size,
            ready: setup.enabled,
            desc_table: setup.descriptors,
            avail_ring: setup.driver,
            used_ring: setup.device,
        };
        let rings = if setup.enabled {
            virtio_queue::Queue::try_from(state).map_err(broken)?
        } else {
            virtio_queue::Queue::new(setup.max_size).map_err(broken)?
        };
        if setup.enabled && !rings.is_valid(&**memory) {
            return Err(broken(virtio_queue::Error::QueueNotReady));
        }
        Ok(Self {
            index,
            rings,
            memory: Arc::clone(memory),
            signals: Arc::clone(signals),
            taken: 0,
            untold: 0,
        })
    }

    /// How far the queue has come, for its state.
    pub(super) fn progress(&self) -> (u16, u16) {
        (self.rings.next_avail(), self.rings.next_used())
    }

    /// The queue's number.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Whether the driver has enabled the queue.
    pub fn is_ready(&self) -> bool {
        self.rings.ready()
    }

    /// Guest memory.
    pub fn memory(&self) -> &Arc<DmaMemory> {
        &self.memory
    }

    /// Takes the next chain; `None` if there is none. A driver that breaks the queue's rules is
    /// asked for a reset, once, and its queue is empty from then on.
    pub fn pop(&mut self) -> Option<Chain> {
        match self.try_pop() {
            Ok(chain) => chain,
            Err(error) => {
                self.fail(&error);
                None
            }
        }
    }

    fn try_pop(&mut self) -> Result<Option<Chain>, QueueError> {
        let index = self.index;
        if !self.rings.ready() {
            return Ok(None);
        }
        let (limit, memory) = (self.rings.size(), &*self.memory);
        if self.taken >= limit {
            // No driver has more chains under way than the queue has entries: one who claims to
            // must not make devices work without bound. What was taken is given back first.
            return match self.rings.avail_idx(memory, Ordering::Acquire) {
                Ok(index) if index.0 == self.rings.next_avail() => Ok(None),
                Ok(_) => Err(QueueError::TooMany { index }),
                Err(source) => Err(QueueError::Rings { index, source }),
            };
        }
        let mut available = self
            .rings
            .iter(memory)
            .map_err(|source| QueueError::Rings { index, source })?;
        let Some(descriptors) = available.next() else {
            return Ok(None);
        };
        let head = descriptors.head_index();
        let chain = Chain::collect(memory, head, limit, descriptors)
            .map_err(|source| QueueError::Chain { index, source })?;
        self.taken += 1;
        Ok(Some(chain))
    }

    /// Gives up a queue whose driver did what it must not, and asks the driver for a reset.
    pub fn fail(&mut self, error: &dyn std::error::Error) {
        let cause = error.source().map(ToString::to_string);
        tracing::warn!(%error, cause, "the guest's driver broke a virtqueue's rules");
        self.rings.set_ready(false);
        self.signals.needs_reset();
    }

    /// Puts the chain that was taken last back, to be taken again.
    pub fn put_back(&mut self, chain: Chain) {
        drop(chain);
        self.taken = self.taken.saturating_sub(1);
        self.rings.go_to_previous_position();
    }

    /// Gives back the chain with the number `head`, into whose writable buffers the device wrote
    /// `written` bytes. Chains may be given back in any order. The driver is told by
    /// [`signal`](Self::signal).
    pub fn complete(&mut self, head: u16, written: u32) {
        self.complete_all(&[(head, written)]);
    }

    /// Gives back several chains, each as [`complete`](Self::complete) does, of which the driver sees
    /// all or none: those of one frame, for example. Virtio 1.2, 5.1.6.4.
    pub fn complete_all(&mut self, chains: &[(u16, u32)]) {
        if !self.rings.ready() {
            return;
        }
        let count = chains.len() as u16;
        self.taken = self.taken.saturating_sub(count);
        if let Err(source) = self.use_all(chains) {
            let index = self.index;
            self.fail(&QueueError::Rings { index, source });
        }
        self.untold = self.untold.saturating_add(count);
    }

    fn use_all(&mut self, chains: &[(u16, u32)]) -> Result<(), virtio_queue::Error> {
        let Some((&(last, written), before)) = chains.split_last() else {
            return Ok(());
        };
        let (memory, mut next) = (&*self.memory, self.rings.next_used());
        for &(head, written) in before {
            // The ring's entries follow its flags and index. Virtio 1.2, 2.7.8.
            let entry = u64::from(next % self.rings.size()) * 8 + 4;
            let address = GuestAddress(self.rings.used_ring())
                .checked_add(entry)
                .ok_or(virtio_queue::Error::AddressOverflow)?;
            let used = u64::from(head) | u64::from(written) << 32;
            memory
                .write_obj(used.to_le(), address)
                .map_err(virtio_queue::Error::GuestMemory)?;
            next = next.wrapping_add(1);
        }
        // The index is behind the last one at once.
        self.rings.set_next_used(next);
        self.rings.add_used(memory, last, written)
    }

    /// Tells the driver of what was given back since the last call, if it wants to know.
    pub fn signal(&mut self) {
        if !self.rings.ready() {
            return;
        }
        match self.driver_wants_to_know() {
            Ok(true) => self.signals.queue(self.index),
            Ok(false) => {}
            Err(source) => {
                let index = self.index;
                self.fail(&QueueError::Rings { index, source });
            }
        }
    }

    /// Whether the driver waits for one of the chains that it was not told of. Virtio 1.2, 2.7.7.2.
    fn driver_wants_to_know(&mut self) -> Result<bool, virtio_queue::Error> {
        let untold = std::mem::take(&mut self.untold);
        if !self.rings.event_idx_enabled() {
            return Ok(true);
        }
        // What was given back is visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        let behind = 4 + 2 * u64::from(self.rings.size());
        let address = GuestAddress(self.rings.avail_ring())
            .checked_add(behind)
            .ok_or(virtio_queue::Error::AddressOverflow)?;
        let event: u16 = self
            .memory
            .load(address, Ordering::Relaxed)
            .map_err(virtio_queue::Error::GuestMemory)?;
        let since = self.rings.next_used().wrapping_sub(u16::from_le(event));
        Ok(since.wrapping_sub(1) < untold)
    }

    /// Asks the driver not to notify: the worker looks by itself.
    pub fn disable_notifications(&mut self) {
        if self.rings.ready() {
            // It can fail only where the rings do, which the next access tells.
            let _ = self.rings.disable_notification(&*self.memory);
        }
    }

    /// Asks the driver to notify again. Tells whether there are chains already, for which no
    /// notification may come.
    pub fn enable_notifications(&mut self) -> bool {
        self.rings.ready()
            && self
                .rings
                .enable_notification(&*self.memory)
                .unwrap_or(false)
    }
}
