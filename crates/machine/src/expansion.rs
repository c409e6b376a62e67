//! What is plugged into the board: the devices on PCI, each in its slot.
//!
//! A device has the same slot whatever else the machine has, so that a guest finds it again.

use crate::{CardConfig, MOST_SHARES, MachineConfig, MachineError};
use belljar_clock::{Clock, Entropy};
use belljar_devices::interrupts::Interrupts;
use belljar_devices::layout;
use belljar_devices::nvme::Nvme;
use belljar_devices::pci::{
    Function, HostBridge, LevelSink, Location, MessageSink, PciRoot, SharedLine,
};
use belljar_devices::virtio::balloon::{Balloon, BalloonHost};
use belljar_devices::virtio::console::{Console, ConsoleBackend, ConsoleHost};
use belljar_devices::virtio::fs::Fs;
use belljar_devices::virtio::net::Net;
use belljar_devices::virtio::rng::Rng;
use belljar_devices::virtio::vsock::{Vsock, VsockHost};
use belljar_devices::virtio::{VirtioDevice, VirtioPci, VirtioPciParts};
use belljar_memory::{DmaMemory, GuestMemory};
use std::fmt::Debug;
use std::io;
use std::sync::Arc;

/// Slots.
const BRIDGE: usize = 0;
const RNG: usize = 1;
/// The console, if it is not the serial port: no slot is left, so it is a function beside the entropy
/// source.
const CONSOLE: Location = Location {
    slot: RNG,
    function: 1,
};
/// The first network card; the others follow.
const NET: usize = 3;
const BALLOON: usize = 28;
const VSOCK: usize = 30;
/// The shared directories, in their order: what cards and virtio disks, however many, leave.
const SHARES: [usize; MOST_SHARES] = [27, 29, 31];

/// The guest's number for its sockets. There is no other guest that it could be told from.
const GUEST: u64 = 3;

/// A device that works beside the vCPUs.
pub(crate) trait Worker: Send + Sync + Debug {
    /// Stops the work and waits until nothing is in flight.
    fn pause(&self);

    /// Lets the work go on.
    fn resume(&self);
}

impl<D: VirtioDevice> Worker for VirtioPci<D> {
    fn pause(&self) {
        VirtioPci::pause(self);
    }

    fn resume(&self) {
        VirtioPci::resume(self);
    }
}

impl Worker for Nvme {
    fn pause(&self) {
        Nvme::pause(self);
    }

    fn resume(&self) {
        Nvme::resume(self);
    }
}

/// The devices on PCI.
#[derive(Debug)]
pub(crate) struct Expansion {
    root: Arc<PciRoot>,
    workers: Vec<Arc<dyn Worker>>,
    vsock: Option<VsockHost>,
    balloon: Option<BalloonHost>,
    console: Option<ConsoleHost>,
}

/// What the devices are attached to.
pub(crate) struct Plugs<'a> {
    pub memory: &'a GuestMemory,
    pub interrupts: &'a Arc<Interrupts>,
    pub clock: &'a Arc<dyn Clock>,
    /// Without it there are only devices that have no threads.
    pub entropy: Option<Arc<dyn Entropy>>,
    /// The other end of the console, if that is a device here.
    pub console: Option<Arc<dyn ConsoleBackend>>,
}

/// Takes devices and gives each its slot.
#[derive(Debug)]
pub(crate) struct Slots {
    pub memory: Arc<DmaMemory>,
    pub messages: Arc<dyn MessageSink>,
    lines: Vec<Arc<SharedLine>>,
    pub functions: Vec<(Location, Arc<dyn Function>)>,
    pub workers: Vec<Arc<dyn Worker>>,
}

impl Slots {
    fn new(memory: Arc<DmaMemory>, interrupts: &Arc<Interrupts>) -> Self {
        let sink: Arc<dyn LevelSink> = Arc::<Interrupts>::clone(interrupts);
        let gsi = |line| layout::PCI_GSI_BASE + line;
        Self {
            memory,
            messages: Arc::<Interrupts>::clone(interrupts),
            lines: (0..layout::PCI_LINES)
                .map(|line| SharedLine::new(gsi(line), Arc::clone(&sink)))
                .collect(),
            functions: Vec::new(),
            workers: Vec::new(),
        }
    }

    /// The interrupt line of `slot`.
    pub fn line(&self, slot: usize) -> Arc<SharedLine> {
        Arc::clone(&self.lines[slot % usize::from(layout::PCI_LINES)])
    }

    /// Plugs a virtio device in at `location`.
    pub fn virtio<D: VirtioDevice>(
        &mut self,
        location: impl Into<Location>,
        name: &str,
        device: io::Result<D>,
    ) -> Result<(), MachineError> {
        let location = location.into();
        let device = device.map_err(|source| MachineError::Device {
            name: name.to_owned(),
            source,
        })?;
        let parts = VirtioPciParts {
            memory: Arc::clone(&self.memory),
            messages: Arc::clone(&self.messages),
            line: self.line(location.slot),
        };
        let device = VirtioPci::new(device, parts);
        self.functions.push((location, Arc::new(device.clone())));
        self.workers.push(Arc::new(device));
        Ok(())
    }
}

impl Slots {
    /// Plugs network card number `index` in, attached to its network.
    fn card(
        &mut self,
        index: u8,
        config: &CardConfig,
        clock: &Arc<dyn Clock>,
        entropy: &Arc<dyn Entropy>,
    ) -> Result<(), MachineError> {
        let card = belljar_net::attach(config, index, clock, entropy).map_err(|source| {
            MachineError::Network {
                card: config.to_string(),
                source,
            }
        })?;
        let device = Net::new(card.mac, card.rate, card.network, Arc::clone(clock));
        self.virtio(NET + usize::from(index), "net", device)
    }
}

impl Expansion {
    /// The devices of a machine.
    pub fn new(config: &MachineConfig, plugs: Plugs<'_>) -> Result<Self, MachineError> {
        let (memory, clock) = (plugs.memory, plugs.clock);
        let dma = memory.dma().map_err(MachineError::Memory)?;
        let mut slots = Slots::new(dma, plugs.interrupts);
        let bridge = Arc::new(HostBridge::new());
        slots.functions.push((BRIDGE.into(), bridge));
        let (mut vsock, mut balloon, mut console) = (None, None, None);
        if let Some(entropy) = plugs.entropy {
            slots.virtio(RNG, "rng", Rng::new(Arc::clone(&entropy)))?;
            let device = Vsock::new(GUEST);
            vsock = device.as_ref().ok().map(Vsock::host);
            slots.virtio(VSOCK, "vsock", device)?;
            let device = Balloon::new(memory.clone());
            balloon = device.as_ref().ok().map(Balloon::host);
            slots.virtio(BALLOON, "balloon", device)?;
            if let Some(backend) = plugs.console {
                let device = Console::new(backend);
                console = device.as_ref().ok().map(Console::host);
                slots.virtio(CONSOLE, "console", device)?;
            }
            for (index, card) in (0_u8..).zip(config.cards()) {
                slots.card(index, card, clock, &entropy)?;
            }
            slots.disks(config, memory)?;
            for (slot, share) in SHARES.into_iter().zip(&config.share) {
                slots.virtio(slot, "fs", Ok(Fs::new(share)?))?;
            }
        }
        Ok(Self {
            root: PciRoot::new(slots.functions)?,
            workers: slots.workers,
            vsock,
            balloon,
            console,
        })
    }

    /// The host's side of the console device, if there is one.
    pub fn console(&self) -> Option<&ConsoleHost> {
        self.console.as_ref()
    }

    /// The host's side of the socket device, if there is one.
    pub fn vsock(&self) -> Option<&VsockHost> {
        self.vsock.as_ref()
    }

    /// The host's side of the balloon, if there is one.
    pub fn balloon(&self) -> Option<&BalloonHost> {
        self.balloon.as_ref()
    }

    /// The bus.
    pub fn root(&self) -> &Arc<PciRoot> {
        &self.root
    }

    /// Stops the devices' work and waits until nothing is in flight.
    pub fn pause(&self) {
        for worker in &self.workers {
            worker.pause();
        }
    }

    /// Lets the devices' work go on.
    pub fn resume(&self) {
        for worker in &self.workers {
            worker.resume();
        }
    }
}
