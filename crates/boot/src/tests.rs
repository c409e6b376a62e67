//! Whole kernels, made here byte by byte, through [`load`].

use super::*;
use crate::fields::put;
use belljar_memory::GuestPhysAddr;
use belljar_x86::{Gpr, Seg};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;
const SIGNATURE: u32 = 0x806f8;

struct Guest {
    memory: GuestMemory,
    firmware: Firmware,
}

impl Guest {
    fn new(mib: u64) -> Self {
        let memory = GuestMemory::new(mib * MIB).unwrap();
        let firmware = Firmware::install(&memory, &Platform::example(2)).unwrap();
        Self { memory, firmware }
    }

    fn load(&self, kernel: &[u8], initrd: Option<&[u8]>) -> Result<Entry, BootError> {
        let payload = Payload {
            name: "kernel",
            kernel,
            initrd,
            cmdline: "console=ttyS0",
        };
        load(&self.memory, &payload, &self.firmware, SIGNATURE)
    }

    fn bytes(&self, address: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.memory.read(GuestPhysAddr(address), &mut out).unwrap();
        out
    }

    fn u32(&self, address: u64) -> u32 {
        u32::from_le_bytes(self.bytes(address, 4).try_into().unwrap())
    }

    fn u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.bytes(address, 8).try_into().unwrap())
    }

    fn string(&self, address: u64) -> String {
        let bytes = self.bytes(address, 256);
        let end = bytes.iter().position(|&b| b == 0).unwrap();
        String::from_utf8(bytes[..end].to_vec()).unwrap()
    }
}

/// A bzImage as Debian's cloud kernels are made, with 4 KiB of code.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 1024];
    put(&mut image, 0x1f1, &[1]);
    put(&mut image, 0x1f4, &256_u32.to_le_bytes());
    put(&mut image, 0x1fe, &0xaa55_u16.to_le_bytes());
    put(&mut image, 0x200, &[0xeb, 0x6a]);
    put(&mut image, 0x202, b"HdrS");
    put(&mut image, 0x206, &0x20f_u16.to_le_bytes());
    put(&mut image, 0x211, &[1]);
    put(&mut image, 0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(&mut image, 0x236, &0x7f_u16.to_le_bytes());
    put(&mut image, 0x238, &2047_u32.to_le_bytes());
    put(&mut image, 0x258, &(16 * MIB).to_le_bytes());
    put(&mut image, 0x260, &(8 * MIB as u32).to_le_bytes());
    image.extend([0xcc; 4096]);
    image
}

#[test]
fn a_bzimage_starts_at_its_64_bit_entry() {
    let guest = Guest::new(64);
    let entry = guest.load(&bzimage(), None).unwrap();
    assert_eq!(entry.protocol, Protocol::Linux64);
    assert!(entry.cpu.code64());
    assert_eq!(entry.cpu.rip, 16 * MIB + 0x200);
    assert_eq!(guest.bytes(16 * MIB, 4096), [0xcc; 4096]);
    assert_eq!(entry.cpu.seg(Seg::Cs).selector, 0x10);
    assert_eq!(entry.cpu.seg(Seg::Ss).selector, 0x18);
}

#[test]
fn boot_params_hold_header_cmdline_memory_map_and_rsdp() {
    let guest = Guest::new(64);
    let entry = guest.load(&bzimage(), None).unwrap();
    let params = entry.cpu.gpr[Gpr::Rsi as usize];
    assert_eq!(guest.u32(params + 0x202), u32::from_le_bytes(*b"HdrS"));
    assert_eq!(guest.bytes(params + 0x210, 1), [0xff]);
    assert_eq!(
        guest.string(guest.u32(params + 0x228).into()),
        "console=ttyS0"
    );
    assert_eq!(guest.u64(params + 0x70), guest.firmware.rsdp().0);
    assert_eq!(guest.u64(params + 0x218), 0, "no initrd");
    let map = guest.firmware.memory_map().regions();
    assert_eq!(usize::from(guest.bytes(params + 0x1e8, 1)[0]), map.len());
    for (index, region) in map.iter().enumerate() {
        let at = params + 0x2d0 + index as u64 * 20;
        assert_eq!(guest.bytes(at, 20), region.to_bytes());
    }
}

#[test]
fn an_initrd_of_linux_lies_at_the_end_of_memory() {
    let guest = Guest::new(64);
    let entry = guest.load(&bzimage(), Some(&[0x5a; 5000])).unwrap();
    let params = entry.cpu.gpr[Gpr::Rsi as usize];
    let (start, len) = (guest.u32(params + 0x218), guest.u32(params + 0x21c));
    assert_eq!((u64::from(start), len), (64 * MIB - 0x2000, 5000));
    assert_eq!(guest.bytes(start.into(), 5000), [0x5a; 5000]);
}

#[test]
fn an_initrd_stays_below_the_limit_that_an_older_kernel_gives() {
    let guest = Guest::new(64);
    let mut image = bzimage();
    put(&mut image, 0x236, &1_u16.to_le_bytes());
    put(&mut image, 0x22c, &(32 * MIB as u32 - 1).to_le_bytes());
    let entry = guest.load(&image, Some(&[1; 0x1000])).unwrap();
    let params = entry.cpu.gpr[Gpr::Rsi as usize];
    assert_eq!(u64::from(guest.u32(params + 0x218)), 32 * MIB - 0x1000);
}

#[test]
fn a_kernel_without_64_bit_entry_starts_in_protected_mode() {
    let guest = Guest::new(64);
    let mut image = bzimage();
    put(&mut image, 0x236, &0_u16.to_le_bytes());
    let entry = guest.load(&image, None).unwrap();
    assert_eq!(entry.protocol, Protocol::Linux32);
    assert_eq!((entry.cpu.code_bits(), entry.cpu.rip), (32, 16 * MIB));
}

#[test]
fn a_kernel_of_protocol_2_02_loads_at_one_mib() {
    let guest = Guest::new(4);
    let mut image = bzimage();
    put(&mut image, 0x206, &0x202_u16.to_le_bytes());
    let entry = guest.load(&image, None).unwrap();
    assert_eq!((entry.protocol, entry.cpu.rip), (Protocol::Linux32, MIB));
}

#[test]
fn a_bzimage_that_is_cut_short_is_refused() {
    let guest = Guest::new(64);
    let image = bzimage();
    for len in [0x206, 0x240, 1024, image.len() - 16] {
        let result = guest.load(&image[..len], None);
        assert!(
            matches!(result, Err(BootError::Truncated { .. })),
            "{len:#x}: {result:?}"
        );
    }
}

#[test]
fn a_bzimage_in_too_little_memory_is_refused_with_its_needs() {
    let error = Guest::new(16).load(&bzimage(), None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the Linux kernel needs 0x800000 bytes at 0x1000000, which is not all RAM in a guest with \
         16 MiB of memory; give it more memory"
    );
    let result = Guest::new(25).load(&bzimage(), Some(&vec![0; 2 << 20]));
    assert!(matches!(result, Err(BootError::InitrdDoesNotFit { .. })));
}

#[test]
fn a_bzimage_that_prefers_a_place_above_low_ram_is_refused() {
    let guest = Guest::new(6 << 10);
    for address in [0, 0xc000_0000, 0xffff_f000, 4 << 30, 5 << 30, u64::MAX] {
        let mut image = bzimage();
        put(&mut image, 0x258, &u64::to_le_bytes(address));
        let error = guest.load(&image, None).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("the Linux image is damaged or not supported: pref_address is {address:#x}")
        );
    }
    let mut image = bzimage();
    put(&mut image, 0x258, &(0xc000_0000_u64 - MIB).to_le_bytes());
    let result = guest.load(&image, None);
    assert!(
        matches!(result, Err(BootError::DoesNotFit { .. })),
        "{result:?}"
    );
}

#[test]
fn a_zimage_is_refused_as_too_old() {
    let mut image = bzimage();
    put(&mut image, 0x211, &[0]);
    let result = Guest::new(64).load(&image, None);
    assert!(matches!(result, Err(BootError::OldLinux { .. })));
}

/// A 64-bit ELF file: 0x100 bytes of code at 2 MiB, linked elsewhere, with a bss behind, and a
/// segment of notes.
fn elf64(notes: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 0x1000];
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put(&mut file, 16, &2_u16.to_le_bytes());
    put(&mut file, 18, &62_u16.to_le_bytes());
    put(&mut file, 24, &(0xffff_ffff_8020_0040_u64).to_le_bytes());
    put(&mut file, 32, &64_u64.to_le_bytes());
    put(&mut file, 54, &56_u16.to_le_bytes());
    put(&mut file, 56, &2_u16.to_le_bytes());
    let headers = [
        (1_u32, 0x1000_u64, 0x100_u64, 0x3000_u64),
        (4, 0x1100, notes.len() as u64, notes.len() as u64),
    ];
    for (index, (kind, offset, file_size, memory_size)) in headers.into_iter().enumerate() {
        let at = 64 + index * 56;
        put(&mut file, at, &kind.to_le_bytes());
        for (field, value) in [
            (8, offset),
            (16, 0xffff_ffff_8020_0000),
            (24, 2 * MIB),
            (32, file_size),
            (40, memory_size),
            (48, 4),
        ] {
            put(&mut file, at + field, &value.to_le_bytes());
        }
    }
    file.extend([0x90; 0x100]);
    file.extend(notes);
    file
}

fn pvh_note(entry: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    // A note of another owner comes first, with a name and data that need padding.
    for (owner, kind, data) in [
        (&b"Other\0"[..], 18_u32, &b"abc"[..]),
        (b"Xen\0", 18, entry),
    ] {
        for field in [owner.len() as u32, data.len() as u32, kind] {
            note.extend(field.to_le_bytes());
        }
        note.extend(owner);
        note.resize(note.len().next_multiple_of(4), 0);
        note.extend(data);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

#[test]
fn an_elf_with_a_pvh_note_starts_there_in_protected_mode() {
    let guest = Guest::new(16);
    guest
        .memory
        .write(GuestPhysAddr(2 * MIB + 0x100), &[0xff; 16])
        .unwrap();
    let kernel = elf64(&pvh_note(&0x20_0010_u64.to_le_bytes()));
    let entry = guest.load(&kernel, Some(&[0x5a; 10])).unwrap();
    assert_eq!(entry.protocol, Protocol::Pvh);
    assert_eq!((entry.cpu.code_bits(), entry.cpu.rip), (32, 0x20_0010));
    assert_eq!(guest.bytes(2 * MIB, 0x100), [0x90; 0x100]);
    assert_eq!(guest.bytes(2 * MIB + 0x100, 16), [0; 16], "bss");

    let info = entry.cpu.gpr[Gpr::Rbx as usize];
    assert_eq!((guest.u32(info), guest.u32(info + 4)), (0x336e_c578, 1));
    assert_eq!(guest.string(guest.u64(info + 24)), "console=ttyS0");
    assert_eq!(guest.u64(info + 32), guest.firmware.rsdp().0);
    assert_eq!(guest.u32(info + 12), 1, "modules");
    let module = guest.u64(info + 16);
    assert_eq!(guest.u64(module), 16 * MIB - 0x1000);
    assert_eq!(guest.u64(module + 8), 10);
    assert_eq!(guest.bytes(guest.u64(module), 10), [0x5a; 10]);
    let map = guest.firmware.memory_map().regions();
    assert_eq!(guest.u32(info + 48) as usize, map.len());
    let table = guest.u64(info + 40);
    assert_eq!(guest.bytes(table + 24, 20), map[1].to_bytes());
}

#[test]
fn an_elf_whose_segments_overlap_is_refused_before_any_is_loaded() {
    let note = pvh_note(&0x20_0040_u32.to_le_bytes());
    let with_second_segment_at = |address: u64| {
        let mut image = elf64(&note);
        put(&mut image, 56, &3_u16.to_le_bytes());
        let at = 64 + 2 * 56;
        put(&mut image, at, &1_u32.to_le_bytes());
        put(&mut image, at + 24, &address.to_le_bytes());
        put(&mut image, at + 40, &0x1000_u64.to_le_bytes());
        image
    };
    for address in [0x1f_f001, 0x20_0000, 0x20_2fff] {
        let guest = Guest::new(64);
        let result = guest.load(&with_second_segment_at(address), None);
        assert!(
            matches!(result, Err(BootError::SegmentsOverlap { .. })),
            "{address:#x}: {result:?}"
        );
        assert_eq!(guest.bytes(0x20_0000, 0x100), [0; 0x100]);
    }
    for address in [0x1f_f000, 0x20_3000] {
        let image = with_second_segment_at(address);
        Guest::new(64).load(&image, None).unwrap();
    }
}

#[test]
fn a_pvh_entry_outside_memory_is_refused() {
    let kernel = elf64(&pvh_note(&0x1000_0000_u32.to_le_bytes()));
    let result = Guest::new(16).load(&kernel, None);
    assert!(matches!(
        result,
        Err(BootError::BadField {
            field: "entry point",
            ..
        })
    ));
}

#[test]
fn an_elf_with_neither_note_nor_header_is_refused() {
    let result = Guest::new(16).load(&elf64(&[]), None);
    assert!(matches!(result, Err(BootError::ElfWithoutProtocol)));
}

fn multiboot_header(flags: u32) -> Vec<u8> {
    let magic = 0x1bad_b002_u32;
    let checksum = 0_u32.wrapping_sub(magic).wrapping_sub(flags);
    [magic, flags, checksum]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect()
}

#[test]
fn an_elf_with_a_multiboot_header_starts_at_its_physical_entry() {
    let guest = Guest::new(16);
    let mut kernel = elf64(&[]);
    put(&mut kernel, 0x1004, &multiboot_header(3));
    let entry = guest.load(&kernel, Some(&[0x5a; 10])).unwrap();
    assert_eq!(entry.protocol, Protocol::Multiboot);
    assert_eq!((entry.cpu.code_bits(), entry.cpu.rip), (32, 2 * MIB + 0x40));
    assert_eq!(entry.cpu.gpr[Gpr::Rax as usize], 0x2bad_b002);

    let info = entry.cpu.gpr[Gpr::Rbx as usize];
    assert_eq!(
        guest.u32(info),
        0x24d,
        "memory, command line, modules, map, loader"
    );
    assert_eq!((guest.u32(info + 4), guest.u32(info + 8)), (639, 15 * 1024));
    assert_eq!(
        guest.string(guest.u32(info + 16).into()),
        "kernel console=ttyS0"
    );
    assert_eq!(guest.string(guest.u32(info + 64).into()), "belljar");
    let module = u64::from(guest.u32(info + 24));
    assert_eq!((guest.u32(info + 20), guest.u32(module)), (1, 0x20_3000));
    assert_eq!(guest.u32(module + 4), 0x20_300a);
    assert_eq!(guest.string(guest.u32(module + 8).into()), "");
    assert_eq!(guest.bytes(0x20_3000, 10), [0x5a; 10]);
    let map = guest.firmware.memory_map().regions();
    assert_eq!(guest.u32(info + 44) as usize, map.len() * 24);
    let table = u64::from(guest.u32(info + 48));
    assert_eq!(guest.u32(table + 24), 20);
    assert_eq!(guest.bytes(table + 28, 20), map[1].to_bytes());
}

#[test]
fn a_multiboot_kernel_that_requires_a_video_mode_is_refused() {
    let mut kernel = elf64(&[]);
    put(&mut kernel, 0x1004, &multiboot_header(7));
    let result = Guest::new(16).load(&kernel, None);
    assert!(matches!(
        result,
        Err(BootError::MultibootFeatures { flags: 4 })
    ));
}

/// A flat multiboot kernel with its header at 0x10 and 0x20 bytes before what is loaded at 1 MiB.
fn flat(load_end: u32, bss_end: u32, entry: u32) -> Vec<u8> {
    let mut file = vec![0x90; 0x100];
    put(&mut file, 0x30, &multiboot_header(0x1_0000));
    let addresses = [0x10_0010, 0x10_0000, load_end, bss_end, entry];
    put(&mut file, 0x3c, &addresses.map(u32::to_le_bytes).concat());
    file
}

#[test]
fn a_flat_multiboot_kernel_loads_by_the_addresses_of_its_header() {
    let guest = Guest::new(16);
    guest
        .memory
        .write(GuestPhysAddr(MIB), &[0xff; 0x200])
        .unwrap();
    let entry = guest
        .load(&flat(0x10_0080, 0x10_0100, 0x10_0040), None)
        .unwrap();
    assert_eq!(
        (entry.protocol, entry.cpu.rip),
        (Protocol::Multiboot, 0x10_0040)
    );
    assert_eq!(guest.bytes(MIB + 0x10, 12), multiboot_header(0x1_0000));
    assert_eq!(guest.bytes(MIB + 0x7f, 3), [0x90, 0, 0]);
    assert_eq!(guest.bytes(MIB + 0xff, 2), [0, 0xff]);
}

#[test]
fn a_flat_multiboot_kernel_without_end_loads_the_whole_file() {
    let guest = Guest::new(16);
    guest.load(&flat(0, 0, 0x10_0040), None).unwrap();
    assert_eq!(guest.bytes(MIB + 0xdf, 2), [0x90, 0]);
}

#[test]
fn flat_multiboot_kernels_with_impossible_addresses_are_refused() {
    let guest = Guest::new(16);
    for (load_end, bss_end, entry) in [
        (0x10_1000, 0, 0x10_0040),
        (0xf_0000, 0, 0x10_0040),
        (0, 0xf000_0000, 0x10_0040),
        (0, 0, 0x20_0000),
    ] {
        let result = guest.load(&flat(load_end, bss_end, entry), None);
        assert!(result.is_err(), "{load_end:#x} {bss_end:#x} {entry:#x}");
    }
}

#[test]
fn files_that_are_no_kernel_are_refused() {
    let guest = Guest::new(16);
    assert!(matches!(guest.load(&[], None), Err(BootError::EmptyKernel)));
    for file in [&b"MZ"[..], b"\x1f\x8b\x08", &[0; 9000]] {
        assert!(matches!(
            guest.load(file, None),
            Err(BootError::UnknownFormat)
        ));
    }
}

#[test]
fn the_registers_of_the_memory_types_are_set() {
    let entry = Guest::new(64).load(&bzimage(), None).unwrap();
    assert_eq!(entry.cpu.msr.mtrr_def_type, 0xc06);
}

/// Kernels of all kinds.
fn kernels() -> [Vec<u8>; 4] {
    let mut multiboot = elf64(&[]);
    put(&mut multiboot, 0x1004, &multiboot_header(3));
    [
        bzimage(),
        elf64(&pvh_note(&0x20_0010_u64.to_le_bytes())),
        multiboot,
        flat(0x10_0080, 0x10_0100, 0x10_0040),
    ]
}

proptest! {
    #[test]
    fn a_kernel_with_changed_bytes_loads_or_is_refused(
        which in 0..4_usize,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..24),
        header_changes in prop::collection::vec((0..0x280_usize, any::<u8>()), 0..8),
        len in any::<prop::sample::Index>(),
        cut in any::<bool>(),
    ) {
        let mut kernel = kernels()[which].clone();
        for (index, value) in changes {
            let at = index.index(kernel.len());
            kernel[at] = value;
        }
        for (at, value) in header_changes {
            if let Some(byte) = kernel.get_mut(at) {
                *byte = value;
            }
        }
        if cut {
            kernel.truncate(len.index(kernel.len()));
        }
        let guest = Guest::new(24);
        if let Ok(entry) = guest.load(&kernel, Some(&[1; 100])) {
            prop_assert!(guest.memory.offset(GuestPhysAddr(entry.cpu.rip)).is_some());
        }
    }

    #[test]
    fn random_bytes_behind_a_magic_number_load_or_are_refused(
        mut bytes in prop::collection::vec(any::<u8>(), 0x300..0x900),
        which in 0..3_usize,
    ) {
        match which {
            0 => {
                put(&mut bytes, 0x1fe, &0xaa55_u16.to_le_bytes());
                put(&mut bytes, 0x202, b"HdrS");
                put(&mut bytes, 0x206, &0x20f_u16.to_le_bytes());
                bytes[0x211] |= 1;
            }
            1 => {
                put(&mut bytes, 0, b"\x7fELF\x02\x01\x01");
                put(&mut bytes, 16, &2_u16.to_le_bytes());
                put(&mut bytes, 18, &62_u16.to_le_bytes());
            }
            _ => put(&mut bytes, 8, &multiboot_header(0x1_0000)),
        }
        let _ = Guest::new(24).load(&bytes, None);
    }
}
