//! What CPUID tells: a model of a processor built from what the host has. SDM 2A, CPUID; APM 3, appendix E.
//!
//! The model passes on the host's maker, family, model and stepping, so that kernels choose code for the processor that
//! really runs it, and offers what the host has *and* the engines implement, never more.
//!
//! The exceptions are the bits that say "not affected" by speculation's side channels. They are claimed whatever the
//! host says: guest code runs translated or interpreted, so a guest kernel's own countermeasures (retpolines, VERW,
//! IBPB) would cost time and protect nothing; keeping guests from the host's secrets is the business of the host's
//! kernel and of process isolation.

mod features;

pub use features::{Feature, Features};

use crate::CpuState;
use crate::syscall::Vendor;
use iced_x86::CpuidFeature;

/// What a machine's owner decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidConfig {
    /// Number of vCPUs.
    pub cpus: u32,
    /// Frequency of the time-stamp counter.
    pub tsc_hz: u64,
    /// Whether AVX-512 is offered if the host has it. An engine that does not implement it must have `false` here.
    pub avx512: bool,
}

/// The identification of every vCPU of a machine.
#[derive(Clone, Debug)]
pub struct CpuidModel {
    features: Features,
}

impl CpuidModel {
    /// The model for a machine on this host.
    pub fn new(config: &CpuidConfig) -> Self {
        let _ = config;
        todo!()
    }

    /// The model for a machine on a host whose CPUID instruction gives `host(leaf, subleaf)`: EAX, EBX, ECX, EDX.
    pub fn from_host(config: &CpuidConfig, host: impl Fn(u32, u32) -> [u32; 4]) -> Self {
        let _ = (config, host);
        todo!()
    }

    /// CPUID on vCPU number `vcpu`: EAX, EBX, ECX, EDX. `apic_on` is the enable bit of the APIC_BASE register.
    pub fn query(
        &self,
        leaf: u32,
        subleaf: u32,
        cpu: &CpuState,
        vcpu: u32,
        apic_on: bool,
    ) -> [u32; 4] {
        let _ = (leaf, subleaf, cpu, vcpu, apic_on);
        todo!()
    }

    /// Everything that is offered.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Whether `feature` is offered.
    #[inline]
    pub fn has(&self, feature: Feature) -> bool {
        self.features.has(feature)
    }

    /// Whether an instruction that needs `features` (as the decoder tells it) is offered; if not, it raises #UD.
    pub fn allows(&self, features: &[CpuidFeature]) -> bool {
        let _ = features;
        todo!()
    }

    /// Family, model and stepping: EAX of leaf 1, and what EDX holds after reset.
    pub fn signature(&self) -> u32 {
        todo!()
    }

    /// Whose processor it is.
    pub fn vendor(&self) -> Vendor {
        todo!()
    }

    /// Width of guest-physical addresses in bits.
    pub fn phys_bits(&self) -> u32 {
        todo!()
    }

    /// Bits of CR4 that may be set.
    pub fn cr4_mask(&self) -> u64 {
        todo!()
    }

    /// Bits of EFER that may be set.
    pub fn efer_mask(&self) -> u64 {
        todo!()
    }

    /// Bits of XCR0 that may be set.
    pub fn xcr0_mask(&self) -> u64 {
        todo!()
    }

    /// Frequency of the time-stamp counter.
    pub fn tsc_hz(&self) -> u64 {
        todo!()
    }
}
