//! A disk's queue: completion, errors, limits and draining.

use belljar_block::{Disk, DiskConfig, Limits, Request, SECTOR, Storage, open};
use belljar_memory::{GuestMemory, GuestPhysAddr, Segments};
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

#[test]
fn what_is_written_is_read_and_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk,1.img");
    std::fs::write(&path, vec![0; 65536]).unwrap();
    let text = format!(
        "{},serial=S1",
        path.display().to_string().replace(',', ",,")
    );
    let disk = open(&text.parse::<DiskConfig>().unwrap()).unwrap();
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
