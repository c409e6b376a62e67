//! The registers of memory types: MTRRs and PAT. SDM 3A, 11.11 and 11.12.
//!
//! Guests find what they set; the types themselves mean nothing, because all memory is the host's
//! and write-back.

use super::index as i;
use crate::bits::PHYS_BITS;
use crate::state::Msrs;

/// MTRRCAP: eight variable ranges, the fixed ones, write-combining.
const CAPABILITY: u64 = 8 | 1 << 8 | 1 << 10;
/// MTRR_DEF_TYPE: the type, the enable bit of the fixed ranges, the enable bit.
const DEF_TYPE_DEFINED: u64 = 0xff | 3 << 10;
/// The valid bit of a variable range's mask.
const VALID: u64 = 1 << 11;
/// The address bits of a variable range.
const ADDRESS: u64 = ((1 << PHYS_BITS) - 1) & !0xfff;

/// The place of a fixed range's register in [`Msrs::mtrr_fixed`].
const fn fixed(index: u32) -> Option<usize> {
    match index {
        i::MTRR_FIX_64K => Some(0),
        i::MTRR_FIX_16K_80000 => Some(1),
        i::MTRR_FIX_16K_A0000 => Some(2),
        i::MTRR_FIX_4K_FIRST..=i::MTRR_FIX_4K_LAST => {
            Some((index - i::MTRR_FIX_4K_FIRST) as usize + 3)
        }
        _ => None,
    }
}

/// Whether `kind` is a type that a range may have: UC, WC, WT, WP or WB.
const fn is_range_type(kind: u8) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6)
}

/// Whether `kind` is a type that the PAT may have: a range's, or UC-.
const fn is_pat_type(kind: u8) -> bool {
    is_range_type(kind) || kind == 7
}

pub(super) fn read(msrs: &Msrs, index: u32) -> Option<u64> {
    Some(match index {
        i::MTRR_CAP => CAPABILITY,
        i::MTRR_DEF_TYPE => msrs.mtrr_def_type,
        i::PAT => msrs.pat,
        i::MTRR_PHYS_BASE_0..=i::MTRR_PHYS_MASK_7 => {
            let n = (index - i::MTRR_PHYS_BASE_0) as usize;
            msrs.mtrr_variable[n / 2][n % 2]
        }
        _ => msrs.mtrr_fixed[fixed(index)?],
    })
}

/// `None` if there is no register of that number, else whether it takes the value.
pub(super) fn write(msrs: &mut Msrs, index: u32, value: u64) -> Option<bool> {
    let types = value.to_le_bytes();
    let (register, sound) = match index {
        i::MTRR_CAP => return Some(false),
        i::MTRR_DEF_TYPE => (
            &mut msrs.mtrr_def_type,
            value & !DEF_TYPE_DEFINED == 0 && is_range_type(types[0]),
        ),
        i::PAT => (&mut msrs.pat, types.iter().all(|&kind| is_pat_type(kind))),
        i::MTRR_PHYS_BASE_0..=i::MTRR_PHYS_MASK_7 => {
            let n = (index - i::MTRR_PHYS_BASE_0) as usize;
            let [base, mask] = &mut msrs.mtrr_variable[n / 2];
            if n.is_multiple_of(2) {
                let sound = value & !(ADDRESS | 0xff) == 0 && is_range_type(types[0]);
                (base, sound)
            } else {
                (mask, value & !(ADDRESS | VALID) == 0)
            }
        }
        _ => (
            &mut msrs.mtrr_fixed[fixed(index)?],
            types.iter().all(|&kind| is_range_type(kind)),
        ),
    };
    Some(super::set(register, value, sound))
}
