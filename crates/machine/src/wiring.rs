//! What a machine consists of before it has vCPUs.

use crate::board::{Attachments, MachineBoard};
use crate::console::ConsoleOutput;
use crate::generation::CurrentGeneration;
use crate::lifecycle::Lifecycle;
use crate::power_on::PowerOn;
use crate::{MachineConfig, MachineError};
use belljar_clock::{Clock, Entropy};
use belljar_devices::timers::Timers;
use belljar_engine::{Attention, Board, VcpuSetup};
use belljar_memory::GuestMemory;
use belljar_x86::CpuState;
use belljar_x86::cpuid::{CpuidConfig, CpuidModel};
use std::sync::Arc;

/// Memory, board, and what belongs to them, wired together around a clock.
#[derive(Debug)]
pub(crate) struct Wiring {
    pub memory: GuestMemory,
    pub clock: Arc<dyn Clock>,
    pub attention: Arc<[Attention]>,
    pub lifecycle: Arc<Lifecycle>,
    pub timers: Arc<Timers>,
    pub cpuid: Arc<CpuidModel>,
    pub board: Arc<MachineBoard>,
    pub power_on: Arc<PowerOn>,
}

impl Wiring {
    /// Wires what `config` asks for; the console prints to `output`. Without `entropy` there
    /// are no devices that have threads of their own, whose work would come at any time, and no
    /// generation.
    pub fn new(
        config: &MachineConfig,
        clock: Arc<dyn Clock>,
        entropy: Option<Arc<dyn Entropy>>,
        output: Arc<dyn ConsoleOutput>,
    ) -> Result<Self, MachineError> {
        let memory = GuestMemory::new(config.memory.bytes()).map_err(MachineError::Memory)?;
        let attention: Arc<[Attention]> = (0..config.cpus).map(|_| Attention::new()).collect();
        let lifecycle = Arc::new(Lifecycle::new(Arc::clone(&attention), config.no_reboot));
        let timers = Timers::new(Arc::clone(&clock));
        let cpuid = Arc::new(CpuidModel::new(&CpuidConfig {
            cpus: config.cpus,
            tsc_hz: clock.tsc_hz(),
            avx512: true,
        }));
        let generation = entropy.clone().map(CurrentGeneration::new);
        let board = MachineBoard::new(
            config,
            Attachments {
                memory: memory.clone(),
                clock: Arc::clone(&clock),
                entropy,
                attention: Arc::clone(&attention),
                lifecycle: Arc::clone(&lifecycle),
                timers: Arc::clone(&timers),
                output,
            },
        )?;
        let power_on = Arc::new(PowerOn::new(
            config,
            memory.clone(),
            Arc::clone(&board),
            Arc::clone(&attention),
            Arc::clone(&cpuid),
            generation,
        )?);
        Ok(Self {
            memory,
            clock,
            attention,
            lifecycle,
            timers,
            cpuid,
            board,
            power_on,
        })
    }

    /// What an engine needs for the first vCPU.
    pub fn setup(&self, entropy: Arc<dyn Entropy>) -> VcpuSetup {
        VcpuSetup {
            id: 0,
            memory: self.memory.clone(),
            board: Arc::<MachineBoard>::clone(&self.board) as Arc<dyn Board>,
            attention: Arc::clone(&self.attention),
            cpuid: Arc::clone(&self.cpuid),
            clock: Arc::clone(&self.clock),
            entropy,
            state: CpuState::reset(0),
        }
    }
}
