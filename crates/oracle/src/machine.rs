//! Runs cases in an engine: user mode of a machine that has nothing but the pages of a case and a supervisor that halts.
//!
//! Every exception's gate leads to a HLT of its own, on a stack of its own, so what the engine pushed there and where it
//! halted tell everything about the exception that ended the case.

use crate::case::{Case, Failure, Fault, Outcome, Registers};
use crate::layout::{
    BLOCK, BLOCK_LEN, BlockPages, CODE, CODE_LEN, DATA, DATA_LEN, FILL, PAGE, READ_ONLY_PAGE,
};
use crate::watchdog::Watchdog;
use belljar_clock::{Entropy, ManualClock};
use belljar_engine::{
    Attention, Board, Engine, EngineError, Exit, MsrRefused, Reason, Vcpu, VcpuId, VcpuSetup,
};
use belljar_memory::{GuestMemory, GuestPhysAddr, MemoryError};
use belljar_x86::bits::{cr0, cr4, efer};
use belljar_x86::cpuid::CpuidModel;
use belljar_x86::state::TableRegister;
use belljar_x86::{CpuState, Seg, Segment};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use thiserror::Error;

/// Instructions after which a case counts as hung. Repeated ones may count per iteration.
const BUDGET: u64 = 1 << 20;

/// Bytes of RAM.
const RAM: u64 = 2 << 20;

/// Where the supervisor's pages lie: the lowest linear address of the upper half.
const SUPERVISOR: u64 = 0xffff_8000_0000_0000;
/// Page of the supervisor that holds the GDT and the TSS.
const TABLES: u64 = SUPERVISOR;
const TSS: u64 = TABLES + 0x100;
/// Page of the interrupt descriptor table.
const IDT: u64 = SUPERVISOR + 0x1000;
/// Page of the handlers, [`HANDLER_STEP`] bytes each.
const HANDLERS: u64 = SUPERVISOR + 0x2000;
const HANDLER_STEP: u64 = 16;
/// End of the stack that all exceptions use.
const STACK_END: u64 = SUPERVISOR + 0x4000;

/// Guest-physical places: paging structures, the supervisor's four pages, the case's pages.
const PML4: u64 = 0x1000;
const USER_TABLES: [u64; 3] = [0x2000, 0x3000, 0x4000];
const SUPERVISOR_TABLES: [u64; 3] = [0x5000, 0x6000, 0x7000];
const SUPERVISOR_PHYS: u64 = 0x8000;
const CODE_PHYS: u64 = 0x1_0000;
const DATA_PHYS: u64 = 0x2_0000;
const BLOCK_PHYS: u64 = 0x3_0000;

/// Selectors as Linux has them.
const KERNEL_CODE: u16 = 0x10;
const USER_DATA: u16 = 0x2b;
const USER_CODE: u16 = 0x33;
const TASK: u16 = 0x40;

/// Bits of paging structures. SDM 3A, 4.5.
const PRESENT: u64 = 1;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED_DIRTY: u64 = 3 << 5;
const NO_EXECUTE: u64 = 1 << 63;

/// Vectors that push an error code. SDM 3A, table 6-1.
const WITH_ERROR: [u64; 7] = [8, 10, 11, 12, 13, 14, 17];

/// Why no machine could be made for an engine.
#[derive(Debug, Error)]
pub enum MachineError {
    /// There is no thread to watch over it.
    #[error("the host gives no thread")]
    Thread(#[from] std::io::Error),
    /// There is no memory for it.
    #[error("the machine has no memory")]
    Memory(#[from] MemoryError),
    /// The engine cannot make a vCPU.
    #[error("the engine made no vCPU")]
    Engine(#[from] EngineError),
}

/// A board without anything on it.
#[derive(Debug)]
struct EmptyBoard;

impl Board for EmptyBoard {
    fn port_read(&self, _: VcpuId, _: u16, _: u8) -> u32 {
        u32::MAX
    }

    fn port_write(&self, _: VcpuId, _: u16, _: u8, _: u32) {}

    fn mmio_read(&self, _: VcpuId, _: GuestPhysAddr, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn mmio_write(&self, _: VcpuId, _: GuestPhysAddr, _: &[u8]) {}

    fn msr_read(&self, _: VcpuId, _: u32) -> Result<u64, MsrRefused> {
        Err(MsrRefused)
    }

    fn msr_write(&self, _: VcpuId, _: u32, _: u64, _: &CpuState) -> Result<(), MsrRefused> {
        Err(MsrRefused)
    }

    fn task_priority(&self, _: VcpuId) -> u8 {
        0
    }

    fn set_task_priority(&self, _: VcpuId, _: u8) {}

    fn acknowledge_interrupt(&self, _: VcpuId) -> Option<u8> {
        None
    }

    fn relax(&self, _: VcpuId) {}
}

/// No case asks for randomness.
#[derive(Debug)]
struct NoEntropy;

impl Entropy for NoEntropy {
    fn fill(&self, out: &mut [u8]) {
        out.fill(0);
    }
}

/// An engine as a runner of cases.
pub struct Machine {
    engine: Arc<dyn Engine>,
    cpuid: Arc<CpuidModel>,
    memory: GuestMemory,
    attention: Arc<[Attention]>,
    vcpu: Box<dyn Vcpu>,
    /// Ends cases that take too long, where no budget does.
    watchdog: Option<Watchdog>,
    /// The state that is the same for all cases.
    base: CpuState,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine")
            .field("engine", &self.engine)
            .finish_non_exhaustive()
    }
}

impl Machine {
    /// A machine with a vCPU of `engine`, which shows `cpuid` and has the XSAVE components `xcr0`.
    ///
    /// # Errors
    /// [`MachineError`]
    pub fn new(
        engine: Arc<dyn Engine>,
        cpuid: Arc<CpuidModel>,
        xcr0: u64,
    ) -> Result<Self, MachineError> {
        let memory = GuestMemory::new(RAM)?;
        write_paging(&memory)?;
        write_tables(&memory)?;
        memory.write(GuestPhysAddr(CODE_PHYS), &[FILL; CODE_LEN])?;
        memory.write(GuestPhysAddr(BLOCK_PHYS), &[FILL; BLOCK_LEN])?;
        let mut base = base_state(xcr0);
        base.cr4 &= cpuid.cr4_mask();
        let attention: Arc<[Attention]> = Arc::new([Attention::new()]);
        let vcpu = create_vcpu(&*engine, &memory, &attention, &cpuid, &base)?;
        Ok(Self {
            engine,
            cpuid,
            memory,
            attention,
            vcpu,
            watchdog: None,
            base,
        })
    }

    /// The machine, which runs cases without a budget of instructions from now on, as machines run their guests; the engine
    /// may do so by other ways.
    ///
    /// # Errors
    /// [`MachineError::Thread`]
    pub fn without_budget(mut self) -> Result<Self, MachineError> {
        self.watchdog = Some(Watchdog::new(&self.attention)?);
        Ok(self)
    }

    /// Runs `case` and tells how it ended. An engine that panics has failed at the case, and gets a new vCPU.
    ///
    /// # Errors
    /// [`MachineError`] if the engine makes no new vCPU.
    pub fn run(&mut self, case: &Case) -> Result<Result<Outcome, Failure>, MachineError> {
        let code = case.code();
        let code = &code[..code.len().min(case.room())];
        let pages = if case.is_block() {
            BLOCK_PHYS
        } else {
            CODE_PHYS
        };
        let at = GuestPhysAddr(pages + case.code_offset() as u64);
        self.memory.write(at, code)?;
        let cells = GuestPhysAddr(BLOCK_PHYS + case.cells.offset as u64);
        self.memory.write(cells, &case.cells.bytes)?;
        self.memory.write(GuestPhysAddr(DATA_PHYS), &*case.data)?;
        self.vcpu.set_state(self.initial(case));
        let outcome = match self.execute() {
            Ok(Exit::Halted) => self.outcome(case.is_block())?,
            Ok(Exit::Budget | Exit::Attention) => Err(Failure::Hung),
            Ok(exit) => Err(Failure::Died(format!("left the engine by {exit:?}"))),
            Err(panic) => {
                self.vcpu = create_vcpu(
                    &*self.engine,
                    &self.memory,
                    &self.attention,
                    &self.cpuid,
                    &self.base,
                )?;
                let text = panic.downcast_ref::<String>().map(String::as_str);
                let text = text
                    .or(panic.downcast_ref::<&str>().copied())
                    .unwrap_or("?");
                Err(Failure::Died(format!("made the engine panic: {text}")))
            }
        };
        if case.is_block() {
            let pages = GuestPhysAddr(BLOCK_PHYS);
            self.memory.write(pages, &[FILL; BLOCK_LEN])?;
        } else {
            self.memory.write(at, &vec![FILL; code.len()])?;
        }
        Ok(outcome)
    }

    /// Runs the vCPU to the end of a case.
    fn execute(&mut self) -> std::thread::Result<Exit> {
        let budget = match &self.watchdog {
            Some(watchdog) => {
                watchdog.begin();
                None
            }
            None => Some(BUDGET),
        };
        let vcpu = &mut self.vcpu;
        let exit = catch_unwind(AssertUnwindSafe(|| vcpu.run(budget)));
        if let Some(watchdog) = &self.watchdog {
            watchdog.end();
            self.attention[0].clear(Reason::STOP);
        }
        exit
    }

    /// The state in which `case` begins.
    fn initial(&self, case: &Case) -> CpuState {
        let mut state = self.base.clone();
        let from = &case.registers;
        state.gpr = from.gpr;
        state.rip = from.rip;
        state.rflags = from.rflags;
        state.segments[Seg::Fs as usize].base = from.fs_base;
        state.segments[Seg::Gs as usize].base = from.gs_base;
        state.vector = case.vector.clone();
        state
    }

    /// The outcome of the case that has just halted in a handler.
    fn outcome(&mut self, is_block: bool) -> Result<Result<Outcome, Failure>, MemoryError> {
        let state = self.vcpu.state();
        let vector = state.rip.wrapping_sub(HANDLERS) / HANDLER_STEP;
        if vector >= 32 {
            let how = format!("halted outside of the handlers, at {:#x}", state.rip);
            return Ok(Err(Failure::Died(how)));
        }
        let mut frame = [0; 6];
        let with_error = WITH_ERROR.contains(&vector);
        let words = if with_error {
            &mut frame[..]
        } else {
            &mut frame[1..]
        };
        let rsp = STACK_END - 8 * words.len() as u64;
        if state.gpr[4] != rsp {
            let how = format!("pushed a frame at {:#x} instead of {rsp:#x}", state.gpr[4]);
            return Ok(Err(Failure::Died(how)));
        }
        for (n, word) in words.iter_mut().enumerate() {
            let at = rsp - SUPERVISOR + SUPERVISOR_PHYS + 8 * n as u64;
            let mut bytes = [0; 8];
            self.memory.read(GuestPhysAddr(at), &mut bytes)?;
            *word = u64::from_le_bytes(bytes);
        }
        let [error, rip, cs, rflags, rsp, ss] = frame;
        if cs != u64::from(USER_CODE) || ss != u64::from(USER_DATA) {
            let how = format!("pushed CS {cs:#x} and SS {ss:#x}");
            return Ok(Err(Failure::Died(how)));
        }
        let mut registers = Registers {
            gpr: state.gpr,
            rip,
            rflags,
            fs_base: state.seg(Seg::Fs).base,
            gs_base: state.seg(Seg::Gs).base,
        };
        registers.gpr[4] = rsp;
        let fault = Fault {
            vector,
            error,
            address: if vector == 14 { state.cr2 } else { 0 },
        };
        let mut data = Box::new([0; DATA_LEN]);
        self.memory.read(GuestPhysAddr(DATA_PHYS), &mut *data)?;
        let block = is_block.then(|| block_pages(&self.memory)).transpose()?;
        let mut vector = state.vector.clone();
        for st in &mut vector.x87.st {
            st[1] &= 0xffff;
        }
        Ok(Ok(Outcome {
            fault,
            registers,
            vector,
            data,
            block,
        }))
    }
}

/// What the pages of blocks hold.
fn block_pages(memory: &GuestMemory) -> Result<Box<BlockPages>, MemoryError> {
    let mut pages = Box::new([0; BLOCK_LEN]);
    memory.read(GuestPhysAddr(BLOCK_PHYS), &mut *pages)?;
    Ok(pages)
}

fn create_vcpu(
    engine: &dyn Engine,
    memory: &GuestMemory,
    attention: &Arc<[Attention]>,
    cpuid: &Arc<CpuidModel>,
    state: &CpuState,
) -> Result<Box<dyn Vcpu>, EngineError> {
    engine.create_vcpu(VcpuSetup {
        id: 0,
        memory: memory.clone(),
        board: Arc::new(EmptyBoard),
        attention: Arc::clone(attention),
        cpuid: Arc::clone(cpuid),
        clock: Arc::new(ManualClock::new(0)),
        entropy: Arc::new(NoEntropy),
        state: state.clone(),
    })
}

/// User mode of 64-bit Linux, without the registers that a case brings along.
fn base_state(xcr0: u64) -> CpuState {
    let user = Segment::PRESENT | Segment::S | 3 << 5 | Segment::ACCESSED | Segment::WRITABLE;
    let flat = |selector, rights| Segment {
        selector,
        rights: rights | Segment::GRANULARITY,
        limit: u32::MAX,
        base: 0,
        usable: true,
    };
    let mut state = CpuState::reset(0);
    state.cr0 = cr0::PE | cr0::MP | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::PG;
    state.cr3 = PML4;
    state.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::UMIP | cr4::FSGSBASE | cr4::OSXSAVE;
    state.efer = efer::SCE | efer::LME | efer::LMA | efer::NXE;
    state.xcr0 = xcr0;
    state.cpl = 3;
    state.segments = [Segment::default(); 6];
    state.segments[Seg::Cs as usize] = flat(USER_CODE, user | Segment::CODE | Segment::LONG);
    state.segments[Seg::Ss as usize] = flat(USER_DATA, user | Segment::BIG);
    state.ldtr = Segment::default();
    // A busy 64-bit task state segment.
    state.tr = Segment {
        selector: TASK,
        rights: Segment::PRESENT | 0xb,
        limit: 103,
        base: TSS,
        usable: true,
    };
    state.gdtr = TableRegister {
        base: TABLES,
        limit: 0xff,
    };
    state.idtr = TableRegister {
        base: IDT,
        limit: 0xfff,
    };
    state
}

fn write_word(memory: &GuestMemory, at: u64, word: u64) -> Result<(), MemoryError> {
    memory.write(GuestPhysAddr(at), &word.to_le_bytes())
}

/// Maps the page at `linear` through `tables` (page-directory-pointer table, page directory, page table).
fn map(
    memory: &GuestMemory,
    tables: [u64; 3],
    linear: u64,
    phys: u64,
    rights: u64,
) -> Result<(), MemoryError> {
    let upper = PRESENT | WRITABLE | USER | ACCESSED_DIRTY;
    let index = |level: u32| (linear >> (12 + 9 * level) & 0x1ff) * 8;
    write_word(memory, PML4 + index(3), tables[0] | upper)?;
    write_word(memory, tables[0] + index(2), tables[1] | upper)?;
    write_word(memory, tables[1] + index(1), tables[2] | upper)?;
    let entry = phys | rights | PRESENT | ACCESSED_DIRTY;
    write_word(memory, tables[2] + index(0), entry)
}

fn write_paging(memory: &GuestMemory) -> Result<(), MemoryError> {
    for page in 0..(CODE_LEN / PAGE) as u64 {
        let at = page * PAGE as u64;
        map(memory, USER_TABLES, CODE + at, CODE_PHYS + at, USER)?;
    }
    for page in 0..(BLOCK_LEN / PAGE) as u64 {
        let at = page * PAGE as u64;
        let rights = USER | WRITABLE;
        map(memory, USER_TABLES, BLOCK + at, BLOCK_PHYS + at, rights)?;
    }
    for page in 0..(DATA_LEN / PAGE) as u64 {
        let at = page * PAGE as u64;
        let write = if page == READ_ONLY_PAGE as u64 {
            0
        } else {
            WRITABLE
        };
        let rights = USER | NO_EXECUTE | write;
        map(memory, USER_TABLES, DATA + at, DATA_PHYS + at, rights)?;
    }
    for page in 0..4 {
        let at = page * PAGE as u64;
        map(
            memory,
            SUPERVISOR_TABLES,
            SUPERVISOR + at,
            SUPERVISOR_PHYS + at,
            WRITABLE,
        )?;
    }
    Ok(())
}

/// GDT, TSS, IDT and handlers. SDM 3A, 3.4.5, 6.14.1 and 7.7.
fn write_tables(memory: &GuestMemory) -> Result<(), MemoryError> {
    let phys = |linear: u64| linear - SUPERVISOR + SUPERVISOR_PHYS;
    let descriptors = [
        (KERNEL_CODE, 0x00af_9b00_0000_ffff),
        (USER_DATA & !7, 0x00cf_f300_0000_ffff),
        (USER_CODE & !7, 0x00af_fb00_0000_ffff),
        (
            TASK,
            0x67 | (TSS & 0xff_ffff) << 16 | 0x8b << 40 | (TSS >> 24 & 0xff) << 56,
        ),
        (TASK + 8, TSS >> 32),
    ];
    for (selector, descriptor) in descriptors {
        write_word(memory, phys(TABLES) + u64::from(selector), descriptor)?;
    }
    // The first interrupt stack, and an I/O map beyond the limit.
    write_word(memory, phys(TSS) + 36, STACK_END)?;
    write_word(memory, phys(TSS) + 96, 104 << 48)?;
    for vector in 0..32 {
        let handler = HANDLERS + vector * HANDLER_STEP;
        // Present interrupt gate on the first interrupt stack; INT3 may use its own.
        let dpl = if vector == 3 { 3 } else { 0 };
        let low = handler & 0xffff
            | u64::from(KERNEL_CODE) << 16
            | 1 << 32
            | (0x8e | dpl << 5) << 40
            | (handler >> 16 & 0xffff) << 48;
        write_word(memory, phys(IDT) + vector * 16, low)?;
        write_word(memory, phys(IDT) + vector * 16 + 8, handler >> 32)?;
        // HLT
        memory.write(GuestPhysAddr(phys(handler)), &[0xf4])?;
    }
    Ok(())
}
