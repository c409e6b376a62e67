//! The board: the devices of a PC, wired together, as the vCPUs reach them.

use crate::console::{ConsoleInput, ConsoleOutput, DeviceEnd, Keyboard, Line, Nowhere, PortEnd};
use crate::expansion::{Expansion, Plugs};
use crate::lifecycle::Lifecycle;
use crate::{ConsoleDevice, MachineConfig, MachineError, Outcome};
use belljar_clock::{Clock, Entropy};
use belljar_devices::acpi_pm::AcpiPm;
use belljar_devices::bus::{Bus, Device};
use belljar_devices::control::{MachineControl, PowerEvent};
use belljar_devices::debug_exit::DebugExit;
use belljar_devices::i8042::I8042;
use belljar_devices::interrupts::{Interrupts, IoApicPage, PicPorts};
use belljar_devices::irq::{IrqLine, IrqSink};
use belljar_devices::layout;
use belljar_devices::paravirtual::Paravirtual;
use belljar_devices::pci::{ConfigurationPorts, Ecam, MemoryWindow};
use belljar_devices::pit::Pit;
use belljar_devices::rtc::Rtc;
use belljar_devices::serial::Serial;
use belljar_devices::timers::{SharedTimed, TimerWake, Timers};
use belljar_devices::virtio::balloon::BalloonHost;
use belljar_devices::virtio::console::{ConsoleBackend, ConsoleHost};
use belljar_devices::virtio::vsock::VsockHost;
use belljar_engine::{Attention, Board, MsrRefused, VcpuId};
use belljar_memory::{GuestMemory, GuestPhysAddr};
use belljar_x86::CpuState;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that a port access has at most.
const PORT_WIDTH: usize = 4;

/// What the board is attached to.
pub(crate) struct Attachments {
    pub memory: GuestMemory,
    pub clock: Arc<dyn Clock>,
    pub entropy: Option<Arc<dyn Entropy>>,
    pub attention: Arc<[Attention]>,
    pub lifecycle: Arc<Lifecycle>,
    pub timers: Arc<Timers>,
    pub output: Arc<dyn ConsoleOutput>,
}

/// All devices of a machine, and the buses that they are on.
#[derive(Debug)]
pub(crate) struct MachineBoard {
    ports: Bus,
    physical: Bus,
    interrupts: Arc<Interrupts>,
    paravirtual: Paravirtual,
    serial: Arc<Mutex<Serial>>,
    pit: Arc<Mutex<Pit>>,
    rtc: Arc<Mutex<Rtc>>,
    keyboard: Arc<Mutex<I8042>>,
    power: Arc<Mutex<AcpiPm>>,
    expansion: Expansion,
    configuration: Arc<Mutex<ConfigurationPorts>>,
    /// The console's line, and where the serial port prints to.
    line: Arc<Line>,
    serial_output: Arc<dyn ConsoleOutput>,
}

/// What devices do to the machine.
#[derive(Debug)]
struct Power {
    lifecycle: Arc<Lifecycle>,
}

impl MachineControl for Power {
    fn request(&self, event: PowerEvent) {
        tracing::debug!(?event, "requested by the guest");
        match event {
            PowerEvent::PowerOff => self.lifecycle.end(Outcome::PoweredOff),
            PowerEvent::Reset => self.lifecycle.guest_reset(),
            PowerEvent::DebugExit(status) => self.lifecycle.end(Outcome::DebugExit(status)),
        }
    }
}

fn lock<T>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

fn shared<T: Device>(device: T) -> Arc<Mutex<T>> {
    Arc::new(Mutex::new(device))
}

impl MachineBoard {
    /// Makes the devices that `config` asks for and wires them.
    pub fn new(config: &MachineConfig, to: Attachments) -> Result<Arc<Self>, MachineError> {
        let clock = || Arc::clone(&to.clock);
        let wake = || Arc::<Timers>::clone(&to.timers) as Arc<dyn TimerWake>;
        let interrupts = Interrupts::new(config.cpus, Arc::clone(&to.attention), clock(), wake());
        let irq = |number| {
            let sink: Arc<dyn IrqSink> = Arc::<Interrupts>::clone(&interrupts);
            IrqLine::new(sink, number)
        };
        let control: Arc<dyn MachineControl> = Arc::new(Power {
            lifecycle: to.lifecycle,
        });
        let line = Line::new(Arc::clone(&to.output));
        // A machine whose devices have no threads has the serial port alone.
        let by_virtio = config.console_device == ConsoleDevice::Virtio && to.entropy.is_some();
        let (console, serial_line, serial_output) = if by_virtio {
            let device: Arc<dyn ConsoleBackend> = Arc::new(DeviceEnd(Arc::clone(&line)));
            let nowhere: Arc<dyn ConsoleOutput> = Arc::new(Nowhere);
            (Some(device), Line::new(Arc::clone(&nowhere)), nowhere)
        } else {
            (None, Arc::clone(&line), to.output)
        };
        let backend = Box::new(PortEnd(serial_line));
        let serial = Serial::new(backend, irq(layout::SERIAL_IRQ[0]), clock(), wake());
        let plugs = Plugs {
            memory: &to.memory,
            interrupts: &interrupts,
            clock: &to.clock,
            entropy: to.entropy,
            console,
        };
        let expansion = Expansion::new(config, plugs)?;
        let root = Arc::clone(expansion.root());
        let mut board = Self {
            ports: Bus::new(),
            physical: Bus::new(),
            paravirtual: Paravirtual::new(config.cpus, to.memory, clock()),
            serial: shared(serial),
            pit: shared(Pit::new(irq(layout::PIT_IRQ), clock(), wake())),
            rtc: shared(Rtc::new(
                irq(layout::RTC_IRQ),
                clock(),
                wake(),
                config.memory.bytes(),
            )),
            keyboard: shared(I8042::new(
                irq(layout::KEYBOARD_IRQ),
                irq(layout::MOUSE_IRQ),
                Arc::clone(&control),
            )),
            power: shared(AcpiPm::new(
                irq(layout::SCI_IRQ),
                Arc::clone(&control),
                clock(),
                wake(),
            )),
            configuration: shared(ConfigurationPorts::new(root, Arc::clone(&control))),
            expansion,
            interrupts,
            line,
            serial_output,
        };
        board.attach()?;
        if config.debug_exit {
            board
                .ports
                .attach(layout::DEBUG_EXIT, shared(DebugExit::new(control)))?;
        }
        Ok(Arc::new(board))
    }

    /// Puts the devices on the buses.
    fn attach(&mut self) -> Result<(), MachineError> {
        let ports = &mut self.ports;
        ports.attach(
            layout::PIC,
            Arc::new(PicPorts(Arc::clone(&self.interrupts))),
        )?;
        ports.attach(layout::PIT, Arc::<Mutex<Pit>>::clone(&self.pit))?;
        ports.attach(layout::I8042, Arc::<Mutex<I8042>>::clone(&self.keyboard))?;
        ports.attach(layout::RTC, Arc::<Mutex<Rtc>>::clone(&self.rtc))?;
        ports.attach(layout::SERIAL[0], Arc::<Mutex<Serial>>::clone(&self.serial))?;
        ports.attach(layout::ACPI_PM, Arc::<Mutex<AcpiPm>>::clone(&self.power))?;
        ports.attach(
            layout::PCI_CONFIGURATION,
            Arc::<Mutex<ConfigurationPorts>>::clone(&self.configuration),
        )?;
        let io_apic = Arc::new(IoApicPage(Arc::clone(&self.interrupts)));
        let physical = &mut self.physical;
        physical.attach(layout::IOAPIC, io_apic)?;
        let root = self.expansion.root();
        physical.attach(layout::PCI_ECAM, Arc::new(Ecam(Arc::clone(root))))?;
        let window = Arc::new(MemoryWindow(Arc::clone(root)));
        physical.attach(layout::PCI_MEMORY, window)?;
        Ok(())
    }

    /// What has deadlines.
    pub fn timed(&self) -> Vec<Arc<dyn SharedTimed>> {
        vec![
            Arc::<Interrupts>::clone(&self.interrupts),
            Arc::<Mutex<Pit>>::clone(&self.pit),
            Arc::<Mutex<Rtc>>::clone(&self.rtc),
            Arc::<Mutex<Serial>>::clone(&self.serial),
            Arc::<Mutex<AcpiPm>>::clone(&self.power),
        ]
    }

    /// The input of the console.
    pub fn console_input(&self) -> ConsoleInput {
        let keyboard: Arc<dyn Keyboard> = match self.console() {
            Some(console) => Arc::new(console.clone()),
            None => Arc::<Mutex<Serial>>::clone(&self.serial),
        };
        ConsoleInput::new(keyboard, Arc::clone(&self.line))
    }

    /// The host's side of the console device, if there is one.
    pub fn console(&self) -> Option<&ConsoleHost> {
        self.expansion.console()
    }

    /// The host's side of the socket device, if there is one.
    pub fn vsock(&self) -> Option<&VsockHost> {
        self.expansion.vsock()
    }

    /// The host's side of the balloon, if there is one.
    pub fn balloon(&self) -> Option<&BalloonHost> {
        self.expansion.balloon()
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        lock(&self.power).press_power_button();
    }

    /// Raises a general-purpose event of ACPI, 0 to 15.
    pub fn raise_general_event(&self, number: u8) {
        lock(&self.power).raise_general_event(number);
    }

    /// Puts every device as after power-on, and then as firmware hands them over. The interrupt
    /// controllers come first: they take the levels of the devices' lines as these change.
    pub fn reset(&self) -> Result<(), MachineError> {
        self.interrupts.reset();
        self.paravirtual.reset();
        lock(&self.serial).reset();
        lock(&self.pit).reset();
        lock(&self.rtc).reset();
        lock(&self.keyboard).reset();
        lock(&self.power).reset();
        lock(&self.configuration).reset();
        self.expansion.root().reset();
        self.interrupts.firmware_handoff();
        self.expansion.root().firmware_handoff()?;
        Ok(())
    }

    /// Stops what works beside the vCPUs, and waits until nothing is in flight. No vCPU runs.
    pub fn pause(&self) {
        self.expansion.pause();
    }

    /// Lets what works beside the vCPUs go on.
    pub fn resume(&self) {
        self.expansion.resume();
    }
}

impl Board for MachineBoard {
    fn port_read(&self, _: VcpuId, port: u16, size: u8) -> u32 {
        let mut bytes = [0; PORT_WIDTH];
        let width = usize::from(size).min(PORT_WIDTH);
        self.ports.read(u64::from(port), &mut bytes[..width]);
        u32::from_le_bytes(bytes)
    }

    fn port_write(&self, _: VcpuId, port: u16, size: u8, value: u32) {
        let bytes = value.to_le_bytes();
        let width = usize::from(size).min(PORT_WIDTH);
        self.ports.write(u64::from(port), &bytes[..width]);
        // A wide access may begin below the register that transmits.
        let first = u64::from(port);
        if (first..first + u64::from(size)).contains(&layout::SERIAL[0].base) {
            self.serial_output.pace(None);
        }
    }

    fn mmio_read(&self, vcpu: VcpuId, at: GuestPhysAddr, data: &mut [u8]) {
        if !self.interrupts.mmio_read(vcpu, at, data) {
            self.physical.read(at.0, data);
        }
    }

    fn mmio_write(&self, vcpu: VcpuId, at: GuestPhysAddr, data: &[u8]) {
        if !self.interrupts.mmio_write(vcpu, at, data) {
            self.physical.write(at.0, data);
        }
    }

    fn msr_read(&self, vcpu: VcpuId, index: u32) -> Result<u64, MsrRefused> {
        self.interrupts
            .msr_read(vcpu, index)
            .or_else(|| self.paravirtual.msr_read(vcpu, index).map(Ok))
            .unwrap_or(Err(MsrRefused))
    }

    fn msr_write(
        &self,
        vcpu: VcpuId,
        index: u32,
        value: u64,
        cpu: &CpuState,
    ) -> Result<(), MsrRefused> {
        let tsc_adjust = cpu.msr.tsc_adjust;
        self.interrupts
            .msr_write(vcpu, index, value, tsc_adjust)
            .or_else(|| self.paravirtual.msr_write(vcpu, index, value, tsc_adjust))
            .unwrap_or(Err(MsrRefused))
    }

    fn task_priority(&self, vcpu: VcpuId) -> u8 {
        self.interrupts.task_priority(vcpu)
    }

    fn set_task_priority(&self, vcpu: VcpuId, priority: u8) {
        self.interrupts.set_task_priority(vcpu, priority);
    }

    fn acknowledge_interrupt(&self, vcpu: VcpuId) -> Option<u8> {
        self.interrupts.acknowledge(vcpu)
    }

    fn relax(&self, _: VcpuId) {
        std::thread::yield_now();
    }
}
