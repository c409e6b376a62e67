//! Why a kernel could not be booted.

use belljar_memory::MemoryError;
use thiserror::Error;

/// Why a kernel could not be booted.
#[derive(Debug, Error)]
pub enum BootError {
    /// The kernel file has no bytes.
    #[error("the kernel file is empty")]
    EmptyKernel,
    /// No known header was found.
    #[error(
        "the kernel file is neither a Linux bzImage, nor an ELF file, nor a multiboot image; \
         a compressed or raw image must be unpacked or rebuilt as one of these"
    )]
    UnknownFormat,
    /// An ELF file that does not say how it wants to be booted.
    #[error(
        "the ELF kernel has neither a PVH entry note nor a multiboot header; use the bzImage \
         instead, or build Linux with CONFIG_PVH=y"
    )]
    ElfWithoutProtocol,
    /// The file ends before what its header promises.
    #[error("the {what} is cut short: it needs {needed:#x} bytes and has {has:#x}; fetch it again")]
    Truncated {
        /// The kind of file.
        what: &'static str,
        /// The bytes that are needed at least.
        needed: u64,
        /// The bytes that there are.
        has: u64,
    },
    /// A field of a header holds what it must not.
    #[error("the {what} is damaged or not supported: {field} is {value:#x}")]
    BadField {
        /// The kind of file.
        what: &'static str,
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// Linux before boot protocol 2.02, or a zImage.
    #[error(
        "the Linux image is too old: boot protocol {}.{:02}, loaded {place}; Belljar boots \
         bzImages of protocol 2.02 (Linux 2.4) and later",
        version >> 8,
        version & 0xff
    )]
    OldLinux {
        /// Version of the boot protocol, major in the high byte.
        version: u16,
        /// Whether it loads below or above 1 MiB.
        place: &'static str,
    },
    /// The kernel asks for something that Belljar does not offer.
    #[error(
        "the multiboot kernel requires features that Belljar does not offer: flags {flags:#06x}"
    )]
    MultibootFeatures {
        /// The required bits that are not known.
        flags: u32,
    },
    /// A part does not lie in RAM from end to end.
    #[error(
        "{what} needs {len:#x} bytes at {start:#x}, which is not all RAM in a guest with {} MiB of \
         memory; give it more memory",
        memory >> 20
    )]
    DoesNotFit {
        /// The part.
        what: &'static str,
        /// Where it must lie.
        start: u64,
        /// Its length in bytes.
        len: u64,
        /// The guest's memory in bytes.
        memory: u64,
    },
    /// A part of the kernel would overwrite what the loader leaves for it.
    #[error(
        "the kernel loads {len:#x} bytes at {start:#x}, over the boot structures at {taken:#x}"
    )]
    Overlap {
        /// Where the part of the kernel lies.
        start: u64,
        /// Its length in bytes.
        len: u64,
        /// Start of the boot structures.
        taken: u64,
    },
    /// A segment of an ELF kernel would overwrite another.
    #[error(
        "the ELF kernel is damaged or not supported: the segment at {start:#x} lies over another, \
         which ends at {end:#x}"
    )]
    SegmentsOverlap {
        /// Where the segment lies.
        start: u64,
        /// Where the other ends.
        end: u64,
    },
    /// The initrd finds no place.
    #[error(
        "the initrd of {len:#x} bytes does not fit between the kernel's end at {floor:#x} and \
         {ceiling:#x}; give the guest more memory or use a smaller initrd"
    )]
    InitrdDoesNotFit {
        /// Its length in bytes.
        len: u64,
        /// The first address that is free.
        floor: u64,
        /// The first address that it must not reach.
        ceiling: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("the kernel command line has {len} bytes and the kernel takes at most {max}")]
    CmdlineTooLong {
        /// Its length in bytes.
        len: usize,
        /// The longest that is possible.
        max: usize,
    },
    /// The command line has a zero byte, which would end it.
    #[error("the kernel command line has a zero byte at offset {0}")]
    CmdlineZero(usize),
    /// The ACPI tables are larger than their place.
    #[error("the ACPI tables of {cpus} processors need {needed:#x} bytes and have {space:#x}")]
    AcpiTooLarge {
        /// Number of processors.
        cpus: u32,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that there are.
        space: u64,
    },
    /// Writing to guest memory failed.
    #[error("the boot structures cannot be written to guest memory")]
    Memory(#[from] MemoryError),
}
