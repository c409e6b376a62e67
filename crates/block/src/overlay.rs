//! Changes that end with the machine: a temporary layer over a disk that is only read.

use crate::storage::Storage;
use belljar_memory::{GuestMemory, GuestPhysAddr, Segments};
use std::fs::File;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

/// Bytes that are copied from the disk below when a part of them is written first.
const CLUSTER: u64 = 64 << 10;

/// A disk whose changes lie in a temporary file, which is gone when the machine ends.
#[derive(Debug)]
pub struct TemporaryOverlay {
    below: Box<dyn Storage>,
    file: File,
    /// A bit for each cluster that lies in the file. Held for writing while a cluster is copied.
    present: RwLock<Vec<u64>>,
    /// Memory through which clusters are copied.
    copy: Mutex<GuestMemory>,
}

impl TemporaryOverlay {
    /// No changes yet to what is `below`.
    ///
    /// # Errors
    /// If there is no temporary file, or no memory.
    pub fn new(below: Box<dyn Storage>) -> io::Result<Self> {
        let file = tempfile::tempfile()?;
        file.set_len(below.size())?;
        let clusters = below.size().div_ceil(CLUSTER);
        let memory = GuestMemory::new(1 << 20).map_err(io::Error::other)?;
        Ok(Self {
            below,
            file,
            present: RwLock::new(vec![0; clusters.div_ceil(64) as usize]),
            copy: Mutex::new(memory),
        })
    }

    /// Runs of a range that lie in one layer: whether that is the file, where they begin in the
    /// range, and their length.
    fn runs(present: &[u64], offset: u64, len: u64) -> Vec<(bool, u64, u64)> {
        let mut runs: Vec<(bool, u64, u64)> = Vec::new();
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let now = (CLUSTER - at % CLUSTER).min(len - done);
            let here = is_present(present, at / CLUSTER);
            match runs.last_mut() {
                Some((layer, _, length)) if *layer == here => *length += now,
                _ => runs.push((here, done, now)),
            }
            done += now;
        }
        runs
    }

    /// Brings the clusters into the file that a change of the range touches: those that it changes
    /// in part with their content.
    fn bring(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let (first, last) = (offset / CLUSTER, (offset + len - 1) / CLUSTER);
        {
            let present = self.present.read().unwrap_or_else(PoisonError::into_inner);
            if (first..=last).all(|cluster| is_present(&present, cluster)) {
                return Ok(());
            }
        }
        let mut present = self.present.write().unwrap_or_else(PoisonError::into_inner);
        for cluster in first..=last {
            if is_present(&present, cluster) {
                continue;
            }
            let start = cluster * CLUSTER;
            let size = CLUSTER.min(self.below.size() - start);
            let memory = self.copy_memory();
            let list = Segments::new(&memory, [(GuestPhysAddr(0), size)]);
            let list = list.map_err(io::Error::other)?;
            self.below.read(start, &list)?;
            list.write_to(&self.file, start)?;
            present[(cluster / 64) as usize] |= 1 << (cluster % 64);
        }
        Ok(())
    }

    fn copy_memory(&self) -> MutexGuard<'_, GuestMemory> {
        self.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_present(present: &[u64], cluster: u64) -> bool {
    let word = present.get((cluster / 64) as usize).copied();
    word.unwrap_or(0) & 1 << (cluster % 64) != 0
}

impl Storage for TemporaryOverlay {
    fn size(&self) -> u64 {
        self.below.size()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn read(&self, offset: u64, to: &Segments) -> io::Result<()> {
        let present = self.present.read().unwrap_or_else(PoisonError::into_inner);
        for (here, start, len) in Self::runs(&present, offset, to.len()) {
            let part = to.slice(start, len);
            if here {
                let done = part.read_from(&self.file, offset + start)?;
                part.zero(done);
            } else {
                self.below.read(offset + start, &part)?;
            }
        }
        Ok(())
    }

    fn read_at_hand(&self, offset: u64, to: &Segments) -> Option<io::Result<()>> {
        let present = self.present.try_read().ok()?;
        match Self::runs(&present, offset, to.len())[..] {
            [(true, ..)] => match to.read_at_hand(&self.file, offset) {
                Ok(done) if done == to.len() => Some(Ok(())),
                _ => None,
            },
            [(false, ..)] => self.below.read_at_hand(offset, to),
            _ => None,
        }
    }

    fn write(&self, offset: u64, from: &Segments) -> io::Result<()> {
        self.bring(offset, from.len())?;
        from.write_to(&self.file, offset)
    }

    /// Nothing of it outlasts the machine.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64, _: bool) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        const ZEROES: [u8; CLUSTER as usize] = [0; CLUSTER as usize];
        self.bring(offset, len)?;
        let mut done = 0;
        while done < len {
            let now = (len - done).min(CLUSTER);
            self.file
                .write_all_at(&ZEROES[..now as usize], offset + done)?;
            done += now;
        }
        Ok(())
    }
}
