//! What of a qcow2 image is left after the host lost power: everything that the guest had flushed.
//!
//! The image's file is recorded: every write and every sync that reaches it. A power cut is a prefix
//! of that record in which, after the last sync, any sectors are missing.

use belljar_block::{Qcow2Image, SECTOR, Storage};
use belljar_memory::{GuestMemory, GuestPhysAddr, Segments};
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use imago::{FormatAccess, FormatCreateBuilder};
use proptest::prelude::*;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Bytes of the guest's disk.
const SIZE: u64 = 1 << 20;
const SECTORS: usize = (SIZE / SECTOR) as usize;

#[derive(Clone, Debug)]
enum Event {
    Write(u64, Vec<u8>),
    Resize(u64),
    Sync,
}

#[derive(Debug, Default)]
struct Record {
    bytes: Vec<u8>,
    events: Vec<Event>,
}

/// The file of an image, in memory.
#[derive(Clone, Debug, Default)]
struct Recorder {
    record: Arc<Mutex<Record>>,
    helper: Arc<CommonStorageHelper>,
}

impl fmt::Display for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("recorder")
    }
}

/// Applies a write to the bytes of a file.
fn apply(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let offset = offset as usize;
    if bytes.len() < offset + data.len() {
        bytes.resize(offset + data.len(), 0);
    }
    bytes[offset..offset + data.len()].copy_from_slice(data);
}

// The crate's trait has unsafe methods; nothing here does anything unsafe.
impl imago::Storage for Recorder {
    fn size(&self) -> io::Result<u64> {
        Ok(self.record.lock().unwrap().bytes.len() as u64)
    }

    unsafe fn pure_readv(&self, mut bufv: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let record = self.record.lock().unwrap();
        let mut read = vec![0; bufv.len() as usize];
        let from = (offset as usize).min(record.bytes.len());
        let len = read.len().min(record.bytes.len() - from);
        read[..len].copy_from_slice(&record.bytes[from..from + len]);
        bufv.copy_from_slice(&read);
        Ok(())
    }

    unsafe fn pure_writev(&self, bufv: IoVector<'_>, offset: u64) -> io::Result<()> {
        let mut data = vec![0; bufv.len() as usize];
        bufv.copy_into_slice(&mut data);
        let mut record = self.record.lock().unwrap();
        apply(&mut record.bytes, offset, &data);
        record.events.push(Event::Write(offset, data));
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.record.lock().unwrap().events.push(Event::Sync);
        Ok(())
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }

    fn resize(&self, new_size: u64, _: PreallocateMode) -> io::Result<()> {
        let mut record = self.record.lock().unwrap();
        record.bytes.resize(new_size as usize, 0);
        record.events.push(Event::Resize(new_size));
        Ok(())
    }
}

/// What a guest does.
#[derive(Clone, Debug)]
enum Action {
    Write(usize, usize),
    Discard(usize, usize),
    Zeroes(usize, usize, bool),
    Flush,
}

fn action() -> impl Strategy<Value = Action> {
    let range = || (0..SECTORS, 1..40_usize).prop_map(|(at, len)| (at, len.min(SECTORS - at)));
    prop_oneof![
        5 => range().prop_map(|(at, len)| Action::Write(at, len)),
        1 => range().prop_map(|(at, len)| Action::Discard(at, len)),
        1 => (range(), any::<bool>()).prop_map(|((at, len), unmap)| Action::Zeroes(at, len, unmap)),
        2 => Just(Action::Flush),
    ]
}

/// The first bytes of each sector that could be read after a power cut; `None` is anything that was
/// there before or zeroes.
type Content = Vec<Vec<u32>>;

/// What may be read after a cut between two events.
struct Moment {
    events: usize,
    may_be: Content,
}

fn segments(memory: &GuestMemory, len: u64) -> Segments {
    Segments::new(memory, [(GuestPhysAddr(0x10_0000), len)]).unwrap()
}

fn write(disk: &dyn Storage, memory: &GuestMemory, at: usize, len: usize, stamp: u32) {
    let data = segments(memory, len as u64 * SECTOR);
    data.fill(0, &stamp.to_le_bytes().repeat(len * SECTOR as usize / 4));
    disk.write(at as u64 * SECTOR, &data).unwrap();
}

/// The stamps of all sectors, each of which must be whole.
fn read_all(disk: &dyn Storage, memory: &GuestMemory) -> Vec<u32> {
    let data = segments(memory, SIZE);
    disk.read(0, &data).unwrap();
    let mut bytes = vec![0; SIZE as usize];
    data.copy_to(0, &mut bytes);
    let sector = |sector: &[u8]| {
        let stamp = &sector[..4];
        assert!(sector.chunks(4).all(|part| part == stamp));
        u32::from_le_bytes(stamp.try_into().unwrap())
    };
    bytes.chunks(SECTOR as usize).map(sector).collect()
}

/// Does `actions` and tells what may be read after a cut at each moment.
fn run(disk: &Qcow2Image<Recorder>, recorder: &Recorder, actions: &[Action]) -> Vec<Moment> {
    let memory = GuestMemory::new(4 << 20).unwrap();
    let events = || recorder.record.lock().unwrap().events.len();
    let mut may_be: Content = vec![vec![0]; SECTORS];
    let mut moments = vec![];
    for (stamp, action) in (1..).zip(actions) {
        let mut add = |at: usize, len: usize, value: u32| {
            for sector in &mut may_be[at..at + len] {
                sector.push(value);
            }
        };
        // What is under way may be there; what it replaces as well, until a flush.
        match *action {
            Action::Write(at, len) => add(at, len, stamp),
            Action::Discard(at, len) | Action::Zeroes(at, len, _) => add(at, len, 0),
            Action::Flush => {}
        }
        moments.push(Moment {
            events: events(),
            may_be: may_be.clone(),
        });
        match *action {
            Action::Write(at, len) => write(disk, &memory, at, len, stamp),
            Action::Discard(at, len) => disk
                .discard(at as u64 * SECTOR, len as u64 * SECTOR)
                .unwrap(),
            Action::Zeroes(at, len, unmap) => disk
                .write_zeroes(at as u64 * SECTOR, len as u64 * SECTOR, unmap)
                .unwrap(),
            Action::Flush => {
                disk.flush().unwrap();
                // What is there now is what has to last.
                let now = read_all(disk, &memory);
                for (sector, stamp) in may_be.iter_mut().zip(now) {
                    assert!(sector.contains(&stamp));
                    *sector = vec![stamp];
                }
                moments.push(Moment {
                    events: events(),
                    may_be: may_be.clone(),
                });
            }
        }
    }
    moments
}

/// The file after a cut after `count` events.
fn cut(start: &[u8], events: &[Event], count: usize, mut chance: u64) -> Vec<u8> {
    let mut bytes = start.to_vec();
    let synced = events[..count]
        .iter()
        .rposition(|event| matches!(event, Event::Sync))
        .unwrap_or(0);
    for (index, event) in events[..count].iter().enumerate() {
        match event {
            Event::Write(offset, data) if index < synced => apply(&mut bytes, *offset, data),
            Event::Write(offset, data) => {
                for (n, sector) in data.chunks(SECTOR as usize).enumerate() {
                    // An odd chance keeps them all.
                    chance = chance.wrapping_mul(6364136223846793005).wrapping_add(2);
                    if chance & 1 != 0 || chance >> 40 & 1 != 0 {
                        apply(&mut bytes, offset + n as u64 * SECTOR, sector);
                    }
                }
            }
            Event::Resize(len) => bytes.resize(*len as usize, 0),
            Event::Sync => {}
        }
    }
    bytes
}

/// Opens what a cut left, reads it, and goes on: a later write must change nothing else.
fn check(path: &Path, bytes: &[u8], may_be: &Content) {
    std::fs::write(path, bytes).unwrap();
    let memory = GuestMemory::new(4 << 20).unwrap();
    let disk = Qcow2Image::open(path, false).unwrap();
    let mut found = read_all(&disk, &memory);
    for (n, (stamp, allowed)) in found.iter().zip(may_be).enumerate() {
        assert!(
            allowed.contains(stamp),
            "sector {n}: {stamp} of {allowed:?}"
        );
    }
    for (n, at) in (0..SECTORS).step_by(97).enumerate() {
        let stamp = u32::MAX - n as u32;
        write(&disk, &memory, at, 1, stamp);
        found[at] = stamp;
    }
    disk.flush().unwrap();
    assert_eq!(read_all(&disk, &memory), found);
    drop(disk);
    let disk = Qcow2Image::open(path, true).unwrap();
    assert_eq!(read_all(&disk, &memory), found);
}

/// Makes an image, with a backing file if `overlay`, does `actions`, and cuts the power `cuts` times.
fn cut_power(actions: &[Action], cuts: &[u64], overlay: bool) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.qcow2");
    let recorder = Recorder::default();
    let mut builder = Qcow2::<Recorder>::create_builder(recorder.clone())
        .size(SIZE)
        .cluster_size(4096);
    if overlay {
        // Zeroes too, so that both kinds of image begin with the same content.
        std::fs::write(directory.path().join("base.img"), vec![0; SIZE as usize]).unwrap();
        builder = builder.backing("base.img".to_owned(), "raw".to_owned());
    }
    builder.create().unwrap();
    let start = {
        let mut record = recorder.record.lock().unwrap();
        record.events.clear();
        record.bytes.clone()
    };
    let mut image = Qcow2::<Recorder>::open_image(recorder.clone(), true).unwrap();
    image.set_data_file(None);
    let backing = overlay.then(|| {
        let base = Recorder::default();
        base.record.lock().unwrap().bytes = vec![0; SIZE as usize];
        FormatAccess::new(imago::raw::Raw::open_image(base, false).unwrap())
    });
    image.set_backing(backing);
    let disk = Qcow2Image::over(FormatAccess::new(image), false);
    let moments = run(&disk, &recorder, actions);
    drop(disk);
    let events = recorder.record.lock().unwrap().events.clone();
    for &chance in cuts {
        let count = (chance >> 1) as usize % (events.len() + 1);
        // The last moment that the cut does not come before.
        let moment = moments.iter().rev().find(|moment| moment.events <= count);
        let may_be = &moment.unwrap().may_be;
        check(&path, &cut(&start, &events, count, chance), may_be);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_was_flushed_survives_a_power_cut(
        actions in prop::collection::vec(action(), 1..60),
        cuts in prop::collection::vec(any::<u64>(), 6),
        overlay: bool,
    ) {
        cut_power(&actions, &cuts, overlay);
    }
}
