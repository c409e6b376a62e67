//! What a guest had flushed is there after the machine ends between any two operations, without a
//! word to the image.
//!
//! The image is copied after every operation, which is what a killed process leaves, and the copy is
//! opened as a disk.

use belljar_block::{Format, Qcow2Image, RawFile, SECTOR, Storage};
use belljar_memory::{GuestMemory, GuestPhysAddr, Segments};
use std::fs::{File, OpenOptions};
use std::path::Path;

const SIZE: u64 = 1 << 20;
const OPERATIONS: usize = 120;

/// What the guest may count on.
struct Guest {
    memory: GuestMemory,
    /// The content as written.
    now: Vec<u8>,
    /// Whether a sector has changed since the last flush, and its content then.
    flushed: Vec<u8>,
    changed: Vec<bool>,
    word: u64,
}

impl Guest {
    fn new(content: &[u8]) -> Self {
        Self {
            memory: GuestMemory::new(4 << 20).unwrap(),
            now: content.to_vec(),
            flushed: content.to_vec(),
            changed: vec![false; (SIZE / SECTOR) as usize],
            word: 7,
        }
    }

    fn below(&mut self, most: u64) -> u64 {
        self.word = self
            .word
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.word >> 33) % most
    }

    fn segments(&self, len: u64) -> Segments {
        Segments::new(&self.memory, [(GuestPhysAddr(1 << 20), len)]).unwrap()
    }

    /// Does anything to `disk`.
    fn operate(&mut self, disk: &dyn Storage) {
        let offset = self.below(SIZE / SECTOR) * SECTOR;
        let len = ((self.below(64) + 1) * SECTOR).min(SIZE - offset);
        let range = offset as usize..(offset + len) as usize;
        match self.below(6) {
            0 => {
                disk.flush().unwrap();
                self.flushed.copy_from_slice(&self.now);
                self.changed.fill(false);
                return;
            }
            1 => {
                let unmap = self.below(2) == 0;
                disk.write_zeroes(offset, len, unmap).unwrap();
                self.now[range].fill(0);
            }
            _ => {
                let value = self.below(255) as u8 + 1;
                let part = self.segments(len);
                part.fill(0, &vec![value; len as usize]);
                disk.write(offset, &part).unwrap();
                self.now[range].fill(value);
            }
        }
        self.changed[(offset / SECTOR) as usize..((offset + len) / SECTOR) as usize].fill(true);
    }

    /// Looks for what was flushed on a disk that was found after the end.
    fn look(&self, disk: &dyn Storage) {
        let all = self.segments(SIZE);
        disk.read(0, &all).unwrap();
        let mut bytes = vec![0; SIZE as usize];
        all.copy_to(0, &mut bytes);
        let sectors = bytes.chunks(SECTOR as usize);
        let flushed = self.flushed.chunks(SECTOR as usize);
        for (sector, (found, flushed)) in sectors.zip(flushed).enumerate() {
            assert!(
                self.changed[sector] || found == flushed,
                "sector {sector} is not as it was flushed"
            );
        }
    }
}

fn raw(path: &Path) -> RawFile {
    let file = OpenOptions::new().read(true).write(true).open(path);
    RawFile::new(file.unwrap(), false).unwrap()
}

#[test]
fn a_raw_disk_keeps_what_was_flushed() {
    let directory = tempfile::tempdir().unwrap();
    let (path, copy) = (directory.path().join("disk"), directory.path().join("copy"));
    File::create(&path).unwrap().set_len(SIZE).unwrap();
    let mut guest = Guest::new(&vec![0; SIZE as usize]);
    let disk = raw(&path);
    for _ in 0..OPERATIONS {
        guest.operate(&disk);
        std::fs::copy(&path, &copy).unwrap();
        guest.look(&raw(&copy));
    }
}

#[test]
fn a_qcow2_overlay_keeps_what_was_flushed() {
    let directory = tempfile::tempdir().unwrap();
    let (base, copy) = (directory.path().join("base"), directory.path().join("copy"));
    let path = directory.path().join("overlay");
    let content: Vec<u8> = (0..SIZE).map(|at| (at / 777) as u8).collect();
    std::fs::write(&base, &content).unwrap();
    let mut guest = Guest::new(&content);
    let disk = Qcow2Image::open_overlay(&path, &base, Format::Raw).unwrap();
    for _ in 0..OPERATIONS {
        guest.operate(&disk);
        std::fs::copy(&path, &copy).unwrap();
        let found = Qcow2Image::open_overlay(&copy, &base, Format::Raw).unwrap();
        guest.look(&found);
        // It can be gone on with.
        let part = guest.segments(SIZE);
        part.zero(0);
        found.write(0, &part).unwrap();
        found.flush().unwrap();
    }
}
