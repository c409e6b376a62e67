//! The memory types that firmware sets in each processor's range registers. SDM 3A, 12.11.

use crate::layout;
use belljar_x86::CpuState;

const UNCACHEABLE: u64 = 0;
const WRITE_PROTECTED: u8 = 5;
const WRITE_BACK: u8 = 6;
/// IA32_MTRR_DEF_TYPE: the fixed ranges are enabled.
const FIXED_ENABLE: u64 = 1 << 10;
/// IA32_MTRR_DEF_TYPE: the range registers are enabled.
const ENABLE: u64 = 1 << 11;
/// IA32_MTRR_PHYSMASKn: the range is valid.
const VALID: u64 = 1 << 11;

/// Sets the memory types of the board as firmware does on each processor before it starts a kernel:
/// RAM is write-back, ROM write-protected, the video memory and the device hole below 4 GiB
/// uncacheable. `physical_bits` is the width of physical addresses. Kernels compare them with the
/// memory map and complain if processors disagree.
pub fn set_memory_types(cpu: &mut CpuState, physical_bits: u8) {
    let all_of = |kind: u8| u64::from_le_bytes([kind; 8]);
    let msr = &mut cpu.msr;
    msr.mtrr_def_type = ENABLE | FIXED_ENABLE | u64::from(WRITE_BACK);
    // In the order of their numbers: 0 to 512 KiB, 512 to 640 KiB, the video memory, and eight of
    // the ROM area.
    msr.mtrr_fixed = [all_of(WRITE_PROTECTED); 11];
    msr.mtrr_fixed[..2].fill(all_of(WRITE_BACK));
    msr.mtrr_fixed[2] = UNCACHEABLE;
    let hole = layout::DEVICE_HOLE;
    let addresses = (1_u64 << physical_bits.clamp(36, 52)) - 1;
    msr.mtrr_variable = [[0; 2]; 8];
    msr.mtrr_variable[0] = [
        hole.start | UNCACHEABLE,
        (addresses & !(hole.end - hole.start - 1)) | VALID,
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_device_hole_matches_the_uncacheable_range() {
        let mut cpu = CpuState::reset(0);
        set_memory_types(&mut cpu, 40);
        let [base, mask] = cpu.msr.mtrr_variable[0];
        assert_eq!(cpu.msr.mtrr_def_type, 0xc06);
        assert_eq!(mask, 0xff_c000_0800);
        let matches = |address: u64| address & mask & !0xfff == base & mask & !0xfff;
        assert!(matches(0xc000_0000) && matches(0xfee0_0000) && matches(0xffff_f000));
        assert!(!matches(0xbfff_f000) && !matches(0x1_0000_0000) && !matches(0x1_c000_0000));
    }
}
