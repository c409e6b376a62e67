//! Catching the faults of stubs.
//!
//! A guest instruction that faults in a stub becomes a signal of the host. The handler looks
//! whether the program counter lies in a registered range of code; if so it moves it to that
//! range's recovery code, with one more than the processor's exception vector in RAX and the old
//! program counter in R10, and returns.
//! Recovery runs with the vector state as the fault left it, the flags of MXCSR included.
//!
//! A range may ask for page faults, too. Its code has a stack, on which the old program counter, RAX and
//! R10 are pushed; recovery may go back to the instruction that faulted, as if it had not.
//! Everything else goes to the handler that was there before.

use crate::Error;
use belljar_x86::Exception;
use libc::{c_int, c_void, sigaction, siginfo_t, ucontext_t};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::{io, mem, ptr};

/// Offset of the recovery code for all faults but #XM from the beginning of a range of code.
pub const RECOVERY: usize = 16;
/// Offset of the recovery code for #XM: it saves MXCSR and goes on into the other one.
pub const SIMD_RECOVERY: usize = 0;
/// Offset of the recovery code for page faults, in a range that asks for them: R10 is the address, RAX
/// not 0 if it was a write, and above the pushed R10 and RAX lies the address of the instruction.
pub const PAGE_RECOVERY: usize = 32;
/// The page fault was a write's. SDM 3A, 4.7.
const PAGE_FAULT_WRITE: i64 = 1 << 1;

/// Exception vectors as the kernel reports them.
mod vector {
    pub(super) const DIVIDE_ERROR: i64 = 0;
    pub(super) const INVALID_OPCODE: i64 = 6;
    pub(super) const GENERAL_PROTECTION: i64 = 13;
    pub(super) const PAGE_FAULT: i64 = 14;
    pub(super) const X87: i64 = 16;
    pub(super) const ALIGNMENT_CHECK: i64 = 17;
    pub(super) const SIMD: i64 = 19;
}

const SIGNALS: [c_int; 4] = [libc::SIGFPE, libc::SIGSEGV, libc::SIGBUS, libc::SIGILL];
const MAX_RANGES: usize = 1024;

/// A range of code. `end` is 0 while the slot is not in use.
struct Range {
    start: AtomicUsize,
    end: AtomicUsize,
    /// Whether page faults are recovered from.
    pages: AtomicBool,
}

/// Read by the signal handler, hence without locks.
static RANGES: [Range; MAX_RANGES] = [const {
    Range {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        pages: AtomicBool::new(false),
    }
}; MAX_RANGES];

/// Every slot from here on is free.
static RANGES_USED: AtomicUsize = AtomicUsize::new(0);

/// The handlers from before, in the order of `SIGNALS`.
static PREVIOUS: OnceLock<[sigaction; SIGNALS.len()]> = OnceLock::new();

/// A registered range of code. Dropping it takes it off the register.
#[derive(Debug)]
pub struct Registration(usize);

impl Registration {
    /// Registers `start..start + size`, which begins with the recovery code: what continues at
    /// [`SIMD_RECOVERY`] after #XM, and at [`RECOVERY`] after every other fault.
    ///
    /// # Errors
    /// If the host refuses the signal handlers, or too many ranges are registered.
    pub fn new(start: usize, size: usize) -> Result<Self, Error> {
        Self::register(start, size, false)
    }

    /// The same for code whose page faults continue at [`PAGE_RECOVERY`]. Wherever it may have one, RSP
    /// is the top of a stack.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    ///
    /// # Safety
    /// Below RSP, where the code may have a page fault, three words can be written.
    pub unsafe fn with_page_faults(start: usize, size: usize) -> Result<Self, Error> {
        Self::register(start, size, true)
    }

    fn register(start: usize, size: usize, pages: bool) -> Result<Self, Error> {
        install()?;
        for (index, range) in RANGES.iter().enumerate() {
            let claim = range
                .start
                .compare_exchange(0, start, Ordering::AcqRel, Ordering::Relaxed);
            if claim.is_ok() {
                range.pages.store(pages, Ordering::Release);
                range.end.store(start + size, Ordering::Release);
                RANGES_USED.fetch_max(index + 1, Ordering::AcqRel);
                return Ok(Self(index));
            }
        }
        Err(Error::TooMany(MAX_RANGES))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let range = &RANGES[self.0];
        range.end.store(0, Ordering::Release);
        range.start.store(0, Ordering::Release);
    }
}

/// The beginning of the range that `pc` lies in, and whether it asks for page faults.
fn range_of(pc: usize) -> Option<(usize, bool)> {
    let used = RANGES_USED.load(Ordering::Acquire).min(MAX_RANGES);
    RANGES[..used].iter().find_map(|range| {
        let start = range.start.load(Ordering::Acquire);
        let end = range.end.load(Ordering::Acquire);
        let pages = range.pages.load(Ordering::Acquire);
        // All are of one registration only if the slot has not changed hands in between.
        let same = range.start.load(Ordering::Acquire) == start;
        (same && start <= pc && pc < end).then_some((start, pages))
    })
}

/// The guest's exception for what a stub returned after a fault. Without CR4.OSXMMEXCPT, #XM is #UD
/// (SDM 3A, 2.5).
#[cold]
pub(crate) fn exception(outcome: u64, has_simd_exceptions: bool) -> Exception {
    match (outcome as i64).wrapping_sub(1) {
        vector::DIVIDE_ERROR => Exception::divide_error(),
        vector::GENERAL_PROTECTION => Exception::general_protection(0),
        vector::X87 => Exception::x87(),
        vector::ALIGNMENT_CHECK => Exception::alignment_check(),
        vector::SIMD if has_simd_exceptions => Exception::simd(),
        _ => Exception::invalid_opcode(),
    }
}

/// Whether a stub returned after #XM.
pub(crate) fn is_simd(outcome: u64) -> bool {
    (outcome as i64).wrapping_sub(1) == vector::SIMD
}

/// Installs the handler, once in the life of the process.
fn install() -> Result<(), Error> {
    static DONE: OnceLock<Result<(), (c_int, i32)>> = OnceLock::new();
    DONE.get_or_init(|| {
        let mut previous = [no_action(); SIGNALS.len()];
        for (&signal, old) in SIGNALS.iter().zip(&mut previous) {
            // SAFETY: asking for the present action changes nothing; `old` is valid for the answer.
            let failed = unsafe { sigaction(signal, ptr::null(), old) } != 0;
            failed_if(failed, signal)?;
        }
        // Before the handler can run, which reads it.
        let _ = PREVIOUS.set(previous);
        for signal in SIGNALS {
            let mut action = no_action();
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            // SAFETY: the action is complete, and `on_fault` does only what a signal handler may.
            let failed = unsafe { sigaction(signal, &raw const action, ptr::null_mut()) } != 0;
            failed_if(failed, signal)?;
        }
        Ok(())
    })
    .map_err(|(signal, code)| Error::Handler {
        signal,
        source: io::Error::from_raw_os_error(code),
    })
}

fn failed_if(failed: bool, signal: c_int) -> Result<(), (c_int, i32)> {
    if failed {
        return Err((
            signal,
            io::Error::last_os_error().raw_os_error().unwrap_or(0),
        ));
    }
    Ok(())
}

/// The default action with an empty mask.
fn no_action() -> sigaction {
    // SAFETY: all-zero is a valid `sigaction`: SIG_DFL, an empty mask and no flags.
    unsafe { mem::zeroed() }
}

extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid `siginfo_t` and, to a handler with SA_SIGINFO, a
    // `ucontext_t` that nobody else refers to; it puts the registers back from there.
    let handled = unsafe { recover(&*info, &mut *context.cast::<ucontext_t>()) };
    if !handled {
        // SAFETY: the arguments are the kernel's.
        unsafe { chain(signal, info, context) };
    }
}

/// Redirects a stub that faulted to its recovery code.
fn recover(info: &siginfo_t, context: &mut ucontext_t) -> bool {
    let registers = &mut context.uc_mcontext.gregs;
    let trap = registers[libc::REG_TRAPNO as usize];
    let known = matches!(
        trap,
        vector::DIVIDE_ERROR
            | vector::INVALID_OPCODE
            | vector::GENERAL_PROTECTION
            | vector::PAGE_FAULT
            | vector::X87
            | vector::ALIGNMENT_CHECK
            | vector::SIMD
    );
    // Positive: from the kernel for a fault, not sent by a process.
    if !known || info.si_code <= 0 {
        return false;
    }
    let Some((start, pages)) = range_of(registers[libc::REG_RIP as usize] as usize) else {
        return false;
    };
    if trap == vector::PAGE_FAULT {
        // SIGBUS says that the host has no memory for what is mapped.
        let pages = pages && info.si_signo == libc::SIGSEGV;
        if pages {
            // SAFETY: whoever registered the range says that its code has a stack.
            unsafe { recover_page(registers, start) };
        }
        return pages;
    }
    let recovery = if trap == vector::SIMD {
        SIMD_RECOVERY
    } else {
        RECOVERY
    };
    // Not 0, which is what a stub returns without a fault.
    registers[libc::REG_RAX as usize] = trap + 1;
    registers[libc::REG_R10 as usize] = registers[libc::REG_RIP as usize];
    registers[libc::REG_RIP as usize] = (start + recovery) as i64;
    true
}

/// Redirects code that had a page fault to its recovery code.
///
/// # Safety
/// Below the stack pointer three words can be written.
unsafe fn recover_page(registers: &mut [i64; 23], start: usize) {
    let stack = registers[libc::REG_RSP as usize] - 24;
    let saved =
        [libc::REG_R10, libc::REG_RAX, libc::REG_RIP].map(|number| registers[number as usize]);
    // SAFETY: the caller's promise.
    unsafe { (stack as *mut [i64; 3]).write(saved) };
    registers[libc::REG_RSP as usize] = stack;
    registers[libc::REG_R10 as usize] = registers[libc::REG_CR2 as usize];
    registers[libc::REG_RAX as usize] = registers[libc::REG_ERR as usize] & PAGE_FAULT_WRITE;
    registers[libc::REG_RIP as usize] = (start + PAGE_RECOVERY) as i64;
}

/// Hands a signal to the handler that was there before.
///
/// # Safety
/// The arguments are those of a signal handler.
unsafe fn chain(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let previous = SIGNALS
        .iter()
        .position(|&each| each == signal)
        .and_then(|index| PREVIOUS.get().map(|all| all[index]));
    let handler = previous.map_or(libc::SIG_DFL, |action| action.sa_sigaction);
    // SAFETY: `info` is valid, as above.
    let sent = unsafe { (*info).si_code } <= 0;
    match (handler, previous) {
        (libc::SIG_IGN, _) if sent => {}
        (libc::SIG_DFL | libc::SIG_IGN, _) | (_, None) => {
            // The default action of all these signals ends the process: a fault happens again on
            // return, a signal that was sent is sent again.
            let action = no_action();
            // SAFETY: as in `install`; both functions may be called by a signal handler.
            unsafe {
                sigaction(signal, &raw const action, ptr::null_mut());
                if sent {
                    libc::raise(signal);
                }
            }
        }
        (handler, Some(action)) if action.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: with SA_SIGINFO the handler has this type.
            let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
                unsafe { mem::transmute(handler) };
            handler(signal, info, context);
        }
        (handler, Some(_)) => {
            // SAFETY: without SA_SIGINFO the handler has this type.
            let handler: extern "C" fn(c_int) = unsafe { mem::transmute(handler) };
            handler(signal);
        }
    }
}
