//! The map of the guest-physical address space that firmware gives to the kernel.

use belljar_memory::GuestMemory;
use std::ops::Range;

/// What a region of the map is for, numbered as in E820. ACPI 6.5, table 15.8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RegionKind {
    /// RAM that the kernel may use.
    Usable = 1,
    /// Not for the kernel's memory management.
    Reserved = 2,
}

/// A region of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First guest-physical address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// What the region is for.
    pub kind: RegionKind,
}

impl Region {
    /// The entry as E820, Linux's `boot_params` and multiboot hold it: start, length, kind.
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.start.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.len.to_le_bytes());
        bytes[16..].copy_from_slice(&(self.kind as u32).to_le_bytes());
        bytes
    }

    /// Length of an entry in bytes.
    pub const BYTES: usize = 20;
}

/// The memory map: regions in ascending order that do not overlap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryMap {
    regions: Vec<Region>,
}

impl MemoryMap {
    /// The map of `memory` in which the ranges `reserved`, whether RAM or not, are not for use.
    /// Empty ranges and overlaps are allowed.
    pub fn new(memory: &GuestMemory, reserved: &[Range<u64>]) -> Self {
        let reserved = merged(reserved);
        let mut regions: Vec<Region> = reserved
            .iter()
            .map(|r| region(r.clone(), RegionKind::Reserved))
            .collect();
        for ram in memory.regions() {
            let mut free = ram.start.0;
            for taken in &reserved {
                regions.extend(usable(free..taken.start.min(ram.end().0)));
                free = free.max(taken.end);
            }
            regions.extend(usable(free..ram.end().0));
        }
        regions.sort_unstable_by_key(|r| r.start);
        Self { regions }
    }

    /// The regions, in ascending order.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }
}

fn region(range: Range<u64>, kind: RegionKind) -> Region {
    Region {
        start: range.start,
        len: range.end - range.start,
        kind,
    }
}

fn usable(range: Range<u64>) -> Option<Region> {
    (range.start < range.end).then(|| region(range, RegionKind::Usable))
}

/// The ranges in ascending order, without empty ones, and those that touch or overlap made one.
fn merged(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut sorted: Vec<_> = ranges.iter().filter(|r| !r.is_empty()).cloned().collect();
    sorted.sort_unstable_by_key(|r| r.start);
    let mut out: Vec<Range<u64>> = Vec::new();
    for range in sorted {
        match out.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => out.push(range),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn reserved_ranges_are_cut_out_of_ram_and_listed() {
        let memory = GuestMemory::new(16 * MIB).unwrap();
        let map = MemoryMap::new(
            &memory,
            &[0xfee0_0000..0xfee0_1000, 0x9_fc00..0xa_0000, 0xc_0000..MIB],
        );
        let expected = [
            (0, 0x9_fc00, RegionKind::Usable),
            (0x9_fc00, 0x400, RegionKind::Reserved),
            (0xc_0000, 0x4_0000, RegionKind::Reserved),
            (MIB, 15 * MIB, RegionKind::Usable),
            (0xfee0_0000, 0x1000, RegionKind::Reserved),
        ]
        .map(|(start, len, kind)| Region { start, len, kind });
        assert_eq!(map.regions(), expected);
    }

    #[test]
    fn an_entry_has_the_layout_of_e820() {
        let entry = Region {
            start: 0x1122_3344_5566_7788,
            len: 0x99,
            kind: RegionKind::Reserved,
        };
        let bytes = entry.to_bytes();
        assert_eq!(bytes[..8], [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        assert_eq!(bytes[8..], [0x99, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]);
    }

    proptest! {
        #[test]
        fn an_address_is_usable_exactly_if_it_is_ram_and_not_reserved(
            reserved in prop::collection::vec((0..0x80_0000_u64, 0..0x10_0000_u64), 0..8),
            probes in prop::collection::vec(0..0x80_0000_u64, 32),
        ) {
            let memory = GuestMemory::new(4 * MIB).unwrap();
            let reserved: Vec<_> = reserved.into_iter().map(|(at, len)| at..at + len).collect();
            let map = MemoryMap::new(&memory, &reserved);
            for pair in map.regions().windows(2) {
                prop_assert!(pair[0].start + pair[0].len <= pair[1].start);
            }
            for probe in probes {
                let is_ram = memory.offset(belljar_memory::GuestPhysAddr(probe)).is_some();
                let is_taken = reserved.iter().any(|r| r.contains(&probe));
                let found = map
                    .regions()
                    .iter()
                    .find(|r| (r.start..r.start + r.len).contains(&probe))
                    .map(|r| r.kind);
                let expected = match (is_taken, is_ram) {
                    (true, _) => Some(RegionKind::Reserved),
                    (false, true) => Some(RegionKind::Usable),
                    (false, false) => None,
                };
                prop_assert_eq!(found, expected);
            }
        }
    }
}
