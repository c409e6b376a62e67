//! A machine that its caller runs, a number of instructions at a time.

use crate::board::MachineBoard;
use crate::console::{ConsoleInput, ConsoleOutput};
use crate::wiring::Wiring;
use crate::{MachineConfig, MachineError, Outcome};
use belljar_clock::{Clock, Entropy, ManualClock, Nanos};
use belljar_devices::timers::{self, SharedTimed};
use belljar_engine::{
    Attention, Board, Counters, Engine, Exit, MsrRefused, Reason, Vcpu, VcpuId, VcpuSetup,
};
use belljar_memory::{GuestMemory, GuestPhysAddr};
use belljar_x86::CpuState;
use belljar_x86::bits::rflags;
use belljar_x86::state::Activity;
use std::sync::Arc;

/// A machine without threads whose guest runs the same way each time: time stands still unless
/// [`tick`](Self::tick) moves it, interrupts that devices raise reach the vCPU only then, and
/// chance is the [`Entropy`] that the caller gives. It has one vCPU and no device that has a thread, so
/// that its console is the serial port, and its guest's reset ends it.
///
/// So *where* a guest is interrupted does not depend on how the engine cuts its code into pieces,
/// and two engines can be compared instruction by instruction.
pub struct SteppedMachine {
    vcpu: Box<dyn Vcpu>,
    /// What the board tells, and what of it the vCPU knows.
    raised: Arc<[Attention]>,
    told: Arc<[Attention]>,
    clock: Arc<ManualClock>,
    timed: Vec<Arc<dyn SharedTimed>>,
    input: ConsoleInput,
    wiring: Wiring,
}

impl std::fmt::Debug for SteppedMachine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SteppedMachine")
            .field("clock", &self.clock)
            .field("wiring", &self.wiring)
            .finish_non_exhaustive()
    }
}

impl SteppedMachine {
    /// Makes the machine of `config`, whose engine and number of vCPUs do not count, with a vCPU of
    /// `engine` at the kernel's first instruction.
    ///
    /// # Errors
    /// As for [`Machine::new`](crate::Machine::new).
    pub fn new(
        config: &MachineConfig,
        engine: &dyn Engine,
        clock: Arc<ManualClock>,
        entropy: Arc<dyn Entropy>,
        output: Arc<dyn ConsoleOutput>,
    ) -> Result<Self, MachineError> {
        let config = MachineConfig {
            cpus: 1,
            no_reboot: true,
            ..config.clone()
        };
        config.validate()?;
        let wiring = Wiring::new(&config, Arc::<ManualClock>::clone(&clock), None, output)?;
        let state = wiring.power_on.reset()?.swap_remove(0);
        let told: Arc<[Attention]> = Arc::new([Attention::new()]);
        let vcpu = engine.create_vcpu(VcpuSetup {
            board: Arc::new(OnceToldBoard {
                board: Arc::clone(&wiring.board),
                told: Arc::clone(&told),
            }),
            attention: Arc::clone(&told),
            state,
            ..wiring.setup(entropy)
        })?;
        Ok(Self {
            vcpu,
            raised: Arc::clone(&wiring.attention),
            told,
            clock,
            timed: wiring.board.timed(),
            input: wiring.board.console_input(),
            wiring,
        })
    }

    /// Runs `instructions` instructions, or fewer if something else ends the run.
    pub fn run(&mut self, instructions: u64) -> Exit {
        self.vcpu.run(Some(instructions))
    }

    /// Moves time by `nanos` nanoseconds, lets devices do what is due then, and tells the vCPU of
    /// their interrupts.
    pub fn tick(&mut self, nanos: u64) {
        self.clock.advance(nanos);
        timers::poll(&self.timed, self.clock.now());
        for (raised, told) in self.raised.iter().zip(self.told.iter()) {
            if raised.has(Reason::INTERRUPT) {
                told.raise(Reason::INTERRUPT);
            } else {
                told.clear(Reason::INTERRUPT);
            }
            if raised.clear(Reason::NMI) {
                told.raise(Reason::NMI);
            }
        }
    }

    /// Machine time.
    pub fn now(&self) -> Nanos {
        self.clock.now()
    }

    /// When a device has something to do next; `None` if nothing waits.
    pub fn deadline(&self) -> Option<Nanos> {
        self.timed.iter().filter_map(|timed| timed.deadline()).min()
    }

    /// Whether the vCPU waits for an interrupt that has not come.
    pub fn is_waiting(&mut self) -> bool {
        let cpu = self.vcpu.state();
        let mut ends = Reason::NMI;
        if cpu.rflags & rflags::IF != 0 {
            ends = ends | Reason::INTERRUPT;
        }
        cpu.activity == Activity::Halted && !self.told.iter().any(|told| told.has(ends))
    }

    /// The vCPU's complete state.
    pub fn state(&mut self) -> &CpuState {
        self.vcpu.state()
    }

    /// What the vCPU has counted.
    pub fn counters(&self) -> Counters {
        self.vcpu.counters()
    }

    /// The machine's RAM.
    pub fn memory(&self) -> &GuestMemory {
        &self.wiring.memory
    }

    /// Types `bytes` at the console, as far as the guest takes them before the next tick;
    /// tells how many it took.
    pub fn type_in(&mut self, bytes: &[u8]) -> usize {
        self.input.offer(bytes)
    }

    /// How the guest has ended the machine, if it has. It is told once.
    pub fn take_outcome(&mut self) -> Option<Outcome> {
        let lifecycle = &self.wiring.lifecycle;
        lifecycle.is_ended().then(|| lifecycle.take_outcome())
    }
}

/// The board as the vCPU of a stepped machine sees it. An interrupt that it has asked for, be there
/// one or not, is out of its attention until the next tick.
#[derive(Debug)]
struct OnceToldBoard {
    board: Arc<MachineBoard>,
    told: Arc<[Attention]>,
}

impl Board for OnceToldBoard {
    fn port_read(&self, vcpu: VcpuId, port: u16, size: u8) -> u32 {
        self.board.port_read(vcpu, port, size)
    }

    fn port_write(&self, vcpu: VcpuId, port: u16, size: u8, value: u32) {
        self.board.port_write(vcpu, port, size, value);
    }

    fn mmio_read(&self, vcpu: VcpuId, at: GuestPhysAddr, data: &mut [u8]) {
        self.board.mmio_read(vcpu, at, data);
    }

    fn mmio_write(&self, vcpu: VcpuId, at: GuestPhysAddr, data: &[u8]) {
        self.board.mmio_write(vcpu, at, data);
    }

    fn msr_read(&self, vcpu: VcpuId, index: u32) -> Result<u64, MsrRefused> {
        self.board.msr_read(vcpu, index)
    }

    fn msr_write(
        &self,
        vcpu: VcpuId,
        index: u32,
        value: u64,
        cpu: &CpuState,
    ) -> Result<(), MsrRefused> {
        self.board.msr_write(vcpu, index, value, cpu)
    }

    fn task_priority(&self, vcpu: VcpuId) -> u8 {
        self.board.task_priority(vcpu)
    }

    fn set_task_priority(&self, vcpu: VcpuId, priority: u8) {
        self.board.set_task_priority(vcpu, priority);
    }

    fn acknowledge_interrupt(&self, vcpu: VcpuId) -> Option<u8> {
        if let Some(told) = self.told.get(vcpu as usize) {
            told.clear(Reason::INTERRUPT);
        }
        self.board.acknowledge_interrupt(vcpu)
    }

    fn relax(&self, _: VcpuId) {}
}
