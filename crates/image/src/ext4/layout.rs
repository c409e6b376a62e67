//! Where things lie: groups, and the tables at the front.

use super::blocks::Blocks;
use std::ops::Range;

/// Bytes of a block.
pub(super) const BLOCK: u64 = 4096;
/// Blocks of a group: a bitmap of one block has a bit for each.
pub(super) const BLOCKS_PER_GROUP: u32 = 8 * BLOCK as u32;
/// The most blocks of one extent.
pub(super) const LONGEST_EXTENT: u32 = 32768;
/// Bytes of an inode.
pub(super) const INODE: u32 = 256;
/// Bytes of a group's descriptor.
pub(super) const DESCRIPTOR: usize = 32;

/// The root's inode.
pub(super) const ROOT_INODE: u32 = 2;
/// The journal's inode.
pub(super) const JOURNAL_INODE: u32 = 8;
/// The first inode that is not reserved.
pub(super) const FIRST_FREE_INODE: u32 = 11;
/// Where a check puts what has lost its name.
pub(super) const LOST_AND_FOUND: &str = "lost+found";

/// Bytes of disk for each inode, as mke2fs reckons.
const BYTES_PER_INODE: u64 = 16384;
/// The smallest and the largest file system: block numbers have 32 bits.
const SIZES: Range<u64> = (64 << 20)..(15 << 40);
/// The fewest and the most blocks of a journal.
const JOURNAL_BLOCKS: (u32, u32) = (1024, 16384);
/// The smallest last group, as mke2fs has it.
const SMALLEST_GROUP: u32 = 2048;

/// Where things lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) blocks: u32,
    pub(super) groups: u32,
    pub(super) inodes_per_group: u32,
    pub(super) descriptor_blocks: u32,
    pub(super) journal_blocks: u32,
    /// The block of each group's bitmap of blocks.
    pub(super) block_bitmaps: Vec<u32>,
    /// The block of each group's bitmap of inodes.
    pub(super) inode_bitmaps: Vec<u32>,
    /// The first block of each group's table of inodes.
    pub(super) inode_tables: Vec<u32>,
}

impl Layout {
    /// The layout for `len` bytes, and the blocks that are free then. `None` if a file system cannot
    /// have this size.
    pub(super) fn new(len: u64) -> Option<(Self, Blocks)> {
        if !SIZES.contains(&len) {
            return None;
        }
        let mut blocks = (len / BLOCK) as u32;
        let last_group = blocks % BLOCKS_PER_GROUP;
        if last_group < SMALLEST_GROUP && blocks > BLOCKS_PER_GROUP {
            blocks -= last_group;
        }
        let groups = blocks.div_ceil(BLOCKS_PER_GROUP);
        let inodes = (u64::from(blocks) * BLOCK / BYTES_PER_INODE) as u32;
        // A whole number of blocks of the table, and of bytes of the bitmap.
        let inodes_per_group = inodes
            .div_ceil(groups)
            .next_multiple_of(BLOCK as u32 / INODE);
        let mut layout = Self {
            blocks,
            groups,
            inodes_per_group,
            descriptor_blocks: (groups * DESCRIPTOR as u32).div_ceil(BLOCK as u32),
            journal_blocks: (blocks / 64).clamp(JOURNAL_BLOCKS.0, JOURNAL_BLOCKS.1),
            block_bitmaps: Vec::new(),
            inode_bitmaps: Vec::new(),
            inode_tables: Vec::new(),
        };
        let mut free = Blocks::new(blocks);
        for group in (0..groups).filter(|group| has_superblock(*group)) {
            let start = group * BLOCKS_PER_GROUP;
            free.reserve(start..start + 1 + layout.descriptor_blocks);
        }
        for _ in 0..groups {
            layout.block_bitmaps.push(free.allocate_together(1)?);
        }
        for _ in 0..groups {
            layout.inode_bitmaps.push(free.allocate_together(1)?);
        }
        for _ in 0..groups {
            let table = free.allocate_together(layout.inode_table_blocks())?;
            layout.inode_tables.push(table);
        }
        Some((layout, free))
    }

    /// Blocks of a group's table of inodes.
    pub(super) fn inode_table_blocks(&self) -> u32 {
        self.inodes_per_group * INODE / BLOCK as u32
    }

    /// All inodes.
    pub(super) fn inodes(&self) -> u32 {
        self.inodes_per_group * self.groups
    }

    /// The blocks of a group.
    pub(super) fn group(&self, group: u32) -> Range<u32> {
        let start = group * BLOCKS_PER_GROUP;
        start..self.blocks.min(start + BLOCKS_PER_GROUP)
    }

    /// The byte at which an inode lies. The first one has the number 1.
    pub(super) fn place_of_inode(&self, number: u32) -> u64 {
        let index = number - 1;
        let (group, index) = (index / self.inodes_per_group, index % self.inodes_per_group);
        u64::from(self.inode_tables[group as usize]) * BLOCK + u64::from(index * INODE)
    }
}

/// Whether a group has a copy of the superblock: the first two, and powers of 3, 5 and 7.
pub(super) fn has_superblock(group: u32) -> bool {
    let is_power = |base: u32| {
        let mut power = base;
        while power < group {
            power = power.saturating_mul(base);
        }
        power == group
    };
    group <= 1 || [3, 5, 7].into_iter().any(is_power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_of_the_superblock_are_where_the_format_says() {
        let with: Vec<u32> = (0..130).filter(|group| has_superblock(*group)).collect();
        assert_eq!(with, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    #[test]
    fn tables_do_not_overlap_on_small_and_large_disks() {
        for len in [64 << 20, 1 << 30, (4 << 30) + 12345, 200 << 30] {
            let (layout, _) = Layout::new(len).unwrap();
            let mut places: Vec<(u32, u32)> = Vec::new();
            for group in 0..layout.groups as usize {
                places.push((layout.block_bitmaps[group], 1));
                places.push((layout.inode_bitmaps[group], 1));
                places.push((layout.inode_tables[group], layout.inode_table_blocks()));
            }
            places.sort_unstable();
            for pair in places.windows(2) {
                assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{pair:?} of {len}");
            }
        }
    }

    #[test]
    fn sizes_that_the_format_cannot_have_are_refused() {
        for len in [0, 1 << 20, 16 << 40, u64::MAX] {
            assert!(Layout::new(len).is_none(), "{len}");
        }
    }
}
