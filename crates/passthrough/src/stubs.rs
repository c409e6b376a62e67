//! The compiled instructions of one vCPU.

use crate::code_memory::CodeMemory;
use crate::compile::{self, MAX_OPERAND};
use crate::emit::{self, FXSAVE_SIZE, Host};
use crate::fault::{self, Registration};
use crate::stub::{Work, x87_opcode};
use crate::{CompileError, Error, Memory, OperandMemory, Stub};
use belljar_x86::bits::cr4;
use belljar_x86::state::X87;
use belljar_x86::{CpuState, Exception};
use iced_x86::Instruction;
use std::arch::asm;
use std::collections::HashMap;
use std::fmt;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

/// MXCSR as Rust code expects it: all exceptions masked, round to nearest.
const HOST_MXCSR: u32 = 0x1f80;
/// The MXCSR mask of processors that report none. SDM 1, 11.6.6.
const DEFAULT_MXCSR_MASK: u32 = 0xffbf;
/// Exceptions of x87 that keep a store from being done: invalid operation, overflow, underflow.
const STORE_EXCEPTIONS: u16 = 1 << 0 | 1 << 3 | 1 << 4;

/// Tells the stubs of one `Stubs`, between two resets, from all others.
static GENERATIONS: AtomicU32 = AtomicU32::new(1);

/// What stubs need besides the guest's state and the operand.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Context {
    /// Where x87 instructions save what they changed.
    pub(crate) fxsave: [u8; FXSAVE_SIZE],
    /// Where they save x87's environment.
    pub(crate) environment: [u8; 28],
    /// The host's MXCSR.
    pub(crate) mxcsr: u32,
}

/// A copy of a memory operand.
#[repr(C, align(64))]
struct Bounce([u8; MAX_OPERAND]);

/// The compiled instructions of one vCPU, and what is needed to run them. Equal instructions share
/// their code.
pub struct Stubs {
    // Dropped before the memory, so that the fault handler never knows a range that is gone.
    _registration: Registration,
    code: CodeMemory,
    host: Host,
    /// Bytes of the recovery code.
    recovery: u32,
    generation: u32,
    known: HashMap<Instruction, Stub>,
    context: Box<Context>,
}

impl fmt::Debug for Stubs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stubs")
            .field("stubs", &self.known.len())
            .field("bytes", &self.code.used())
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

impl Stubs {
    /// Makes room for `capacity` bytes of code (a stub takes about 100), and makes sure that the
    /// process catches the faults of stubs. 4 MiB is plenty for a kernel.
    ///
    /// # Errors
    /// If the host gives no memory or refuses the signal handlers.
    pub fn new(capacity: usize) -> Result<Self, Error> {
        let mut code = CodeMemory::new(capacity)?;
        let host = Host::detect();
        let recovery = emit::recovery(host).map_err(|_| Error::Recovery)?;
        code.append(&recovery).ok_or(Error::BadCapacity(capacity))?;
        Ok(Self {
            _registration: Registration::new(code.start() as usize, code.size())?,
            recovery: code.used(),
            code,
            host,
            generation: GENERATIONS.fetch_add(1, Ordering::Relaxed),
            known: HashMap::new(),
            context: Box::new(Context {
                fxsave: [0; FXSAVE_SIZE],
                environment: [0; 28],
                mxcsr: HOST_MXCSR,
            }),
        })
    }

    /// Compiles `instruction`, decoded in any mode from the bytes `encoding`.
    ///
    /// # Errors
    /// [`CompileError::NotInnocuous`] for what the engine must do itself,
    /// [`CompileError::NotOnHost`] for what the host lacks, and [`CompileError::Full`].
    pub fn compile(
        &mut self,
        instruction: &Instruction,
        encoding: &[u8],
    ) -> Result<Stub, CompileError> {
        let analysis = compile::analyse(instruction)?;
        let mut stub = Stub {
            generation: self.generation,
            x87_opcode: x87_opcode(encoding),
            ..analysis.stub
        };
        let Some(host) = analysis.host else {
            return Ok(stub);
        };
        if let Some(known) = self.known.get(&host) {
            stub.entry = known.entry;
            stub.has_effects = known.has_effects;
            return Ok(stub);
        }
        let (code, has_effects) = compile::generate(self.host, stub.unit, &host)?;
        stub.entry = self.code.append(&code).ok_or(CompileError::Full)?;
        stub.has_effects = has_effects;
        self.known.insert(host, stub);
        Ok(stub)
    }

    /// Forgets all code. Stubs compiled before can no longer be run.
    pub fn reset(&mut self) {
        self.generation = GENERATIONS.fetch_add(1, Ordering::Relaxed);
        self.known.clear();
        self.code.truncate(self.recovery);
    }

    /// Runs an instruction without memory operand. `cpu.rip` is left alone.
    ///
    /// # Errors
    /// The exception that the instruction raised; registers are then as the architecture leaves
    /// them.
    ///
    /// # Panics
    /// If the stub is stale (compiled before a [`reset`](Self::reset) or by another `Stubs`) or has
    /// a memory operand.
    #[inline]
    pub fn run(&mut self, stub: &Stub, cpu: &mut CpuState) -> Result<(), Exception> {
        self.check(stub);
        assert!(
            stub.memory == Memory::None,
            "the instruction touches memory"
        );
        match stub.work {
            // SAFETY: the stub is this object's, and touches no memory.
            Work::Host => unsafe { self.enter(stub, cpu, ptr::null_mut()) },
            Work::ZeroUpper { registers, keep } => {
                for register in cpu.vector.zmm.iter_mut().take(usize::from(registers)) {
                    register[usize::from(keep)..].fill(0);
                }
                Ok(())
            }
            // All others have a memory operand.
            _ => Ok(()),
        }
    }

    /// Runs an instruction of any [`Memory`] kind, reaching memory through `memory`. `cpu.rip` is
    /// left alone.
    ///
    /// # Errors
    /// The exception that the instruction or `memory` raised. Nothing has changed then, except what
    /// the architecture leaves changed: the flags of MXCSR at #XM, and the completed elements of a
    /// gather or scatter.
    ///
    /// # Panics
    /// If the stub is stale.
    pub fn run_with_memory<M: OperandMemory>(
        &mut self,
        stub: &Stub,
        cpu: &mut CpuState,
        memory: &mut M,
    ) -> Result<(), Exception> {
        self.check(stub);
        match (stub.work, stub.memory) {
            (_, Memory::None) => self.run(stub, cpu),
            (Work::Gather(elements), _) => elements.gather(cpu, memory),
            (Work::Scatter(elements), _) => elements.scatter(cpu, memory),
            (Work::MaskMove { data, mask, mmx }, _) => {
                self.mask_move(stub, cpu, memory, (data, mask, mmx))
            }
            (
                _,
                Memory::Whole {
                    size, read, write, ..
                }
                | Memory::Masked {
                    size, read, write, ..
                },
            ) => self.run_bounced(stub, cpu, memory, (usize::from(size), read, write)),
            // Only gathers and scatters have elements.
            (_, Memory::Elements { .. }) => Ok(()),
        }
    }

    /// Runs an instruction whose operand is [`Memory::Whole`] directly on the host's memory.
    /// `cpu.rip` is left alone.
    ///
    /// # Errors
    /// The exception that the instruction raised.
    ///
    /// # Panics
    /// If the stub is stale or its memory is of another kind.
    ///
    /// # Safety
    /// `operand` points to as many bytes as [`Stub::memory`] says, mapped, writable if the
    /// instruction writes, and not part of any Rust object that is borrowed meanwhile.
    #[inline]
    pub unsafe fn run_at(
        &mut self,
        stub: &Stub,
        cpu: &mut CpuState,
        operand: *mut u8,
    ) -> Result<(), Exception> {
        self.check(stub);
        assert!(
            matches!(stub.memory, Memory::Whole { .. }),
            "the operand is not read or written as a whole"
        );
        if stub.work == Work::LoadMxcsr {
            // SAFETY: LDMXCSR's operand has 4 bytes, and the caller vouches for them.
            return load_mxcsr(cpu, unsafe { operand.cast::<u32>().read_unaligned() });
        }
        // SAFETY: the stub is this object's, and the caller vouches for the operand.
        unsafe { self.enter(stub, cpu, operand) }
    }

    #[inline]
    fn check(&self, stub: &Stub) {
        assert!(stub.generation == self.generation, "the stub is stale");
    }

    /// Runs a stub on a copy of its operand.
    fn run_bounced<M: OperandMemory>(
        &mut self,
        stub: &Stub,
        cpu: &mut CpuState,
        memory: &mut M,
        (size, read, write): (usize, bool, bool),
    ) -> Result<(), Exception> {
        let mut bounce = Bounce([0; MAX_OPERAND]);
        let bytes = &mut bounce.0[..size.min(MAX_OPERAND)];
        if read {
            match (memory.read(cpu, 0, bytes), stub.masking) {
                (Err(_), Some(masking)) => {
                    // Perhaps only bytes that the instruction does not touch fault.
                    bytes.fill(0);
                    masking.read(cpu, memory, bytes)?;
                }
                (result, _) => result?,
            }
        }
        if stub.work == Work::LoadMxcsr {
            let value = [bytes[0], bytes[1], bytes[2], bytes[3]];
            return load_mxcsr(cpu, u32::from_le_bytes(value));
        }
        // Storing may fault when registers have already changed.
        let saved = (write && stub.has_effects)
            .then(|| (cpu.gpr, cpu.rflags, Box::new(cpu.vector.clone())));
        // SAFETY: the stub is this object's, and the bounce buffer is as large as any operand.
        let result = unsafe { self.enter(stub, cpu, bytes.as_mut_ptr()) };
        if !write {
            return result;
        }
        // A fault of the operand comes before an exception of the numbers that are to be stored.
        let is_off = result.is_err() || stub.x87_store && store_is_off(&cpu.vector.x87);
        let stored = match (stub.masking, is_off) {
            (Some(masking), true) => masking.check_write(cpu, memory, bytes.len()),
            (Some(masking), false) => masking.write(cpu, memory, bytes),
            (None, true) => memory.check_write(cpu, 0, bytes.len()),
            (None, false) => memory.write(cpu, 0, bytes),
        };
        if let (Err(_), Some((gpr, flags, vector))) = (&stored, saved) {
            cpu.gpr = gpr;
            cpu.rflags = flags;
            cpu.vector = *vector;
        }
        stored.and(result)
    }

    /// MASKMOVQ and MASKMOVDQU.
    fn mask_move<M: OperandMemory>(
        &mut self,
        stub: &Stub,
        cpu: &mut CpuState,
        memory: &mut M,
        (data, mask, mmx): (u8, u8, bool),
    ) -> Result<(), Exception> {
        let vector = |cpu: &CpuState, number: u8| {
            let words = if mmx {
                // As MMX instructions leave x87, its registers are not rotated.
                [cpu.vector.x87.st[usize::from(number) & 7][0], 0]
            } else {
                let zmm = &cpu.vector.zmm[usize::from(number) & 31];
                [zmm[0], zmm[1]]
            };
            (u128::from(words[1]) << 64 | u128::from(words[0])).to_le_bytes()
        };
        if mmx {
            let mut unused = Bounce([0; MAX_OPERAND]);
            // SAFETY: the stub is this object's, and its code stores 8 bytes.
            unsafe { self.enter(stub, cpu, unused.0.as_mut_ptr()) }?;
        }
        let (data, mask) = (vector(cpu, data), vector(cpu, mask));
        // Processors check all of the operand whatever the mask says, as the manual lets them.
        let size = if mmx { 8 } else { 16 };
        memory.check_write(cpu, 0, size)?;
        for (each, _) in mask
            .iter()
            .enumerate()
            .take(size)
            .filter(|(_, m)| **m & 0x80 != 0)
        {
            memory.write(cpu, each as u64, &data[each..=each])?;
        }
        Ok(())
    }

    /// Runs a stub's code.
    ///
    /// # Safety
    /// The stub was compiled by this object since the last reset; `operand` is valid for the
    /// instruction's access.
    #[inline]
    unsafe fn enter(
        &mut self,
        stub: &Stub,
        cpu: &mut CpuState,
        operand: *mut u8,
    ) -> Result<(), Exception> {
        // SAFETY: entries of valid stubs lie within code memory.
        let entry = unsafe { self.code.start().add(stub.entry as usize) };
        let mut outcome = entry as u64;
        // SAFETY: the code obeys the System V ABI, with arguments in registers of its own: it
        // changes only what a callee may change, leaves x87, MXCSR and the direction flag as the
        // ABI wants them, and accesses the state, the context and the operand only. If it faults,
        // the recovery code returns in its place.
        unsafe {
            asm!(
                "call rax",
                inlateout("rax") outcome,
                inlateout("rdi") ptr::from_mut(cpu) => _,
                inlateout("rsi") operand => _,
                inlateout("r9") ptr::from_mut(&mut *self.context) => _,
                clobber_abi("sysv64"),
            );
        }
        if outcome == 0 {
            return Ok(());
        }
        let exception = fault::exception(outcome, cpu.cr4 & cr4::OSXMMEXCPT != 0);
        if stub.mmx && fault::is_simd(outcome) {
            become_mmx(&mut cpu.vector.x87);
        }
        Err(exception)
    }
}

/// Whether x87 has found an exception, not masked, that keeps the instruction from storing. SDM 1,
/// 8.5.
fn store_is_off(x87: &X87) -> bool {
    x87.fsw & !x87.fcw & STORE_EXCEPTIONS != 0
}

/// What MMX instructions do to x87 before anything else: its registers, which are kept from the
/// top of the stack on, become those of MMX by their own numbers. SDM 1, 9.5.
fn become_mmx(x87: &mut X87) {
    let top = usize::from(x87.fsw >> 11 & 7);
    x87.st.rotate_right(top);
    x87.fsw &= !(7 << 11);
    x87.ftw = 0xff;
}

/// LDMXCSR. SDM 2A.
fn load_mxcsr(cpu: &mut CpuState, value: u32) -> Result<(), Exception> {
    let x87 = &mut cpu.vector.x87;
    let mask = match x87.mxcsr_mask {
        0 => DEFAULT_MXCSR_MASK,
        mask => mask,
    };
    if value & !mask != 0 {
        return Err(Exception::general_protection(0));
    }
    x87.mxcsr = value;
    Ok(())
}
