//! qcow2 images of any content: each is refused, or serves requests with data or errors.

#![no_main]

use belljar_block::{Qcow2Image, Storage};
use belljar_fuzz::Input;
use belljar_memory::{GuestMemory, GuestPhysAddr, Segments};
use libfuzzer_sys::fuzz_target;
use std::io::Write;
use std::sync::LazyLock;

/// Bytes of a cluster.
const CLUSTER: usize = 4096;
/// Bytes of the disk.
const SIZE: u64 = 1 << 20;

static MEMORY: LazyLock<GuestMemory> =
    LazyLock::new(|| GuestMemory::new(1 << 20).expect("the host has memory"));

/// A sound image: header, table of refcounts, refcounts, level-1 table, level-2 table, and two
/// clusters of data. QEMU's docs/interop/qcow2.txt.
fn sound() -> Vec<u8> {
    let mut file = vec![0; 7 * CLUSTER];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"QFI\xfb");
    put(4, &3_u32.to_be_bytes());
    put(20, &12_u32.to_be_bytes());
    put(24, &SIZE.to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &(3 * CLUSTER as u64).to_be_bytes());
    put(48, &(CLUSTER as u64).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    put(CLUSTER, &(2 * CLUSTER as u64).to_be_bytes());
    for cluster in 0..7 {
        put(2 * CLUSTER + 2 * cluster, &1_u16.to_be_bytes());
    }
    put(3 * CLUSTER, &(1 << 63 | 4 * CLUSTER as u64).to_be_bytes());
    put(4 * CLUSTER, &(1 << 63 | 5 * CLUSTER as u64).to_be_bytes());
    put(
        4 * CLUSTER + 8,
        &(1 << 63 | 6 * CLUSTER as u64).to_be_bytes(),
    );
    file
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let mut bytes = sound();
    for _ in 0..input.u8() & 7 {
        let (kind, at, value) = (input.u8(), usize::from(input.u16()), input.u64());
        // A field of the header, or an entry of a table, and often a plausible one.
        let at = if kind & 1 == 0 { at % 112 } else { at * 8 };
        let value = match kind >> 1 & 3 {
            0 => value,
            1 => 1 << 63 | value % 9 * CLUSTER as u64,
            2 => 1 << 62 | value % (9 * CLUSTER as u64),
            _ => value % 4,
        };
        if let Some(place) = bytes.get_mut(at..at + 8) {
            place.copy_from_slice(&value.to_be_bytes());
        }
    }
    if input.u8() & 7 == 0 {
        bytes.truncate(usize::from(input.u16()));
    }
    let mut file = tempfile::NamedTempFile::new().expect("the host has room");
    file.write_all(&bytes).expect("the host has room");
    let read_only = input.u8() & 1 == 0;
    let Ok(disk) = Qcow2Image::open(file.path(), read_only) else {
        return;
    };
    while !input.is_empty() {
        let (operation, sector, len) = (input.u8(), input.u16(), u64::from(input.u8()) * 512);
        let offset = if operation & 0x80 == 0 {
            u64::from(sector) % 64 * 512
        } else {
            disk.size().wrapping_sub(u64::from(sector) * 512)
        };
        let segments =
            Segments::new(&MEMORY, [(GuestPhysAddr(0x1000), len)]).expect("the range is RAM");
        let _ = match operation % 5 {
            0 => disk.read(offset, &segments),
            1 => disk.write(offset, &segments),
            2 => disk.flush(),
            3 => disk.discard(offset, len),
            _ => disk.write_zeroes(offset, len, operation & 0x40 == 0),
        };
    }
});
