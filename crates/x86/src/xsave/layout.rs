//! Where the components of the extended state lie, and which registers they hold. SDM 1, 13.4 and
//! 13.5.

use crate::bits::xstate;
use std::ops::Range;

/// Where the extended region begins.
const EXTENDED: u32 = super::EXTENDED_OFFSET as u32;

/// One extended component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Component {
    /// Its place in the standard format.
    pub offset: u32,
    /// Its size in bytes.
    pub size: u32,
    /// Whether it begins at a multiple of 64 bytes in the compacted format.
    pub aligned: bool,
}

/// The extended components by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    components: [Component; Self::COUNT],
}

impl Default for Layout {
    /// The layout of Intel's processors.
    fn default() -> Self {
        let mut components = [Component::default(); Self::COUNT];
        for (number, offset, aligned) in [
            (2, 0x240, false),
            (5, 0x440, false),
            (6, 0x480, false),
            (7, 0x680, false),
        ] {
            components[number] = Component {
                offset,
                size: Self::size(number),
                aligned,
            };
        }
        Self { components }
    }
}

impl Layout {
    /// Components that a layout can hold: the last is Hi16_ZMM.
    const COUNT: usize = 8;

    /// Size of component `number`, which is the same on all processors.
    const fn size(number: usize) -> u32 {
        match number {
            2 => 16 * 16,
            5 => 8 * 8,
            6 => 16 * 32,
            7 => 16 * 64,
            _ => 0,
        }
    }

    /// The layout of the processor whose leaf 0xD `leaf` gives by subleaf. Makers place AVX-512's
    /// components differently, and programs save on the host and in guests alike, so the guest's
    /// layout is the host's.
    pub(crate) fn from_cpuid(leaf: impl Fn(u32) -> [u32; 4]) -> Self {
        let mut layout = Self::default();
        for (number, component) in layout.components.iter_mut().enumerate() {
            let [size, offset, flags, _] = leaf(number as u32);
            if size != 0 && size == Self::size(number) && offset >= EXTENDED {
                component.offset = offset;
                component.aligned = flags & 2 != 0;
            }
        }
        layout
    }

    /// Component `number`; of size 0 if there is none.
    pub fn component(&self, number: u32) -> Component {
        self.components
            .get(number as usize)
            .copied()
            .unwrap_or_default()
    }

    /// The components of `mask` and their places, in the format that has those of `format`
    /// compacted or, if that is `None`, in the standard format.
    pub(super) fn places(
        &self,
        mask: u64,
        format: Option<u64>,
    ) -> impl Iterator<Item = (u32, usize)> {
        let layout = *self;
        let mut next = EXTENDED;
        (2..Self::COUNT as u32).filter_map(move |number| {
            let component = layout.component(number);
            let offset = match format {
                None => component.offset,
                Some(compacted) if compacted >> number & 1 != 0 => {
                    if component.aligned {
                        next = next.next_multiple_of(64);
                    }
                    let offset = next;
                    next += component.size;
                    offset
                }
                Some(_) => return None,
            };
            (mask >> number & 1 != 0 && component.size != 0).then_some((number, offset as usize))
        })
    }

    /// Size of an area with the components of `mask`.
    pub(super) fn area_size(&self, mask: u64, compacted: bool) -> usize {
        self.places(mask, compacted.then_some(mask))
            .map(|(number, offset)| offset + self.component(number).size as usize)
            .max()
            .unwrap_or(super::EXTENDED_OFFSET)
    }
}

/// The part of the ZMM registers that a component holds.
pub(super) struct Part {
    /// Registers.
    pub registers: Range<usize>,
    /// Quadwords of each.
    pub words: Range<usize>,
}

/// The part of component `number` that can be reached in 64-bit mode or out of it; `None` if the
/// component is not one of ZMM parts. SDM 1, 13.4: XMM8 to XMM15 and what extends them are left
/// alone outside 64-bit mode, and so are ZMM16 to ZMM31.
pub(super) const fn part(number: u32, code64: bool) -> Option<Part> {
    let low = if code64 { 0..16 } else { 0..8 };
    let (registers, words) = match 1_u64 << number {
        xstate::SSE => (low, 0..2),
        xstate::AVX => (low, 2..4),
        xstate::ZMM_HI256 => (low, 4..8),
        xstate::HI16_ZMM if code64 => (16..32, 0..8),
        xstate::HI16_ZMM => (16..16, 0..8),
        _ => return None,
    };
    Some(Part { registers, words })
}
