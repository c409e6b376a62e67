//! The base of GS, which leads generated code to its environment.
//!
//! Neither Rust nor the C library use GS on 64-bit Linux, but a program around the library might:
//! the base is put back after every run.

use std::arch::asm;
use std::sync::OnceLock;

/// Linux sets this bit of AT_HWCAP2 if programs may use the FSGSBASE instructions.
const HWCAP2_FSGSBASE: u64 = 1 << 1;
const ARCH_SET_GS: libc::c_int = 0x1001;
const ARCH_GET_GS: libc::c_int = 0x1004;

fn has_instructions() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    // SAFETY: asking for an auxiliary value has no preconditions.
    *HAS.get_or_init(|| unsafe { libc::getauxval(libc::AT_HWCAP2) } & HWCAP2_FSGSBASE != 0)
}

/// Sets the base of GS; gives the old one.
pub fn swap(base: u64) -> u64 {
    let mut old: u64;
    if has_instructions() {
        // SAFETY: the host allows the instructions; nothing but generated code uses GS.
        unsafe {
            asm!("rdgsbase {old}", "wrgsbase {new}", old = out(reg) old, new = in(reg) base,
                options(nostack, preserves_flags, nomem));
        }
        return old;
    }
    old = 0;
    // SAFETY: the calls read and write the thread's own base; `old` is valid for the answer.
    unsafe {
        libc::syscall(libc::SYS_arch_prctl, ARCH_GET_GS, &raw mut old);
        libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base);
    }
    old
}
