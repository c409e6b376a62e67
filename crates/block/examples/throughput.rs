//! How fast a disk is: `cargo run --profile quick -p belljar-block --example throughput -- DISK`.
//!
//! DISK is what `--disk` takes, for example `disk.img,overlay=tmp`. It is read from its beginning for
//! two seconds in pieces of 4 KiB, and then of 128 KiB, with 16 requests in flight.

use belljar_block::{Disk, DiskConfig, Request, open};
use belljar_memory::{GuestMemory, GuestPhysAddr, Segments};
use std::error::Error;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Requests in flight.
const DEPTH: u64 = 16;
const DURATION: Duration = Duration::from_secs(2);

fn main() -> Result<(), Box<dyn Error>> {
    let text = std::env::args().nth(1).ok_or("usage: throughput DISK")?;
    let disk = open(&text.parse::<DiskConfig>()?)?;
    for len in [4 << 10, 128 << 10] {
        measure(&disk, len)?;
    }
    Ok(())
}

fn measure(disk: &Disk, len: u64) -> Result<(), Box<dyn Error>> {
    let pieces = disk.size() / len;
    if pieces == 0 {
        return Err("the disk is too small".into());
    }
    let memory = GuestMemory::new(DEPTH * (128 << 10) + (1 << 20))?;
    let (send, receive) = mpsc::channel();
    let submit = |piece: u64, slot: u64| -> Result<(), Box<dyn Error>> {
        let at = GuestPhysAddr((1 << 20) + slot * len);
        let request = Request::Read {
            offset: piece % pieces * len,
            segments: Segments::new(&memory, [(at, len)])?,
        };
        let send = send.clone();
        // The receiver is gone only when an error ended the program.
        let done = move |result| drop(send.send((slot, result)));
        disk.submit(request, Box::new(done));
        Ok(())
    };
    let start = Instant::now();
    for slot in 0..DEPTH {
        submit(slot, slot)?;
    }
    let (mut submitted, mut done) = (DEPTH, 0);
    while done < submitted {
        let (slot, result) = receive.recv()?;
        result?;
        done += 1;
        if start.elapsed() < DURATION {
            submit(submitted, slot)?;
            submitted += 1;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let (operations, mib) = (done as f64 / seconds, ((done * len) >> 20) as f64 / seconds);
    println!(
        "read {:>3} KiB: {operations:>8.0} operations/s, {mib:>6.0} MiB/s",
        len >> 10
    );
    Ok(())
}
