//! The vector state, between the host's registers and the processor's state.
//!
//! What lies in a register above its lowest 128 bits SSE keeps, so an instruction of SSE waits for what
//! was in the register that it writes, unless the host knows that nothing lies there: loops on numbers of
//! floating point take twice the time and more where it does not (measured on Zen 4; Intel's optimization
//! manual has it, too, under "Mixing AVX code with SSE code"). Loading whole registers tells the host
//! that something lies there, though it be zero, and VZEROUPPER that nothing does.

use crate::asm::{Asm, Cond, Mem, RAX, at};
use crate::env::Env;
use belljar_passthrough::{has_avx, has_avx512};
use belljar_x86::state::{VectorState, X87};
use std::mem::offset_of;

const ZMM: usize = offset_of!(VectorState, zmm);
const K: usize = offset_of!(VectorState, k);
const MXCSR: usize = offset_of!(VectorState, x87) + offset_of!(X87, mxcsr);
/// MXCSR as Rust code expects it.
const HOST_MXCSR: u32 = 0x1f80;
const VZEROUPPER: [u8; 3] = [0xc5, 0xf8, 0x77];

/// Stores the state. Changes RAX, not the flags.
pub fn spill(asm: &mut Asm) {
    asm.load(RAX, Env::vector());
    move_first(asm, true);
    move_last(asm, true);
    asm.mem(false, &[0x0f, 0xae], 3, at(RAX, MXCSR as i32)); // stmxcsr
    asm.store_imm32(Env::temp(3), HOST_MXCSR);
    asm.mem(false, &[0x0f, 0xae], 2, Env::temp(3)); // ldmxcsr
    asm.store_imm32(Env::vector_live(), 0);
    if has_avx() {
        asm.bytes(&VZEROUPPER);
    }
    asm.ret();
}

/// Loads it. Changes RAX and the flags.
pub fn load(asm: &mut Asm) {
    asm.load(RAX, Env::vector());
    move_last(asm, false);
    let (whole, done) = (asm.label(), asm.label());
    if has_avx() {
        test_upper(asm);
        asm.jcc(Cond::NE, whole);
        load_lower(asm);
        asm.bytes(&VZEROUPPER);
        asm.jmp(done);
        asm.bind(whole);
    }
    move_first(asm, false);
    asm.bind(done);
    asm.mem(false, &[0x0f, 0xae], 2, at(RAX, MXCSR as i32)); // ldmxcsr
    asm.store_imm32(Env::vector_live(), 1);
    asm.ret();
}

/// Where a register is stored.
fn place(number: u8) -> Mem {
    at(RAX, (ZMM + 64 * usize::from(number)) as i32)
}

/// Stores one of the registers that AVX-512 has as a whole where RAX says, or loads it from there.
fn move_zmm(asm: &mut Asm, number: u8, store: bool) {
    // VMOVDQU64: R and R' are inverted in the prefix.
    let first = 0x61 | u8::from(number & 8 == 0) << 7 | u8::from(number & 16 == 0) << 4;
    asm.bytes(&[0x62, first, 0xfe, 0x48, if store { 0x7f } else { 0x6f }]);
    // A displacement of 8 bits would count in units of 64.
    asm.bytes(&[0x80 | (number & 7) << 3]);
    asm.bytes(&place(number).disp.to_le_bytes());
}

/// Stores the first 16 registers where RAX says, or loads them from there.
fn move_first(asm: &mut Asm, store: bool) {
    for number in 0..16 {
        if has_avx512() {
            move_zmm(asm, number, store);
        } else if has_avx() {
            // VMOVDQU
            let prefix = if number < 8 { 0xfe } else { 0x7e };
            asm.bytes(&[0xc5, prefix, if store { 0x7f } else { 0x6f }]);
            asm.mem_operand(number, place(number));
        } else {
            // MOVUPS
            let opcode = [0x0f, if store { 0x11 } else { 0x10 }];
            asm.mem(false, &opcode, number, place(number));
        }
    }
}

/// The same of the other registers, and of the masks.
fn move_last(asm: &mut Asm, store: bool) {
    if !has_avx512() {
        return;
    }
    for number in 16..32 {
        move_zmm(asm, number, store);
    }
    for number in 0..8 {
        // KMOVQ
        asm.bytes(&[0xc4, 0xe1, 0xf8, if store { 0x91 } else { 0x90 }]);
        asm.mem_operand(number, at(RAX, (K + 8 * usize::from(number)) as i32));
    }
}

/// Sets ZF if of the first 16 registers nothing is in use but the lowest 128 bits. RAX says where they
/// are stored. Changes the first two.
fn test_upper(asm: &mut Asm) {
    // VPXOR xmm0, xmm0, xmm0; VPXOR xmm1, xmm1, xmm1
    asm.bytes(&[0xc5, 0xf9, 0xef, 0xc0]);
    asm.bytes(&[0xc5, 0xf1, 0xef, 0xc9]);
    for number in 0..16 {
        let Mem { disp, .. } = place(number);
        // VPOR xmm0, xmm0, m128
        asm.bytes(&[0xc5, 0xf9, 0xeb]);
        asm.mem_operand(0, at(RAX, disp + 16));
        if has_avx512() {
            // VPOR ymm1, ymm1, m256
            asm.bytes(&[0xc5, 0xf5, 0xeb]);
            asm.mem_operand(1, at(RAX, disp + 32));
        }
    }
    // VPOR ymm0, ymm0, ymm1; VPTEST ymm0, ymm0
    asm.bytes(&[0xc5, 0xfd, 0xeb, 0xc1]);
    asm.bytes(&[0xc4, 0xe2, 0x7d, 0x17, 0xc0]);
}

/// Loads the lowest 128 bits of the first 16 registers from where RAX says, and clears the others.
fn load_lower(asm: &mut Asm) {
    for number in 0..16 {
        // VMOVDQU xmm, m128
        asm.bytes(&[0xc5, if number < 8 { 0xfa } else { 0x7a }, 0x6f]);
        asm.mem_operand(number, place(number));
    }
}
