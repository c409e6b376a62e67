//! A case in words.

use crate::case::{Case, Failure, Outcome, Registers};
use crate::catalogue::gpr_number;
use crate::compare::{Difference, hex, hex_bytes};
use crate::encode::decode;
use crate::layout::{BLOCK, DATA_LEN, data_offset};
use iced_x86::{FastFormatter, Instruction, InstructionInfoFactory, OpKind, Register};
use std::fmt::Write;

/// The instruction of one byte that does nothing.
pub(crate) const NOP: u8 = 0x90;

/// Linear address of an instruction's explicit memory operand, with the registers as they are. `None` without one, and for
/// the addresses of gathers and scatters.
pub(crate) fn effective_address(instruction: &Instruction, registers: &Registers) -> Option<u64> {
    let operand =
        (0..instruction.op_count()).find(|&n| instruction.op_kind(n) == OpKind::Memory)?;
    operand_address(instruction, operand, registers)
}

/// Linear address of operand number `operand`, if it is one in memory.
pub(crate) fn operand_address(
    instruction: &Instruction,
    operand: u32,
    registers: &Registers,
) -> Option<u64> {
    instruction.virtual_address(operand, 0, |register, _, _| match register {
        Register::FS => Some(registers.fs_base),
        Register::GS => Some(registers.gs_base),
        _ if register.is_segment_register() => Some(0),
        _ => {
            let value = registers.gpr[gpr_number(register)?];
            Some(if register.is_gpr32() {
                value & 0xffff_ffff
            } else {
                value
            })
        }
    })
}

/// `case`, what it starts from, and in what its outcomes differ.
pub fn describe(case: &Case, differences: &[Difference]) -> String {
    let mut text = String::new();
    let (seed, index, shape) = (case.seed, case.index, case.shape);
    let _ = writeln!(text, "--seed {seed:#x} --case {index} {shape}");
    let _ = write_code(&mut text, case);
    let _ = write_cells(&mut text, case);
    let _ = write_registers(&mut text, case);
    for difference in differences {
        let _ = writeln!(text, "  differs: {}", difference.what);
        let _ = writeln!(text, "    host   {}", difference.host);
        let _ = writeln!(text, "    engine {}", difference.engine);
    }
    text
}

/// The differences of two runs, of which at least one may have failed to give an outcome.
pub fn failures(
    host: &Result<Outcome, Failure>,
    engine: &Result<Outcome, Failure>,
) -> Vec<Difference> {
    let text = |result: &Result<Outcome, Failure>| match result {
        Ok(outcome) => format!("ended with exception {}", outcome.fault.vector),
        Err(failure) => failure.to_string(),
    };
    vec![Difference {
        what: "the end".into(),
        host: text(host),
        engine: text(engine),
    }]
}

fn write_code(text: &mut String, case: &Case) -> std::fmt::Result {
    let mut formatter = FastFormatter::new();
    let mut address = case.registers.rip;
    for bytes in &case.instructions {
        let digits = hex_bytes(bytes);
        let mut words = String::new();
        match decode(bytes) {
            Some(encoded) => {
                let mut instruction = encoded.instruction;
                relocate(&mut instruction, address);
                formatter.format(&instruction, &mut words);
                let _ = write!(words, "  ({:?})", instruction.code());
            }
            None => words.push_str("(not an instruction)"),
        }
        // What a report has no need of has become NOPs.
        if bytes.iter().any(|&byte| byte != NOP) {
            writeln!(text, "  {address:#x}: {digits:<46}{words}")?;
        }
        address = address.wrapping_add(bytes.len() as u64);
    }
    Ok(())
}

/// Moves an instruction decoded at address 0 to `address`.
pub(crate) fn relocate(instruction: &mut Instruction, address: u64) {
    instruction.set_ip(address);
    if instruction.is_ip_rel_memory_operand() {
        let target = instruction.memory_displacement64().wrapping_add(address);
        instruction.set_memory_displacement64(target);
    }
    if instruction.op0_kind() == OpKind::NearBranch64 {
        let target = instruction.near_branch64().wrapping_add(address);
        instruction.set_near_branch64(target);
    }
}

fn write_cells(text: &mut String, case: &Case) -> std::fmt::Result {
    let cells = &case.cells;
    for (number, word) in cells.bytes.chunks(8).enumerate() {
        let at = BLOCK + (cells.offset + 8 * number) as u64;
        writeln!(text, "  {at:#x}: {}", hex_bytes(word))?;
    }
    Ok(())
}

fn write_registers(text: &mut String, case: &Case) -> std::fmt::Result {
    let registers = &case.registers;
    for (n, value) in registers.gpr.iter().enumerate() {
        let name = format!("{:?}", Register::RAX + n as u32).to_lowercase();
        let end = if n % 4 == 3 { "\n" } else { "" };
        write!(text, "  {name:>3} {value:016x}{end}")?;
    }
    let x87 = &case.vector.x87;
    writeln!(
        text,
        "  rflags {:x} fs {:x} gs {:x} mxcsr {:x} fcw {:x} fsw {:x} ftw {:x}",
        registers.rflags,
        registers.fs_base,
        registers.gs_base,
        x87.mxcsr,
        x87.fcw,
        x87.fsw,
        x87.ftw
    )?;
    write_operands(text, case)
}

/// The vector registers and the memory that a case of one instruction starts from.
fn write_operands(text: &mut String, case: &Case) -> std::fmt::Result {
    let [bytes] = &case.instructions[..] else {
        return Ok(());
    };
    let Some(mut instruction) = decode(bytes).map(|e| e.instruction) else {
        return Ok(());
    };
    relocate(&mut instruction, case.registers.rip);
    let mut factory = InstructionInfoFactory::new();
    for used in factory.info(&instruction).used_registers() {
        let register = used.register();
        if register.is_vector_register() {
            let words = case.vector.zmm[register.number()];
            writeln!(text, "  zmm{} {}", register.number(), hex(&words))?;
        } else if register.is_k() {
            writeln!(
                text,
                "  k{} {:x}",
                register.number(),
                case.vector.k[register.number()]
            )?;
        } else if register.is_st() {
            let words = case.vector.x87.st[register.number()];
            writeln!(
                text,
                "  st{} {:04x}_{:016x}",
                register.number(),
                words[1],
                words[0]
            )?;
        }
    }
    if let Some(address) = effective_address(&instruction, &case.registers) {
        write!(text, "  memory at {address:#x}:")?;
        if let Some(offset) = data_offset(address, 1) {
            let len = instruction.memory_size().size().clamp(8, 64);
            for byte in &case.data[offset..(offset + len).min(DATA_LEN)] {
                write!(text, " {byte:02x}")?;
            }
        }
        writeln!(text)?;
    }
    Ok(())
}
