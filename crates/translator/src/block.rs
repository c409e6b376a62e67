//! From a run of guest instructions to a block of host code.
//!
//! The code of a block, in order:
//!
//! ```text
//! poll:        [save the flags]             for jumps backward
//! poll_saved:  look at the attention word   the same, the flags are in the environment
//! saved:       [load the flags]             the flags are in the environment
//! host:        the instructions
//!              elsewhere, what is rare: TLB misses, side exits
//! ```
//!
//! The bracketed parts are there if an instruction of the block may read flags that it did not
//! write. Loops that borrow registers begin otherwise; see [`loops`](crate::loops).

use crate::access::{leaves_address, memory_operand};
use crate::asm::{self, Alu, Asm, Cond, Label, R10, RAX, at, env_at};
use crate::control::moves_stack;
use crate::env::{Env, JUMPS, Jump};
use crate::exit::Exit;
use crate::flags::{self, Effect, Flags};
use crate::generic::may_fault;
use crate::groups::{Group, Member};
use crate::loops::Loan;
use crate::mode::Mode;
use crate::near::Near;
use crate::plans::Plans;
use crate::rare::Rare;
use crate::registers::names_stack_pointer;
use crate::stubs::Stubs;
use crate::tables::{Cell, Entry, Loc, Site, Tables};
use crate::tuning::Tuning;
use belljar_passthrough::Unit;
use iced_x86::Instruction;
use std::mem::offset_of;

/// The most instructions of a block.
pub const MOST: usize = 64;
/// Behind so many instructions a conditional jump ends a block: what follows is executed less often,
/// and may be a part of another block.
pub const ENOUGH: usize = 32;

/// One instruction of the guest.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// Decoded.
    pub ins: Instruction,
    /// Its first byte, counted from the start of the block's bytes.
    pub offset: usize,
    /// How it is translated.
    pub kind: Kind,
    /// What it does to the flags.
    pub effect: Effect,
    /// Flags that matter before it.
    pub live: Flags,
    /// The group of its memory access.
    pub member: Option<Member>,
    /// Whether its memory access stays near to where it was.
    pub near: Option<Near>,
}

/// How an instruction is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Written anew with its operands redirected.
    Innocuous(Unit),
    /// No operation.
    Nothing,
    /// LEA.
    Lea,
    /// By hand; the block goes on.
    Special,
    /// A conditional jump: the block goes on where it is not taken.
    Branch,
    /// By hand, of the system; the block goes on.
    System,
    /// STAC or CLAC; the block ends.
    Access,
    /// By hand; the block ends.
    Transfer,
    /// By the interpreter; the block ends before it.
    Interpreted,
}

/// Where a block's entries and its end lie in code memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout {
    /// See [`Entry::Host`].
    pub host: u32,
    /// See [`Entry::Poll`].
    pub poll: u32,
    /// See [`Entry::PollSaved`].
    pub poll_saved: u32,
    /// See [`Entry::Saved`].
    pub saved: u32,
}

impl Layout {
    /// Where an entry lies.
    pub const fn entry(&self, entry: Entry) -> u32 {
        match entry {
            Entry::Host => self.host,
            Entry::Poll => self.poll,
            Entry::PollSaved => self.poll_saved,
            Entry::Saved => self.saved,
        }
    }
}

/// A block under translation.
#[derive(Debug)]
pub struct Block<'a> {
    pub asm: &'a mut Asm,
    pub tables: &'a mut Tables,
    pub plans: &'a mut Plans,
    pub stubs: &'a Stubs,
    pub tuning: &'a Tuning,
    pub mode: Mode,
    /// Address of the first instruction.
    pub rip: u64,
    /// The page of RAM that it lies in.
    pub source: u32,
    /// See [`Cell::page`].
    pub page: u32,
    /// The instruction behind the block does not end in its page: its block holds only as long as
    /// the next page is mapped as it is.
    pub leaves_page: bool,
    pub guests: &'a [Guest],
    pub bytes: &'a [u8],
    /// The instruction under translation.
    pub now: usize,
    /// Where the flags are.
    pub loc: Loc,
    /// Whether the host's vector registers are the guest's.
    pub vector: bool,
    /// Whether the host's x87 state is the guest's.
    pub x87: bool,
    /// Whether the host has BMI2.
    pub bmi2: bool,
    /// Whether accesses go through windows.
    pub windows: bool,
    /// Accesses that share a check.
    pub groups: &'a [Group],
    /// Groups whose check is done.
    pub checked: u16,
    /// Groups whose address is in the environment.
    pub kept: u16,
    /// The group whose address is in R10.
    pub held: Option<u8>,
    /// The address of a group was asked for, and was nowhere: the block must not run.
    pub lost: bool,
    /// What is still to be added to the stack pointer.
    pub owed: i32,
    /// Registers that are in each other's place: the block is a loop.
    pub loan: Loan,
    /// Where the next turn of such a loop begins.
    pub again: Option<Label>,
    /// The host may raise an exception for the next access: its address came of a near copy or leads into
    /// a window, or its instruction is one that may fault by itself.
    pub may_raise: bool,
    pub rare: &'a mut Vec<Rare>,
}

impl Block<'_> {
    /// Translates the block; `None` if that went wrong. `next` is the address behind its last
    /// instruction.
    pub fn translate(mut self, next: u64) -> Option<Layout> {
        let layout = if self.loan.is_none() {
            self.entries()
        } else {
            self.loop_entries()
        };
        let mut open = true;
        for now in 0..self.guests.len() {
            self.now = now;
            open = self.instruction();
            if !open {
                break;
            }
        }
        if open {
            self.now = self.guests.len();
            self.settle_stack();
            self.exchange();
            self.jump(next);
        }
        self.asm.begin_rare();
        self.write_rare();
        debug_assert!(!self.lost && self.owed == 0);
        (!self.lost).then_some(layout)
    }

    /// Whether flags from before the block matter.
    fn reads_flags(&self) -> bool {
        self.guests.first().is_none_or(|first| first.live != 0)
    }

    fn entries(&mut self) -> Layout {
        let reads = self.reads_flags();
        if self.mode.counting() {
            return self.counting_entries(reads);
        }
        let poll = self.asm.here();
        if reads {
            self.save_flags();
        }
        let poll_saved = self.asm.here();
        self.loc = if reads { Loc::Saved } else { Loc::Dead };
        self.poll_at_head();
        let saved = self.asm.here();
        if reads {
            self.load_flags();
        }
        let host = self.asm.here();
        self.loc = if reads { Loc::Host } else { Loc::Dead };
        Layout {
            host,
            poll,
            poll_saved,
            saved,
        }
    }

    /// Looks at the attention word before the first instruction. The flags that matter are in the
    /// environment. Gives the site.
    pub fn poll_at_head(&mut self) -> u32 {
        let label = self.poll(RAX);
        let site = self.site();
        self.rare.push(Rare::Leave {
            label,
            exit: Exit::Poll(site),
        });
        site
    }

    /// Counting code looks at the attention word and the budget at every entry.
    fn counting_entries(&mut self, reads: bool) -> Layout {
        let host = self.asm.here();
        if reads {
            self.save_flags();
        }
        let saved = self.asm.here();
        self.loc = if reads { Loc::Saved } else { Loc::Dead };
        let site = self.poll_at_head();
        let label = self.asm.label();
        self.asm.load(RAX, Env::budget());
        self.asm
            .alu_imm(Alu::Sub, true, RAX, self.guests.len() as i32);
        self.asm.jcc(Cond::S, label);
        self.asm.store(Env::budget(), RAX);
        self.rare.push(Rare::Leave {
            label,
            exit: Exit::Budget(site),
        });
        Layout {
            host,
            poll: host,
            poll_saved: saved,
            saved,
        }
    }

    /// Looks at the attention word; changes the flags. Jumps to the label if there is something.
    pub fn poll(&mut self, scratch: asm::Reg) -> Label {
        let label = self.asm.label();
        self.asm.load(scratch, Env::attention());
        if self.mode.is_user() {
            // Programs run with interrupts enabled: whatever is there is heeded.
            self.asm.cmp32_imm8(at(scratch, 0), 0);
        } else {
            self.asm.load32(scratch, at(scratch, 0));
            self.asm.mem(false, &[0x85], scratch, Env::heeded()); // test
        }
        self.asm.jcc(Cond::NE, label);
        label
    }

    /// Translates the present instruction; tells whether the block goes on.
    fn instruction(&mut self) -> bool {
        let held = self.held.take();
        if leaves_address(self.guest()) {
            self.held = held;
        }
        if self.owed != 0 && !self.lets_stack_wait() {
            self.settle_stack();
        }
        let done = match self.guest().kind {
            Kind::Innocuous(unit) => self.innocuous(unit),
            Kind::Nothing => true,
            Kind::Lea => self.lea(),
            Kind::Special => {
                self.special();
                true
            }
            Kind::Branch => {
                self.branch();
                true
            }
            Kind::Transfer => {
                self.transfer();
                return false;
            }
            Kind::System => self.system(),
            Kind::Access => {
                self.change_access();
                return false;
            }
            Kind::Interpreted => false,
        };
        if !done {
            self.interpret();
        }
        done
    }

    /// Whether the present instruction neither asks for the stack pointer nor leaves the block: pushes
    /// and pops that share a check that is done, and what has to do with registers alone.
    fn lets_stack_wait(&self) -> bool {
        let guest = self.guest();
        let ins = &guest.ins;
        match guest.kind {
            Kind::Nothing => true,
            Kind::Lea => !names_stack_pointer(ins),
            Kind::Innocuous(unit) => {
                memory_operand(ins).is_none() && !names_stack_pointer(ins) && !may_fault(ins, unit)
            }
            Kind::Special => {
                let checked = |member: Member| self.checked & 1 << member.group != 0;
                moves_stack(ins) && !names_stack_pointer(ins) && guest.member.is_some_and(checked)
            }
            _ => false,
        }
    }

    // The present instruction.

    /// The instruction under translation.
    pub fn guest(&self) -> &Guest {
        &self.guests[self.now]
    }

    /// Address of the instruction under translation.
    pub fn guest_rip(&self) -> u64 {
        match self.guests.get(self.now) {
            Some(guest) => self.rip.wrapping_add(guest.offset as u64),
            None => self.rip,
        }
    }

    /// How the tables hold an address.
    pub fn place_of(&self, address: u64) -> u64 {
        if self.mode.is_relative() {
            self.beyond_page(address) as u64
        } else {
            address
        }
    }

    /// An address counted from the block's page, the shorter way.
    pub fn beyond_page(&self, address: u64) -> i64 {
        let distance = address.wrapping_sub(self.rip & !0xfff) as i64;
        if self.wide() {
            distance
        } else {
            i64::from(distance as i32)
        }
    }

    /// Loads an address of code or data next to the code. The flags stay.
    pub fn load_address(&mut self, to: asm::Reg, address: u64) {
        if !self.mode.is_relative() {
            return self.asm.mov_imm(to, address);
        }
        self.asm.load(to, Env::page());
        if !self.wide() {
            let distance = self.beyond_page(address) as i32;
            return self.asm.lea(false, to, at(to, distance));
        }
        match i32::try_from(self.beyond_page(address)) {
            Ok(0) => {}
            Ok(distance) => self.asm.lea(true, to, at(to, distance)),
            // Displacements and branches reach 2 GiB from the end of their instruction, and a little
            // more from its page: two steps do it.
            Err(_) => {
                let distance = self.beyond_page(address);
                let half = (distance / 2) as i32;
                self.asm.lea(true, to, at(to, half));
                self.asm
                    .lea(true, to, at(to, (distance - i64::from(half)) as i32));
            }
        }
    }

    /// A site at the instruction under translation.
    pub fn site(&mut self) -> u32 {
        let site = self.this_site();
        self.tables.site(site)
    }

    /// The site that is here.
    pub fn this_site(&self) -> Site {
        Site {
            rip: self.place_of(self.guest_rip()),
            head: self.place_of(self.rip),
            flags: self.loc,
            uncounted: (self.guests.len() - self.now) as u8,
            mode: self.mode,
            grouped: false,
            owed: self.owed,
            loan: self.loan,
            access: None,
        }
    }

    // Flags.

    /// The host's flags to the environment.
    pub fn save_flags(&mut self) {
        self.asm.flags_to_ax();
        self.asm.store32(Env::flags(), RAX);
    }

    fn load_flags(&mut self) {
        self.asm.load32(RAX, Env::flags());
        self.asm.ax_to_flags();
    }

    /// Makes the flags that matter at `live` outlast a change of the host's flags. Changes RAX.
    pub fn spare_flags(&mut self, live: Flags) {
        if live == 0 {
            self.loc = match self.loc {
                Loc::Saved | Loc::Both => Loc::Saved,
                _ => Loc::Dead,
            };
            return;
        }
        if self.loc == Loc::Host {
            self.save_flags();
        }
        self.loc = Loc::Saved;
    }

    /// Makes the host's flags the guest's if any of `live` matter. Changes RAX.
    pub fn need_flags(&mut self, live: Flags) {
        if live != 0 && self.loc == Loc::Saved {
            self.load_flags();
            self.loc = Loc::Both;
        }
    }

    /// Before an instruction that the host executes: its flags are there.
    pub fn flags_in(&mut self) {
        let guest = self.guests[self.now];
        if guest.effect.touches() {
            self.need_flags(guest.live);
        }
    }

    /// After it: the flags are what it made of them.
    pub fn flags_out(&mut self) {
        if self.guest().effect.kills != 0 || self.guest().effect.reads == flags::ALL {
            self.loc = Loc::Host;
        }
    }

    // Leaving.

    /// Leaves for the interpreter, which executes the instruction under translation.
    pub fn interpret(&mut self) {
        self.settle_stack();
        let site = self.site();
        self.asm
            .store_imm32(Env::exit(), Exit::Fallback(site).encode());
        let stub = match self.loc {
            Loc::Host | Loc::Both => self.stubs.exit_host,
            Loc::Saved | Loc::Dead => self.stubs.exit_saved,
        };
        self.asm.jmp_to(stub);
    }

    /// Jumps to a target that is known, at the end of the block.
    pub fn jump(&mut self, target: u64) {
        let backward = target <= self.guest_rip();
        let near = self.is_near(target) && !(self.leaves_page && self.now == self.guests.len());
        if !near {
            return self.write_jump(target, self.loc, None, 0, backward);
        }
        let label = self.asm.label();
        self.asm.jmp(label);
        let patch = Some(self.asm.here() - 4);
        self.rare.push(Rare::Jump {
            label,
            target,
            loc: self.loc,
            patch,
            skipped: 0,
            backward,
            exchanged: true,
        });
    }

    /// Jumps to the next instruction, which is code of another mode, at the end of the block.
    pub fn jump_to_mode(&mut self, target: u64, mode: Mode) {
        let saved = self.loc == Loc::Saved;
        let entry = if saved { Entry::Saved } else { Entry::Host };
        self.jump_by_cell(Cell {
            target: self.place_of(target),
            page: self.page,
            mode,
            entry,
        });
    }

    /// Jumps to a target that is known on a condition. The flags are the host's.
    pub fn jump_if(&mut self, cond: Cond, target: u64) {
        if let Some(again) = self.again.filter(|_| target == self.rip) {
            return self.asm.jcc(cond, again);
        }
        let label = self.asm.label();
        self.asm.jcc(cond, label);
        let skipped = (self.guests.len() - self.now - 1) as u8;
        let direct = !(self.mode.counting() && skipped != 0) && self.is_near(target);
        self.rare.push(Rare::Jump {
            label,
            target,
            loc: self.loc,
            patch: direct.then(|| self.asm.here() - 4),
            skipped,
            backward: target <= self.guest_rip(),
            exchanged: self.loan.is_none(),
        });
    }

    /// Whether a target lies in the block's page.
    fn is_near(&self, target: u64) -> bool {
        target >> 12 == self.rip >> 12
    }

    /// Adds `release` to the guest's stack pointer and jumps to the address in RAX through the jump
    /// cache. The flags are in the environment.
    pub fn dispatch(&mut self, release: i32) {
        let label = self.poll(R10);
        self.dispatch_to(self.mode, label, release);
    }

    /// Jumps to the address in RAX, which is code of `mode`, without a look at the attention word.
    /// What missed is done at `label`.
    pub fn dispatch_to(&mut self, mode: Mode, label: Label, release: i32) {
        let site = self.site();
        let cache = mode.space() as usize;
        // See `env::jump_slot`.
        if self.bmi2 {
            self.asm.rorx(true, R10, RAX, 12);
        } else {
            self.asm.mov(R10, RAX);
            self.asm.shr(R10, 12);
        }
        self.asm.reg(false, &[0x33], R10, RAX); // xor
        self.asm
            .alu_imm(Alu::And, false, R10, 2 * (JUMPS as i32 - 1));
        let entry = |field| asm::Mem {
            base: None,
            index: Some((R10, 3)),
            ..env_at(R10, Env::jump_field(cache, field))
        };
        self.asm
            .alu_mem(Alu::Cmp, true, RAX, entry(offset_of!(Jump, key)));
        self.asm.jcc(Cond::NE, label);
        self.release(release);
        if mode.is_relative() {
            self.asm.alu_imm(Alu::And, true, RAX, -0x1000);
            self.asm.store(Env::page(), RAX);
        }
        self.asm.jmp_mem(entry(offset_of!(Jump, target)));
        self.rare.push(Rare::Indirect {
            label,
            site,
            release,
            user: mode.is_user(),
        });
    }

    /// Adds to the stack pointer, now.
    pub fn release(&mut self, bytes: i32) {
        self.add_to_stack(bytes);
        self.settle_stack();
    }

    /// Jumps to `label` if the address in RAX is not canonical, or, of a `user`'s code, not one of the
    /// lower half. Changes R10 and the flags.
    pub fn check_canonical(&mut self, label: Label, user: bool) {
        self.held = None;
        self.asm.mov(R10, RAX);
        if user {
            self.asm.shr(R10, 47);
            self.asm.jcc(Cond::NE, label);
            return;
        }
        self.asm.shl(R10, 16);
        self.asm.sar(R10, 16);
        self.asm.reg(true, &[0x3b], R10, RAX); // cmp
        self.asm.jcc(Cond::NE, label);
    }
}
