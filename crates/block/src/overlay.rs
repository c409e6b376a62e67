//! Changes that end with the machine: a temporary layer over a disk that is only read.

use crate::storage::{Storage, check_range};
use belljar_memory::{GuestMemory, GuestPhysAddr, Segments};
use rustix::fs::{FallocateFlags, fallocate};
use std::collections::HashMap;
use std::env;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};

/// The unit in which the layer has or has not what a disk holds.
const CLUSTER: u64 = 64 << 10;
/// Where the file lies unless TMPDIR says otherwise: not `/tmp`, which is memory on many hosts.
const DIRECTORY: &str = "/var/tmp";

/// A disk whose changes lie in a temporary file without a name, which is gone when the machine ends,
/// however it ends. Flushes do nothing: nothing of it outlasts the machine.
#[derive(Debug)]
pub struct TemporaryOverlay {
    below: Box<dyn Storage>,
    file: File,
    /// Held for writing while clusters come into the file.
    present: RwLock<Present>,
}

/// Which clusters lie in the file. It grows with what was written, not with the disk.
#[derive(Debug)]
struct Present {
    /// A bit for each of 64 clusters.
    words: HashMap<u64, u64>,
    /// Memory through which clusters are copied.
    copy: GuestMemory,
}

impl Present {
    fn has(&self, cluster: u64) -> bool {
        let word = self.words.get(&(cluster / 64)).copied();
        word.unwrap_or(0) & 1 << (cluster % 64) != 0
    }

    fn add(&mut self, clusters: Range<u64>) {
        let mut cluster = clusters.start;
        while cluster < clusters.end {
            let end = clusters.end.min((cluster / 64 + 1) * 64);
            let mask = u64::MAX >> (64 - (end - cluster)) << (cluster % 64);
            *self.words.entry(cluster / 64).or_insert(0) |= mask;
            cluster = end;
        }
    }

    /// Runs of a range that lie in one layer: whether that is the file, where they begin in the
    /// range, and their length.
    fn runs(&self, offset: u64, len: u64) -> Vec<(bool, u64, u64)> {
        let mut runs: Vec<(bool, u64, u64)> = Vec::new();
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let now = (CLUSTER - at % CLUSTER).min(len - done);
            let here = self.has(at / CLUSTER);
            match runs.last_mut() {
                Some((layer, _, length)) if *layer == here => *length += now,
                _ => runs.push((here, done, now)),
            }
            done += now;
        }
        runs
    }
}

impl TemporaryOverlay {
    /// No changes yet to what is `below`.
    ///
    /// # Errors
    /// If there is no temporary file, or no memory.
    pub fn new(below: Box<dyn Storage>) -> io::Result<Self> {
        let directory = env::var_os("TMPDIR").map_or_else(|| DIRECTORY.into(), PathBuf::from);
        let file = tempfile::tempfile_in(directory)?;
        file.set_len(below.size())?;
        let copy = GuestMemory::new(1 << 20).map_err(io::Error::other)?;
        Ok(Self {
            below,
            file,
            present: RwLock::new(Present {
                words: HashMap::new(),
                copy,
            }),
        })
    }

    /// Brings clusters into the file with their content.
    fn bring(&self, clusters: Range<u64>) -> io::Result<()> {
        {
            let present = self.present.read().unwrap_or_else(PoisonError::into_inner);
            if clusters.clone().all(|cluster| present.has(cluster)) {
                return Ok(());
            }
        }
        let mut present = self.present.write().unwrap_or_else(PoisonError::into_inner);
        for cluster in clusters {
            if present.has(cluster) {
                continue;
            }
            let start = cluster * CLUSTER;
            let size = CLUSTER.min(self.below.size() - start);
            let content = Segments::new(&present.copy, [(GuestPhysAddr(0), size)])
                .map_err(io::Error::other)?;
            self.below.read(start, &content)?;
            content.write_to(&self.file, start)?;
            present.add(cluster..cluster + 1);
        }
        Ok(())
    }

    /// Makes whole clusters zeroes, by making holes.
    fn zero_clusters(&self, clusters: Range<u64>) -> io::Result<()> {
        let mut present = self.present.write().unwrap_or_else(PoisonError::into_inner);
        fallocate(
            &self.file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            clusters.start * CLUSTER,
            (clusters.end - clusters.start) * CLUSTER,
        )?;
        present.add(clusters);
        Ok(())
    }

    /// Zeroes a range that does not contain a whole cluster.
    fn zero_part(&self, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.bring(touched(offset, len))?;
        self.file.write_all_at(&vec![0; len as usize], offset)
    }
}

/// The clusters that a range touches.
fn touched(offset: u64, len: u64) -> Range<u64> {
    offset / CLUSTER..(offset + len).div_ceil(CLUSTER)
}

impl Storage for TemporaryOverlay {
    fn size(&self) -> u64 {
        self.below.size()
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn file(&self) -> Option<&File> {
        None
    }

    fn read(&self, offset: u64, segments: &Segments) -> io::Result<()> {
        check_range(offset, segments.len(), self.size())?;
        let present = self.present.read().unwrap_or_else(PoisonError::into_inner);
        for (here, start, len) in present.runs(offset, segments.len()) {
            let part = segments.slice(start, len);
            if here {
                let done = part.read_from(&self.file, offset + start)?;
                part.zero(done);
            } else {
                self.below.read(offset + start, &part)?;
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, segments: &Segments) -> io::Result<()> {
        check_range(offset, segments.len(), self.size())?;
        self.bring(touched(offset, segments.len()))?;
        segments.write_to(&self.file, offset)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        check_range(offset, len, self.size())
    }

    fn write_zeroes(&self, offset: u64, len: u64, _may_unmap: bool) -> io::Result<()> {
        check_range(offset, len, self.size())?;
        let end = offset + len;
        let whole = offset.div_ceil(CLUSTER)..end / CLUSTER;
        if whole.is_empty() {
            // At most two clusters, neither of them whole.
            let head = (CLUSTER - offset % CLUSTER).min(len);
            self.zero_part(offset, head)?;
            return self.zero_part(offset + head, len - head);
        }
        self.zero_part(offset, whole.start * CLUSTER - offset)?;
        self.zero_part(whole.end * CLUSTER, end - whole.end * CLUSTER)?;
        self.zero_clusters(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RawFile;
    use proptest::prelude::*;

    const SIZE: u64 = 5 * CLUSTER + 1536;

    fn segments(memory: &GuestMemory, len: u64) -> Segments {
        Segments::new(memory, [(GuestPhysAddr(0x10_0000), len)]).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn an_overlay_is_a_disk_of_which_nothing_reaches_the_one_below(
            changes in prop::collection::vec((0..SIZE / 512, 1_u64..300, any::<u8>()), 1..12)
        ) {
            let below = tempfile::tempfile().unwrap();
            let content: Vec<u8> = (0..SIZE).map(|at| (at / 512) as u8 | 1).collect();
            below.write_all_at(&content, 0).unwrap();
            let kept = below.try_clone().unwrap();
            let below = RawFile::new(below, true).unwrap();
            let overlay = TemporaryOverlay::new(Box::new(below)).unwrap();
            let memory = GuestMemory::new(2 << 20).unwrap();
            let mut expected = content.clone();
            for (sector, count, value) in changes {
                let (offset, len) = (sector * 512, (count * 512).min(SIZE - sector * 512));
                if value == 0 {
                    overlay.write_zeroes(offset, len, true).unwrap();
                } else {
                    let data = segments(&memory, len);
                    data.fill(0, &vec![value; len as usize]);
                    overlay.write(offset, &data).unwrap();
                }
                expected[offset as usize..(offset + len) as usize].fill(value);
            }
            overlay.flush().unwrap();
            let all = segments(&memory, SIZE);
            overlay.read(0, &all).unwrap();
            let mut bytes = vec![1; SIZE as usize];
            all.copy_to(0, &mut bytes);
            prop_assert!(bytes == expected);
            kept.read_exact_at(&mut bytes, 0).unwrap();
            prop_assert!(bytes == content);
        }
    }

    #[test]
    fn a_huge_disk_costs_what_was_written() {
        let below = tempfile::tempfile().unwrap();
        below.set_len(1 << 42).unwrap();
        let below = RawFile::new(below, true).unwrap();
        let overlay = TemporaryOverlay::new(Box::new(below)).unwrap();
        let memory = GuestMemory::new(2 << 20).unwrap();
        let data = segments(&memory, 512);
        data.fill(0, &[7; 512]);
        overlay.write((1 << 42) - 512, &data).unwrap();
        overlay.write_zeroes(512, (1 << 42) - 1536, true).unwrap();
        data.zero(0);
        overlay.read((1 << 42) - 512, &data).unwrap();
        let mut bytes = [0; 512];
        data.copy_to(0, &mut bytes);
        assert_eq!(bytes, [7; 512]);
        assert!(overlay.write(1 << 42, &data).is_err());
    }
}
