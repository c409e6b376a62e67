//! Instructions that the host's own processor executes through a compiled stub.

use crate::mmu::Mmu;
use crate::op::{Op, Step, effective_address, linear};
use crate::processor::Core;
use belljar_passthrough::{Memory, OperandMemory, Stub};
use belljar_x86::paging::is_canonical;
use belljar_x86::syscall::Vendor;
use belljar_x86::{Access, CpuState, Exception, LinearMemory, Seg, segmentation};

/// The memory operand as the stubs reach it.
struct Operand<'a> {
    mmu: &'a mut Mmu,
    seg: Seg,
    offset: u64,
    mask: u64,
    amd: bool,
}

impl Operand<'_> {
    fn linear(
        &self,
        cpu: &CpuState,
        offset: u64,
        size: usize,
        access: Access,
    ) -> Result<u64, Exception> {
        let offset = self.offset.wrapping_add(offset) & self.mask;
        // As in `op::linear`.
        let based = matches!(self.seg, Seg::Fs | Seg::Gs);
        if self.amd && based && cpu.code64() && !is_canonical(offset) {
            return Err(Exception::general_protection(0));
        }
        segmentation::linear_address(cpu, self.seg, offset, size as u32, access)
    }
}

impl OperandMemory for Operand<'_> {
    fn read(&mut self, cpu: &CpuState, offset: u64, bytes: &mut [u8]) -> Result<(), Exception> {
        let at = self.linear(cpu, offset, bytes.len(), Access::Read)?;
        self.mmu.read_bytes(cpu, at, bytes, Access::Read)
    }

    fn check_write(&mut self, cpu: &CpuState, offset: u64, size: usize) -> Result<(), Exception> {
        let at = self.linear(cpu, offset, size, Access::Write)?;
        self.mmu.probe(cpu, at, size as u32, Access::Write)
    }

    fn write(&mut self, cpu: &CpuState, offset: u64, bytes: &[u8]) -> Result<(), Exception> {
        let at = self.linear(cpu, offset, bytes.len(), Access::Write)?;
        self.mmu.write_bytes(cpu, at, bytes, Access::Write)
    }
}

/// Runs the stub whose number is the immediate. `FLAGS` tells whether it uses or changes the flags.
pub fn run<const FLAGS: bool>(core: &mut Core, op: &Op) -> Step {
    let Some(stub) = core.compiled.get(op.imm as usize).copied() else {
        return Err(core.invalid_opcode());
    };
    if FLAGS {
        core.sync_flags();
    }
    let result = execute(core, op, &stub);
    if FLAGS {
        core.load_flags();
    }
    match result {
        Ok(()) => core.stored(),
        Err(exception) => Err(core.raise(exception)),
    }
}

fn execute(core: &mut Core, op: &Op, stub: &Stub) -> Result<(), Exception> {
    stub.check_enabled(&core.cpu)?;
    let data = match stub.memory() {
        Memory::None => {
            core.stubs.run(stub, &mut core.cpu)?;
            0
        }
        memory => {
            let data = effective_address(core, op);
            with_memory(core, op, stub, memory, data)?;
            data
        }
    };
    let rip = core.next_after(u64::from(op.offset));
    stub.record_x87_pointers(&mut core.cpu, rip, data);
    Ok(())
}

fn with_memory(
    core: &mut Core,
    op: &Op,
    stub: &Stub,
    memory: Memory,
    offset: u64,
) -> Result<(), Exception> {
    match memory {
        Memory::Whole { size, write, .. } => {
            let access = if write { Access::Write } else { Access::Read };
            let Ok(at) = linear(core, op, offset, u32::from(size), access) else {
                return Err(core.exception);
            };
            stub.check_alignment(&core.cpu, at)?;
            if let Some(host) = core.mmu.fast_span(at, u64::from(size), access) {
                // SAFETY: the TLB holds host addresses of RAM pages, writable if asked for; the
                // operand stays within its page.
                return unsafe { core.stubs.run_at(stub, &mut core.cpu, host) };
            }
        }
        // Whether the address itself can be had depends on the mask.
        Memory::Masked { .. } => {
            let based = !core.code64 || op.seg >= Seg::Fs as u8;
            let base = if based {
                core.cpu.seg(op.segment()).base
            } else {
                0
            };
            let at = offset.wrapping_add(base);
            stub.check_alignment(&core.cpu, at)?;
        }
        Memory::None | Memory::Elements { .. } => {}
    }
    let mut operand = Operand {
        mmu: &mut core.mmu,
        seg: op.segment(),
        offset,
        // The address size wraps addresses of operands (or elements), not the bytes within one.
        mask: if stub.wraps_elements() {
            op.address_mask()
        } else {
            u64::MAX
        },
        amd: core.vendor == Vendor::Amd,
    };
    core.stubs
        .run_with_memory(stub, &mut core.cpu, &mut operand)
}
