//! What the host's processor has.

use iced_x86::{CpuidFeature, Instruction};
use std::arch::is_x86_feature_detected as detected;
use std::sync::LazyLock;

/// Whether the host is one of AMD's processors, or a Hygon, which is one too.
pub(crate) fn is_amd() -> bool {
    let leaf = std::arch::x86_64::__cpuid(0);
    let vendor = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
    matches!(vendor.as_flattened(), b"AuthenticAMD" | b"HygonGenuine")
}

/// Whether the host wraps the address of each element of a VEX-encoded masked move at the address
/// size, and not that of the whole operand alone. The manuals do not say. AMD's family 19h, model 1
/// does, family 1Ah does not; the families up to 19h are taken to be alike.
pub(crate) fn wraps_elements() -> bool {
    // CPUID takes long where the host is itself a virtual machine.
    static WRAPS: LazyLock<bool> = LazyLock::new(|| {
        let signature = std::arch::x86_64::__cpuid(1).eax;
        // CPUID's family is the base and the extended family together. APM 3, appendix E.3.2.
        let family = (signature >> 8 & 15) + (signature >> 20 & 0xff);
        is_amd() && family <= 0x19
    });
    *WRAPS
}

/// Whether the host has AVX.
pub fn has_avx() -> bool {
    detected!("avx")
}

/// Whether the host has the parts of AVX-512 that every server processor has; with less it counts
/// as having none.
pub fn has_avx512() -> bool {
    detected!("avx512f")
        && detected!("avx512bw")
        && detected!("avx512dq")
        && detected!("avx512vl")
        && detected!("avx512cd")
}

/// Whether the host has `feature`; nothing if instructions of the feature are not innocuous.
fn on_host(feature: CpuidFeature) -> Option<bool> {
    use CpuidFeature as F;
    Some(match feature {
        // Everything that runs 64-bit Linux.
        F::INTEL8086
        | F::INTEL186
        | F::INTEL286
        | F::INTEL386
        | F::INTEL486
        | F::X64
        | F::CMOV
        | F::FPU
        | F::FPU287
        | F::FPU387
        | F::MMX
        | F::SSE
        | F::SSE2 => true,
        F::ADX => detected!("adx"),
        F::BMI1 => detected!("bmi1"),
        F::BMI2 => detected!("bmi2"),
        F::LZCNT => detected!("lzcnt"),
        F::MOVBE => detected!("movbe"),
        F::POPCNT => detected!("popcnt"),
        F::TBM => detected!("tbm"),
        F::SSE3 => detected!("sse3"),
        F::SSSE3 => detected!("ssse3"),
        F::SSE4_1 => detected!("sse4.1"),
        F::SSE4_2 => detected!("sse4.2"),
        F::SSE4A => detected!("sse4a"),
        F::AES => detected!("aes"),
        F::PCLMULQDQ => detected!("pclmulqdq"),
        F::SHA => detected!("sha"),
        F::GFNI => detected!("gfni"),
        F::AVX => detected!("avx"),
        F::AVX2 => detected!("avx2"),
        F::FMA => detected!("fma"),
        F::F16C => detected!("f16c"),
        F::VAES => detected!("vaes"),
        F::VPCLMULQDQ => detected!("vpclmulqdq"),
        F::AVX_VNNI => detected!("avxvnni"),
        F::AVX_IFMA => detected!("avxifma"),
        F::AVX_NE_CONVERT => detected!("avxneconvert"),
        F::AVX_VNNI_INT8 => detected!("avxvnniint8"),
        F::SHA512 => detected!("sha512"),
        F::SM3 => detected!("sm3"),
        F::SM4 => detected!("sm4"),
        F::AVX512F | F::AVX512BW | F::AVX512CD | F::AVX512DQ | F::AVX512VL => has_avx512(),
        F::AVX512_BF16 => has_avx512() && detected!("avx512bf16"),
        F::AVX512_BITALG => has_avx512() && detected!("avx512bitalg"),
        F::AVX512_IFMA => has_avx512() && detected!("avx512ifma"),
        F::AVX512_VBMI => has_avx512() && detected!("avx512vbmi"),
        F::AVX512_VBMI2 => has_avx512() && detected!("avx512vbmi2"),
        F::AVX512_VNNI => has_avx512() && detected!("avx512vnni"),
        F::AVX512_VP2INTERSECT => has_avx512() && detected!("avx512vp2intersect"),
        F::AVX512_VPOPCNTDQ => has_avx512() && detected!("avx512vpopcntdq"),
        F::AVX512_FP16 => has_avx512() && detected!("avx512fp16"),
        // Of processors that are gone or never ran an operating system of their own.
        F::AVX512_4FMAPS
        | F::AVX512_4VNNIW
        | F::AVX512ER
        | F::AVX512PF
        | F::FMA4
        | F::XOP
        | F::D3NOW
        | F::D3NOWEXT
        | F::FPU287XL_ONLY
        | F::FPU387SL_ONLY
        | F::CYRIX_FPU => false,
        _ => return None,
    })
}

/// Whether the host has all that `instruction` needs; nothing if it is not innocuous.
pub(crate) fn supports(instruction: &Instruction) -> Option<bool> {
    instruction
        .cpuid_features()
        .iter()
        .try_fold(true, |all, &feature| Some(all & on_host(feature)?))
}
