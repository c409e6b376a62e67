//! Memory that the child shares with its parent: the pages that the cases see, and the cases themselves.

use super::HostError;
use super::image::{IMAGE_LEN, Image, ImageLayout};
use crate::case::{Case, Fault, Outcome, Registers};
use crate::layout::{BlockPages, CODE_LEN, DATA_LEN, Data};
use std::ffi::c_int;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// Cases that the child gets at once.
pub const BATCH: usize = 64;

/// Room for a case's code.
const CODE_ROOM: usize = 2048;

/// Room for a block's cells.
const CELL_ROOM: usize = 512;

/// What the child gets.
#[repr(C, align(64))]
pub struct Input {
    pub image: Image,
    pub registers: Registers,
    pub code_offset: usize,
    pub code_len: usize,
    pub code: [u8; CODE_ROOM],
    /// Whether the code lies in the pages of blocks.
    pub is_block: bool,
    pub cell_offset: usize,
    pub cell_len: usize,
    pub cells: [u8; CELL_ROOM],
    pub data: Data,
}

/// What the child answers.
#[repr(C, align(64))]
pub struct Output {
    pub image: Image,
    pub registers: Registers,
    pub fault: Fault,
    pub data: Data,
    /// Only of a block.
    pub block: BlockPages,
}

/// A case and its outcome.
#[repr(C, align(64))]
pub struct Slot {
    pub input: Input,
    pub output: Output,
}

/// The whole of the shared memory. The first three members are what the child maps at the cases' addresses.
#[repr(C, align(4096))]
pub struct Area {
    pub code: [u8; CODE_LEN],
    pub data: Data,
    pub block: BlockPages,
    pub count: AtomicU32,
    pub current: AtomicU32,
    pub slots: [Slot; BATCH],
}

/// The parent's handle on the memory.
#[derive(Debug)]
pub struct Shared {
    fd: OwnedFd,
    area: NonNull<Area>,
}

// SAFETY: the mapping belongs to the handle alone; parent and child take turns, which the pipes between them order.
unsafe impl Send for Shared {}

impl Shared {
    /// Makes the memory and maps it.
    ///
    /// # Errors
    /// [`HostError::Refused`]
    pub fn new() -> Result<Self, HostError> {
        // SAFETY: a system call with a constant, terminated name.
        let fd = unsafe { libc::memfd_create(c"belljar-oracle".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(HostError::last("memory to share"));
        }
        // SAFETY: the descriptor is fresh and nobody else's.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: a system call on our own descriptor.
        if unsafe { libc::ftruncate(fd.as_raw_fd(), size_of::<Area>() as i64) } != 0 {
            return Err(HostError::last("memory to share"));
        }
        // SAFETY: a fresh mapping where the kernel chooses; it overlaps nothing.
        let area = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<Area>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if area == libc::MAP_FAILED {
            return Err(HostError::last("memory to share"));
        }
        let area = NonNull::new(area.cast()).ok_or(HostError::Lacks("memory"))?;
        Ok(Self { fd, area })
    }

    /// The descriptor of the memory.
    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// The memory, for the child.
    pub fn area(&self) -> *mut Area {
        self.area.as_ptr()
    }

    fn slot(&self, number: usize) -> *mut Slot {
        assert!(number < BATCH, "a batch has no slot {number}");
        // SAFETY: the area is mapped as long as `self` lives, and the number lies within the array.
        unsafe {
            (&raw mut (*self.area.as_ptr()).slots)
                .cast::<Slot>()
                .add(number)
        }
    }

    /// Writes `case` into slot `number`. The child must be waiting for orders.
    pub fn put(&mut self, number: usize, case: &Case, layout: &ImageLayout) {
        // SAFETY: while the child waits for orders, nobody but us touches the slots.
        let input = unsafe { &mut (*self.slot(number)).input };
        layout.write(&case.vector, &mut input.image);
        input.registers = case.registers;
        let code = case.code();
        input.code_offset = case.code_offset();
        input.code_len = code.len().min(CODE_ROOM).min(case.room());
        input.code[..input.code_len].copy_from_slice(&code[..input.code_len]);
        input.is_block = case.is_block();
        input.cell_offset = case.cells.offset;
        input.cell_len = case.cells.bytes.len().min(CELL_ROOM);
        input.cells[..input.cell_len].copy_from_slice(&case.cells.bytes[..input.cell_len]);
        input.data = *case.data;
    }

    /// Tells the child how many slots to run.
    pub fn set_count(&mut self, count: usize) {
        self.counters().0.store(count as u32, Ordering::Release);
        self.counters().1.store(0, Ordering::Release);
    }

    /// The slot that the child has begun last.
    pub fn current(&self) -> usize {
        self.counters().1.load(Ordering::Acquire) as usize
    }

    fn counters(&self) -> (&AtomicU32, &AtomicU32) {
        // SAFETY: the area is mapped as long as `self` lives, and atomics may be shared with the child.
        unsafe {
            let area = self.area.as_ptr();
            (&(*area).count, &(*area).current)
        }
    }

    /// Reads the outcome from slot `number`, which the child has finished.
    pub fn take(&self, number: usize, layout: &ImageLayout) -> Outcome {
        // SAFETY: the child has finished the slot and waits for orders, or is no more.
        let (input, output) = unsafe {
            let slot = self.slot(number);
            (&(*slot).input, &(*slot).output)
        };
        Outcome {
            fault: output.fault,
            registers: output.registers,
            vector: layout.read(&output.image),
            data: Box::new(output.data),
            block: input.is_block.then(|| Box::new(output.block)),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this size, and nothing refers to it any more.
        unsafe { libc::munmap(self.area.as_ptr().cast(), size_of::<Area>()) };
    }
}

/// Protection of the code for [`libc::mmap`].
pub const CODE_PROT: c_int = libc::PROT_READ | libc::PROT_EXEC;

const _: () = assert!(size_of::<Data>() == DATA_LEN && IMAGE_LEN.is_multiple_of(64));
