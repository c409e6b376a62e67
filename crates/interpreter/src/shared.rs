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
use belljar_memory::CodePages;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The most pages that are asked for one by one.
const MOST_PAGES: usize = 256;

/// Fast paths for writes that a vCPU is asked to drop.
#[derive(Debug, PartialEq, Eq)]
pub enum Requests {
    /// Those to these pages of RAM.
    Pages(Vec<usize>),
    /// Those to every page: a vCPU that is stopped for long would else gather requests without
    /// bound.
    All,
}

impl Requests {
    fn add(&mut self, page: usize) {
        let Self::Pages(pages) = self else {
            return;
        };
        if pages.contains(&page) {
            return;
        }
        if pages.len() == MOST_PAGES {
            *self = Self::All;
        } else {
            pages.push(page);
        }
    }
}

impl Default for Requests {
    fn default() -> Self {
        Self::Pages(Vec::new())
    }
}

/// One vCPU as the others see it.
#[derive(Debug)]
pub struct Peer {
    id: VcpuId,
    requests: Mutex<Requests>,
    /// Requests made so far.
    posted: AtomicU64,
    /// Requests answered so far.
    answered: AtomicU64,
    running: AtomicBool,
}

impl Peer {
    fn new(id: VcpuId) -> Self {
        Self {
            id,
            requests: Mutex::default(),
            posted: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            running: AtomicBool::new(false),
        }
    }

    /// Adds a request; gives its number.
    fn post(&self, page: usize) -> u64 {
        let mut requests = lock(&self.requests);
        requests.add(page);
        self.posted.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Whether there are requests to answer.
    #[inline]
    pub fn is_asked(&self) -> bool {
        // Only the vCPU itself answers, so this cannot be stale.
        self.posted.load(Ordering::SeqCst) != self.answered.load(Ordering::Relaxed)
    }

    /// Takes the requests made to this vCPU. After working them off it calls
    /// [`answer`](Self::answer) with the number.
    pub fn take_requests(&self) -> (Requests, u64) {
        let mut requests = lock(&self.requests);
        (
            std::mem::take(&mut requests),
            self.posted.load(Ordering::SeqCst),
        )
    }

    /// All requests up to `number` are worked off.
    pub fn answer(&self, number: u64) {
        self.answered.store(number, Ordering::SeqCst);
    }
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
        let own = Arc::new(Peer::new(id));
        lock(&group.peers).push(Arc::clone(&own));
        Self {
            group: Arc::clone(group),
            own,
            outstanding: Vec::new(),
        }
    }

    /// The vCPU as the others see it.
    pub fn own(&self) -> &Arc<Peer> {
        &self.own
    }

    /// The vCPU begins to run. Requests must be answered before it writes to memory.
    pub fn start(&self) {
        self.own.running.store(true, Ordering::SeqCst);
    }

    /// The vCPU stops to run.
    pub fn stop(&self) {
        self.own.running.store(false, Ordering::SeqCst);
    }

    /// Says that code of page `page` of RAM is about to be cached, and sees to it that the others
    /// drop their fast paths for writes to it. Returns the generation to remember, and whether this
    /// vCPU is the first to mark the page.
    pub fn mark(&mut self, code: &CodePages, page: usize) -> (u32, bool) {
        let group = Arc::clone(&self.group);
        // Held from the mark to the last request: who finds the page marked finds the requests
        // posted.
        let peers = lock(&group.peers);
        let (generation, first) = code.mark(page);
        for peer in peers.iter().filter(|peer| !Arc::ptr_eq(peer, &self.own)) {
            // Where another vCPU has asked, its request is waited for as if it were this one's.
            let number = if first {
                peer.post(page)
            } else {
                peer.posted.load(Ordering::SeqCst)
            };
            let answered = peer.answered.load(Ordering::SeqCst) >= number;
            if answered || !peer.running.load(Ordering::SeqCst) {
                continue;
            }
            if first && let Some(attention) = group.attention.get(peer.id as usize) {
                attention.raise(Reason::ENGINE);
            }
            self.outstanding
                .retain(|(other, _)| !Arc::ptr_eq(other, peer));
            self.outstanding.push((Arc::clone(peer), number));
        }
        (generation, first)
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
    use belljar_memory::GuestMemory;

    fn group() -> Arc<Group> {
        Arc::new(Group::new((0..2).map(|_| Attention::new()).collect()))
    }

    fn machine() -> (GuestMemory, Arc<Group>) {
        let memory = GuestMemory::new(4 << 20).unwrap();
        (memory, group())
    }

    #[test]
    fn a_request_is_outstanding_until_the_other_answers() {
        let (memory, group) = machine();
        let mut first = Member::join(&group, 0);
        let second = Member::join(&group, 1);
        second.start();
        assert!(first.mark(memory.code(), 7).1);
        assert!(!first.all_answered());
        assert!(second.own().is_asked());
        assert!(group.attention[1].has(Reason::ENGINE));
        let (requests, number) = second.own().take_requests();
        assert_eq!(requests, Requests::Pages(vec![7]));
        second.own().answer(number);
        assert!(!second.own().is_asked());
        assert!(first.all_answered());
    }

    #[test]
    fn a_vcpu_that_does_not_run_counts_as_having_answered() {
        let (memory, group) = machine();
        let mut first = Member::join(&group, 0);
        let second = Member::join(&group, 1);
        first.mark(memory.code(), 7);
        assert!(first.all_answered());
        second.start();
        assert_eq!(second.own().take_requests().0, Requests::Pages(vec![7]));
    }

    #[test]
    fn who_marks_second_waits_for_the_requests_of_the_first() {
        let (memory, group) = machine();
        let mut first = Member::join(&group, 0);
        let mut second = Member::join(&group, 1);
        let third = Member::join(&group, 2);
        third.start();
        assert!(first.mark(memory.code(), 7).1);
        assert!(!second.mark(memory.code(), 7).1);
        assert!(!second.all_answered());
        third.own().answer(third.own().take_requests().1);
        assert!(second.all_answered());
    }

    #[test]
    fn requests_to_a_stopped_vcpu_are_bounded() {
        let (memory, group) = machine();
        let mut first = Member::join(&group, 0);
        let second = Member::join(&group, 1);
        for _ in 0..1000 {
            first.mark(memory.code(), 7);
            memory.code().changed(7);
        }
        assert_eq!(*lock(&second.own.requests), Requests::Pages(vec![7]));
        for page in 100..100 + MOST_PAGES {
            first.mark(memory.code(), page);
        }
        assert_eq!(second.own().take_requests().0, Requests::All);
        assert_eq!(second.own().take_requests().0, Requests::default());
    }
}
