//! Which instructions make a block.

use crate::block::{ENOUGH, Guest, Kind};
use crate::control;
use crate::flags::{self, Effect};
use crate::generic::is_left_out;
use crate::kinds::Known;
use crate::mode::Mode;
use crate::privilege;
use crate::system;
use crate::width::has_address16;
use crate::x87;
use belljar_interpreter::mmu::CodePage;
use belljar_interpreter::processor::Core;
use belljar_interpreter::{decoder, exists};
use belljar_passthrough::{Unit, innocuous};
use iced_x86::{Code, DecoderError, Instruction, Mnemonic, OpKind, Register};

/// Code to be translated.
#[derive(Clone, Copy, Debug)]
pub struct Fragment<'a> {
    /// Address of the first instruction.
    pub rip: u64,
    /// Bytes from there on.
    pub bytes: &'a [u8],
    /// Its page.
    pub page: CodePage,
    /// Whether the flags must be exact everywhere, also where a fault alone shows them.
    pub exact: bool,
}

/// The most instructions that are looked at beyond a block's end.
const PEEK: usize = 12;

impl Fragment<'_> {
    /// Whether the code at `target` overwrites all status flags before it reads any. Only code of
    /// the same page is looked at: it changes and goes together with the block.
    fn overwrites_flags(&self, core: &Core, mode: Mode, kinds: &mut Known, target: u64) -> bool {
        if target >> 12 != self.rip >> 12 {
            return false;
        }
        let mut bytes = [0; 15 * PEEK];
        let room = (0x1000 - (target & 0xfff)) as usize;
        let bytes = &mut bytes[..room.min(15 * PEEK)];
        core.mmu.read_code(self.page, target & 0xfff, bytes);
        let mut decoder = decoder(core, target, bytes);
        let mut live = flags::ALL;
        let mut ins = Instruction::default();
        for _ in 0..PEEK {
            decoder.decode_out(&mut ins);
            if decoder.last_error() != DecoderError::None {
                return false;
            }
            let effect = match kind(core, mode, kinds, &ins) {
                Kind::Innocuous(_) | Kind::Special => Effect::of(&ins, self.exact),
                Kind::Nothing | Kind::Lea => Effect::default(),
                _ => return false,
            };
            if effect.reads & live != 0 {
                return false;
            }
            live &= !effect.kills;
            if live == 0 {
                return true;
            }
        }
        false
    }
}

/// Decodes the instructions of the block of `source`, but no more than `most`, into `guests`, up to one
/// at which another block begins. Gives the address behind the last one; the block is empty if the
/// first instruction does not end within its bytes.
pub fn scan(
    core: &Core,
    mode: Mode,
    kinds: &mut Known,
    source: &Fragment<'_>,
    most: usize,
    begins: impl Fn(u64) -> bool,
    guests: &mut Vec<Guest>,
) -> u64 {
    let Fragment { rip, bytes, .. } = *source;
    guests.clear();
    let mut decoder = decoder(core, rip, bytes);
    let mut ins = Instruction::default();
    while guests.len() < most {
        let offset = decoder.position();
        if offset != 0 && begins(rip.wrapping_add(offset as u64)) {
            break;
        }
        decoder.decode_out(&mut ins);
        if decoder.last_error() == DecoderError::NoMoreBytes {
            break;
        }
        let invalid = decoder.last_error() != DecoderError::None;
        let kind = if invalid {
            Kind::Interpreted
        } else {
            kind(core, mode, kinds, &ins)
        };
        let effect = match kind {
            Kind::Innocuous(_) | Kind::Special | Kind::System => Effect::of(&ins, source.exact),
            Kind::Nothing | Kind::Lea => Effect::default(),
            Kind::Branch | Kind::Access | Kind::Transfer | Kind::Interpreted => Effect::UNKNOWN,
        };
        guests.push(Guest {
            ins,
            offset,
            kind,
            effect,
            live: 0,
            member: None,
            near: None,
        });
        let enough = kind == Kind::Branch && guests.len() >= ENOUGH;
        if enough || matches!(kind, Kind::Access | Kind::Transfer | Kind::Interpreted) {
            break;
        }
    }
    let mut live = flags::ALL;
    if let Some(target) = leads_on(guests)
        && !source.exact
        && source.overwrites_flags(core, mode, kinds, target)
    {
        let last = guests.len() - 1;
        if guests[last].kind == Kind::Transfer {
            guests[last].effect = Effect::default();
        }
        live = 0;
    }
    for guest in guests.iter_mut().rev() {
        live = guest.effect.live_before(live);
        guest.live = if source.exact { flags::ALL } else { live };
    }
    // The last instruction of 4 GiB leads to the first.
    let end = if mode.is_code32() {
        0xffff_ffff
    } else {
        u64::MAX
    };
    guests.last().map_or(rip, |last| {
        rip.wrapping_add((last.offset + last.ins.len()) as u64) & end
    })
}

/// Where the block leads on to, if that is one place that it names: the target of a jump or a call at
/// its end, or what follows.
fn leads_on(guests: &[Guest]) -> Option<u64> {
    let last = guests.last()?;
    match last.ins.code() {
        Code::Jmp_rel8_64
        | Code::Jmp_rel32_64
        | Code::Call_rel32_64
        | Code::Jmp_rel8_32
        | Code::Jmp_rel32_32
        | Code::Call_rel32_32 => Some(last.ins.near_branch_target()),
        _ => match last.kind {
            Kind::Access | Kind::Transfer | Kind::Interpreted => None,
            _ => Some(last.ins.next_ip()),
        },
    }
}

fn kind(core: &Core, mode: Mode, kinds: &mut Known, ins: &Instruction) -> Kind {
    if mode.is_relative() && ins.memory_base() == Register::EIP {
        return Kind::Interpreted;
    }
    if mode.is_code32() && !reaches(mode, ins) {
        return Kind::Interpreted;
    }
    kinds.kind(ins, || find_kind(core, mode, ins))
}

/// The kind of an instruction of which translated code can form the addresses.
fn find_kind(core: &Core, mode: Mode, ins: &Instruction) -> Kind {
    if !exists(core, ins) {
        return Kind::Interpreted;
    }
    if control::is_branch(ins) {
        return Kind::Branch;
    }
    if control::is_transfer(ins) || privilege::changes(ins, mode) {
        return Kind::Transfer;
    }
    if control::is_special(ins) {
        return Kind::Special;
    }
    if system::is_system(ins, mode) {
        return Kind::System;
    }
    if system::changes_access(ins, mode) {
        return Kind::Access;
    }
    match ins.mnemonic() {
        Mnemonic::Lea if ins.op0_register().size() >= 4 => Kind::Lea,
        Mnemonic::Nop
        | Mnemonic::Endbr64
        | Mnemonic::Endbr32
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchw => Kind::Nothing,
        _ if is_left_out(ins) => Kind::Interpreted,
        _ if is_plain(ins) => Kind::Innocuous(Unit::Integer),
        _ => match innocuous(ins) {
            Some(Unit::Mmx) | None => Kind::Interpreted,
            // x87 is enabled as SSE is, but for CR4.
            Some(Unit::X87 | Unit::Wait) if !mode.sse() || !x87::is_passed_on(ins) => {
                Kind::Interpreted
            }
            Some(_) if has_mmx(ins) => Kind::Interpreted,
            Some(Unit::Sse) if !mode.sse() => Kind::Interpreted,
            Some(Unit::Avx | Unit::Avx512) if !mode.avx() => Kind::Interpreted,
            Some(unit) => Kind::Innocuous(unit),
        },
    }
}

/// Whether translated 32-bit code can form the address of the instruction's memory operands.
fn reaches(mode: Mode, ins: &Instruction) -> bool {
    let free = (0..ins.op_count()).all(|n| match ins.op_kind(n) {
        OpKind::Memory => ins.mnemonic() == Mnemonic::Lea || mode.is_free(ins.memory_segment()),
        OpKind::MemorySegESI | OpKind::MemorySegEDI => mode.is_free(ins.memory_segment()),
        OpKind::MemoryESEDI => mode.is_free(Register::ES),
        _ => true,
    });
    free && !has_address16(ins)
}

/// Whether an SSE instruction has an operand of MMX.
fn has_mmx(ins: &Instruction) -> bool {
    (0..ins.op_count()).any(|n| ins.op_kind(n) == OpKind::Register && ins.op_register(n).is_mm())
}

/// Moves and atomic operations of the integer unit.
fn is_plain(ins: &Instruction) -> bool {
    match ins.mnemonic() {
        Mnemonic::Mov => true,
        Mnemonic::Xchg | Mnemonic::Xadd | Mnemonic::Cmpxchg => true,
        Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b => ins.op0_kind() == OpKind::Memory,
        Mnemonic::Add
        | Mnemonic::Adc
        | Mnemonic::And
        | Mnemonic::Dec
        | Mnemonic::Inc
        | Mnemonic::Neg
        | Mnemonic::Not
        | Mnemonic::Or
        | Mnemonic::Sbb
        | Mnemonic::Sub
        | Mnemonic::Xor => ins.op0_kind() == OpKind::Memory || !ins.has_lock_prefix(),
        Mnemonic::Bt | Mnemonic::Btc | Mnemonic::Btr | Mnemonic::Bts => {
            ins.op1_kind() == OpKind::Immediate8
                && (ins.op0_kind() == OpKind::Memory || !ins.has_lock_prefix())
        }
        _ => false,
    }
}
