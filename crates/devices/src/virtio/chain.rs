//! What the driver hands over: a chain of buffers in guest memory. Virtio 1.2, 2.7.

use crate::buffers::{Buffer, BufferError, Buffers};
use belljar_memory::{DmaMemory, GuestPhysAddr};
use thiserror::Error;
use virtio_queue::desc::split::Descriptor;

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
    #[error(transparent)]
    Buffer(#[from] BufferError),
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
            buffer.check(memory)?;
            if descriptor.is_write_only() {
                chain.writable.push(buffer);
            } else if chain.writable.list().is_empty() {
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
