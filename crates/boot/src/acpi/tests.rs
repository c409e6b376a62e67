use super::*;
use crate::Generation;

/// The tables as a kernel finds them: by the root pointer.
struct Found {
    memory: GuestMemory,
    rsdp: Vec<u8>,
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, b| sum.wrapping_add(*b))
}

impl Found {
    fn install(platform: &Platform) -> Self {
        let memory = GuestMemory::new(1 << 20).unwrap();
        let at = install(&memory, platform).unwrap();
        assert!((0xe_0000..0x10_0000).contains(&at.0) && at.0.is_multiple_of(16));
        let mut rsdp = vec![0; 36];
        memory.read(at, &mut rsdp).unwrap();
        Self { memory, rsdp }
    }

    /// The table at `address`, as long as its header says.
    fn at(&self, address: u64) -> Vec<u8> {
        let len = self.memory.load_u32(GuestPhysAddr(address + 4)).unwrap();
        let mut table = vec![0; len as usize];
        self.memory
            .read(GuestPhysAddr(address), &mut table)
            .unwrap();
        table
    }

    /// The table with `signature` that the XSDT lists.
    fn table(&self, signature: &[u8; 4]) -> Vec<u8> {
        let xsdt = self.at(u64_at(&self.rsdp, 24));
        xsdt[36..]
            .chunks(8)
            .map(|address| self.at(u64_at(address, 0)))
            .find(|table| table.starts_with(signature))
            .expect("the XSDT lists the table")
    }
}

#[test]
fn every_table_has_its_length_and_checksum() {
    let found = Found::install(&Platform::example(4));
    assert_eq!(sum(&found.rsdp), 0);
    assert_eq!(sum(&found.rsdp[..20]), 0);
    let dsdt = u64_at(&found.table(b"FACP"), 140);
    for table in [
        found.at(u64_at(&found.rsdp, 24)),
        found.at(u32_at(&found.rsdp, 16).into()),
        found.table(b"FACP"),
        found.table(b"APIC"),
        found.table(b"MCFG"),
        found.at(dsdt),
    ] {
        assert_eq!(sum(&table), 0, "{:?}", &table[..4]);
    }
}

#[test]
fn both_root_tables_list_the_same_tables() {
    let found = Found::install(&Platform::example(1));
    let xsdt = found.at(u64_at(&found.rsdp, 24));
    let rsdt = found.at(u32_at(&found.rsdp, 16).into());
    let wide: Vec<u64> = xsdt[36..].chunks(8).map(|b| u64_at(b, 0)).collect();
    let narrow: Vec<u64> = rsdt[36..].chunks(4).map(|b| u32_at(b, 0).into()).collect();
    assert_eq!(wide, narrow);
    assert_eq!(wide.len(), 3);
}

#[test]
fn the_fixed_hardware_is_where_the_board_has_it() {
    let found = Found::install(&Platform::example(1));
    let fadt = found.table(b"FACP");
    assert_eq!((fadt.len(), fadt[8]), (276, 6));
    assert_eq!(fadt[46], 9, "SCI");
    assert_eq!(u32_at(&fadt, 48), 0, "no SMI command port");
    for (offset, port, len_offset, len, wide_offset) in [
        (56, 0x600, 88, 4, 148),
        (64, 0x604, 89, 2, 172),
        (76, 0x608, 91, 4, 208),
        (80, 0x620, 92, 4, 220),
    ] {
        assert_eq!(u32_at(&fadt, offset), port);
        assert_eq!(fadt[len_offset], len);
        assert_eq!(
            fadt[wide_offset..wide_offset + 2],
            [1, len * 8],
            "{port:#x}"
        );
        assert_eq!(u64_at(&fadt, wide_offset + 4), u64::from(port));
    }
    assert_eq!(
        (fadt[116], u64_at(&fadt, 120), fadt[128]),
        (1, 0xcf9, 6),
        "reset"
    );
    let flags = u32_at(&fadt, 112);
    assert_eq!(
        flags & (1 << 8 | 1 << 10),
        1 << 8 | 1 << 10,
        "32-bit timer, reset register"
    );
    assert_eq!(flags & (1 << 4 | 1 << 20), 0, "power button, full hardware");
    assert_eq!(fadt[108], 0x32, "century");
    assert_eq!(
        fadt[109] & 0b11,
        0b11,
        "legacy devices, keyboard controller"
    );
}

#[test]
fn the_facs_is_aligned_and_found_by_the_fadt() {
    let found = Found::install(&Platform::example(1));
    let facs = u32_at(&found.table(b"FACP"), 36);
    assert!(facs.is_multiple_of(64));
    let table = found.at(facs.into());
    assert_eq!((&table[..4], table.len()), (&b"FACS"[..], 64));
}

/// The entries of the MADT.
fn entries(madt: &[u8]) -> Vec<&[u8]> {
    let mut rest = &madt[44..];
    let mut out = Vec::new();
    while !rest.is_empty() {
        let (entry, more) = rest.split_at(rest[1].into());
        out.push(entry);
        rest = more;
    }
    out
}

#[test]
fn the_madt_lists_processors_and_routes_timer_and_sci() {
    let found = Found::install(&Platform::example(3));
    let madt = found.table(b"APIC");
    assert_eq!((u32_at(&madt, 36), u32_at(&madt, 40)), (0xfee0_0000, 1));
    let expected: [&[u8]; 7] = [
        &[0, 8, 0, 0, 1, 0, 0, 0],
        &[0, 8, 1, 1, 1, 0, 0, 0],
        &[0, 8, 2, 2, 1, 0, 0, 0],
        &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
        &[2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
        &[2, 10, 0, 9, 9, 0, 0, 0, 13, 0],
        &[4, 6, 0xff, 0, 0, 1],
    ];
    assert_eq!(entries(&madt), expected);
}

#[test]
fn processors_beyond_the_8_bit_identifiers_have_x2apic_entries() {
    let found = Found::install(&Platform::example(257));
    let madt = found.table(b"APIC");
    let entries = entries(&madt);
    let of_kind = |kind: u8| entries.iter().filter(|e| e[0] == kind).count();
    assert_eq!((of_kind(0), of_kind(9), of_kind(10)), (255, 2, 1));
}

#[test]
fn more_processors_than_the_area_holds_are_refused() {
    let memory = GuestMemory::new(1 << 20).unwrap();
    let result = install(&memory, &Platform::example(4096));
    assert!(matches!(
        result,
        Err(BootError::AcpiTooLarge { cpus: 4096, .. })
    ));
}

#[test]
fn the_dsdt_names_every_device() {
    let found = Found::install(&Platform::example(2));
    let dsdt = found.at(u64_at(&found.table(b"FACP"), 140));
    let has = |name: &[u8]| dsdt.windows(name.len()).any(|w| w == name);
    for name in [
        "_S5_", "C000", "C001", "COM1", "RTC_", "KBD_", "PCI0", "_PRT",
    ] {
        assert!(has(name.as_bytes()), "{name}");
    }
    assert!(!has(b"C002"));
}

#[test]
fn the_generation_is_told_by_a_device_and_an_event() {
    let address = u32::try_from(Generation::ADDRESS).unwrap().to_le_bytes();
    // A package of two integers: one of 32 bits, and zero.
    let package = [&b"ADDR\x12\x08\x02\x0c"[..], &address, b"\x00"].concat();
    let notify = b"\x86\\\x2e_SB_VGEN\x0a\x80";
    let wanted: [&[u8]; 5] = [
        b"_CID\x0dVM_Gen_Counter\0",
        b"_DDN\x0dVM_Gen_Counter\0",
        &package,
        b"_GPE\x14",
        notify,
    ];
    for platform in [true, false].map(|has| Platform {
        generation: Platform::example(1).generation.filter(|_| has),
        ..Platform::example(1)
    }) {
        let found = Found::install(&platform);
        let dsdt = found.at(u64_at(&found.table(b"FACP"), 140));
        for part in wanted {
            let has = dsdt.windows(part.len()).any(|w| w == part);
            assert_eq!(has, platform.generation.is_some(), "{part:x?}");
        }
    }
}

#[test]
fn the_mcfg_says_where_configuration_space_is() {
    let found = Found::install(&Platform::example(1));
    let mcfg = found.table(b"MCFG");
    assert_eq!((mcfg.len(), u64_at(&mcfg, 44)), (60, 0xe000_0000));
    assert_eq!(mcfg[52..56], [0; 4], "segment 0, bus 0 to 0");
}
