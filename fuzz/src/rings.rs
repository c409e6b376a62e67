//! A driver of a virtio device that keeps no rules: rings, chains and registers of any content, in any
//! order, while the device works.

use crate::Input;
use belljar_devices::pci::{Function, LevelSink, MessageSink, SharedLine};
use belljar_devices::virtio::{COMMON_FEATURES, VirtioDevice, VirtioPci, VirtioPciParts};
use belljar_memory::{GuestMemory, GuestPhysAddr};
use std::sync::{Arc, LazyLock};

/// Entries of each queue.
const SIZE: u16 = 16;
/// Where the rings of queue n lie: n times a stride after the first.
const RINGS: u64 = 0x2_0000;
const STRIDE: u64 = 0x4000;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
/// The most queues.
const MOST_QUEUES: u16 = 8;
/// Where buffers lie for the most part: what the devices read, and what they write.
pub const OUT: u64 = 0x10_0000;
const IN: u64 = 0x18_0000;
/// Bytes of RAM.
const RAM: u64 = 4 << 20;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Registers: the common configuration, the interrupt status, the device's part, notifications.
const STATUS: u64 = 20;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
/// Bits of the status: the driver is ready, and the device wants a reset.
const READY: u8 = 15;
const BROKEN: u8 = 0x40;
/// The command register: memory, and bus master.
const COMMAND: usize = 4;

/// How often a device is looked at until it has done what it can.
const PATIENCE: u32 = 50;

/// Guest memory, the same for all runs.
pub static MEMORY: LazyLock<GuestMemory> =
    LazyLock::new(|| GuestMemory::new(RAM).expect("the host has memory"));

/// Interrupt controllers that nobody listens to.
#[derive(Debug)]
struct Outside;

impl MessageSink for Outside {
    fn deliver_message(&self, _: u64, _: u32) {}
}

impl LevelSink for Outside {
    fn set_pci_line(&self, _: u8, _: bool) {}
}

/// A device and its driver.
pub struct Rings<D: VirtioDevice> {
    device: VirtioPci<D>,
    queues: u16,
    features: u64,
    /// Chains that were made available in each queue, since the driver's last start.
    offered: [u16; MOST_QUEUES as usize],
    /// No ring was written to but as drivers do.
    honest: bool,
}

fn parts() -> VirtioPciParts {
    let outside = Arc::new(Outside);
    VirtioPciParts {
        memory: MEMORY.dma().expect("the memory can be described"),
        messages: Arc::<Outside>::clone(&outside),
        line: SharedLine::new(16, outside),
    }
}

impl<D: VirtioDevice> Rings<D> {
    /// The driver of `device`, which it has started.
    pub fn new(device: D) -> Self {
        let queues = (device.queue_sizes().len() as u16).min(MOST_QUEUES);
        let features = device.features() | COMMON_FEATURES;
        let mut this = Self {
            device: VirtioPci::new(device, parts()),
            queues,
            features,
            offered: [0; MOST_QUEUES as usize],
            honest: true,
        };
        this.command(true);
        this.start();
        this
    }

    /// The device's model.
    pub fn device(&self) -> &D {
        self.device.device()
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.device.write_memory(0, offset, data);
    }

    fn status(&self) -> u8 {
        let mut data = [0];
        self.device.read_memory(0, STATUS, &mut data);
        data[0]
    }

    fn command(&self, master: bool) {
        let value = if master { 6 } else { 2 };
        self.device.write_configuration(COMMAND, &[value]);
    }

    /// Negotiates, sets all queues up and says that the driver is ready.
    fn start(&mut self) {
        self.offered = [0; MOST_QUEUES as usize];
        self.honest = true;
        let len = STRIDE * u64::from(MOST_QUEUES);
        MEMORY.zero(GuestPhysAddr(RINGS), len).expect("it is RAM");
        self.write(STATUS, &[3]);
        for (select, half) in [
            (0_u32, self.features as u32),
            (1, (self.features >> 32) as u32),
        ] {
            self.write(8, &select.to_le_bytes());
            self.write(12, &half.to_le_bytes());
        }
        self.write(STATUS, &[11]);
        for queue in 0..self.queues {
            self.write(22, &queue.to_le_bytes());
            self.write(24, &SIZE.to_le_bytes());
            let at = ring(queue);
            for (register, offset) in [(32, 0), (40, AVAILABLE), (48, USED)] {
                self.write(register, &(at + offset).to_le_bytes());
            }
            self.write(28, &[1, 0]);
        }
        self.write(STATUS, &[READY]);
    }

    /// Resets the device by its status, and waits: it must come to an end.
    fn reset(&mut self) {
        self.write(STATUS, &[0]);
        while self.status() != 0 {
            std::thread::yield_now();
        }
    }

    fn used(&self, queue: u16) -> u16 {
        let at = GuestPhysAddr(ring(queue) + USED + 2);
        MEMORY.load_u16(at).expect("it is RAM")
    }

    /// Gives the device a while, until it has given everything back or given up.
    fn settle(&self) {
        for _ in 0..PATIENCE {
            let done = |queue| self.used(queue) == self.offered[usize::from(queue)];
            if self.status() & BROKEN != 0 || (0..self.queues).all(done) {
                break;
            }
            std::thread::yield_now();
        }
        for queue in (0..self.queues).filter(|_| self.honest) {
            let offered = self.offered[usize::from(queue)];
            assert!(self.used(queue) <= offered, "given back twice");
        }
    }

    fn notify(&self, queue: u16) {
        self.write(NOTIFY + 4 * u64::from(queue), &queue.to_le_bytes());
    }

    /// Makes the chain at `head` available and notifies.
    fn offer(&mut self, queue: u16, head: u16) {
        let available = ring(queue) + AVAILABLE;
        let offered = &mut self.offered[usize::from(queue)];
        let slot = available + 4 + 2 * u64::from(*offered % SIZE);
        *offered = offered.wrapping_add(1);
        let put = |at, value: u16| {
            let bytes = value.to_le_bytes();
            MEMORY.write(GuestPhysAddr(at), &bytes).expect("it is RAM");
        };
        put(slot, head);
        put(available + 2, *offered);
        self.notify(queue);
    }

    fn descriptor(queue: u16, number: u16, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let at = ring(queue) + 16 * u64::from(number % SIZE);
        MEMORY.write(GuestPhysAddr(at), &bytes).expect("it is RAM");
    }

    /// A chain as drivers make them: one buffer to read, then some to write.
    fn plain(&mut self, queue: u16, input: &mut Input<'_>) {
        let head = u16::from(input.u8()) % SIZE;
        let readable = u32::from(input.u16());
        let writable = input.u8() % 4;
        let mut number = head;
        let last = |left: u8| if left == 0 { 0 } else { NEXT };
        if readable > 0 || writable == 0 {
            let flags = last(writable);
            Self::descriptor(queue, number, OUT, readable, flags, (number + 1) % SIZE);
            number = (number + 1) % SIZE;
        }
        for left in (0..writable).rev() {
            let (at, len) = (IN + u64::from(left) * 0x4000, input.u16().into());
            let flags = WRITE | last(left);
            Self::descriptor(queue, number, at, len, flags, (number + 1) % SIZE);
            number = (number + 1) % SIZE;
        }
        self.offer(queue, head);
    }

    /// A descriptor of any content.
    fn wild(&mut self, queue: u16, input: &mut Input<'_>) {
        let number = u16::from(input.u8());
        let address = match input.u8() {
            0xff => {
                // The device may write to the rings themselves.
                self.honest = false;
                input.u64()
            }
            0xfe => RAM - u64::from(input.u8()),
            0xfd => 0xa_0000 - u64::from(input.u8()),
            _ => OUT + u64::from(input.u16()),
        };
        let len = match input.u8() {
            0xff => input.u32(),
            _ => input.u16().into(),
        };
        let (flags, next) = (u16::from(input.u8() & 7), input.u8().into());
        Self::descriptor(queue, number, address, len, flags, next);
    }

    /// Puts `bytes` where the devices read.
    pub fn put(&self, offset: u64, bytes: &[u8]) {
        let at = GuestPhysAddr(OUT + offset);
        MEMORY.write(at, bytes).expect("it is RAM");
    }

    /// Does one thing that drivers, or the machine, can do. `restore` makes the device again.
    pub fn step(&mut self, input: &mut Input<'_>, restore: impl FnOnce(D::State) -> D) {
        let choice = input.u8();
        let queue = u16::from(choice >> 5) % self.queues;
        match choice & 0x1f {
            0..=7 => self.plain(queue, input),
            8..=12 => self.wild(queue, input),
            13 | 14 => self.offer(queue, input.u8().into()),
            15 | 16 => {
                self.honest = false;
                let at = ring(queue) + AVAILABLE + u64::from(input.u8() & 0x3f);
                let bytes = input.take(4);
                MEMORY.write(GuestPhysAddr(at), bytes).expect("it is RAM");
                self.notify(queue);
            }
            17..=20 => {
                let offset = u64::from(input.u16());
                self.put(offset, input.take(64));
            }
            21 | 22 => self.register(input),
            23 => self.command(input.u8() & 1 != 0),
            24 => {
                self.device.pause();
                self.device.resume();
            }
            25 => {
                self.device.pause();
                let state = self.device.save();
                let device = restore(state.device_state());
                self.device = VirtioPci::restore(state, device, parts());
                self.device.resume();
            }
            26 => {
                self.reset();
                self.command(true);
                self.features = (self.device.device().features() & input.u64()) | COMMON_FEATURES;
                self.start();
            }
            _ => self.settle(),
        }
    }

    /// Writes or reads a register of the device's own part, or any.
    fn register(&mut self, input: &mut Input<'_>) {
        let at = u64::from(input.u16());
        let offset = if at & 1 << 15 == 0 {
            DEVICE + (at & 0x3f)
        } else {
            at & 0x7fff
        };
        // Where the rings are and whether the driver is ready is for `start` alone, which knows.
        let of_start = (8..56).contains(&offset);
        let size = 1 << (input.u8() & 3);
        let value = input.u64().to_le_bytes();
        if !of_start {
            self.write(offset, &value[..size]);
        }
        let mut back = [0; 8];
        self.device.read_memory(0, offset, &mut back[..size]);
    }

    /// Ends the device. Whatever it was given, it ends, and can be started again.
    pub fn end(mut self) {
        self.settle();
        self.reset();
        self.command(true);
        self.start();
        assert_eq!(self.status() & !BROKEN, READY);
        Function::reset(&self.device);
        self.device.pause();
    }
}

fn ring(queue: u16) -> u64 {
    RINGS + u64::from(queue) * STRIDE
}
