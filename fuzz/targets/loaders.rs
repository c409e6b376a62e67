//! Kernels of any content: each is loaded or refused.

#![no_main]

use belljar_boot::{Firmware, Payload, load};
use belljar_fuzz::{Input, platform};
use belljar_memory::GuestMemory;
use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;

/// RAM of the machine that is loaded into.
const RAM: u64 = 64 << 20;

static MACHINE: LazyLock<(GuestMemory, Firmware)> = LazyLock::new(|| {
    let memory = GuestMemory::new(RAM).expect("the host has memory");
    let firmware = Firmware::install(&memory, &platform()).expect("the tables fit");
    (memory, firmware)
});

/// Writes words into a file at their offsets.
fn put(file: &mut [u8], fields: &[(usize, &[u8])]) {
    for (at, bytes) in fields {
        file[*at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// A sound Linux image without content. Linux documentation: arch/x86/boot.rst.
fn linux() -> Vec<u8> {
    let mut file = vec![0; 2048];
    put(
        &mut file,
        &[
            (0x1f1, &[1]),
            (0x1f4, &0x40_u32.to_le_bytes()),
            (0x1fe, &[0x55, 0xaa, 0xeb, 0x66]),
            (0x202, b"HdrS"),
            (0x206, &0x20f_u16.to_le_bytes()),
            (0x211, &[1]),
            (0x214, &0x10_0000_u32.to_le_bytes()),
            (0x22c, &0x7fff_ffff_u32.to_le_bytes()),
            (0x230, &0x20_0000_u32.to_le_bytes()),
            (0x234, &[1, 0x15, 3, 0]),
            (0x238, &0x7ff_u32.to_le_bytes()),
            (0x258, &0x100_0000_u64.to_le_bytes()),
            (0x260, &0x10_0000_u32.to_le_bytes()),
        ],
    );
    file
}

/// A sound 64-bit ELF file with one segment and the note of PVH.
fn pvh() -> Vec<u8> {
    let mut file = vec![0; 512];
    put(
        &mut file,
        &[
            (0, b"\x7fELF\x02\x01\x01"),
            (0x10, &[2, 0, 0x3e, 0, 1]),
            (0x18, &0x10_0000_u64.to_le_bytes()),
            (0x20, &64_u64.to_le_bytes()),
            (0x34, &[64, 0, 56, 0, 2, 0]),
            // PT_LOAD: the file's last 256 bytes at 1 MiB.
            (0x40, &[1, 0, 0, 0, 7]),
            (0x48, &0x100_u64.to_le_bytes()),
            (0x50, &0x10_0000_u64.to_le_bytes()),
            (0x58, &0x10_0000_u64.to_le_bytes()),
            (0x60, &0x100_u64.to_le_bytes()),
            (0x68, &0x200_u64.to_le_bytes()),
            // PT_NOTE.
            (0x78, &[4, 0, 0, 0, 4]),
            (0x80, &0x100_u64.to_le_bytes()),
            (0x98, &20_u64.to_le_bytes()),
            (0xa0, &20_u64.to_le_bytes()),
            (0x100, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]),
            (0x10c, b"Xen\0"),
            (0x110, &0x10_0000_u32.to_le_bytes()),
        ],
    );
    file
}

/// A sound multiboot kernel that tells its own addresses.
fn multiboot() -> Vec<u8> {
    let mut file = vec![0; 256];
    let words: [u32; 8] = [
        0x1bad_b002,
        0x1_0003,
        0_u32.wrapping_sub(0x1bad_b002 + 0x1_0003),
        0x10_0000,
        0x10_0000,
        0,
        0x10_0200,
        0x10_0020,
    ];
    for (n, word) in words.iter().enumerate() {
        put(&mut file, &[(4 * n, &word.to_le_bytes())]);
    }
    file
}

fuzz_target!(|data: &[u8]| {
    let (memory, firmware) = &*MACHINE;
    let mut input = Input::new(data);
    let mut kernel = match input.u8() % 4 {
        0 => linux(),
        1 => pvh(),
        2 => multiboot(),
        _ => Vec::new(),
    };
    // A few bytes of a sound file are spoiled; what is left of the input follows it.
    for _ in 0..input.u8() & 7 {
        let (at, byte) = (usize::from(input.u16()), input.u8());
        if let Some(place) = kernel.get_mut(at) {
            *place = byte;
        }
    }
    let cmdline = "x".repeat(usize::from(input.u16() & 0xfff));
    let initrd_len = usize::from(input.u8());
    let initrd = input.take(initrd_len);
    kernel.extend_from_slice(input.take(usize::MAX));
    let payload = Payload {
        name: "kernel",
        kernel: &kernel,
        initrd: (!initrd.is_empty()).then_some(initrd),
        cmdline: &cmdline,
    };
    if let Ok(entry) = load(memory, &payload, firmware, 0) {
        assert!(
            entry.cpu.protected(),
            "every protocol enters protected mode"
        );
    }
});
