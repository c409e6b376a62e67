//! Model-specific registers. SDM 4; APM 2, appendix A.
//!
//! What the core holds is read and written here. Registers of the local APIC and the paravirtual
//! ones belong to the board, which the outcome says. Privilege is the caller's to check.
//!
//! Unknown registers raise #GP, as on hardware: kernels probe for them. Registers of AMD's chipset,
//! tuning and event counting, which kernels touch without looking, read as zero and keep nothing.

mod index;
mod memory_types;
#[cfg(test)]
mod tests;

use crate::cpuid::{CpuidModel, Feature};
use crate::paging::{Flush, is_canonical};
use crate::syscall::Vendor;
use crate::{CpuState, Exception, Seg, control};
use index as i;

/// ARCH_CAPABILITIES: every bit by which Linux leaves a countermeasure off. See [`crate::cpuid`]
/// for why they are true of a machine without direct execution. RDCL_NO, IBRS_ALL,
/// SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO,
/// BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO.
const NOT_AFFECTED: u64 = 0x17b | 7 << 13 | 1 << 20 | 1 << 24 | 3 << 26 | 1 << 62;
/// MISC_ENABLE: fast strings may be turned off, and nothing else changed.
const MISC_ENABLE_WRITABLE: u64 = 1;
/// MISC_ENABLE: no branch trace and no event sampling.
const MISC_ENABLE_FIXED: u64 = 3 << 11;
/// FEATURE_CONTROL: locked by the firmware, with nothing enabled.
const FEATURE_CONTROL: u64 = 1;
/// HWCR: the TSC counts at a constant frequency; kernels warn if it does not.
const HWCR_TSC_FREQUENCY: u64 = 1 << 24;
/// HWCR: the TSC's frequency, and switches of debugging aids that a machine does not have: the
/// caches of the TLB, the flush filter, IGNNE, writes to the status of machine checks.
const HWCR_DEFINED: u64 = HWCR_TSC_FREQUENCY | 1 << 3 | 1 << 6 | 1 << 8 | 1 << 18;
/// SYSCFG: the extensions of the MTRRs. Memory encryption is not offered.
const SYSCFG_DEFINED: u64 = 0x1f << 18;
/// DE_CFG: LFENCE waits for all earlier instructions.
const DE_CFG_LFENCE: u64 = 1 << 1;
/// SPEC_CTRL: IBRS and STIBP.
const SPEC_CTRL_DEFINED: u64 = 3;
/// PRED_CMD: the barrier of indirect branch prediction.
const PRED_CMD_IBPB: u64 = 1;
/// DEBUGCTL: last-branch recording, which records nothing here, and single-stepping on branches.
const DEBUGCTL_DEFINED: u64 = 3;
/// Bit 2 of MCG_STATUS: a machine check is in progress. With its two neighbours, all that there is.
const MCG_STATUS_DEFINED: u64 = 7;
/// The revision of microcode that a machine claims, in the form of each maker: new enough for any
/// kernel.
const MICROCODE_INTEL: u64 = 1 << 32;

/// What RDMSR found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// The value.
    Value(u64),
    /// The register is the board's: ask it. If it refuses, #GP(0).
    Board,
}

/// What WRMSR did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// It is done; the engine drops these translations.
    Done(Flush),
    /// The register is the board's: tell it. If it refuses, #GP(0).
    Board,
}

const fn refused<T>() -> Result<T, Exception> {
    Err(Exception::general_protection(0))
}

/// Whether the register is the board's.
const fn is_boards(index: u32) -> bool {
    matches!(
        index,
        i::WALL_CLOCK_OLD
            | i::SYSTEM_TIME_OLD
            | i::APIC_BASE
            | i::TSC_DEADLINE
            | i::X2APIC_FIRST..=i::X2APIC_LAST
            | i::PARAVIRTUAL_FIRST..=i::PARAVIRTUAL_LAST
    )
}

/// RDMSR. `tsc` is the machine's time-stamp counter, before the processor's own offset.
///
/// # Errors
/// #GP(0) for registers that do not exist.
pub fn read(cpu: &CpuState, model: &CpuidModel, index: u32, tsc: u64) -> Result<Read, Exception> {
    if is_boards(index) {
        return Ok(Read::Board);
    }
    let found = architectural(cpu, model, index, tsc)
        .or_else(|| memory_types::read(&cpu.msr, index))
        .or_else(|| match model.vendor() {
            Vendor::Intel => of_intel(cpu, model, index),
            Vendor::Amd => of_amd(cpu, index),
        });
    match found {
        Some(value) => Ok(Read::Value(value)),
        None => refused(),
    }
}

/// Registers that both makers' processors have.
fn architectural(cpu: &CpuState, model: &CpuidModel, index: u32, tsc: u64) -> Option<u64> {
    let msr = &cpu.msr;
    Some(match index {
        i::TSC => tsc.wrapping_add(msr.tsc_adjust),
        i::TSC_ADJUST => msr.tsc_adjust,
        i::SYSENTER_CS => msr.sysenter_cs,
        i::SYSENTER_ESP => msr.sysenter_esp,
        i::SYSENTER_EIP => msr.sysenter_eip,
        i::EFER => cpu.efer,
        i::STAR => msr.star,
        i::LSTAR => msr.lstar,
        i::CSTAR => msr.cstar,
        i::FMASK => msr.fmask,
        i::FS_BASE => cpu.seg(Seg::Fs).base,
        i::GS_BASE => cpu.seg(Seg::Gs).base,
        i::KERNEL_GS_BASE => msr.kernel_gs_base,
        i::TSC_AUX if model.has(Feature::Rdtscp) => msr.tsc_aux,
        i::XSS if model.has(Feature::Xsaves) => cpu.xss,
        i::DEBUGCTL => msr.debugctl,
        // No bank of machine-check registers, and so no MCG_CTL.
        i::MCG_CAP => 0,
        i::MCG_STATUS => msr.mcg_status,
        i::MICROCODE_REVISION => match model.vendor() {
            Vendor::Intel => MICROCODE_INTEL,
            Vendor::Amd => u64::from(amd_patch_level(model.signature())),
        },
        _ => return None,
    })
}

/// The patch level of a processor of AMD in its own numbering: family, model and stepping, and the
/// highest revision.
const fn amd_patch_level(signature: u32) -> u32 {
    let stepping = signature & 0xf;
    let model = signature >> 4 & 0xf;
    let extended_model = signature >> 16 & 0xf;
    let extended_family = signature >> 20 & 0xff;
    extended_family << 24 | extended_model << 20 | model << 12 | stepping << 8 | 0xff
}

fn of_intel(cpu: &CpuState, model: &CpuidModel, index: u32) -> Option<u64> {
    Some(match index {
        i::PLATFORM_ID | i::POWER_ON | i::SMI_COUNT => 0,
        i::FEATURE_CONTROL => FEATURE_CONTROL,
        i::SPEC_CTRL if model.has(Feature::SpecCtrl) => cpu.msr.spec_ctrl,
        // The maximum ratio without turbo, of 100 MHz.
        i::PLATFORM_INFO => ((model.tsc_hz() / 100_000_000) & 0xff) << 8,
        i::ARCH_CAPABILITIES if model.has(Feature::ArchCapabilities) => NOT_AFFECTED,
        i::MISC_ENABLE => cpu.msr.misc_enable & MISC_ENABLE_WRITABLE | MISC_ENABLE_FIXED,
        _ => return None,
    })
}

fn of_amd(cpu: &CpuState, index: u32) -> Option<u64> {
    let msr = &cpu.msr;
    Some(match index {
        i::SYSCFG => msr.syscfg,
        i::HWCR => msr.hwcr | HWCR_TSC_FREQUENCY,
        i::DE_CFG => msr.de_cfg | DE_CFG_LFENCE,
        _ if is_amd_tuning(index) => 0,
        _ => return None,
    })
}

/// How many event counters a processor has that CPUID does not tell of.
pub const fn event_counters(vendor: Vendor) -> u32 {
    match vendor {
        Vendor::Intel => 0,
        Vendor::Amd => 4,
    }
}

/// Registers of AMD's chipset, tuning and event counting.
const fn is_amd_tuning(index: u32) -> bool {
    matches!(
        index,
        i::NB_CFG
            | i::TOP_MEM
            | i::TOP_MEM2
            | i::INTERRUPT_PENDING
            | i::MMIO_CONFIG
            | i::SMM_TSEG_ADDRESS
            | i::SMM_TSEG_MASK
            | i::LS_CFG
            | i::IC_CFG
            | i::DC_CFG
            | i::TW_CFG
            | i::FP_CFG
            | i::BU_CFG2
    ) || is_event_counter(index)
}

/// Registers of AMD's event counters: CPUID cannot say that there are none. APM 2, 13.2.1.
const fn is_event_counter(index: u32) -> bool {
    i::EVENT_SELECT_0 <= index && index <= i::EVENT_COUNTER_3
}

/// WRMSR. `tsc` is the machine's time-stamp counter, before the processor's own offset.
///
/// # Errors
/// #GP(0) for registers that do not exist or cannot be written, and values that they cannot hold;
/// then nothing has
/// changed.
pub fn write(
    cpu: &mut CpuState,
    model: &CpuidModel,
    index: u32,
    value: u64,
    tsc: u64,
) -> Result<Write, Exception> {
    if is_boards(index) {
        return Ok(Write::Board);
    }
    if index == i::EFER {
        return control::write_efer(cpu, model, value).map(Write::Done);
    }
    let accepted = write_architectural(cpu, model, index, value, tsc)
        .or_else(|| memory_types::write(&mut cpu.msr, index, value))
        .or_else(|| match model.vendor() {
            Vendor::Intel => write_of_intel(cpu, model, index, value),
            Vendor::Amd => write_of_amd(cpu, index, value),
        });
    if accepted == Some(true) {
        Ok(Write::Done(Flush::None))
    } else {
        refused()
    }
}

/// Sets `register` to `value` if `allowed`, and tells whether it was.
const fn set(register: &mut u64, value: u64, allowed: bool) -> bool {
    if allowed {
        *register = value;
    }
    allowed
}

/// Writes a register that both makers' processors have. `None` if there is none of that number,
/// else whether it takes the value.
fn write_architectural(
    cpu: &mut CpuState,
    model: &CpuidModel,
    index: u32,
    value: u64,
    tsc: u64,
) -> Option<bool> {
    let canonical = is_canonical(value);
    let word = value >> 32 == 0;
    let msr = &mut cpu.msr;
    Some(match index {
        i::TSC => set(&mut msr.tsc_adjust, value.wrapping_sub(tsc), true),
        i::TSC_ADJUST => set(&mut msr.tsc_adjust, value, true),
        i::SYSENTER_CS => set(&mut msr.sysenter_cs, value & 0xffff_ffff, true),
        i::SYSENTER_ESP => set(&mut msr.sysenter_esp, value, canonical),
        i::SYSENTER_EIP => set(&mut msr.sysenter_eip, value, canonical),
        i::STAR => set(&mut msr.star, value, true),
        i::LSTAR => set(&mut msr.lstar, value, canonical),
        i::CSTAR => set(&mut msr.cstar, value, canonical),
        // Bit 1 of RFLAGS is never cleared, but the mask keeps what is written.
        i::FMASK => set(&mut msr.fmask, value & 0xffff_ffff, word),
        i::FS_BASE => set(&mut cpu.segments[Seg::Fs as usize].base, value, canonical),
        i::GS_BASE => set(&mut cpu.segments[Seg::Gs as usize].base, value, canonical),
        i::KERNEL_GS_BASE => set(&mut msr.kernel_gs_base, value, canonical),
        i::TSC_AUX if model.has(Feature::Rdtscp) => set(&mut msr.tsc_aux, value, word),
        i::XSS if model.has(Feature::Xsaves) => {
            set(&mut cpu.xss, value, value & !model.xss_mask() == 0)
        }
        i::DEBUGCTL => set(&mut msr.debugctl, value, value & !DEBUGCTL_DEFINED == 0),
        i::MCG_STATUS => set(&mut msr.mcg_status, value, value & !MCG_STATUS_DEFINED == 0),
        // Written before its revision is asked for, on processors of Intel. SDM 3A, 9.11.7.1.
        i::MICROCODE_REVISION => true,
        _ => return None,
    })
}

fn write_of_intel(cpu: &mut CpuState, model: &CpuidModel, index: u32, value: u64) -> Option<bool> {
    let msr = &mut cpu.msr;
    Some(match index {
        i::SPEC_CTRL if model.has(Feature::SpecCtrl) => {
            set(&mut msr.spec_ctrl, value, value & !SPEC_CTRL_DEFINED == 0)
        }
        // A command, which has nothing to do here.
        i::PRED_CMD if model.has(Feature::SpecCtrl) => value & !PRED_CMD_IBPB == 0,
        i::MISC_ENABLE => {
            let sound = value & !(MISC_ENABLE_WRITABLE | MISC_ENABLE_FIXED) == 0;
            set(&mut msr.misc_enable, value & MISC_ENABLE_WRITABLE, sound)
        }
        _ => return None,
    })
}

fn write_of_amd(cpu: &mut CpuState, index: u32, value: u64) -> Option<bool> {
    let msr = &mut cpu.msr;
    Some(match index {
        i::SYSCFG => set(&mut msr.syscfg, value, value & !SYSCFG_DEFINED == 0),
        i::HWCR => set(&mut msr.hwcr, value, value & !HWCR_DEFINED == 0),
        i::DE_CFG => set(&mut msr.de_cfg, value, true),
        _ if is_amd_tuning(index) => true,
        _ => return None,
    })
}
