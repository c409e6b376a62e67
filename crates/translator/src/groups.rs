//! Which memory accesses of a block share one check.
//!
//! Accesses whose addresses differ by a constant only, because nothing changed their registers in
//! between but additions of constants (PUSH and POP too), form a group: the first of them checks
//! the whole range that all of them touch, and the others use the host's address that it found. A
//! page has one set of rights, so a range within one page can be accessed as a whole or not at all.
//! A range that reaches into a second page leaves for a block without groups ([`Mode::narrow`]).
//!
//! A write after a read joins the read's group, which then checks for writing, only if no branch
//! lies between the group's first access and the write: what is not written must not be asked to be
//! writable.
//!
//! [`Mode::narrow`]: crate::mode::Mode::narrow

use crate::access::memory_operand;
use crate::block::{Guest, Kind};
use crate::registers::{self, RSP_NUMBER};
use crate::shapes::Shapes;
use crate::width::{is_code32, word};
use crate::x87::is_x87;
use belljar_interpreter::windows::GUARD;
use iced_x86::{Code, EncodingKind, Instruction, Mnemonic, OpKind, Register};

/// The most groups of a block: each has a place in the environment.
pub const MOST: usize = 12;
/// The most bytes that the accesses of a group may span.
const SPAN: i64 = 256;
/// The same for those next to the code, whose places do not change.
const SPAN_OF_CODE: i64 = 2048;
/// The same for accesses that go through windows: as much as lies around those.
const SPAN_OF_WINDOWS: i64 = GUARD as i64 / 4;
const RBP_NUMBER: u8 = 5;
/// The number of RIP as a base: the address of the block's page.
const RIP_NUMBER: u8 = 16;

/// The part of an address that is not constant: base, and index with its scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Root {
    base: u8,
    index: Option<(u8, u8)>,
}

/// What one instruction accesses.
#[derive(Clone, Copy, Debug)]
struct Access {
    root: Root,
    offset: i64,
    size: i64,
    write: bool,
}

/// An instruction's place in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The group's number.
    pub group: u8,
    /// Where the access lies, counted from the root as it was at the group's first access.
    pub offset: i32,
}

/// Accesses that share a check.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    /// The first byte, counted from the root at the first access.
    pub start: i32,
    /// The byte after the last.
    pub end: i32,
    /// Whether any access writes.
    pub write: bool,
    members: u32,
    /// Branches before the first access.
    branches: u32,
}

/// A group to which accesses may be added.
#[derive(Clone, Copy, Debug)]
struct Open {
    root: Root,
    group: u8,
    /// What was added to the root since the first access.
    moved: i64,
}

/// Finds the groups of a block in the page at `page`. `windows` tells whether its accesses go through
/// windows.
pub fn find(guests: &mut [Guest], page: u64, windows: bool, shapes: &mut Shapes) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::with_capacity(MOST);
    let mut open: Vec<Open> = Vec::with_capacity(MOST);
    let mut branches = 0;
    for guest in guests.iter_mut() {
        guest.member = None;
        if let Some(access) = access(guest, page, shapes) {
            guest.member = join(&mut groups, &mut open, access, branches, windows);
        }
        if !open.is_empty() {
            change_roots(&mut open, guest, shapes);
        }
        branches += u32::from(guest.kind == Kind::Branch);
    }
    for guest in guests {
        guest.member = guest
            .member
            .filter(|member| groups[usize::from(member.group)].members > 1);
    }
    groups
}

fn join(
    groups: &mut Vec<Group>,
    open: &mut Vec<Open>,
    access: Access,
    branches: u32,
    windows: bool,
) -> Option<Member> {
    // The newest first: after a group for reads there may be one for writes.
    for candidate in open.iter().rev().filter(|open| open.root == access.root) {
        let group = &mut groups[usize::from(candidate.group)];
        let offset = candidate.moved + access.offset;
        let start = offset.min(i64::from(group.start));
        let end = (offset + access.size).max(i64::from(group.end));
        let may_write = windows || group.write || !access.write || group.branches == branches;
        let span = if windows {
            SPAN_OF_WINDOWS
        } else if access.root.base == RIP_NUMBER {
            SPAN_OF_CODE
        } else {
            SPAN
        };
        let within = i32::try_from(start).is_ok() && i32::try_from(end).is_ok();
        if end - start > span || !may_write || !within {
            continue;
        }
        group.start = start as i32;
        group.end = end as i32;
        group.write |= access.write;
        group.members += 1;
        return Some(Member {
            group: candidate.group,
            offset: offset as i32,
        });
    }
    let end = access.offset + access.size;
    if groups.len() == MOST || i32::try_from(end).is_err() {
        return None;
    }
    let group = groups.len() as u8;
    groups.push(Group {
        start: access.offset as i32,
        end: end as i32,
        write: access.write,
        members: 1,
        branches,
    });
    open.push(Open {
        root: access.root,
        group,
        moved: 0,
    });
    Some(Member {
        group,
        offset: access.offset as i32,
    })
}

fn stack(ins: &Instruction, words: i64, write: bool) -> Access {
    let size = word(ins);
    Access {
        root: Root {
            base: RSP_NUMBER,
            index: None,
        },
        offset: words * size,
        size,
        write,
    }
}

/// Whether an instruction that is translated by hand pushes a word.
pub fn pushes(code: Code) -> bool {
    matches!(
        code,
        Code::Push_r64
            | Code::Pushq_imm32
            | Code::Pushq_imm8
            | Code::Push_rm64
            | Code::Call_rel32_64
            | Code::Call_rm64
            | Code::Push_r32
            | Code::Pushd_imm32
            | Code::Pushd_imm8
            | Code::Push_rm32
            | Code::Call_rel32_32
            | Code::Call_rm32
    )
}

/// Whether one pops a word.
pub fn pops(code: Code) -> bool {
    matches!(
        code,
        Code::Pop_r64
            | Code::Retnq
            | Code::Retnq_imm16
            | Code::Pop_r32
            | Code::Retnd
            | Code::Retnd_imm16
    )
}

/// The access of an instruction that may be in a group.
fn access(guest: &Guest, page: u64, shapes: &mut Shapes) -> Option<Access> {
    let ins = &guest.ins;
    match (guest.kind, ins.code()) {
        (Kind::Special | Kind::Transfer, code) if pushes(code) => Some(stack(ins, -1, true)),
        (Kind::Special | Kind::Transfer, code) if pops(code) => Some(stack(ins, 0, false)),
        (Kind::Special, Code::Leaveq | Code::Leaved) => Some(Access {
            root: Root {
                base: RBP_NUMBER,
                index: None,
            },
            ..stack(ins, 0, false)
        }),
        (Kind::Innocuous(unit), _) if !is_x87(unit) && ins.encoding() != EncodingKind::EVEX => {
            operand(ins, page, shapes)
        }
        _ => None,
    }
}

fn operand(ins: &Instruction, page: u64, shapes: &mut Shapes) -> Option<Access> {
    memory_operand(ins)?;
    let (base, index) = (ins.memory_base(), ins.memory_index());
    let based = matches!(ins.memory_segment(), Register::FS | Register::GS);
    let size = ins.memory_size().size();
    if base == Register::RIP && !based && size <= 64 {
        let distance = ins.memory_displacement64().wrapping_sub(page) as i64;
        return i32::try_from(distance).is_ok().then(|| Access {
            root: Root {
                base: RIP_NUMBER,
                index: None,
            },
            offset: distance,
            size: size as i64,
            write: shapes.writes_memory(ins),
        });
    }
    let indexed = index != Register::None;
    if based || !is_root(ins, base) || indexed && !is_root(ins, index) || size > 64 {
        return None;
    }
    let scale = ins.memory_index_scale() as u8;
    Some(Access {
        root: Root {
            base: registers::number(base),
            index: indexed.then(|| (registers::number(index), scale)),
        },
        offset: i64::from(ins.memory_displacement64() as i32),
        size: size as i64,
        write: shapes.writes_memory(ins),
    })
}

/// Whether a register is as wide as addresses are, so that constants can be added to it.
fn is_root(ins: &Instruction, register: Register) -> bool {
    if is_code32(ins) {
        register.is_gpr32()
    } else {
        register.is_gpr64()
    }
}

/// What becomes of the roots after an instruction. No change goes unnoticed: in a window, a root that is
/// not what it is held to be would lead astray.
fn change_roots(open: &mut Vec<Open>, guest: &Guest, shapes: &mut Shapes) {
    let mut noticed = 0u16;
    changes(guest, |register, added| {
        noticed |= 1 << register;
        match added {
            Some(amount) => add(open, register, amount),
            None => forget(open, register),
        }
    });
    let others = shapes.written(&guest.ins) & !noticed;
    for register in (0..16).filter(|register| others >> register & 1 != 0) {
        forget(open, register);
    }
}

/// Tells which registers an instruction changes, and what it adds to them if it does no more.
pub fn changes(guest: &Guest, mut changed: impl FnMut(u8, Option<i64>)) {
    let ins = &guest.ins;
    match ins.code() {
        code if pushes(code) => return changed(RSP_NUMBER, Some(-word(ins))),
        Code::Pushfd | Code::Pushfq => return changed(RSP_NUMBER, Some(-word(ins))),
        Code::Pop_r64 | Code::Pop_r32 => {
            changed(RSP_NUMBER, Some(word(ins)));
            return changed(registers::number(ins.op0_register()), None);
        }
        Code::Popfq | Code::Popfd => return changed(RSP_NUMBER, Some(word(ins))),
        Code::Leaveq | Code::Leaved => {
            changed(RSP_NUMBER, None);
            return changed(RBP_NUMBER, None);
        }
        _ => {}
    }
    if let Some((register, amount)) = addition(ins) {
        return changed(register, Some(amount));
    }
    for n in 0..ins.op_count().min(2) {
        let written = n == 0 || writes_second(ins.mnemonic());
        if written && ins.op_kind(n) == OpKind::Register && ins.op_register(n).is_gpr() {
            changed(registers::number(ins.op_register(n)), None);
        }
    }
    for &register in implied(ins) {
        changed(register, None);
    }
}

/// A constant that the instruction adds to a register.
fn addition(ins: &Instruction) -> Option<(u8, i64)> {
    let to = ins.op0_register();
    if ins.op0_kind() != OpKind::Register || !is_root(ins, to) {
        return None;
    }
    let number = registers::number(to);
    // Constants of 32 bits, sign-extended, or modulo 4 GiB.
    let immediate = |n| {
        matches!(
            ins.op_kind(n),
            OpKind::Immediate8to64
                | OpKind::Immediate32to64
                | OpKind::Immediate8to32
                | OpKind::Immediate32
        )
        .then(|| i64::from(ins.immediate(n) as i32))
    };
    match ins.mnemonic() {
        Mnemonic::Add => Some((number, immediate(1)?)),
        Mnemonic::Sub => Some((number, -immediate(1)?)),
        Mnemonic::Inc => Some((number, 1)),
        Mnemonic::Dec => Some((number, -1)),
        Mnemonic::Lea if ins.memory_base() == to && ins.memory_index() == Register::None => {
            Some((number, i64::from(ins.memory_displacement64() as i32)))
        }
        _ => None,
    }
}

fn writes_second(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::Xchg | Mnemonic::Xadd | Mnemonic::Mulx)
}

/// Registers that the instruction writes without naming them.
fn implied(ins: &Instruction) -> &'static [u8] {
    match ins.mnemonic() {
        Mnemonic::Mul | Mnemonic::Div | Mnemonic::Idiv | Mnemonic::Rdtsc => &[0, 2],
        Mnemonic::Rdtscp => &[0, 1, 2],
        Mnemonic::Imul if ins.op_count() == 1 => &[0, 2],
        Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b => &[0, 2],
        Mnemonic::Cwd | Mnemonic::Cdq | Mnemonic::Cqo => &[2],
        Mnemonic::Cbw | Mnemonic::Cwde | Mnemonic::Cdqe | Mnemonic::Cmpxchg | Mnemonic::Lahf => {
            &[0]
        }
        Mnemonic::Stosb
        | Mnemonic::Stosd
        | Mnemonic::Stosq
        | Mnemonic::Movsb
        | Mnemonic::Movsd
        | Mnemonic::Movsq => &[1, 6, 7],
        Mnemonic::Pcmpestri
        | Mnemonic::Pcmpestri64
        | Mnemonic::Pcmpistri
        | Mnemonic::Vpcmpestri
        | Mnemonic::Vpcmpestri64
        | Mnemonic::Vpcmpistri => &[1],
        _ => &[],
    }
}

/// A constant was added to a register.
fn add(open: &mut Vec<Open>, register: u8, amount: i64) {
    open.retain_mut(|open| {
        if open.root.base == register {
            open.moved += amount;
        }
        let indexed = open.root.index.is_some_and(|(index, _)| index == register);
        !indexed && open.moved.abs() < i64::from(i32::MAX) / 4
    });
}

/// A register changed.
fn forget(open: &mut Vec<Open>, register: u8) {
    open.retain(|open| {
        open.root.base != register && open.root.index.is_none_or(|(index, _)| index != register)
    });
}
