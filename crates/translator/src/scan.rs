//! Which instructions make a block.

use crate::block::{Guest, Kind};
use crate::control;
use crate::flags::{self, Effect};
use crate::generic::is_left_out;
use crate::mode::Mode;
use crate::system;
use belljar_interpreter::processor::Core;
use belljar_interpreter::{decoder, exists};
use belljar_passthrough::{Unit, innocuous};
use iced_x86::{DecoderError, Instruction, Mnemonic, OpKind, Register};

/// Decodes the instructions of the block at `rip`, but no more than `most`, into `guests`, up to one
/// at which another block begins. Gives the address behind the last one; the block is empty if the
/// first instruction does not end within `bytes`.
pub fn scan(
    core: &Core,
    mode: Mode,
    rip: u64,
    bytes: &[u8],
    most: usize,
    begins: impl Fn(u64) -> bool,
    guests: &mut Vec<Guest>,
) -> u64 {
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
            kind(core, mode, &ins)
        };
        let effect = match kind {
            Kind::Innocuous(_) | Kind::Special | Kind::System => Effect::of(&ins),
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
        });
        if matches!(kind, Kind::Access | Kind::Transfer | Kind::Interpreted) {
            break;
        }
    }
    let mut live = flags::ALL;
    for guest in guests.iter_mut().rev() {
        live = guest.effect.live_before(live);
        // Counting code is exact to the instruction, even in the flags that a fault shows and that
        // are overwritten before the program sees them.
        guest.live = if mode.counting() { flags::ALL } else { live };
    }
    guests.last().map_or(rip, |last| {
        rip.wrapping_add((last.offset + last.ins.len()) as u64)
    })
}

fn kind(core: &Core, mode: Mode, ins: &Instruction) -> Kind {
    if !exists(core, ins) || mode.is_relative() && ins.memory_base() == Register::EIP {
        return Kind::Interpreted;
    }
    if control::is_branch(ins) {
        return Kind::Branch;
    }
    if control::is_transfer(ins) {
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
            Some(Unit::X87 | Unit::Wait | Unit::Mmx) | None => Kind::Interpreted,
            Some(_) if has_mmx(ins) => Kind::Interpreted,
            Some(Unit::Sse) if !mode.sse() => Kind::Interpreted,
            Some(Unit::Avx | Unit::Avx512) if !mode.avx() => Kind::Interpreted,
            Some(unit) => Kind::Innocuous(unit),
        },
    }
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
