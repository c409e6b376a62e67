//! Commands of namespaces. NVM Express 1.4, chapter 6.

use super::command::{Command, Status};
use super::controller::{Inner, Steps};
use super::prp;
use crate::disk::{Operation, Request, SECTOR, is_within};

const FLUSH: u8 = 0x00;
const WRITE: u8 = 0x01;
const READ: u8 = 0x02;
const WRITE_ZEROES: u8 = 0x08;
const DATASET_MANAGEMENT: u8 = 0x09;

/// Command bits: force unit access; write zeroes may deallocate; dataset management deallocates.
const FORCE_UNIT_ACCESS: u32 = 1 << 30;
const DEALLOCATE: u32 = 1 << 25;
const ATTRIBUTE_DEALLOCATE: u32 = 1 << 2;
/// The namespace that means all.
const ALL: u32 = u32::MAX;
/// Bytes of a range of dataset management.
const RANGE: usize = 16;

const fn flush() -> Request {
    Request {
        operation: Operation::Flush,
        offset: 0,
    }
}

impl Inner {
    /// What the disks are to do for `command`.
    pub(super) fn steps(&self, command: &Command, write_cache: bool) -> Result<Steps, Status> {
        if !command.is_plain() {
            return Err(Status::INVALID_FIELD);
        }
        if command.opcode() == FLUSH && command.namespace() == ALL {
            return Ok((0..self.disks.len())
                .map(|index| (index, flush()))
                .collect());
        }
        let index = self.index(command.namespace())?;
        let disk = &self.disks[index];
        let writes = matches!(command.opcode(), WRITE | WRITE_ZEROES | DATASET_MANAGEMENT);
        if writes && disk.is_read_only() {
            return Err(Status::READ_ONLY);
        }
        let mut steps = Steps::new();
        match command.opcode() {
            FLUSH => steps.push_back((index, flush())),
            READ | WRITE | WRITE_ZEROES => {
                let (offset, len) =
                    self.range(index, command.wide(10), command.word(12) & 0xffff)?;
                let operation = match command.opcode() {
                    READ => Operation::Read(prp::buffers(&self.memory, command.prps(), len)?),
                    WRITE => Operation::Write(prp::buffers(&self.memory, command.prps(), len)?),
                    _ => Operation::WriteZeroes {
                        len,
                        unmap: command.word(12) & DEALLOCATE != 0,
                    },
                };
                steps.push_back((index, Request { operation, offset }));
                let stable = command.word(12) & FORCE_UNIT_ACCESS != 0 || !write_cache;
                if stable && command.opcode() != READ {
                    steps.push_back((index, flush()));
                }
            }
            DATASET_MANAGEMENT => self.manage(index, command, &mut steps)?,
            _ => return Err(Status::INVALID_OPCODE),
        }
        Ok(steps)
    }

    /// The place of a namespace among the disks.
    pub(super) fn index(&self, namespace: u32) -> Result<usize, Status> {
        let index = (namespace as usize).wrapping_sub(1);
        if index < self.disks.len() {
            Ok(index)
        } else {
            Err(Status::INVALID_NAMESPACE)
        }
    }

    /// Offset and length in bytes of `blocks` blocks, counted from 0, from `first` on.
    fn range(&self, index: usize, first: u64, blocks: u32) -> Result<(u64, u64), Status> {
        let len = (u64::from(blocks) + 1) * SECTOR;
        first
            .checked_mul(SECTOR)
            .filter(|offset| is_within(*offset, len, self.disks[index].size()))
            .map(|offset| (offset, len))
            .ok_or(Status::OUT_OF_RANGE)
    }

    /// Dataset management: deallocation, or hints that are not taken.
    fn manage(&self, index: usize, command: &Command, steps: &mut Steps) -> Result<(), Status> {
        let count = (command.word(10) & 0xff) as usize + 1;
        let mut ranges = vec![0; count * RANGE];
        prp::buffers(&self.memory, command.prps(), ranges.len() as u64)?
            .read(&self.memory, 0, &mut ranges)
            .map_err(|_| Status::DATA_TRANSFER)?;
        if command.word(11) & ATTRIBUTE_DEALLOCATE == 0 {
            return Ok(());
        }
        for range in ranges.chunks_exact(RANGE) {
            let word = |at: usize| {
                u32::from_le_bytes([range[at], range[at + 1], range[at + 2], range[at + 3]])
            };
            let Some(last) = word(4).checked_sub(1) else {
                continue;
            };
            let first = u64::from(word(8)) | u64::from(word(12)) << 32;
            let (offset, len) = self.range(index, first, last)?;
            let operation = Operation::Discard(len);
            steps.push_back((index, Request { operation, offset }));
        }
        Ok(())
    }
}
