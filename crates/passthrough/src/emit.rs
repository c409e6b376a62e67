//! Writing the host code of a stub.
//!
//! A stub is called with the guest's state, the operand's address and the context in fixed
//! registers ([`registers`](crate::registers)), and clobbers only what the System V ABI lets a
//! callee clobber. It never pushes anything around the guest's instruction, so that the recovery
//! code can simply return.

use crate::class::Pointers;
use crate::fault;
use crate::host;
use crate::registers::{CONTEXT, OPERAND, Renaming, STATE, Usage};
use crate::stubs::Context;
use belljar_x86::bits::rflags;
use belljar_x86::state::{VectorState, X87};
use belljar_x86::{CpuState, Gpr};
use iced_x86::{
    Code, Encoder, EncodingKind, IcedError, Instruction, MemoryOperand, Register, RflagsBits,
};
use std::mem::offset_of;

const GPR: usize = offset_of!(CpuState, gpr);
const RFLAGS: usize = offset_of!(CpuState, rflags);
const VECTOR: usize = offset_of!(CpuState, vector);
const ZMM: usize = VECTOR + offset_of!(VectorState, zmm);
const K: usize = VECTOR + offset_of!(VectorState, k);
const X87_IMAGE: usize = VECTOR + offset_of!(VectorState, x87);
const MXCSR: usize = X87_IMAGE + offset_of!(X87, mxcsr);

/// Bytes of FXSAVE's image.
pub(crate) const FXSAVE_SIZE: usize = 512;
// FXRSTOR reads x87's part straight from the guest's state, and what lies behind as XMM registers,
// which do not matter.
const _: () = assert!(X87_IMAGE + FXSAVE_SIZE <= size_of::<CpuState>());
const _: () = assert!(X87_IMAGE.is_multiple_of(16) && ZMM.is_multiple_of(64));
const _: () = assert!(GPR + 8 * (Gpr::R15 as usize) < RFLAGS);

/// What the processor is besides the base architecture, as far as stubs differ by it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host {
    avx: bool,
    avx512: bool,
}

impl Host {
    pub(crate) fn detect() -> Self {
        Self {
            avx: host::has_avx(),
            avx512: host::has_avx512(),
        }
    }
}

/// What a stub must do around the instruction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) usage: Usage,
    pub(crate) renaming: Renaming,
    /// Flags that must be the guest's before.
    pub(crate) flags_in: bool,
    /// Flags that the instruction changes, as RFLAGS bits.
    pub(crate) flags_out: u64,
    /// Whether MXCSR must be the guest's.
    pub(crate) mxcsr: bool,
    /// Whether the instruction uses x87 or MMX registers, and what it does to x87's pointers.
    pub(crate) x87: Option<Pointers>,
}

/// RFLAGS bits for those of [`RflagsBits`] that are status flags.
pub(crate) fn status_flags(bits: u32) -> u64 {
    [
        (RflagsBits::OF, rflags::OF),
        (RflagsBits::SF, rflags::SF),
        (RflagsBits::ZF, rflags::ZF),
        (RflagsBits::AF, rflags::AF),
        (RflagsBits::CF, rflags::CF),
        (RflagsBits::PF, rflags::PF),
    ]
    .into_iter()
    .filter(|&(bit, _)| bits & bit != 0)
    .fold(0, |all, (_, flag)| all | flag)
}

fn state(offset: usize) -> MemoryOperand {
    MemoryOperand::with_base_displ(STATE, offset as i64)
}

fn context(offset: usize) -> MemoryOperand {
    MemoryOperand::with_base_displ(CONTEXT, offset as i64)
}

fn gpr(number: usize) -> MemoryOperand {
    state(GPR + 8 * number)
}

struct Emitter {
    encoder: Encoder,
    host: Host,
}

impl Emitter {
    fn new(host: Host) -> Self {
        Self {
            encoder: Encoder::new(64),
            host,
        }
    }

    fn put(&mut self, instruction: Result<Instruction, IcedError>) -> Result<(), IcedError> {
        self.encoder.encode(&instruction?, 0)?;
        Ok(())
    }

    fn put_plain(&mut self, code: Code) -> Result<(), IcedError> {
        self.put(Ok(Instruction::with(code)))
    }

    fn load(
        &mut self,
        code: Code,
        register: Register,
        from: MemoryOperand,
    ) -> Result<(), IcedError> {
        self.put(Instruction::with2(code, register, from))
    }

    fn store(
        &mut self,
        code: Code,
        to: MemoryOperand,
        register: Register,
    ) -> Result<(), IcedError> {
        self.put(Instruction::with2(code, to, register))
    }

    /// Makes the status flags the guest's.
    fn load_flags(&mut self) -> Result<(), IcedError> {
        self.load(Code::Mov_r32_rm32, Register::EAX, state(RFLAGS))?;
        self.put(Instruction::with2(
            Code::And_EAX_imm32,
            Register::EAX,
            rflags::STATUS as u32,
        ))?;
        self.put(Instruction::with1(Code::Push_r64, Register::RAX))?;
        self.put_plain(Code::Popfq)
    }

    /// Puts the flags of `mask` into the guest's.
    fn store_flags(&mut self, mask: u64) -> Result<(), IcedError> {
        let (eax, ecx) = (Register::EAX, Register::ECX);
        self.put_plain(Code::Pushfq)?;
        self.put(Instruction::with1(Code::Pop_r64, Register::RAX))?;
        // All the flags in question are in the low half; the upper half of the guest's register
        // stays.
        self.load(Code::Mov_r32_rm32, ecx, state(RFLAGS))?;
        self.put(Instruction::with2(Code::And_EAX_imm32, eax, mask as u32))?;
        self.put(Instruction::with2(
            Code::And_rm32_imm32,
            ecx,
            !(mask as u32),
        ))?;
        self.put(Instruction::with2(Code::Or_r32_rm32, ecx, eax))?;
        self.store(Code::Mov_rm32_r32, state(RFLAGS), ecx)
    }

    fn load_vector(&mut self, number: u32, width: usize, legacy: bool) -> Result<(), IcedError> {
        let at = state(ZMM + 64 * number as usize);
        let (code, first) = match width {
            _ if legacy => (Code::Movaps_xmm_xmmm128, Register::XMM0),
            // The upper sixteen have no other encoding.
            _ if number >= 16 || width == 64 => {
                (Code::EVEX_Vmovdqa64_zmm_k1z_zmmm512, Register::ZMM0)
            }
            32 => (Code::VEX_Vmovdqa_ymm_ymmm256, Register::YMM0),
            _ => (Code::VEX_Vmovdqa_xmm_xmmm128, Register::XMM0),
        };
        self.load(code, first + number, at)
    }

    /// Stores a register with all that the instruction changed of it: VEX and EVEX instructions
    /// clear what lies above their operand (SDM 2A, 2.3.10), legacy ones leave it.
    fn store_vector(&mut self, number: u32, legacy: bool) -> Result<(), IcedError> {
        let at = state(ZMM + 64 * number as usize);
        let (code, first) = if legacy {
            (Code::Movaps_xmmm128_xmm, Register::XMM0)
        } else if self.host.avx512 {
            (Code::EVEX_Vmovdqa64_zmmm512_k1z_zmm, Register::ZMM0)
        } else {
            (Code::VEX_Vmovdqa_ymmm256_ymm, Register::YMM0)
        };
        self.store(code, at, first + number)
    }

    fn load_registers(&mut self, plan: &Plan, legacy: bool) -> Result<(), IcedError> {
        for (number, used) in plan.usage.k.iter().enumerate() {
            if used.any() {
                let register = Register::K0 + number as u32;
                self.load(Code::VEX_Kmovq_kr_km64, register, state(K + 8 * number))?;
            }
        }
        for (number, used) in plan.usage.vector.iter().enumerate() {
            if used.read || (legacy && used.written) {
                self.load_vector(number as u32, plan.usage.width, legacy)?;
            }
        }
        // Also what is only written: the instruction may write a part.
        for (number, used) in plan.usage.gpr.iter().enumerate() {
            if used.any() {
                let register = plan.renaming.full(number);
                self.load(Code::Mov_r64_rm64, register, gpr(number))?;
            }
        }
        Ok(())
    }

    fn store_registers(&mut self, plan: &Plan, legacy: bool) -> Result<(), IcedError> {
        for (number, used) in plan.usage.gpr.iter().enumerate() {
            if used.written {
                let register = plan.renaming.full(number);
                self.store(Code::Mov_rm64_r64, gpr(number), register)?;
            }
        }
        for (number, used) in plan.usage.k.iter().enumerate() {
            if used.written {
                let register = Register::K0 + number as u32;
                self.store(Code::VEX_Kmovq_m64_kr, state(K + 8 * number), register)?;
            }
        }
        for (number, used) in plan.usage.vector.iter().enumerate() {
            if used.written {
                self.store_vector(number as u32, legacy)?;
            }
        }
        Ok(())
    }

    fn load_host_mxcsr(&mut self) -> Result<(), IcedError> {
        let at = context(offset_of!(Context, mxcsr));
        self.put(Instruction::with1(Code::Ldmxcsr_m32, at))
    }

    fn store_guest_mxcsr(&mut self) -> Result<(), IcedError> {
        self.put(Instruction::with1(Code::Stmxcsr_m32, state(MXCSR)))
    }

    /// Saves x87 into the guest's state and makes it what the ABI wants. All vector registers are
    /// free by now.
    fn leave_x87(&mut self, pointers: Pointers, mxcsr: bool) -> Result<(), IcedError> {
        let image = offset_of!(Context, fxsave);
        self.put(Instruction::with1(Code::Fxsave64_m512byte, context(image)))?;
        if mxcsr {
            self.store_guest_mxcsr()?;
        }
        self.load_host_mxcsr()?;
        if pointers == Pointers::Load {
            // FXSAVE does not save the pointers on every processor, see below; the environment has
            // them.
            let environment = context(offset_of!(Context, environment));
            self.put(Instruction::with1(Code::Fnstenv_m28byte, environment))?;
        }
        self.put_plain(Code::Fninit)?;
        // Not the pointers, which AMD's processors save only while an exception is pending. APM 2,
        // 11.4.4.
        self.copy32(image, offset_of!(X87, fcw))?;
        self.load(
            Code::Movzx_r32_rm8,
            Register::EAX,
            context(image + offset_of!(X87, ftw)),
        )?;
        let tags = state(X87_IMAGE + offset_of!(X87, ftw));
        self.store(Code::Mov_rm8_r8, tags, Register::AL)?;
        self.leave_pointers(pointers)?;
        for register in 0..8 {
            let offset = offset_of!(X87, st) + 16 * register;
            let (xmm, from) = (Register::XMM0, context(image + offset));
            self.load(Code::Movaps_xmm_xmmm128, xmm, from)?;
            self.store(Code::Movaps_xmmm128_xmm, state(X87_IMAGE + offset), xmm)?;
        }
        Ok(())
    }

    /// Copies 4 bytes at `offset` of the saved image to the guest's.
    fn copy32(&mut self, image: usize, offset: usize) -> Result<(), IcedError> {
        self.load(Code::Mov_r32_rm32, Register::EAX, context(image + offset))?;
        self.store(Code::Mov_rm32_r32, state(X87_IMAGE + offset), Register::EAX)
    }

    /// Moves x87's pointers to where the instruction that has run leaves them.
    fn leave_pointers(&mut self, pointers: Pointers) -> Result<(), IcedError> {
        let (eax, rax) = (Register::EAX, Register::RAX);
        let environment = offset_of!(Context, environment);
        match pointers {
            Pointers::Keep | Pointers::Record => return Ok(()),
            Pointers::Clear => self.put(Instruction::with2(Code::Xor_r32_rm32, eax, eax))?,
            Pointers::Load => {}
        }
        for (code, from, to) in ENVIRONMENT_POINTERS {
            if pointers == Pointers::Load {
                self.load(code, eax, context(environment + from))?;
            }
            let to = state(X87_IMAGE + to);
            if code == Code::Movzx_r32_rm16 {
                self.store(Code::Mov_rm16_r16, to, Register::AX)?;
            } else {
                self.store(Code::Mov_rm64_r64, to, rax)?;
            }
        }
        Ok(())
    }
}

/// Where the 32-bit environment (SDM 1, figure 8-9) has x87's pointers, and the image of FXSAVE:
/// what loads them, and their offsets.
const ENVIRONMENT_POINTERS: [(Code, usize, usize); 3] = [
    (Code::Movzx_r32_rm16, 18, offset_of!(X87, fop)),
    (Code::Mov_r32_rm32, 12, offset_of!(X87, fip)),
    (Code::Mov_r32_rm32, 20, offset_of!(X87, fdp)),
];

/// The code of a stub for `instruction`, whose operands are already the host's.
pub(crate) fn stub(
    host: Host,
    plan: &Plan,
    instruction: &Instruction,
) -> Result<Vec<u8>, IcedError> {
    let legacy = instruction.encoding() == EncodingKind::Legacy;
    let mut emitter = Emitter::new(host);
    if plan.x87.is_some() {
        let image = Instruction::with1(Code::Fxrstor64_m512byte, state(X87_IMAGE));
        emitter.put(image)?;
    } else if plan.mxcsr {
        emitter.put(Instruction::with1(Code::Ldmxcsr_m32, state(MXCSR)))?;
    }
    if plan.flags_in {
        emitter.load_flags()?;
    }
    // Moves leave the flags alone.
    emitter.load_registers(plan, legacy)?;
    emitter.put(Ok(*instruction))?;
    emitter.store_registers(plan, legacy)?;
    if plan.flags_out != 0 {
        emitter.store_flags(plan.flags_out)?;
    }
    if let Some(pointers) = plan.x87 {
        emitter.leave_x87(pointers, plan.mxcsr)?;
    } else if plan.mxcsr {
        emitter.store_guest_mxcsr()?;
        emitter.load_host_mxcsr()?;
    }
    if !legacy && plan.usage.width > 16 {
        // Used upper halves make legacy SSE code slow.
        emitter.put_plain(Code::VEX_Vzeroupper)?;
    }
    let eax = Register::EAX;
    emitter.put(Instruction::with2(Code::Xor_r32_rm32, eax, eax))?;
    emitter.put_plain(Code::Retnq)?;
    Ok(emitter.encoder.take_buffer())
}

/// The code that a fault continues at, at the offsets that [`fault`] knows. It leaves RAX alone.
pub(crate) fn recovery(host: Host) -> Result<Vec<u8>, IcedError> {
    let mut emitter = Emitter::new(host);
    emitter.store_guest_mxcsr()?;
    let mut code = emitter.encoder.take_buffer();
    code.resize(fault::RECOVERY, NOP);
    let mut emitter = Emitter::new(host);
    emitter.load_host_mxcsr()?;
    emitter.put_plain(Code::Fninit)?;
    if host.avx {
        emitter.put_plain(Code::VEX_Vzeroupper)?;
    }
    emitter.put_plain(Code::Retnq)?;
    code.extend(emitter.encoder.take_buffer());
    Ok(code)
}

/// NOP's encoding.
const NOP: u8 = 0x90;

// The operand's register must survive until the instruction.
const _: () = assert!(OPERAND as u32 != STATE as u32 && OPERAND as u32 != CONTEXT as u32);
