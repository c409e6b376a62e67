//! A driver for tests: it uses a device by its registers and rings, as a guest does.

use super::{VirtioDevice, VirtioPci, VirtioPciParts, VirtioPciState};
use crate::pci::line::testing::Arrivals;
use crate::pci::{Function, SharedLine};
use belljar_memory::{GuestMemory, GuestPhysAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Entries of each queue, and where the rings of queue n lie: n times [`QUEUE_STRIDE`] after
/// [`QUEUES`].
pub const SIZE: u16 = 16;
const QUEUES: u64 = 0x10_0000;
const QUEUE_STRIDE: u64 = 0x1_0000;
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
/// How long a device may take.
const LIMIT: Duration = Duration::from_mins(1);

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// A buffer: guest-physical address, length, flags.
pub type Piece = (u64, u32, u16);

pub struct Driver<D: VirtioDevice> {
    pub memory: GuestMemory,
    pub device: VirtioPci<D>,
    pub arrivals: Arc<Arrivals>,
    next: [u16; 8],
}

/// What a device is attached to.
fn parts(memory: &GuestMemory, arrivals: &Arc<Arrivals>) -> VirtioPciParts {
    VirtioPciParts {
        memory: memory.dma().unwrap(),
        messages: Arc::<Arrivals>::clone(arrivals) as _,
        line: SharedLine::new(16, Arc::<Arrivals>::clone(arrivals) as _),
    }
}

impl<D: VirtioDevice> Driver<D> {
    pub fn new(device: D) -> Self {
        Self::of_memory(|_| device)
    }

    /// The driver of a device that is made with the guest's memory.
    pub fn of_memory(device: impl FnOnce(&GuestMemory) -> D) -> Self {
        let memory = GuestMemory::new(8 << 20).unwrap();
        let device = device(&memory);
        let arrivals = Arrivals::new();
        let parts = parts(&memory, &arrivals);
        let this = Self {
            memory,
            device: VirtioPci::new(device, parts),
            arrivals,
            next: [0; 8],
        };
        this.set_bus_master(true);
        this
    }

    /// Replaces the device by one that is as it was saved.
    pub fn restore(&mut self, state: VirtioPciState<D::State>, device: D) {
        self.device = VirtioPci::restore(state, device, parts(&self.memory, &self.arrivals));
    }

    /// Lets the device reach memory, or not.
    pub fn set_bus_master(&self, master: bool) {
        self.device
            .write_configuration(4, &[if master { 6 } else { 2 }]);
    }

    pub fn read<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.device.read_memory(0, offset, &mut data);
        data
    }

    pub fn write(&self, offset: u64, data: &[u8]) {
        self.device.write_memory(0, offset, data);
    }

    pub fn status(&self) -> u8 {
        self.read::<1>(20)[0]
    }

    /// Waits until the device's status is `status`.
    pub fn wait_for_status(&self, status: u8) {
        wait(|| self.status() == status);
    }

    pub fn reset(&mut self) {
        self.write(20, &[0]);
        self.wait_for_status(0);
        self.next = [0; 8];
        let len = QUEUE_STRIDE * self.next.len() as u64;
        self.memory.zero(GuestPhysAddr(QUEUES), len).unwrap();
    }

    /// Accepts `features`, enables `queues` queues and says that the driver is ready.
    pub fn start(&self, features: u64, queues: u16) {
        self.write(20, &[3]);
        for (select, half) in [(0_u32, features as u32), (1, (features >> 32) as u32)] {
            self.write(8, &select.to_le_bytes());
            self.write(12, &half.to_le_bytes());
        }
        self.write(20, &[11]);
        assert_eq!(self.status(), 11, "the features are accepted");
        for queue in 0..queues {
            self.enable(queue, SIZE, Self::ring(queue));
        }
        self.write(20, &[15]);
    }

    pub fn ring(queue: u16) -> u64 {
        QUEUES + u64::from(queue) * QUEUE_STRIDE
    }

    /// Enables a queue whose rings begin at `at`.
    pub fn enable(&self, queue: u16, size: u16, at: u64) {
        self.write(22, &queue.to_le_bytes());
        self.write(24, &size.to_le_bytes());
        for (register, offset) in [(32, DESCRIPTORS), (40, AVAILABLE), (48, USED)] {
            self.write(register, &(at.wrapping_add(offset)).to_le_bytes());
        }
        self.write(28, &[1, 0]);
    }

    pub fn descriptor(&self, at: u64, number: u16, piece: Piece, next: u16) {
        let (address, len, flags) = piece;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let at = GuestPhysAddr(at + 16 * u64::from(number));
        self.memory.write(at, &bytes).unwrap();
    }

    /// Makes the chain at descriptor `head` available and notifies.
    pub fn offer(&mut self, queue: u16, head: u16) {
        let available = Self::ring(queue) + AVAILABLE;
        let next = &mut self.next[usize::from(queue)];
        let slot = available + 4 + 2 * u64::from(*next % SIZE);
        // The driver wants to know when this chain, and none before it, is given back.
        let event = available + 4 + 2 * u64::from(SIZE);
        let wanted = next.to_le_bytes();
        self.memory.write(GuestPhysAddr(event), &wanted).unwrap();
        *next = next.wrapping_add(1);
        let write = |at, value: u16| self.memory.write(GuestPhysAddr(at), &value.to_le_bytes());
        write(slot, head).unwrap();
        write(available + 2, *next).unwrap();
        self.notify(queue);
    }

    pub fn notify(&self, queue: u16) {
        self.write(0x3000 + 4 * u64::from(queue), &queue.to_le_bytes());
    }

    /// Offers a chain of `pieces` from descriptor 0 on, and waits until it is given back: the
    /// number of bytes written.
    pub fn transfer(&mut self, queue: u16, pieces: &[Piece]) -> u32 {
        let count = pieces.len() as u16;
        for (number, piece) in (0..).zip(pieces) {
            let (address, len, flags) = *piece;
            let more = if number + 1 < count { NEXT } else { 0 };
            let piece = (address, len, flags | more);
            self.descriptor(Self::ring(queue), number, piece, number + 1);
        }
        self.offer(queue, 0);
        let wanted = self.next[usize::from(queue)];
        wait(|| self.used(queue) == wanted);
        let slot = Self::ring(queue) + USED + 4 + 8 * u64::from((wanted.wrapping_sub(1)) % SIZE);
        self.memory.load_u32(GuestPhysAddr(slot + 4)).unwrap()
    }

    /// How many chains were given back.
    pub fn used(&self, queue: u16) -> u16 {
        Self::used_in(&self.memory, queue)
    }

    /// The same, for other threads that look.
    pub fn used_in(memory: &GuestMemory, queue: u16) -> u16 {
        let at = Self::ring(queue) + USED + 2;
        memory.load_u16(GuestPhysAddr(at)).unwrap()
    }

    pub fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(GuestPhysAddr(at), &mut bytes).unwrap();
        bytes
    }
}

/// Looks for a while whether `condition` stays true.
pub fn stays(mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_millis(50);
    while Instant::now() < end {
        assert!(condition(), "the device does what it must not");
        std::thread::yield_now();
    }
}

/// Waits until `condition` holds.
pub fn wait(mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < end, "the device does not answer");
        std::thread::yield_now();
    }
}
