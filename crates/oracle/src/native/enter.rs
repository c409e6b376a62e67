//! Into a case and out of it again.
//!
//! [`enter`] keeps the child's own registers, loads those of the case and jumps. The signal that ends the case calls
//! [`on_signal`], which goes back to where [`enter`] was called, with the signal's frame as the result. The kernel's
//! sigreturn is never used: the next signal simply takes the alternate stack from its top again.

use super::shared::Input;
use crate::case::Registers;
use std::arch::naked_asm;
use std::cell::UnsafeCell;
use std::mem::offset_of;

/// What [`enter`] and [`on_signal`] keep while a case runs. The child has one thread.
#[repr(C)]
pub struct Keep {
    /// The child's own stack pointer.
    rsp: u64,
    /// The child's own FS base: glibc's thread pointer.
    fs_base: u64,
    /// The child's own GS base.
    gs_base: u64,
    /// Where the case begins.
    target: u64,
    /// The XSAVE components to load.
    pub features: u64,
    /// FS base at the case's end.
    pub case_fs_base: u64,
    /// GS base at the case's end.
    pub case_gs_base: u64,
    /// MXCSR as C code expects it.
    mxcsr: u32,
}

/// A [`Keep`] that assembler code may reach by name.
#[repr(transparent)]
pub struct KeepCell(pub UnsafeCell<Keep>);

// SAFETY: only the child uses it, which has one thread.
unsafe impl Sync for KeepCell {}

/// The child's one [`Keep`].
pub static KEEP: KeepCell = KeepCell(UnsafeCell::new(Keep {
    rsp: 0,
    fs_base: 0,
    gs_base: 0,
    target: 0,
    features: 0,
    case_fs_base: 0,
    case_gs_base: 0,
    mxcsr: 0x1f80,
}));

const REGISTERS: usize = offset_of!(Input, registers);
const GPR: usize = REGISTERS + offset_of!(Registers, gpr);

/// Runs the case `input` until a signal ends it and gives the signal's frame.
///
/// # Safety
/// Only in the child, whose handlers of all signals that a case can end in are [`on_signal`] on an alternate stack.
#[unsafe(naked)]
pub unsafe extern "C" fn enter(input: *const Input) -> *const libc::ucontext_t {
    naked_asm!(
        "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
        "mov [rip + {keep} + {rsp}], rsp",
        "rdfsbase rax", "mov [rip + {keep} + {fs}], rax",
        "rdgsbase rax", "mov [rip + {keep} + {gs}], rax",
        "mov rax, [rdi + {in_fs}]", "wrfsbase rax",
        "mov rax, [rdi + {in_gs}]", "wrgsbase rax",
        "mov eax, [rip + {keep} + {features}]",
        "mov edx, [rip + {keep} + {features} + 4]",
        "xrstor64 [rdi]",
        "mov rax, [rdi + {in_rip}]", "mov [rip + {keep} + {target}], rax",
        "push qword ptr [rdi + {in_flags}]", "popfq",
        "mov rax, [rdi + {gpr}]",
        "mov rcx, [rdi + {gpr} + 8]",
        "mov rdx, [rdi + {gpr} + 16]",
        "mov rbx, [rdi + {gpr} + 24]",
        "mov rsp, [rdi + {gpr} + 32]",
        "mov rbp, [rdi + {gpr} + 40]",
        "mov rsi, [rdi + {gpr} + 48]",
        "mov r8, [rdi + {gpr} + 64]",
        "mov r9, [rdi + {gpr} + 72]",
        "mov r10, [rdi + {gpr} + 80]",
        "mov r11, [rdi + {gpr} + 88]",
        "mov r12, [rdi + {gpr} + 96]",
        "mov r13, [rdi + {gpr} + 104]",
        "mov r14, [rdi + {gpr} + 112]",
        "mov r15, [rdi + {gpr} + 120]",
        "mov rdi, [rdi + {gpr} + 56]",
        "jmp [rip + {keep} + {target}]",
        keep = sym KEEP,
        rsp = const offset_of!(Keep, rsp),
        fs = const offset_of!(Keep, fs_base),
        gs = const offset_of!(Keep, gs_base),
        target = const offset_of!(Keep, target),
        features = const offset_of!(Keep, features),
        in_fs = const REGISTERS + offset_of!(Registers, fs_base),
        in_gs = const REGISTERS + offset_of!(Registers, gs_base),
        in_rip = const REGISTERS + offset_of!(Registers, rip),
        in_flags = const REGISTERS + offset_of!(Registers, rflags),
        gpr = const GPR,
    )
}

/// The handler of the signal that ends a case: leaves the alternate stack and returns from [`enter`].
///
/// # Safety
/// Called by the kernel only, as a handler with SA_SIGINFO, while [`enter`] has not returned.
#[unsafe(naked)]
pub unsafe extern "C" fn on_signal(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    naked_asm!(
        // Flags first: the kernel leaves AC to the handler, and with it a misaligned access would be the next signal.
        "push 2", "popfq",
        "rdfsbase rax", "mov [rip + {keep} + {case_fs}], rax",
        "rdgsbase rax", "mov [rip + {keep} + {case_gs}], rax",
        "mov rax, [rip + {keep} + {fs}]", "wrfsbase rax",
        "mov rax, [rip + {keep} + {gs}]", "wrgsbase rax",
        "fninit",
        "ldmxcsr [rip + {keep} + {mxcsr}]",
        "vzeroupper",
        "mov rax, rdx",
        "mov rsp, [rip + {keep} + {rsp}]",
        // A fault outside of a case finds no stack to go back to and faults for ever, which the parent notices.
        "mov qword ptr [rip + {keep} + {rsp}], 0",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
        "ret",
        keep = sym KEEP,
        rsp = const offset_of!(Keep, rsp),
        fs = const offset_of!(Keep, fs_base),
        gs = const offset_of!(Keep, gs_base),
        case_fs = const offset_of!(Keep, case_fs_base),
        case_gs = const offset_of!(Keep, case_gs_base),
        mxcsr = const offset_of!(Keep, mxcsr),
    )
}

const _: () = assert!(offset_of!(Input, image) == 0);
