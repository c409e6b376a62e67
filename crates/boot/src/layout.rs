//! Where the boot structures lie in guest-physical memory.
//!
//! Kernels own all RAM that the memory map gives them, so what a kernel reads at its start lies in
//! low memory, where none is linked to: above the places of real-mode programs and below the last
//! pages before the EBDA, which Linux's decompressor takes for its trampoline before it leaves our
//! page tables.

use std::ops::Range;

/// The BIOS data area.
pub(crate) const BIOS_DATA: u64 = 0x400;

/// Everything that a loader leaves for the kernel, so that a kernel must not be loaded here.
pub(crate) const STRUCTURES: Range<u64> = 0x6_0000..0x8_0000;
/// The global descriptor table of 64-bit kernels.
pub(crate) const GDT: u64 = 0x6_0000;
/// Linux's `boot_params`, or the start info of PVH or multiboot.
pub(crate) const INFO: u64 = 0x6_1000;
/// Memory map and module list of PVH and multiboot, up to the page tables.
pub(crate) const INFO_TABLES: u64 = 0x6_2000;
/// The page tables of 64-bit kernels: PML4, PDPT and four page directories.
pub(crate) const PAGE_TABLES: u64 = 0x6_4000;
/// The kernel's command line.
pub(crate) const CMDLINE: u64 = 0x7_0000;
/// Bytes that the command line may take with its final zero.
pub(crate) const CMDLINE_SIZE: usize = 0x1_0000;

/// The extended BIOS data area.
pub(crate) const EBDA: Range<u64> = 0x9_fc00..0xa_0000;
/// Where a PC has its ROMs.
pub(crate) const ROM: Range<u64> = 0xc_0000..0x10_0000;
/// A page for the identifier of the machine's generation, and for nothing else.
pub(crate) const GENERATION: Range<u64> = 0xd_f000..0xe_0000;
/// The ACPI tables; the RSDP must lie at a multiple of 16 in this area (ACPI 6.5, 5.2.5.1).
pub(crate) const ACPI: Range<u64> = 0xe_0000..0x10_0000;
/// Never RAM: here are the devices below 4 GiB.
pub(crate) const DEVICE_HOLE: Range<u64> = 0xc000_0000..0x1_0000_0000;
/// Bytes of one PCI bus's configuration space in memory.
pub(crate) const ECAM_LEN: u32 = 0x10_0000;
/// Where kernels lie at the lowest.
pub(crate) const HIGH_MEMORY: u64 = 0x10_0000;
