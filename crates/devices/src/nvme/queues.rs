//! Submission and completion queues. NVM Express 1.4, 4.1 and 4.6.

use super::command::{COMPLETION, Command, SUBMISSION, Status};
use belljar_memory::DmaMemory;
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering;
use vm_memory::{Bytes, GuestAddress};

/// A submission queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SubmissionQueue {
    pub(super) base: u64,
    pub(super) size: u32,
    pub(super) head: u32,
    /// The completion queue of its commands.
    pub(super) completions: u16,
}

impl SubmissionQueue {
    /// Takes the next command before `tail`. A queue that is not RAM gives zeros, whose opcode is
    /// refused or harmless.
    pub(super) fn take(&mut self, memory: &DmaMemory, tail: u32) -> Option<Command> {
        if tail >= self.size || tail == self.head {
            return None;
        }
        let mut bytes = [0; SUBMISSION as usize];
        let at = self.base.wrapping_add(u64::from(self.head) * SUBMISSION);
        let read = memory.read_slice(&mut bytes, GuestAddress(at));
        self.head = (self.head + 1) % self.size;
        if read.is_err() {
            // No opcode: the command is refused.
            bytes = [0xff; SUBMISSION as usize];
        }
        Some(Command::new(bytes))
    }
}

/// A completion queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CompletionQueue {
    pub(super) base: u64,
    pub(super) size: u32,
    pub(super) tail: u32,
    pub(super) head: u32,
    pub(super) phase: bool,
    pub(super) vector: u16,
    pub(super) interrupts: bool,
    /// Entries that are promised to commands under way.
    #[serde(skip)]
    pub(super) promised: u32,
}

/// What a completion tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Completion {
    pub(super) result: u32,
    pub(super) submission_head: u32,
    pub(super) submission: u16,
    pub(super) id: u16,
    pub(super) status: Status,
}

impl CompletionQueue {
    pub(super) fn new(base: u64, size: u32, vector: u16, interrupts: bool) -> Self {
        Self {
            base,
            size,
            tail: 0,
            head: 0,
            phase: true,
            vector,
            interrupts,
            promised: 0,
        }
    }

    /// Takes over the driver's doorbell; a value that is none is ignored.
    pub(super) fn set_head(&mut self, head: u32) {
        if head < self.size {
            self.head = head;
        }
    }

    fn used(&self) -> u32 {
        (self.tail + self.size - self.head) % self.size
    }

    /// Whether there are entries that the driver has not taken.
    pub(super) fn has_news(&self) -> bool {
        self.tail != self.head
    }

    /// Promises an entry to a command; `false` if there is none.
    pub(super) fn promise(&mut self) -> bool {
        let free = self.used() + self.promised < self.size - 1;
        self.promised += u32::from(free);
        free
    }

    /// Takes a promise back.
    pub(super) fn release(&mut self) {
        self.promised = self.promised.saturating_sub(1);
    }

    /// Writes a completion to the entry that was promised.
    pub(super) fn post(&mut self, memory: &DmaMemory, completion: &Completion) {
        self.release();
        let at = self.base.wrapping_add(u64::from(self.tail) * COMPLETION);
        let mut bytes = [0; COMPLETION as usize];
        bytes[..4].copy_from_slice(&completion.result.to_le_bytes());
        bytes[8..10].copy_from_slice(&(completion.submission_head as u16).to_le_bytes());
        bytes[10..12].copy_from_slice(&completion.submission.to_le_bytes());
        // The last word has the phase, by which the driver knows that the entry is new: it must be
        // written last. Where the queue is not RAM nothing is written, and nobody learns.
        let last = u32::from(completion.id)
            | u32::from(self.phase) << 16
            | u32::from(completion.status.0) << 17;
        let written = memory
            .write_slice(&bytes[..12], GuestAddress(at))
            .and_then(|()| {
                let at = GuestAddress(at.wrapping_add(12));
                memory.store(last.to_le(), at, Ordering::Release)
            });
        if let Err(error) = written {
            tracing::debug!(%error, "an NVMe completion queue is not RAM");
        }
        self.tail += 1;
        if self.tail == self.size {
            self.tail = 0;
            self.phase = !self.phase;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use belljar_memory::GuestMemory;

    fn completion(id: u16) -> Completion {
        Completion {
            result: 7,
            submission_head: 3,
            submission: 1,
            id,
            status: Status::OK,
        }
    }

    #[test]
    fn no_more_is_promised_than_there_is_room_for() {
        let mut queue = CompletionQueue::new(0x1000, 4, 0, true);
        assert_eq!([(); 4].map(|()| queue.promise()), [true, true, true, false]);
        let memory = GuestMemory::new(1 << 20).unwrap().dma().unwrap();
        queue.post(&memory, &completion(1));
        assert!(!queue.promise());
        queue.set_head(1);
        assert!(queue.promise());
        queue.set_head(4);
        assert_eq!(queue.head, 1);
    }

    #[test]
    fn the_phase_changes_with_each_round() {
        let guest = GuestMemory::new(1 << 20).unwrap();
        let memory = guest.dma().unwrap();
        let mut queue = CompletionQueue::new(0x1000, 2, 0, true);
        for (id, at, phase) in [(5, 0x1000, 1), (6, 0x1010, 1), (7, 0x1000, 0)] {
            assert!(queue.promise());
            queue.post(&memory, &completion(id));
            let mut bytes = [0; 16];
            memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
            assert_eq!(
                bytes,
                [7, 0, 0, 0, 0, 0, 0, 0, 3, 0, 1, 0, id as u8, 0, phase, 0]
            );
            queue.set_head(queue.tail);
        }
    }
}
