//! What an opcode says of its operands, remembered for each.

use crate::forms::{self, Field};
use crate::registers::number;
use iced_x86::{
    Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess, OpKind,
    Register, UsedRegister,
};

/// More than there are opcodes, as the decoder tells them apart.
const OPCODES: usize = 1 << 13;
/// The operands that can be a general-purpose register or in memory.
const OPERANDS: usize = 4;

/// What an opcode says of its operands.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Where those stand that are general-purpose registers; see [`forms::field_of`].
    pub fields: [Option<Field>; OPERANDS],
    /// Which are written, a bit each.
    written: u8,
    /// General-purpose registers that are written without being named, a bit each. What string instructions
    /// write depends on prefixes, too.
    implied: u16,
    /// Whether it uses RAX without naming it.
    pub uses_rax: bool,
    /// Whether the guest's RAX must be in the host's: it is used, and has no field.
    pub in_rax: bool,
    /// Whether it is an operation of the accumulator and a constant in the form that is for those alone.
    pub names_accumulator: bool,
}

impl Shape {
    /// Whether an operand is written.
    pub const fn writes(self, operand: u32) -> bool {
        self.written >> (operand & 7) & 1 != 0
    }

    fn of(info: &mut InstructionInfoFactory, ins: &Instruction) -> Self {
        let implied = implied(info, ins);
        let options =
            InstructionInfoOptions::NO_MEMORY_USAGE | InstructionInfoOptions::NO_REGISTER_USAGE;
        let info = info.info_options(ins, options);
        let reads = |operand: &u32| {
            matches!(
                info.op_access(*operand),
                OpAccess::Read | OpAccess::CondRead | OpAccess::None | OpAccess::NoMemAccess
            )
        };
        let operands = 0..ins.op_count().min(OPERANDS as u32);
        let code = ins.op_code();
        let mut fields = [None; OPERANDS];
        for n in operands.clone() {
            fields[n as usize] = forms::field_of(ins, code.op_kind(n));
        }
        let mnemonic = ins.mnemonic();
        let uses_rax = uses_rax(mnemonic);
        let of_more = mnemonic == Mnemonic::Imul && ins.op_count() > 1;
        Self {
            fields,
            implied,
            written: operands
                .filter(|n| !reads(n))
                .fold(0, |all, n| all | 1 << n),
            uses_rax,
            in_rax: uses_rax && !of_more || fields.contains(&Some(Field::Implicit)),
            names_accumulator: forms::names_accumulator(ins),
        }
    }
}

/// The shapes of all opcodes that were met.
#[derive(Debug)]
pub struct Shapes {
    known: Box<[Option<Shape>]>,
    info: InstructionInfoFactory,
}

impl Shapes {
    /// Nothing was met.
    pub fn new() -> Self {
        Self {
            known: vec![None; OPCODES].into(),
            info: InstructionInfoFactory::new(),
        }
    }

    /// The shape of the opcode of `ins`.
    #[inline]
    pub fn of(&mut self, ins: &Instruction) -> Shape {
        let known = &mut self.known[ins.code() as usize];
        match *known {
            Some(shape) => shape,
            None => *known.insert(Shape::of(&mut self.info, ins)),
        }
    }

    /// The general-purpose registers that an instruction may write to, a bit each.
    pub fn written(&mut self, ins: &Instruction) -> u16 {
        let shape = self.of(ins);
        let named = (0..ins.op_count().min(OPERANDS as u32))
            .filter(|&n| shape.writes(n) && ins.op_kind(n) == OpKind::Register)
            .map(|n| ins.op_register(n))
            .filter(|register| register.is_gpr())
            .fold(0, |all, register| all | 1 << number(register));
        let of_strings = if ins.is_string_instruction() {
            STRINGS
        } else {
            0
        };
        shape.implied | named | of_strings
    }

    /// Whether an instruction writes to its memory operand.
    pub fn writes_memory(&mut self, ins: &Instruction) -> bool {
        ins.op0_kind() == OpKind::Memory && self.of(ins).writes(0)
    }
}

/// RAX, RCX, RSI and RDI.
const STRINGS: u16 = 1 << 0 | 1 << 1 | 1 << 6 | 1 << 7;

/// The general-purpose registers that the opcode of `ins` writes to without naming them.
fn implied(info: &mut InstructionInfoFactory, ins: &Instruction) -> u16 {
    // None is implied that is R15.
    let mut other = *ins;
    for n in 0..ins.op_count() {
        let register = match ins.op_register(n) {
            register if ins.op_kind(n) != OpKind::Register || !register.is_gpr() => continue,
            register if register.is_gpr64() => Register::R15,
            register if register.is_gpr32() => Register::R15D,
            register if register.is_gpr16() => Register::R15W,
            _ => Register::R15L,
        };
        other.set_op_register(n, register);
    }
    let written = |used: &&UsedRegister| {
        let reads = matches!(
            used.access(),
            OpAccess::None | OpAccess::Read | OpAccess::CondRead | OpAccess::NoMemAccess
        );
        !reads && used.register().is_gpr() && used.register().full_register() != Register::R15
    };
    let used = info.info_options(&other, InstructionInfoOptions::NO_MEMORY_USAGE);
    let used = used.used_registers().iter().filter(written);
    used.fold(0, |all, used| all | 1 << number(used.register()))
}

/// Instructions that use RAX without naming it.
fn uses_rax(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Mul
            | Mnemonic::Imul
            | Mnemonic::Div
            | Mnemonic::Idiv
            | Mnemonic::Cbw
            | Mnemonic::Cwde
            | Mnemonic::Cdqe
            | Mnemonic::Cwd
            | Mnemonic::Cdq
            | Mnemonic::Cqo
            | Mnemonic::Cmpxchg
            | Mnemonic::Cmpxchg8b
            | Mnemonic::Cmpxchg16b
            | Mnemonic::Lahf
            | Mnemonic::Sahf
            | Mnemonic::Pcmpestri
            | Mnemonic::Pcmpestrm
            | Mnemonic::Pcmpestri64
            | Mnemonic::Pcmpestrm64
            | Mnemonic::Vpcmpestri
            | Mnemonic::Vpcmpestrm
            | Mnemonic::Vpcmpestri64
            | Mnemonic::Vpcmpestrm64
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::code_asm::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn written(write: impl FnOnce(&mut CodeAssembler)) -> u16 {
        let mut assembler = CodeAssembler::new(64).unwrap();
        write(&mut assembler);
        let code = assembler.assemble(0).unwrap();
        let ins = Decoder::new(64, &code, DecoderOptions::NONE).decode();
        let mut shapes = Shapes::new();
        // What is remembered of one serves others.
        let first = shapes.written(&ins);
        assert_eq!(shapes.written(&ins), first);
        first
    }

    fn bits(numbers: &[u16]) -> u16 {
        numbers.iter().fold(0, |all, number| all | 1 << number)
    }

    #[test]
    fn registers_are_written_that_no_operand_names() {
        assert_eq!(written(|a| a.mov(rbx, rcx).unwrap()), bits(&[3]));
        assert_eq!(written(|a| a.cmp(rbx, rcx).unwrap()), 0);
        assert_eq!(written(|a| a.mov(ah, 1).unwrap()), bits(&[0]));
        assert_eq!(written(|a| a.mul(rbx).unwrap()), bits(&[0, 2]));
        assert_eq!(written(|a| a.mul(rax).unwrap()), bits(&[0, 2]));
        assert_eq!(written(|a| a.idiv(r15).unwrap()), bits(&[0, 2]));
        assert_eq!(written(|a| a.mulx(rbx, r9, rcx).unwrap()), bits(&[3, 9]));
        assert_eq!(written(|a| a.xadd(rbx, rsi).unwrap()), bits(&[3, 6]));
        assert_eq!(written(|a| a.xchg(rbx, rsi).unwrap()), bits(&[3, 6]));
        assert_eq!(written(|a| a.cmpxchg(ptr(rbx), rsi).unwrap()), bits(&[0]));
        assert_eq!(written(|a| a.cmpxchg16b(ptr(rbx)).unwrap()), bits(&[0, 2]));
        assert_eq!(written(|a| a.rdtscp().unwrap()), bits(&[0, 1, 2]));
        assert_eq!(written(|a| a.pcmpestri(xmm1, xmm2, 0).unwrap()), bits(&[1]));
        assert_eq!(written(|a| a.pmovmskb(r9d, xmm2).unwrap()), bits(&[9]));
        assert_eq!(written(|a| a.push(rbx).unwrap()), bits(&[4]));
        assert_eq!(written(|a| a.pop(rbx).unwrap()), bits(&[3, 4]));
        assert_eq!(written(|a| a.leave().unwrap()), bits(&[4, 5]));
        let strings = bits(&[0, 1, 6, 7]);
        assert_eq!(written(|a| a.movsb().unwrap()), strings);
        assert_eq!(written(|a| a.lodsq().unwrap()), strings);
    }
}
