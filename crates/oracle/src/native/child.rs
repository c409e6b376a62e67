//! The child: its start, its life and its end.

use super::HostError;
use super::enter::{KEEP, enter, on_signal};
use super::image::{IMAGE_LEN, Image};
use super::sandbox;
use super::shared::{Area, CODE_PROT, Input, Shared, Slot};
use crate::case::{Failure, Fault};
use crate::layout::{
    ARENA, BLOCK, BLOCK_LEN, CODE, CODE_LEN, DATA, DATA_LEN, FILL, PAGE, READ_ONLY_PAGE,
};
use seccompiler::BpfProgram;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Room for the frame of a signal, AVX-512 state included, several times over.
const SIGNAL_STACK: usize = 1 << 16;

/// Room above that stack: the frame's XSAVE image lies at its top, and may be shorter than what is copied of it.
const ABOVE_STACK: usize = PAGE;

/// The signals that the processor's exceptions become.
const SIGNALS: [libc::c_int; 5] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGTRAP,
];

/// A child that waits for orders.
#[derive(Debug)]
pub struct Child {
    pid: libc::pid_t,
    orders: OwnedFd,
    answers: OwnedFd,
}

/// A pipe: the end to read and the end to write.
fn pipe() -> Result<(OwnedFd, OwnedFd), HostError> {
    let mut fds = [0; 2];
    // SAFETY: the array has room for the two descriptors that the call makes.
    if unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(HostError::last("a pipe"));
    }
    // SAFETY: both descriptors are fresh and nobody else's.
    Ok(unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) })
}

impl Child {
    /// Starts a child on `shared`, which loads the XSAVE components `features` for each case.
    ///
    /// # Errors
    /// [`HostError`] if the host lacks FSGSBASE or refuses something.
    pub fn start(shared: &Shared, features: u64) -> Result<Self, HostError> {
        // HWCAP2_FSGSBASE: the kernel lets user mode set FS and GS bases itself.
        // SAFETY: reads a word of the auxiliary vector.
        if unsafe { libc::getauxval(libc::AT_HWCAP2) } & 2 == 0 {
            return Err(HostError::Lacks("FSGSBASE"));
        }
        let (orders, orders_to) = pipe()?;
        let (answers, answers_from) = pipe()?;
        let filter = sandbox::filter(orders.as_raw_fd(), answers_from.as_raw_fd())?;
        // SAFETY: the child calls nothing that could wait for a lock of another thread: system calls, and copies.
        let pid = unsafe { libc::fork() };
        match pid {
            -1 => Err(HostError::last("a child process")),
            0 => {
                // The child's copies of the parent's ends must not keep the pipes open.
                drop((orders_to, answers));
                let life = Life {
                    area: shared.area(),
                    memory: shared.fd(),
                    orders: orders.as_raw_fd(),
                    answers: answers_from.as_raw_fd(),
                };
                // SAFETY: this is the child, and it has one thread.
                unsafe { life.live(features, &filter) }
            }
            _ => Ok(Self {
                pid,
                orders: orders_to,
                answers,
            }),
        }
    }

    /// Lets the child run the slots and waits until it is done.
    ///
    /// # Errors
    /// [`Failure`] if the child died or is not done after `patience`.
    pub fn run(&self, patience: Duration) -> Result<(), Failure> {
        let mut byte = [1];
        // SAFETY: writes one byte that exists. If the child is dead, the pipe says so (Rust's programs ignore SIGPIPE).
        unsafe { libc::write(self.orders.as_raw_fd(), byte.as_ptr().cast(), 1) };
        let mut poll = libc::pollfd {
            fd: self.answers.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let patience = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        let ready = loop {
            // SAFETY: one valid pollfd.
            let ready = unsafe { libc::poll(&raw mut poll, 1, patience) };
            if ready >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                break ready;
            }
        };
        if ready <= 0 {
            return Err(Failure::Hung);
        }
        // SAFETY: reads into one byte that exists.
        match unsafe { libc::read(self.answers.as_raw_fd(), byte.as_mut_ptr().cast(), 1) } {
            1 => Ok(()),
            _ => Err(Failure::Died(self.death())),
        }
    }

    /// How the child died, in words.
    fn death(&self) -> String {
        // SAFETY: plain data, for which zeros are valid.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // WNOWAIT leaves the child to `drop`.
        let how = libc::WEXITED | libc::WNOWAIT;
        // SAFETY: our own child, and a valid place for the answer.
        let known = unsafe { libc::waitid(libc::P_PID, self.pid as u32, &raw mut info, how) } == 0;
        if !known {
            return "vanished".into();
        }
        // SAFETY: waitid has filled in the fields of a SIGCHLD.
        let status = unsafe { info.si_status() };
        match info.si_code {
            libc::CLD_EXITED => format!("ended the child with status {status}"),
            _ => format!("killed the child by signal {status}"),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: the pid is our own child's, which nobody else waits for, so it cannot be another process's by now.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

/// What the child has.
struct Life {
    area: *mut Area,
    memory: RawFd,
    orders: RawFd,
    answers: RawFd,
}

impl Life {
    /// The child's whole life. Its exit status tells what failed.
    ///
    /// # Safety
    /// Only in the child, with one thread.
    unsafe fn live(self, features: u64, filter: &BpfProgram) -> ! {
        // SAFETY: the child has one thread, so nobody else uses `KEEP`.
        unsafe { (*KEEP.0.get()).features = features };
        // SAFETY: as the caller says.
        let status = unsafe {
            if !self.map() {
                10
            } else if !handle_signals() {
                11
            } else if !shut_in() || seccompiler::apply_filter(filter).is_err() {
                12
            } else {
                self.serve()
            }
        };
        // SAFETY: ends the process without running anything of the parent's.
        unsafe { libc::_exit(status) }
    }

    /// Maps code and data where the cases expect them, and fills the code with INT3.
    ///
    /// # Safety
    /// Only in the child.
    unsafe fn map(&self) -> bool {
        let all = libc::PROT_READ | libc::PROT_WRITE;
        let parts = [
            (BLOCK, BLOCK_LEN, all | CODE_PROT, offset_of!(Area, block)),
            (CODE, CODE_LEN, CODE_PROT, offset_of!(Area, code)),
            (DATA, DATA_LEN, all, offset_of!(Area, data)),
        ];
        let length = (ARENA.end - ARENA.start) as usize;
        // SAFETY: the arena is reserved only where nothing is mapped; then the parts replace some of it, and what is left
        // stays inaccessible. All addresses are constants inside of the arena.
        unsafe {
            let none = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
            let at = ARENA.start as *mut libc::c_void;
            if libc::mmap(at, length, libc::PROT_NONE, none, -1, 0) != at {
                return false;
            }
            // Reserving showed that the arena is free. Its holes must be unmapped for a fault there to say so.
            libc::munmap(at, length);
            for (address, length, prot, offset) in parts {
                let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_POPULATE;
                let at = address as *mut libc::c_void;
                if libc::mmap(at, length, prot, flags, self.memory, offset as i64) != at {
                    return false;
                }
            }
            let read_only = (DATA as usize + READ_ONLY_PAGE * PAGE) as *mut libc::c_void;
            (&raw mut (*self.area).code)
                .cast::<u8>()
                .write_bytes(FILL, CODE_LEN);
            self.clear_block();
            libc::mprotect(read_only, PAGE, libc::PROT_READ) == 0
        }
    }

    /// Runs batches until the parent is gone.
    ///
    /// # Safety
    /// Only in the child, after everything is set up.
    unsafe fn serve(&self) -> i32 {
        let mut byte = 0u8;
        loop {
            // SAFETY: reads into one byte that exists.
            if unsafe { libc::read(self.orders, (&raw mut byte).cast(), 1) } != 1 {
                return 0;
            }
            // SAFETY: the area stays mapped as long as the child lives, and the parent leaves the slots to us from its
            // order to our answer.
            unsafe {
                let count = (*self.area).count.load(Ordering::Acquire);
                for number in 0..count {
                    (*self.area).current.store(number, Ordering::Release);
                    let slots = (&raw mut (*self.area).slots).cast::<Slot>();
                    self.run(slots.add(number as usize));
                }
                if libc::write(self.answers, (&raw const byte).cast(), 1) != 1 {
                    return 0;
                }
            }
        }
    }

    /// Fills the pages of blocks with INT3.
    ///
    /// # Safety
    /// As for [`run`](Self::run).
    unsafe fn clear_block(&self) {
        // SAFETY: the area is valid and ours.
        unsafe {
            let block = (&raw mut (*self.area).block).cast::<u8>();
            block.write_bytes(FILL, BLOCK_LEN);
        }
    }

    /// Where the code of `input` is to lie. Puts a block's cells where they are to lie.
    ///
    /// # Safety
    /// As for [`run`](Self::run), with the input of its slot.
    unsafe fn place(&self, input: *const Input) -> *mut u8 {
        // SAFETY: the area is valid and ours; the parent has checked that code and cells fit.
        unsafe {
            let block = (&raw mut (*self.area).block).cast::<u8>();
            if (*input).is_block {
                let cells = (&raw const (*input).cells).cast();
                block
                    .add((*input).cell_offset)
                    .copy_from_nonoverlapping(cells, (*input).cell_len);
                block.add((*input).code_offset)
            } else {
                let code = (&raw mut (*self.area).code).cast::<u8>();
                code.add((*input).code_offset)
            }
        }
    }

    /// Runs one case.
    ///
    /// # Safety
    /// `slot` is one of the area's, and the parent leaves it to us.
    unsafe fn run(&self, slot: *mut Slot) {
        // SAFETY: slot and area are valid and ours; the parent has checked that the code fits. The case itself can reach
        // anything in this process, which is why the process has nothing to lose.
        unsafe {
            let input = &raw mut (*slot).input;
            let output = &raw mut (*slot).output;
            let (code, data) = (self.place(input), &raw mut (*self.area).data);
            let len = (*input).code_len;
            code.copy_from_nonoverlapping((&raw const (*input).code).cast(), len);
            data.copy_from_nonoverlapping(&raw const (*input).data, 1);
            let context = enter(input);
            (&raw mut (*output).data).copy_from_nonoverlapping(data, 1);
            save(context, slot);
            if (*input).is_block {
                let block = &raw const (*self.area).block;
                (&raw mut (*output).block).copy_from_nonoverlapping(block, 1);
                self.clear_block();
            } else {
                code.write_bytes(FILL, len);
            }
        }
    }
}

/// Copies the state from a signal's frame into the slot.
///
/// # Safety
/// `context` is the frame of the signal that has just ended the case of `slot`.
unsafe fn save(context: *const libc::ucontext_t, slot: *mut Slot) {
    /// The order of the encoding, in the kernel's names.
    const ORDER: [libc::c_int; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    const PAGE_FAULT: u64 = 14;
    // SAFETY: the frame lies on the alternate stack, which nothing uses until the next signal, and `fpregs` points into
    // it; above the image there are at least `ABOVE_STACK` readable bytes.
    unsafe {
        let machine = &(*context).uc_mcontext;
        let greg = |number: libc::c_int| machine.gregs[number as usize] as u64;
        let keep = KEEP.0.get();
        let output = &mut (*slot).output;
        output.registers.gpr = ORDER.map(greg);
        output.registers.rip = greg(libc::REG_RIP);
        output.registers.rflags = greg(libc::REG_EFL);
        output.registers.fs_base = (*keep).case_fs_base;
        output.registers.gs_base = (*keep).case_gs_base;
        let vector = greg(libc::REG_TRAPNO);
        let page_fault = vector == PAGE_FAULT;
        output.fault = Fault {
            vector,
            error: greg(libc::REG_ERR),
            address: if page_fault { greg(libc::REG_CR2) } else { 0 },
        };
        let image = machine.fpregs.cast::<u8>();
        (&raw mut output.image)
            .cast::<u8>()
            .copy_from_nonoverlapping(image, IMAGE_LEN);
    }
}

/// Has all signals of exceptions handled on an alternate stack.
///
/// # Safety
/// Only in the child.
unsafe fn handle_signals() -> bool {
    // SAFETY: fresh memory for the stack; `sigaction` is plain data; the handler is made for this use.
    unsafe {
        let stack = libc::mmap(
            std::ptr::null_mut(),
            SIGNAL_STACK + ABOVE_STACK,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
            -1,
            0,
        );
        if stack == libc::MAP_FAILED {
            return false;
        }
        let alternate = libc::stack_t {
            ss_sp: stack,
            ss_flags: 0,
            ss_size: SIGNAL_STACK,
        };
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        // No sigreturn will unblock the signal again, so it must not be blocked.
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigaltstack(&raw const alternate, std::ptr::null_mut()) == 0
            && SIGNALS
                .iter()
                .all(|&s| libc::sigaction(s, &raw const action, std::ptr::null_mut()) == 0)
            && libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut()) == 0
    }
}

/// Ties the child's life to its parent's, and forbids core files.
///
/// # Safety
/// Only in the child.
unsafe fn shut_in() -> bool {
    let none = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: system calls on this process alone, with valid arguments.
    unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &raw const none) == 0
            && libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) == 0
    }
}

const _: () = assert!(size_of::<Image>() == IMAGE_LEN);
