//! What CPUID tells: a model of a processor built from what the host has. SDM 2A, CPUID; APM 3,
//! appendix E.
//!
//! The model passes on the host's maker, family, model and stepping, so that kernels choose code
//! for the processor that really runs it, and offers what the host has *and* the engines implement,
//! never more.
//!
//! The exceptions are the privileged architecture, which the engines do themselves on any host, and
//! the bits that say "not affected" by speculation's side channels. These are claimed whatever the
//! host says: guest code runs translated or interpreted, so a guest kernel's own countermeasures
//! (retpolines, VERW, IBPB) would cost time and protect nothing; keeping guests from the host's
//! secrets is the business of the host's kernel and of process isolation. Linux reads them in
//! `cpu_set_bug_bits()` and `spectre_v2_select_mitigation()`.
//!
//! Not offered on any host: VMX and SVM, MONITOR, CET, PKU, LA57, TSX, MPX, SGX, performance
//! counters, AMX, APX, user interrupts, WAITPKG, 3DNow!, XOP, FMA4, TBM, LWP, virtual-8086 mode
//! extensions, VP2INTERSECT.

mod decoder;
mod features;
mod leaves;
mod offer;
#[cfg(test)]
pub(crate) mod test_models;
#[cfg(test)]
mod tests;

pub use features::{Feature, Features};

use crate::bits::{PHYS_BITS, cr4, efer, xstate};
use crate::syscall::Vendor;
use crate::xsave::Layout;
use std::arch::x86_64::__cpuid_count;

/// What a machine's owner decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidConfig {
    /// Number of vCPUs.
    pub cpus: u32,
    /// Frequency of the time-stamp counter.
    pub tsc_hz: u64,
    /// Whether AVX-512 is offered if the host has it. An engine that does not implement it must
    /// have `false` here.
    pub avx512: bool,
}

/// EAX, EBX, ECX and EDX of a leaf.
type Registers = [u32; 4];

/// The identification of every vCPU of a machine.
#[derive(Clone, Debug)]
pub struct CpuidModel {
    config: CpuidConfig,
    vendor: Vendor,
    features: Features,
    layout: Layout,
    /// EBX, ECX and EDX of leaf 0.
    vendor_string: [u32; 3],
    /// EAX of leaf 1.
    signature: u32,
    /// Highest basic leaf.
    highest: u32,
    /// Leaves 0x80000002 to 0x80000004.
    brand: [Registers; 3],
    /// Leaves 0x80000005 and 0x80000006: caches and TLBs.
    caches: [Registers; 2],
    /// Leaves 0x80000019 and 0x8000001A: TLBs of 1 GiB pages, performance hints.
    hints: [Registers; 2],
    /// Subleaves of leaf 4 (Intel) or 0x8000001D (AMD): caches.
    cache_topology: Vec<Registers>,
}

impl CpuidModel {
    /// The model for a machine on this host.
    pub fn new(config: &CpuidConfig) -> Self {
        let usable = offer::Usable {
            avx: is_x86_feature_detected!("avx"),
            avx512: config.avx512 && is_x86_feature_detected!("avx512f"),
        };
        Self::build(config, usable, |leaf, subleaf| {
            let registers = __cpuid_count(leaf, subleaf);
            [registers.eax, registers.ebx, registers.ecx, registers.edx]
        })
    }

    /// The model for a machine on a host whose CPUID instruction gives `host(leaf, subleaf)`: EAX,
    /// EBX, ECX, EDX. Its kernel is taken to support what its processor has.
    pub fn from_host(config: &CpuidConfig, host: impl Fn(u32, u32) -> [u32; 4]) -> Self {
        let usable = offer::Usable {
            avx: true,
            avx512: config.avx512,
        };
        Self::build(config, usable, host)
    }

    /// Everything that is offered.
    pub const fn features(&self) -> &Features {
        &self.features
    }

    /// Whether `feature` is offered.
    #[inline]
    pub const fn has(&self, feature: Feature) -> bool {
        self.features.has(feature)
    }

    /// Family, model and stepping: EAX of leaf 1, and what EDX holds after reset.
    pub const fn signature(&self) -> u32 {
        self.signature
    }

    /// Whose processor it is.
    pub const fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// Width of guest-physical addresses in bits.
    pub const fn phys_bits(&self) -> u32 {
        PHYS_BITS
    }

    /// Where XSAVE puts the components of the state.
    pub const fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Frequency of the time-stamp counter.
    pub const fn tsc_hz(&self) -> u64 {
        self.config.tsc_hz
    }

    /// Bits of CR4 that may be set.
    pub fn cr4_mask(&self) -> u64 {
        // PCE is there without any performance counter: RDPMC then raises #GP at every privilege.
        let always = cr4::TSD | cr4::PCE;
        [
            (Feature::De, cr4::DE),
            (Feature::Pse, cr4::PSE),
            (Feature::Pae, cr4::PAE),
            (Feature::Mce, cr4::MCE),
            (Feature::Pge, cr4::PGE),
            (Feature::Fxsr, cr4::OSFXSR),
            (Feature::Sse, cr4::OSXMMEXCPT),
            (Feature::Umip, cr4::UMIP),
            (Feature::Fsgsbase, cr4::FSGSBASE),
            (Feature::Pcid, cr4::PCIDE),
            (Feature::Xsave, cr4::OSXSAVE),
            (Feature::Smep, cr4::SMEP),
            (Feature::Smap, cr4::SMAP),
        ]
        .into_iter()
        .filter(|&(feature, _)| self.has(feature))
        .fold(always, |mask, (_, bit)| mask | bit)
    }

    /// Bits of EFER that may be set.
    pub fn efer_mask(&self) -> u64 {
        [
            (Feature::Syscall, efer::SCE),
            (Feature::LongMode, efer::LME | efer::LMA),
            (Feature::Nx, efer::NXE),
            (Feature::AutomaticIbrs, efer::AIBRSE),
        ]
        .into_iter()
        .filter(|&(feature, _)| self.has(feature))
        .fold(0, |mask, (_, bit)| mask | bit)
    }

    /// Bits of XCR0 that may be set.
    pub fn xcr0_mask(&self) -> u64 {
        let mut mask = xstate::X87 | xstate::SSE;
        if self.has(Feature::Avx) {
            mask |= xstate::AVX;
        }
        if self.has(Feature::Avx512f) {
            mask |= xstate::AVX512;
        }
        mask
    }

    /// Bits of XSS that may be set: no supervisor component is offered.
    pub const fn xss_mask(&self) -> u64 {
        0
    }
}
