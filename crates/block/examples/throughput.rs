//! How fast a disk is, and what it costs:
//! `cargo run --profile quick -p belljar-block --example throughput -- DISK [write]`.
//!
//! DISK is what `--disk` takes, for example `disk.img,aio=threads`. It is read, or **overwritten**, for
//! two seconds in pieces of 4 KiB at random, and then of 128 KiB and of 1 MiB from its beginning, with
//! 32 requests in flight. The processor time is that of the whole process, with what the kernel does
//! for it.

use belljar_block::{Disk, DiskConfig, Done, Request, open};
use belljar_memory::{GuestMemory, GuestPhysAddr, Segments};
use rustix::time::{ClockId, clock_gettime};
use std::error::Error;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Requests in flight.
const DEPTH: u64 = 32;
const DURATION: Duration = Duration::from_secs(2);

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let text = arguments.next().ok_or("usage: throughput DISK [write]")?;
    let writes = arguments.next().is_some_and(|word| word == "write");
    let disk = open(&text.parse::<DiskConfig>()?)?;
    for len in [4 << 10, 128 << 10, 1 << 20] {
        measure(&disk, len, writes)?;
    }
    Ok(())
}

/// Processor time of the process, in seconds.
fn processor_time() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn measure(disk: &Disk, len: u64, writes: bool) -> Result<(), Box<dyn Error>> {
    let pieces = disk.size() / len;
    if pieces == 0 {
        return Err("the disk is too small".into());
    }
    let memory = GuestMemory::new(DEPTH * len + (1 << 20))?;
    let (send, receive) = mpsc::channel();
    let request = |number: u64, slot: u64| -> Result<(Request, Done), Box<dyn Error>> {
        let at = GuestPhysAddr((1 << 20) + slot * len);
        let piece = if len == 4 << 10 {
            number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11
        } else {
            number
        };
        let offset = piece % pieces * len;
        let segments = Segments::new(&memory, [(at, len)])?;
        let request = if writes {
            Request::Write { offset, segments }
        } else {
            Request::Read { offset, segments }
        };
        let send = send.clone();
        // The receiver is gone only when an error ended the program.
        Ok((
            request,
            Box::new(move |result| drop(send.send((slot, result)))),
        ))
    };
    let (start, used) = (Instant::now(), processor_time());
    let first: Result<Vec<_>, _> = (0..DEPTH).map(|slot| request(slot, slot)).collect();
    disk.submit_all(first?);
    let (mut submitted, mut done) = (DEPTH, 0);
    while done < submitted {
        let all: Vec<_> = std::iter::once(receive.recv()?)
            .chain(receive.try_iter())
            .collect();
        let mut next = Vec::new();
        for (slot, result) in all {
            result?;
            done += 1;
            if start.elapsed() < DURATION {
                next.push(request(submitted, slot)?);
                submitted += 1;
            }
        }
        disk.submit_all(next);
    }
    let seconds = start.elapsed().as_secs_f64();
    let cost = (processor_time() - used) * 1e6 / done as f64;
    let (operations, mib) = (done as f64 / seconds, ((done * len) >> 20) as f64 / seconds);
    println!(
        "{} {:>4} KiB: {operations:>8.0} operations/s, {mib:>6.0} MiB/s, {cost:>6.1} us of processor \
         time each",
        if writes { "write" } else { "read " },
        len >> 10
    );
    Ok(())
}
