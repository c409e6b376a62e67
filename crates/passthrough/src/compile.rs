//! From a decoded instruction to a stub.

use crate::class::{self, Pointers};
use crate::elements::Elements;
use crate::emit::{self, Host, Plan};
use crate::host;
use crate::masked::Masking;
use crate::registers::{OPERAND, Renaming, Usage};
use crate::stub::Work;
use crate::{CompileError, Memory, Stub, Unit};
use iced_x86::{
    Code, CodeSize, EncodingKind, Instruction, InstructionInfoFactory, InstructionInfoOptions,
    MemoryOperand, MemorySize, Mnemonic, OpAccess, Register,
};

/// The most bytes that an operand has: FSAVE's image has 108.
pub(crate) const MAX_OPERAND: usize = 128;

/// What is known of an instruction before its code is made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Analysis {
    /// The stub, without its entry.
    pub(crate) stub: Stub,
    /// The instruction that the host is to run, if it is to run one: in 64-bit form, without an
    /// address.
    pub(crate) host: Option<Instruction>,
}

/// Analyses `instruction`.
pub(crate) fn analyse(instruction: &Instruction) -> Result<Analysis, CompileError> {
    let on_host = host::supports(instruction).ok_or(CompileError::NotInnocuous)?;
    if !on_host {
        return Err(CompileError::NotOnHost);
    }
    let mut unit = class::unit(instruction).ok_or(CompileError::NotInnocuous)?;
    if unit == Unit::Integer && instruction.encoding() == EncodingKind::VEX {
        unit = Unit::IntegerVex;
    }
    let mut stub = Stub {
        entry: 0,
        generation: 0,
        work: Work::Host,
        memory: Memory::None,
        masking: None,
        natural_alignment: natural_alignment(instruction),
        unit,
        has_effects: true,
        x87_store: class::is_x87_store(instruction),
        waits: class::waits(instruction),
        mmx: class::uses_mmx(instruction),
        records_pointers: class::pointers(instruction) == Pointers::Record,
        x87_opcode: 0,
    };
    if let Some(work) = special(instruction)? {
        (stub.work, stub.memory) = work;
        let host = mmx_switch(work.0)?;
        return Ok(Analysis { stub, host });
    }
    (stub.memory, stub.masking) = memory(instruction, unit)?;
    if let Some(masking) = stub.masking.filter(|masking| !masking.checks_all) {
        stub.natural_alignment = masking.natural_alignment();
    }
    Ok(Analysis {
        stub,
        host: Some(without_address(instruction)),
    })
}

/// Instructions that are not run by the host.
fn special(instruction: &Instruction) -> Result<Option<(Work, Memory)>, CompileError> {
    use Mnemonic as M;
    if instruction.vsib().is_some() {
        let elements = Elements::of(instruction).ok_or(CompileError::NotInnocuous)?;
        // A gather's data is its first operand, a scatter's first operand is memory.
        let write = instruction.op0_register() == Register::None;
        let work = if write {
            Work::Scatter(elements)
        } else {
            Work::Gather(elements)
        };
        let size = elements.size;
        return Ok(Some((work, Memory::Elements { size, write })));
    }
    let zero_upper = |keep| {
        // Outside 64-bit mode only eight registers are reached.
        let registers = if instruction.code_size() == CodeSize::Code64 {
            16
        } else {
            8
        };
        (Work::ZeroUpper { registers, keep }, Memory::None)
    };
    Ok(match instruction.mnemonic() {
        M::Vzeroupper => Some(zero_upper(2)),
        M::Vzeroall => Some(zero_upper(0)),
        M::Ldmxcsr | M::Vldmxcsr => {
            let memory = Memory::Whole {
                size: 4,
                alignment: 1,
                read: true,
                write: false,
            };
            Some((Work::LoadMxcsr, memory))
        }
        M::Maskmovdqu | M::Vmaskmovdqu | M::Maskmovq => {
            let mmx = instruction.mnemonic() == M::Maskmovq;
            let work = Work::MaskMove {
                data: instruction.op1_register().number() as u8,
                mask: instruction.op2_register().number() as u8,
                mmx,
            };
            let size = if mmx { 8 } else { 16 };
            Some((work, Masking::memory(size, 1, false, true)))
        }
        _ => None,
    })
}

/// What the operand's address must be a multiple of when alignment is checked: of x87's larger
/// operands the parts count, of vectors 16 bytes. SDM 3A, table 6-7.
fn natural_alignment(instruction: &Instruction) -> u8 {
    let is_mask_move = matches!(
        instruction.mnemonic(),
        Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu | Mnemonic::Maskmovq
    );
    match instruction.memory_size() {
        _ if is_mask_move => 8,
        MemorySize::FpuEnv14 | MemorySize::FpuState94 => 2,
        MemorySize::FpuEnv28 | MemorySize::FpuState108 => 4,
        MemorySize::Float80 | MemorySize::Bcd => 8,
        size => size.size().clamp(1, 16) as u8,
    }
}

/// For MASKMOVQ: an instruction that does to x87's state what every MMX instruction does, and
/// nothing else but storing the data.
fn mmx_switch(work: Work) -> Result<Option<Instruction>, CompileError> {
    let Work::MaskMove {
        data, mmx: true, ..
    } = work
    else {
        return Ok(None);
    };
    let (register, memory) = (
        Register::MM0 + u32::from(data & 7),
        MemoryOperand::with_base(OPERAND),
    );
    // Not a move between registers, which would set the exponent.
    let instruction = Instruction::with2(Code::Movq_mmm64_mm, memory, register)
        .map_err(|_| CompileError::NotInnocuous)?;
    Ok(Some(without_address(&instruction)))
}

/// The memory operand of an instruction that the host runs.
fn memory(
    instruction: &Instruction,
    unit: Unit,
) -> Result<(Memory, Option<Masking>), CompileError> {
    let Some(operand) = class::memory_operand(instruction) else {
        return Ok((Memory::None, None));
    };
    let mut factory = InstructionInfoFactory::new();
    let options =
        InstructionInfoOptions::NO_MEMORY_USAGE | InstructionInfoOptions::NO_REGISTER_USAGE;
    let access = factory
        .info_options(instruction, options)
        .op_access(operand);
    let (read, write) = match access {
        OpAccess::Read | OpAccess::CondRead => (true, false),
        OpAccess::Write | OpAccess::CondWrite => (false, true),
        OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true),
        OpAccess::None | OpAccess::NoMemAccess => return Err(CompileError::NotInnocuous),
    };
    let size = instruction.memory_size().size();
    if size == 0 || size > MAX_OPERAND {
        return Err(CompileError::NotInnocuous);
    }
    let alignment = class::alignment(instruction, unit, size);
    let size = size as u16;
    Ok(match Masking::of(instruction) {
        Some(masking) => (Masking::memory(size, alignment, read, write), Some(masking)),
        None => (
            Memory::Whole {
                size,
                alignment,
                read,
                write,
            },
            None,
        ),
    })
}

/// The instruction in 64-bit code, with nothing left of its address and its segment.
fn without_address(instruction: &Instruction) -> Instruction {
    let mut plain = *instruction;
    plain.set_code_size(CodeSize::Code64);
    plain.set_segment_prefix(Register::None);
    if !class::has_memory(instruction) {
        // The second immediate of EXTRQ and INSERTQ has its place where a displacement has its.
        return plain;
    }
    plain.set_memory_base(Register::None);
    plain.set_memory_index(Register::None);
    plain.set_memory_index_scale(1);
    plain.set_memory_displacement64(0);
    plain.set_memory_displ_size(0);
    plain
}

/// The code that runs `instruction`, and whether it changes anything but memory.
pub(crate) fn generate(
    host: Host,
    unit: Unit,
    instruction: &Instruction,
) -> Result<(Vec<u8>, bool), CompileError> {
    let usage = Usage::new(instruction);
    let renaming = Renaming::new(instruction, &usage).ok_or(CompileError::NotInnocuous)?;
    let needs_x87 = matches!(unit, Unit::X87 | Unit::Wait) || class::uses_mmx(instruction);
    let data_dependent = instruction.rflags_read() | instruction.rflags_undefined();
    let plan = Plan {
        usage,
        renaming,
        flags_in: emit::status_flags(data_dependent) != 0
            || class::may_keep_flags(instruction.mnemonic()),
        flags_out: emit::status_flags(instruction.rflags_modified()),
        mxcsr: class::uses_mxcsr(instruction),
        x87: needs_x87.then(|| class::pointers(instruction)),
    };
    let mut renamed = *instruction;
    renaming.apply(&mut renamed);
    let has_effects = usage.writes() || plan.flags_out != 0 || plan.mxcsr || needs_x87;
    // What has no encoding in 64-bit mode is left to the engine.
    let code = emit::stub(host, &plan, &renamed).map_err(|_| CompileError::NotInnocuous)?;
    Ok((code, has_effects))
}
