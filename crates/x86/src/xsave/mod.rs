//! FXSAVE, XSAVE and their kin. SDM 1, chapter 13.
//!
//! The functions work on byte slices; an engine copies the area from and to guest memory. An engine
//! saves by reading [`save_size`] bytes of the area, calling [`save`], and writing them back (the
//! bytes of components that are not saved stay as they are); it restores by reading the header,
//! asking [`restore_size`], reading that many bytes, and calling [`restore`]. #UD without
//! CR4.OSXSAVE, #NM with CR0.TS, privilege and alignment (64 bytes; 16 for FXSAVE, both
//! #GP(0)) are the caller's business.

mod layout;
mod legacy;
#[cfg(test)]
mod tests;

pub use layout::{Component, Layout};
pub use legacy::{fxrstor, fxsave};

use crate::bits::xstate;
use crate::cpuid::{CpuidModel, Feature};
use crate::{CpuState, Exception};
use layout::{Part, part};
use legacy::{get_u64, put_u64};

/// Size of the legacy region, which is all that FXSAVE knows.
pub const LEGACY_SIZE: usize = 512;
/// Size of the header that follows it.
pub const HEADER_SIZE: usize = 64;
/// Where the first extended component lies.
pub const EXTENDED_OFFSET: usize = LEGACY_SIZE + HEADER_SIZE;
/// Bits of MXCSR that may be set: without AMD's misaligned-access bit.
pub const MXCSR_MASK: u32 = 0xffff;
/// MXCSR after reset.
const MXCSR_INITIAL: u32 = 0x1f80;
/// Where the header's fields lie in an area.
const XSTATE_BV: usize = LEGACY_SIZE;
const XCOMP_BV: usize = LEGACY_SIZE + 8;
/// Bit of XCOMP_BV: the format is compacted.
const COMPACTED: u64 = 1 << 63;

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

impl Save {
    const fn compacted(self) -> bool {
        matches!(self, Self::Xsavec | Self::Xsaves)
    }

    /// The components that are asked for and enabled: RFBM. SDM 1, 13.7.
    const fn requested(self, cpu: &CpuState, edx_eax: u64) -> u64 {
        let supervisor = if matches!(self, Self::Xsaves) {
            cpu.xss
        } else {
            0
        };
        edx_eax & (cpu.xcr0 | supervisor)
    }
}

/// Which instruction restores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restore {
    /// XRSTOR, of either format.
    Xrstor,
    /// XRSTORS: the compacted format, with supervisor components.
    Xrstors,
}

impl Restore {
    const fn enabled(self, cpu: &CpuState) -> u64 {
        match self {
            Self::Xrstor => cpu.xcr0,
            Self::Xrstors => cpu.xcr0 | cpu.xss,
        }
    }
}

/// Those components of the state that are not in their initial configuration: XINUSE. SDM 1, 13.6.
/// MXCSR does not count as SSE's.
pub fn in_use(cpu: &CpuState) -> u64 {
    let vector = &cpu.vector;
    let used = |number: u32| match part(number, true) {
        Some(part) => vector.zmm[part.registers]
            .iter()
            .any(|register| register[part.words.clone()].iter().any(|&word| word != 0)),
        None => false,
    };
    let mut mask = 0;
    if vector.x87 != legacy::initial_x87(&vector.x87) {
        mask |= xstate::X87;
    }
    if vector.k != [0; 8] {
        mask |= xstate::OPMASK;
    }
    for component in [
        xstate::SSE,
        xstate::AVX,
        xstate::ZMM_HI256,
        xstate::HI16_ZMM,
    ] {
        if used(component.trailing_zeros()) {
            mask |= component;
        }
    }
    mask
}

/// [`in_use`] with SSE if MXCSR differs from its initial value: what XGETBV tells and the compacted
/// formats save.
pub fn in_use_with_mxcsr(cpu: &CpuState) -> u64 {
    let mask = in_use(cpu);
    if cpu.vector.x87.mxcsr == MXCSR_INITIAL {
        mask
    } else {
        mask | xstate::SSE
    }
}

/// Size of the area that holds the components of `mask`, in the standard or the compacted format,
/// as CPUID leaf 0xD tells it.
pub fn area_size(model: &CpuidModel, mask: u64, compacted: bool) -> usize {
    model.layout().area_size(mask, compacted)
}

/// How many bytes [`save`] needs for the components asked for in `edx_eax`.
pub fn save_size(cpu: &CpuState, model: &CpuidModel, form: Save, edx_eax: u64) -> usize {
    area_size(model, form.requested(cpu, edx_eax), form.compacted())
}

/// Saves the components asked for in `edx_eax` into `area`, which is [`save_size`] bytes read from
/// memory. `wide` is whether the instruction has REX.W (64-bit pointers of the x87).
///
/// # Panics
/// If `area` is shorter than [`save_size`].
pub fn save(
    cpu: &CpuState,
    model: &CpuidModel,
    form: Save,
    edx_eax: u64,
    wide: bool,
    area: &mut [u8],
) {
    let requested = form.requested(cpu, edx_eax);
    let used = if form.compacted() {
        in_use_with_mxcsr(cpu)
    } else {
        in_use(cpu)
    } & requested;
    // SDM 1, 13.7 to 13.11: XSAVE alone writes components that are in their initial state.
    let saved = if form == Save::Xsave { requested } else { used };
    // In the standard format MXCSR goes with SSE and AVX, used or not.
    let mxcsr = if form.compacted() {
        saved & xstate::SSE
    } else {
        requested & (xstate::SSE | xstate::AVX)
    };
    if saved & xstate::X87 != 0 {
        legacy::save_x87(&cpu.vector.x87, wide, area);
    }
    if mxcsr != 0 {
        legacy::save_mxcsr(&cpu.vector.x87, area);
    }
    for (number, offset) in placed(model, saved, form.compacted().then_some(requested)) {
        if let Some(part) = part(number, cpu.code64()) {
            save_part(&cpu.vector.zmm, &part, &mut area[offset..]);
        } else {
            for (n, &k) in cpu.vector.k.iter().enumerate() {
                put_u64(area, offset + 8 * n, k);
            }
        }
    }
    if form.compacted() {
        put_u64(area, XSTATE_BV, used);
        put_u64(area, XCOMP_BV, requested | COMPACTED);
    } else {
        let others = get_u64(area, XSTATE_BV) & !requested;
        put_u64(area, XSTATE_BV, others | used);
    }
}

/// SSE and the extended components of `mask`, with their places.
fn placed(
    model: &CpuidModel,
    mask: u64,
    format: Option<u64>,
) -> impl Iterator<Item = (u32, usize)> {
    let sse = (mask & xstate::SSE != 0).then_some((1, legacy::XMM_OFFSET));
    sse.into_iter().chain(model.layout().places(mask, format))
}

/// Stores `part` of the registers at the beginning of `area`.
fn save_part(zmm: &[[u64; 8]; 32], part: &Part, area: &mut [u8]) {
    let words = zmm[part.registers.clone()]
        .iter()
        .flat_map(|register| &register[part.words.clone()]);
    for (bytes, word) in area.chunks_exact_mut(8).zip(words) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

/// Loads `part` of the registers from the beginning of `area`, or clears it if there is none.
fn restore_part(zmm: &mut [[u64; 8]; 32], part: &Part, area: Option<&[u8]>) {
    let words = zmm[part.registers.clone()]
        .iter_mut()
        .flat_map(|register| &mut register[part.words.clone()]);
    match area {
        Some(area) => {
            for (n, word) in words.enumerate() {
                *word = get_u64(area, 8 * n);
            }
        }
        None => words.for_each(|word| *word = 0),
    }
}

/// What a checked header says.
struct Header {
    /// The components that the area holds; the others are in their initial state.
    present: u64,
    /// The components that have a place in the compacted format, or `None` for the standard one.
    format: Option<u64>,
}

/// Checks a header. SDM 1, 13.8 and 13.12.
fn check_header(
    cpu: &CpuState,
    model: &CpuidModel,
    form: Restore,
    header: &[u8; HEADER_SIZE],
) -> Result<Header, Exception> {
    let (present, layout) = (get_u64(header, 0), get_u64(header, 8));
    let zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
    let enabled = form.enabled(cpu);
    if layout & COMPACTED != 0 && model.has(Feature::Xsavec) {
        let components = layout & !COMPACTED;
        let sound = components & !enabled == 0 && present & !components == 0;
        if sound && zero(&header[16..]) {
            return Ok(Header {
                present,
                format: Some(components),
            });
        }
    } else {
        let sound = layout == 0 && present & !enabled == 0 && form == Restore::Xrstor;
        if sound && zero(&header[16..24]) {
            return Ok(Header {
                present,
                format: None,
            });
        }
    }
    Err(Exception::general_protection(0))
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
    let Header { present, format } = check_header(cpu, model, form, header)?;
    let loaded = present & edx_eax & form.enabled(cpu);
    let layout = model.layout();
    Ok(layout
        .places(loaded, format)
        .map(|(number, offset)| offset + layout.component(number).size as usize)
        .max()
        .unwrap_or(EXTENDED_OFFSET))
}

/// Restores the components asked for in `edx_eax` from `area`, which is [`restore_size`] bytes of
/// memory. `wide` is whether the instruction has REX.W (64-bit pointers of the x87).
///
/// # Errors
/// #GP(0) for reserved bits in the header or MXCSR; then nothing has changed.
///
/// # Panics
/// If `area` is shorter than [`restore_size`].
pub fn restore(
    cpu: &mut CpuState,
    model: &CpuidModel,
    form: Restore,
    edx_eax: u64,
    wide: bool,
    area: &[u8],
) -> Result<(), Exception> {
    let mut header = [0; HEADER_SIZE];
    header.copy_from_slice(&area[LEGACY_SIZE..EXTENDED_OFFSET]);
    let Header { present, format } = check_header(cpu, model, form, &header)?;
    let requested = edx_eax & form.enabled(cpu);
    let mxcsr = new_mxcsr(requested, present, format.is_some(), area)?;
    let code64 = cpu.code64();
    let vector = &mut cpu.vector;
    if let Some(mxcsr) = mxcsr {
        vector.x87.mxcsr = mxcsr;
    }
    if requested & present & xstate::X87 != 0 {
        legacy::restore_x87(&mut vector.x87, wide, area);
    } else if requested & xstate::X87 != 0 {
        vector.x87 = legacy::initial_x87(&vector.x87);
    }
    let absent = requested & !present;
    for number in (1..8).filter(|number| absent >> number & 1 != 0) {
        match part(number, code64) {
            Some(part) => restore_part(&mut vector.zmm, &part, None),
            None => vector.k = [0; 8],
        }
    }
    for (number, offset) in placed(model, requested & present, format) {
        match part(number, code64) {
            Some(part) => restore_part(&mut vector.zmm, &part, Some(&area[offset..])),
            None => vector.k = std::array::from_fn(|n| get_u64(area, offset + 8 * n)),
        }
    }
    Ok(())
}

/// What becomes of MXCSR, if anything. SDM 1, 13.8.1 and 13.8.2.
fn new_mxcsr(
    requested: u64,
    present: u64,
    compacted: bool,
    area: &[u8],
) -> Result<Option<u32>, Exception> {
    if !compacted {
        // With SSE and AVX alike, present or not.
        return if requested & (xstate::SSE | xstate::AVX) == 0 {
            Ok(None)
        } else {
            legacy::checked_mxcsr(area).map(Some)
        };
    }
    if requested & xstate::SSE == 0 {
        Ok(None)
    } else if present & xstate::SSE == 0 {
        Ok(Some(MXCSR_INITIAL))
    } else {
        legacy::checked_mxcsr(area).map(Some)
    }
}
