use super::*;
use crate::testing::TestMemory;
use proptest::prelude::*;

const LINEAR: u64 = 0xffff_8123_4567_89ab;
const TABLES: [u64; 4] = [0x1000, 0x2000, 0x3000, 0x4000];
const FRAME: u64 = 0x5_5000;
const OPEN: u64 = pte::P | pte::RW | pte::US;

fn four_level() -> CpuState {
    let mut cpu = CpuState::reset(0);
    cpu.cr0 |= cr0::PE | cr0::PG;
    cpu.cr4 = cr4::PAE | cr4::PGE;
    cpu.efer = efer::LME | efer::LMA | efer::NXE;
    cpu.cr3 = TABLES[0];
    cpu
}

fn slot(level: usize) -> u64 {
    TABLES[level] + (LINEAR >> (39 - 9 * level) & 0x1ff) * 8
}

/// Maps `LINEAR` to `FRAME` with the given bits at each level.
fn map(memory: &TestMemory, bits: [u64; 4]) {
    let next = [TABLES[1], TABLES[2], TABLES[3], FRAME];
    for level in 0..4 {
        memory.put(slot(level), 8, next[level] | bits[level]);
    }
}

fn fault(error: u32) -> Result<Translation, Exception> {
    Err(Exception::page_fault(LINEAR, error))
}

#[test]
fn without_paging_linear_is_physical() {
    let cpu = CpuState::reset(0);
    let got = translate(
        &cpu,
        &TestMemory::default(),
        0x1_2345_6789,
        Access::Write,
        true,
    );
    assert_eq!(got.unwrap().gpa, GuestPhysAddr(0x2345_6789));
}

#[test]
fn a_write_marks_every_level_accessed_and_only_the_leaf_dirty() {
    let (cpu, memory) = (four_level(), TestMemory::default());
    map(&memory, [OPEN, OPEN, OPEN, OPEN | pte::G]);
    let got = translate(&cpu, &memory, LINEAR, Access::Write, true).unwrap();
    assert_eq!(
        got,
        Translation {
            gpa: GuestPhysAddr(FRAME | 0x9ab),
            page_size: 4096,
            writable: true,
            dirty: true,
            user: true,
            executable: true,
            global: true,
        }
    );
    for level in 0..4 {
        let entry = memory.get(slot(level), 8);
        assert_ne!(entry & pte::A, 0, "level {level}");
        assert_eq!(entry & pte::D != 0, level == 3, "level {level}");
    }
}

#[test]
fn a_read_leaves_the_page_clean_and_not_writable_without_a_walk() {
    let (cpu, memory) = (four_level(), TestMemory::default());
    map(&memory, [OPEN; 4]);
    let got = translate(&cpu, &memory, LINEAR, Access::Read, true).unwrap();
    assert!(!got.dirty && !got.writable);
    assert_eq!(memory.get(slot(3), 8) & (pte::A | pte::D), pte::A);
}

#[test]
fn a_lost_race_walks_again_with_the_new_entry() {
    let (cpu, memory) = (four_level(), TestMemory::default());
    map(&memory, [OPEN | pte::A, OPEN | pte::A, OPEN | pte::A, OPEN]);
    *memory.race.borrow_mut() = Some(0x7_7000 | OPEN);
    let got = translate(&cpu, &memory, LINEAR, Access::Read, true).unwrap();
    assert_eq!(got.gpa, GuestPhysAddr(0x7_79ab));

    map(&memory, [OPEN | pte::A, OPEN | pte::A, OPEN | pte::A, OPEN]);
    *memory.race.borrow_mut() = Some(0);
    let got = translate(&cpu, &memory, LINEAR, Access::Read, true);
    assert_eq!(got, fault(pf::U));
}

#[test]
fn a_permission_fault_sets_no_bit() {
    let (cpu, memory) = (four_level(), TestMemory::default());
    map(&memory, [OPEN, OPEN & !pte::US, OPEN, OPEN]);
    let got = translate(&cpu, &memory, LINEAR, Access::Read, true);
    assert_eq!(got, fault(pf::P | pf::U));
    for level in 0..4 {
        assert_eq!(memory.get(slot(level), 8) & pte::A, 0, "level {level}");
    }
}

#[test]
fn large_pages_end_the_walk() {
    for (level, size) in [(1, 1u64 << 30), (2, 1 << 21)] {
        let (cpu, memory) = (four_level(), TestMemory::default());
        map(&memory, [OPEN; 4]);
        // The PAT bit of a large page is not an address bit.
        memory.put(slot(level), 8, 0x40_0000_0000 | 1 << 12 | OPEN | pte::PS);
        let got = translate(&cpu, &memory, LINEAR, Access::Read, true).unwrap();
        assert_eq!(got.page_size, size);
        assert_eq!(got.gpa, GuestPhysAddr(0x40_0000_0000 | LINEAR & (size - 1)));
    }
}

#[test]
fn reserved_bits_fault_as_such_even_for_supervisors() {
    let cases = [
        (0, pte::PS),
        (0, 1 << PHYS_BITS),
        (1, pte::PS | 1 << 13),
        (1, pte::PS | 1 << 29),
        (2, pte::PS | 1 << 20),
        (3, 1 << 51),
    ];
    for (level, bits) in cases {
        let (cpu, memory) = (four_level(), TestMemory::default());
        map(&memory, [OPEN; 4]);
        memory.put(slot(level), 8, TABLES[0] & !0xf_ffff | OPEN | bits);
        let got = translate(&cpu, &memory, LINEAR, Access::Read, false);
        assert_eq!(got, fault(pf::P | pf::RSVD), "level {level}, {bits:#x}");
    }
    // Free for software.
    let (cpu, memory) = (four_level(), TestMemory::default());
    map(&memory, [OPEN | 0x7ff << 52; 4]);
    assert!(translate(&cpu, &memory, LINEAR, Access::Read, false).is_ok());
}

#[test]
fn nx_is_reserved_while_it_is_not_enabled() {
    let (mut cpu, memory) = (four_level(), TestMemory::default());
    cpu.efer &= !efer::NXE;
    map(&memory, [OPEN, OPEN, OPEN, OPEN | pte::NX]);
    let got = translate(&cpu, &memory, LINEAR, Access::Read, false);
    assert_eq!(got, fault(pf::P | pf::RSVD));
    // Without NXE and SMEP, a fetch is not told from a read.
    memory.put(slot(3), 8, 0);
    assert_eq!(
        translate(&cpu, &memory, LINEAR, Access::Fetch, true),
        fault(pf::U)
    );
}

#[test]
fn a_non_canonical_address_is_a_protection_fault() {
    let (cpu, memory) = (four_level(), TestMemory::default());
    let got = translate(&cpu, &memory, 0x8000_0000_0000, Access::Read, false);
    assert_eq!(got, Err(Exception::general_protection(0)));
    assert_eq!(lookup(&cpu, &memory, 0x8000_0000_0000), None);
}

#[test]
fn lookup_sees_pages_without_marking_them() {
    let (mut cpu, memory) = (four_level(), TestMemory::default());
    cpu.cr4 |= cr4::SMAP;
    map(&memory, [OPEN; 4]);
    let got = lookup(&cpu, &memory, LINEAR).unwrap();
    assert_eq!(got.gpa, GuestPhysAddr(FRAME | 0x9ab));
    assert!(got.writable && got.user && !got.dirty);
    assert_eq!(memory.get(slot(3), 8) & pte::A, 0);
    assert_eq!(lookup(&cpu, &memory, 0), None);
}

fn legacy() -> (CpuState, TestMemory) {
    let mut cpu = CpuState::reset(0);
    cpu.cr0 |= cr0::PE | cr0::PG;
    cpu.cr4 = cr4::PSE;
    cpu.cr3 = 0x1000;
    (cpu, TestMemory::default())
}

#[test]
fn legacy_paging_has_two_levels() {
    let (cpu, memory) = legacy();
    memory.put(0x1000 + (0x8045_6789 >> 22) * 4, 4, 0x2000 | OPEN);
    memory.put(
        0x2000 + (0x8045_6789 >> 12 & 0x3ff) * 4,
        4,
        0xabcd_e000 | OPEN | pte::PS,
    );
    let got = translate(&cpu, &memory, 0x8045_6789, Access::Write, true).unwrap();
    assert_eq!((got.gpa, got.page_size), (GuestPhysAddr(0xabcd_e789), 4096));
    assert_eq!(
        memory.get(0x1000 + (0x8045_6789 >> 22) * 4, 4) & (pte::A | pte::D),
        pte::A
    );
}

#[test]
fn a_4m_page_has_40_address_bits_and_needs_pse() {
    let (mut cpu, memory) = legacy();
    let at = 0x1000 + 4;
    memory.put(at, 4, 0x0080_0000 | 0xa5 << 13 | OPEN | pte::PS);
    let got = translate(&cpu, &memory, 0x0041_2345, Access::Read, true).unwrap();
    assert_eq!(got.gpa, GuestPhysAddr(0xa5_0081_2345));
    assert_eq!(got.page_size, 1 << 22);

    memory.put(at, 4, 1 << 21 | OPEN | pte::PS);
    let got = translate(&cpu, &memory, 0x0041_2345, Access::Read, true);
    assert_eq!(
        got,
        Err(Exception::page_fault(0x0041_2345, pf::P | pf::U | pf::RSVD))
    );

    // Without PSE the entry points to a table, here an empty one.
    cpu.cr4 = 0;
    let got = translate(&cpu, &memory, 0x0041_2345, Access::Read, false);
    assert_eq!(got, Err(Exception::page_fault(0x0041_2345, 0)));
}

#[test]
fn pae_paging_walks_from_the_cached_pointers() {
    let (mut cpu, memory) = legacy();
    cpu.cr4 |= cr4::PAE;
    cpu.efer |= efer::NXE;
    cpu.pdpte[2] = 0x2000 | pte::P;
    memory.put(0x2000 + (0x8045_6789 >> 21 & 0x1ff) * 8, 8, 0x3000 | OPEN);
    let leaf = 0x3000 + (0x8045_6789 >> 12 & 0x1ff) * 8;
    memory.put(leaf, 8, 0x12_3456_7000 | OPEN | pte::NX);
    let got = translate(&cpu, &memory, 0x8045_6789, Access::Read, true).unwrap();
    assert_eq!(got.gpa, GuestPhysAddr(0x12_3456_7789));
    assert!(!got.executable);
    // Bits 52 to 62 are reserved here.
    memory.put(leaf, 8, 0x12_3456_7000 | OPEN | 1 << 55);
    let got = translate(&cpu, &memory, 0x8045_6789, Access::Read, false);
    assert_eq!(
        got,
        Err(Exception::page_fault(0x8045_6789, pf::P | pf::RSVD))
    );
    // No pointer, no page.
    let got = translate(&cpu, &memory, 0x4045_6789, Access::Read, false);
    assert_eq!(got, Err(Exception::page_fault(0x4045_6789, 0)));
}

#[test]
fn pointers_with_reserved_bits_are_refused_only_if_present() {
    let (mut cpu, memory) = legacy();
    cpu.cr3 = 0x1020;
    memory.put(0x1028, 8, 0x5000 | pte::P);
    memory.put(0x1030, 8, pte::RW);
    assert_eq!(load_pdptes(&cpu, &memory), Ok([0, 0x5001, 2, 0]));
    memory.put(0x1030, 8, pte::RW | pte::P);
    assert_eq!(
        load_pdptes(&cpu, &memory),
        Err(Exception::general_protection(0))
    );
}

/// The rules of SDM 3A, 4.6.1 as the manual's list has them, one by one.
// One arm for each item of the list.
#[allow(clippy::match_same_arms)]
fn manual_permits(cpu: &CpuState, bits: &[u64; 4], access: Access, user: bool) -> bool {
    let user_address = bits.iter().all(|entry| entry & pte::US != 0);
    let write_bits = bits.iter().all(|entry| entry & pte::RW != 0);
    let executable = bits.iter().all(|entry| entry & pte::NX == 0);
    let implicit = matches!(access, Access::SystemRead | Access::SystemWrite);
    let supervisor_access = implicit || !user;
    let smap = cpu.cr4 & cr4::SMAP != 0;
    let smep = cpu.cr4 & cr4::SMEP != 0;
    let wp = cpu.cr0 & cr0::WP != 0;
    let ac = cpu.rflags & rflags::AC != 0;
    match (supervisor_access, user_address, access) {
        (true, false, Access::Read | Access::SystemRead) => true,
        (true, true, Access::Read | Access::SystemRead) => !smap || (ac && !implicit),
        (true, false, Access::Write | Access::SystemWrite) => !wp || write_bits,
        (true, true, Access::Write | Access::SystemWrite) => {
            (!wp || write_bits) && (!smap || (ac && !implicit))
        }
        (true, false, Access::Fetch) => executable,
        (true, true, Access::Fetch) => !smep && executable,
        (false, false, _) => false,
        (false, true, Access::Write) => write_bits,
        (false, true, Access::Fetch) => executable,
        (false, true, _) => true,
    }
}

fn any_access() -> impl Strategy<Value = Access> {
    prop_oneof![
        Just(Access::Read),
        Just(Access::Write),
        Just(Access::Fetch),
        Just(Access::SystemRead),
        Just(Access::SystemWrite),
    ]
}

proptest! {
    #[test]
    fn permissions_are_those_of_the_manual(
        entries in prop::array::uniform4(0u64..8),
        access in any_access(),
        user: bool, wp: bool, smep: bool, smap: bool, ac: bool,
    ) {
        let bits = entries.map(|n| pte::P | (n & 3) << 1 | n >> 2 << 63);
        let (mut cpu, memory) = (four_level(), TestMemory::default());
        cpu.cr0 |= if wp { cr0::WP } else { 0 };
        cpu.cr4 |= if smep { cr4::SMEP } else { 0 } | if smap { cr4::SMAP } else { 0 };
        cpu.rflags |= if ac { rflags::AC } else { 0 };
        map(&memory, bits);
        let got = translate(&cpu, &memory, LINEAR, access, user);
        if manual_permits(&cpu, &bits, access, user) {
            let got = got.unwrap();
            prop_assert_eq!(got.gpa, GuestPhysAddr(FRAME | 0x9ab));
            let store = if access.is_implicit_supervisor() {
                Access::SystemWrite
            } else {
                Access::Write
            };
            let may_store = manual_permits(&cpu, &bits, store, user);
            prop_assert_eq!(got.writable, access.is_write() && may_store);
            let user = user && !access.is_implicit_supervisor();
            let may_fetch = manual_permits(&cpu, &bits, Access::Fetch, user);
            prop_assert_eq!(got.executable, may_fetch);
        } else {
            let user = user && !access.is_implicit_supervisor();
            let mut error = pf::P;
            error |= if access.is_write() { pf::W } else { 0 };
            error |= if user { pf::U } else { 0 };
            error |= if access == Access::Fetch { pf::I } else { 0 };
            prop_assert_eq!(got, fault(error));
            prop_assert_eq!(memory.get(slot(0), 8) & pte::A, 0);
        }
    }

    #[test]
    fn canonical_addresses_are_sign_extended_from_bit_47(linear: u64) {
        let top = linear >> 47;
        prop_assert_eq!(is_canonical(linear), top == 0 || top == 0x1_ffff);
    }
}
