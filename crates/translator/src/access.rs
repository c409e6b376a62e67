//! Memory operands: their address, and the check against the TLB that turns it into one of the
//! host.
//!
//! The address is computed into R10. The TLB's entry for it is found by the page number; the
//! entry's tag is subtracted, which leaves the offset within the page if the entry is the page's
//! and something larger if not, so one comparison finds a wrong entry and an operand that leaves
//! the page alike. What misses fills the TLB and tries again, or is left to the interpreter: a page
//! that is not RAM, that holds code, or that faults, and an operand that lies in two pages.

use crate::asm::{self, Alu, Asm, Cond, Label, Mem, R10, RAX, at, env, env_at};
use crate::block::{Block, Guest, Kind};
use crate::env::Env;
use crate::far;
use crate::groups::Member;
use crate::near::Near;
use crate::rare::Rare;
use crate::registers::{self, Place, names_environment, names_high_byte};
use crate::x87::is_x87;
use belljar_interpreter::tlb::{self, Entry};
use iced_x86::{EncodingKind, Instruction, OpKind, Register};
use std::mem::offset_of;

/// Bits by which an address is shifted so that its page number counts entries.
const SHIFT: u8 = 12 - size_of::<Entry>().trailing_zeros() as u8;
const HOST: usize = offset_of!(Entry, host);
/// The most bytes of an operand that need not be aligned.
const PLAIN: usize = 8;

/// What R10 and RAX are together.
const SUM: Mem = Mem {
    env: false,
    base: Some(R10),
    index: Some((RAX, 0)),
    disp: 0,
};

/// The memory operand of an instruction.
#[derive(Clone, Copy, Debug)]
pub enum Address {
    /// A constant.
    Constant(u64),
    /// In R10.
    Computed,
}

/// The number of the operand that ModRM says is memory.
pub fn memory_operand(ins: &Instruction) -> Option<u32> {
    let kinds = [
        ins.op0_kind(),
        ins.op1_kind(),
        ins.op2_kind(),
        ins.op3_kind(),
    ];
    let found = kinds.iter().position(|kind| *kind == OpKind::Memory);
    found.map(|n| n as u32)
}

impl Block<'_> {
    /// Gives the host's place of the instruction's memory operand of `size` bytes, by way of R10.
    /// The flags that matter are in the environment or the host's. Changes RAX; if `scratch` says that it
    /// stays as it is until the access, the place may be named by it.
    pub fn access(&mut self, size: usize, write: bool, scratch: bool) -> Mem {
        let guest = *self.guest();
        if let Some((base, displacement)) = self.plain_base(&guest.ins) {
            return self.through_slot(guest.member, base, displacement);
        }
        if let Some(member) = guest.member {
            let ins = guest.ins;
            return self.shared(member, size, write, |block, start| {
                if ins.memory_base() == Register::RIP {
                    let page = block.rip & !0xfff;
                    block.load_address(R10, page.wrapping_add(start as i64 as u64));
                    return;
                }
                let address = block.root(&ins, start);
                block.lea_word(R10, address);
            });
        }
        if self.windows {
            return self.look_through(&guest.ins, size, scratch);
        }
        self.spare_flags(guest.live);
        let address = self.address(&guest.ins, size);
        self.check_operand(address, size, write);
        at(R10, 0)
    }

    /// The base and the displacement of the instruction's memory operand, if it has no more, and they can
    /// be named as they are in a window.
    fn plain_base(&self, ins: &Instruction) -> Option<(asm::Reg, i32)> {
        let base = ins.memory_base();
        let plain = self.windows
            && base.is_gpr64()
            && ins.memory_index() == Register::None
            && based_on(ins).is_none()
            && ins.encoding() != EncodingKind::EVEX;
        match registers::place(registers::number(plain.then_some(base)?)) {
            Place::Host(host) => Some((host, ins.memory_displacement64() as i32)),
            Place::Memory => None,
        }
    }

    /// The place `displacement` from a base in a window: what leads into the base's slot is added, in R10.
    /// The flags stay, and so does RAX. The accesses of a group share it: an operand that leaves its base's
    /// slot lies beside the window, where there is nothing.
    pub fn through_slot(
        &mut self,
        member: Option<Member>,
        base: asm::Reg,
        displacement: i32,
    ) -> Mem {
        let group = member.map(|member| member.group);
        let bit = group.map_or(0, |group| 1 << group);
        if self.checked & bit == 0 {
            self.held = None;
            self.lead_to_slot(R10, base);
            self.checked |= bit;
            if let Some(group) = group.filter(|group| self.is_asked_again(*group)) {
                self.kept |= bit;
                self.asm.store(Env::shared(group), R10);
            }
        } else if let Some(group) = group.filter(|group| self.held != Some(*group)) {
            self.lost |= self.kept & bit == 0;
            self.asm.load(R10, Env::shared(group));
        }
        self.held = group;
        self.may_raise = true;
        Mem {
            env: false,
            base: Some(R10),
            index: Some((base, 0)),
            disp: displacement,
        }
    }

    /// The same by a check, even if there are windows.
    pub fn checked_access(&mut self, size: usize, write: bool) -> Mem {
        let guest = *self.guest();
        self.spare_flags(guest.live);
        let address = self.address(&guest.ins, size);
        self.check(address, size, write);
        at(R10, 0)
    }

    /// The place of an access that shares a check. `compute` puts the address of the byte at an
    /// offset from the group's root into R10.
    pub fn shared(
        &mut self,
        member: Member,
        size: usize,
        write: bool,
        compute: impl FnOnce(&mut Self, i32),
    ) -> Mem {
        let number = member.group;
        let group = self.groups[usize::from(number)];
        let bit = 1 << number;
        if self.checked & bit == 0 {
            self.checked |= bit;
            if !self.windows {
                let live = self.guest().live;
                self.spare_flags(live);
            }
            compute(self, group.start);
            let sites = self.tables.sites.len();
            let span = (group.end - group.start) as usize;
            self.check_operand(Address::Computed, span, group.write);
            // If it reads what is to be written later, its own fault would be another.
            let access = (write == group.write && self.surely_accesses(size))
                .then(|| u8::try_from(member.offset - group.start).ok())
                .flatten();
            for site in &mut self.tables.sites[sites..] {
                site.grouped = true;
                site.access = access;
            }
            if self.is_asked_again(number) {
                self.kept |= bit;
                self.asm.store(Env::shared(number), R10);
            }
        } else if self.held != Some(number) {
            self.lost |= self.kept & bit == 0;
            self.asm.load(R10, Env::shared(number));
        }
        self.held = Some(number);
        self.may_raise |= self.windows;
        at(R10, member.offset - group.start)
    }

    /// Whether an access of the group behind this one may find something else in R10.
    fn is_asked_again(&self, group: u8) -> bool {
        let of_group = |guest: &Guest| guest.member.is_some_and(|member| member.group == group);
        let later = &self.guests[self.now + 1..];
        let Some(last) = later.iter().rposition(of_group) else {
            return false;
        };
        later[..=last]
            .iter()
            .any(|guest| !leaves_address(guest) || guest.member.is_some() && !of_group(guest))
    }

    /// The address `displacement` from the root of the instruction's memory operand: its base and
    /// its scaled index. Changes RAX and R10.
    fn root(&mut self, ins: &Instruction, displacement: i32) -> Mem {
        let (base, index) = (ins.memory_base(), ins.memory_index());
        Mem {
            env: false,
            base: (base != Register::None).then(|| self.address_register(base, R10)),
            index: (index != Register::None).then(|| {
                let scale = ins.memory_index_scale().trailing_zeros() as u8;
                (self.address_register(index, RAX), scale)
            }),
            disp: displacement,
        }
    }

    /// Computes the linear address of the instruction's memory operand of `size` bytes. The flags
    /// that matter are in the environment.
    pub fn address(&mut self, ins: &Instruction, size: usize) -> Address {
        let constant = self.effective_address(ins, R10, true);
        if based_on(ins).is_none() {
            return constant.map_or(Address::Computed, Address::Constant);
        }
        let mut checked = size;
        if let Some(value) = constant {
            self.asm.mov_imm(R10, value);
            if value
                .checked_add(size as u64)
                .is_some_and(|end| end <= 1 << 32)
            {
                checked = 1;
            }
        }
        self.add_base(ins, checked);
        Address::Computed
    }

    /// Adds the base of the operand's segment, if it has one, to R10, the offset of `size` bytes. The
    /// flags that matter are in the environment.
    pub fn add_base(&mut self, ins: &Instruction, size: usize) {
        let Some(gs) = based_on(ins) else {
            return;
        };
        if !self.wide() && size > 1 {
            // The last bytes lie beyond the limit of 4 GiB.
            self.asm
                .alu_imm(Alu::Cmp, false, R10, (size as i32).wrapping_neg());
            self.leave_if(Cond::A);
        }
        if self.windows {
            // The flags may matter.
            self.asm.load(RAX, Env::base(gs));
            return self.asm.lea(true, R10, SUM);
        }
        self.asm.alu_mem(Alu::Add, self.wide(), R10, Env::base(gs));
    }

    /// Computes the effective address into `to`, unless it is a constant, which is given; its low 32
    /// bits if not `wide`. Changes RAX and R10, not the flags.
    pub fn effective_address(
        &mut self,
        ins: &Instruction,
        to: asm::Reg,
        wide: bool,
    ) -> Option<u64> {
        let base = ins.memory_base();
        let index = ins.memory_index();
        if base.is_ip() || base == Register::None && index == Register::None {
            // The decoder gives the address that is meant.
            let address = ins.memory_displacement64();
            if base.is_ip() && self.mode.is_relative() {
                self.load_address(to, address);
                return None;
            }
            return Some(match base {
                Register::EIP => address & 0xffff_ffff,
                _ => self.wrap(address),
            });
        }
        let wide = wide && (base.size() == 8 || base == Register::None && index.size() == 8);
        let address = self.root(ins, ins.memory_displacement64() as i32);
        match (address.base, address.index) {
            (Some(base), None) if wide && address.disp == 0 => {
                if base != to {
                    self.asm.mov(to, base);
                }
            }
            _ => self.asm.lea(wide, to, address),
        }
        None
    }

    /// A register that holds the guest's `register`: `scratch` if it has none of its own.
    fn address_register(&mut self, register: Register, scratch: asm::Reg) -> asm::Reg {
        self.held_in(registers::number(register), scratch)
    }

    /// The same of the guest's register of that number.
    pub fn held_in(&mut self, number: u8, scratch: asm::Reg) -> asm::Reg {
        match registers::place(number) {
            Place::Host(host) => host,
            Place::Memory => {
                self.asm.load(scratch, Env::gpr(number));
                scratch
            }
        }
    }

    /// Turns the address of the instruction's operand into one of the host, in R10: through a window if
    /// there are any, else by a near copy if it stays near. Changes RAX, and without windows the flags.
    pub fn check_operand(&mut self, address: Address, size: usize, write: bool) {
        if self.windows {
            self.through_slot_of(address, false);
            return;
        }
        match (self.guest().near, address) {
            (Some(near), Address::Computed) => self.check_near(near, size, write),
            _ => self.check(address, size, write),
        }
    }

    /// The place of the instruction's memory operand of `size` bytes in a window, where its address or what
    /// it is based on has to be computed; see [`access`](Self::access). Changes RAX, not the flags.
    fn look_through(&mut self, ins: &Instruction, size: usize, scratch: bool) -> Mem {
        let offset = i32::try_from(ins.memory_displacement64() as i64);
        let based = based_on(ins).zip(offset.ok()).filter(|_| {
            let constant = ins.memory_base() == Register::None;
            constant && ins.memory_index() == Register::None && ins.encoding() != EncodingKind::EVEX
        });
        if let Some((gs, offset)) = based {
            self.asm.load(R10, Env::base(gs));
            return self.through_own_slot(offset, scratch);
        }
        let address = self.address(ins, size);
        self.through_slot_of(address, scratch)
    }

    /// The place at an address, likewise.
    fn through_slot_of(&mut self, address: Address, scratch: bool) -> Mem {
        if let Address::Constant(value) = address {
            self.asm.mov_imm(R10, value);
        }
        self.through_own_slot(0, scratch)
    }

    /// The place `displacement` from the address in R10, through the window of that address's slot. Changes
    /// RAX, and R10 to the sum of both unless `scratch` says that RAX will stay.
    fn through_own_slot(&mut self, displacement: i32, scratch: bool) -> Mem {
        self.held = None;
        self.lead_to_slot(RAX, R10);
        self.may_raise = true;
        if scratch {
            return Mem {
                disp: displacement,
                ..SUM
            };
        }
        self.asm.lea(true, R10, SUM);
        at(R10, displacement)
    }

    /// Loads what leads from the slot of an address into its window. The flags stay. An address of no slot
    /// faults here.
    fn lead_to_slot(&mut self, to: asm::Reg, address: asm::Reg) {
        self.asm.shr_by_stack(to, address);
        self.list();
        let entry = Mem {
            base: None,
            index: Some((to, 3)),
            ..env(Env::windows())
        };
        self.asm.load(to, entry);
    }

    /// Turns an address into one of the host, in R10. Changes RAX and the flags.
    pub fn check(&mut self, address: Address, size: usize, write: bool) {
        self.held = None;
        let retry = self.asm.label();
        let (tag, host) = match address {
            Address::Constant(value) => {
                self.asm.mov_imm(R10, value);
                self.asm.bind(retry);
                let slot = (value >> 12) as usize % self.tuning.tlb_entries * size_of::<Entry>();
                let [tag, host] = tlb_fields(self.mode.set() as usize, write);
                (env(tag + slot), env(host + slot))
            }
            Address::Computed => {
                self.asm.bind(retry);
                self.find_entry(write)
            }
        };
        let label = self.compare(tag, size);
        self.asm.alu_mem(Alu::Add, true, R10, host);
        let site = self.access_site(size);
        self.rare.push(Rare::Miss {
            label,
            retry,
            site,
            size,
            write,
            tag,
        });
    }

    /// The same of the address in R10 by a near copy.
    fn check_near(&mut self, near: Near, size: usize, write: bool) {
        self.held = None;
        let copy = Env::near(self.mode.set() as usize, near.copy(), write);
        let retry = self.asm.label();
        self.asm.bind(retry);
        let label = self.compare(env(copy + offset_of!(tlb::Near, tag)), size);
        self.asm
            .alu_mem(Alu::Add, true, R10, env(copy + offset_of!(tlb::Near, host)));
        let done = self.asm.label();
        self.asm.bind(done);
        self.may_raise = true;
        let site = self.access_site(size);
        self.rare.push(Rare::Far {
            label,
            retry,
            done,
            near,
            site,
            size,
            write,
        });
    }

    /// Subtracts a tag from the address in R10 and jumps to the label unless that leaves an offset at
    /// which `size` bytes lie in the page.
    fn compare(&mut self, tag: Mem, size: usize) -> Label {
        self.asm.alu_mem(Alu::Sub, true, R10, tag);
        self.asm.alu_imm(Alu::Cmp, true, R10, 4096 - size as i32);
        let label = self.asm.label();
        self.asm.jcc(Cond::A, label);
        label
    }

    /// The tag and the host's address in the entry for the address in R10, by way of RAX.
    fn find_entry(&mut self, write: bool) -> (Mem, Mem) {
        find_entry(self.asm, RAX, self.bmi2, self.tuning.tlb_entries);
        let [tag, host] = tlb_fields(self.mode.set() as usize, write);
        (env_at(RAX, tag), env_at(RAX, host))
    }

    fn access_site(&mut self, size: usize) -> u32 {
        let site = self.site();
        if self.surely_accesses(size) {
            self.tables.sites[site as usize].access = Some(0);
        }
        site
    }

    /// Whether the instruction accesses all of its `size` bytes and raises a page fault if it cannot, and
    /// nothing else.
    fn surely_accesses(&self, size: usize) -> bool {
        let guest = self.guest();
        // An exception that x87 has waiting comes before a page fault.
        let waits = matches!(guest.kind, Kind::Innocuous(unit) if is_x87(unit));
        // What a mask leaves out is not accessed. SDM 1, 15.6.1.
        let masked = guest.ins.op_mask() != Register::None;
        size <= PLAIN && !waits && !masked
    }

    /// Has the TLB filled for an access to the address in R10.
    pub fn refill(&mut self, site: u32, size: usize, write: bool) {
        self.asm.store_imm32(Env::site(), site);
        self.asm.mov_imm(RAX, size as u64);
        self.asm.call_to(if write {
            self.stubs.refill_write
        } else {
            self.stubs.refill_read
        });
    }

    /// Looks into the TLB for an access whose address, less the tag of a near copy, is in R10, makes the
    /// copy one of what it finds, and goes on at `done`; if it finds nothing, the address is in R10.
    pub fn approach(&mut self, near: Near, size: usize, write: bool, done: Label) {
        let set = self.mode.set() as usize;
        self.asm.mov_imm(RAX, far::argument(near, set, size));
        self.asm.call_to(self.stubs.far[set][usize::from(write)]);
        self.asm.jcc(Cond::BE, done);
    }

    /// Lists the host's instruction that follows if it may raise an exception.
    pub fn list_if_raising(&mut self) {
        if std::mem::take(&mut self.may_raise) {
            self.list();
        }
    }

    /// Lists the host's instruction that follows, unless what was listed last says the same of it.
    fn list(&mut self) {
        let site = self.this_site();
        let last = self.tables.faults.last();
        if last.is_none_or(|&(_, last)| self.tables.sites[last as usize] != site) {
            let site = self.tables.site(site);
            self.tables.faults.push((self.asm.here(), site));
        }
    }
}

/// Loads the offset from the entry 0 of a set of `entries` of the entry for the address in R10. Changes
/// the flags.
pub fn find_entry(asm: &mut Asm, to: asm::Reg, bmi2: bool, entries: usize) {
    if bmi2 {
        asm.rorx(false, to, R10, SHIFT);
    } else {
        asm.mov32(to, R10);
        asm.shr32(to, SHIFT);
    }
    let mask = (entries - 1) * size_of::<Entry>();
    asm.alu_imm(Alu::And, false, to, mask as i32);
}

/// Offsets in the environment of the tag and the host's address in the entry 0 of a set.
pub fn tlb_fields(set: usize, write: bool) -> [usize; 2] {
    let tag = if write {
        offset_of!(Entry, write)
    } else {
        offset_of!(Entry, read)
    };
    [tag, HOST].map(|field| Env::tlb_field(set, field))
}

/// Whether an instruction surely leaves R10 alone, or has in it the address that its access shares.
pub fn leaves_address(guest: &Guest) -> bool {
    let ins = &guest.ins;
    let reads_memory = memory_operand(ins).is_some();
    match guest.kind {
        Kind::Nothing | Kind::Branch => true,
        Kind::Lea => !names_environment(ins),
        Kind::Innocuous(_) if reads_memory => guest.member.is_some(),
        Kind::Innocuous(_) => !names_environment(ins) && !names_high_byte(ins),
        // An indirect call looks at its target first.
        Kind::Transfer if ins.is_call_near_indirect() => false,
        Kind::Special | Kind::Transfer => guest.member.is_some() && !reads_memory,
        Kind::System | Kind::Access | Kind::Interpreted => false,
    }
}

/// Whether FS (`false`) or GS (`true`) counts for the instruction's memory operand.
fn based_on(ins: &Instruction) -> Option<bool> {
    match ins.memory_segment() {
        Register::FS => Some(false),
        Register::GS => Some(true),
        _ => None,
    }
}
