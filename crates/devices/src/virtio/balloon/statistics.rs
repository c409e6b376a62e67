//! What the guest tells of its memory. Virtio 1.2, 5.5.6.3.

use crate::buffers::Buffers;
use belljar_memory::DmaMemory;

/// Bytes of an entry: a tag of 16 bits and a value of 64.
const ENTRY: usize = 10;
/// The most entries that are looked at.
const MOST: usize = 64;

/// The names of the statistics, by their tags. Sizes are in bytes. The tags from 10 on are those that
/// Linux has added.
pub const STATISTICS: [&str; 16] = [
    "swapped_in",
    "swapped_out",
    "major_faults",
    "minor_faults",
    "free",
    "total",
    "available",
    "caches",
    "huge_pages",
    "huge_page_failures",
    "oom_kills",
    "allocation_stalls",
    "async_scans",
    "direct_scans",
    "async_reclaims",
    "direct_reclaims",
];

/// What a guest has told of its memory, by name, in the order of [`STATISTICS`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GuestStatistics(Vec<(&'static str, u64)>);

impl GuestStatistics {
    /// The entries in `buffers`; those with unknown tags are left out, of those with the same tag the
    /// last counts.
    pub(super) fn read(memory: &DmaMemory, buffers: &Buffers) -> Self {
        let mut bytes = [0; MOST * ENTRY];
        let len = buffers.len().min(bytes.len() as u64) as usize;
        if buffers.read(memory, 0, &mut bytes[..len]).is_err() {
            return Self::default();
        }
        let mut values = [None; STATISTICS.len()];
        for entry in bytes[..len].as_chunks::<ENTRY>().0 {
            let [low, high, value @ ..] = entry;
            let tag = usize::from(u16::from_le_bytes([*low, *high]));
            if let Some(slot) = values.get_mut(tag) {
                *slot = Some(u64::from_le_bytes(*value));
            }
        }
        let named = STATISTICS.iter().zip(values);
        Self(
            named
                .filter_map(|(name, value)| Some((*name, value?)))
                .collect(),
        )
    }

    /// The value of the statistic `name`, if the guest tells it.
    pub fn get(&self, name: &str) -> Option<u64> {
        let found = self.0.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| *value)
    }

    /// All that the guest tells.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.0.iter().copied()
    }
}
