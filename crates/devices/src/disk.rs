//! What disks of any kind stand on: a backend that serves requests on its own threads.

use crate::buffers::Buffers;
use std::io;

/// Bytes of a sector, the unit of all disks here.
pub const SECTOR: u64 = 512;

/// What is asked of a [`Disk`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read into guest memory.
    Read(Buffers),
    /// Write from guest memory.
    Write(Buffers),
    /// Put what was written before on stable storage.
    Flush,
    /// The guest no longer needs so many bytes; what they read as then is undefined.
    Discard(u64),
    /// Make so many bytes read as zeros.
    WriteZeroes {
        /// Length in bytes.
        len: u64,
        /// Whether the space may be given up.
        unmap: bool,
    },
}

/// An [`Operation`] and where. Offset and length are whole sectors within the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What.
    pub operation: Operation,
    /// First byte.
    pub offset: u64,
}

/// What is called when a request is done, on a thread of the backend or within a call that submits
/// requests. It may take locks, and submit more, but does not wait.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// A disk's backend.
pub trait Disk: Send + Sync + std::fmt::Debug {
    /// Size in bytes, whole sectors.
    fn size(&self) -> u64;

    /// Whether nothing may be written.
    fn is_read_only(&self) -> bool;

    /// Begins `request` and comes back without waiting for it; `done` is called once, whatever
    /// happens. Requests may be done in any order; a flush covers the writes that were done before
    /// it was submitted.
    fn submit(&self, request: Request, done: Done);

    /// Begins several requests, as [`submit`](Self::submit) does each. A backend that can tell the host
    /// of all at once does so here.
    fn submit_all(&self, requests: Vec<(Request, Done)>) {
        for (request, done) in requests {
            self.submit(request, done);
        }
    }
}

/// Whether `len` bytes at `offset` are whole sectors of a disk of `size` bytes.
pub fn is_within(offset: u64, len: u64, size: u64) -> bool {
    let whole = offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR);
    whole && offset.checked_add(len).is_some_and(|end| end <= size)
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use crate::timers::lock;
    use belljar_memory::DmaMemory;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    /// A disk in memory whose requests take a while on threads of their own.
    #[derive(Debug)]
    pub struct MemoryDisk {
        pub bytes: Arc<Mutex<Vec<u8>>>,
        pub flushes: Arc<Mutex<u32>>,
        pub memory: Arc<DmaMemory>,
        pub read_only: bool,
        /// Requests at this offset fail.
        pub broken: Option<u64>,
        pub delay: Duration,
        /// Requests are served by who submits them.
        pub at_once: bool,
    }

    impl MemoryDisk {
        pub fn new(memory: Arc<DmaMemory>, size: usize) -> Self {
            Self {
                bytes: Arc::new(Mutex::new(vec![0; size])),
                flushes: Arc::default(),
                memory,
                read_only: false,
                broken: None,
                delay: Duration::ZERO,
                at_once: false,
            }
        }
    }

    impl Disk for MemoryDisk {
        fn size(&self) -> u64 {
            lock(&self.bytes).len() as u64
        }

        fn is_read_only(&self) -> bool {
            self.read_only
        }

        fn submit(&self, request: Request, done: Done) {
            let (bytes, flushes) = (Arc::clone(&self.bytes), Arc::clone(&self.flushes));
            let (memory, delay) = (Arc::clone(&self.memory), self.delay);
            let broken = self.broken == Some(request.offset);
            let serve = move || {
                std::thread::sleep(delay);
                if broken {
                    return done(Err(io::Error::other("broken sector")));
                }
                let at = request.offset as usize;
                let mut bytes = lock(&bytes);
                match request.operation {
                    Operation::Read(to) => {
                        let end = at + to.len() as usize;
                        to.write(&memory, 0, &bytes[at..end]).unwrap();
                    }
                    Operation::Write(from) => {
                        let end = at + from.len() as usize;
                        from.read(&memory, 0, &mut bytes[at..end]).unwrap();
                    }
                    Operation::Flush => *lock(&flushes) += 1,
                    Operation::Discard(len) | Operation::WriteZeroes { len, .. } => {
                        bytes[at..at + len as usize].fill(0);
                    }
                }
                drop(bytes);
                done(Ok(()));
            };
            if self.at_once {
                serve();
            } else {
                std::thread::spawn(serve);
            }
        }
    }
}
