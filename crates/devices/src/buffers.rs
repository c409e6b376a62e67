//! Buffers in guest memory that a driver hands to a device, as scattered as it likes.

use belljar_memory::{DmaMemory, GuestPhysAddr};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

/// Why buffers cannot be used.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum BufferError {
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
    /// Bytes in all buffers.
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

    /// Adds a buffer that was [checked](Buffer::check).
    pub fn push(&mut self, buffer: Buffer) {
        self.len = self.len.saturating_add(buffer.len.into());
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

    fn check(&self, offset: u64, len: usize) -> Result<(), BufferError> {
        let needed = offset.saturating_add(len as u64);
        if needed > self.len {
            return Err(BufferError::TooShort {
                has: self.len,
                needed,
            });
        }
        Ok(())
    }

    /// Copies the bytes from `offset` on to `out`.
    ///
    /// # Errors
    /// [`BufferError::TooShort`]; then nothing was copied.
    pub fn read(&self, memory: &DmaMemory, offset: u64, out: &mut [u8]) -> Result<(), BufferError> {
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
    /// [`BufferError::TooShort`]; then nothing was copied.
    pub fn write(&self, memory: &DmaMemory, offset: u64, data: &[u8]) -> Result<(), BufferError> {
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
    /// Checks that the buffer is RAM from end to end. An empty one is.
    ///
    /// # Errors
    /// [`BufferError::NotRam`].
    pub fn check(&self, memory: &DmaMemory) -> Result<(), BufferError> {
        let start = GuestAddress(self.start.0);
        // What devices may write they may read: there is only RAM.
        if self.len == 0 || memory.check_range(start, self.len as usize, Permissions::Write) {
            Ok(())
        } else {
            Err(self.not_ram())
        }
    }

    fn not_ram(&self) -> BufferError {
        BufferError::NotRam {
            start: self.start.0,
            len: self.len,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use belljar_memory::GuestMemory;
    use proptest::prelude::*;

    fn buffers(list: &[(u64, u32)]) -> Buffers {
        let mut buffers = Buffers::default();
        for &(start, len) in list {
            let start = GuestPhysAddr(start);
            buffers.push(Buffer { start, len });
        }
        buffers
    }

    #[test]
    fn what_is_written_across_buffers_is_read_back() {
        let memory = GuestMemory::new(1 << 20).unwrap().dma().unwrap();
        let buffers = buffers(&[(0x1000, 3), (0x5000, 0), (0x2000, 4)]);
        buffers.write(&memory, 1, &[1, 2, 3, 4]).unwrap();
        let mut out = [0; 7];
        buffers.read(&memory, 0, &mut out).unwrap();
        assert_eq!(out, [0, 1, 2, 3, 4, 0, 0]);
        let needed = BufferError::TooShort { has: 7, needed: 8 };
        assert_eq!(buffers.write(&memory, 4, &[0; 4]), Err(needed));
    }

    proptest! {
        #[test]
        fn a_part_has_the_bytes_that_it_should(
            lens in proptest::collection::vec(0_u32..20, 0..6), offset in 0_u64..80, len in 0_u64..80
        ) {
            let list: Vec<_> = (1_u64..).map(|i| i << 12).zip(lens).collect();
            let all: Vec<u64> = list.iter().flat_map(|(at, len)| *at..at + u64::from(*len)).collect();
            let part = buffers(&list).part(offset, len);
            let bytes = part.list().iter().flat_map(|b| b.start.0..b.start.0 + u64::from(b.len));
            let expected = all.iter().skip(offset as usize).take(len as usize);
            prop_assert!(bytes.eq(expected.copied()));
            prop_assert_eq!(part.len(), part.list().iter().map(|b| u64::from(b.len)).sum::<u64>());
        }
    }
}
