//! Translation of linear to guest-physical addresses. SDM 3A, chapter 4.

use crate::{Access, CpuState, Exception, PhysicalMemory};
use belljar_memory::GuestPhysAddr;

/// What an engine's cached translations must lose after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Nothing.
    None,
    /// One linear address of one PCID, with the paging-structure caches of that PCID. `global` also drops global
    /// translations of the address (INVLPG does, INVPCID type 0 does not). SDM 3A, 4.10.4.1.
    Address {
        /// Any address in the page.
        linear: u64,
        /// The process-context identifier.
        pcid: u16,
        /// Whether global translations of the address go too.
        global: bool,
    },
    /// Everything of one PCID except global translations.
    Pcid(u16),
    /// Everything of all PCIDs except global translations.
    NonGlobal,
    /// Everything.
    All,
}

/// Where a linear address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The guest-physical address of the byte.
    pub gpa: GuestPhysAddr,
    /// Size of the page that holds it: 4 KiB, 2 MiB, 4 MiB or 1 GiB.
    pub page_size: u64,
    /// Whether a store at the privilege asked for would be allowed now without a further walk: the write permissions
    /// hold (with CR0.WP) and the dirty bit is set.
    pub writable: bool,
    /// The dirty bit.
    pub dirty: bool,
    /// Whether the page is a user page.
    pub user: bool,
    /// Whether instructions may be fetched from the page at the privilege asked for.
    pub executable: bool,
    /// Whether the translation is global.
    pub global: bool,
}

/// Translates `linear` for an access, with the rights of user mode if `user`, and sets accessed and dirty bits.
///
/// `user` is disregarded for implicit supervisor accesses.
///
/// # Errors
/// The page fault to deliver; then no bit was set in the tables.
pub fn translate(
    cpu: &CpuState,
    memory: &impl PhysicalMemory,
    linear: u64,
    access: Access,
    user: bool,
) -> Result<Translation, Exception> {
    let _ = (cpu, memory, linear, access, user);
    todo!()
}

/// Translates `linear` as a debugger would: without permission checks and without setting any bit. `None` if no page is
/// mapped there. [`Translation::writable`] and `executable` tell of the tables alone.
pub fn lookup(cpu: &CpuState, memory: &impl PhysicalMemory, linear: u64) -> Option<Translation> {
    let _ = (cpu, memory, linear);
    todo!()
}

/// Whether bits 63 to 47 of `linear` are all equal. SDM 1, 3.3.7.1.
#[inline]
pub const fn is_canonical(linear: u64) -> bool {
    ((linear as i64) << 16 >> 16) as u64 == linear
}

/// Reads the four page-directory-pointer entries to which `cpu.cr3` points, for PAE paging. SDM 3A, 4.4.1.
///
/// # Errors
/// #GP(0) if a present one has reserved bits set.
pub fn load_pdptes(cpu: &CpuState, memory: &impl PhysicalMemory) -> Result<[u64; 4], Exception> {
    let _ = (cpu, memory);
    todo!()
}
