use super::test_models::{amd, intel};
use super::*;
use crate::CpuState;
use crate::xsave;
use iced_x86::Code;

fn cpu() -> CpuState {
    CpuState::reset(0)
}

fn ask(model: &CpuidModel, leaf: u32, subleaf: u32) -> Registers {
    model.query(leaf, subleaf, &cpu(), 1, true)
}

fn host(leaf: u32, subleaf: u32) -> Registers {
    let r = __cpuid_count(leaf, subleaf);
    [r.eax, r.ebx, r.ecx, r.edx]
}

fn on_this_host() -> CpuidModel {
    CpuidModel::new(&CpuidConfig {
        cpus: 2,
        tsc_hz: 2_000_000_000,
        avx512: true,
    })
}

/// The features that a real host does not have and a machine on it must not have either: those that
/// programs use.
const OF_PROGRAMS: &[Feature] = &[
    Feature::Sse42,
    Feature::Avx,
    Feature::Avx2,
    Feature::Fma,
    Feature::Bmi1,
    Feature::Bmi2,
    Feature::Adx,
    Feature::Aes,
    Feature::Sha,
    Feature::Gfni,
    Feature::Vaes,
    Feature::AvxVnni,
    Feature::AvxIfma,
    Feature::Avx512f,
    Feature::Avx512bf16,
    Feature::Rdseed,
    Feature::Sse4a,
    Feature::Fsgsbase,
    Feature::Movbe,
    Feature::Clwb,
];

#[test]
fn programs_are_offered_no_more_than_this_host_has() {
    let model = on_this_host();
    let reported = Features::reported(host);
    for &feature in OF_PROGRAMS {
        assert!(reported.has(feature) || !model.has(feature), "{feature:?}");
    }
    assert!(model.has(Feature::Sse2) && model.has(Feature::LongMode));
}

#[test]
fn nothing_that_is_not_implemented_is_offered_where_the_host_has_everything() {
    for model in [amd(2), intel(2)] {
        let [_, _, c1, d1] = ask(&model, 1, 0);
        // MONITOR, VMX, SMX, perfmon's PDCM, DCA; VME, PSN, DS, thermal control.
        assert_eq!(c1 & (1 << 3 | 1 << 5 | 1 << 6 | 1 << 15 | 1 << 18), 0);
        assert_eq!(d1 & (1 << 1 | 1 << 18 | 1 << 21 | 1 << 22 | 1 << 29), 0);
        let [_, b7, c7, d7] = ask(&model, 7, 0);
        // SGX, HLE, RTM, MPX; PKU, WAITPKG, CET, LA57; UINTR, AMX, IBT.
        assert_eq!(b7 & (1 << 2 | 1 << 4 | 1 << 11 | 1 << 14), 0);
        assert_eq!(c7 & (1 << 3 | 1 << 5 | 1 << 7 | 1 << 16), 0);
        assert_eq!(
            d7 & (1 << 5 | 1 << 8 | 1 << 20 | 1 << 22 | 1 << 24 | 1 << 25),
            0
        );
        let [.., c, d] = ask(&model, 0x8000_0001, 0);
        // SVM, XOP, LWP, FMA4, TBM, MONITORX; 3DNow!.
        assert_eq!(
            c & (1 << 2 | 1 << 11 | 1 << 15 | 1 << 16 | 1 << 21 | 1 << 29),
            0
        );
        assert_eq!(d & (3 << 30), 0);
        assert_eq!(ask(&model, 0xa, 0), [0; 4]);
        assert_eq!(ask(&model, 5, 0), [0; 4]);
    }
}

#[test]
fn a_poor_host_gets_the_privileged_architecture_and_no_vectors() {
    let config = CpuidConfig {
        cpus: 1,
        tsc_hz: 1_000_000_000,
        avx512: true,
    };
    let model = CpuidModel::from_host(&config, |leaf, _| match leaf {
        0 => [1, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
        1 => [0x6f0, 0, 1 << 28, 0x0780_0000],
        0x8000_0000 => [0x8000_0001, 0, 0, 0],
        _ => [u32::MAX; 4],
    });
    assert!(model.has(Feature::X2apic) && model.has(Feature::Sse2) && model.has(Feature::Smep));
    // AVX needs XSAVE, and leaf 7 is beyond the highest.
    assert!(!model.has(Feature::Avx) && !model.has(Feature::Avx2));
    assert_eq!(model.xcr0_mask(), 3);
    assert_eq!(ask(&model, 0xd, 0), [0; 4]);
    assert_eq!(model.cr4_mask() & cr4::OSXSAVE, 0);
}

#[test]
fn without_leave_there_is_no_avx512() {
    let config = CpuidConfig {
        cpus: 1,
        tsc_hz: 1_000_000_000,
        avx512: false,
    };
    let model = CpuidModel::new(&config);
    for &feature in Feature::ALL {
        let name = format!("{feature:?}");
        assert!(!name.starts_with("Avx512") || !model.has(feature), "{name}");
    }
    assert_eq!(model.xcr0_mask() & xstate::AVX512, 0);
    assert_eq!(ask(&model, 0xd, 5), [0; 4]);
}

#[test]
fn dynamic_bits_follow_the_state() {
    let (model, mut cpu) = (amd(2), cpu());
    let [_, b, c, d] = model.query(1, 0, &cpu, 1, false);
    assert_eq!((b >> 24, b >> 16 & 0xff), (1, 2));
    assert_eq!((c >> 27 & 1, d >> 9 & 1), (0, 0));
    cpu.cr4 |= cr4::OSXSAVE;
    let [_, _, c, d] = model.query(1, 0, &cpu, 1, true);
    assert_eq!((c >> 27 & 1, d >> 9 & 1), (1, 1));
    assert_eq!(
        ask(&amd(1), 1, 0)[3] >> 28 & 1,
        0,
        "one processor, no threads"
    );
}

#[test]
fn the_state_leaf_sizes_follow_xcr0() {
    let (model, mut cpu) = (amd(1), cpu());
    assert_eq!(model.query(0xd, 0, &cpu, 0, true), [0xe7, 576, 0x980, 0]);
    cpu.xcr0 = 7;
    assert_eq!(model.query(0xd, 0, &cpu, 0, true), [0xe7, 832, 0x980, 0]);
    assert_eq!(model.query(0xd, 1, &cpu, 0, true), [0xf, 832, 0, 0]);
    cpu.xcr0 = 0xe7;
    assert_eq!(model.query(0xd, 0, &cpu, 0, true)[1], 0x980);
    assert_eq!(model.query(0xd, 2, &cpu, 0, true), [256, 576, 0, 0]);
    for subleaf in [3, 4, 8, 9, 11, 62, 63, 64, u32::MAX] {
        assert_eq!(
            model.query(0xd, subleaf, &cpu, 0, true),
            [0; 4],
            "{subleaf}"
        );
    }
}

#[test]
fn this_hosts_own_state_sizes_are_the_models() {
    let model = on_this_host();
    let enabled = model.xcr0_mask();
    for component in 2..8 {
        if enabled >> component & 1 == 0 {
            continue;
        }
        let [size, offset, flags, _] = host(0xd, component);
        assert_eq!(ask(&model, 0xd, component), [size, offset, flags & 2, 0]);
    }
    // Where the host has no further component, the totals agree as well.
    let [components, _, size, _] = host(0xd, 0);
    if u64::from(components) == enabled {
        assert_eq!(xsave::area_size(&model, enabled, false), size as usize);
    }
}

#[test]
fn topology_gives_every_vcpu_a_core_of_its_own() {
    for model in [amd(6), intel(6)] {
        let at = |level, vcpu| model.query(0xb, level, &cpu(), vcpu, true);
        assert_eq!(at(0, 5), [0, 1, 0x100, 5]);
        assert_eq!(at(1, 5), [3, 6, 0x201, 5]);
        assert_eq!(at(2, 5), [0, 0, 2, 5]);
    }
    assert_eq!(ask(&amd(6), 0x8000_0008, 0)[2], 3 << 12 | 5);
    assert_eq!(ask(&amd(6), 0x8000_001e, 0), [1, 1, 0, 0]);
    // The first level's cache is a core's own, the last level's is everyone's.
    assert_eq!(ask(&amd(6), 0x8000_001d, 0)[0] >> 14 & 0xfff, 0);
    assert_eq!(ask(&amd(6), 0x8000_001d, 1)[0] >> 14 & 0xfff, 5);
    assert_eq!(ask(&amd(6), 0x8000_001d, 2), [0; 4]);
    assert_eq!(ask(&intel(6), 4, 1)[0], 7 << 26 | 7 << 14 | 0x163);
    assert_eq!(ask(&intel(6), 4, 2), [0; 4]);
}

#[test]
fn both_makers_frequency_leaves_give_the_counters_frequency() {
    let model = intel(1);
    let [denominator, numerator, crystal, _] = ask(&model, 0x15, 0);
    let hz = u64::from(crystal) * u64::from(numerator) / u64::from(denominator);
    assert_eq!(hz, model.tsc_hz());
    assert_eq!(ask(&model, 0x16, 0), [2600, 2600, 100, 0]);
    assert_eq!(ask(&amd(1), 0x4000_0010, 0), [2_600_000, 1_000_000, 0, 0]);
}

#[test]
fn the_paravirtual_leaves_name_kvm_and_only_what_the_board_has() {
    let [highest, b, c, d] = ask(&amd(1), 0x4000_0000, 0);
    let name: Vec<u8> = [b, c, d].iter().flat_map(|r| r.to_le_bytes()).collect();
    assert_eq!(name, b"KVMKVMKVM\0\0\0");
    assert_eq!(highest, 0x4000_0010);
    assert_eq!(ask(&amd(1), 0x4000_0001, 0), [0x0100_000b, 0, 0, 0]);
    assert_eq!(ask(&amd(1), 0x4000_0100, 0), [0; 4]);
    assert_eq!(
        ask(&amd(1), 1, 0)[2] >> 31,
        1,
        "the hypervisor bit leads there"
    );
}

#[test]
fn linux_finds_no_vulnerability_to_mitigate() {
    let amd = amd(2);
    assert!(amd.has(Feature::AutomaticIbrs) && amd.efer_mask() & efer::AIBRSE != 0);
    for feature in [
        Feature::SsbNo,
        Feature::BtcNo,
        Feature::SrsoNo,
        Feature::TsaSqNo,
        Feature::TsaL1No,
        Feature::NullSelectorClearsBase,
        Feature::LfenceSerializing,
    ] {
        assert!(amd.has(feature), "{feature:?}");
    }
    let intel = intel(2);
    assert!(intel.has(Feature::ArchCapabilities) && intel.has(Feature::SpecCtrl));
    assert!(!intel.has(Feature::AutomaticIbrs) && !amd.has(Feature::SpecCtrl));
    assert_eq!(intel.efer_mask() & efer::AIBRSE, 0);
}

#[test]
fn leaves_beyond_the_highest_are_the_makers() {
    assert_eq!(ask(&amd(1), 0x17, 0), [0; 4]);
    assert_eq!(ask(&intel(1), 0x1234, 0), ask(&intel(1), 0x16, 0));
    assert_eq!(ask(&intel(1), 0x8000_0021, 0), ask(&intel(1), 0x16, 0));
    assert_eq!(ask(&intel(1), 0xc000_0000, 0), ask(&intel(1), 0x16, 0));
}

#[test]
fn the_makers_leaf_repeats_the_basic_features_on_amd_alone() {
    let basic = ask(&amd(1), 1, 0)[3];
    let extended = ask(&amd(1), 0x8000_0001, 0)[3];
    assert_eq!(extended & 0x0183_f3ff, basic & 0x0183_f3ff);
    assert_eq!(ask(&intel(1), 0x8000_0001, 0)[3] & 0x0183_f3ff, 0);
}

#[test]
fn every_offered_feature_can_be_turned_on_in_cr4() {
    let mask = amd(1).cr4_mask();
    for bit in [
        cr4::PCIDE,
        cr4::SMEP,
        cr4::SMAP,
        cr4::UMIP,
        cr4::FSGSBASE,
        cr4::OSXSAVE,
    ] {
        assert_eq!(mask & bit, bit);
    }
    assert_eq!(
        mask & (cr4::VME | cr4::PVI | 1 << 12 | 1 << 13 | 1 << 22 | 1 << 23),
        0
    );
}

#[test]
fn instructions_follow_their_features() {
    let config = CpuidConfig {
        cpus: 1,
        tsc_hz: 1_000_000_000,
        avx512: false,
    };
    let everything = amd(1);
    let poor = CpuidModel::from_host(&config, |leaf, _| match leaf {
        0 => [1, 0x756e_6547, 0, 0],
        1 => [0x6f0, 0, 0, 0x0783_fbff],
        0x8000_0000 => [0x8000_0001, 0, 0, 0],
        _ => [0; 4],
    });
    for code in [
        Code::Add_rm64_r64,
        Code::Aaa,
        Code::Fld_m64fp,
        Code::Cpuid,
        Code::Syscall,
        Code::Pause,
        Code::Nop_rm32,
        Code::Fxsave_m512byte,
        Code::Endbr64,
        Code::Rdsspq_r64,
        Code::Prefetchw_m8,
        Code::Wrmsr,
        Code::Cmpxchg8b_m64,
        Code::Invlpg_m,
        Code::Movaps_xmm_xmmm128,
        Code::Sysenter,
        Code::Ud2,
    ] {
        assert!(everything.offers(code), "{code:?}");
        assert!(poor.offers(code), "{code:?}");
    }
    for code in [
        Code::VEX_Vaddps_ymm_ymm_ymmm256,
        Code::EVEX_Vaddps_zmm_k1z_zmm_zmmm512b32_er,
        Code::EVEX_Vpopcntd_xmm_k1z_xmmm128b32,
        Code::Popcnt_r64_rm64,
        Code::VEX_Andn_r64_r64_rm64,
        Code::Aesenc_xmm_xmmm128,
        Code::Rdrand_r64,
        Code::Xsavec_mem,
    ] {
        assert!(everything.offers(code), "{code:?}");
        assert!(!poor.offers(code), "{code:?}");
    }
    for code in [
        Code::Vmcall,
        Code::Vmrunq,
        Code::Monitorq,
        Code::Incsspq_r64,
        Code::Xbegin_rel32,
        Code::VEX_Tdpbssd_tmm_tmm_tmm,
        Code::Rdpkru,
        Code::D3NOW_Pfadd_mm_mmm64,
        Code::Rsm,
        Code::EVEX_Vp2intersectd_kp1_zmm_zmmm512b32,
    ] {
        assert!(!everything.offers(code), "{code:?}");
    }
}
