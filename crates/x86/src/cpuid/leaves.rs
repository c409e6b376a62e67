//! The leaves: read from the host when the model is built, composed when a vCPU asks.

use super::features::{Feature, Features, Word};
use super::offer::{Usable, offer};
use super::{CpuidConfig, CpuidModel, Registers};
use crate::CpuState;
use crate::bits::cr4;
use crate::syscall::Vendor;
use crate::xsave::{self, Layout};

/// Highest basic leaf that is ever offered: the frequencies.
const HIGHEST_BASIC: u32 = 0x16;
/// Highest extended leaf of Intel's processors.
const HIGHEST_EXTENDED_INTEL: u32 = 0x8000_0008;
/// Highest extended leaf that is offered on AMD's.
const HIGHEST_EXTENDED_AMD: u32 = 0x8000_0021;
/// Highest of the paravirtual leaves: the frequencies.
const HIGHEST_PARAVIRTUAL: u32 = 0x4000_0010;
/// Bits of leaf 1's EDX that AMD's leaf 0x80000001 repeats. APM 3, appendix E.4.2.
const REPEATED: u32 = 0x0183_f3ff;
/// Width of linear addresses.
const LINEAR_BITS: u32 = 48;
/// Frequency at which the local APIC's timer counts, and the crystal's that leaf 0x15 speaks of:
/// kernels take the two for the same.
const CRYSTAL_HZ: u32 = 1_000_000_000;
/// "KVMKVMKVM\0\0\0": the paravirtual interface is KVM's, for which stock kernels have drivers.
const PARAVIRTUAL_SIGNATURE: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x0000_004d];
/// The paravirtual features: both numberings of the clock's MSRs, which is stable across vCPUs;
/// port 80h is no delay.
const PARAVIRTUAL_FEATURES: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 24;
/// Kinds of leaf 4 and its like that a host may list.
const MOST_CACHES: u32 = 16;

/// Bits needed to number `cpus` processors.
const fn id_bits(cpus: u32) -> u32 {
    cpus.next_power_of_two().trailing_zeros()
}

impl CpuidModel {
    pub(super) fn build(
        config: &CpuidConfig,
        usable: Usable,
        host: impl Fn(u32, u32) -> Registers,
    ) -> Self {
        let config = CpuidConfig {
            cpus: config.cpus.max(1),
            ..*config
        };
        let [highest, name @ ..] = host(0, 0);
        let [highest_extended, ..] = host(0x8000_0000, 0);
        // Processors answer leaves beyond the highest with other leaves' data.
        let leaf = |number: u32, subleaf: u32| {
            let limit = if number < 0x8000_0000 {
                highest
            } else {
                highest_extended
            };
            if number <= limit {
                host(number, subleaf)
            } else {
                [0; 4]
            }
        };
        // "AuthenticAMD" and "HygonGenuine", by EBX.
        let vendor = match name[0] {
            0x6874_7541 | 0x6f67_7948 => Vendor::Amd,
            _ => Vendor::Intel,
        };
        let mut features = offer(&Features::reported(leaf), usable, vendor, config.cpus > 1);
        let topology_leaf = match vendor {
            Vendor::Intel => 4,
            Vendor::Amd => 0x8000_001d,
        };
        let cache_topology: Vec<_> = (0..MOST_CACHES)
            .map(|subleaf| leaf(topology_leaf, subleaf))
            .take_while(|registers| registers[0] & 0x1f != 0)
            .collect();
        if vendor == Vendor::Amd && cache_topology.is_empty() {
            features.remove(Feature::TopologyExtensions);
        }
        Self {
            config,
            vendor,
            features,
            layout: Layout::from_cpuid(|subleaf| leaf(0xd, subleaf)),
            vendor_string: name,
            signature: leaf(1, 0)[0],
            highest: highest.clamp(0xd, HIGHEST_BASIC),
            brand: [2, 3, 4].map(|n| leaf(0x8000_0000 | n, 0)),
            caches: [5, 6].map(|n| leaf(0x8000_0000 | n, 0)),
            hints: [0x19, 0x1a].map(|n| leaf(0x8000_0000 | n, 0)),
            cache_topology,
        }
    }

    /// CPUID on vCPU number `vcpu`: EAX, EBX, ECX, EDX. `apic_on` is the enable bit of the
    /// APIC_BASE register.
    pub fn query(
        &self,
        leaf: u32,
        subleaf: u32,
        cpu: &CpuState,
        vcpu: u32,
        apic_on: bool,
    ) -> [u32; 4] {
        match leaf >> 28 {
            4 => self.paravirtual(leaf),
            8 if leaf <= self.highest_extended() => self.extended(leaf, subleaf, vcpu),
            // Intel's processors answer unknown leaves with the highest basic one, AMD's with
            // zeros. SDM 2A, CPUID.
            _ if leaf <= self.highest => self.basic(leaf, subleaf, cpu, vcpu, apic_on),
            _ if self.vendor == Vendor::Intel => {
                self.basic(self.highest, subleaf, cpu, vcpu, apic_on)
            }
            _ => [0; 4],
        }
    }

    const fn highest_extended(&self) -> u32 {
        match self.vendor {
            Vendor::Intel => HIGHEST_EXTENDED_INTEL,
            Vendor::Amd => HIGHEST_EXTENDED_AMD,
        }
    }

    fn basic(
        &self,
        leaf: u32,
        subleaf: u32,
        cpu: &CpuState,
        vcpu: u32,
        apic_on: bool,
    ) -> Registers {
        let word = |word| self.features.word(word);
        match leaf {
            0 => {
                let [b, c, d] = self.vendor_string;
                [self.highest, b, c, d]
            }
            1 => self.identity(cpu, vcpu, apic_on),
            // Intel: one prefetch size, everything else is in leaf 4.
            2 if self.vendor == Vendor::Intel => [0x0000_ff01, 0, 0, 0],
            4 if self.vendor == Vendor::Intel => self.caches_of_intel(subleaf),
            6 => [word(Word::L6Eax), 0, 0, 0],
            7 => match subleaf {
                0 => [1, word(Word::L7Ebx), word(Word::L7Ecx), word(Word::L7Edx)],
                1 => [word(Word::L7s1Eax), 0, 0, 0],
                _ => [0; 4],
            },
            0xb => self.topology(subleaf, vcpu),
            0xd => self.extended_state(subleaf, cpu),
            0x15 => {
                let khz = u32::try_from(self.config.tsc_hz / 1000).unwrap_or(u32::MAX);
                [CRYSTAL_HZ / 1000, khz, CRYSTAL_HZ, 0]
            }
            0x16 => {
                let mhz = (self.config.tsc_hz / 1_000_000).min(0xffff) as u32;
                [mhz, mhz, 100, 0]
            }
            _ => [0; 4],
        }
    }

    /// Leaf 1.
    fn identity(&self, cpu: &CpuState, vcpu: u32, apic_on: bool) -> Registers {
        const CLFLUSH_QUADWORDS: u32 = 8;
        const OSXSAVE: u32 = 1 << 27;
        const APIC: u32 = 1 << 9;
        const HTT: u32 = 1 << 28;
        let cpus = self.config.cpus;
        let mut ecx = self.features.word(Word::L1Ecx);
        let mut edx = self.features.word(Word::L1Edx);
        if cpu.cr4 & cr4::OSXSAVE != 0 {
            ecx |= OSXSAVE;
        }
        if !apic_on {
            edx &= !APIC;
        }
        if cpus > 1 {
            edx |= HTT;
        }
        let ebx = (vcpu & 0xff) << 24 | cpus.min(0xff) << 16 | CLFLUSH_QUADWORDS << 8;
        [self.signature, ebx, ecx, edx]
    }

    /// Leaf 4: the host's caches, of which the last level is shared by all vCPUs and the others by
    /// none.
    fn caches_of_intel(&self, subleaf: u32) -> Registers {
        let Some(&[mut eax, ebx, ecx, edx]) = self.cache_topology.get(subleaf as usize) else {
            return [0; 4];
        };
        let ids = (1 << id_bits(self.config.cpus)) - 1;
        let shared = if eax >> 5 & 7 >= 3 { ids } else { 0 };
        eax = eax & 0x3fff | (shared & 0xfff) << 14 | (ids & 0x3f) << 26;
        [eax, ebx, ecx, edx]
    }

    /// Leaf 0x8000001D: as [`caches_of_intel`](Self::caches_of_intel).
    fn caches_of_amd(&self, subleaf: u32) -> Registers {
        let Some(&[eax, ebx, ecx, edx]) = self.cache_topology.get(subleaf as usize) else {
            return [0; 4];
        };
        let shared = if eax >> 5 & 7 >= 3 {
            self.config.cpus - 1
        } else {
            0
        };
        [eax & 0x3fff | (shared & 0xfff) << 14, ebx, ecx, edx]
    }

    /// Leaf 0xB: each vCPU is a core of one thread, and its x2APIC identifier is its number.
    fn topology(&self, level: u32, vcpu: u32) -> Registers {
        const THREADS: u32 = 1 << 8;
        const CORES: u32 = 2 << 8;
        let cpus = self.config.cpus;
        match level {
            0 => [0, 1, THREADS, vcpu],
            1 => [id_bits(cpus), cpus, CORES | level, vcpu],
            _ => [0, 0, level & 0xff, vcpu],
        }
    }

    /// Leaf 0xD. SDM 1, 13.2.
    fn extended_state(&self, subleaf: u32, cpu: &CpuState) -> Registers {
        if !self.has(Feature::Xsave) {
            return [0; 4];
        }
        let offered = self.xcr0_mask();
        let size = |mask, compacted| xsave::area_size(self, mask, compacted) as u32;
        match subleaf {
            0 => [
                offered as u32,
                size(cpu.xcr0, false),
                size(offered, false),
                (offered >> 32) as u32,
            ],
            1 => {
                let eax = self.features.word(Word::LDs1Eax);
                let xss = self.xss_mask();
                let ebx = if self.has(Feature::Xsavec) {
                    size(cpu.xcr0 | cpu.xss, true)
                } else {
                    0
                };
                [eax, ebx, xss as u32, (xss >> 32) as u32]
            }
            2..63 if offered >> subleaf & 1 != 0 => {
                let component = self.layout.component(subleaf);
                let aligned = u32::from(component.aligned) << 1;
                [component.size, component.offset, aligned, 0]
            }
            _ => [0; 4],
        }
    }

    fn extended(&self, leaf: u32, subleaf: u32, vcpu: u32) -> Registers {
        let word = |word| self.features.word(word);
        let amd = self.vendor == Vendor::Amd;
        match leaf & 0xffff {
            0 => {
                let [b, c, d] = if amd { self.vendor_string } else { [0; 3] };
                [self.highest_extended(), b, c, d]
            }
            1 => {
                let repeated = if amd { word(Word::L1Edx) & REPEATED } else { 0 };
                let eax = if amd { self.signature } else { 0 };
                [eax, 0, word(Word::E1Ecx), word(Word::E1Edx) | repeated]
            }
            n @ 2..=4 => self.brand[n as usize - 2],
            n @ 5..=6 => self.caches[n as usize - 5],
            7 => [0, 0, 0, word(Word::E7Edx)],
            8 => self.sizes(),
            n @ 0x19..=0x1a => self.hints[n as usize - 0x19],
            0x1d if self.has(Feature::TopologyExtensions) => self.caches_of_amd(subleaf),
            // Each core has one thread, all are in one node.
            0x1e if self.has(Feature::TopologyExtensions) => [vcpu, vcpu & 0xff, 0, 0],
            0x21 => [word(Word::E21Eax), 0, word(Word::E21Ecx), 0],
            _ => [0; 4],
        }
    }

    /// Leaf 0x80000008.
    fn sizes(&self) -> Registers {
        let cores = match self.vendor {
            Vendor::Intel => 0,
            Vendor::Amd => id_bits(self.config.cpus) << 12 | (self.config.cpus - 1) & 0xff,
        };
        let ebx = self.features.word(Word::E8Ebx);
        [self.phys_bits() | LINEAR_BITS << 8, ebx, cores, 0]
    }

    /// The leaves of the paravirtual interface.
    fn paravirtual(&self, leaf: u32) -> Registers {
        match leaf {
            0x4000_0000 => {
                let [b, c, d] = PARAVIRTUAL_SIGNATURE;
                [HIGHEST_PARAVIRTUAL, b, c, d]
            }
            0x4000_0001 => [PARAVIRTUAL_FEATURES, 0, 0, 0],
            HIGHEST_PARAVIRTUAL => {
                let khz = u32::try_from(self.config.tsc_hz / 1000).unwrap_or(u32::MAX);
                [khz, CRYSTAL_HZ / 1000, 0, 0]
            }
            _ => [0; 4],
        }
    }
}
