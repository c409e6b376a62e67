//! Which operand stands where in an instruction's encoding, and other forms of it that do the same: in
//! 64-bit code, with another register than the accumulator, or with an operand in memory.

use crate::encoding::{Encoding, Form};
use crate::registers::{self, Place, number};
use crate::width::is_absolute_move;
use iced_x86::{Code, ConditionCode, Instruction, Mnemonic, OpCodeOperandKind as K, OpKind};

/// Where an operand stands in the encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Reg,
    Rm,
    Vvvv,
    Opcode,
    Implicit,
}

/// The field of an operand that is a register.
fn field(kind: K) -> Option<Field> {
    Some(match kind {
        K::r8_reg
        | K::r16_reg
        | K::r16_reg_mem
        | K::r32_reg
        | K::r32_reg_mem
        | K::r64_reg
        | K::r64_reg_mem => Field::Reg,
        K::r8_or_mem
        | K::r16_or_mem
        | K::r32_or_mem
        | K::r64_or_mem
        | K::r32_or_mem_mpx
        | K::r64_or_mem_mpx
        | K::r16_rm
        | K::r32_rm
        | K::r64_rm => Field::Rm,
        K::r32_vvvv | K::r64_vvvv => Field::Vvvv,
        K::r8_opcode | K::r16_opcode | K::r32_opcode | K::r64_opcode => Field::Opcode,
        K::al | K::ax | K::eax | K::rax => Field::Implicit,
        _ => return None,
    })
}

/// The same, once the instruction is [`lengthened`] and has been [`freed_of_accumulator`] and
/// [`freed_of_address`].
pub fn field_of(ins: &Instruction, kind: K) -> Option<Field> {
    match ins.code() {
        Code::Inc_r32 | Code::Inc_r16 | Code::Dec_r32 | Code::Dec_r16 => Some(Field::Rm),
        _ if is_absolute_move(ins) => Some(Field::Reg),
        _ if names_accumulator(ins) && is_accumulator(kind) => Some(Field::Rm),
        _ => field(kind),
    }
}

/// Whether it is an operation of the accumulator and a constant in the form that is for those alone.
pub fn names_accumulator(ins: &Instruction) -> bool {
    is_binary(ins.mnemonic()) && is_accumulator(ins.op_code().op_kind(0))
}

/// The operations of arithmetic and logic that have a form for every pair of operands.
const fn is_binary(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Add
            | Mnemonic::Or
            | Mnemonic::Adc
            | Mnemonic::Sbb
            | Mnemonic::And
            | Mnemonic::Sub
            | Mnemonic::Xor
            | Mnemonic::Cmp
            | Mnemonic::Test
    )
}

const fn is_accumulator(kind: K) -> bool {
    matches!(kind, K::al | K::ax | K::eax | K::rax)
}

/// The form with ModRM of an instruction that [`names_accumulator`], whose place is another register
/// of the host.
pub fn freed_of_accumulator(mut encoding: Encoding<'_>) -> Encoding<'_> {
    let size = encoding.opcode & 1;
    // TEST is in the third group, the others in the first in the order of their opcodes.
    (encoding.opcode, encoding.modrm) = match encoding.opcode {
        0xa8 | 0xa9 => (0xf6 | size, Some(0xc0)),
        opcode => (0x80 | size, Some(0xc0 | opcode & 0x38)),
    };
    encoding
}

/// The form with ModRM of a MOV between the accumulator and an address in the instruction.
pub fn freed_of_address<'a>(ins: &Instruction, mut encoding: Encoding<'a>) -> Encoding<'a> {
    if is_absolute_move(ins) {
        encoding.opcode = 0x88 | encoding.opcode & 1 | !encoding.opcode & 2;
        encoding.modrm = Some(0);
        encoding.immediate = &[];
    }
    encoding
}

/// The encoding with the two registers in each other's field, if it has one and only the register that
/// it has in ModRM.reg lives in the environment: it can be an operand in memory.
pub fn exchanged<'a>(ins: &Instruction, encoding: &Encoding<'a>) -> Option<Encoding<'a>> {
    let opcode = match (encoding.form, encoding.opcode) {
        (Form::Legacy(0), opcode @ (0x00..=0x3f | 0x88..=0x8b)) if opcode & 7 < 4 => opcode ^ 2,
        (Form::Legacy(0), opcode @ (0x84 | 0x85)) => opcode,
        _ => return None,
    };
    if (0..2).any(|n| ins.op_kind(n) != OpKind::Register) {
        return None;
    }
    let in_memory = |n| registers::place(number(ins.op_register(n))) == Place::Memory;
    let code = ins.op_code();
    let (reg, rm) = if field(code.op_kind(0)) == Some(Field::Reg) {
        (0, 1)
    } else {
        (1, 0)
    };
    (in_memory(reg) && !in_memory(rm)).then_some(Encoding {
        opcode,
        ..*encoding
    })
}

/// Whether the operand, a register of the environment, can be named as memory in ModRM.rm. What
/// writes 32 bits of a register would have to clear the others, and what is written in part could not
/// be read as a whole soon.
pub fn can_be_memory(ins: &Instruction, operand: u32, written: bool) -> bool {
    let size = ins.op_register(operand).size();
    let own = number(ins.op_register(operand));
    let twice = (0..ins.op_count()).any(|n| {
        n != operand && ins.op_kind(n) == OpKind::Register && number(ins.op_register(n)) == own
    });
    if written && size != 8 || twice {
        return false;
    }
    let plain = matches!(
        ins.mnemonic(),
        Mnemonic::Mov
            | Mnemonic::Movzx
            | Mnemonic::Movsx
            | Mnemonic::Movsxd
            | Mnemonic::Inc
            | Mnemonic::Dec
            | Mnemonic::Neg
            | Mnemonic::Not
            | Mnemonic::Shl
            | Mnemonic::Shr
            | Mnemonic::Sar
            | Mnemonic::Imul
            | Mnemonic::Mul
    );
    let moves_if = ins.condition_code() != ConditionCode::None && ins.op_count() == 2;
    plain || moves_if || is_binary(ins.mnemonic())
}

/// The encoding in 64-bit code of an instruction of 32-bit code. `None` for what few assemblers
/// write: bits of VEX and EVEX that 32-bit code ignores, set as they would mean something.
pub fn lengthened<'a>(ins: &Instruction, mut encoding: Encoding<'a>) -> Option<Encoding<'a>> {
    let general = || (0..ins.op_count()).any(|n| ins.op_register(n).is_gpr());
    match encoding.form {
        Form::Legacy(0) => match encoding.opcode {
            // INC and DEC are REX there.
            opcode @ 0x40..=0x4f => {
                encoding.opcode = 0xff;
                encoding.modrm = Some(0xc0 | opcode & 8);
            }
            0x82 => encoding.opcode = 0x80,
            _ => {}
        },
        Form::Legacy(_) => {}
        Form::Vex([first, second]) => {
            let usual = first & 0xe0 == 0xe0 && second & 0x40 != 0;
            if !usual || second & 0x80 != 0 && general() {
                return None;
            }
        }
        Form::Evex([first, second, third]) => {
            let usual = first & 0xf0 == 0xf0 && second & 0x40 != 0 && third & 8 != 0;
            if !usual || second & 0x80 != 0 && general() {
                return None;
            }
        }
    }
    Some(encoding)
}
