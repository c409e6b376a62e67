//! Loops whose registers are all in registers of the host.
//!
//! Three of the guest's registers live in the environment. A loop that counts in one of them would wait
//! for memory in each turn. So a block that jumps back to its own beginning borrows registers of the host
//! that hold what the loop does not ask for: at its entries the two change places, and again wherever it
//! is left. Its instructions are translated as if they named the lender.

use crate::asm::{self, RAX};
use crate::block::{Block, Guest, Kind, Layout};
use crate::env::Env;
use crate::generic::is_vector;
use crate::mode::Mode;
use crate::registers::{self, UNPINNED, named};
use crate::tables::Loc;
use crate::x87::is_x87;
use iced_x86::{Instruction, OpKind, Register};

/// Registers that may be lent, by the guest's numbers: no instruction of a loop uses them without naming
/// them. What functions keep for their callers comes first.
const LENDERS: [u8; 8] = [15, 14, 13, 12, 5, 8, 7, 6];

/// Which registers of a block change places with ones of the environment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loan {
    /// For each register of the environment the guest's number of the one in whose place it is; 0 if it
    /// is in its own.
    lenders: [u8; UNPINNED.end - UNPINNED.start],
}

impl Loan {
    /// Whether none do.
    pub fn is_none(self) -> bool {
        self == Self::default()
    }

    /// The pairs that change places: of each the one of the environment first.
    fn pairs(self) -> impl Iterator<Item = (u8, u8)> {
        let numbers = UNPINNED.map(|number| number as u8);
        numbers.zip(self.lenders).filter(|(_, lender)| *lender != 0)
    }

    /// Puts each register back in its own place.
    pub fn settle(self, gpr: &mut [u64; 16]) {
        for (number, lender) in self.pairs() {
            gpr.swap(number.into(), lender.into());
        }
    }

    /// The register that an instruction is to name instead.
    fn instead(self, register: Register) -> Register {
        if !register.is_gpr() {
            return register;
        }
        let number = registers::number(register);
        let found = self.pairs().find(|(borrower, _)| *borrower == number);
        found.map_or(register, |(_, lender)| {
            registers::of_size(register.size(), lender)
        })
    }

    /// Has an instruction name the lenders.
    fn rename(self, ins: &mut Instruction) {
        for n in 0..ins.op_count() {
            if ins.op_kind(n) == OpKind::Register {
                ins.set_op_register(n, self.instead(ins.op_register(n)));
            }
        }
        ins.set_memory_base(self.instead(ins.memory_base()));
        ins.set_memory_index(self.instead(ins.memory_index()));
    }
}

/// If the block at `rip` is a loop that had better borrow registers, cuts off what is behind the loop and
/// has its instructions name the lenders.
pub fn borrow(guests: &mut Vec<Guest>, mode: Mode, rip: u64) -> Loan {
    let none = Loan::default();
    let Some(last) = guests.iter().position(|guest| leads_to(guest) == Some(rip)) else {
        return none;
    };
    let body = &guests[..=last];
    let end = rip.wrapping_add((body[last].offset + body[last].ins.len()) as u64);
    // A jump within the loop would leave its block, and come back, in every turn.
    let within = |guest: &Guest| leads_to(guest).is_some_and(|to| rip < to && to < end);
    if mode.counting()
        || guests[0].live != 0
        || !body.iter().all(is_simple)
        || body.iter().any(within)
    {
        return none;
    }
    let used = body.iter().fold(0, |all, guest| all | named(&guest.ins));
    let is_used = |number: &u8| used >> number & 1 != 0;
    let mut free = LENDERS.into_iter().filter(|lender| !is_used(lender));
    let mut loan = none;
    for (number, lender) in UNPINNED.zip(&mut loan.lenders) {
        if is_used(&(number as u8)) {
            *lender = free.next().unwrap_or(0);
        }
    }
    if !loan.is_none() {
        guests.truncate(last + 1);
        for guest in guests {
            loan.rename(&mut guest.ins);
        }
    }
    loan
}

/// Where a conditional jump leads.
fn leads_to(guest: &Guest) -> Option<u64> {
    (guest.kind == Kind::Branch).then(|| guest.ins.near_branch_target())
}

/// Whether an instruction may be one of a loop that borrows registers.
fn is_simple(guest: &Guest) -> bool {
    match guest.kind {
        Kind::Innocuous(unit) => !is_x87(unit),
        Kind::Nothing | Kind::Lea | Kind::Branch => true,
        Kind::Special | Kind::System | Kind::Access | Kind::Transfer | Kind::Interpreted => false,
    }
}

impl Block<'_> {
    /// The beginning of a loop that borrows registers; no flags from before it matter. What every turn
    /// needs is done before the first, which looks at the attention word only as any block does.
    pub fn loop_entries(&mut self) -> Layout {
        let poll = self.asm.here();
        self.loc = Loc::Dead;
        let loan = std::mem::take(&mut self.loan);
        self.poll_at_head();
        self.loan = loan;
        let entry = self.asm.here();
        self.exchange();
        let vector = |guest: &Guest| matches!(guest.kind, Kind::Innocuous(unit) if is_vector(unit));
        if self.guests.iter().any(vector) {
            self.need_vector();
        }
        let (first, again) = (self.asm.label(), self.asm.label());
        self.asm.jmp(first);
        self.asm.bind(again);
        self.again = Some(again);
        self.poll_at_head();
        self.asm.bind(first);
        Layout {
            host: entry,
            poll,
            poll_saved: poll,
            saved: entry,
        }
    }

    /// Lets borrowed registers and their lenders change places. Changes RAX, not the flags.
    pub fn exchange(&mut self) {
        for (number, lender) in self.loan.pairs() {
            let registers::Place::Host(host) = registers::place(lender) else {
                continue;
            };
            let own: asm::Mem = Env::gpr(number);
            self.asm.load(RAX, own);
            self.asm.store(own, host);
            self.asm.mov(host, RAX);
        }
    }
}
