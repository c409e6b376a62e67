//! Loaders of kernels and the firmware tables.
//!
//! Floor 3 of the house. Belljar boots a kernel without firmware: this crate leaves in guest memory
//! what a PC's firmware and a boot loader would leave there, and gives the processor's state at the
//! kernel's first instruction.
//!
//! First [`Firmware::install`] writes the ACPI tables of a [`Platform`] and the BIOS data area and
//! makes the [`MemoryMap`]; then [`load`] recognizes the kernel by its header and loads it by the
//! protocol that it asks for:
//!
//! | file | protocol | entered in |
//! |---|---|---|
//! | Linux bzImage | [`Protocol::Linux64`] | 64-bit mode |
//! | the same, without a 64-bit entry | [`Protocol::Linux32`] | protected mode |
//! | ELF with a PVH note | [`Protocol::Pvh`] | protected mode |
//! | ELF or flat file with a multiboot 1 header | [`Protocol::Multiboot`] | protected mode |
//!
//! A kernel file is not trusted: whatever its bytes are, the answer is an [`Entry`] or a
//! [`BootError`].

#![forbid(unsafe_code)]

mod acpi;
mod elf;
mod entry;
mod error;
mod fields;
mod firmware;
mod layout;
mod linux;
mod memory_map;
mod mtrr;
mod multiboot;
mod placement;
mod platform;
mod pvh;

pub use error::BootError;
pub use firmware::Firmware;
pub use memory_map::{MemoryMap, Region, RegionKind};
pub use mtrr::set_memory_types;
pub use platform::{
    Generation, IoApic, Pci, Platform, PowerManagement, ResetRegister, Rtc, SerialPort,
};

use belljar_memory::GuestMemory;
use belljar_x86::CpuState;
use elf::Elf;

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    /// The kernel's file name, which a multiboot kernel finds as the first word of its command
    /// line.
    pub name: &'a str,
    /// The kernel file's bytes.
    pub kernel: &'a [u8],
    /// The initial RAM disk's bytes: an initrd to Linux, the only module to a multiboot kernel.
    pub initrd: Option<&'a [u8]>,
    /// The kernel's command line.
    pub cmdline: &'a str,
}

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The 64-bit boot protocol of Linux.
    Linux64,
    /// The 32-bit boot protocol of Linux.
    Linux32,
    /// Xen's PVH, which Linux and other kernels offer in their ELF file.
    Pvh,
    /// Multiboot 1.
    Multiboot,
}

/// A kernel that lies in memory, ready to run.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The state of the boot processor at the kernel's first instruction. The others wait as after
    /// reset, with the memory types of [`set_memory_types`].
    pub cpu: CpuState,
    /// The protocol that was used.
    pub protocol: Protocol,
}

/// Loads the kernel of `payload` into `memory`, where `firmware` was installed before. `signature`
/// is what a processor holds in EDX after reset: CPUID leaf 1's EAX.
///
/// # Errors
/// A [`BootError`] if the file is no kernel that can be booted, is damaged, or does not fit.
pub fn load(
    memory: &GuestMemory,
    payload: &Payload<'_>,
    firmware: &Firmware,
    signature: u32,
) -> Result<Entry, BootError> {
    if payload.kernel.is_empty() {
        return Err(BootError::EmptyKernel);
    }
    let (protocol, registers) = if linux::recognizes(payload.kernel) {
        linux::load(memory, payload, firmware)?
    } else if elf::recognizes(payload.kernel) {
        load_elf(memory, payload, firmware)?
    } else if let Some(header) = multiboot::find_header(payload.kernel) {
        let start = multiboot::load_flat(memory, payload, firmware, &header)?;
        (Protocol::Multiboot, start)
    } else {
        return Err(BootError::UnknownFormat);
    };
    let mut cpu = registers.into_state(signature);
    set_memory_types(&mut cpu, firmware.physical_bits());
    Ok(Entry { cpu, protocol })
}

/// Loads an ELF kernel by PVH, or by multiboot where it has a multiboot header but no PVH note.
fn load_elf(
    memory: &GuestMemory,
    payload: &Payload<'_>,
    firmware: &Firmware,
) -> Result<(Protocol, entry::Start), BootError> {
    let elf = Elf::parse(payload.kernel)?;
    if let Some(address) = pvh::entry_point(&elf)? {
        let start = pvh::load(memory, payload, firmware, &elf, address)?;
        return Ok((Protocol::Pvh, start));
    }
    let Some(header) = multiboot::find_header(payload.kernel) else {
        return Err(BootError::ElfWithoutProtocol);
    };
    let start = if header.addresses.is_some() {
        multiboot::load_flat(memory, payload, firmware, &header)?
    } else {
        multiboot::load_elf(memory, payload, firmware, &header, &elf)?
    };
    Ok((Protocol::Multiboot, start))
}

#[cfg(test)]
mod tests;
