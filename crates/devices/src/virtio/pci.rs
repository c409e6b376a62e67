//! The transport of virtio over PCI. Virtio 1.2, 4.1.

mod work;

use super::queue::QueueSetup;
use super::registers::{Field, field};
use super::signals::{Signals, SignalsState};
use super::{Bell, COMMON_FEATURES, DeviceKind, FEATURE_VERSION_1, VirtioDevice};
use crate::pci::{
    BarKind, CAPABILITY_VENDOR, Class, Configuration, ConfigurationState, Function, Identity,
    LineInput, MessageSink, Msix, MsixState, SharedLine,
};
use crate::timers::lock;
use belljar_memory::DmaMemory;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use work::Phase;

/// PCI vendor of all virtio devices; their device IDs begin at [`FIRST_DEVICE`].
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;

/// The one base address register and what lies in its range.
const BAR: u8 = 0;
const BAR_SIZE: u64 = 0x8000;
const COMMON: u64 = 0x0000;
const COMMON_LEN: u64 = 0x38;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x5000;
const PAGE: u64 = 0x1000;
/// Bytes between the notification addresses of two queues.
const NOTIFY_MULTIPLIER: u32 = 4;
/// The most queues whose notification addresses and vectors fit into their pages.
const MOST_QUEUES: usize = 255;

/// Types of the vendor capabilities.
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
const CAP_PCI: u8 = 5;
/// Offsets in the capability by which configuration space reaches the range: range, offset,
/// length, data.
const WINDOW_BAR: usize = 4;
const WINDOW_OFFSET: usize = 8;
const WINDOW_LEN: usize = 12;
const WINDOW_DATA: usize = 16;

/// Bits of the device status. Virtio 1.2, 2.1.
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 0x40;

/// What a device is attached to.
#[derive(Clone, Debug)]
pub struct VirtioPciParts {
    /// Guest memory.
    pub memory: Arc<DmaMemory>,
    /// Where messages go.
    pub messages: Arc<dyn MessageSink>,
    /// The line of the device's slot.
    pub line: Arc<SharedLine>,
}

/// What the driver has negotiated, and the queues while no worker has them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Negotiated {
    status: u8,
    features: u64,
    device_select: u32,
    driver_select: u32,
    queue_select: u16,
    queues: Vec<QueueSetup>,
}

#[derive(Debug)]
struct Transport {
    negotiated: Negotiated,
    phase: Phase,
}

/// The state of [`VirtioPci`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VirtioPciState<S> {
    configuration: ConfigurationState,
    messages: MsixState,
    signals: SignalsState,
    negotiated: Negotiated,
    running: bool,
    device: S,
}

/// A virtio device as a function of PCI. Cloning it clones a handle.
#[derive(Debug)]
pub struct VirtioPci<D> {
    inner: Arc<Inner<D>>,
}

impl<D> Clone for VirtioPci<D> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

#[derive(Debug)]
struct Inner<D> {
    device: D,
    bells: Vec<Bell>,
    memory: Arc<DmaMemory>,
    signals: Arc<Signals>,
    configuration: Mutex<Configuration>,
    /// Offsets of two capabilities: MSI-X, and the one that reaches the range.
    msix_at: usize,
    window_at: usize,
    transport: Mutex<Transport>,
    /// A worker has been stopped.
    stopped: Condvar,
}

const fn class(kind: DeviceKind) -> Class {
    match kind {
        DeviceKind::Network => Class(2, 0, 0),
        DeviceKind::Block => Class(1, 0x80, 0),
        DeviceKind::Console => Class(7, 0x80, 0),
        DeviceKind::Entropy
        | DeviceKind::Balloon
        | DeviceKind::NineP
        | DeviceKind::Socket
        | DeviceKind::FileSystem => Class(0xff, 0, 0),
    }
}

/// The body of a vendor capability after its link: length, type, range, and the place there.
fn capability(kind: u8, offset: u64, len: u64, more: &[u8]) -> Vec<u8> {
    let mut body = vec![(16 + more.len()) as u8, kind, BAR, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((len as u32).to_le_bytes());
    body.extend(more);
    body
}

impl<D: VirtioDevice> VirtioPci<D> {
    /// The function of `device` after power-on.
    pub fn new(device: D, parts: VirtioPciParts) -> Self {
        let queues = queue_setups(&device);
        let vectors = queues.len() as u16 + 1;
        let msix = Msix::new(vectors, parts.messages);
        let signals = Signals::new(msix, LineInput::new(parts.line), queues.len());
        let negotiated = Negotiated::new(queues);
        Self::build(device, parts.memory, signals, negotiated, None)
    }

    /// The function as it was saved; `device` was restored from
    /// [`device_state`](VirtioPciState::device_state). It is paused:
    /// [`resume`](Self::resume) starts its worker.
    pub fn restore(state: VirtioPciState<D::State>, device: D, parts: VirtioPciParts) -> Self {
        let queues = queue_setups(&device);
        let vectors = queues.len() as u16 + 1;
        let msix = Msix::restore(vectors, state.messages, parts.messages);
        let signals = Signals::new(msix, LineInput::new(parts.line), queues.len());
        let signals = signals.restore(&state.signals);
        let mut negotiated = state.negotiated;
        // A state of another device's has other queues; this device's are what counts.
        negotiated.queues.truncate(queues.len());
        let missing = negotiated.queues.len();
        negotiated.queues.extend(queues.into_iter().skip(missing));
        let this = Self::build(
            device,
            parts.memory,
            signals,
            negotiated,
            Some(&state.configuration),
        );
        if state.running {
            this.inner.lock().phase = Phase::Paused;
        }
        this.inner.update_line();
        this
    }

    fn build(
        device: D,
        memory: Arc<DmaMemory>,
        signals: Signals,
        negotiated: Negotiated,
        saved: Option<&ConfigurationState>,
    ) -> Self {
        let kind = device.kind();
        let id = FIRST_DEVICE + kind as u16;
        let mut space = Configuration::new(&Identity {
            vendor: VENDOR,
            device: id,
            revision: 1,
            class: class(kind),
            subsystem: (VENDOR, id),
        })
        .with_bar(BAR, BarKind::Memory64, BAR_SIZE)
        .with_interrupt_pin(1);
        space.add_express();
        let msix = &signals.msix;
        let msix_at = msix.add_capability(&mut space, BAR, TABLE as u32, PENDING as u32);
        let mut vendor =
            |body: &[u8], writable: &[u8]| space.add_capability(CAPABILITY_VENDOR, body, writable);
        let multiplier = NOTIFY_MULTIPLIER.to_le_bytes();
        vendor(&capability(CAP_COMMON, COMMON, COMMON_LEN, &[]), &[]);
        vendor(&capability(CAP_ISR, ISR, 4, &[]), &[]);
        vendor(&capability(CAP_DEVICE, DEVICE, PAGE, &[]), &[]);
        vendor(&capability(CAP_NOTIFY, NOTIFY, PAGE, &multiplier), &[]);
        let mut writable = [0; 18];
        writable[WINDOW_BAR - 2] = 0xff;
        writable[WINDOW_OFFSET - 2..].fill(0xff);
        let window_at = vendor(&capability(CAP_PCI, 0, 0, &[0; 4]), &writable);
        if let Some(saved) = saved {
            space = space.restored(saved);
        }
        let queues = 0..device.queue_sizes().len();
        Self {
            inner: Arc::new(Inner {
                bells: queues.map(|n| device.doorbell().bell(n)).collect(),
                device,
                memory,
                signals: Arc::new(signals),
                configuration: Mutex::new(space),
                msix_at,
                window_at,
                transport: Mutex::new(Transport {
                    negotiated,
                    phase: Phase::Idle,
                }),
                stopped: Condvar::new(),
            }),
        }
    }

    /// The device's model.
    pub fn device(&self) -> &D {
        &self.inner.device
    }

    /// How the device gets its driver's attention.
    #[cfg(test)]
    pub(super) fn signals(&self) -> &Signals {
        &self.inner.signals
    }

    /// Stops the device's worker until [`resume`](Self::resume), and waits until nothing is in
    /// flight. No vCPU runs meanwhile.
    pub fn pause(&self) {
        let transport = self.inner.wait_while_stopping(self.inner.lock());
        drop(self.inner.stop_worker(transport, Phase::Paused));
    }

    /// Lets a paused device go on.
    pub fn resume(&self) {
        let mut transport = self.inner.lock();
        if matches!(transport.phase, Phase::Paused) {
            self.inner.start(&mut transport);
        }
    }

    /// The whole state of a device that is paused, or has never run.
    pub fn save(&self) -> VirtioPciState<D::State> {
        let transport = self.inner.lock();
        VirtioPciState {
            configuration: lock(&self.inner.configuration).save(),
            messages: self.inner.signals.msix.save(),
            signals: self.inner.signals.save(),
            negotiated: transport.negotiated.clone(),
            running: !matches!(transport.phase, Phase::Idle),
            device: self.inner.device.save(),
        }
    }
}

impl<S: Clone> VirtioPciState<S> {
    /// The state of the device's model.
    pub fn device_state(&self) -> S {
        self.device.clone()
    }
}

fn queue_setups(device: &impl VirtioDevice) -> Vec<QueueSetup> {
    let sizes = device.queue_sizes().into_iter().take(MOST_QUEUES);
    sizes.map(QueueSetup::new).collect()
}

impl Negotiated {
    fn new(queues: Vec<QueueSetup>) -> Self {
        Self {
            status: 0,
            features: 0,
            device_select: 0,
            driver_select: 0,
            queue_select: 0,
            queues,
        }
    }

    fn reset(&mut self) {
        let queues = self.queues.iter().map(|q| QueueSetup::new(q.max_size));
        *self = Self::new(queues.collect());
    }

    fn queue(&self) -> Option<&QueueSetup> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// The selected queue, if the driver may still change it.
    fn queue_mut(&mut self) -> Option<&mut QueueSetup> {
        let queue = self.queues.get_mut(usize::from(self.queue_select));
        queue.filter(|queue| !queue.enabled)
    }
}

impl<D: VirtioDevice> Inner<D> {
    fn lock(&self) -> MutexGuard<'_, Transport> {
        lock(&self.transport)
    }

    fn offered(&self) -> u64 {
        self.device.features() | COMMON_FEATURES
    }

    fn read_common(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Some((field, first)) = field(offset, data.len()) else {
            return;
        };
        let transport = self.lock();
        let negotiated = &transport.negotiated;
        let half = |features: u64, select: u32| match select {
            0 => features & 0xffff_ffff,
            1 => features >> 32,
            _ => 0,
        };
        let queue = negotiated.queue();
        let of_queue = |value: fn(&QueueSetup) -> u64| queue.map_or(0, value);
        let value = match field {
            Field::DeviceFeatureSelect => negotiated.device_select.into(),
            Field::DeviceFeature => half(self.offered(), negotiated.device_select),
            Field::DriverFeatureSelect => negotiated.driver_select.into(),
            Field::DriverFeature => half(negotiated.features, negotiated.driver_select),
            Field::ConfigurationVector => self.signals.configuration_vector().into(),
            Field::QueueCount => negotiated.queues.len() as u64,
            Field::Status => {
                let needs_reset = self.signals.wants_reset() && negotiated.status != 0;
                u64::from(negotiated.status | if needs_reset { NEEDS_RESET } else { 0 })
            }
            Field::Generation => self.signals.generation().into(),
            Field::QueueSize => of_queue(|q| q.size.into()),
            Field::QueueVector => self.signals.queue_vector(negotiated.queue_select).into(),
            Field::QueueEnable => of_queue(|q| q.enabled.into()),
            // A queue's place among the notification addresses is its number.
            Field::QueueSelect | Field::QueueNotifyOffset => negotiated.queue_select.into(),
            Field::QueueDescriptors => of_queue(|q| q.descriptors),
            Field::QueueDriver => of_queue(|q| q.driver),
            Field::QueueDevice => of_queue(|q| q.device),
        };
        let bytes = value.to_le_bytes();
        data.copy_from_slice(&bytes[first..first + data.len()]);
    }

    fn write_common(self: &Arc<Self>, offset: u64, data: &[u8]) {
        let Some((field, first)) = field(offset, data.len()) else {
            return;
        };
        let mut bytes = [0; 8];
        bytes[first..first + data.len()].copy_from_slice(data);
        let value = u64::from_le_bytes(bytes);
        let mut transport = self.lock();
        let negotiated = &mut transport.negotiated;
        // The address of a ring can be written by halves: the other half stays.
        let merged = |old: u64| {
            let mask = u64::MAX >> (64 - 8 * data.len()) << (8 * first);
            old & !mask | value
        };
        match field {
            Field::DeviceFeatureSelect => negotiated.device_select = value as u32,
            Field::DriverFeatureSelect => negotiated.driver_select = value as u32,
            Field::DriverFeature if negotiated.status & FEATURES_OK == 0 => {
                let features = &mut negotiated.features;
                match negotiated.driver_select {
                    0 => *features = *features >> 32 << 32 | value,
                    1 => *features = *features & 0xffff_ffff | value << 32,
                    _ => {}
                }
            }
            Field::ConfigurationVector => self.signals.set_configuration_vector(value as u16),
            Field::Status => self.write_status(transport, value as u8),
            Field::QueueSelect => negotiated.queue_select = value as u16,
            Field::QueueSize => {
                let size = value as u16;
                if let Some(queue) = negotiated.queue_mut()
                    && size.is_power_of_two()
                    && size <= queue.max_size
                {
                    queue.size = size;
                }
            }
            Field::QueueVector => {
                let selected = negotiated.queue_select;
                self.signals.set_queue_vector(selected, value as u16);
            }
            Field::QueueEnable => {
                if let Some(queue) = negotiated.queue_mut() {
                    queue.enabled = value == 1;
                }
            }
            Field::QueueDescriptors | Field::QueueDriver | Field::QueueDevice => {
                if let Some(queue) = negotiated.queue_mut() {
                    let ring = match field {
                        Field::QueueDescriptors => &mut queue.descriptors,
                        Field::QueueDriver => &mut queue.driver,
                        _ => &mut queue.device,
                    };
                    *ring = merged(*ring);
                }
            }
            Field::DriverFeature
            | Field::DeviceFeature
            | Field::QueueCount
            | Field::Generation
            | Field::QueueNotifyOffset => {}
        }
    }

    fn write_status(self: &Arc<Self>, mut transport: MutexGuard<'_, Transport>, value: u8) {
        if value == 0 {
            self.driver_reset(transport);
            return;
        }
        let offered = self.offered();
        let negotiated = &mut transport.negotiated;
        let mut status = value & !NEEDS_RESET;
        let features = negotiated.features;
        if features & !offered != 0 || features & FEATURE_VERSION_1 == 0 {
            // The driver sees that it did not stay.
            status &= !FEATURES_OK;
        }
        let ready = FEATURES_OK | DRIVER_OK;
        let begins = negotiated.status & ready != ready && status & ready == ready;
        // Bits are set one after the other; only a reset clears them (2.1.1).
        negotiated.status |= status;
        if begins && matches!(transport.phase, Phase::Idle) {
            self.start(&mut transport);
        }
    }

    fn update_line(&self) {
        let mut space = lock(&self.configuration);
        let waits = self.signals.set_line_allowed(space.intx_allowed());
        space.set_interrupt_status(waits);
    }

    /// The access to the range that configuration space describes, if it is a possible one.
    fn window(space: &Configuration, at: usize) -> Option<(u64, usize)> {
        let (offset, len) = (space.word(at + WINDOW_OFFSET), space.word(at + WINDOW_LEN));
        let aligned = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len);
        let inside = u64::from(offset) + u64::from(len) <= BAR_SIZE;
        let possible = aligned && inside && space.byte(at + WINDOW_BAR) == BAR;
        possible.then_some((offset.into(), len as usize))
    }

    fn read_range(&self, offset: u64, data: &mut [u8]) {
        match offset {
            COMMON..ISR => self.read_common(offset - COMMON, data),
            ISR..DEVICE => {
                data.fill(0);
                if offset == ISR {
                    data[0] = self.signals.take_status();
                    self.update_line();
                }
            }
            DEVICE..NOTIFY => self.device.read_configuration(offset - DEVICE, data),
            TABLE..PENDING => self.signals.msix.read_table(offset - TABLE, data),
            PENDING..BAR_SIZE => self.signals.msix.read_pending(offset - PENDING, data),
            _ => data.fill(0),
        }
    }

    fn write_range(self: &Arc<Self>, offset: u64, data: &[u8]) {
        match offset {
            COMMON..ISR => self.write_common(offset - COMMON, data),
            DEVICE..NOTIFY => self.device.write_configuration(offset - DEVICE, data),
            NOTIFY..TABLE => {
                let queue = (offset - NOTIFY) / u64::from(NOTIFY_MULTIPLIER);
                if let Some(bell) = self.bells.get(queue as usize) {
                    bell.ring();
                }
            }
            TABLE..PENDING => self.signals.msix.write_table(offset - TABLE, data),
            _ => {}
        }
    }
}

impl<D: VirtioDevice> Function for VirtioPci<D> {
    fn read_configuration(&self, register: usize, data: &mut [u8]) {
        let inner = &self.inner;
        inner.update_line();
        inner.show_what_ends();
        let window = inner.window_at + WINDOW_DATA;
        if (window..window + 4).contains(&register) {
            let access = Inner::<D>::window(&lock(&inner.configuration), inner.window_at);
            if let Some((offset, len)) = access {
                let mut word = [0; 4];
                inner.read_range(offset, &mut word[..len]);
                lock(&inner.configuration).write(window, &word);
            }
        }
        lock(&inner.configuration).read(register, data);
    }

    fn write_configuration(&self, register: usize, data: &[u8]) {
        let inner = &self.inner;
        let window = inner.window_at + WINDOW_DATA;
        let mut space = lock(&inner.configuration);
        space.write(register, data);
        inner.signals.msix.control_written(&space, inner.msix_at);
        let access = Inner::<D>::window(&space, inner.window_at);
        let word = space.word(window).to_le_bytes();
        drop(space);
        inner.update_line();
        inner.follow_bus_master();
        if (window..window + 4).contains(&register)
            && let Some((offset, len)) = access
        {
            inner.write_range(offset, &word[..len]);
        }
    }

    fn configuration(&self) -> &Mutex<Configuration> {
        &self.inner.configuration
    }

    fn read_memory(&self, _: u8, offset: u64, data: &mut [u8]) {
        self.inner.read_range(offset, data);
    }

    fn write_memory(&self, _: u8, offset: u64, data: &[u8]) {
        self.inner.write_range(offset, data);
    }

    fn reset(&self) {
        let inner = &self.inner;
        let transport = inner.wait_while_stopping(inner.lock());
        let mut transport = inner.stop_worker(transport, Phase::Idle);
        transport.phase = Phase::Idle;
        inner.finish_reset(&mut transport);
        drop(transport);
        inner.signals.msix.reset();
        lock(&inner.configuration).reset();
        inner.update_line();
    }
}
