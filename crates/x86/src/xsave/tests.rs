use super::*;
use crate::bits::efer;
use crate::cpuid::test_models::{amd, intel};
use crate::{Seg, Segment};
use proptest::prelude::*;

const ALL: u64 = u64::MAX;
const FAULT: Exception = Exception::general_protection(0);

/// A processor in 64-bit mode with everything enabled and in its initial state.
fn initial() -> CpuState {
    let mut cpu = CpuState::reset(0);
    cpu.efer = efer::LMA | efer::LME;
    cpu.segments[Seg::Cs as usize].rights |= Segment::LONG;
    cpu.xcr0 = 0xe7;
    cpu.vector.x87 = legacy::initial_x87(&cpu.vector.x87);
    cpu
}

/// The same with all registers filled from `seed`.
fn filled(seed: u64) -> CpuState {
    let mut cpu = initial();
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        state
    };
    for register in &mut cpu.vector.zmm {
        register.fill_with(&mut next);
    }
    cpu.vector.k.fill_with(&mut next);
    let x87 = &mut cpu.vector.x87;
    x87.st = std::array::from_fn(|_| [next(), next() >> 48]);
    (x87.fcw, x87.fsw, x87.ftw) = (0x27f, 0x3800, 0x81);
    (x87.fop, x87.fip, x87.fdp) = (0x123, next(), next());
    x87.mxcsr = 0x9f80;
    cpu
}

/// Clears the components of `mask`.
fn cleared(mut cpu: CpuState, mask: u64) -> CpuState {
    if mask & 1 != 0 {
        cpu.vector.x87 = legacy::initial_x87(&cpu.vector.x87);
    }
    for number in (1..8).filter(|n| mask & 0xe7 & 1 << n != 0) {
        match part(number, true) {
            Some(part) => restore_part(&mut cpu.vector.zmm, &part, None),
            None => cpu.vector.k = [0; 8],
        }
    }
    cpu
}

/// An area as `form` saves it, over memory that holds `before`.
fn saved(cpu: &CpuState, model: &CpuidModel, form: Save, mask: u64, before: u8) -> Vec<u8> {
    let mut area = vec![before; save_size(cpu, model, form, mask)];
    area[LEGACY_SIZE..EXTENDED_OFFSET].fill(0);
    save(cpu, model, form, mask, true, &mut area);
    area
}

fn header(area: &[u8]) -> &[u8; HEADER_SIZE] {
    area[LEGACY_SIZE..EXTENDED_OFFSET].try_into().unwrap()
}

fn load(cpu: &mut CpuState, model: &CpuidModel, mask: u64, area: &[u8]) -> Result<(), Exception> {
    let size = restore_size(cpu, model, Restore::Xrstor, mask, header(area))?;
    restore(cpu, model, Restore::Xrstor, mask, true, &area[..size])
}

proptest! {
    #[test]
    fn what_is_saved_is_restored_in_every_format(
        seed: u64,
        clear in 0_u64..256,
        form in prop::sample::select(vec![Save::Xsave, Save::Xsaveopt, Save::Xsavec, Save::Xsaves]),
        of_intel: bool,
    ) {
        let model = if of_intel { intel(1) } else { amd(1) };
        let cpu = cleared(filled(seed), clear);
        let area = saved(&cpu, &model, form, ALL, 0x55);
        let mut other = filled(!seed);
        prop_assert_eq!(load(&mut other, &model, ALL, &area), Ok(()));
        prop_assert_eq!(&other.vector, &cpu.vector);
    }

    #[test]
    fn only_the_components_asked_for_change(seed: u64, mask in 0_u64..256) {
        let model = amd(1);
        let cpu = filled(seed);
        let area = saved(&cpu, &model, Save::Xsave, ALL, 0);
        let mut other = cleared(initial(), 0);
        load(&mut other, &model, mask & 0xe7, &area).unwrap();
        let mut expected = cleared(cpu, !mask);
        expected.vector.x87.mxcsr = if mask & 6 == 0 { 0x1f80 } else { 0x9f80 };
        prop_assert_eq!(&other.vector, &expected.vector);
    }

    #[test]
    fn no_header_breaks_a_restore(
        words in prop::array::uniform8(prop_oneof![Just(0), Just(7), 0_u64..512, any::<u64>()]),
        compacted: bool,
        mask: u64,
    ) {
        let (model, mut cpu) = (intel(1), filled(1));
        let mut area = vec![0; 4096];
        for (n, word) in words.iter().enumerate() {
            put_u64(&mut area, LEGACY_SIZE + 8 * n, *word);
        }
        if compacted {
            area[LEGACY_SIZE + 15] |= 0x80;
        }
        let before = cpu.clone();
        if load(&mut cpu, &model, mask, &area).is_err() {
            prop_assert_eq!(cpu, before);
        }
    }

    #[test]
    fn fxsave_and_fxrstor_are_inverse(seed: u64) {
        let cpu = filled(seed);
        let mut area = [0; LEGACY_SIZE];
        fxsave(&cpu, true, &mut area);
        let mut other = initial();
        fxrstor(&mut other, true, &area).unwrap();
        prop_assert_eq!(other.vector.x87, cpu.vector.x87);
        for n in 0..16 {
            prop_assert_eq!(other.vector.zmm[n][..2].to_vec(), cpu.vector.zmm[n][..2].to_vec());
        }
        prop_assert_eq!(other.vector.zmm[16], [0; 8]);
    }

    #[test]
    fn sizes_grow_with_the_mask_and_compaction_never_needs_more(mask in 0_u64..256, bit in 0..8) {
        for model in [amd(1), intel(1)] {
            let standard = area_size(&model, mask, false);
            let compacted = area_size(&model, mask, true);
            prop_assert!(compacted <= standard && compacted >= EXTENDED_OFFSET);
            prop_assert!(area_size(&model, mask | 1_u64 << bit, false) >= standard);
        }
    }
}

#[test]
fn sizes_are_the_makers() {
    assert_eq!(area_size(&amd(1), 3, false), 576);
    assert_eq!(area_size(&amd(1), 7, false), 832);
    assert_eq!(area_size(&amd(1), 0xe7, false), 0x980);
    assert_eq!(area_size(&intel(1), 0xe7, false), 0xa80);
    assert_eq!(
        area_size(&intel(1), 0xe7, true),
        576 + 256 + 64 + 512 + 1024
    );
    assert_eq!(area_size(&intel(1), 0x80, true), 576 + 1024);
}

#[test]
fn xsave_writes_unused_components_and_xsaveopt_leaves_them() {
    let (model, cpu) = (amd(1), initial());
    let area = saved(&cpu, &model, Save::Xsave, ALL, 0x55);
    assert_eq!(get_u64(&area, XSTATE_BV), 0);
    assert!(
        area[160..416]
            .iter()
            .chain(&area[576..832])
            .all(|&b| b == 0)
    );
    let area = saved(&cpu, &model, Save::Xsaveopt, ALL, 0x55);
    assert_eq!(get_u64(&area, XSTATE_BV), 0);
    assert!(
        area[160..416]
            .iter()
            .chain(&area[576..])
            .all(|&b| b == 0x55)
    );
    // MXCSR is no component's alone, and is written all the same.
    assert_eq!(area[24..32], [0x80, 0x1f, 0, 0, 0xff, 0xff, 0, 0]);
}

#[test]
fn the_compacted_format_names_its_components_and_leaves_unused_ones_out() {
    let model = amd(1);
    let mut cpu = initial();
    cpu.vector.k[1] = 9;
    let area = saved(&cpu, &model, Save::Xsavec, 0x27, 0x55);
    assert_eq!(get_u64(&area, XSTATE_BV), 0x20);
    assert_eq!(get_u64(&area, XCOMP_BV), COMPACTED | 0x27);
    assert_eq!(area.len(), 576 + 256 + 64);
    assert_eq!(get_u64(&area, 576 + 256 + 8), 9);
    assert!(area[576..832].iter().all(|&b| b == 0x55));
    assert!(area[..512].iter().all(|&b| b == 0x55), "not even MXCSR");
}

#[test]
fn a_changed_mxcsr_makes_sse_used_in_the_compacted_format_alone() {
    let model = amd(1);
    let mut cpu = initial();
    cpu.vector.x87.mxcsr = 0x9f80;
    let area = saved(&cpu, &model, Save::Xsavec, ALL, 0x55);
    assert_eq!(get_u64(&area, XSTATE_BV), xstate::SSE);
    assert_eq!(legacy::checked_mxcsr(&area), Ok(0x9f80));
    let area = saved(&cpu, &model, Save::Xsave, ALL, 0x55);
    assert_eq!(get_u64(&area, XSTATE_BV), 0);
    assert_eq!(legacy::checked_mxcsr(&area), Ok(0x9f80));
}

#[test]
fn xsave_keeps_the_header_bits_of_components_not_asked_for() {
    let (model, cpu) = (amd(1), filled(3));
    let mut area = vec![0; 4096];
    put_u64(&mut area, XSTATE_BV, 0xe4);
    save(&cpu, &model, Save::Xsave, 3, true, &mut area);
    assert_eq!(get_u64(&area, XSTATE_BV), 0xe7);
    save(&initial(), &model, Save::Xsave, 3, true, &mut area);
    assert_eq!(get_u64(&area, XSTATE_BV), 0xe4);
}

#[test]
fn absent_components_become_initial_and_mxcsr_follows_its_format() {
    let model = amd(1);
    let mut area = vec![0; EXTENDED_OFFSET];
    area[24..28].copy_from_slice(&0x9fc0_u32.to_le_bytes());
    let mut cpu = filled(5);
    load(&mut cpu, &model, ALL, &area).unwrap();
    assert_eq!((in_use(&cpu), cpu.vector.x87.mxcsr), (0, 0x9fc0));
    put_u64(&mut area, XCOMP_BV, COMPACTED | 7);
    load(&mut cpu, &model, ALL, &area).unwrap();
    assert_eq!(cpu.vector.x87.mxcsr, 0x1f80);
    let mut cpu = filled(5);
    load(&mut cpu, &model, xstate::AVX, &area).unwrap();
    assert_eq!(
        cpu.vector.x87.mxcsr, 0x9f80,
        "AVX alone leaves it in the compacted format"
    );
}

#[test]
fn malformed_headers_are_refused() {
    let model = amd(1);
    let refused = |form, words: [u64; 3], last: u8| {
        let mut cpu = filled(7);
        cpu.xcr0 = 7;
        let mut header = [0; HEADER_SIZE];
        for (n, word) in words.into_iter().enumerate() {
            put_u64(&mut header, 8 * n, word);
        }
        header[HEADER_SIZE - 1] = last;
        restore_size(&cpu, &model, form, ALL, &header) == Err(FAULT)
    };
    let xrstor = Restore::Xrstor;
    assert!(!refused(xrstor, [7, 0, 0], 0));
    assert!(
        !refused(xrstor, [7, 0, 0], 1),
        "the end matters in the compacted format alone"
    );
    assert!(
        refused(xrstor, [0x20, 0, 0], 0),
        "a component that is not enabled"
    );
    assert!(refused(xrstor, [7, 1, 0], 0));
    assert!(refused(xrstor, [7, 0, 1], 0));
    assert!(!refused(xrstor, [3, COMPACTED | 7, 0], 0));
    assert!(
        refused(xrstor, [7, COMPACTED | 3, 0], 0),
        "present without a place"
    );
    assert!(refused(xrstor, [0, COMPACTED | 0x27, 0], 0));
    assert!(refused(xrstor, [3, COMPACTED | 7, 0], 1));
    assert!(
        refused(Restore::Xrstors, [7, 0, 0], 0),
        "XRSTORS knows one format"
    );
    assert!(!refused(Restore::Xrstors, [7, COMPACTED | 7, 0], 0));
}

#[test]
fn reserved_bits_of_mxcsr_are_refused_where_it_is_loaded() {
    let (model, mut cpu) = (amd(1), filled(9));
    let mut area = saved(&cpu, &model, Save::Xsave, ALL, 0);
    area[26] = 1;
    let before = cpu.clone();
    assert_eq!(load(&mut cpu, &model, ALL, &area), Err(FAULT));
    let legacy: [u8; LEGACY_SIZE] = area[..LEGACY_SIZE].try_into().unwrap();
    assert_eq!(fxrstor(&mut cpu, true, &legacy), Err(FAULT));
    assert_eq!(cpu, before);
    assert_eq!(load(&mut cpu, &model, xstate::X87, &area), Ok(()));
}

#[test]
fn outside_64_bit_mode_the_upper_registers_are_left_alone() {
    let model = amd(1);
    let mut cpu = filled(11);
    cpu.efer = 0;
    let area = saved(&cpu, &model, Save::Xsave, ALL, 0x55);
    assert_eq!(get_u64(&area, 160), cpu.vector.zmm[0][0]);
    assert!(area[160 + 128..416].iter().all(|&b| b == 0x55));
    assert!(area[0x580..].iter().all(|&b| b == 0x55), "ZMM16 to ZMM31");
    let mut other = filled(12);
    other.efer = 0;
    let before = other.clone();
    load(&mut other, &model, ALL, &area).unwrap();
    assert_eq!(other.vector.zmm[..8], cpu.vector.zmm[..8]);
    assert_eq!(other.vector.zmm[8..], before.vector.zmm[8..]);
}

#[test]
fn narrow_forms_keep_half_of_the_pointers() {
    let mut cpu = initial();
    (cpu.vector.x87.fip, cpu.vector.x87.fdp) = (0x1122_3344_5566, 0x7788_99aa_bbcc);
    let mut area = [0x55; LEGACY_SIZE];
    fxsave(&cpu, false, &mut area);
    assert_eq!(get_u64(&area, 8), 0x3344_5566);
    assert_eq!(get_u64(&area, 16), 0x99aa_bbcc);
    assert_eq!(area[416..], [0x55; 96]);
    area[12..16].fill(0xff);
    fxrstor(&mut cpu, false, &area).unwrap();
    assert_eq!(cpu.vector.x87.fip, 0x3344_5566);
}

#[test]
fn the_x87s_words_are_made_consistent_when_they_are_loaded() {
    let mut cpu = initial();
    let mut area = [0; LEGACY_SIZE];
    let mut loaded = |fcw: u16, fsw: u16| {
        area[..2].copy_from_slice(&fcw.to_le_bytes());
        area[2..4].copy_from_slice(&fsw.to_le_bytes());
        fxrstor(&mut cpu, true, &area).unwrap();
        (cpu.vector.x87.fcw, cpu.vector.x87.fsw)
    };
    // As the processor itself does it.
    assert_eq!(loaded(0xffff, 0), (0x1f7f, 0));
    assert_eq!(loaded(0x340, 1), (0x340, 0x8081));
    assert_eq!(loaded(0x37f, 0x8080), (0x37f, 0));
}
