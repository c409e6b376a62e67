//! AAA, AAS, AAD, AAM, DAA, DAS. Flags that the manual leaves undefined are set by the result of
//! the last addition.

use crate::op::{Flow, Op, Step};
use crate::processor::Core;
use belljar_x86::Exception;
use belljar_x86::bits::rflags;

const AL: u8 = 0;
const AH: u8 = 16;
const AX: u8 = 0;

/// Sets SF, ZF and PF by AL, and AF and CF.
fn set_flags(core: &mut Core, auxiliary: bool, carry: bool) {
    core.flags.set_logic(core.reg::<u8>(AL));
    let bits = core.flags.bits();
    let auxiliary = if auxiliary { rflags::AF } else { 0 };
    core.flags
        .set_bits(bits | auxiliary | (u64::from(carry) * rflags::CF));
}

/// AAA (`ADD`) and AAS.
pub fn ascii_adjust<const ADD: bool>(core: &mut Core, _op: &Op) -> Step {
    let adjust = (core.reg::<u8>(AL) & 15) > 9 || core.flags.auxiliary();
    if adjust {
        let ax = core.reg::<u16>(AX);
        let ax = if ADD {
            ax.wrapping_add(0x106)
        } else {
            ax.wrapping_sub(0x106)
        };
        core.set_reg(AX, ax);
    }
    set_flags(core, adjust, adjust);
    let al = core.reg::<u8>(AL) & 15;
    core.set_reg(AL, al);
    Ok(Flow::Next)
}

/// DAA (`ADD`) and DAS.
pub fn decimal_adjust<const ADD: bool>(core: &mut Core, _op: &Op) -> Step {
    let (al, carry) = (core.reg::<u8>(AL), core.flags.carry());
    let low = al & 15 > 9 || core.flags.auxiliary();
    let high = al > 0x99 || carry;
    let by = u8::from(low) * 6 + u8::from(high) * 0x60;
    // DAS also carries when the low digit's correction borrows. SDM 2, DAS.
    let borrow = !ADD && low && al < 6;
    let result = if ADD {
        al.wrapping_add(by)
    } else {
        al.wrapping_sub(by)
    };
    core.set_reg(AL, result);
    set_flags(core, low, high || borrow);
    Ok(Flow::Next)
}

/// AAM by the immediate.
pub fn aam(core: &mut Core, op: &Op) -> Step {
    let (al, base) = (core.reg::<u8>(AL), op.imm as u8);
    let (Some(quotient), Some(remainder)) = (al.checked_div(base), al.checked_rem(base)) else {
        return Err(core.raise(Exception::divide_error()));
    };
    core.set_reg(AH, quotient);
    core.set_reg(AL, remainder);
    set_flags(core, false, false);
    Ok(Flow::Next)
}

/// AAD by the immediate.
pub fn aad(core: &mut Core, op: &Op) -> Step {
    let high = core.reg::<u8>(AH).wrapping_mul(op.imm as u8);
    let result = core.reg::<u8>(AL).wrapping_add(high);
    core.set_reg(AX, u16::from(result));
    set_flags(core, false, false);
    Ok(Flow::Next)
}
