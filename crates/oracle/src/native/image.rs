//! The XSAVE image in the standard format, as XRSTOR reads it and as a signal frame holds it. SDM 1, 13.4.

use super::HostError;
use crate::features::host_cpuid;
use belljar_x86::VectorState;
use belljar_x86::bits::xstate;
use std::ops::Range;

/// Room for an image: x87, SSE, AVX and AVX-512 and what the standard format puts between them.
pub const IMAGE_LEN: usize = 2816;

/// An XSAVE image.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Image(pub [u8; IMAGE_LEN]);

/// Offset of XSTATE_BV, behind the legacy region.
const XSTATE_BV: Range<usize> = 512..520;
const MXCSR: Range<usize> = 24..28;
const ST: usize = 32;
const XMM: usize = 160;

/// Where the host puts the components.
#[derive(Clone, Copy, Debug)]
pub struct ImageLayout {
    features: u64,
    ymm: usize,
    opmask: usize,
    zmm_high: usize,
    zmm_upper: usize,
}

impl ImageLayout {
    /// Asks the host's CPUID.
    ///
    /// # Errors
    /// [`HostError::Lacks`] if the host has no XSAVE or AVX, or needs more room than [`IMAGE_LEN`].
    pub fn of_host() -> Result<Self, HostError> {
        const OSXSAVE: u32 = 1 << 27;
        if host_cpuid(1, 0)[2] & OSXSAVE == 0 {
            return Err(HostError::Lacks("XSAVE"));
        }
        // SAFETY: OSXSAVE says that XGETBV is available.
        let enabled = unsafe { xgetbv() };
        let mut features = enabled & (xstate::X87 | xstate::SSE | xstate::AVX | xstate::AVX512);
        if features & xstate::AVX512 != xstate::AVX512 {
            features &= !xstate::AVX512;
        }
        if features & xstate::AVX == 0 {
            return Err(HostError::Lacks("AVX"));
        }
        let place = |component: u32| {
            if features >> component & 1 == 0 {
                return Ok(0);
            }
            let [size, offset, ..] = host_cpuid(0xd, component).map(|word| word as usize);
            match offset.checked_add(size) {
                Some(end) if end <= IMAGE_LEN => Ok(offset),
                _ => Err(HostError::Lacks("the usual layout of the XSAVE area")),
            }
        };
        Ok(Self {
            features,
            ymm: place(2)?,
            opmask: place(5)?,
            zmm_high: place(6)?,
            zmm_upper: place(7)?,
        })
    }

    /// The components that images hold.
    pub fn features(&self) -> u64 {
        self.features
    }

    fn has(&self, component: u64) -> bool {
        self.features & component == component
    }

    /// Writes `state` as an image.
    pub fn write(&self, state: &VectorState, image: &mut Image) {
        let image = &mut image.0;
        image.fill(0);
        let x87 = &state.x87;
        image[0..2].copy_from_slice(&x87.fcw.to_le_bytes());
        image[2..4].copy_from_slice(&x87.fsw.to_le_bytes());
        image[4] = x87.ftw;
        image[6..8].copy_from_slice(&x87.fop.to_le_bytes());
        image[8..16].copy_from_slice(&x87.fip.to_le_bytes());
        image[16..24].copy_from_slice(&x87.fdp.to_le_bytes());
        image[MXCSR].copy_from_slice(&x87.mxcsr.to_le_bytes());
        for (n, st) in x87.st.iter().enumerate() {
            put(image, ST + 16 * n, st);
        }
        image[XSTATE_BV].copy_from_slice(&self.features.to_le_bytes());
        for (n, zmm) in state.zmm.iter().enumerate() {
            if n < 16 {
                put(image, XMM + 16 * n, &zmm[..2]);
                put(image, self.ymm + 16 * n, &zmm[2..4]);
            }
            if self.has(xstate::AVX512) {
                match n.checked_sub(16) {
                    None => put(image, self.zmm_high + 32 * n, &zmm[4..]),
                    Some(upper) => put(image, self.zmm_upper + 64 * upper, zmm),
                }
            }
        }
        if self.has(xstate::AVX512) {
            put(image, self.opmask, &state.k);
        }
    }

    /// Reads an image. Components that it calls initial have their initial values (SDM 1, 13.6).
    pub fn read(&self, image: &Image) -> VectorState {
        let image = &image.0;
        let in_use = word(image, XSTATE_BV.start);
        let mut state = VectorState::default();
        if in_use & xstate::X87 != 0 {
            read_x87(image, &mut state);
        }
        state.x87.mxcsr = word(image, MXCSR.start) as u32;
        for (n, zmm) in state.zmm.iter_mut().enumerate() {
            if n < 16 && in_use & xstate::SSE != 0 {
                get(image, XMM + 16 * n, &mut zmm[..2]);
            }
            if n < 16 && in_use & xstate::AVX != 0 {
                get(image, self.ymm + 16 * n, &mut zmm[2..4]);
            }
            if n < 16 && in_use & xstate::ZMM_HI256 != 0 {
                get(image, self.zmm_high + 32 * n, &mut zmm[4..]);
            }
            if n >= 16 && in_use & xstate::HI16_ZMM != 0 {
                get(image, self.zmm_upper + 64 * (n - 16), zmm);
            }
        }
        if in_use & xstate::OPMASK != 0 {
            get(image, self.opmask, &mut state.k);
        }
        state
    }
}

fn read_x87(image: &[u8; IMAGE_LEN], state: &mut VectorState) {
    let x87 = &mut state.x87;
    let first = word(image, 0);
    x87.fcw = first as u16;
    x87.fsw = (first >> 16) as u16;
    x87.ftw = (first >> 32) as u8;
    x87.fop = (first >> 48) as u16;
    x87.fip = word(image, 8);
    x87.fdp = word(image, 16);
    for (n, st) in x87.st.iter_mut().enumerate() {
        get(image, ST + 16 * n, st);
        // The 48 bits above a register are reserved.
        st[1] &= 0xffff;
    }
}

fn word(image: &[u8; IMAGE_LEN], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&image[at..at + 8]);
    u64::from_le_bytes(bytes)
}

fn get(image: &[u8; IMAGE_LEN], at: usize, words: &mut [u64]) {
    for (n, to) in words.iter_mut().enumerate() {
        *to = word(image, at + 8 * n);
    }
}

fn put(image: &mut [u8; IMAGE_LEN], at: usize, words: &[u64]) {
    for (n, from) in words.iter().enumerate() {
        image[at + 8 * n..at + 8 * n + 8].copy_from_slice(&from.to_le_bytes());
    }
}

/// XCR0.
///
/// # Safety
/// CPUID must show OSXSAVE.
#[target_feature(enable = "xsave")]
unsafe fn xgetbv() -> u64 {
    // SAFETY: the caller checked OSXSAVE; XCR0 always exists then.
    unsafe { std::arch::x86_64::_xgetbv(0) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;
    use crate::state::vector;

    #[test]
    fn what_is_written_is_read_back() {
        let layout = ImageLayout::of_host().unwrap();
        let mut image = Image([0; IMAGE_LEN]);
        let state = vector(&mut Random::new(5, 5), layout.features());
        layout.write(&state, &mut image);
        assert!(layout.read(&image) == state);
    }

    #[test]
    fn a_component_not_in_use_reads_as_its_initial_value() {
        let layout = ImageLayout::of_host().unwrap();
        let mut image = Image([0; IMAGE_LEN]);
        layout.write(
            &vector(&mut Random::new(5, 5), layout.features()),
            &mut image,
        );
        image.0[XSTATE_BV].fill(0);
        let mxcsr = word(&image.0, MXCSR.start) as u32;
        let mut initial = VectorState::default();
        initial.x87.mxcsr = mxcsr;
        assert!(layout.read(&image) == initial);
    }
}
