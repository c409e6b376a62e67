//! Models of two imagined hosts, for the tests.

use super::{CpuidConfig, CpuidModel};

/// What both hosts have in leaves that do not depend on the maker.
fn common(leaf: u32, subleaf: u32) -> Option<[u32; 4]> {
    Some(match (leaf, subleaf) {
        (1 | 0x8000_0001, _) => [0, 0, u32::MAX, u32::MAX],
        (7, 0) => [2, u32::MAX, u32::MAX, u32::MAX],
        (7, 1) | (0x8000_0007 | 0x8000_0021, _) => [u32::MAX; 4],
        (0xd, 0) => [0x2e7, 0x988, 0x988, 0],
        (0xd, 1) => [0x1f, 0x988, 0x1800, 0],
        (0xd, 2) => [0x100, 0x240, 0, 0],
        (0x8000_0008, _) => [0x3030, u32::MAX, 0xffff, 0],
        _ => return None,
    })
}

fn config(cpus: u32) -> CpuidConfig {
    CpuidConfig {
        cpus,
        tsc_hz: 2_600_000_000,
        avx512: true,
    }
}

/// A machine on a host of AMD that has everything.
pub(crate) fn amd(cpus: u32) -> CpuidModel {
    CpuidModel::from_host(&config(cpus), |leaf, subleaf| match (leaf, subleaf) {
        (0, _) => [0x1c, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        (1, _) => [0x00b0_0f21, 0, u32::MAX, u32::MAX],
        (0x8000_0000, _) => [0x8000_0021, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        (0xd, 5) => [0x40, 0x340, 0, 0],
        (0xd, 6) => [0x200, 0x380, 0, 0],
        (0xd, 7) => [0x400, 0x580, 0, 0],
        (0x8000_001d, 0) => [0x0000_4121, 0x02c0_003f, 0x3f, 0],
        (0x8000_001d, 1) => [0x0000_4163, 0x03c0_003f, 0x7fff, 1],
        _ => common(leaf, subleaf).unwrap_or_default(),
    })
}

/// A machine on a host of Intel that has everything.
pub(crate) fn intel(cpus: u32) -> CpuidModel {
    CpuidModel::from_host(&config(cpus), |leaf, subleaf| match (leaf, subleaf) {
        (0, _) => [0x20, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
        (1, _) => [0x000c_06f2, 0, u32::MAX, u32::MAX],
        (0x8000_0000, _) => [0x8000_0008, 0, 0, 0],
        (4, 0) => [0xfc00_4121, 0x02c0_003f, 0x3f, 0],
        (4, 1) => [0xfc1f_c163, 0x0380_003f, 0xffff, 4],
        (0xd, 5) => [0x40, 0x440, 0, 0],
        (0xd, 6) => [0x200, 0x480, 2, 0],
        (0xd, 7) => [0x400, 0x680, 2, 0],
        _ => common(leaf, subleaf).unwrap_or_default(),
    })
}
