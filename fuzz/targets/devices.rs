//! Every device's registers, with accesses of any size, order and value, while time passes.

#![no_main]

use belljar_clock::{Clock, ManualClock, SeededEntropy};
use belljar_devices::acpi_pm::AcpiPm;
use belljar_devices::bus::{Bus, SharedDevice};
use belljar_devices::control::{MachineControl, PowerEvent};
use belljar_devices::debug_exit::DebugExit;
use belljar_devices::disk::{Disk, Done, Request};
use belljar_devices::i8042::I8042;
use belljar_devices::interrupts::{Interrupts, IoApicPage, PicPorts};
use belljar_devices::irq::{IrqLine, IrqSink};
use belljar_devices::layout;
use belljar_devices::nvme::{Nvme, NvmeParts};
use belljar_devices::paravirtual::Paravirtual;
use belljar_devices::pci::{
    ConfigurationPorts, Ecam, Function, HostBridge, MemoryWindow, PciRoot, SharedLine,
};
use belljar_devices::pit::Pit;
use belljar_devices::rtc::Rtc;
use belljar_devices::serial::{Serial, SerialBackend};
use belljar_devices::timers::{SharedTimed, TimerWake};
use belljar_devices::virtio::block::Block;
use belljar_devices::virtio::rng::Rng;
use belljar_devices::virtio::{VirtioPci, VirtioPciParts};
use belljar_engine::Attention;
use belljar_fuzz::Input;
use belljar_memory::{GuestMemory, GuestPhysAddr};
use libfuzzer_sys::fuzz_target;
use std::sync::{Arc, LazyLock, Mutex};

/// vCPUs of the machine.
const CPUS: u32 = 2;

static MEMORY: LazyLock<GuestMemory> =
    LazyLock::new(|| GuestMemory::new(1 << 20).expect("the host has memory"));

/// Everything outside that devices speak to; it does nothing.
#[derive(Debug)]
struct Outside;

impl MachineControl for Outside {
    fn request(&self, _: PowerEvent) {}
}

impl TimerWake for Outside {
    fn deadline_changed(&self, _: belljar_clock::Nanos) {}
}

impl SerialBackend for Outside {
    fn write(&mut self, _: &[u8]) {}

    fn room(&mut self) {}
}

impl Disk for Outside {
    fn size(&self) -> u64 {
        1 << 20
    }

    fn is_read_only(&self) -> bool {
        false
    }

    fn submit(&self, _: Request, done: Done) {
        done(Ok(()));
    }
}

struct Devices {
    clock: Arc<ManualClock>,
    ports: Bus,
    memory: Bus,
    interrupts: Arc<Interrupts>,
    paravirtual: Paravirtual,
    serial: Arc<Mutex<Serial>>,
    root: Arc<PciRoot>,
    nvme: Nvme,
    timed: Vec<Arc<dyn SharedTimed>>,
}

fn devices() -> Devices {
    let manual = Arc::new(ManualClock::new(1_700_000_000_000_000_000));
    let clock: Arc<dyn Clock> = manual.clone();
    let wake: Arc<dyn TimerWake> = Arc::new(Outside);
    let control: Arc<dyn MachineControl> = Arc::new(Outside);
    let attention: Arc<[Attention]> = (0..CPUS).map(|_| Attention::new()).collect();
    let interrupts = Interrupts::new(CPUS, attention, clock.clone(), wake.clone());
    let sink: Arc<dyn IrqSink> = interrupts.clone();
    let line = |irq| IrqLine::new(sink.clone(), irq);
    let pit = Pit::new(line(layout::PIT_IRQ), clock.clone(), wake.clone());
    let rtc = Rtc::new(line(layout::RTC_IRQ), clock.clone(), wake.clone(), 1 << 30);
    let serial = Serial::new(
        Box::new(Outside),
        line(layout::SERIAL_IRQ[0]),
        clock.clone(),
        wake.clone(),
    );
    let pm = AcpiPm::new(line(layout::SCI_IRQ), control.clone(), clock.clone(), wake);
    let (pit, rtc) = (Arc::new(Mutex::new(pit)), Arc::new(Mutex::new(rtc)));
    let (serial, pm) = (Arc::new(Mutex::new(serial)), Arc::new(Mutex::new(pm)));
    let keyboard = I8042::new(
        line(layout::KEYBOARD_IRQ),
        line(layout::MOUSE_IRQ),
        control.clone(),
    );
    let bridge: Arc<dyn Function> = Arc::new(HostBridge::new());
    let rng = Rng::new(Arc::new(SeededEntropy::new(0))).expect("the host has descriptors");
    let dma = MEMORY.dma().expect("the memory can be described");
    let parts = |slot| VirtioPciParts {
        memory: dma.clone(),
        messages: interrupts.clone(),
        line: SharedLine::new(layout::pci_gsi(slot), interrupts.clone()),
    };
    let block = Block::new(Arc::new(Outside), "", 2).expect("the host has descriptors");
    let nvme_parts = NvmeParts {
        disks: vec![Arc::new(Outside)],
        memory: dma.clone(),
        messages: interrupts.clone(),
        line: SharedLine::new(layout::pci_gsi(3), interrupts.clone()),
    };
    let nvme = Nvme::new("", 2, nvme_parts).expect("the host has descriptors");
    nvme.resume();
    let functions: [(usize, Arc<dyn Function>); 4] = [
        (0, bridge),
        (1, Arc::new(VirtioPci::new(rng, parts(1)))),
        (2, Arc::new(VirtioPci::new(block, parts(2)))),
        (3, Arc::new(nvme.clone())),
    ];
    let root = PciRoot::new(functions).expect("the slots are apart");
    root.firmware_handoff().expect("the window has room");
    for slot in 1..4 {
        // So that devices reach memory from the start; the guest may take that back.
        root.write_configuration(slot << 3, 0x04, &[0x06]);
    }
    let (mut ports, mut memory) = (Bus::new(), Bus::new());
    let on_ports: [(layout::Place, Arc<dyn SharedDevice>); 8] = [
        (layout::PIC, Arc::new(PicPorts(interrupts.clone()))),
        (layout::PIT, pit.clone()),
        (layout::RTC, rtc.clone()),
        (layout::SERIAL[0], serial.clone()),
        (layout::ACPI_PM, pm.clone()),
        (layout::I8042, Arc::new(Mutex::new(keyboard))),
        (
            layout::PCI_CONFIGURATION,
            Arc::new(Mutex::new(ConfigurationPorts::new(
                root.clone(),
                control.clone(),
            ))),
        ),
        (
            layout::DEBUG_EXIT,
            Arc::new(Mutex::new(DebugExit::new(control))),
        ),
    ];
    for (place, device) in on_ports {
        ports.attach(place, device).expect("the places are apart");
    }
    memory
        .attach(layout::IOAPIC, Arc::new(IoApicPage(interrupts.clone())))
        .expect("the bus is empty");
    memory
        .attach(layout::PCI_ECAM, Arc::new(Ecam(root.clone())))
        .and_then(|()| memory.attach(layout::PCI_MEMORY, Arc::new(MemoryWindow(root.clone()))))
        .expect("the places are apart");
    Devices {
        ports,
        memory,
        paravirtual: Paravirtual::new(CPUS, MEMORY.clone(), clock),
        timed: vec![pit, rtc, serial.clone(), pm, interrupts.clone()],
        clock: manual,
        interrupts,
        serial,
        root,
        nvme,
    }
}

/// The ports at which something answers.
const PORTS: [(u16, u16); 8] = [
    (0xcf8, 8),
    (0x20, 0x60),
    (0x60, 0x20),
    (0xa0, 2),
    (0xf4, 4),
    (0x3f8, 8),
    (0x600, 0x40),
    (0x4d0, 2),
];

fn step(devices: &Devices, input: &mut Input) {
    let choice = input.u8();
    let vcpu = u32::from(choice >> 7);
    let mut data = [0; 8];
    match choice & 0x7f {
        kind @ 0..48 => {
            let (first, count) = PORTS[usize::from(kind) % PORTS.len()];
            let port = u64::from(first + u16::from(input.u8()) % count);
            let size = 1 << (kind % 3);
            if kind < 16 {
                devices.ports.read(port, &mut data[..size]);
            } else {
                devices
                    .ports
                    .write(port, &input.u64().to_le_bytes()[..size]);
            }
        }
        48..52 => devices.memory.read(ioapic(input), &mut data[..4]),
        52..54 => devices.memory.read(pci(input), &mut data[..4]),
        54..56 => {
            let at = pci(input);
            devices.memory.write(at, &input.u64().to_le_bytes());
        }
        56..64 => {
            let at = ioapic(input);
            devices.memory.write(at, &input.u32().to_le_bytes());
        }
        64..72 => {
            devices
                .interrupts
                .mmio_read(vcpu, lapic(input), &mut data[..4]);
        }
        72..88 => {
            let at = lapic(input);
            devices
                .interrupts
                .mmio_write(vcpu, at, &input.u32().to_le_bytes());
        }
        88..96 => {
            let index = msr(input);
            let value = input.u64();
            let _ = devices.interrupts.msr_read(vcpu, index);
            let _ = devices.interrupts.msr_write(vcpu, index, value, 0);
        }
        96..100 => {
            let index = [0x11, 0x12, 0x4b56_4d00, 0x4b56_4d01][usize::from(choice & 3)];
            let _ = devices.paravirtual.msr_write(vcpu, index, input.u64(), 7);
        }
        100..104 => {
            devices.interrupts.acknowledge(vcpu);
        }
        104..107 => {
            let bytes = input.take(usize::from(choice & 0x1f));
            let mut serial = devices.serial.lock().expect("no device panics");
            serial.receive(bytes);
        }
        107 => put_in_memory(input),
        108..110 => devices.interrupts.deliver_msi(input.u64(), input.u32()),
        _ => pass_time(devices, u64::from(input.u32())),
    }
}

/// Lets time pass and does what has become due.
fn pass_time(devices: &Devices, nanos: u64) {
    devices.clock.advance(nanos);
    let now = devices.clock.now();
    for device in &devices.timed {
        if device.deadline().is_some_and(|deadline| deadline <= now) {
            device.expire(now);
            let next = device.deadline();
            assert!(next.is_none_or(|next| next > now), "a deadline stays due");
        }
    }
}

fn ioapic(input: &mut Input) -> u64 {
    layout::IOAPIC_BASE + u64::from(input.u8() & 0x7f)
}

/// An address in PCI's configuration space or at the registers of its devices.
fn pci(input: &mut Input) -> u64 {
    let low = u64::from(input.u16());
    let device = u64::from(input.u8() % 4);
    if low & 1 << 15 == 0 {
        layout::PCI_MEMORY.base + (device << 15) + low
    } else {
        layout::PCI_ECAM.base + (device << 15) + (low & 0xff)
    }
}

/// Writes into the low 64 KiB of RAM, where rings may be.
fn put_in_memory(input: &mut Input) {
    let at = GuestPhysAddr(input.u16().into());
    let bytes = input.take(16);
    MEMORY.write(at, bytes).expect("it is RAM");
}

fn lapic(input: &mut Input) -> GuestPhysAddr {
    GuestPhysAddr(layout::LAPIC_BASE + (u64::from(input.u8()) << 4))
}

fn msr(input: &mut Input) -> u32 {
    match input.u8() {
        0x80 => 0x1b,
        0x81 => 0x6e0,
        register => 0x800 + u32::from(register),
    }
}

fuzz_target!(|data: &[u8]| {
    let devices = devices();
    let mut input = Input::new(data);
    while !input.is_empty() {
        step(&devices, &mut input);
    }
    // No device hangs, whatever it was given to do.
    devices.nvme.pause();
    devices.root.reset();
});
