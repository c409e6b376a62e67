//! x87: passed through like vector instructions, with a state of its own.
//!
//! The guest's x87 state is loaded into the host at the first x87 instruction that runs and stays
//! there until generated code is left. What Rust does for generated code in between (filling the
//! TLB) does not touch x87. The pointers of the last instruction are the guest's own and never the
//! host's: generated code notes them in the environment. SDM 1, 8.1.8.

use crate::access::memory_operand;
use crate::asm::{self, Asm, R10, RAX, at};
use crate::block::Block;
use crate::env::Env;
use belljar_passthrough::{Unit, recorded_opcode};
use belljar_x86::state::{VectorState, X87};
use iced_x86::{Instruction, Mnemonic};
use std::mem::offset_of;

/// Bytes of FXSAVE's image. SDM 1, 10.5.1.
pub const IMAGE: usize = 512;
/// Those of them that are x87's, but for opcode and pointers: control, status and tags, and ST0 to
/// ST7.
const CONTROL: usize = offset_of!(X87, fcw);
const STACK: std::ops::Range<usize> = offset_of!(X87, st)..size_of::<X87>();

/// Whether an instruction of x87 is passed through. What saves or loads the whole environment would
/// show the host's pointers.
pub fn is_passed_on(ins: &Instruction) -> bool {
    !matches!(
        ins.mnemonic(),
        Mnemonic::Fldenv
            | Mnemonic::Fnstenv
            | Mnemonic::Fstenv
            | Mnemonic::Fnsave
            | Mnemonic::Fsave
            | Mnemonic::Frstor
            | Mnemonic::Fninit
            | Mnemonic::Finit
    )
}

/// Whether the unit is x87.
pub const fn is_x87(unit: Unit) -> bool {
    matches!(unit, Unit::X87 | Unit::Wait)
}

impl Block<'_> {
    /// Makes the host's x87 state the guest's.
    pub fn need_x87(&mut self) {
        if self.x87 {
            return;
        }
        self.x87 = true;
        let live = self.guest().live;
        self.spare_flags(live);
        self.asm.cmp_byte(Env::x87_live(), 0);
        let live = self.asm.label();
        self.asm.jcc(asm::Cond::NE, live);
        self.asm.call_to(self.stubs.load_x87);
        self.asm.bind(live);
    }

    /// Keeps the effective address of the present instruction's operand for
    /// [`note_x87`](Self::note_x87): until the instruction is done, the pointers are another's.
    /// Changes RAX and R10.
    pub fn keep_x87_data(&mut self, ins: &Instruction) {
        self.held = None;
        if let Some(value) = self.effective_address(ins, R10, true) {
            self.asm.mov_imm(R10, value);
        }
        self.asm.store(Env::temp(2), R10);
    }

    /// Notes the present instruction, which is done, as the last one. Changes RAX, not the flags.
    pub fn note_x87(&mut self, ins: &Instruction) {
        let guest = self.guest();
        let bytes = &self.bytes[guest.offset..guest.offset + ins.len()];
        let Some(opcode) = recorded_opcode(ins, bytes) else {
            return;
        };
        self.asm.store_imm32(Env::x87_opcode(), opcode.into());
        let rip = self.guest_rip();
        self.load_address(RAX, rip);
        self.asm.store(Env::x87_code(), RAX);
        if memory_operand(ins).is_some() {
            self.asm.load(RAX, Env::temp(2));
            self.asm.store(Env::x87_data(), RAX);
        }
    }
}

/// Where byte `offset` of x87's state is, once RAX leads to the vector state.
fn state(offset: usize) -> asm::Mem {
    at(RAX, (offset_of!(VectorState, x87) + offset) as i32)
}

/// Copies what is x87's from the guest's state to the image, or back. RAX leads to the vector state.
/// Changes R10.
fn copy(asm: &mut Asm, to_image: bool) {
    for offset in std::iter::once(CONTROL).chain(STACK.step_by(8)) {
        // Of the first eight bytes the last two are the opcode, which is noted elsewhere.
        let (image, state) = (Env::x87_image(offset), state(offset));
        let (from, to) = if to_image {
            (state, image)
        } else {
            (image, state)
        };
        asm.load(R10, from);
        asm.store(to, R10);
    }
}

/// FXSAVE64 or FXRSTOR64 of the image, which have SSE's state, too.
fn move_image(asm: &mut Asm, restore: bool) {
    asm.mem(true, &[0x0f, 0xae], u8::from(restore), Env::x87_image(0));
}

/// Loads the state. Changes RAX, not the flags.
pub fn load(asm: &mut Asm) {
    asm.push(R10);
    // SSE's registers stay as they are.
    move_image(asm, false);
    asm.load(RAX, Env::vector());
    copy(asm, true);
    move_image(asm, true);
    asm.store_imm32(Env::x87_live(), 1);
    asm.pop(R10);
    asm.ret();
}

/// Stores the state, and leaves x87 as Rust expects it. Changes RAX and R10, not the flags.
pub fn spill(asm: &mut Asm) {
    move_image(asm, false);
    asm.bytes(&[0xdb, 0xe3]); // fninit
    asm.load(RAX, Env::vector());
    copy(asm, false);
    asm.store_imm32(Env::x87_live(), 0);
    asm.ret();
}
