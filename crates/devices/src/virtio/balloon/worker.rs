//! The worker: takes pages and statistics from the guest.
//!
//! Which queue is which: pages to inflate and to deflate come first. Then drivers differ. By the
//! specification (5.5.2) statistics have number 2 and reports number 4; Linux before 6.11 leaves out
//! the numbers of features that it does not use, as QEMU does. Here are no hints, which would be
//! number 3, so whichever queue after the statistics is used is that of the reports.

use super::pages::{PagesError, discard_listed, discard_reported};
use super::{GuestStatistics, REQUEST, Shared, feature, lock};
use crate::virtio::{Activation, Chain, Doorbell, Queue};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Inflate,
    Deflate,
    Statistics,
    Report,
}

/// The worker of a balloon.
#[derive(Debug)]
pub(super) struct Worker {
    shared: Arc<Shared>,
    queues: Vec<(Role, Queue)>,
    features: u64,
    /// The chain of the statistics, which is given back to ask for new ones.
    held: Option<Chain>,
}

impl Worker {
    pub fn new(shared: Arc<Shared>, activation: Activation) -> Self {
        let features = activation.features;
        let role = |index| match index {
            0 => Role::Inflate,
            1 => Role::Deflate,
            2 if features & feature::STATS_VQ != 0 => Role::Statistics,
            _ => Role::Report,
        };
        let queues = (0..).map(role).zip(activation.queues);
        Self {
            shared,
            queues: queues.collect(),
            features,
            held: None,
        }
    }

    /// Serves the queues until it is told to stop, and gives them back.
    pub fn run(mut self) -> Vec<Queue> {
        let doorbell = Arc::clone(&self.shared.doorbell);
        let mut more = false;
        loop {
            let rung = doorbell.take_between(more);
            if rung & Doorbell::STOP != 0 {
                return self.finish();
            }
            if rung & 1 << REQUEST != 0 {
                self.ask_for_statistics();
            }
            more = self.serve();
        }
    }

    /// Nobody is told or asked any more; the chain that is held will be taken again.
    fn finish(mut self) -> Vec<Queue> {
        lock(&self.shared.book).signals = None;
        self.shared.changed.notify_all();
        let mut held = self.held.take();
        for (role, queue) in &mut self.queues {
            if *role == Role::Statistics
                && let Some(chain) = held.take()
            {
                queue.put_back(chain);
            }
        }
        self.queues.into_iter().map(|(_, queue)| queue).collect()
    }

    fn ask_for_statistics(&mut self) {
        for (role, queue) in &mut self.queues {
            if *role == Role::Statistics
                && let Some(chain) = self.held.take()
            {
                queue.complete(chain.head, 0);
                queue.signal();
            }
        }
    }

    /// Serves a chain of each queue; tells whether there is more.
    fn serve(&mut self) -> bool {
        let mut more = false;
        for (role, queue) in &mut self.queues {
            let Some(chain) = queue.pop() else {
                more |= queue.enable_notifications();
                continue;
            };
            more = true;
            let result = match *role {
                Role::Inflate => {
                    let dma = Arc::clone(queue.memory());
                    discard_listed(&self.shared.memory, &dma, &chain.readable)
                }
                Role::Deflate => Ok(()),
                Role::Report => report(&self.shared, self.features, &chain),
                Role::Statistics => {
                    note(&self.shared, queue, &chain);
                    // A driver has one chain; one that has more gets the others back.
                    if let Some(earlier) = self.held.replace(chain) {
                        queue.complete(earlier.head, 0);
                        queue.signal();
                    }
                    continue;
                }
            };
            match result {
                Ok(()) => queue.complete(chain.head, 0),
                Err(error) => queue.fail(&error),
            }
            queue.signal();
        }
        more
    }
}

/// Discards the pages of a report, unless the driver relies on what it has filled them with (5.5.6.7).
fn report(shared: &Shared, features: u64, chain: &Chain) -> Result<(), PagesError> {
    let poisoned = features & feature::PAGE_POISON != 0;
    if poisoned && shared.poison.load(Ordering::SeqCst) != 0 {
        return Ok(());
    }
    discard_reported(&shared.memory, &chain.writable)
}

/// Takes the statistics of a chain over.
fn note(shared: &Shared, queue: &Queue, chain: &Chain) {
    let statistics = GuestStatistics::read(queue.memory(), &chain.readable);
    let mut book = lock(&shared.book);
    book.arrivals += 1;
    book.statistics = statistics;
    shared.changed.notify_all();
}
