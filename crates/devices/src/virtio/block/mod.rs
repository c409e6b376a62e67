//! The block device. Virtio 1.2, 5.2.
//!
//! One worker thread takes requests from all queues and submits them to the backend; whoever
//! finishes one there gives its chain back. So requests are done in any order and in parallel.

mod request;
mod worker;

use super::{Activation, DeviceKind, Doorbell, Running, VirtioDevice};
use crate::disk::{Disk, SECTOR};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;
/// Buffers of data in a request, besides header and status.
const SEGMENTS: u32 = QUEUE_SIZE as u32 - 2;
/// The most queues: beyond these, more do not help.
const MOST_QUEUES: u16 = 16;
/// The most sectors that are discarded or zeroed at once: 1 GiB.
const MOST_SECTORS: u32 = 1 << 21;
/// Bytes of the serial number.
const SERIAL: usize = 20;
/// Bytes of the configuration.
const CONFIGURATION: usize = 60;
/// 4 KiB as a power of two of sectors: what the host's file systems like.
const PHYSICAL_BLOCK_EXPONENT: u8 = 3;

const FEATURE_SEG_MAX: u64 = 1 << 2;
const FEATURE_READ_ONLY: u64 = 1 << 5;
const FEATURE_BLOCK_SIZE: u64 = 1 << 6;
const FEATURE_FLUSH: u64 = 1 << 9;
const FEATURE_TOPOLOGY: u64 = 1 << 10;
const FEATURE_QUEUES: u64 = 1 << 12;
const FEATURE_DISCARD: u64 = 1 << 13;
const FEATURE_WRITE_ZEROES: u64 = 1 << 14;

/// The state of [`Block`]: what the guest knows the disk by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    serial: String,
    queues: u16,
}

/// A disk.
#[derive(Debug)]
pub struct Block {
    disk: Arc<dyn Disk>,
    serial: String,
    queues: u16,
    doorbell: Arc<Doorbell>,
}

impl Block {
    /// A disk that stands on `disk`, with a serial number of at most 20 bytes (the rest is cut off)
    /// and a queue for each of `vcpus` vCPUs, as far as that helps.
    ///
    /// # Errors
    /// If the host gives no file descriptor.
    pub fn new(disk: Arc<dyn Disk>, serial: &str, vcpus: u32) -> std::io::Result<Self> {
        let queues = u16::try_from(vcpus).unwrap_or(MOST_QUEUES);
        Self::restore(
            BlockState {
                serial: serial.to_owned(),
                queues: queues.clamp(1, MOST_QUEUES),
            },
            disk,
        )
    }

    /// The device as it was saved.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn restore(state: BlockState, disk: Arc<dyn Disk>) -> std::io::Result<Self> {
        Ok(Self {
            disk,
            serial: state.serial,
            queues: state.queues.clamp(1, MOST_QUEUES),
            doorbell: Doorbell::new()?,
        })
    }

    /// The configuration structure. Virtio 1.2, 5.2.4.
    fn configuration(&self) -> [u8; CONFIGURATION] {
        let mut bytes = [0; CONFIGURATION];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &(self.disk.size() / SECTOR).to_le_bytes());
        put(12, &SEGMENTS.to_le_bytes());
        put(20, &(SECTOR as u32).to_le_bytes());
        put(24, &[PHYSICAL_BLOCK_EXPONENT]);
        put(34, &self.queues.to_le_bytes());
        // One range at a time, of this many sectors, aligned to physical blocks.
        for at in [36, 48] {
            put(at, &MOST_SECTORS.to_le_bytes());
            put(at + 4, &1_u32.to_le_bytes());
        }
        put(44, &(1_u32 << PHYSICAL_BLOCK_EXPONENT).to_le_bytes());
        // Writing zeros may give up the space.
        put(56, &[1]);
        bytes
    }
}

impl VirtioDevice for Block {
    type State = BlockState;

    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        let mut features = FEATURE_SEG_MAX | FEATURE_BLOCK_SIZE | FEATURE_FLUSH | FEATURE_TOPOLOGY;
        if self.queues > 1 {
            features |= FEATURE_QUEUES;
        }
        features
            | if self.disk.is_read_only() {
                FEATURE_READ_ONLY
            } else {
                FEATURE_DISCARD | FEATURE_WRITE_ZEROES
            }
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; usize::from(self.queues)]
    }

    fn doorbell(&self) -> &Arc<Doorbell> {
        &self.doorbell
    }

    fn read_configuration(&self, offset: u64, data: &mut [u8]) {
        super::read_bytes(&self.configuration(), offset, data);
    }

    fn write_configuration(&self, _: u64, _: &[u8]) {}

    fn start(&self, activation: Activation) -> std::io::Result<Box<dyn Running>> {
        let mut serial = [0; SERIAL];
        for (to, from) in serial.iter_mut().zip(self.serial.bytes()) {
            *to = from;
        }
        let write_through = activation.features & FEATURE_FLUSH == 0;
        let service = worker::Service::new(
            Arc::clone(&self.disk),
            serial,
            write_through,
            activation.queues,
        );
        worker::start(&self.doorbell, service)
    }

    fn reset(&self) {}

    fn save(&self) -> BlockState {
        BlockState {
            serial: self.serial.clone(),
            queues: self.queues,
        }
    }
}

#[cfg(test)]
mod tests;
