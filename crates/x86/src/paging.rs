//! Translation of linear to guest-physical addresses. SDM 3A, chapter 4.

mod walk;

use crate::bits::{PHYS_BITS, cr0, cr4, efer, pf, pte, rflags};
use crate::{Access, CpuState, Exception, PhysicalMemory};
use belljar_memory::GuestPhysAddr;

/// What an engine's cached translations must lose after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Nothing.
    None,
    /// One linear address of one PCID, with the paging-structure caches of that PCID. `global` also
    /// drops global translations of the address (INVLPG does, INVPCID type 0 does not). SDM 3A,
    /// 4.10.4.1.
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
    /// Whether a store at the privilege asked for would be allowed now without a further walk: the
    /// write permissions hold (with CR0.WP) and the dirty bit is set.
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

/// How the processor translates at present. SDM 3A, 4.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PagingMode {
    /// Linear addresses are physical.
    None,
    /// Two levels of 32-bit entries.
    Legacy,
    /// Three levels of 64-bit entries, the highest cached in [`CpuState::pdpte`].
    Pae,
    /// Four levels of 64-bit entries.
    FourLevel,
}

impl PagingMode {
    /// The mode of `cpu`.
    pub const fn of(cpu: &CpuState) -> Self {
        if cpu.cr0 & cr0::PG == 0 {
            Self::None
        } else if cpu.cr4 & cr4::PAE == 0 {
            Self::Legacy
        } else if cpu.efer & efer::LMA == 0 {
            Self::Pae
        } else {
            Self::FourLevel
        }
    }
}

/// Translates `linear` for an access, with the rights of user mode if `user`, and sets accessed and
/// dirty bits.
///
/// `user` is disregarded for implicit supervisor accesses.
///
/// # Errors
/// The page fault to deliver, or #GP(0) if `linear` is not canonical; then no bit was set in the
/// tables.
pub fn translate(
    cpu: &CpuState,
    memory: &impl PhysicalMemory,
    linear: u64,
    access: Access,
    user: bool,
) -> Result<Translation, Exception> {
    let user = user && !access.is_implicit_supervisor();
    let mode = PagingMode::of(cpu);
    let linear = match mode {
        PagingMode::None => return Ok(unpaged(linear)),
        PagingMode::FourLevel if !is_canonical(linear) => {
            return Err(Exception::general_protection(0));
        }
        PagingMode::FourLevel => linear,
        PagingMode::Legacy | PagingMode::Pae => linear & 0xffff_ffff,
    };
    let fault = |cause| Exception::page_fault(linear, error_code(cpu, access, user, cause));
    loop {
        let mut walk = walk::walk(cpu, memory, mode, linear).map_err(|missing| match missing {
            walk::Stop::NotPresent => fault(0),
            walk::Stop::Reserved => fault(pf::P | pf::RSVD),
        })?;
        if !permits(cpu, &walk.rights, access, user) {
            return Err(fault(pf::P));
        }
        // A lost race means that the tables have changed: all that was found may be stale.
        if walk.mark(memory, access.is_write()) {
            return Ok(translation(cpu, &walk, linear, access, user));
        }
    }
}

/// What the walk for an access found.
fn translation(
    cpu: &CpuState,
    walk: &walk::Walk,
    linear: u64,
    access: Access,
    user: bool,
) -> Translation {
    let store = if access.is_implicit_supervisor() {
        Access::SystemWrite
    } else {
        Access::Write
    };
    Translation {
        gpa: walk.gpa(linear),
        page_size: walk.page_size,
        writable: walk.dirty() && permits(cpu, &walk.rights, store, user),
        dirty: walk.dirty(),
        user: walk.rights.user,
        executable: permits(cpu, &walk.rights, Access::Fetch, user),
        global: walk.global,
    }
}

/// Translates `linear` for reads of a program in four-level paging, if a processor may know it already:
/// `None` where [`translate`] would raise an exception or set an accessed bit.
pub fn translate_known(
    cpu: &CpuState,
    memory: &impl PhysicalMemory,
    linear: u64,
) -> Option<Translation> {
    let mode = PagingMode::of(cpu);
    if mode != PagingMode::FourLevel || !is_canonical(linear) {
        return None;
    }
    let walk = walk::walk(cpu, memory, mode, linear).ok()?;
    let known = walk.accessed() && permits(cpu, &walk.rights, Access::Read, true);
    known.then(|| translation(cpu, &walk, linear, Access::Read, true))
}

/// Translates `linear` as a debugger would: without permission checks and without setting any bit.
/// `None` if no page is mapped there. [`Translation::writable`] and `executable` tell of the tables
/// alone.
pub fn lookup(cpu: &CpuState, memory: &impl PhysicalMemory, linear: u64) -> Option<Translation> {
    let mode = PagingMode::of(cpu);
    let linear = match mode {
        PagingMode::None => return Some(unpaged(linear)),
        PagingMode::FourLevel => is_canonical(linear).then_some(linear)?,
        PagingMode::Legacy | PagingMode::Pae => linear & 0xffff_ffff,
    };
    let walk = walk::walk(cpu, memory, mode, linear).ok()?;
    Some(Translation {
        gpa: walk.gpa(linear),
        page_size: walk.page_size,
        writable: walk.rights.writable,
        dirty: walk.dirty(),
        user: walk.rights.user,
        executable: walk.rights.executable,
        global: walk.global,
    })
}

/// Whether bits 63 to 47 of `linear` are all equal. SDM 1, 3.3.7.1.
#[inline]
pub const fn is_canonical(linear: u64) -> bool {
    ((linear as i64) << 16 >> 16) as u64 == linear
}

/// Reads the four page-directory-pointer entries to which `cpu.cr3` points, for PAE paging. SDM 3A,
/// 4.4.1.
///
/// # Errors
/// #GP(0) if a present one has reserved bits set.
pub fn load_pdptes(cpu: &CpuState, memory: &impl PhysicalMemory) -> Result<[u64; 4], Exception> {
    // Bits 1, 2, 5 to 8 and those beyond the physical address. SDM 3A, table 4-8.
    const RESERVED: u64 = 0x1e6 | !((1 << PHYS_BITS) - 1);
    let table = cpu.cr3 & 0xffff_ffe0;
    let mut entries = [0; 4];
    for (entry, at) in entries.iter_mut().zip((table..).step_by(8)) {
        *entry = memory.load_u64(GuestPhysAddr(at));
        if *entry & pte::P != 0 && *entry & RESERVED != 0 {
            return Err(Exception::general_protection(0));
        }
    }
    Ok(entries)
}

/// The translation while paging is off: there are no rights to lack.
const fn unpaged(linear: u64) -> Translation {
    Translation {
        gpa: GuestPhysAddr(linear & 0xffff_ffff),
        page_size: 4096,
        writable: true,
        dirty: true,
        user: true,
        executable: true,
        global: false,
    }
}

/// Whether a page with `rights` may be accessed. SDM 3A, 4.6.1.
fn permits(cpu: &CpuState, rights: &walk::Rights, access: Access, user: bool) -> bool {
    if user {
        return rights.user
            && match access {
                Access::Read | Access::SystemRead => true,
                Access::Write | Access::SystemWrite => rights.writable,
                Access::Fetch => rights.executable,
            };
    }
    if access == Access::Fetch {
        return rights.executable && !(rights.user && cpu.cr4 & cr4::SMEP != 0);
    }
    if rights.user && cpu.cr4 & cr4::SMAP != 0 {
        let overridden = cpu.rflags & rflags::AC != 0 && !access.is_implicit_supervisor();
        if !overridden {
            return false;
        }
    }
    !access.is_write() || rights.writable || cpu.cr0 & cr0::WP == 0
}

/// The error code of a page fault. SDM 3A, 4.7.
fn error_code(cpu: &CpuState, access: Access, user: bool, cause: u32) -> u32 {
    let mut error = cause;
    if access.is_write() {
        error |= pf::W;
    }
    if user {
        error |= pf::U;
    }
    let tells_fetches =
        cpu.cr4 & cr4::SMEP != 0 || (cpu.cr4 & cr4::PAE != 0 && cpu.efer & efer::NXE != 0);
    if access == Access::Fetch && tells_fetches {
        error |= pf::I;
    }
    error
}

#[cfg(test)]
mod tests;
