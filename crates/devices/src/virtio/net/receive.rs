//! The receive queue: where a network delivers frames to the guest. Virtio 1.2, 5.1.6.3.

use super::super::{Chain, Queue};
use belljar_clock::{Clock, Nanos};
use belljar_net::rate::RateLimit;
use belljar_net::vnet::HEADER_LEN;
use belljar_net::{Guest, GuestOffloads, VnetHeader};
use std::collections::VecDeque;
use std::sync::Arc;

/// The guest's side of the card.
#[derive(Debug)]
pub(super) struct Receive {
    queue: Queue,
    /// Chains that were taken from the queue, in order, and have not been used yet.
    spare: VecDeque<Chain>,
    /// The chains of a frame, and what was written to each.
    written: Vec<(u16, u32)>,
    /// Bytes that the spare chains can take.
    capacity: u64,
    offloads: GuestOffloads,
    /// Frames may take several chains.
    mergeable: bool,
    clock: Arc<dyn Clock>,
    limit: Option<RateLimit>,
    /// When the limit lets the next frame pass, after it has held one back.
    pub held_until: Option<Nanos>,
}

impl Receive {
    pub fn new(
        queue: Queue,
        offloads: GuestOffloads,
        mergeable: bool,
        clock: Arc<dyn Clock>,
        rate: Option<u64>,
    ) -> Self {
        let now = clock.now();
        Self {
            queue,
            spare: VecDeque::new(),
            written: Vec::new(),
            capacity: 0,
            offloads,
            mergeable,
            clock,
            limit: rate.map(|rate| RateLimit::new(rate, now)),
            held_until: None,
        }
    }

    /// The queue, with what was not used put back.
    pub fn into_queue(mut self) -> Queue {
        while let Some(chain) = self.spare.pop_back() {
            self.queue.put_back(chain);
        }
        self.queue
    }

    /// Tells the driver of what was delivered.
    pub fn signal(&mut self) {
        self.queue.signal();
    }

    pub fn disable_notifications(&mut self) {
        self.queue.disable_notifications();
    }

    /// Asks the driver to tell of new chains; whether there are some already.
    pub fn enable_notifications(&mut self) -> bool {
        self.queue.enable_notifications()
    }

    /// Whether there are spare chains for `len` bytes, header included, after taking what the driver
    /// has put into the queue.
    fn has(&mut self, len: u64) -> bool {
        loop {
            let enough = if self.mergeable {
                self.capacity >= len
            } else {
                !self.spare.is_empty()
            };
            if enough {
                return true;
            }
            let Some(chain) = self.queue.pop() else {
                return false;
            };
            self.capacity += chain.writable.len();
            self.spare.push_back(chain);
        }
    }

    fn take_chain(&mut self) -> Option<Chain> {
        let chain = self.spare.pop_front()?;
        self.capacity -= chain.writable.len();
        Some(chain)
    }

    /// How many of the spare chains a frame of `len` bytes takes, header included.
    fn count(&self, len: u64) -> u16 {
        let mut left = len;
        let mut count = 0;
        for chain in &self.spare {
            count += 1;
            left = left.saturating_sub(chain.writable.len());
            if left == 0 {
                break;
            }
        }
        count
    }

    /// Writes the frame to chains, and gives them back at once: a driver that saw some of them would
    /// take the others for frames of their own.
    fn write(&mut self, header: &[u8], parts: &[&[u8]], count: u16) {
        let mut parts = [header].into_iter().chain(parts.iter().copied());
        let mut part: &[u8] = &[];
        self.written.clear();
        for _ in 0..count {
            let Some(chain) = self.take_chain() else {
                break;
            };
            let (mut at, len) = (0, chain.writable.len());
            while at < len {
                if part.is_empty() {
                    match parts.next() {
                        Some(next) => part = next,
                        None => break,
                    }
                }
                let now = part.len().min((len - at) as usize);
                let memory = self.queue.memory();
                if chain.writable.write(memory, at, &part[..now]).is_err() {
                    break;
                }
                part = &part[now..];
                at += now as u64;
            }
            self.written.push((chain.head, at as u32));
        }
        self.queue.complete_all(&self.written);
    }

    /// Whether the limit lets a frame pass now.
    fn is_admitted(&mut self) -> bool {
        let Some(limit) = &mut self.limit else {
            return true;
        };
        match limit.admit(self.clock.now()) {
            Ok(()) => true,
            Err(until) => {
                self.held_until = Some(until);
                false
            }
        }
    }
}

impl Guest for Receive {
    fn offloads(&self) -> GuestOffloads {
        self.offloads
    }

    fn room(&mut self, len: usize) -> bool {
        self.is_admitted() && self.has((HEADER_LEN + len) as u64)
    }

    fn deliver(&mut self, header: VnetHeader, parts: &[&[u8]]) -> bool {
        let frame: usize = parts.iter().map(|part| part.len()).sum();
        let len = (HEADER_LEN + frame) as u64;
        if !self.is_admitted() || !self.has(len) {
            return false;
        }
        let count = if self.mergeable { self.count(len) } else { 1 };
        let too_small = |chain: &Chain| !self.mergeable && chain.writable.len() < len;
        if self.spare.front().is_some_and(too_small) {
            // The driver has no buffer for such a frame: it is lost.
            return true;
        }
        self.write(&header.encode(count), parts, count);
        if let Some(limit) = &mut self.limit {
            limit.take(frame);
        }
        true
    }
}
