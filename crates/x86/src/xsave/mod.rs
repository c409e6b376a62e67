//! FXSAVE, XSAVE and their kin. SDM 1, chapter 13.
//!
//! The functions work on byte slices; an engine copies the area from and to guest memory. An engine saves by reading
//! [`save_size`] bytes of the area, calling [`save`], and writing them back (the bytes of components that are not saved
//! stay as they are); it restores by reading the header, asking [`restore_size`], reading that many bytes, and calling
//! [`restore`]. #UD without CR4.OSXSAVE, #NM with CR0.TS, privilege and alignment (64 bytes; 16 for FXSAVE, both
//! #GP(0)) are the caller's business.

use crate::cpuid::CpuidModel;
use crate::{CpuState, Exception};

/// Size of the legacy region, which is all that FXSAVE knows.
pub const LEGACY_SIZE: usize = 512;
/// Size of the header that follows it.
pub const HEADER_SIZE: usize = 64;
/// Where the first extended component lies.
pub const EXTENDED_OFFSET: usize = LEGACY_SIZE + HEADER_SIZE;

/// Which instruction saves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Save {
    /// XSAVE: the standard format.
    Xsave,
    /// XSAVEOPT: the standard format, without components in their initial state.
    Xsaveopt,
    /// XSAVEC: the compacted format.
    Xsavec,
    /// XSAVES: the compacted format, with supervisor components.
    Xsaves,
}

/// Which instruction restores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restore {
    /// XRSTOR, of either format.
    Xrstor,
    /// XRSTORS: the compacted format, with supervisor components.
    Xrstors,
}

/// Those components of the state that are not in their initial configuration. SDM 1, 13.6.
pub fn in_use(cpu: &CpuState) -> u64 {
    let _ = cpu;
    todo!()
}

/// Size of the area that holds the components of `mask`, in the standard or the compacted format, as CPUID leaf 0xD
/// tells it.
pub fn area_size(model: &CpuidModel, mask: u64, compacted: bool) -> usize {
    let _ = (model, mask, compacted);
    todo!()
}

/// How many bytes [`save`] needs for the components asked for in `edx_eax`.
pub fn save_size(cpu: &CpuState, model: &CpuidModel, form: Save, edx_eax: u64) -> usize {
    let _ = (cpu, model, form, edx_eax);
    todo!()
}

/// Saves the components asked for in `edx_eax` into `area`, which is [`save_size`] bytes read from memory. `wide` is
/// whether the instruction has REX.W (64-bit pointers of the x87).
pub fn save(
    cpu: &CpuState,
    model: &CpuidModel,
    form: Save,
    edx_eax: u64,
    wide: bool,
    area: &mut [u8],
) {
    let _ = (cpu, model, form, edx_eax, wide, area);
    todo!()
}

/// Checks the header, and tells how many bytes [`restore`] needs.
///
/// # Errors
/// #GP(0) for headers that the form does not allow.
pub fn restore_size(
    cpu: &CpuState,
    model: &CpuidModel,
    form: Restore,
    edx_eax: u64,
    header: &[u8; HEADER_SIZE],
) -> Result<usize, Exception> {
    let _ = (cpu, model, form, edx_eax, header);
    todo!()
}

/// Restores the components asked for in `edx_eax` from `area`, which is [`restore_size`] bytes of memory. `wide` is
/// whether the instruction has REX.W (64-bit pointers of the x87).
///
/// # Errors
/// #GP(0) for reserved bits in the header or MXCSR; then nothing has changed.
pub fn restore(
    cpu: &mut CpuState,
    model: &CpuidModel,
    form: Restore,
    edx_eax: u64,
    wide: bool,
    area: &[u8],
) -> Result<(), Exception> {
    let _ = (cpu, model, form, edx_eax, wide, area);
    todo!()
}

/// FXSAVE; with `wide` FXSAVE64. The area's last 96 bytes stay as they are. Outside 64-bit mode XMM8 to XMM15 stay
/// as they are too.
pub fn fxsave(cpu: &CpuState, wide: bool, area: &mut [u8; LEGACY_SIZE]) {
    let _ = (cpu, wide, area);
    todo!()
}

/// FXRSTOR; with `wide` FXRSTOR64. Outside 64-bit mode XMM8 to XMM15 are not restored.
///
/// # Errors
/// #GP(0) for reserved bits in MXCSR; then nothing has changed.
pub fn fxrstor(cpu: &mut CpuState, wide: bool, area: &[u8; LEGACY_SIZE]) -> Result<(), Exception> {
    let _ = (cpu, wide, area);
    todo!()
}
