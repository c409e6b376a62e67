//! Guest-physical memory.
//!
//! Floor 0 of the house. A [`GuestMemory`] is the machine's RAM in one memfd, mapped once into the
//! VMM, laid out as on a PC: RAM up to 640 KiB, the legacy video hole, RAM up to the 3 GiB border,
//! the hole for devices, and the rest from 4 GiB on. It knows nothing of CPUs or devices. Whoever
//! changes memory that may hold code says so ([`GuestMemory::code`]), which is how engines notice
//! changed code whatever the writer was.
//!
//! Guest memory is shared with running guests, so it is never lent out as a Rust slice: engines and
//! devices copy through [`GuestMemory::read`] and [`GuestMemory::write`], or use raw pointers with
//! volatile or atomic accesses. [`GuestMemory::dma`] is the same memory for crates that speak
//! `vm-memory`.

mod address;
mod code;
mod ram;
mod segments;
mod view;

pub use address::{GuestPhysAddr, GuestVirtAddr, PAGE_SHIFT, PAGE_SIZE};
pub use code::CodePages;
pub use ram::{GuestMemory, MemoryError, RamRegion};
pub use segments::Segments;
pub use view::{DmaMemory, WrittenPages, WrittenSlice};
