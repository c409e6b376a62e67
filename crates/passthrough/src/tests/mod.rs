//! Stubs against known results and the architecture's rules.

mod faults;
mod integer;
mod masked;
mod native;
mod random;
mod vector;
mod x87;

use crate::{CompileError, OperandMemory, Stub, Stubs};
use belljar_x86::bits::{cr0, cr4, xstate};
use belljar_x86::{CpuState, Exception};
use iced_x86::{Decoder, DecoderOptions};

/// A state in protected mode with every unit enabled.
fn cpu() -> CpuState {
    let mut cpu = CpuState::reset(0);
    cpu.cr0 = cr0::PE | cr0::NE | cr0::MP;
    cpu.cr4 = cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
    cpu.xcr0 = xstate::X87 | xstate::SSE | xstate::AVX | xstate::AVX512;
    cpu.vector.x87.fcw = 0x37f;
    cpu
}

fn stubs() -> Stubs {
    Stubs::new(1 << 20).unwrap()
}

fn try_compile(stubs: &mut Stubs, bits: u32, bytes: &[u8]) -> Result<Stub, CompileError> {
    let instruction = Decoder::new(bits, bytes, DecoderOptions::NONE).decode();
    assert!(!instruction.is_invalid(), "{bytes:x?}");
    stubs.compile(&instruction, &bytes[..instruction.len()])
}

/// Compiles and runs an instruction of 64-bit code without memory operand.
fn run(cpu: &mut CpuState, bytes: &[u8]) -> Result<(), Exception> {
    run_bits(64, cpu, bytes)
}

fn run_bits(bits: u32, cpu: &mut CpuState, bytes: &[u8]) -> Result<(), Exception> {
    let mut stubs = stubs();
    let stub = try_compile(&mut stubs, bits, bytes).unwrap();
    stub.check_enabled(cpu)?;
    stubs.run(&stub, cpu)
}

/// Runs an instruction of 64-bit code with its operand at offset 0 of `memory`.
fn run_on(cpu: &mut CpuState, bytes: &[u8], memory: &mut Bytes) -> Result<(), Exception> {
    let mut stubs = stubs();
    let stub = try_compile(&mut stubs, 64, bytes).unwrap();
    stub.check_enabled(cpu)?;
    stubs.run_with_memory(&stub, cpu, memory)
}

/// Memory of which the first bytes exist.
#[derive(Debug)]
struct Bytes(Vec<u8>);

/// What an access beyond the bytes raises.
const MISSING: Exception = Exception::page_fault(0x1000, 0);

impl Bytes {
    fn range(&self, offset: u64, length: usize) -> Result<std::ops::Range<usize>, Exception> {
        let start = usize::try_from(offset).map_err(|_| MISSING)?;
        let end = start.checked_add(length).ok_or(MISSING)?;
        if end > self.0.len() {
            return Err(MISSING);
        }
        Ok(start..end)
    }
}

impl OperandMemory for Bytes {
    fn read(&mut self, _cpu: &CpuState, offset: u64, bytes: &mut [u8]) -> Result<(), Exception> {
        let range = self.range(offset, bytes.len())?;
        bytes.copy_from_slice(&self.0[range]);
        Ok(())
    }

    fn check_write(&mut self, _cpu: &CpuState, offset: u64, size: usize) -> Result<(), Exception> {
        self.range(offset, size).map(drop)
    }

    fn write(&mut self, _cpu: &CpuState, offset: u64, bytes: &[u8]) -> Result<(), Exception> {
        let range = self.range(offset, bytes.len())?;
        self.0[range].copy_from_slice(bytes);
        Ok(())
    }
}

/// Two single-precision numbers in a 64-bit word.
fn floats(low: f32, high: f32) -> u64 {
    u64::from(low.to_bits()) | u64::from(high.to_bits()) << 32
}

fn has_avx512() -> bool {
    crate::host::has_avx512()
}
