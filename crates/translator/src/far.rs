//! The shared code for accesses that are not where their near copy is.

use crate::access::{find_entry, tlb_fields};
use crate::asm::{Alu, Asm, Cond, Mem, R10, RAX, RCX, RDX, RSI, at, env_at};
use crate::env::Env;
use crate::near::Near;
use belljar_interpreter::tlb::{self, SETS};
use std::mem::offset_of;

/// Bits of the size in an argument.
const SIZE_BITS: u8 = 12;

/// What the code of `set` wants in EAX: how far the near copy lies behind the stack's, and the size.
pub const fn argument(near: Near, set: usize, size: usize) -> u64 {
    (near.distance(set) << SIZE_BITS | size) as u64
}

/// Where the code for each set lies, for reads and for writes.
pub type Stubs = [[u32; 2]; SETS];

/// Writes the code of all sets, for tables of `entries` entries.
pub fn write(asm: &mut Asm, entries: usize) -> Stubs {
    let mut stubs = Stubs::default();
    for (set, pair) in stubs.iter_mut().enumerate() {
        for (write, stub) in pair.iter_mut().enumerate() {
            *stub = asm.here();
            far(asm, set, write != 0, entries);
        }
    }
    stubs
}

/// Called with an address, less the tag of its near copy, in R10. If the TLB has the page, the copy
/// becomes one of the entry, R10 the host's address, and the flags say "below or equal". Else R10 is the
/// address, and they say "above". Changes RAX.
fn far(asm: &mut Asm, set: usize, write: bool, entries: usize) {
    let [tag, host] = tlb_fields(set, write);
    let near = Env::near(set, 0, write);
    let near_tag = env_at(RCX, near + offset_of!(tlb::Near, tag));
    let near_host = env_at(RCX, near + offset_of!(tlb::Near, host));
    for register in [RCX, RDX, RSI] {
        asm.push(register);
    }
    asm.mov32(RCX, RAX);
    asm.shr32(RCX, SIZE_BITS);
    // or: of the stack's, at no distance, nobody is told.
    asm.mem(false, &[0x09], RCX, Env::near_used(set));
    asm.alu_imm(Alu::And, false, RAX, (1 << SIZE_BITS) - 1);
    // The last offset at which the access lies within the page.
    asm.mov_imm(RSI, 4096);
    asm.reg(true, &[0x2b], RSI, RAX); // sub
    asm.alu_mem(Alu::Add, true, R10, near_tag);
    find_entry(asm, RDX, false, entries);
    let (tag, host) = (env_at(RDX, tag), env_at(RDX, host));
    asm.alu_mem(Alu::Sub, true, R10, tag);
    let missed = asm.label();
    asm.reg(true, &[0x3b], R10, RSI); // cmp
    asm.jcc(Cond::A, missed);
    asm.load(RSI, tag);
    asm.store(near_tag, RSI);
    asm.load(RSI, host);
    asm.store(near_host, RSI);
    leave(asm);
    asm.bind(missed);
    asm.load(RSI, tag);
    leave(asm);
}

/// Returns with RSI added to R10 and the flags as they are.
fn leave(asm: &mut Asm) {
    let sum = Mem {
        index: Some((RSI, 0)),
        ..at(R10, 0)
    };
    asm.lea(true, R10, sum);
    for register in [RSI, RDX, RCX] {
        asm.pop(register);
    }
    asm.ret();
}
