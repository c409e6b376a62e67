//! An NVMe controller and its namespaces. NVM Express 1.4.
//!
//! One worker thread carries out what the registers ask for, and takes commands from the submission
//! queues. Those of namespaces go to their [`Disk`]s, whose threads write the completions. A vCPU
//! that writes a doorbell wakes the worker, or frees entries of a completion queue, and goes on.
//!
//! Commands are taken only while the controller is a bus master; those that are under way when it
//! ceases to be one end as usual, and device status tells of them until then.
//!
//! A command is taken only when its completion queue has an entry to promise to it: so no driver
//! makes the controller hold more than its own queues do, and a completion never waits for room.
//!
//! What the specification leaves open: there is one command set, one page size (4 KiB), one block
//! size (512 bytes); queues are contiguous; data is described by PRPs; queues are served in turn;
//! events are asked for and never come, because nothing happens that would be one.
//!
//! # Locks
//!
//! The worker's own state, then a completion queue, then the interrupts. A vCPU takes the
//! registers' lock or a completion queue's, for some instructions.

mod admin;
mod command;
mod controller;
mod identify;
mod io;
mod prp;
mod queues;
mod registers;

use crate::disk::Disk;
use crate::in_flight::InFlight;
use crate::pci::{
    BarKind, Class, Configuration, ConfigurationState, Function, Identity, LineInput, MessageSink,
    Msi, MsiState, Msix, MsixState, SharedLine,
};
use crate::timers::lock;
use crate::virtio::Doorbell;
use belljar_memory::DmaMemory;
use controller::{Controller, Inner};
use queues::CompletionQueue;
use registers::Registers;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// PCI vendor and device: of those that Red Hat leaves to experiments without registration. Drivers
/// know controllers by their class; some take offence at QEMU's own.
const VENDOR: u16 = 0x1af4;
const DEVICE: u16 = 0x10f0;
/// Version 1.4.
const VERSION: u32 = 0x0001_0400;
/// The most namespaces of a controller.
pub const MOST_NAMESPACES: u32 = 64;
/// The most pairs of I/O queues.
const MOST_QUEUES: u16 = 32;

/// The one range: registers, doorbells, then the table of messages.
const BAR: u8 = 0;
const BAR_SIZE: u64 = 0x4000;
const DOORBELLS: u64 = 0x1000;
const TABLE: u64 = 0x2000;
const PENDING: u64 = 0x3000;
/// What rings when a doorbell was written, and when a register asks for something.
const RING_QUEUES: u64 = 1;
const RING_CONTROL: u64 = 2;

/// What a controller is attached to.
#[derive(Clone, Debug)]
pub struct NvmeParts {
    /// Its namespaces, from number 1 on; at most [`MOST_NAMESPACES`].
    pub disks: Vec<Arc<dyn Disk>>,
    /// Guest memory.
    pub memory: Arc<DmaMemory>,
    /// Where messages go.
    pub messages: Arc<dyn MessageSink>,
    /// The line of the controller's slot.
    pub line: Arc<SharedLine>,
}

/// The state of [`Nvme`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NvmeState {
    serial: String,
    queues: u16,
    configuration: ConfigurationState,
    messages: MsixState,
    plain_messages: MsiState,
    registers: Registers,
    controller: Controller,
    completions: Vec<Option<CompletionQueue>>,
    tails: Vec<u32>,
}

/// An NVMe controller as a function of PCI. Cloning it clones a handle. Its worker runs between
/// [`resume`](Self::resume) and [`pause`](Self::pause).
#[derive(Clone, Debug)]
pub struct Nvme {
    inner: Arc<Inner>,
    worker: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Nvme {
    /// A controller with the serial number `serial` (20 characters count) and a pair of queues for
    /// each of `vcpus` vCPUs, as far as that helps.
    ///
    /// # Errors
    /// If the host gives no file descriptor.
    pub fn new(serial: &str, vcpus: u32, parts: NvmeParts) -> std::io::Result<Self> {
        let queues = u16::try_from(vcpus).unwrap_or(MOST_QUEUES);
        let queues = queues.clamp(1, MOST_QUEUES);
        let msix = Msix::new(queues + 1, Arc::clone(&parts.messages));
        let msi = Msi::new(queues + 1, parts.messages);
        let (configuration, msix_at, msi_at) = configuration(&msix, &msi);
        let count = usize::from(queues) + 1;
        Ok(Self::build(Inner {
            serial: serial.to_owned(),
            queues,
            disks: parts.disks,
            memory: parts.memory,
            msix,
            msi,
            line: Mutex::new(LineInput::new(parts.line)),
            configuration: Mutex::new(configuration),
            msix_at,
            msi_at,
            registers: Mutex::default(),
            tails: (0..count).map(|_| AtomicU32::new(0)).collect(),
            heads: (0..count).map(|_| AtomicU32::new(0)).collect(),
            starved: AtomicBool::new(false),
            doorbell: Doorbell::new()?,
            controller: Mutex::new(Controller::new(count)),
            completions: (0..count).map(|_| Mutex::new(None)).collect(),
            in_flight: InFlight::default(),
        }))
    }

    /// The controller as it was saved; its worker does not run.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn restore(state: NvmeState, parts: NvmeParts) -> std::io::Result<Self> {
        let queues = state.queues.clamp(1, MOST_QUEUES);
        let messages = Arc::clone(&parts.messages);
        let this = Self::new(&state.serial, queues.into(), parts)?;
        let mut inner = Arc::try_unwrap(this.inner)
            .map_err(|_| std::io::Error::other("the new controller is shared"))?;
        inner.msix = Msix::restore(queues + 1, state.messages, Arc::clone(&messages));
        inner.msi = Msi::restore(queues + 1, state.plain_messages, messages);
        let (configuration, _, _) = configuration(&inner.msix, &inner.msi);
        inner.configuration = Mutex::new(configuration.restored(&state.configuration));
        inner.registers = Mutex::new(state.registers);
        let count = inner.tails.len();
        inner.controller = Mutex::new(state.controller.with_queues(count));
        for (to, from) in inner.completions.iter().zip(state.completions) {
            *lock(to) = from.filter(|queue| queue.size >= 2);
        }
        for (to, from) in inner.tails.iter().zip(state.tails) {
            to.store(from, Ordering::SeqCst);
        }
        Ok(Self::build(inner))
    }

    fn build(inner: Inner) -> Self {
        Self {
            inner: Arc::new(inner),
            worker: Arc::default(),
        }
    }

    /// The whole state of a controller whose worker does not run.
    pub fn save(&self) -> NvmeState {
        let inner = &self.inner;
        NvmeState {
            serial: inner.serial.clone(),
            queues: inner.queues,
            configuration: lock(&inner.configuration).save(),
            messages: inner.msix.save(),
            plain_messages: inner.msi.save(),
            registers: lock(&inner.registers).clone(),
            controller: lock(&inner.controller).clone(),
            completions: inner.completions.iter().map(|q| lock(q).clone()).collect(),
            tails: inner
                .tails
                .iter()
                .map(|tail| tail.load(Ordering::SeqCst))
                .collect(),
        }
    }

    /// Lets the worker run. If the host gives no thread, the controller reports a fatal status.
    pub fn resume(&self) {
        let mut worker = lock(&self.worker);
        if worker.is_some() {
            return;
        }
        self.inner.doorbell.take();
        let inner = Arc::clone(&self.inner);
        let thread = std::thread::Builder::new().name("nvme".to_owned());
        match thread.spawn(move || inner.run()) {
            Ok(thread) => {
                *worker = Some(thread);
                self.inner.doorbell.ring(RING_CONTROL | RING_QUEUES);
            }
            Err(error) => {
                tracing::warn!(%error, "no thread for an NVMe controller");
                lock(&self.inner.registers).fail();
            }
        }
    }

    /// Stops the worker, and waits until no command is under way. No vCPU runs meanwhile.
    pub fn pause(&self) {
        if let Some(thread) = lock(&self.worker).take() {
            self.inner.doorbell.ring(Doorbell::STOP);
            if thread.join().is_err() {
                tracing::error!("the worker of an NVMe controller panicked");
                lock(&self.inner.registers).fail();
            }
        }
    }
}

/// The configuration space, and where the two kinds of messages have their capabilities.
fn configuration(msix: &Msix, msi: &Msi) -> (Configuration, usize, usize) {
    let mut space = Configuration::new(&Identity {
        vendor: VENDOR,
        device: DEVICE,
        revision: 2,
        class: Class(1, 8, 2),
        subsystem: (0x1af4, 0x1100),
    })
    .with_bar(BAR, BarKind::Memory64, BAR_SIZE)
    .with_interrupt_pin(1);
    space.add_express();
    let msix_at = msix.add_capability(&mut space, BAR, TABLE as u32, PENDING as u32);
    let msi_at = msi.add_capability(&mut space);
    (space, msix_at, msi_at)
}

impl Function for Nvme {
    fn read_configuration(&self, register: usize, data: &mut [u8]) {
        self.inner.update_line();
        self.inner.show_what_ends();
        let mut space = lock(&self.inner.configuration);
        self.inner.msi.show_pending(&mut space, self.inner.msi_at);
        space.read(register, data);
    }

    fn write_configuration(&self, register: usize, data: &[u8]) {
        let may_begin = {
            let mut space = lock(&self.inner.configuration);
            let was_master = space.bus_master();
            space.write(register, data);
            let msix_at = self.inner.msix_at;
            self.inner.msix.control_written(&space, msix_at);
            self.inner.msi.written(&space, self.inner.msi_at);
            !was_master && space.bus_master()
        };
        if may_begin {
            self.inner.doorbell.ring(RING_QUEUES);
        }
        self.inner.update_line();
    }

    fn configuration(&self) -> &Mutex<Configuration> {
        &self.inner.configuration
    }

    fn read_memory(&self, _: u8, offset: u64, data: &mut [u8]) {
        match offset {
            0..DOORBELLS => lock(&self.inner.registers).read(offset, data),
            TABLE..PENDING => self.inner.msix.read_table(offset - TABLE, data),
            PENDING..BAR_SIZE => self.inner.msix.read_pending(offset - PENDING, data),
            // What doorbells read as is the vendor's choice (3.1.24).
            _ => data.fill(0),
        }
    }

    fn write_memory(&self, _: u8, offset: u64, data: &[u8]) {
        match offset {
            0..DOORBELLS => {
                let (looks, unmasked) = {
                    let mut registers = lock(&self.inner.registers);
                    let masked = registers.mask();
                    let looks = registers.write(offset, data);
                    (looks, masked & !registers.mask())
                };
                if looks {
                    self.inner.doorbell.ring(RING_CONTROL);
                }
                if unmasked != 0 {
                    self.inner.unmasked(unmasked);
                }
                self.inner.update_line();
            }
            DOORBELLS..TABLE => self.inner.write_doorbell(offset - DOORBELLS, data),
            TABLE..PENDING => self.inner.msix.write_table(offset - TABLE, data),
            _ => {}
        }
    }

    fn reset(&self) {
        let ran = lock(&self.worker).is_some();
        self.pause();
        self.inner.reset();
        if ran {
            self.resume();
        }
    }
}

#[cfg(test)]
mod tests;
