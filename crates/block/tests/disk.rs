//! A disk's queue: completion, errors, limits and draining.

use belljar_block::{BlockError, Disk, DiskConfig, Done, Limits, Request, SECTOR, Storage, open};
use belljar_memory::{GuestMemory, GuestPhysAddr, Segments};
use proptest::prelude::*;
use seccompiler::{SeccompAction, SeccompFilter, TargetArch};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant};

fn segments(memory: &GuestMemory, at: u64, len: u64) -> Segments {
    Segments::new(memory, [(GuestPhysAddr(at), len)]).unwrap()
}

/// Submits and waits.
fn now(disk: &Disk, request: Request) -> io::Result<()> {
    let (send, receive) = mpsc::channel();
    disk.submit(request, Box::new(move |result| send.send(result).unwrap()));
    receive.recv_timeout(Duration::from_secs(30)).unwrap()
}

/// A disk whose reads wait until they are let go, whose discards fail and whose writes panic.
#[derive(Debug, Default)]
struct Odd {
    open: Mutex<bool>,
    opened: Condvar,
}

#[derive(Debug)]
struct Shared(Arc<Odd>);

impl Storage for Shared {
    fn size(&self) -> u64 {
        1 << 20
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn file(&self) -> Option<&std::fs::File> {
        None
    }

    fn read(&self, _: u64, _: &Segments) -> io::Result<()> {
        let mut open = self.0.open.lock().unwrap();
        while !*open {
            open = self.0.opened.wait(open).unwrap();
        }
        Ok(())
    }

    fn write(&self, _: u64, _: &Segments) -> io::Result<()> {
        panic!("a defect")
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::StorageFull.into())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Ok(())
    }
}

fn odd(limits: Limits) -> (Disk, Arc<Odd>) {
    let odd = Arc::new(Odd::default());
    let disk = Disk::new("odd".to_owned(), Box::new(Shared(Arc::clone(&odd))), limits).unwrap();
    (disk, odd)
}

/// Opens a disk; `None` if it needs io_uring and this host gives none.
fn open_with(text: &str) -> Option<Disk> {
    match open(&text.parse::<DiskConfig>().unwrap()) {
        Err(error @ BlockError::Ring { .. }) => {
            eprintln!("not tested: {error}");
            None
        }
        disk => Some(disk.unwrap()),
    }
}

const AIO: [&str; 3] = ["auto", "io_uring", "threads"];

#[test]
fn what_is_written_is_read_and_in_the_file() {
    for aio in AIO {
        what_is_written_is_read(aio);
    }
}

fn what_is_written_is_read(aio: &str) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk,1.img");
    std::fs::write(&path, vec![0; 65536]).unwrap();
    let text = format!(
        "{},aio={aio},serial=S1",
        path.display().to_string().replace(',', ",,")
    );
    let Some(disk) = open_with(&text) else { return };
    if aio != "auto" {
        assert_eq!(disk.uses_io_uring(), aio == "io_uring");
    }
    let memory = GuestMemory::new(1 << 20).unwrap();
    let data = segments(&memory, 0x1000, 1024);
    data.fill(0, &[5; 1024]);
    let write = Request::Write {
        offset: 512,
        segments: data,
    };
    now(&disk, write).unwrap();
    now(&disk, Request::Flush).unwrap();
    let back = segments(&memory, 0x8000, 2048);
    let read = Request::Read {
        offset: 0,
        segments: back.clone(),
    };
    now(&disk, read).unwrap();
    let mut bytes = [1; 2048];
    back.copy_to(0, &mut bytes);
    assert_eq!(bytes, std::fs::read(&path).unwrap()[..2048]);
    assert!(bytes[512..1536].iter().all(|&b| b == 5));
    assert!(bytes[1536..].iter().all(|&b| b == 0));
    let beyond = Request::Discard {
        offset: 65536,
        len: SECTOR,
    };
    let error = now(&disk, beyond).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn submitting_does_not_wait_and_draining_does() {
    let (disk, odd) = odd(Limits::default());
    let memory = GuestMemory::new(1 << 20).unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    for _ in 0..100 {
        let count = Arc::clone(&count);
        let request = Request::Read {
            offset: 0,
            segments: segments(&memory, 0, 512),
        };
        disk.submit(
            request,
            Box::new(move |_| {
                count.fetch_add(1, Ordering::SeqCst);
            }),
        );
    }
    assert_eq!(count.load(Ordering::SeqCst), 0);
    *odd.open.lock().unwrap() = true;
    odd.opened.notify_all();
    disk.drain();
    assert_eq!(count.load(Ordering::SeqCst), 100);
}

#[test]
fn errors_and_defects_of_the_storage_reach_the_card() {
    let (disk, _) = odd(Limits::default());
    let discard = Request::Discard {
        offset: 0,
        len: 512,
    };
    let error = now(&disk, discard).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    now(&disk, Request::Flush).unwrap();
    let memory = GuestMemory::new(1 << 20).unwrap();
    let write = Request::Write {
        offset: 0,
        segments: segments(&memory, 0, 512),
    };
    now(&disk, write).unwrap_err();
    now(&disk, Request::Flush).unwrap_err();
    disk.drain();
}

#[test]
fn a_flush_passes_what_waits_for_a_limit_and_draining_lets_it_go() {
    let limits = Limits {
        bps: None,
        iops: Some(1),
    };
    let (disk, _) = odd(limits);
    let (send, receive) = mpsc::channel();
    let zeroes = || Request::WriteZeroes {
        offset: 0,
        len: 512,
        may_unmap: false,
    };
    for _ in 0..20 {
        let send = send.clone();
        disk.submit(zeroes(), Box::new(move |_| send.send(()).unwrap()));
    }
    let start = Instant::now();
    now(&disk, Request::Flush).unwrap();
    assert!(receive.try_iter().count() < 19);
    disk.drain();
    assert!(start.elapsed() < Duration::from_secs(10));
    // What went through is owed: the next one waits.
    disk.submit(zeroes(), Box::new(move |_| send.send(()).unwrap()));
    let before = receive.try_iter().count();
    assert!(before <= 20);
    assert!(receive.recv_timeout(Duration::from_millis(200)).is_err());
}

#[test]
fn the_rate_is_kept() {
    let limits = Limits {
        bps: None,
        iops: Some(2000),
    };
    let (disk, _) = odd(limits);
    let count = Arc::new(AtomicUsize::new(0));
    let (send, receive) = mpsc::channel();
    let start = Instant::now();
    // Two seconds' worth, with 8 requests in flight.
    let mut submitted = 0;
    while submitted < 4000 || count.load(Ordering::SeqCst) < 4000 {
        while submitted < 4000 && submitted - count.load(Ordering::SeqCst) < 8 {
            let (send, count) = (send.clone(), Arc::clone(&count));
            let request = Request::WriteZeroes {
                offset: 0,
                len: 512,
                may_unmap: true,
            };
            disk.submit(
                request,
                Box::new(move |_| {
                    count.fetch_add(1, Ordering::SeqCst);
                    send.send(()).unwrap();
                }),
            );
            submitted += 1;
        }
        receive.recv_timeout(Duration::from_secs(30)).unwrap();
        for () in receive.try_iter() {}
        if count.load(Ordering::SeqCst) == 4000 {
            break;
        }
    }
    // The burst is a tenth of a second; a loaded host may be slower, never faster.
    assert!(
        start.elapsed() >= Duration::from_millis(1850),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn changes_of_a_temporary_overlay_never_reach_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    std::fs::write(&path, vec![1; 65536]).unwrap();
    let text = format!("{},overlay=tmp", path.display());
    let config: DiskConfig = text.parse().unwrap();
    // Two machines at once: the image is only read.
    let (disk, other) = (open(&config).unwrap(), open(&config).unwrap());
    assert!(!disk.is_read_only());
    let memory = GuestMemory::new(1 << 20).unwrap();
    let data = segments(&memory, 0x1000, 512);
    data.fill(0, &[5; 512]);
    let write = Request::Write {
        offset: 1024,
        segments: data,
    };
    now(&disk, write).unwrap();
    now(&disk, Request::Flush).unwrap();
    for (disk, want) in [(&disk, 5), (&other, 1)] {
        let back = segments(&memory, 0x8000, 512);
        let read = Request::Read {
            offset: 1024,
            segments: back.clone(),
        };
        now(disk, read).unwrap();
        let mut bytes = [0; 512];
        back.copy_to(0, &mut bytes);
        assert_eq!(bytes, [want; 512]);
    }
    drop((disk, other));
    assert_eq!(std::fs::read(&path).unwrap(), vec![1; 65536]);
}

#[test]
fn io_uring_that_cannot_be_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    std::fs::write(&path, vec![0; 65536]).unwrap();
    let text = format!("{},overlay=tmp,aio=io_uring", path.display());
    let error = open(&text.parse().unwrap()).unwrap_err();
    assert!(matches!(error, BlockError::NotRaw(_)), "{error}");
    let text = format!("{},overlay=tmp", path.display());
    assert!(!open(&text.parse().unwrap()).unwrap().uses_io_uring());
}

/// Forbids rings to this thread, as containers do.
fn forbid_rings() {
    let filter = SeccompFilter::new(
        BTreeMap::from([(425, vec![])]),
        SeccompAction::Allow,
        SeccompAction::Errno(1),
        TargetArch::x86_64,
    );
    let program: seccompiler::BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

#[test]
fn where_rings_are_forbidden_threads_serve() {
    let thread = std::thread::spawn(|| {
        forbid_rings();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        std::fs::write(&path, vec![3; 65536]).unwrap();
        let text = path.display().to_string();
        let error = open(&format!("{text},aio=io_uring").parse().unwrap()).unwrap_err();
        assert!(matches!(error, BlockError::Ring { .. }), "{error}");
        let disk = open(&text.parse().unwrap()).unwrap();
        assert!(!disk.uses_io_uring());
        let memory = GuestMemory::new(1 << 20).unwrap();
        let back = segments(&memory, 0x8000, 512);
        let read = Request::Read {
            offset: 0,
            segments: back.clone(),
        };
        now(&disk, read).unwrap();
        let mut bytes = [0; 512];
        back.copy_to(0, &mut bytes);
        assert_eq!(bytes, [3; 512]);
    });
    thread.join().unwrap();
}

#[test]
fn the_rate_is_kept_by_io_uring_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk.img");
    std::fs::write(&path, vec![0; 65536]).unwrap();
    let text = format!("{},aio=io_uring,iops=1000", path.display());
    let Some(disk) = open_with(&text) else { return };
    let memory = GuestMemory::new(1 << 20).unwrap();
    let (send, receive) = mpsc::channel();
    let start = Instant::now();
    for number in 0..600 {
        let segments = segments(&memory, 0x1000, 512);
        let request = if number % 2 == 0 {
            Request::Read {
                offset: 512,
                segments,
            }
        } else {
            Request::Write {
                offset: 512,
                segments,
            }
        };
        let send = send.clone();
        disk.submit(
            request,
            Box::new(move |result| send.send(result.is_ok()).unwrap()),
        );
    }
    for _ in 0..600 {
        assert!(receive.recv_timeout(Duration::from_secs(30)).unwrap());
    }
    // Six tenths of a second, of which the burst is one.
    assert!(
        start.elapsed() >= Duration::from_millis(480),
        "{:?}",
        start.elapsed()
    );
}

/// Requests of which each is submitted by the `done` of the one before.
fn chain(disk: &Arc<Disk>, memory: &GuestMemory, left: u32, end: mpsc::Sender<()>) {
    let (next, again) = (Arc::clone(disk), memory.clone());
    let request = if left.is_multiple_of(3) {
        Request::Flush
    } else {
        Request::Read {
            offset: 0,
            segments: segments(memory, 0x1000, 512),
        }
    };
    let done = move |result: io::Result<()>| {
        result.unwrap();
        if left == 0 {
            // The last handle may go away here.
            drop(next);
            end.send(()).unwrap();
        } else {
            chain(&next, &again, left - 1, end);
        }
    };
    disk.submit(request, Box::new(done));
}

#[test]
fn requests_that_follow_each_other_need_no_stack_and_the_last_may_end_the_disk() {
    for aio in AIO {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        std::fs::write(&path, vec![0; 4096]).unwrap();
        let Some(disk) = open_with(&format!("{},aio={aio}", path.display())) else {
            continue;
        };
        let (disk, memory) = (Arc::new(disk), GuestMemory::new(1 << 20).unwrap());
        let (send, receive) = mpsc::channel();
        chain(&disk, &memory, 3000, send);
        drop(disk);
        receive.recv_timeout(Duration::from_secs(30)).unwrap();
    }
}

/// What a disk is told to do: a kind, a sector, and a number of sectors.
type Step = (u8, u64, u64);

fn request_of(memory: &GuestMemory, &(kind, sector, count): &Step, at: u64) -> Request {
    let (offset, len) = (sector * SECTOR, count * SECTOR);
    let half = len / 2;
    let ranges = [
        (GuestPhysAddr(at + half), len - half),
        (GuestPhysAddr(at), half),
    ];
    let segments = Segments::new(memory, ranges).unwrap();
    match kind {
        0 => Request::Flush,
        1 => Request::WriteZeroes {
            offset,
            len,
            may_unmap: true,
        },
        2..5 => Request::Read { offset, segments },
        _ => Request::Write { offset, segments },
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_disk_does_the_same_whatever_serves_it(
        steps in prop::collection::vec((0_u8..9, 0_u64..300, 1_u64..500), 1..40),
        ragged in 0_u64..512,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let mut found = Vec::new();
        for aio in AIO {
            let path = directory.path().join(aio);
            let content: Vec<u8> = (0..256 * SECTOR - ragged).map(|at| (at / 100) as u8).collect();
            std::fs::write(&path, content).unwrap();
            let Some(disk) = open_with(&format!("{},aio={aio}", path.display())) else {
                continue;
            };
            let memory = GuestMemory::new(2 << 20).unwrap();
            let all = segments(&memory, 1 << 20, 1 << 20);
            let noise: Vec<u8> = (0..1 << 20).map(|n: u32| (n / 77) as u8).collect();
            all.fill(0, &noise);
            // One after the other, so that there is one result; errors are part of it.
            let results: Vec<_> = steps
                .iter()
                .map(|step| now(&disk, request_of(&memory, step, 1 << 20)).map_err(|e| e.kind()))
                .collect();
            now(&disk, Request::Flush).unwrap();
            drop(disk);
            let mut bytes = vec![0; 1 << 20];
            all.copy_to(0, &mut bytes);
            found.push((results, bytes, std::fs::read(&path).unwrap()));
        }
        prop_assert!(found.windows(2).all(|two| two[0] == two[1]));
    }

    #[test]
    fn many_requests_at_once_are_each_answered_once(
        steps in prop::collection::vec((0_u8..9, 0_u64..300, 1_u64..60), 1..600),
        ends_at_once: bool,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk.img");
        std::fs::write(&path, vec![1; 256 * SECTOR as usize]).unwrap();
        for aio in AIO {
            let Some(disk) = open_with(&format!("{},aio={aio}", path.display())) else {
                continue;
            };
            let memory = GuestMemory::new(2 << 20).unwrap();
            let answers: Arc<Vec<AtomicUsize>> =
                Arc::new(steps.iter().map(|_| AtomicUsize::new(0)).collect());
            let job = |(number, step): (usize, &Step)| -> (Request, Done) {
                let request = request_of(&memory, step, 1 << 20);
                let is_within = step.0 == 0 || step.1 + step.2 <= 256;
                let answers = Arc::clone(&answers);
                let done = move |result: io::Result<()>| {
                    assert_eq!(result.is_ok(), is_within);
                    answers[number].fetch_add(1, Ordering::SeqCst);
                };
                (request, Box::new(done))
            };
            for batch in steps.iter().enumerate().collect::<Vec<_>>().chunks(64) {
                disk.submit_all(batch.iter().copied().map(job));
            }
            if ends_at_once {
                drop(disk);
            } else {
                disk.drain();
            }
            prop_assert!(answers.iter().all(|count| count.load(Ordering::SeqCst) == 1));
        }
    }
}
