//! Rings of the host that the tests run on. Where it gives none, there is nothing to test, and each
//! test says so.

use super::*;
use belljar_memory::{GuestMemory, GuestPhysAddr};
use proptest::prelude::*;
use seccompiler::{SeccompAction, SeccompFilter, TargetArch};
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;

fn ring(file: &File) -> Option<Ring<u32>> {
    match Ring::new(file.try_clone().unwrap(), 8) {
        Ok(ring) => Some(ring),
        Err(error) => {
            eprintln!("not tested: {error}");
            None
        }
    }
}

fn segments(memory: &GuestMemory, ranges: &[(u64, u64)]) -> Segments {
    let ranges = ranges.iter().map(|&(at, len)| (GuestPhysAddr(at), len));
    Segments::new(memory, ranges).unwrap()
}

/// Submits, and waits for all.
fn finish(ring: &mut Ring<u32>) -> Vec<Finished<u32>> {
    ring.submit().unwrap();
    let mut all = Vec::new();
    loop {
        all.extend(std::iter::from_fn(|| ring.complete()));
        if ring.under_way() == 0 {
            return all;
        }
        ring.wait().unwrap();
    }
}

fn file(len: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    file
}

#[test]
fn what_is_written_by_the_ring_is_in_the_file_and_is_read_by_it() {
    let file = file(8192);
    let Some(mut ring) = ring(&file) else { return };
    let memory = GuestMemory::new(1 << 20).unwrap();
    let from = segments(&memory, &[(0x1000, 700), (0x5000, 324)]);
    from.fill(0, &[7; 1024]);
    let write = Transfer {
        way: Way::Write,
        offset: 512,
        segments: from,
    };
    ring.push(write, 1).unwrap();
    let finished = finish(&mut ring);
    assert_eq!(finished.len(), 1);
    assert_eq!(finished[0].token, 1);
    assert_eq!(*finished[0].moved.as_ref().unwrap(), 1024);
    let mut bytes = [0; 2048];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes[..512].iter().chain(&bytes[1536..]).all(|&b| b == 0));
    assert!(bytes[512..1536].iter().all(|&b| b == 7));

    let to = segments(&memory, &[(0x9000, 10), (0x8000, 1014)]);
    let (generation, _) = memory.code().mark(8);
    let read = Transfer {
        way: Way::Read,
        offset: 500,
        segments: to.clone(),
    };
    ring.push(read, 2).unwrap();
    assert_eq!(*finish(&mut ring)[0].moved.as_ref().unwrap(), 1024);
    let mut back = [1; 1024];
    to.copy_to(0, &mut back);
    assert_eq!(back, bytes[500..1524]);
    assert_ne!(memory.code().generation(8), generation, "code is dropped");
}

#[test]
fn a_file_that_ends_and_a_file_that_cannot_be_written_are_told() {
    let file = file(700);
    let Some(mut ring) = ring(&file) else { return };
    let memory = GuestMemory::new(1 << 20).unwrap();
    let read = |offset| Transfer {
        way: Way::Read,
        offset,
        segments: segments(&memory, &[(0, 512)]),
    };
    ring.push(read(512), 0).unwrap();
    assert_eq!(*finish(&mut ring)[0].moved.as_ref().unwrap(), 188);
    ring.push(read(1024), 0).unwrap();
    assert_eq!(*finish(&mut ring)[0].moved.as_ref().unwrap(), 0);
    let path = tempfile::NamedTempFile::new().unwrap();
    let readable = File::open(path.path()).unwrap();
    let mut ring = Ring::new(readable, 8).unwrap();
    let write = Transfer {
        way: Way::Write,
        offset: 0,
        segments: segments(&memory, &[(0, 512)]),
    };
    ring.push(write, 0).unwrap();
    let finished = finish(&mut ring);
    let error = finished[0].moved.as_ref().unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBADF));
}

#[test]
fn what_is_too_much_is_given_back() {
    let file = file(0);
    let Some(mut ring) = ring(&file) else { return };
    let memory = GuestMemory::new(1 << 20).unwrap();
    let read = |offset, ranges: &[(u64, u64)]| Transfer {
        way: Way::Read,
        offset,
        segments: segments(&memory, ranges),
    };
    let many: Vec<(u64, u64)> = (0..1025).map(|n| (n * 16, 1)).collect();
    for impossible in [
        read(0, &[]),
        read(0, &many),
        read(u64::MAX, &[(0, 512)]),
        read(i64::MAX as u64 - 511, &[(0, 512)]),
    ] {
        assert!(ring.push(impossible, 0).is_err());
    }
    for number in 0..8 {
        ring.push(read(0, &[(0, 512)]), number).unwrap();
    }
    assert_eq!(ring.room(), 0);
    assert!(ring.push(read(0, &[(0, 512)]), 8).is_err());
    assert_eq!(finish(&mut ring).len(), 8);
    assert_eq!(ring.room(), 8);
    ring.push(read(0, &many[..1024]), 9).unwrap();
    assert_eq!(finish(&mut ring).len(), 1);
}

/// Forbids a system call to this thread, as containers do.
fn forbid(call: libc::c_long) {
    let filter = SeccompFilter::new(
        BTreeMap::from([(call, vec![])]),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        TargetArch::x86_64,
    );
    let program: seccompiler::BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

#[test]
fn where_rings_are_forbidden_there_is_none() {
    let thread = std::thread::spawn(|| {
        forbid(libc::SYS_io_uring_setup);
        let error = Ring::<u32>::new(file(0), 8).unwrap_err();
        assert!(matches!(error, Unavailable::Setup(_)), "{error}");
    });
    thread.join().unwrap();
}

#[test]
fn a_ring_that_the_host_refuses_gives_all_back_and_ends() {
    let file = file(512);
    let Some(mut ring) = ring(&file) else { return };
    let thread = std::thread::spawn(move || {
        let memory = GuestMemory::new(1 << 20).unwrap();
        for number in 0..3 {
            let read = Transfer {
                way: Way::Read,
                offset: 0,
                segments: segments(&memory, &[(0, 512)]),
            };
            ring.push(read, number).unwrap();
        }
        forbid(libc::SYS_io_uring_enter);
        let error = ring.submit().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        assert!(ring.is_given_up() && ring.room() == 0);
        let mut back = std::iter::from_fn(|| ring.complete());
        let tokens: Vec<u32> = back.by_ref().map(|finished| finished.token).collect();
        assert_eq!(tokens, [0, 1, 2]);
    });
    thread.join().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_ring_moves_what_calls_of_the_host_would(
        transfers in prop::collection::vec(
            (any::<bool>(), 0_u64..20_000, prop::collection::vec((0_u64..600_000, 0_u64..3000), 0..6)),
            1..40,
        )
    ) {
        let (file, other) = (file(16384), file(16384));
        let Some(mut ring) = ring(&file) else { return Ok(()) };
        let memory = GuestMemory::new(1 << 20).unwrap();
        let twin = GuestMemory::new(1 << 20).unwrap();
        let all = [(0, 0xa_0000), (0xc_0000, 0x4_0000)];
        let noise: Vec<u8> = (0..0xe_0000_u32).map(|n| n.wrapping_mul(0x9e37_79b9).to_be_bytes()[0]).collect();
        segments(&memory, &all).fill(0, &noise);
        segments(&twin, &all).fill(0, &noise);
        for (reads, offset, ranges) in transfers {
            let way = if reads { Way::Read } else { Way::Write };
            let transfer = Transfer { way, offset, segments: segments(&memory, &ranges) };
            let expected = segments(&twin, &ranges);
            if expected.is_empty() {
                prop_assert!(ring.push(transfer, 0).is_err());
                continue;
            }
            ring.push(transfer, 0).unwrap();
            let finished = finish(&mut ring);
            let moved = *finished[0].moved.as_ref().unwrap();
            if reads {
                prop_assert_eq!(expected.read_from(&other, offset).unwrap(), moved);
            } else {
                prop_assert_eq!(moved, expected.len());
                expected.write_to(&other, offset).unwrap();
            }
        }
        let content = |memory: &GuestMemory| {
            let mut bytes = vec![0; noise.len()];
            segments(memory, &all).copy_to(0, &mut bytes);
            bytes
        };
        prop_assert!(content(&memory) == content(&twin));
        let bytes = |file: &File| {
            let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
            file.read_exact_at(&mut bytes, 0).unwrap();
            bytes
        };
        prop_assert!(bytes(&file) == bytes(&other));
    }
}

#[test]
fn a_ring_that_is_dropped_waits_for_the_kernel() {
    // A pipe that nobody writes to yet is a file that makes the kernel wait.
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let Some(mut ring) = ring(&File::from(reader)) else {
        return;
    };
    let memory = GuestMemory::new(1 << 20).unwrap();
    let to = segments(&memory, &[(0x1000, 4)]);
    let read = Transfer {
        way: Way::Read,
        offset: 0,
        segments: to.clone(),
    };
    ring.push(read, 0).unwrap();
    ring.submit().unwrap();
    assert!(ring.complete().is_none());
    assert_eq!(ring.under_way(), 1);
    let dropped = std::thread::spawn(move || drop(ring));
    assert!(!dropped.is_finished());
    rustix::io::write(&writer, b"data").unwrap();
    dropped.join().unwrap();
    let mut bytes = [0; 4];
    to.copy_to(0, &mut bytes);
    assert_eq!(&bytes, b"data");
}
