//! Places for the parts of a payload in guest memory.

use crate::{BootError, layout};
use belljar_memory::{GuestMemory, GuestPhysAddr, PAGE_SIZE};

/// Writes the command line and its final zero; `max` is the longest that the kernel takes, without
/// the zero.
pub(crate) fn write_cmdline(
    memory: &GuestMemory,
    cmdline: &str,
    max: usize,
) -> Result<(), BootError> {
    let max = max.min(layout::CMDLINE_SIZE - 1);
    if cmdline.len() > max {
        return Err(BootError::CmdlineTooLong {
            len: cmdline.len(),
            max,
        });
    }
    if let Some(offset) = cmdline.bytes().position(|b| b == 0) {
        return Err(BootError::CmdlineZero(offset));
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    memory.write(GuestPhysAddr(layout::CMDLINE), &bytes)?;
    Ok(())
}

/// First address after RAM below 4 GiB.
pub(crate) fn end_of_low_ram(memory: &GuestMemory) -> u64 {
    memory
        .regions()
        .iter()
        .map(|r| r.end().0)
        .filter(|&end| end <= layout::DEVICE_HOLE.end)
        .max()
        .unwrap_or(0)
}

/// Checks that `len` bytes at `start` are RAM in one piece and leave the boot structures alone.
pub(crate) fn check_place(
    memory: &GuestMemory,
    what: &'static str,
    start: u64,
    len: u64,
) -> Result<(), BootError> {
    let fits = start.checked_add(len).is_some_and(|end| {
        memory
            .regions()
            .iter()
            .any(|r| r.start.0 <= start && end <= r.end().0)
    });
    if !fits {
        return Err(BootError::DoesNotFit {
            what,
            start,
            len,
            memory: memory.size(),
        });
    }
    for taken in [layout::STRUCTURES, layout::EBDA, layout::ACPI] {
        if start < taken.end && taken.start < start + len {
            return Err(BootError::Overlap {
                start,
                len,
                taken: taken.start,
            });
        }
    }
    Ok(())
}

/// Writes an initrd as high as possible in whole pages between `floor` and `ceiling` and below 4
/// GiB. Returns its address.
pub(crate) fn write_initrd_high(
    memory: &GuestMemory,
    initrd: &[u8],
    floor: u64,
    ceiling: u64,
) -> Result<u64, BootError> {
    let len = initrd.len() as u64;
    let ceiling = ceiling.min(end_of_low_ram(memory));
    let floor = floor.max(layout::HIGH_MEMORY);
    let start = ceiling
        .checked_sub(len)
        .map(|start| start & !(PAGE_SIZE - 1))
        .filter(|&start| start >= floor)
        .ok_or(BootError::InitrdDoesNotFit {
            len,
            floor,
            ceiling,
        })?;
    memory.write(GuestPhysAddr(start), initrd)?;
    Ok(start)
}

/// Writes a module at the first page after the kernel, which ends at `floor`. Returns its address.
pub(crate) fn write_module_low(
    memory: &GuestMemory,
    module: &[u8],
    floor: u64,
) -> Result<u64, BootError> {
    let len = module.len() as u64;
    let ceiling = end_of_low_ram(memory);
    let start = floor
        .max(layout::HIGH_MEMORY)
        .checked_next_multiple_of(PAGE_SIZE)
        .filter(|start| start.checked_add(len).is_some_and(|end| end <= ceiling))
        .ok_or(BootError::InitrdDoesNotFit {
            len,
            floor,
            ceiling,
        })?;
    memory.write(GuestPhysAddr(start), module)?;
    Ok(start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn memory() -> GuestMemory {
        GuestMemory::new(8 << 20).unwrap()
    }

    #[test]
    fn a_cmdline_of_the_greatest_length_fits_and_one_more_does_not() {
        let text = "a".repeat(layout::CMDLINE_SIZE);
        write_cmdline(&memory(), &text[..100], 100).unwrap();
        write_cmdline(&memory(), &text[1..], usize::MAX).unwrap();
        for (len, max) in [(101, 100), (layout::CMDLINE_SIZE, usize::MAX)] {
            let result = write_cmdline(&memory(), &text[..len], max);
            assert!(
                matches!(result, Err(BootError::CmdlineTooLong { .. })),
                "{len}"
            );
        }
    }

    #[test]
    fn a_cmdline_with_a_zero_byte_is_refused() {
        let result = write_cmdline(&memory(), "a\0b", 100);
        assert!(matches!(result, Err(BootError::CmdlineZero(1))));
    }

    #[test]
    fn an_initrd_lies_below_the_ceiling_in_whole_pages() {
        let memory = memory();
        let start = write_initrd_high(&memory, &[7; 5000], 0, 0x40_0001).unwrap();
        assert_eq!(start, 0x3f_e000);
        assert_eq!(memory.load_u8(GuestPhysAddr(start + 4999)), Some(7));
    }

    #[test]
    fn parts_of_a_kernel_over_the_boot_structures_are_refused() {
        for start in [0x5_f800, 0x7_0000, 0x9_fc00, 0xe_0000, 0xf_f800] {
            let result = check_place(&memory(), "the kernel", start, 0x1000);
            assert!(result.is_err(), "{start:#x}");
        }
        check_place(&memory(), "the kernel", 0x5_f000, 0x1000).unwrap();
        check_place(&memory(), "the kernel", 0x8_0000, 0x1000).unwrap();
    }

    proptest! {
        #[test]
        fn an_initrd_is_placed_between_its_bounds_or_refused(
            len in 0..0x1_0000_usize,
            floor in 0..0x100_0000_u64,
            ceiling in 0..0x100_0000_u64,
        ) {
            let initrd = vec![1; len];
            if let Ok(start) = write_initrd_high(&memory(), &initrd, floor, ceiling) {
                prop_assert!(start >= floor && start + len as u64 <= ceiling);
                prop_assert!(start.is_multiple_of(PAGE_SIZE));
            }
            if let Ok(start) = write_module_low(&memory(), &initrd, floor) {
                prop_assert!(start >= floor && start + len as u64 <= 8 << 20);
            }
        }
    }
}
