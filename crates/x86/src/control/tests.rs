use super::*;
use crate::cpuid::test_models::{amd, intel};
use crate::paging::Flush;
use belljar_memory::GuestPhysAddr;

/// Memory of which every 64-bit word is the same.
struct Filled(u64);

impl PhysicalMemory for Filled {
    fn load_u32(&self, _: GuestPhysAddr) -> u32 {
        self.0 as u32
    }

    fn load_u64(&self, _: GuestPhysAddr) -> u64 {
        self.0
    }

    fn compare_exchange_u32(&self, _: GuestPhysAddr, _: u32, _: u32) -> bool {
        true
    }

    fn compare_exchange_u64(&self, _: GuestPhysAddr, _: u64, _: u64) -> bool {
        true
    }
}

const MEMORY: Filled = Filled(0x5001);
const FAULT: Result<Flush, Exception> = Err(Exception::general_protection(0));
/// CR0 of a kernel without paging.
const PROTECTED: u64 = cr0::PE | cr0::ET | cr0::NE;

/// A processor in 32-bit protected mode without paging.
fn protected() -> CpuState {
    let mut cpu = CpuState::reset(0);
    write_cr0(&mut cpu, &MEMORY, PROTECTED).unwrap();
    cpu.tr.rights = Segment::PRESENT | 0xb;
    cpu
}

/// A processor in compatibility mode, from which a far jump would lead to 64-bit mode.
fn long() -> CpuState {
    let mut cpu = protected();
    write_cr4(&mut cpu, &amd(1), &MEMORY, cr4::PAE).unwrap();
    write_efer(&mut cpu, &amd(1), efer::LME).unwrap();
    write_cr0(&mut cpu, &MEMORY, PROTECTED | cr0::PG).unwrap();
    cpu
}

#[test]
fn turning_paging_on_with_lme_enters_long_mode_and_off_leaves_it() {
    let mut cpu = long();
    assert!(cpu.long_mode());
    assert_eq!(write_cr0(&mut cpu, &MEMORY, PROTECTED), Ok(Flush::All));
    assert!(!cpu.long_mode());
    assert_eq!(cpu.efer, efer::LME);
}

#[test]
fn long_mode_needs_pae_a_32_bit_task_and_no_long_segment() {
    let on = PROTECTED | cr0::PG;
    let mut cpu = protected();
    write_efer(&mut cpu, &amd(1), efer::LME).unwrap();
    assert_eq!(write_cr0(&mut cpu, &MEMORY, on), FAULT);
    cpu.cr4 = cr4::PAE;
    cpu.tr.rights = Segment::PRESENT | 3;
    assert_eq!(write_cr0(&mut cpu, &MEMORY, on), FAULT);
    cpu.tr.rights = Segment::PRESENT | 0xb;
    cpu.segments[1].rights |= Segment::LONG;
    assert_eq!(write_cr0(&mut cpu, &MEMORY, on), FAULT);
    cpu.segments[1].rights &= !Segment::LONG;
    assert_eq!(cpu.cr0, PROTECTED, "refused writes change nothing");
    assert_eq!(write_cr0(&mut cpu, &MEMORY, on), Ok(Flush::All));
}

#[test]
fn long_mode_cannot_be_left_from_64_bit_code_or_with_pcids() {
    let mut cpu = long();
    cpu.segments[1].rights |= Segment::LONG;
    assert_eq!(write_cr0(&mut cpu, &MEMORY, PROTECTED), FAULT);
    cpu.segments[1].rights &= !Segment::LONG;
    write_cr4(&mut cpu, &amd(1), &MEMORY, cr4::PAE | cr4::PCIDE).unwrap();
    assert_eq!(write_cr0(&mut cpu, &MEMORY, PROTECTED), FAULT);
}

#[test]
fn cr0_refuses_contradictions_and_drops_undefined_bits() {
    let mut cpu = protected();
    assert_eq!(write_cr0(&mut cpu, &MEMORY, cr0::PG), FAULT);
    assert_eq!(write_cr0(&mut cpu, &MEMORY, PROTECTED | cr0::NW), FAULT);
    assert_eq!(write_cr0(&mut cpu, &MEMORY, PROTECTED | 1 << 32), FAULT);
    assert_eq!(
        write_cr0(&mut cpu, &MEMORY, cr0::PE | cr0::TS | 0x1ff0_ff00),
        Ok(Flush::None)
    );
    assert_eq!(cpu.cr0, cr0::PE | cr0::TS | cr0::ET);
    assert_eq!(
        write_cr0(&mut cpu, &MEMORY, PROTECTED | cr0::WP),
        Ok(Flush::All)
    );
}

#[test]
fn pae_paging_caches_its_four_entries_and_refuses_malformed_ones() {
    let mut cpu = protected();
    cpu.cr4 = cr4::PAE;
    assert_eq!(
        write_cr0(&mut cpu, &Filled(0x5003), PROTECTED | cr0::PG),
        FAULT
    );
    assert_eq!((cpu.cr0, cpu.pdpte), (PROTECTED, [0; 4]));
    write_cr0(&mut cpu, &MEMORY, PROTECTED | cr0::PG).unwrap();
    assert_eq!(cpu.pdpte, [0x5001; 4]);
    assert_eq!(
        write_cr3(&mut cpu, &amd(1), &Filled(0x6001), 0x1000),
        Ok(Flush::NonGlobal)
    );
    assert_eq!(cpu.pdpte, [0x6001; 4]);
    assert_eq!(write_cr3(&mut cpu, &amd(1), &Filled(0x6007), 0x2000), FAULT);
    assert_eq!((cpu.cr3, cpu.pdpte), (0x1000, [0x6001; 4]));
    write_cr4(&mut cpu, &amd(1), &Filled(0x7001), cr4::PAE | cr4::PGE).unwrap();
    assert_eq!(cpu.pdpte, [0x7001; 4]);
    assert_eq!(
        write_cr4(&mut cpu, &amd(1), &Filled(0x7003), cr4::PAE),
        FAULT
    );
    assert_eq!(cpu.cr4, cr4::PAE | cr4::PGE);
}

#[test]
fn cr3_with_pcids_flushes_one_of_them_or_nothing() {
    let (mut cpu, model) = (long(), amd(1));
    assert_eq!(write_cr3(&mut cpu, &model, &MEMORY, 1 << 63), FAULT);
    assert_eq!(write_cr3(&mut cpu, &model, &MEMORY, 1 << 46), FAULT);
    write_cr4(&mut cpu, &model, &MEMORY, cr4::PAE | cr4::PCIDE).unwrap();
    assert_eq!(
        write_cr3(&mut cpu, &model, &MEMORY, 0x1005),
        Ok(Flush::Pcid(5))
    );
    assert_eq!(
        write_cr3(&mut cpu, &model, &MEMORY, 1 << 63 | 0x2006),
        Ok(Flush::None)
    );
    assert_eq!((cpu.cr3, current_pcid(&cpu)), (0x2006, 6));
}

#[test]
fn pcids_are_turned_on_in_long_mode_from_the_first_one_alone() {
    let model = amd(1);
    let on = cr4::PAE | cr4::PCIDE;
    assert_eq!(write_cr4(&mut protected(), &model, &MEMORY, on), FAULT);
    let mut cpu = long();
    cpu.cr3 = 0x1001;
    assert_eq!(write_cr4(&mut cpu, &model, &MEMORY, on), FAULT);
    cpu.cr3 = 0x1000;
    assert_eq!(write_cr4(&mut cpu, &model, &MEMORY, on), Ok(Flush::All));
    assert_eq!(write_cr4(&mut cpu, &model, &MEMORY, cr4::PCIDE), FAULT);
}

#[test]
fn cr4_takes_only_bits_of_offered_features() {
    let (mut cpu, model) = (long(), intel(1));
    for bit in [0, 1, 11, 12, 13, 14, 15, 19, 22, 23, 24, 63] {
        let offered = model.cr4_mask() >> bit & 1 != 0;
        let written = write_cr4(&mut cpu, &model, &MEMORY, cr4::PAE | 1 << bit);
        assert_eq!(written.is_ok(), offered, "bit {bit}");
    }
    assert_eq!(
        write_cr4(&mut cpu, &model, &MEMORY, cr4::PAE | cr4::OSFXSR),
        Ok(Flush::None)
    );
}

#[test]
fn efer_keeps_lma_and_holds_lme_while_paging() {
    let (mut cpu, model) = (long(), amd(1));
    assert_eq!(write_efer(&mut cpu, &model, efer::LMA), FAULT);
    assert_eq!(
        write_efer(&mut cpu, &model, efer::LME | efer::SCE),
        Ok(Flush::None)
    );
    assert_eq!(cpu.efer, efer::LME | efer::LMA | efer::SCE);
    assert_eq!(write_efer(&mut cpu, &model, efer::LME | 1 << 12), FAULT);
    assert_eq!(
        write_efer(&mut cpu, &model, efer::LME | efer::NXE),
        Ok(Flush::All)
    );
}

#[test]
fn xcr0_takes_sound_combinations() {
    let (mut cpu, model) = (long(), amd(1));
    for value in [1, 3, 7, 0xe7] {
        assert_eq!(write_xcr(&mut cpu, &model, 0, value), Ok(()));
        assert_eq!(read_xcr(&cpu, &model, 0), Ok(value));
    }
    for value in [0, 2, 5, 6, 0x27, 0xe3, 0x67, 9, 0x207] {
        assert!(write_xcr(&mut cpu, &model, 0, value).is_err(), "{value:#x}");
    }
    assert!(write_xcr(&mut cpu, &model, 1, 7).is_err());
    assert!(read_xcr(&cpu, &model, 2).is_err());
    assert_eq!(cpu.xcr0, 0xe7);
}

#[test]
fn xgetbv_tells_the_enabled_components_in_use() {
    let (mut cpu, model) = (long(), amd(1));
    cpu.vector.x87.fcw = 0x37f;
    cpu.xcr0 = 7;
    assert_eq!(read_xcr(&cpu, &model, 1), Ok(0));
    cpu.vector.zmm[0][3] = 1;
    cpu.vector.zmm[20][0] = 1;
    assert_eq!(read_xcr(&cpu, &model, 1), Ok(4));
    cpu.vector.x87.mxcsr = 0x9f80;
    assert_eq!(read_xcr(&cpu, &model, 1), Ok(6));
}

#[test]
fn lmsw_sets_pe_and_never_clears_it() {
    let mut cpu = CpuState::reset(0);
    lmsw(&mut cpu, &MEMORY, 0x000f).unwrap();
    assert_eq!(cpu.cr0 & 0xf, 0xf);
    lmsw(&mut cpu, &MEMORY, 0xfff0).unwrap();
    assert_eq!(cpu.cr0 & 0xf, cr0::PE);
    cpu.cr0 |= cr0::TS;
    clts(&mut cpu);
    assert_eq!(cpu.cr0 & 0xf, cr0::PE);
}

#[test]
fn invpcid_checks_its_descriptor() {
    let mut cpu = long();
    assert_eq!(invpcid(&cpu, 4, [0; 2]), FAULT);
    assert_eq!(invpcid(&cpu, 2, [1 << 12, 0]), FAULT);
    assert_eq!(invpcid(&cpu, 1, [3, 0]), FAULT, "PCIDs are off");
    assert_eq!(invpcid(&cpu, 0, [0, 1 << 47]), FAULT);
    cpu.cr4 |= cr4::PCIDE;
    assert_eq!(
        invpcid(&cpu, 0, [3, 0x1234]),
        Ok(Flush::Address {
            linear: 0x1234,
            pcid: 3,
            global: false
        })
    );
    assert_eq!(invpcid(&cpu, 1, [3, u64::MAX >> 1]), Ok(Flush::Pcid(3)));
    assert_eq!(invpcid(&cpu, 2, [3, 0]), Ok(Flush::All));
    assert_eq!(invpcid(&cpu, 3, [0, 0]), Ok(Flush::NonGlobal));
}
