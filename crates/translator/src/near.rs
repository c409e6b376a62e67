//! Which memory accesses stay near to where they were the last time.
//!
//! Such an access first looks at a near copy of a TLB entry, whose place is a constant: two instructions
//! less than a look into the TLB, and above all a chain of dependent ones that is shorter by half. One
//! that is elsewhere looks into the TLB out of line and makes the copy one of what it finds, which costs
//! more than it saves but once in a while. Near stay
//!
//! - the stack, for all code;
//! - in a block that is a loop, addresses that take small steps or none, and small tables.

use crate::block::{Guest, Kind};
use crate::groups::{changes, pops, pushes};
use crate::registers::{self, RSP_NUMBER};
use belljar_interpreter::tlb::NEAR;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// The most bytes that an address may move in one turn of a loop.
const STEP: i64 = 256;

/// The number of a near copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Near(u8);

impl Near {
    /// The stack's.
    const STACK: Self = Self(0);

    /// The number.
    pub const fn copy(self) -> usize {
        self.0 as usize
    }
}

/// Deals out the near copies of loops in turn, so that those of one loop are different ones.
#[derive(Debug, Default)]
pub struct Dealer(u8);

impl Dealer {
    fn next(&mut self) -> Near {
        self.0 = self.0 % (NEAR as u8 - 1) + 1;
        Near(self.0)
    }
}

/// What becomes of a register in one turn of a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// So much is added to it, in sum.
    Step(i64),
    /// It is loaded with a byte.
    Byte,
    /// Anything else.
    Other,
}

/// Finds the accesses of a block that stay near.
pub fn find(guests: &mut [Guest], dealer: &mut Dealer) {
    let turn = is_loop(guests).then(|| turn(guests));
    for guest in guests {
        let code = guest.ins.code();
        guest.near = match guest.kind {
            Kind::Special | Kind::Transfer if pushes(code) || pops(code) => Some(Near::STACK),
            Kind::Innocuous(_) if is_on_stack(&guest.ins) => Some(Near::STACK),
            Kind::Innocuous(_) => turn
                .filter(|turn| stays(&guest.ins, turn))
                .map(|_| dealer.next()),
            _ => None,
        };
    }
}

/// Whether the block jumps to its own start.
fn is_loop(guests: &[Guest]) -> bool {
    let Some(first) = guests.first() else {
        return false;
    };
    guests.iter().any(|guest| {
        matches!(guest.kind, Kind::Branch | Kind::Transfer)
            && matches!(
                guest.ins.op0_kind(),
                OpKind::NearBranch32 | OpKind::NearBranch64
            )
            && guest.ins.near_branch_target() == first.ins.ip()
    })
}

/// What the instructions make of each register.
fn turn(guests: &[Guest]) -> [Change; 16] {
    let mut turn = [Change::Step(0); 16];
    for guest in guests {
        let byte = guest.ins.mnemonic() == Mnemonic::Movzx && is_byte(&guest.ins);
        changes(guest, |register, added| {
            let change = &mut turn[usize::from(register & 15)];
            *change = match (*change, added) {
                (Change::Step(sum), Some(amount)) => Change::Step(sum.saturating_add(amount)),
                (Change::Step(0) | Change::Byte, None) if byte => Change::Byte,
                _ => Change::Other,
            };
        });
    }
    turn
}

/// Whether the second operand is a byte.
fn is_byte(ins: &Instruction) -> bool {
    match ins.op1_kind() {
        OpKind::Register => ins.op1_register().is_gpr8(),
        OpKind::Memory => ins.memory_size().size() == 1,
        _ => false,
    }
}

fn has_operand(ins: &Instruction) -> bool {
    let based = matches!(ins.memory_segment(), Register::FS | Register::GS);
    crate::access::memory_operand(ins).is_some() && !based && ins.vsib().is_none()
}

fn is_on_stack(ins: &Instruction) -> bool {
    has_operand(ins)
        && ins.memory_base().is_gpr()
        && registers::number(ins.memory_base()) == RSP_NUMBER
        && ins.memory_index() == Register::None
}

/// Whether the address of the memory operand stays near from turn to turn.
fn stays(ins: &Instruction, turn: &[Change; 16]) -> bool {
    if !has_operand(ins) {
        return false;
    }
    let (base, index) = (ins.memory_base(), ins.memory_index());
    let change = |register: Register| match register {
        Register::None | Register::RIP | Register::EIP => Change::Step(0),
        _ => turn[usize::from(registers::number(register) & 15)],
    };
    let scale = i64::from(ins.memory_index_scale());
    match (change(base), change(index)) {
        (Change::Step(base), Change::Step(index)) => {
            base.saturating_add(index.saturating_mul(scale)).abs() <= STEP
        }
        (Change::Step(base), Change::Byte) => base.abs() <= STEP,
        _ => false,
    }
}
