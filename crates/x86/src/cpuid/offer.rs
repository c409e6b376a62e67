//! Which features a machine offers on a given host.

use super::features::{Feature, Features};
use crate::syscall::Vendor;
use Feature as F;

/// Features of the privileged architecture and of the board. The engines do these themselves, on
/// any host.
const OWN: &[Feature] = &[
    F::De,
    F::Pse,
    F::Msr,
    F::Pae,
    F::Mce,
    F::Apic,
    F::Sep,
    F::Mtrr,
    F::Pge,
    F::Mca,
    F::Pat,
    F::Pse36,
    F::Pcid,
    F::X2apic,
    F::TscDeadline,
    F::Hypervisor,
    F::Arat,
    F::TscAdjust,
    F::Smep,
    F::Invpcid,
    F::Smap,
    F::ZeroFcsFds,
    F::Umip,
    F::Syscall,
    F::Nx,
    F::Pdpe1gb,
    F::LongMode,
    F::InvariantTsc,
    F::SsbNo,
    F::BtcNo,
];

/// The same, of features that only AMD's processors have.
const OWN_AMD: &[Feature] = &[
    F::Xsaveerptr,
    F::LfenceSerializing,
    F::NullSelectorClearsBase,
    F::AutomaticIbrs,
    F::NoSmmCtl,
    F::SrsoNo,
    F::TsaSqNo,
    F::TsaL1No,
];

/// The same, of features that only Intel's processors have.
const OWN_INTEL: &[Feature] = &[F::SpecCtrl, F::ArchCapabilities];

/// Features that go with [`F::Avx512f`], all or none.
const AVX512: &[Feature] = &[
    F::Avx512f,
    F::Avx512dq,
    F::Avx512ifma,
    F::Avx512cd,
    F::Avx512bw,
    F::Avx512vl,
    F::Avx512vbmi,
    F::Avx512vbmi2,
    F::Avx512vnni,
    F::Avx512bitalg,
    F::Avx512vpopcntdq,
    F::Avx512bf16,
];

/// The first feature is not offered without the second. Each comes after those that it needs, so
/// one pass is enough.
const NEEDS: &[(Feature, Feature)] = &[
    (F::Xsaveopt, F::Xsave),
    (F::Xsavec, F::Xsave),
    (F::Xgetbv1, F::Xsavec),
    (F::Xsaves, F::Xsavec),
    (F::Avx, F::Xsave),
    (F::F16c, F::Avx),
    (F::Fma, F::Avx),
    (F::Vaes, F::Avx),
    (F::Vpclmulqdq, F::Avx),
    (F::Avx2, F::Avx),
    (F::AvxVnni, F::Avx2),
    (F::AvxIfma, F::Avx2),
    (F::Avx512f, F::Avx2),
];

/// What the host's kernel lets programs use, whatever the processor has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usable {
    /// The upper halves of the YMM registers.
    pub avx: bool,
    /// Opmask and ZMM registers.
    pub avx512: bool,
}

/// The features of a machine on a host that reports `host`.
pub(super) fn offer(host: &Features, usable: Usable, vendor: Vendor, smp: bool) -> Features {
    let (own, other) = match vendor {
        Vendor::Amd => (OWN_AMD, OWN_INTEL),
        Vendor::Intel => (OWN_INTEL, OWN_AMD),
    };
    let mut offered = Features::default();
    for &feature in Feature::ALL {
        if host.has(feature) && !other.contains(&feature) {
            offered.insert(feature);
        }
    }
    for &feature in OWN.iter().chain(own) {
        offered.insert(feature);
    }
    if !usable.avx {
        offered.remove(F::Avx);
    }
    // AMD's sign that the logical processors of leaf 1 are cores. APM 3, appendix E.3.2.
    if vendor == Vendor::Amd && smp {
        offered.insert(F::CmpLegacy);
    } else {
        offered.remove(F::CmpLegacy);
    }
    for &(feature, needed) in NEEDS {
        if !offered.has(needed) {
            offered.remove(feature);
        }
    }
    if !usable.avx512 || !offered.has(F::Avx512f) {
        for &feature in AVX512 {
            offered.remove(feature);
        }
    }
    offered
}
