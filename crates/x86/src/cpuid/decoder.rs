//! The decoder's names of features, in the model's terms.

use super::CpuidModel;
use super::features::Feature;
use Feature as F;
use iced_x86::{Code, CpuidFeature};

impl CpuidModel {
    /// Whether an instruction that needs `features` (as the decoder tells it) is offered; if not,
    /// it raises #UD.
    ///
    /// Hints are to be asked for with [`offers`](Self::offers), because they are no-operations
    /// where they are unknown.
    pub fn allows(&self, features: &[CpuidFeature]) -> bool {
        features.iter().all(|&feature| self.supports(feature))
    }

    /// Whether the instruction `code` is offered; if not, it raises #UD.
    pub fn offers(&self, code: Code) -> bool {
        is_hint(code) || self.allows(code.cpuid_features())
    }

    fn supports(&self, feature: CpuidFeature) -> bool {
        match needed(feature) {
            Needed::Nothing => true,
            Needed::Offered(feature) => self.has(feature),
            Needed::Either(one, other) => self.has(one) || self.has(other),
            Needed::NotOffered => false,
        }
    }
}

/// Instructions in the encodings that the architecture keeps for hints: they do nothing where their
/// feature is missing. SDM 2, NOP; APM 3, PREFETCH.
const fn is_hint(code: Code) -> bool {
    matches!(
        code,
        Code::Endbr32
            | Code::Endbr64
            | Code::Rdsspd_r32
            | Code::Rdsspq_r64
            | Code::Cldemote_m8
            | Code::Prefetch_m8
            | Code::Prefetchw_m8
            | Code::Prefetchwt1_m8
            | Code::Prefetchreserved3_m8
            | Code::Prefetchreserved4_m8
            | Code::Prefetchreserved5_m8
            | Code::Prefetchreserved6_m8
            | Code::Prefetchreserved7_m8
            | Code::Prefetchit0_m8
            | Code::Prefetchit1_m8
    )
}

/// What one of the decoder's features stands for.
enum Needed {
    /// Every processor with long mode has it.
    Nothing,
    Offered(Feature),
    Either(Feature, Feature),
    /// No machine offers it.
    NotOffered,
}

const fn needed(feature: CpuidFeature) -> Needed {
    use CpuidFeature as C;
    Needed::Offered(match feature {
        C::INTEL8086
        | C::INTEL186
        | C::INTEL286
        | C::INTEL386
        | C::INTEL486
        // Instructions that exist outside 64-bit mode alone; the decoder knows the mode.
        | C::INTEL8086_ONLY
        | C::X64
        | C::CPUID
        | C::MULTIBYTENOP
        | C::PAUSE
        | C::RDPMC
        | C::FPU287
        | C::FPU387 => return Needed::Nothing,
        C::FPU => F::Fpu,
        C::TSC => F::Tsc,
        C::MSR => F::Msr,
        C::CX8 => F::Cx8,
        C::CMPXCHG16B => F::Cx16,
        C::SEP => F::Sep,
        C::CMOV => F::Cmov,
        C::CLFSH => F::Clfsh,
        C::MMX => F::Mmx,
        C::FXSR => F::Fxsr,
        C::SSE => F::Sse,
        C::SSE2 => F::Sse2,
        C::SSE3 => F::Sse3,
        C::SSSE3 => F::Ssse3,
        C::SSE4_1 => F::Sse41,
        C::SSE4_2 => F::Sse42,
        C::SSE4A => F::Sse4a,
        C::PCLMULQDQ => F::Pclmulqdq,
        C::AES => F::Aes,
        C::SHA => F::Sha,
        C::GFNI => F::Gfni,
        C::MOVBE => F::Movbe,
        C::POPCNT => F::Popcnt,
        C::LZCNT => F::Lzcnt,
        C::ADX => F::Adx,
        C::BMI1 => F::Bmi1,
        C::BMI2 => F::Bmi2,
        C::RDRAND => F::Rdrand,
        C::RDSEED => F::Rdseed,
        C::RDPID => F::Rdpid,
        C::RDTSCP => F::Rdtscp,
        C::FSGSBASE => F::Fsgsbase,
        C::INVPCID => F::Invpcid,
        C::SMAP => F::Smap,
        C::SYSCALL => F::Syscall,
        C::CLFLUSHOPT => F::Clflushopt,
        C::CLWB => F::Clwb,
        C::XSAVE => F::Xsave,
        C::XSAVEOPT => F::Xsaveopt,
        C::XSAVEC => F::Xsavec,
        C::XSAVES => F::Xsaves,
        C::AVX => F::Avx,
        C::AVX2 => F::Avx2,
        C::FMA => F::Fma,
        C::F16C => F::F16c,
        C::VAES => F::Vaes,
        C::VPCLMULQDQ => F::Vpclmulqdq,
        C::AVX_VNNI => F::AvxVnni,
        C::AVX_IFMA => F::AvxIfma,
        C::AVX512F => F::Avx512f,
        C::AVX512VL => F::Avx512vl,
        C::AVX512BW => F::Avx512bw,
        C::AVX512CD => F::Avx512cd,
        C::AVX512DQ => F::Avx512dq,
        C::AVX512_IFMA => F::Avx512ifma,
        C::AVX512_VBMI => F::Avx512vbmi,
        C::AVX512_VBMI2 => F::Avx512vbmi2,
        C::AVX512_VNNI => F::Avx512vnni,
        C::AVX512_BITALG => F::Avx512bitalg,
        C::AVX512_VPOPCNTDQ => F::Avx512vpopcntdq,
        C::AVX512_BF16 => F::Avx512bf16,
        C::PREFETCHW => return Needed::Either(F::Prefetchw, F::LongMode),
        _ => return Needed::NotOffered,
    })
}
