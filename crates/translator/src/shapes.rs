//! What an opcode says of its operands, remembered for each.

use crate::forms::{self, Field};
use iced_x86::{
    Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess, OpKind,
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

    /// Whether an instruction writes to its memory operand.
    pub fn writes_memory(&mut self, ins: &Instruction) -> bool {
        ins.op0_kind() == OpKind::Memory && self.of(ins).writes(0)
    }
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
