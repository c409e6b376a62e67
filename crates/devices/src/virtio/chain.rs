//! What the driver hands over: a chain of buffers in guest memory. Virtio 1.2, 2.7.

use belljar_memory::{DmaMemory, GuestPhysAddr};
use thiserror::Error;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

/// What is wrong with a chain.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ChainError {
    /// The chain does not end where it must, or a table of its own cannot be read.
    #[error("the chain is cut off, loops, or has a bad indirect table")]
    Broken,
    /// More buffers than the queue has entries.
    #[error("the chain has more than {0} buffers")]
    TooLong(u16),
    /// A buffer for the device to read comes after one for it to write.
    #[error("a buffer to read follows one to write")]
    Order,
    /// A buffer is not RAM.
    #[error("the buffer of {len} bytes at {start:#x} is not RAM")]
    NotRam {
        /// Guest-physical address.
        start: u64,
        /// Length in bytes.
        len: u32,
    },
    /// An access beyond the end of the buffers.
    #[error("the buffers have {has} bytes, {needed} are needed")]
    TooShort {
        /// Bytes there are.
        has: u64,
        /// Bytes there must be.
        needed: u64,
    },
}

/// A run of guest memory that is RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub start: GuestPhysAddr,
    /// Length in bytes.
    pub len: u32,
}

/// Buffers in guest memory, one after the other. All of them are RAM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buffers {
    list: Vec<Buffer>,
    len: u64,
}

impl Buffers {
    /// Bytes in all buffers: less than 2^32.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The buffers.
    pub fn list(&self) -> &[Buffer] {
        &self.list
    }

    fn push(&mut self, buffer: Buffer) {
        self.len += u64::from(buffer.len);
        self.list.push(buffer);
    }

    /// The buffers from `offset` on and, at most, `len` bytes of them.
    #[must_use]
    pub fn part(&self, offset: u64, len: u64) -> Self {
        let mut part = Self::default();
        let (mut skip, mut left) = (offset, len);
        for buffer in &self.list {
            let here = u64::from(buffer.len);
            if skip >= here {
                skip -= here;
                continue;
            }
            let take = (here - skip).min(left);
            if take == 0 {
                break;
            }
            part.push(Buffer {
                start: buffer.start.wrapping_add(skip),
                len: take as u32,
            });
            (skip, left) = (0, left - take);
        }
        part
    }

    fn check(&self, offset: u64, len: usize) -> Result<(), ChainError> {
        let needed = offset.saturating_add(len as u64);
        if needed > self.len {
            return Err(ChainError::TooShort {
                has: self.len,
                needed,
            });
        }
        Ok(())
    }

    /// Copies the bytes from `offset` on to `out`.
    ///
    /// # Errors
    /// [`ChainError::TooShort`]; then nothing was copied.
    pub fn read(&self, memory: &DmaMemory, offset: u64, out: &mut [u8]) -> Result<(), ChainError> {
        self.check(offset, out.len())?;
        let mut done = 0;
        for buffer in &self.part(offset, out.len() as u64).list {
            let end = done + buffer.len as usize;
            memory
                .read_slice(&mut out[done..end], GuestAddress(buffer.start.0))
                .map_err(|_| buffer.not_ram())?;
            done = end;
        }
        Ok(())
    }

    /// Copies `data` to the bytes from `offset` on.
    ///
    /// # Errors
    /// [`ChainError::TooShort`]; then nothing was copied.
    pub fn write(&self, memory: &DmaMemory, offset: u64, data: &[u8]) -> Result<(), ChainError> {
        self.check(offset, data.len())?;
        let mut done = 0;
        for buffer in &self.part(offset, data.len() as u64).list {
            let end = done + buffer.len as usize;
            memory
                .write_slice(&data[done..end], GuestAddress(buffer.start.0))
                .map_err(|_| buffer.not_ram())?;
            done = end;
        }
        Ok(())
    }
}

impl Buffer {
    fn not_ram(&self) -> ChainError {
        ChainError::NotRam {
            start: self.start.0,
            len: self.len,
        }
    }
}

/// A chain that was taken from a queue. It must be given back with
/// [`Queue::complete`](super::Queue::complete).
#[derive(Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its number in the queue.
    pub head: u16,
    /// What the device is to read.
    pub readable: Buffers,
    /// What the device may write.
    pub writable: Buffers,
}

impl Chain {
    /// The chain whose descriptors are `descriptors`, at most `limit`. The iterator ends early if
    /// it comes upon something wrong.
    pub(super) fn collect(
        memory: &DmaMemory,
        head: u16,
        limit: u16,
        descriptors: impl Iterator<Item = Descriptor>,
    ) -> Result<Self, ChainError> {
        let mut chain = Self {
            head,
            readable: Buffers::default(),
            writable: Buffers::default(),
        };
        let mut complete = false;
        for (count, descriptor) in descriptors.enumerate() {
            if count >= usize::from(limit) {
                return Err(ChainError::TooLong(limit));
            }
            let buffer = Buffer {
                start: GuestPhysAddr(descriptor.addr().0),
                len: descriptor.len(),
            };
            let access = if descriptor.is_write_only() {
                Permissions::Write
            } else {
                Permissions::Read
            };
            if !memory.check_range(descriptor.addr(), buffer.len as usize, access) {
                return Err(buffer.not_ram());
            }
            if descriptor.is_write_only() {
                chain.writable.push(buffer);
            } else if chain.writable.list.is_empty() {
                chain.readable.push(buffer);
            } else {
                return Err(ChainError::Order);
            }
            complete = !descriptor.has_next();
        }
        if complete {
            Ok(chain)
        } else {
            Err(ChainError::Broken)
        }
    }
}
