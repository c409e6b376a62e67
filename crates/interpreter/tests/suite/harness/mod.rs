//! A machine without devices around one vCPU.

#![allow(dead_code, reason = "each test program uses a part")]

pub mod code32;

use super::{counted, engine};
use belljar_clock::{Entropy, ManualClock};
use belljar_engine::{Attention, Board, Engine, Exit, MsrRefused, Reason, Vcpu, VcpuId, VcpuSetup};
use belljar_memory::{GuestMemory, GuestPhysAddr};
use belljar_x86::bits::{cr0, cr4, efer, xstate};
use belljar_x86::cpuid::{CpuidConfig, CpuidModel};
use belljar_x86::{CpuState, Gpr, Seg, Segment};
use iced_x86::code_asm::CodeAssembler;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

/// Where code is put.
pub const CODE: u64 = 0x10_0000;
/// Where data lies: 64 KiB.
pub const DATA: u64 = 0x20_0000;
/// The top of the stack.
pub const STACK: u64 = 0x30_0000;
/// The interrupt descriptor table.
pub const IDT: u64 = 0x8000;
/// The global descriptor table.
pub const GDT: u64 = 0x9000;
/// The page tables.
pub const TABLES: u64 = 0x1_0000;
/// Where the handler of vector n lies: each stops the machine.
pub const HANDLERS: u64 = 0xa000;

/// 2 MiB that [`Machine::map`] maps by small pages.
pub const PAGES: u64 = 0x4000_0000;

/// A run that takes longer has failed.
const LIMIT: Duration = Duration::from_mins(1);
const KERNEL_CODE: u16 = 0x08;
const KERNEL_DATA: u16 = 0x10;

/// A board that remembers what was written to it.
#[derive(Debug, Default)]
pub struct TestBoard {
    pub writes: Mutex<Vec<(u64, Vec<u8>)>>,
    pub vector: AtomicU32,
    attention: OnceLock<Arc<[Attention]>>,
}

impl Board for TestBoard {
    fn port_read(&self, _: VcpuId, port: u16, _: u8) -> u32 {
        u32::from(port)
    }

    fn port_write(&self, _: VcpuId, port: u16, size: u8, value: u32) {
        let data = value.to_le_bytes()[..usize::from(size)].to_vec();
        self.writes.lock().unwrap().push((u64::from(port), data));
    }

    fn mmio_read(&self, _: VcpuId, at: GuestPhysAddr, data: &mut [u8]) {
        for (n, byte) in data.iter_mut().enumerate() {
            *byte = (at.0 as u8).wrapping_add(n as u8);
        }
    }

    fn mmio_write(&self, _: VcpuId, at: GuestPhysAddr, data: &[u8]) {
        self.writes.lock().unwrap().push((at.0, data.to_vec()));
    }

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

    fn acknowledge_interrupt(&self, vcpu: VcpuId) -> Option<u8> {
        let vector = self.vector.swap(0, Ordering::SeqCst);
        if let Some(attention) = self.attention.get() {
            attention[vcpu as usize].clear(Reason::INTERRUPT);
        }
        match vector {
            0 => None,
            vector => Some(vector as u8),
        }
    }

    fn relax(&self, _: VcpuId) {}
}

#[derive(Debug)]
struct NoEntropy;

impl Entropy for NoEntropy {
    fn fill(&self, out: &mut [u8]) {
        out.fill(4);
    }
}

/// One vCPU and what surrounds it.
pub struct Machine {
    pub memory: GuestMemory,
    pub board: Arc<TestBoard>,
    pub attention: Arc<[Attention]>,
    pub vcpu: Box<dyn Vcpu>,
    pub model: Arc<CpuidModel>,
}

fn segment(selector: u16, rights: u16) -> Segment {
    Segment {
        selector,
        rights,
        limit: u32::MAX,
        base: 0,
        usable: true,
    }
}

/// A processor in 64-bit mode at CPL 0, with an identity mapping of the first GiB by 2 MiB pages.
pub fn state64() -> CpuState {
    let mut cpu = CpuState::reset(0);
    let present = Segment::PRESENT | Segment::S | Segment::WRITABLE | Segment::ACCESSED;
    cpu.segments = [segment(KERNEL_DATA, present | Segment::BIG | Segment::GRANULARITY); 6];
    cpu.segments[Seg::Cs as usize] = segment(
        KERNEL_CODE,
        present | Segment::CODE | Segment::LONG | Segment::GRANULARITY,
    );
    cpu.cr0 = cr0::PE | cr0::PG | cr0::WP | cr0::NE | cr0::ET | cr0::MP;
    cpu.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::OSXSAVE;
    cpu.xcr0 = xstate::X87 | xstate::SSE | xstate::AVX;
    cpu.efer = efer::LME | efer::LMA | efer::NXE | efer::SCE;
    cpu.cr3 = TABLES;
    cpu.gdtr.base = GDT;
    cpu.gdtr.limit = 0x2f;
    cpu.idtr.base = IDT;
    cpu.idtr.limit = 0xfff;
    cpu.rip = CODE;
    cpu.gpr[Gpr::Rsp as usize] = STACK;
    cpu.vector.x87 = belljar_x86::state::X87::default();
    cpu
}

/// Selectors of programs' 64-bit code and of their data.
pub const USER_CODE: u64 = 0x2b;
pub const USER_DATA: u64 = 0x23;

/// The same processor in a program at CPL 3, set up for SYSCALL and for a task-state segment.
pub fn state_of_program() -> CpuState {
    let mut cpu = state64();
    cpu.cpl = 3;
    for (seg, selector) in [(Seg::Cs, USER_CODE), (Seg::Ss, USER_DATA)] {
        let segment = &mut cpu.segments[seg as usize];
        segment.rights |= 3 << 5;
        segment.selector = selector as u16;
    }
    for seg in [Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs] {
        cpu.segments[seg as usize] = Segment::default();
    }
    cpu.gdtr.limit = 0x4f;
    cpu.tr.limit = 0x67;
    cpu.msr.star = 0x1b << 48 | 0x08 << 32;
    cpu
}

fn write_u64(memory: &GuestMemory, at: u64, value: u64) {
    memory
        .write(GuestPhysAddr(at), &value.to_le_bytes())
        .unwrap();
}

/// Page tables, GDT and IDT for [`state64`]. Every handler halts.
fn furnish(memory: &GuestMemory) {
    write_u64(memory, TABLES, (TABLES + 0x1000) | 7);
    write_u64(memory, TABLES + 0x1000, (TABLES + 0x2000) | 7);
    for n in 0..512 {
        write_u64(memory, TABLES + 0x2000 + n * 8, n << 21 | 0x87);
    }
    write_u64(memory, GDT + 8, 0x00af_9b00_0000_ffff);
    write_u64(memory, GDT + 0x10, 0x00cf_9300_0000_ffff);
    for vector in 0..256 {
        let handler = HANDLERS + vector * 16;
        let low =
            handler & 0xffff | u64::from(KERNEL_CODE) << 16 | 0xee00 << 32 | handler >> 16 << 48;
        write_u64(memory, IDT + vector * 16, low);
        write_u64(memory, IDT + vector * 16 + 8, handler >> 32);
        memory.write(GuestPhysAddr(handler), &[0xf4]).unwrap();
    }
}

/// Two vCPUs on the memory of the first's machine.
pub struct Pair {
    pub machine: Machine,
    pub second: Box<dyn Vcpu>,
}

impl Pair {
    /// Both run `code` unless their states say otherwise.
    pub fn new(code: &[u8], first: CpuState, second: CpuState) -> Self {
        let engine = engine();
        let mut parts = Parts::new(2);
        parts.memory.write(GuestPhysAddr(CODE), code).unwrap();
        let second = engine.create_vcpu(parts.setup(1, second)).unwrap();
        let vcpu = engine.create_vcpu(parts.setup(0, first)).unwrap();
        let machine = parts.take(vcpu);
        Self { machine, second }
    }
}

/// What vCPUs are made from.
struct Parts {
    memory: GuestMemory,
    board: Arc<TestBoard>,
    attention: Arc<[Attention]>,
    model: Arc<CpuidModel>,
}

impl Parts {
    fn new(cpus: u32) -> Self {
        let memory = GuestMemory::new(64 << 20).unwrap();
        furnish(&memory);
        let attention: Arc<[Attention]> = (0..cpus).map(|_| Attention::new()).collect();
        let board = TestBoard {
            attention: OnceLock::from(Arc::clone(&attention)),
            ..TestBoard::default()
        };
        Self {
            memory,
            board: Arc::new(board),
            attention,
            model: Arc::new(CpuidModel::new(&CpuidConfig {
                cpus,
                tsc_hz: 1_000_000_000,
                avx512: false,
            })),
        }
    }

    fn setup(&mut self, id: VcpuId, state: CpuState) -> VcpuSetup {
        VcpuSetup {
            id,
            memory: self.memory.clone(),
            board: self.board.clone(),
            attention: self.attention.clone(),
            cpuid: self.model.clone(),
            clock: Arc::new(ManualClock::default()),
            entropy: Arc::new(NoEntropy),
            state,
        }
    }

    fn take(self, vcpu: Box<dyn Vcpu>) -> Machine {
        Machine {
            memory: self.memory,
            board: self.board,
            attention: self.attention,
            vcpu,
            model: self.model,
        }
    }
}

impl Machine {
    /// A machine that will run `code` in the state `cpu`.
    pub fn with_state(code: &[u8], cpu: CpuState) -> Self {
        Self::with_engine(&*engine(), code, cpu)
    }

    /// The same with another engine than the suite's.
    pub fn with_engine(engine: &dyn Engine, code: &[u8], cpu: CpuState) -> Self {
        let mut parts = Parts::new(1);
        parts.memory.write(GuestPhysAddr(CODE), code).unwrap();
        let vcpu = engine.create_vcpu(parts.setup(0, cpu)).unwrap();
        parts.take(vcpu)
    }

    /// A machine that will run `code` in 64-bit mode.
    pub fn new(code: &[u8]) -> Self {
        Self::with_state(code, state64())
    }

    /// Runs to HLT, but no more than a million instructions.
    pub fn run(&mut self) -> &CpuState {
        let exit = run(&mut *self.vcpu, &self.attention, 0, 1_000_000);
        assert_eq!(exit, Exit::Halted, "{:x?}", self.vcpu.state());
        self.vcpu.state()
    }

    /// Writes code or data.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write(GuestPhysAddr(at), bytes).unwrap();
    }

    /// Maps the page at `linear`, which lies in the 2 MiB from [`PAGES`] on, to `physical` with the
    /// rights and other bits of `flags`.
    pub fn map(&self, linear: u64, physical: u64, flags: u64) {
        write_u64(&self.memory, TABLES + 0x1008, (TABLES + 0x3000) | 7);
        write_u64(&self.memory, TABLES + 0x3000, (TABLES + 0x4000) | 7);
        write_u64(&self.memory, entry_of(linear), physical | flags);
    }

    /// The vector whose handler halted the processor, if it is one.
    pub fn vector(&mut self) -> Option<u64> {
        let rip = self.vcpu.state().rip.wrapping_sub(HANDLERS);
        (rip < 0x1000).then_some(rip / 16)
    }

    /// A 64-bit word of memory.
    pub fn word(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.memory.read(GuestPhysAddr(at), &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }
}

/// Assembles 64-bit code at [`CODE`].
pub fn assemble(write: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    assemble_at(CODE, write)
}

/// Assembles 64-bit code at an address.
pub fn assemble_at(at: u64, write: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).unwrap();
    write(&mut assembler);
    assembler.assemble(at).unwrap()
}

/// Runs a vCPU until it leaves: for `most` instructions at most, if the suite counts them, else for
/// some time.
pub fn run(vcpu: &mut dyn Vcpu, attention: &Arc<[Attention]>, id: usize, most: u64) -> Exit {
    if counted() {
        return vcpu.run(Some(most));
    }
    let (done, end) = channel::<()>();
    let attention = Arc::clone(attention);
    let watchdog = thread::spawn(move || {
        if end.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
            attention[id].raise(Reason::STOP);
        }
    });
    let exit = vcpu.run(None);
    drop(done);
    watchdog.join().unwrap();
    exit
}

/// Where the entry of the page table lies that maps a page of the 2 MiB from [`PAGES`] on.
pub const fn entry_of(linear: u64) -> u64 {
    TABLES + 0x4000 + (linear >> 12) % 512 * 8
}
