//! Transfers between guest memory and a file of the host by io_uring.
//!
//! Floor ½ of the house: it knows guest memory and nothing of disks. A [`Ring`] takes [`Transfer`]s,
//! hands all that it was given to the kernel in one system call, and gives each back, once, when it
//! is [`Finished`]. The two operations that it uses are `IORING_OP_READV` and `IORING_OP_WRITEV`; the
//! ring is the process's own, has no kernel thread that polls it, and registers neither files nor
//! buffers. Linux manual: io_uring(7), io_uring_enter(2).
//!
//! The kernel reads and writes memory until a transfer is complete, whatever this process does
//! meanwhile. So what a transfer needs (guest memory, the list of its ranges, the file) belongs to the
//! ring until then, and a ring that is dropped waits. All `unsafe` code of disks is here.

use belljar_memory::Segments;
use io_uring::{IoUring, Probe, opcode, types};
use rustix::event::{PollFd, PollFlags, poll};
use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use thiserror::Error;

/// Ranges that one transfer has at most (IOV_MAX).
const MOST_RANGES: usize = 1024;
/// Bytes that one transfer has at most: fewer than the host moves at once.
const MOST_BYTES: u64 = 1 << 30;

/// Why there is no ring.
#[derive(Debug, Error)]
pub enum Unavailable {
    /// The host gives none: an old kernel, or a container that forbids it.
    #[error("the host gives no io_uring")]
    Setup(#[source] io::Error),
    /// The host does not tell what its rings can do.
    #[error("the host's io_uring does not tell its operations")]
    Probe(#[source] io::Error),
    /// The host's rings cannot read and write files.
    #[error("the host's io_uring cannot read and write files")]
    Operations,
}

/// Which way data goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the file into guest memory.
    Read,
    /// From guest memory into the file.
    Write,
}

/// What is to be moved.
#[derive(Clone, Debug)]
pub struct Transfer {
    /// Which way.
    pub way: Way,
    /// Where in the file, in bytes.
    pub offset: u64,
    /// Where in guest memory.
    pub segments: Segments,
}

impl Transfer {
    /// Whether the host does it in one piece: it is not empty, not too long and not in too many
    /// ranges, and its offset is one that files have.
    pub fn is_possible(&self) -> bool {
        let end = self.offset.checked_add(self.segments.len());
        (1..=MOST_BYTES).contains(&self.segments.len())
            && end.is_some_and(|end| i64::try_from(end).is_ok())
            && self.segments.host_ranges().nth(MOST_RANGES).is_none()
    }
}

/// A transfer that the kernel has nothing to do with any more.
#[derive(Debug)]
pub struct Finished<T> {
    /// What was asked for.
    pub transfer: Transfer,
    /// What was given with it.
    pub token: T,
    /// How many bytes were moved: from the beginning, and perhaps not all.
    pub moved: io::Result<u64>,
}

/// A ring of transfers of one file. `T` is what the user wants back with each.
pub struct Ring<T> {
    host: IoUring,
    file: File,
    slots: Vec<Slot<T>>,
    free: Vec<usize>,
    /// Slots whose entries the kernel has not taken yet, in the order of the submission queue.
    queued: VecDeque<usize>,
    /// Transfers that the kernel has taken and not completed.
    under_way: usize,
    /// The kernel has refused to take entries: it is not asked again.
    given_up: bool,
}

/// A place for a transfer. While `transfer` is there, the kernel may read `vectors` and reach what they
/// point to.
struct Slot<T> {
    vectors: Vec<libc::iovec>,
    transfer: Option<(Transfer, T)>,
}

// SAFETY: the vectors point into the mapping of guest memory, which is the same from every thread and
// which the slot's segments keep alive.
unsafe impl<T: Send> Send for Slot<T> {}

impl<T> Ring<T> {
    /// A ring of transfers of `file`, of which `entries` (a power of two) can be under way at once.
    ///
    /// # Errors
    /// If the host has no rings, forbids them, or has none that read and write files.
    pub fn new(file: File, entries: u16) -> Result<Self, Unavailable> {
        let host = IoUring::builder()
            .build(entries.into())
            .map_err(Unavailable::Setup)?;
        let mut probe = Probe::new();
        host.submitter()
            .register_probe(&mut probe)
            .map_err(Unavailable::Probe)?;
        let wanted = [opcode::Readv::CODE, opcode::Writev::CODE];
        if !wanted.iter().all(|&code| probe.is_supported(code)) {
            return Err(Unavailable::Operations);
        }
        let slot = |_| Slot {
            vectors: Vec::new(),
            transfer: None,
        };
        Ok(Self {
            host,
            file,
            slots: (0..entries).map(slot).collect(),
            free: (0..entries.into()).rev().collect(),
            queued: VecDeque::new(),
            under_way: 0,
            given_up: false,
        })
    }

    /// How many transfers can be given to the ring now.
    pub fn room(&self) -> usize {
        if self.given_up { 0 } else { self.free.len() }
    }

    /// How many transfers the kernel is at.
    pub fn under_way(&self) -> usize {
        self.under_way
    }

    /// Whether the kernel has refused to take transfers; then the ring takes none.
    pub fn is_given_up(&self) -> bool {
        self.given_up
    }

    /// A descriptor that poll(2) finds readable
    /// while transfers are complete that [`complete`](Self::complete) has not given back.
    ///
    /// # Errors
    /// If the host gives no descriptor.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.as_fd().try_clone_to_owned()
    }

    /// Takes a transfer, which begins with the next [`submit`](Self::submit).
    ///
    /// # Errors
    /// Both are given back if there is no [`room`](Self::room) or the transfer is not
    /// [possible](Transfer::is_possible).
    pub fn push(&mut self, transfer: Transfer, token: T) -> Result<(), (Transfer, T)> {
        if self.room() == 0 || !transfer.is_possible() {
            return Err((transfer, token));
        }
        let Some(index) = self.free.pop() else {
            return Err((transfer, token));
        };
        let slot = &mut self.slots[index];
        let ranges = transfer.segments.host_ranges();
        slot.vectors.clear();
        slot.vectors.extend(ranges.map(|(start, len)| libc::iovec {
            iov_base: start.cast(),
            iov_len: len,
        }));
        let file = types::Fd(self.file.as_raw_fd());
        let (vectors, count) = (slot.vectors.as_ptr(), slot.vectors.len() as u32);
        let entry = match transfer.way {
            Way::Read => opcode::Readv::new(file, vectors, count)
                .offset(transfer.offset)
                .build(),
            Way::Write => opcode::Writev::new(file, vectors, count)
                .offset(transfer.offset)
                .build(),
        };
        // SAFETY: what the entry refers to stays as it is until its completion: the file belongs to
        // the ring; the vectors lie in the slot, which is not used again before `complete` has freed
        // it; they point to ranges of the mapping of guest memory, in which no Rust object lives and
        // which the slot's segments keep alive. `drop` waits for all that the kernel has taken.
        let pushed = unsafe { self.host.submission().push(&entry.user_data(index as u64)) };
        if pushed.is_err() {
            // The queue has as many entries as there are slots.
            self.free.push(index);
            return Err((transfer, token));
        }
        slot.transfer = Some((transfer, token));
        self.queued.push_back(index);
        Ok(())
    }

    /// Hands all transfers that were taken to the kernel. What it can do without waiting is complete
    /// then.
    ///
    /// # Errors
    /// What the kernel says. The ring is given up then: transfers that the kernel has not taken come
    /// back from [`complete`](Self::complete) with an error, and nothing was moved of them.
    pub fn submit(&mut self) -> io::Result<()> {
        while !self.queued.is_empty() && !self.given_up {
            let result = self.host.submit();
            // Whatever it says: what has left the queue is the kernel's.
            let left = self.host.submission().len();
            let taken = self.queued.len().saturating_sub(left);
            self.queued.drain(..taken);
            self.under_way += taken;
            match result {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.given_up = true;
                    return Err(error);
                }
                Ok(_) if taken == 0 => {
                    self.given_up = true;
                    return Err(io::ErrorKind::WriteZero.into());
                }
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// A transfer that is complete, if there is one. Code cached from where it read to is dropped.
    pub fn complete(&mut self) -> Option<Finished<T>> {
        let (index, moved) = if let Some(entry) = self.host.completion().next() {
            self.under_way = self.under_way.saturating_sub(1);
            let moved = match entry.result() {
                result @ 0.. => Ok(u64::from(result.unsigned_abs())),
                error => Err(io::Error::from_raw_os_error(-error)),
            };
            (entry.user_data() as usize, moved)
        } else if self.given_up {
            let refused = Err(io::Error::other("the host takes no more transfers"));
            (self.queued.pop_front()?, refused)
        } else {
            return None;
        };
        let (transfer, token) = self.slots.get_mut(index)?.transfer.take()?;
        self.free.push(index);
        if transfer.way == Way::Read {
            transfer.segments.changed();
        }
        Some(Finished {
            transfer,
            token,
            moved,
        })
    }

    /// Waits until a transfer is complete, if any is under way.
    ///
    /// # Errors
    /// What the host says.
    pub fn wait(&self) -> io::Result<()> {
        if self.under_way == 0 {
            return Ok(());
        }
        loop {
            match poll(&mut [PollFd::new(self, PollFlags::IN)], None) {
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) => return Ok(()),
            }
        }
    }
}

impl<T> AsFd for Ring<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the ring, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.host.as_raw_fd()) }
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        while self.under_way > 0 {
            if self.wait().is_err() {
                // The kernel may reach what the slots own for as long as it likes.
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
            while self.complete().is_some() {}
        }
    }
}

impl<T> fmt::Debug for Ring<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("file", &self.file)
            .field("queued", &self.queued.len())
            .field("under_way", &self.under_way)
            .field("given_up", &self.given_up)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
