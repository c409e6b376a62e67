//! The file system device: a directory of the host in the guest. Virtio 1.2, 5.11.
//!
//! The device carries messages between the guest's file system and a [`FileServer`]; what they mean
//! is the server's affair. One thread serves both queues, and the host's files with it, so that a
//! vCPU never waits for them. There are no notifications and no shared memory (DAX).

#[cfg(test)]
mod tests;
mod worker;

use super::{Activation, DeviceKind, Doorbell, Running, VirtioDevice, WorkerThread, read_bytes};
use crate::timers::lock;
use belljar_share::{FileServer, LONGEST_TAG, ShareConfig, ShareError, ShareState};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};
use worker::Worker;

/// The queues: one for what is not to wait behind requests, and one of requests.
const QUEUES: usize = 2;
/// Entries of each queue. A request of 1 MiB has some more than 256 buffers.
const QUEUE_SIZE: u16 = 512;
/// Bytes of the configuration: the tag and the number of queues of requests. 5.11.4.
const CONFIGURATION: usize = LONGEST_TAG + 4;

/// The state of [`Fs`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsState {
    tag: String,
    share: ShareState,
}

/// A shared directory.
#[derive(Debug)]
pub struct Fs {
    tag: String,
    server: Arc<Mutex<FileServer>>,
    doorbell: Arc<Doorbell>,
}

impl Fs {
    /// The device that shares the directory of `config` by its tag.
    ///
    /// # Errors
    /// If the directory cannot be shared, or the host gives no file descriptor.
    pub fn new(config: &ShareConfig) -> Result<Self, ShareError> {
        Self::with(config.tag(), FileServer::open(config)?)
    }

    /// The device as it was saved, with the directory of `config`.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn restore(state: FsState, config: &ShareConfig) -> Result<Self, ShareError> {
        Self::with(&state.tag, FileServer::restore(config, state.share)?)
    }

    fn with(tag: &str, server: FileServer) -> Result<Self, ShareError> {
        Ok(Self {
            tag: tag.to_owned(),
            server: Arc::new(Mutex::new(server)),
            doorbell: Doorbell::new().map_err(ShareError::Host)?,
        })
    }

    fn configuration(&self) -> [u8; CONFIGURATION] {
        let mut bytes = [0; CONFIGURATION];
        for (to, from) in bytes[..LONGEST_TAG].iter_mut().zip(self.tag.bytes()) {
            *to = from;
        }
        bytes[LONGEST_TAG..].copy_from_slice(&(QUEUES as u32 - 1).to_le_bytes());
        bytes
    }
}

impl VirtioDevice for Fs {
    type State = FsState;

    fn kind(&self) -> DeviceKind {
        DeviceKind::FileSystem
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; QUEUES]
    }

    fn doorbell(&self) -> &Arc<Doorbell> {
        &self.doorbell
    }

    fn read_configuration(&self, offset: u64, data: &mut [u8]) {
        read_bytes(&self.configuration(), offset, data);
    }

    fn write_configuration(&self, _: u64, _: &[u8]) {}

    fn start(&self, activation: Activation) -> std::io::Result<Box<dyn Running>> {
        let (server, doorbell) = (Arc::clone(&self.server), Arc::clone(&self.doorbell));
        let mut worker = Worker::new(activation.queues);
        WorkerThread::spawn("fs", &self.doorbell, move || {
            worker.run(&mut lock(&server), &doorbell);
            worker.into_queues()
        })
    }

    fn reset(&self) {
        lock(&self.server).reset();
    }

    fn save(&self) -> FsState {
        FsState {
            tag: self.tag.clone(),
            share: lock(&self.server).save(),
        }
    }
}
