use super::*;
use crate::bits::efer;
use crate::cpuid::test_models::{amd, intel};

fn value(cpu: &CpuState, model: &CpuidModel, index: u32) -> Option<u64> {
    match read(cpu, model, index, 1000) {
        Ok(Read::Value(value)) => Some(value),
        _ => None,
    }
}

/// Whether `value` can be written to the register.
fn takes(cpu: &mut CpuState, model: &CpuidModel, index: u32, value: u64) -> bool {
    write(cpu, model, index, value, 1000) == Ok(Write::Done(Flush::None))
}

#[test]
fn registers_that_linux_reads_unguarded_exist() {
    let cpu = CpuState::reset(0);
    for index in [
        i::HWCR,
        i::NB_CFG,
        i::DE_CFG,
        i::MICROCODE_REVISION,
        i::MCG_CAP,
        i::PAT,
    ] {
        assert!(value(&cpu, &amd(2), index).is_some(), "{index:#x} on AMD");
    }
    for index in [
        i::MISC_ENABLE,
        i::MICROCODE_REVISION,
        i::ARCH_CAPABILITIES,
        i::MTRR_CAP,
    ] {
        assert!(
            value(&cpu, &intel(2), index).is_some(),
            "{index:#x} on Intel"
        );
    }
}

#[test]
fn one_makers_registers_are_unknown_to_the_others_processors() {
    let cpu = CpuState::reset(0);
    assert_eq!(value(&cpu, &intel(1), i::HWCR), None);
    assert_eq!(value(&cpu, &amd(1), i::ARCH_CAPABILITIES), None);
    assert_eq!(value(&cpu, &amd(1), i::SPEC_CTRL), None);
}

#[test]
fn unknown_registers_raise_general_protection_in_both_directions() {
    let mut cpu = CpuState::reset(0);
    let fault = Exception::general_protection(0);
    for model in [amd(1), intel(1)] {
        for index in [0x400, 0xc1, 0x186, 0xc001_0200, 0xc000_0500, 0xffff_ffff] {
            assert_eq!(read(&cpu, &model, index, 0), Err(fault));
            assert_eq!(write(&mut cpu, &model, index, 0, 0), Err(fault));
        }
    }
}

#[test]
fn event_counters_of_amd_take_writes_and_count_nothing() {
    let (mut cpu, model) = (CpuState::reset(0), amd(1));
    for index in [0xc001_0000, 0xc001_0003, 0xc001_0004, 0xc001_0007] {
        assert!(takes(&mut cpu, &model, index, 0x53_0076));
        assert_eq!(value(&cpu, &model, index), Some(0), "{index:#x}");
    }
    assert_eq!(value(&cpu, &model, 0xc001_0008), None);
    assert_eq!(value(&cpu, &intel(1), 0xc001_0000), None);
}

#[test]
fn the_boards_registers_are_left_to_it() {
    let mut cpu = CpuState::reset(0);
    for index in [
        0x11,
        0x12,
        0x1b,
        0x6e0,
        0x800,
        0x8ff,
        0x4b56_4d00,
        0x4b56_4dff,
    ] {
        assert_eq!(read(&cpu, &amd(1), index, 0), Ok(Read::Board));
        assert_eq!(write(&mut cpu, &amd(1), index, 0, 0), Ok(Write::Board));
    }
}

#[test]
fn a_write_of_the_counter_shows_in_it_and_in_its_adjustment() {
    let (mut cpu, model) = (CpuState::reset(0), amd(1));
    assert!(takes(&mut cpu, &model, i::TSC, 400));
    assert_eq!(value(&cpu, &model, i::TSC), Some(400));
    assert_eq!(
        value(&cpu, &model, i::TSC_ADJUST),
        Some(600_u64.wrapping_neg())
    );
    assert!(takes(&mut cpu, &model, i::TSC_ADJUST, 5));
    assert_eq!(value(&cpu, &model, i::TSC), Some(1005));
}

#[test]
fn addresses_must_be_canonical() {
    let (mut cpu, model) = (CpuState::reset(0), amd(1));
    for index in [
        i::LSTAR,
        i::CSTAR,
        i::FS_BASE,
        i::GS_BASE,
        i::KERNEL_GS_BASE,
        i::SYSENTER_ESP,
        i::SYSENTER_EIP,
    ] {
        let high = 0xffff_8000_0000_1234;
        assert!(takes(&mut cpu, &model, index, high));
        assert!(!takes(&mut cpu, &model, index, 0x8000_0000_0000));
        assert_eq!(value(&cpu, &model, index), Some(high), "{index:#x}");
    }
    assert_eq!(cpu.seg(Seg::Gs).base, 0xffff_8000_0000_1234);
}

#[test]
fn page_attributes_must_be_known_types() {
    let (mut cpu, model) = (CpuState::reset(0), amd(1));
    assert!(takes(&mut cpu, &model, i::PAT, 0x0407_0506_0007_0106));
    assert_eq!(value(&cpu, &model, i::PAT), Some(0x0407_0506_0007_0106));
    assert!(!takes(&mut cpu, &model, i::PAT, 2));
    assert!(!takes(&mut cpu, &model, i::PAT, 3 << 24));
}

#[test]
fn memory_type_ranges_hold_what_they_can_and_refuse_the_rest() {
    let (mut cpu, model) = (CpuState::reset(0), intel(1));
    assert!(takes(
        &mut cpu,
        &model,
        i::MTRR_PHYS_BASE_0 + 6,
        0xc000_0000
    ));
    assert!(takes(
        &mut cpu,
        &model,
        i::MTRR_PHYS_BASE_0 + 7,
        0x3fff_c000_0800
    ));
    assert_eq!(cpu.msr.mtrr_variable[3], [0xc000_0000, 0x3fff_c000_0800]);
    assert!(!takes(
        &mut cpu,
        &model,
        i::MTRR_PHYS_BASE_0,
        1 << PHYS_BITS_OVER
    ));
    assert!(!takes(&mut cpu, &model, i::MTRR_PHYS_BASE_0, 2));
    assert!(!takes(&mut cpu, &model, i::MTRR_PHYS_MASK_7, 0x400));
    assert!(takes(&mut cpu, &model, i::MTRR_DEF_TYPE, 0xc06));
    assert!(!takes(&mut cpu, &model, i::MTRR_DEF_TYPE, 0x1006));
    assert!(!takes(&mut cpu, &model, i::MTRR_CAP, 0x508));
    for n in 0..8 {
        let all = u64::from_le_bytes([5; 8]);
        assert!(takes(&mut cpu, &model, i::MTRR_FIX_4K_FIRST + n, all));
    }
    assert!(!takes(&mut cpu, &model, i::MTRR_FIX_64K, 0x0700));
    assert_eq!(cpu.msr.mtrr_fixed[10], 0x0505_0505_0505_0505);
}

/// One past the widest physical address.
const PHYS_BITS_OVER: u32 = crate::bits::PHYS_BITS;

#[test]
fn turning_no_execute_on_drops_all_translations() {
    let (mut cpu, model) = (CpuState::reset(0), amd(1));
    assert_eq!(
        write(&mut cpu, &model, i::EFER, efer::NXE | efer::SCE, 0),
        Ok(Write::Done(Flush::All))
    );
    assert_eq!(value(&cpu, &model, i::EFER), Some(efer::NXE | efer::SCE));
}

#[test]
fn speculation_control_takes_what_cpuid_offers() {
    let (mut cpu, model) = (CpuState::reset(0), intel(1));
    assert!(takes(&mut cpu, &model, i::SPEC_CTRL, 1));
    assert!(!takes(&mut cpu, &model, i::SPEC_CTRL, 4));
    assert!(takes(&mut cpu, &model, i::PRED_CMD, 1));
    assert!(!takes(&mut cpu, &model, i::PRED_CMD, 2));
    assert_eq!(
        value(&cpu, &model, i::PRED_CMD),
        None,
        "a command cannot be read"
    );
    let not_affected = value(&cpu, &model, i::ARCH_CAPABILITIES).unwrap();
    assert_eq!(
        not_affected & 0b1011,
        0b1011,
        "RDCL_NO, IBRS_ALL, SKIP_L1DFL_VMENTRY"
    );
    assert_eq!(
        not_affected & 1 << 2,
        0,
        "RSBA would ask for a countermeasure"
    );
}

#[test]
fn the_patch_level_is_the_newest_of_its_family() {
    let cpu = CpuState::reset(0);
    // Family 1Ah, model 2, stepping 1.
    assert_eq!(amd_patch_level(0x00b0_0f21), 0x0b00_21ff);
    assert!(value(&cpu, &amd(1), i::MICROCODE_REVISION).unwrap() & 0xff == 0xff);
}

#[test]
fn there_are_no_machine_check_banks() {
    let cpu = CpuState::reset(0);
    assert_eq!(value(&cpu, &amd(1), i::MCG_CAP), Some(0));
}
