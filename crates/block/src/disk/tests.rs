use super::*;
use crate::raw::RawFile;
use belljar_memory::{GuestMemory, GuestPhysAddr};
use proptest::prelude::*;
use std::sync::mpsc;

const SIZE: u64 = 1 << 20;

fn disk(bps: Option<u64>, iops: Option<u64>) -> Disk {
    let file = tempfile::tempfile().unwrap();
    file.set_len(SIZE).unwrap();
    let storage = Box::new(RawFile::of(file, false).unwrap());
    Disk::new("test", storage, bps, iops).unwrap()
}

fn segments(memory: &GuestMemory, at: u64, len: u64) -> Segments {
    Segments::new(memory, [(GuestPhysAddr(at), len)]).unwrap()
}

fn run(disk: &Disk, operation: Operation) -> io::Result<()> {
    let (sender, receiver) = mpsc::channel();
    disk.submit(Request {
        operation,
        done: Box::new(move |result| sender.send(result).unwrap()),
    });
    receiver.recv().unwrap()
}

#[test]
fn what_was_written_is_read() {
    let (disk, memory) = (disk(None, None), GuestMemory::new(1 << 20).unwrap());
    let data = segments(&memory, 0x1000, 4096);
    data.fill(0, &[5; 4096]);
    let write = Operation::Write {
        offset: 8192,
        from: data,
    };
    run(&disk, write).unwrap();
    run(&disk, Operation::Flush).unwrap();
    let back = segments(&memory, 0x8000, 8192);
    let read = Operation::Read {
        offset: 4096,
        to: back.clone(),
    };
    run(&disk, read).unwrap();
    let mut bytes = [1; 8192];
    back.copy_to(0, &mut bytes);
    assert_eq!(bytes[..4096], [0; 4096]);
    assert_eq!(bytes[4096..], [5; 4096]);
}

#[test]
fn limits_hold_requests_back_but_not_flushes() {
    let (disk, memory) = (disk(None, Some(100)), GuestMemory::new(1 << 20).unwrap());
    let (sender, receiver) = mpsc::channel();
    let start = Instant::now();
    for _ in 0..60 {
        let sender = sender.clone();
        disk.submit(Request {
            operation: Operation::Read {
                offset: 0,
                to: segments(&memory, 0, 512),
            },
            done: Box::new(move |result| sender.send(result.is_ok()).unwrap()),
        });
    }
    run(&disk, Operation::Flush).unwrap();
    assert!(start.elapsed() < Duration::from_millis(400));
    disk.drain();
    // Ten are free, fifty wait.
    let elapsed = start.elapsed();
    assert!(elapsed >= Duration::from_millis(450), "{elapsed:?}");
    assert_eq!(receiver.try_iter().filter(|ok| *ok).count(), 60);
}

#[test]
fn a_disk_that_is_dropped_serves_what_is_left() {
    let (disk, memory) = (disk(None, Some(50)), GuestMemory::new(1 << 20).unwrap());
    let (sender, receiver) = mpsc::channel();
    for _ in 0..20 {
        let sender = sender.clone();
        disk.submit(Request {
            operation: Operation::Write {
                offset: 0,
                from: segments(&memory, 0, 512),
            },
            done: Box::new(move |result| sender.send(result).unwrap()),
        });
    }
    drop((disk, sender));
    assert_eq!(receiver.iter().count(), 20);
}

#[test]
fn a_disk_for_reading_refuses_changes() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(SIZE).unwrap();
    let storage = Box::new(RawFile::of(file, true).unwrap());
    let disk = Disk::new("test", storage, None, None).unwrap();
    let memory = GuestMemory::new(1 << 20).unwrap();
    for operation in [
        Operation::Write {
            offset: 0,
            from: segments(&memory, 0, 512),
        },
        Operation::Discard {
            offset: 0,
            len: 512,
        },
        Operation::WriteZeroes {
            offset: 0,
            len: 512,
            may_unmap: false,
        },
    ] {
        let error = run(&disk, operation).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn ranges_that_are_not_of_the_disk_fail(offset: u64, len: u64) {
        let disk = disk(None, None);
        for offset in [offset, offset % (2 * SIZE), offset % (2 * SIZE) / 512 * 512] {
            for len in [len, len % SIZE, len % SIZE / 512 * 512] {
                let result = run(&disk, Operation::Discard { offset, len });
                let whole = offset % 512 == 0 && len % 512 == 0;
                let inside = offset.checked_add(len).is_some_and(|end| end <= SIZE);
                prop_assert_eq!(result.is_ok(), whole && inside);
            }
        }
    }

    #[test]
    fn an_overlay_is_a_disk_of_which_nothing_reaches_the_one_below(
        writes in prop::collection::vec((0_u64..2000, 1_u64..300, 1_u8..), 1..12)
    ) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        let below = file.try_clone().unwrap();
        let overlay = crate::TemporaryOverlay::new(Box::new(RawFile::of(file, true).unwrap())).unwrap();
        let memory = GuestMemory::new(2 << 20).unwrap();
        let mut expected = vec![0; SIZE as usize];
        for (sector, count, value) in writes {
            let (offset, len) = (sector * 512, (count * 512).min(SIZE - sector * 512));
            let data = segments(&memory, 0, len);
            data.fill(0, &vec![value; len as usize]);
            overlay.write(offset, &data).unwrap();
            expected[offset as usize..(offset + len) as usize].fill(value);
        }
        let all = Segments::new(&memory, [(GuestPhysAddr(0x10_0000), SIZE)]).unwrap();
        overlay.read(0, &all).unwrap();
        let mut bytes = vec![1; SIZE as usize];
        all.copy_to(0, &mut bytes);
        prop_assert!(bytes == expected);
        let untouched = all.read_from(&below, 0).unwrap();
        all.copy_to(0, &mut bytes);
        prop_assert!(untouched == SIZE && bytes.iter().all(|byte| *byte == 0));
    }
}
