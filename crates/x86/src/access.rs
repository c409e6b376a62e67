//! How functions of the architecture reach memory.

use crate::{CpuState, Exception};
use belljar_memory::{GuestMemory, GuestPhysAddr};

/// Guest-physical memory as page walks see it. Where there is no RAM, loads give all ones and
/// stores are lost.
pub trait PhysicalMemory {
    /// Loads an aligned 32-bit word.
    fn load_u32(&self, at: GuestPhysAddr) -> u32;
    /// Loads an aligned 64-bit word.
    fn load_u64(&self, at: GuestPhysAddr) -> u64;
    /// Replaces an aligned 32-bit word by `new` if it is `old`; tells whether it was. Without RAM:
    /// true.
    fn compare_exchange_u32(&self, at: GuestPhysAddr, old: u32, new: u32) -> bool;
    /// Replaces an aligned 64-bit word by `new` if it is `old`; tells whether it was. Without RAM:
    /// true.
    fn compare_exchange_u64(&self, at: GuestPhysAddr, old: u64, new: u64) -> bool;
}

impl PhysicalMemory for GuestMemory {
    fn load_u32(&self, at: GuestPhysAddr) -> u32 {
        Self::load_u32(self, at).unwrap_or(u32::MAX)
    }

    fn load_u64(&self, at: GuestPhysAddr) -> u64 {
        Self::load_u64(self, at).unwrap_or(u64::MAX)
    }

    fn compare_exchange_u32(&self, at: GuestPhysAddr, old: u32, new: u32) -> bool {
        Self::compare_exchange_u32(self, at, old, new).unwrap_or(true)
    }

    fn compare_exchange_u64(&self, at: GuestPhysAddr, old: u64, new: u64) -> bool {
        Self::compare_exchange_u64(self, at, old, new).unwrap_or(true)
    }
}

/// What an access to a linear address wants and who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A data read with the rights of the current privilege level.
    Read,
    /// A data write with the rights of the current privilege level.
    Write,
    /// An instruction fetch.
    Fetch,
    /// A read that is a supervisor's at any privilege level: descriptor tables, TSS. SMAP applies
    /// without regard to AC.
    SystemRead,
    /// A write that is a supervisor's at any privilege level. SMAP applies without regard to AC.
    SystemWrite,
}

impl Access {
    /// Whether it writes.
    pub const fn is_write(self) -> bool {
        matches!(self, Self::Write | Self::SystemWrite)
    }

    /// Whether it is a supervisor's whatever the current privilege level. SDM 3A, 4.6.1.
    pub const fn is_implicit_supervisor(self) -> bool {
        matches!(self, Self::SystemRead | Self::SystemWrite)
    }
}

/// Memory at linear addresses, as an engine lends it to the functions of the architecture.
///
/// Segmentation is the caller's business; translation, page faults, MMIO and accesses that cross
/// pages are the implementer's. An access of more than one page checks both before anything is
/// written.
pub trait LinearMemory {
    /// Loads `size` bytes (1, 2, 4 or 8), zero-extended.
    ///
    /// # Errors
    /// The page fault to deliver.
    fn load(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        size: u8,
        access: Access,
    ) -> Result<u64, Exception>;

    /// Stores the low `size` bytes (1, 2, 4 or 8) of `value`.
    ///
    /// # Errors
    /// The page fault to deliver; then nothing was written.
    fn store(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        size: u8,
        value: u64,
        access: Access,
    ) -> Result<(), Exception>;

    /// Checks that `size` bytes could be accessed, setting accessed and dirty bits as the access
    /// would.
    ///
    /// # Errors
    /// The page fault to deliver.
    fn probe(
        &mut self,
        cpu: &CpuState,
        linear: u64,
        size: u32,
        access: Access,
    ) -> Result<(), Exception>;

    /// A task switch has put a new value into CR3: drops what is cached of the old address space
    /// and, under PAE paging, loads `cpu.pdpte` ([`load_pdptes`](crate::paging::load_pdptes)).
    ///
    /// # Errors
    /// #GP(0) if the page-directory-pointer entries are malformed; then `cpu.pdpte` is as it was.
    fn address_space_changed(&mut self, cpu: &mut CpuState) -> Result<(), Exception>;
}
