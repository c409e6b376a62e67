//! SYSCALL, SYSRET, SYSENTER, SYSEXIT. SDM 3A, 5.8.7 and 5.8.8.

use crate::{CpuState, Exception};

/// Whose processor it is, where the two makers' differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// SYSENTER and SYSEXIT exist in all modes, SYSCALL and SYSRET in 64-bit mode alone. SYSRET checks RCX.
    Intel,
    /// SYSCALL and SYSRET exist in all protected modes, SYSENTER and SYSEXIT only outside long mode. SYSRET does not
    /// check RCX.
    Amd,
}

/// SYSCALL; `next` is the address of the next instruction.
///
/// # Errors
/// #UD where it does not exist.
pub fn syscall(cpu: &mut CpuState, vendor: Vendor, next: u64) -> Result<(), Exception> {
    let _ = (cpu, vendor, next);
    todo!()
}

/// SYSRET; to 64-bit mode if `wide` (REX.W).
///
/// # Errors
/// #UD where it does not exist, #GP(0) if not at CPL 0 or RCX is not canonical.
pub fn sysret(cpu: &mut CpuState, vendor: Vendor, wide: bool) -> Result<(), Exception> {
    let _ = (cpu, vendor, wide);
    todo!()
}

/// SYSENTER.
///
/// # Errors
/// #UD where it does not exist, #GP(0) in real mode or if `IA32_SYSENTER_CS` is null.
pub fn sysenter(cpu: &mut CpuState, vendor: Vendor) -> Result<(), Exception> {
    let _ = (cpu, vendor);
    todo!()
}

/// SYSEXIT; to 64-bit mode if `wide` (REX.W).
///
/// # Errors
/// #UD where it does not exist, #GP(0) if not at CPL 0, if `IA32_SYSENTER_CS` is null or a target is not canonical.
pub fn sysexit(cpu: &mut CpuState, vendor: Vendor, wide: bool) -> Result<(), Exception> {
    let _ = (cpu, vendor, wide);
    todo!()
}
