//! Which CPUID bit stands for which of the decoder's features.

use iced_x86::CpuidFeature as F;
use std::arch::x86_64::__cpuid_count;

/// A CPUID leaf's answer: EAX, EBX, ECX, EDX.
pub type Answer = [u32; 4];

/// What CPUID answers to a leaf and a subleaf: the host's or a model's.
pub type Cpuid<'a> = &'a dyn Fn(u32, u32) -> Answer;

/// The host's own CPUID.
pub fn host_cpuid(leaf: u32, subleaf: u32) -> Answer {
    let r = __cpuid_count(leaf, subleaf);
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// Index of a register in [`Answer`].
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// Whether the processor that `cpuid` describes has `feature`. Features whose instructions the oracle does not run count
/// as absent.
pub fn has(cpuid: Cpuid<'_>, feature: F) -> bool {
    match bit(feature) {
        Bit::Always => true,
        Bit::Never => false,
        Bit::At(leaf, subleaf, register, bit) => {
            let highest = cpuid(leaf & 0x8000_0000, 0)[0];
            leaf <= highest && cpuid(leaf, subleaf)[register] >> bit & 1 != 0
        }
    }
}

enum Bit {
    /// Every processor with 64-bit mode has it.
    Always,
    /// Not run by the oracle.
    Never,
    /// Leaf, subleaf, register and bit.
    At(u32, u32, usize, u32),
}

/// SDM 2A, CPUID; APM 3, appendix E.
fn bit(feature: F) -> Bit {
    let (leaf, subleaf, register, bit) = match feature {
        F::INTEL8086
        | F::INTEL186
        | F::INTEL286
        | F::INTEL386
        | F::INTEL486
        | F::X64
        | F::FPU
        | F::FPU287
        | F::FPU387
        | F::CX8
        | F::CMOV
        | F::MMX
        | F::FXSR
        | F::SSE
        | F::SSE2
        | F::PAUSE
        | F::MULTIBYTENOP => return Bit::Always,
        F::CLFSH => (1, 0, EDX, 19),
        F::SSE3 => (1, 0, ECX, 0),
        F::PCLMULQDQ => (1, 0, ECX, 1),
        F::SSSE3 => (1, 0, ECX, 9),
        F::FMA => (1, 0, ECX, 12),
        F::CMPXCHG16B => (1, 0, ECX, 13),
        F::SSE4_1 => (1, 0, ECX, 19),
        F::SSE4_2 => (1, 0, ECX, 20),
        F::MOVBE => (1, 0, ECX, 22),
        F::POPCNT => (1, 0, ECX, 23),
        F::AES => (1, 0, ECX, 25),
        F::AVX => (1, 0, ECX, 28),
        F::F16C => (1, 0, ECX, 29),
        F::FSGSBASE => (7, 0, EBX, 0),
        F::BMI1 => (7, 0, EBX, 3),
        F::AVX2 => (7, 0, EBX, 5),
        F::BMI2 => (7, 0, EBX, 8),
        F::AVX512F => (7, 0, EBX, 16),
        F::AVX512DQ => (7, 0, EBX, 17),
        F::ADX => (7, 0, EBX, 19),
        F::AVX512_IFMA => (7, 0, EBX, 21),
        F::CLFLUSHOPT => (7, 0, EBX, 23),
        F::CLWB => (7, 0, EBX, 24),
        F::AVX512CD => (7, 0, EBX, 28),
        F::SHA => (7, 0, EBX, 29),
        F::AVX512BW => (7, 0, EBX, 30),
        F::AVX512VL => (7, 0, EBX, 31),
        F::AVX512_VBMI => (7, 0, ECX, 1),
        F::AVX512_VBMI2 => (7, 0, ECX, 6),
        F::GFNI => (7, 0, ECX, 8),
        F::VAES => (7, 0, ECX, 9),
        F::VPCLMULQDQ => (7, 0, ECX, 10),
        F::AVX512_VNNI => (7, 0, ECX, 11),
        F::AVX512_BITALG => (7, 0, ECX, 12),
        F::AVX512_VPOPCNTDQ => (7, 0, ECX, 14),
        F::MOVDIRI => (7, 0, ECX, 27),
        F::MOVDIR64B => (7, 0, ECX, 28),
        F::AVX512_VP2INTERSECT => (7, 0, EDX, 8),
        F::AVX512_FP16 => (7, 0, EDX, 23),
        F::AVX_VNNI => (7, 1, 0, 4),
        F::AVX512_BF16 => (7, 1, 0, 5),
        F::LZCNT => (0x8000_0001, 0, ECX, 5),
        F::SSE4A => (0x8000_0001, 0, ECX, 6),
        F::PREFETCHW => (0x8000_0001, 0, ECX, 8),
        _ => return Bit::Never,
    };
    Bit::At(leaf, subleaf, register, bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_beyond_the_highest_has_no_features() {
        let old = |leaf, _| match leaf {
            0 => [1, 0, 0, 0],
            _ => [u32::MAX; 4],
        };
        assert!(has(&old, F::SSE3));
        assert!(!has(&old, F::BMI1));
    }

    #[test]
    fn features_of_other_makers_and_privileged_ones_are_absent() {
        let all = |_, _| [u32::MAX; 4];
        assert!(!has(&all, F::XOP));
        assert!(!has(&all, F::VMX));
        assert!(has(&all, F::AVX512_FP16));
    }
}
