//! What the vCPUs of one machine share: requests to give up fast paths for writes, and the lock for
//! split locks.
//!
//! A vCPU that is the first to cache code of a page must get every other vCPU to drop its fast path
//! for writes to that page. It posts a request to each, raises [`Reason::ENGINE`], and goes on:
//! until the other has answered, code that it writes may go unnoticed, which the architecture
//! allows until this vCPU executes a serialising instruction (SDM 3A, 8.1.3). There it waits for
//! the answers, while it keeps answering itself. The vCPU that drops a fast path counts the page as
//! changed, since it may have written through it. A vCPU that does not run counts as having
//! answered: it works off its requests before it runs again.

use belljar_engine::{Attention, Reason, VcpuId};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One vCPU as the others see it.
#[derive(Debug)]
struct Peer {
    id: VcpuId,
    /// Pages of RAM to which no fast path for writes may remain.
    requests: Mutex<Vec<usize>>,
    /// Requests made so far.
    posted: AtomicU64,
    /// Requests answered so far.
    answered: AtomicU64,
    running: AtomicBool,
}

/// The vCPUs of one machine.
#[derive(Debug)]
pub struct Group {
    attention: Arc<[Attention]>,
    peers: Mutex<Vec<Arc<Peer>>>,
    split_lock: Mutex<()>,
}

impl Group {
    /// The group of the machine whose attention words these are.
    pub fn new(attention: Arc<[Attention]>) -> Self {
        Self {
            attention,
            peers: Mutex::default(),
            split_lock: Mutex::default(),
        }
    }

    /// Whether this is the group of the machine whose attention words these are.
    pub fn is_of(&self, attention: &Arc<[Attention]>) -> bool {
        Arc::ptr_eq(&self.attention, attention)
    }
}

/// A vCPU's membership in its group.
#[derive(Debug)]
pub struct Member {
    group: Arc<Group>,
    own: Arc<Peer>,
    /// Requests that others may not have answered yet.
    outstanding: Vec<(Arc<Peer>, u64)>,
}

impl Member {
    /// Makes vCPU `id` a member.
    pub fn join(group: &Arc<Group>, id: VcpuId) -> Self {
        let own = Arc::new(Peer {
            id,
            requests: Mutex::default(),
            posted: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            running: AtomicBool::new(false),
        });
        lock(&group.peers).push(Arc::clone(&own));
        Self {
            group: Arc::clone(group),
            own,
            outstanding: Vec::new(),
        }
    }

    /// The vCPU begins to run. Requests must be answered before it writes to memory.
    pub fn start(&self) {
        self.own.running.store(true, Ordering::SeqCst);
    }

    /// The vCPU stops to run.
    pub fn stop(&self) {
        self.own.running.store(false, Ordering::SeqCst);
    }

    /// Asks the others to drop their fast paths for writes to page `page` of RAM.
    pub fn request_protection(&mut self, page: usize) {
        let peers = lock(&self.group.peers).clone();
        for peer in peers {
            if Arc::ptr_eq(&peer, &self.own) {
                continue;
            }
            let number = {
                let mut requests = lock(&peer.requests);
                requests.push(page);
                peer.posted.fetch_add(1, Ordering::SeqCst) + 1
            };
            if !peer.running.load(Ordering::SeqCst) {
                continue;
            }
            if let Some(attention) = self.group.attention.get(peer.id as usize) {
                attention.raise(Reason::ENGINE);
            }
            self.outstanding
                .retain(|(other, _)| !Arc::ptr_eq(other, &peer));
            self.outstanding.push((peer, number));
        }
    }

    /// Takes the requests made to this vCPU. After working them off it calls
    /// [`answer`](Self::answer) with the number.
    pub fn take_requests(&self) -> (Vec<usize>, u64) {
        let mut requests = lock(&self.own.requests);
        (
            std::mem::take(&mut requests),
            self.own.posted.load(Ordering::SeqCst),
        )
    }

    /// All requests up to `number` are worked off.
    pub fn answer(&self, number: u64) {
        self.own.answered.store(number, Ordering::SeqCst);
    }

    /// Whether every request of this vCPU is answered.
    pub fn all_answered(&mut self) -> bool {
        self.outstanding.retain(|(peer, number)| {
            peer.running.load(Ordering::SeqCst) && peer.answered.load(Ordering::SeqCst) < *number
        });
        self.outstanding.is_empty()
    }

    /// Locked operations on two pages that are not neighbours on the host exclude each other by
    /// this lock. Against other accesses they are not atomic.
    pub fn split_lock(&self) -> MutexGuard<'_, ()> {
        lock(&self.group.split_lock)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stop();
        lock(&self.group.peers).retain(|peer| !Arc::ptr_eq(peer, &self.own));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group() -> Arc<Group> {
        Arc::new(Group::new((0..2).map(|_| Attention::new()).collect()))
    }

    #[test]
    fn a_request_is_outstanding_until_the_other_answers() {
        let group = group();
        let mut first = Member::join(&group, 0);
        let second = Member::join(&group, 1);
        second.start();
        first.request_protection(7);
        assert!(!first.all_answered());
        assert!(group.attention[1].has(Reason::ENGINE));
        let (pages, number) = second.take_requests();
        assert_eq!(pages, [7]);
        second.answer(number);
        assert!(first.all_answered());
    }

    #[test]
    fn a_vcpu_that_does_not_run_counts_as_having_answered() {
        let group = group();
        let mut first = Member::join(&group, 0);
        let second = Member::join(&group, 1);
        first.request_protection(7);
        assert!(first.all_answered());
        second.start();
        assert_eq!(second.take_requests().0, [7]);
    }
}
