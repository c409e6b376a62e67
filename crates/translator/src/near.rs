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
use crate::env::Env;
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

    /// How far it lies behind the stack's, of set `set`.
    pub const fn distance(self, set: usize) -> usize {
        Env::near(set, self.copy(), false) - Env::near(set, 0, false)
    }
}

/// Deals out the near copies of loops in turn, so that those of one loop are different ones.
#[derive(Debug, Default)]
pub struct Dealer(u8);

impl Dealer {
    fn next(&mut self) -> Near {
        self.0 = self.0 % NEAR as u8 + 1;
        Near(self.0)
    }
}

/// Finds the accesses of a block that stay near.
pub fn find(guests: &mut [Guest], dealer: &mut Dealer) {
    let steps = is_loop(guests).then(|| steps(guests));
    // Registers that hold a byte.
    let mut bytes = 0u16;
    for guest in guests {
        let code = guest.ins.code();
        guest.near = match guest.kind {
            Kind::Special | Kind::Transfer if pushes(code) || pops(code) => Some(Near::STACK),
            Kind::Innocuous(_) if is_on_stack(&guest.ins) => Some(Near::STACK),
            Kind::Innocuous(_) => steps
                .filter(|steps| stays(&guest.ins, steps, bytes))
                .map(|_| dealer.next()),
            _ => None,
        };
        if steps.is_none() {
            continue;
        }
        changes(guest, |register, _| bytes &= !bit(register));
        if guest.ins.mnemonic() == Mnemonic::Movzx && is_byte(&guest.ins) {
            bytes |= bit(registers::number(guest.ins.op0_register()));
        }
    }
}

const fn bit(register: u8) -> u16 {
    1 << (register & 15)
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

/// What one turn of a loop adds to each register, if it does no more.
fn steps(guests: &[Guest]) -> [Option<i64>; 16] {
    let mut steps = [Some(0i64); 16];
    for guest in guests {
        changes(guest, |register, added| {
            let step = &mut steps[usize::from(register & 15)];
            *step = step
                .zip(added)
                .map(|(sum, added)| sum.saturating_add(added));
        });
    }
    steps
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

/// Whether the address of the memory operand stays near from turn to turn. `bytes` are registers that
/// hold a byte.
fn stays(ins: &Instruction, steps: &[Option<i64>; 16], bytes: u16) -> bool {
    if !has_operand(ins) {
        return false;
    }
    let step = |register: Register| match register {
        Register::None | Register::RIP | Register::EIP => Some(0),
        _ => steps[usize::from(registers::number(register) & 15)],
    };
    let (base, index) = (ins.memory_base(), ins.memory_index());
    let small = index != Register::None && bytes & bit(registers::number(index)) != 0;
    let index = if small { Some(0) } else { step(index) };
    let scale = i64::from(ins.memory_index_scale());
    let sum = step(base).zip(index);
    sum.is_some_and(|(base, index)| {
        base.saturating_add(index.saturating_mul(scale))
            .saturating_abs()
            <= STEP
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::Effect;
    use belljar_passthrough::Unit;
    use iced_x86::{Decoder, DecoderOptions};

    /// The near copies of a block of 64-bit code at 1000h.
    fn near(code: &[u8]) -> Vec<Option<Near>> {
        let mut decoder = Decoder::with_ip(64, code, 0x1000, DecoderOptions::NONE);
        let mut guests: Vec<Guest> = decoder
            .iter()
            .map(|ins| Guest {
                ins,
                offset: (ins.ip() - 0x1000) as usize,
                kind: match ins.mnemonic() {
                    Mnemonic::Jne => Kind::Branch,
                    Mnemonic::Push => Kind::Special,
                    _ => Kind::Innocuous(Unit::Integer),
                },
                effect: Effect::default(),
                live: 0,
                member: None,
                near: None,
            })
            .collect();
        find(&mut guests, &mut Dealer::default());
        guests.iter().map(|guest| guest.near).collect()
    }

    #[test]
    fn the_stack_is_near() {
        // push rbx; mov rax, [rsp+8]; mov rax, [rbx]
        let found = near(&[0x53, 0x48, 0x8b, 0x44, 0x24, 8, 0x48, 0x8b, 0x03]);
        assert_eq!(found, [Some(Near::STACK), Some(Near::STACK), None]);
    }

    #[test]
    fn arrays_and_small_tables_of_a_loop_are_near() {
        let code = [
            0x0f, 0xb6, 0x10, // movzx edx, byte [rax]
            0x33, 0x5c, 0x95, 0, // xor ebx, [rbp+rdx*4]
            0x03, 0x1c, 0x95, 0, 0, 0, 0, // add ebx, [rdx*4]
            0x8b, 0x0b, // mov ecx, [rbx]
            0x48, 0x83, 0xc0, 1, // add rax, 1
            0x75, 0xea, // jne 1000h
        ];
        let found = near(&code);
        let kept: Vec<bool> = found.iter().map(Option::is_some).collect();
        assert_eq!(kept, [true, true, true, false, false, false]);
        assert!(found[0] != found[1] && found[1] != found[2]);
        // Without the jump it is no loop.
        assert!(near(&code[..20]).iter().all(Option::is_none));
    }

    #[test]
    fn large_steps_lead_away() {
        // mov ecx, [rax]; add rax, 1000; jne 1000h
        let code = [0x8b, 0x08, 0x48, 0x05, 0xe8, 3, 0, 0, 0x75, 0xf6];
        assert!(near(&code).iter().all(Option::is_none));
    }
}
