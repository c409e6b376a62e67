//! The legacy region: x87 and SSE. SDM 1, 10.5 and 13.5.

use super::layout::part;
use super::{LEGACY_SIZE, MXCSR_MASK};
use crate::state::X87;
use crate::{CpuState, Exception};

/// Offsets in the region.
mod at {
    pub const FCW: usize = 0;
    pub const FSW: usize = 2;
    pub const FTW: usize = 4;
    pub const FOP: usize = 6;
    pub const FIP: usize = 8;
    pub const FDP: usize = 16;
    pub const MXCSR: usize = 24;
    pub const MXCSR_MASK: usize = 28;
    pub const ST: usize = 32;
    pub const XMM: usize = 160;
}

/// The number of SSE's component.
const SSE: u32 = 1;

/// `N` bytes of `area` at `offset`, which lies within it.
fn get<const N: usize>(area: &[u8], offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&area[offset..offset + N]);
    bytes
}

/// Writes `bytes` at `offset`, which lies within `area`.
fn put<const N: usize>(area: &mut [u8], offset: usize, bytes: [u8; N]) {
    area[offset..offset + N].copy_from_slice(&bytes);
}

/// A 32-bit word of an area.
pub(super) fn get_u32(area: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(get(area, offset))
}

/// A 64-bit word of an area.
pub(super) fn get_u64(area: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(get(area, offset))
}

/// Stores a 64-bit word.
pub(super) fn put_u64(area: &mut [u8], offset: usize, value: u64) {
    put(area, offset, value.to_le_bytes());
}

/// Stores the x87's state. The selectors of the last instruction and operand are deprecated: they
/// are stored as 0.
pub(super) fn save_x87(x87: &X87, wide: bool, area: &mut [u8]) {
    put(area, at::FCW, x87.fcw.to_le_bytes());
    put(area, at::FSW, x87.fsw.to_le_bytes());
    put(area, at::FTW, u16::from(x87.ftw).to_le_bytes());
    put(area, at::FOP, (x87.fop & 0x7ff).to_le_bytes());
    let pointer = if wide { u64::MAX } else { 0xffff_ffff };
    put_u64(area, at::FIP, x87.fip & pointer);
    put_u64(area, at::FDP, x87.fdp & pointer);
    for (n, [mantissa, exponent]) in x87.st.iter().enumerate() {
        put_u64(area, at::ST + 16 * n, *mantissa);
        put_u64(area, at::ST + 16 * n + 8, exponent & 0xffff);
    }
}

/// Loads the x87's state.
pub(super) fn restore_x87(x87: &mut X87, wide: bool, area: &[u8]) {
    // Bit 6 reads as one, and bits 7 and 13 to 15 as zero, whatever is loaded.
    let fcw = u16::from_le_bytes(get(area, at::FCW)) & 0x1f3f | 0x40;
    let fsw = u16::from_le_bytes(get(area, at::FSW));
    // ES and B say whether an exception is pending: the processor works them out anew. SDM 1,
    // 8.1.3.
    let pending = fsw & !fcw & 0x3f != 0;
    x87.fcw = fcw;
    x87.fsw = fsw & !0x8080 | if pending { 0x8080 } else { 0 };
    x87.ftw = area[at::FTW];
    x87.fop = u16::from_le_bytes(get(area, at::FOP)) & 0x7ff;
    let pointer = if wide { u64::MAX } else { 0xffff_ffff };
    x87.fip = get_u64(area, at::FIP) & pointer;
    x87.fdp = get_u64(area, at::FDP) & pointer;
    for (n, st) in x87.st.iter_mut().enumerate() {
        let offset = at::ST + 16 * n;
        *st = [get_u64(area, offset), get_u64(area, offset + 8) & 0xffff];
    }
}

/// The x87 as FNINIT leaves it, with empty registers and no last instruction; MXCSR is not the
/// x87's.
pub(super) fn initial_x87(x87: &X87) -> X87 {
    X87 {
        mxcsr: x87.mxcsr,
        mxcsr_mask: x87.mxcsr_mask,
        ..X87::default()
    }
}

/// Stores MXCSR and the mask of its bits.
pub(super) fn save_mxcsr(x87: &X87, area: &mut [u8]) {
    put(area, at::MXCSR, x87.mxcsr.to_le_bytes());
    put(area, at::MXCSR_MASK, MXCSR_MASK.to_le_bytes());
}

/// MXCSR of an area.
pub(super) fn checked_mxcsr(area: &[u8]) -> Result<u32, Exception> {
    let mxcsr = get_u32(area, at::MXCSR);
    if mxcsr & !MXCSR_MASK != 0 {
        return Err(Exception::general_protection(0));
    }
    Ok(mxcsr)
}

/// Where the XMM registers lie.
pub(super) const XMM_OFFSET: usize = at::XMM;

/// FXSAVE; with `wide` FXSAVE64. The area's bytes from 416 on stay as they are. Outside 64-bit mode
/// XMM8 to XMM15 stay as they are too.
pub fn fxsave(cpu: &CpuState, wide: bool, area: &mut [u8; LEGACY_SIZE]) {
    save_x87(&cpu.vector.x87, wide, area);
    save_mxcsr(&cpu.vector.x87, area);
    if let Some(sse) = part(SSE, cpu.code64()) {
        super::save_part(&cpu.vector.zmm, &sse, &mut area[XMM_OFFSET..]);
    }
}

/// FXRSTOR; with `wide` FXRSTOR64. Outside 64-bit mode XMM8 to XMM15 are not restored.
///
/// # Errors
/// #GP(0) for reserved bits in MXCSR; then nothing has changed.
pub fn fxrstor(cpu: &mut CpuState, wide: bool, area: &[u8; LEGACY_SIZE]) -> Result<(), Exception> {
    let mxcsr = checked_mxcsr(area)?;
    let code64 = cpu.code64();
    restore_x87(&mut cpu.vector.x87, wide, area);
    cpu.vector.x87.mxcsr = mxcsr;
    if let Some(sse) = part(SSE, code64) {
        super::restore_part(&mut cpu.vector.zmm, &sse, Some(&area[XMM_OFFSET..]));
    }
    Ok(())
}
