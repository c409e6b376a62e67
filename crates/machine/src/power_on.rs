//! What a PC does between power-on and the kernel's first instruction: devices as after reset, the
//! firmware's tables and the kernel in memory, the processors at their starting points.

use crate::board::MachineBoard;
use crate::generation::{self, CurrentGeneration};
use crate::source::Source;
use crate::{MachineConfig, MachineError};
use belljar_boot::{
    Firmware, IoApic, Payload, Pci, Platform, PowerManagement, ResetRegister, Rtc, SerialPort,
};
use belljar_devices::layout;
use belljar_devices::pci::SLOTS;
use belljar_engine::{Attention, Reason};
use belljar_memory::GuestMemory;
use belljar_x86::CpuState;
use belljar_x86::cpuid::CpuidModel;
use belljar_x86::state::Activity;
use std::path::PathBuf;
use std::sync::Arc;

/// What is needed to start a machine, the first time and again after a reset.
#[derive(Debug)]
pub(crate) struct PowerOn {
    memory: GuestMemory,
    board: Arc<MachineBoard>,
    attention: Arc<[Attention]>,
    cpuid: Arc<CpuidModel>,
    /// The kernel's file, for messages and the kernel's name.
    path: PathBuf,
    kernel: Source,
    initrd: Option<Source>,
    cmdline: String,
    generation: Option<CurrentGeneration>,
}

impl PowerOn {
    /// What `config` says about the start of the machine that consists of the other parameters.
    /// Opens the files of the kernel and its initial RAM filesystem.
    pub fn new(
        config: &MachineConfig,
        memory: GuestMemory,
        board: Arc<MachineBoard>,
        attention: Arc<[Attention]>,
        cpuid: Arc<CpuidModel>,
        generation: Option<CurrentGeneration>,
    ) -> Result<Self, MachineError> {
        let path = config.kernel.clone().ok_or(MachineError::NoKernel)?;
        let kernel = Source::open("kernel", &path, memory.size())?;
        let initrd = config
            .initrd
            .as_deref()
            .map(|path| Source::open("initrd", path, memory.size()))
            .transpose()?;
        Ok(Self {
            memory,
            board,
            attention,
            cpuid,
            path,
            kernel,
            initrd,
            cmdline: config.cmdline().to_owned(),
            generation,
        })
    }

    /// Puts memory and devices as the firmware of a PC would leave them, and gives the states of
    /// the vCPUs. RAM keeps what nothing is loaded over, as on a PC. No vCPU may run meanwhile.
    pub fn reset(&self) -> Result<Vec<CpuState>, MachineError> {
        for attention in self.attention.iter() {
            attention.clear(Reason::NMI | Reason::INIT | Reason::SIPI);
        }
        self.board.reset()?;
        let bootstrap = self.load()?;
        let signature = self.cpuid.signature();
        let mut application = CpuState::reset(signature);
        application.activity = Activity::WaitForSipi;
        belljar_boot::set_memory_types(&mut application, self.cpuid.phys_bits() as u8);
        let mut states = vec![application; self.attention.len()];
        if let Some(first) = states.first_mut() {
            *first = bootstrap;
        }
        Ok(states)
    }

    /// Gives the guest, which may run, a new generation, and tells it.
    pub fn renew_generation(&self) -> Result<(), MachineError> {
        if let Some(current) = &self.generation {
            current.renew(&self.memory)?;
            self.board.raise_general_event(generation::EVENT);
        }
        Ok(())
    }

    /// Loads the firmware's tables, the kernel and its initial RAM filesystem.
    fn load(&self) -> Result<CpuState, MachineError> {
        let platform = Platform {
            generation: self.generation.as_ref().map(CurrentGeneration::for_tables),
            ..platform(self.attention.len() as u32, self.cpuid.phys_bits() as u8)
        };
        let firmware =
            Firmware::install(&self.memory, &platform).map_err(MachineError::Firmware)?;
        let name = self.path.to_string_lossy();
        let initrd = self.initrd.as_ref().map(Source::bytes).transpose()?;
        let payload = Payload {
            name: &name,
            kernel: &self.kernel.bytes()?,
            initrd: initrd.as_deref(),
            cmdline: &self.cmdline,
        };
        let entry = belljar_boot::load(&self.memory, &payload, &firmware, self.cpuid.signature())
            .map_err(|source| MachineError::Boot {
            path: self.path.clone(),
            source,
        })?;
        tracing::info!(protocol = ?entry.protocol, rip = entry.cpu.rip, "kernel loaded");
        Ok(entry.cpu)
    }
}

/// The board, as the firmware's tables describe it, without a generation.
fn platform(cpus: u32, physical_bits: u8) -> Platform {
    Platform {
        cpus,
        physical_bits,
        local_apic: layout::LAPIC_BASE as u32,
        io_apic: IoApic {
            id: layout::IOAPIC_ID,
            address: layout::IOAPIC_BASE as u32,
            timer_pin: layout::isa_gsi(layout::PIT_IRQ),
        },
        power: PowerManagement {
            sci: layout::SCI_IRQ,
            pm1a_event: layout::PM1A_EVENT,
            pm1a_control: layout::PM1A_CONTROL,
            timer: layout::PM_TIMER,
            general_events: layout::GPE0,
            timer_is_32_bit: true,
            power_button: true,
            power_off: layout::SLEEP_TYPE_OFF,
        },
        reset: ResetRegister {
            port: layout::RESET_PORT,
            value: layout::RESET_VALUE,
        },
        serial: layout::SERIAL
            .iter()
            .zip(layout::SERIAL_IRQ)
            .take(1)
            .map(|(place, irq)| SerialPort {
                port: place.base as u16,
                irq,
            })
            .collect(),
        rtc: Rtc {
            port: layout::RTC.base as u16,
            irq: layout::RTC_IRQ,
            century: layout::RTC_CENTURY,
        },
        keyboard_controller: true,
        pci: Pci {
            ecam: layout::PCI_ECAM.base as u32,
            memory: layout::PCI_MEMORY.base as u32,
            memory_len: layout::PCI_MEMORY.ranges[0].1 as u32,
            interrupts: (0..SLOTS)
                .map(|slot| layout::pci_gsi(slot).into())
                .collect(),
        },
        generation: None,
    }
}
