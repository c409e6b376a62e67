//! From one decoded instruction to its op.

use super::{Choice, Stop, general, privileged};
use crate::cache::Cache;
use crate::handlers::operand::{LOCKED, MEMORY};
use crate::handlers::{host_run, system};
use crate::op::{Handler, NO_REGISTER, Op, RIP};
use crate::processor::Core;
use belljar_passthrough::CompileError;
use belljar_x86::Seg;
use belljar_x86::syscall::Vendor;
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

/// Where in its block an instruction lies, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its start.
    pub offset: usize,
    /// Its end.
    pub end: usize,
}

/// How a memory operand's address is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressForm {
    /// [`Base`](crate::op::Base)
    Base,
    /// [`Indexed`](crate::op::Indexed)
    Indexed,
    /// [`Flexible`](crate::op::Flexible)
    Flexible,
}

/// An instruction on its way to an op.
#[derive(Debug)]
pub struct Lowering<'a> {
    /// The instruction.
    pub ins: &'a Instruction,
    /// Its bytes.
    pub bytes: &'a [u8],
    /// The op so far: place and memory operand are filled in.
    pub op: Op,
    /// How the memory operand's address is made.
    pub form: AddressForm,
    /// Width of the code segment's defaults: 16, 32 or 64.
    pub bits: u32,
    /// Whether it is to be understood as AMD's processors do.
    pub amd: bool,
}

/// An op without operands.
pub fn plain(handler: Handler, place: Place) -> Op {
    Op {
        handler,
        imm: 0,
        disp: 0,
        offset: place.offset as u16,
        length: (place.end - place.offset) as u8,
        seg: Seg::Ds as u8,
        dst: 0,
        src: 0,
        base: NO_REGISTER,
        index: NO_REGISTER,
        scale: 0,
        address_bits: 64,
    }
}

/// The op of an instruction, and whether it ends its block.
pub fn op(
    core: &mut Core,
    cache: &mut Cache,
    ins: &Instruction,
    bytes: &[u8],
    place: Place,
) -> Result<(Op, bool), Stop> {
    tracing::trace!(
        target: "belljar::decode",
        vcpu = core.id,
        rip = format_args!("{:#x}", ins.ip()),
        code = ?ins.code(),
    );
    let bits = core.cpu.code_bits();
    let mut lowering = Lowering {
        ins,
        bytes,
        op: plain(system::undefined, place),
        form: AddressForm::Flexible,
        bits,
        amd: core.vendor == Vendor::Amd,
    };
    lowering.memory_operand();
    if !exists(core, ins) {
        return Ok((lowering.op, true));
    }
    let choice = match general::choose(&mut lowering).or_else(|| privileged::choose(&mut lowering))
    {
        Some(choice) => choice,
        None => compile(core, &mut lowering)?,
    };
    let (handler, ends) = match choice {
        Choice::Inner(handler) => (handler, false),
        Choice::Last(handler) => (handler, true),
    };
    let mut op = lowering.op;
    op.handler = handler;
    if is_direct_branch(ins) {
        op.disp = cache.new_link() as i32;
    }
    Ok((op, ends))
}

/// Whether the processor has the instruction.
pub fn exists(core: &Core, ins: &Instruction) -> bool {
    let undefined = core.vendor == Vendor::Amd && is_prefetch_of_register(ins);
    !undefined && (is_always_there(ins) || core.model.allows(ins.cpuid_features()))
}

/// Instructions that older processors take for others (mostly no operation), so that no feature is
/// asked for, and hypercalls, which are the paravirtual interface's and not of the virtualisation
/// that CPUID could offer.
fn is_always_there(ins: &Instruction) -> bool {
    matches!(
        ins.mnemonic(),
        Mnemonic::Nop
            | Mnemonic::Endbr32
            | Mnemonic::Endbr64
            | Mnemonic::Rdsspd
            | Mnemonic::Rdsspq
            | Mnemonic::Reservednop
            | Mnemonic::Pause
            | Mnemonic::Ud0
            | Mnemonic::Ud1
            | Mnemonic::Ud2
            | Mnemonic::Vmcall
            | Mnemonic::Vmmcall
    )
}

/// PREFETCH and PREFETCHW with a register, which AMD's processors do not take for no operation. APM
/// 3, PREFETCH.
fn is_prefetch_of_register(ins: &Instruction) -> bool {
    matches!(
        ins.code(),
        Code::Reservednop_rm16_r16_0F0D
            | Code::Reservednop_rm32_r32_0F0D
            | Code::Reservednop_rm64_r64_0F0D
    )
}

fn is_direct_branch(ins: &Instruction) -> bool {
    matches!(
        ins.op0_kind(),
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64
    )
}

/// Lets the host execute the instruction.
fn compile(core: &mut Core, lowering: &mut Lowering) -> Result<Choice, Stop> {
    match core.stubs.compile(lowering.ins, lowering.bytes) {
        Ok(stub) => {
            lowering.op.imm = core.compiled.len() as u64;
            core.compiled.push(stub);
            let flags = lowering.ins.rflags_read() | lowering.ins.rflags_modified();
            Ok(Choice::Inner(if flags != 0 {
                host_run::run::<true>
            } else {
                host_run::run::<false>
            }))
        }
        Err(CompileError::Full) => Err(Stop::CodeFull),
        Err(CompileError::NotInnocuous | CompileError::NotOnHost) => {
            let code = lowering.ins.code();
            tracing::debug!(target: "belljar::decode", ?code, "no such instruction");
            Ok(Choice::Last(system::undefined))
        }
    }
}

/// The number of a general-purpose register; see [`Op::dst`]. Of others the number in their file.
pub fn number(register: Register) -> u8 {
    let number = register.number() as u8;
    if !register.is_gpr8() {
        return number;
    }
    match number {
        0..4 => number,
        4..8 => 16 | (number - 4),
        _ => number - 4,
    }
}

impl Lowering<'_> {
    /// Fills in the memory operand, explicit or by RDI.
    fn memory_operand(&mut self) {
        let ins = self.ins;
        let (mut implicit, mut explicit) = (None, false);
        for n in 0..ins.op_count() {
            match ins.op_kind(n) {
                OpKind::Memory => explicit = true,
                OpKind::MemorySegDI | OpKind::MemorySegSI | OpKind::MemoryESDI => {
                    implicit = Some(16);
                }
                OpKind::MemorySegEDI | OpKind::MemorySegESI | OpKind::MemoryESEDI => {
                    implicit = Some(32);
                }
                OpKind::MemorySegRDI | OpKind::MemorySegRSI | OpKind::MemoryESRDI => {
                    implicit = Some(64);
                }
                _ => {}
            }
        }
        if let Some(bits) = implicit {
            self.op.address_bits = bits;
            self.op.base = number(Register::RDI);
            self.op.seg = self.segment(Register::RDI);
        } else if explicit {
            self.explicit_operand();
        } else {
            self.op.address_bits = if self
                .bytes
                .iter()
                .take_while(|b| is_prefix(**b))
                .any(|b| *b == 0x67)
            {
                if self.bits == 32 { 16 } else { 32 }
            } else {
                self.bits as u8
            };
        }
    }

    fn explicit_operand(&mut self) {
        let ins = self.ins;
        let (base, index) = (ins.memory_base(), ins.memory_index());
        let seg = self.segment(base);
        let op = &mut self.op;
        op.seg = seg;
        op.address_bits = if base != Register::None {
            base.size() as u8 * 8
        } else if index.is_gpr() {
            index.size() as u8 * 8
        } else {
            match ins.memory_displ_size() {
                2 => 16,
                4 => 32,
                8 => 64,
                _ => self.bits as u8,
            }
        };
        op.disp = ins.memory_displacement64() as i32;
        match base {
            Register::None => {}
            Register::RIP | Register::EIP => {
                op.base = RIP;
                // The decoder gives the address that is meant; the op counts from the next
                // instruction.
                op.disp = ins.memory_displacement64().wrapping_sub(ins.next_ip()) as i32;
            }
            base => op.base = number(base),
        }
        if index.is_gpr() {
            op.index = number(index);
            op.scale = ins.memory_index_scale().trailing_zeros() as u8;
        }
        let flat = self.bits == 64 && op.address_bits == 64 && op.seg < Seg::Fs as u8;
        if flat && op.base < 16 {
            self.form = if op.index < 16 {
                AddressForm::Indexed
            } else {
                AddressForm::Base
            };
        }
    }

    /// The segment of the memory operand. In 64-bit mode only FS and GS count, and SS for which
    /// fault is raised.
    fn segment(&self, base: Register) -> u8 {
        let named = match self.ins.memory_segment() {
            Register::ES => Seg::Es,
            Register::CS => Seg::Cs,
            Register::SS => Seg::Ss,
            Register::FS => Seg::Fs,
            Register::GS => Seg::Gs,
            _ => Seg::Ds,
        };
        let seg = if self.bits != 64 || matches!(named, Seg::Fs | Seg::Gs) {
            named
        } else if matches!(
            base,
            Register::RSP | Register::RBP | Register::ESP | Register::EBP
        ) {
            Seg::Ss
        } else {
            Seg::Ds
        };
        seg as u8
    }

    /// Size of operand `n` in bytes.
    pub fn size(&self, n: u32) -> u8 {
        match self.ins.op_kind(n) {
            OpKind::Register => self.ins.op_register(n).size() as u8,
            _ => self.ins.memory_size().size() as u8,
        }
    }

    /// Operand `n` as the op names it: a register's number, or that it is memory.
    pub fn operand(&self, n: u32) -> u8 {
        match self.ins.op_kind(n) {
            OpKind::Register => number(self.ins.op_register(n)),
            _ if self.ins.has_lock_prefix() => LOCKED,
            _ => MEMORY,
        }
    }

    /// Whether operand `n` is memory.
    pub fn is_memory(&self, n: u32) -> bool {
        self.ins.op_kind(n) == OpKind::Memory
    }

    /// Whether operand `n` is a register.
    pub fn is_register(&self, n: u32) -> bool {
        self.ins.op_kind(n) == OpKind::Register
    }

    /// The first operand is the destination, the second the source, if they are not immediates.
    pub fn set_operands(&mut self) {
        let is_value = |kind| matches!(kind, OpKind::Register | OpKind::Memory);
        if self.ins.op_count() > 0 && is_value(self.ins.op_kind(0)) {
            self.op.dst = self.operand(0);
        }
        if self.ins.op_count() > 1 && is_value(self.ins.op_kind(1)) {
            self.op.src = self.operand(1);
        }
    }

    /// The bits W, R, X and B (from bit 3 down) of the REX prefix.
    pub fn rex(&self) -> u8 {
        let first = self.bytes.iter().find(|byte| !is_prefix(**byte));
        match first {
            Some(byte) if self.bits == 64 && byte & 0xf0 == 0x40 => byte & 15,
            _ => 0,
        }
    }

    /// Whether the instruction has the operand-size prefix.
    pub fn has_operand_prefix(&self) -> bool {
        let mut prefixes = self.bytes.iter().take_while(|byte| is_prefix(**byte));
        prefixes.any(|byte| *byte == 0x66)
    }

    /// Whether the instruction has REX.W.
    pub fn is_wide(&self) -> bool {
        self.rex() & 8 != 0
    }

    /// Size in bytes of what a near branch, PUSH, POP and their kin move on the stack.
    pub fn stack_size(&self) -> u8 {
        let moved = self.ins.stack_pointer_increment().unsigned_abs() as u8;
        if moved == 0 {
            self.bits as u8 / 8
        } else {
            moved
        }
    }
}

/// Whether `byte` is a legacy prefix.
pub fn is_prefix(byte: u8) -> bool {
    matches!(
        byte,
        0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3
    )
}
