//! The superblock, the groups' descriptors, the bitmaps, and the head of the journal.

use super::Writer;
use super::inode::{EXTRA_SIZE, put16, put32};
use super::layout::{
    BLOCK, BLOCKS_PER_GROUP, DESCRIPTOR, FIRST_FREE_INODE, INODE, JOURNAL_INODE, Layout,
    has_superblock,
};
use crate::ImageError;

/// Where the first superblock lies in its block; the copies lie at the beginning of theirs.
const FIRST_AT: usize = 1024;
const SUPERBLOCK: usize = 1024;

const MAGIC: u16 = 0xef53;
/// A journal, extended attributes, hashed directories.
const COMPATIBLE: u32 = 0x4 | 0x8 | 0x20;
/// Typed entries, extents, flexible groups.
const INCOMPATIBLE: u32 = 0x2 | 0x40 | 0x200;
/// Few copies of the superblock, large files, huge files, many subdirectories, large inodes.
const READ_ONLY_COMPATIBLE: u32 = 0x1 | 0x2 | 0x8 | 0x20 | 0x40;

/// How full everything is.
#[derive(Clone, Debug)]
pub(super) struct Usage<'a> {
    /// Whether each block is in use.
    pub(super) blocks: &'a [bool],
    /// The last inode that is in use; all before it are.
    pub(super) last_inode: u32,
    /// Directories of each group.
    pub(super) directories: &'a [u32],
}

impl Usage<'_> {
    /// The inodes of a group that are in use.
    fn inodes(&self, layout: &Layout, group: u32) -> u32 {
        let before = group * layout.inodes_per_group;
        self.last_inode
            .saturating_sub(before)
            .min(layout.inodes_per_group)
    }

    /// The free blocks of a group.
    fn free_blocks(&self, layout: &Layout, group: u32) -> u32 {
        let blocks = layout.group(group);
        let blocks = &self.blocks[blocks.start as usize..blocks.end as usize];
        blocks.iter().filter(|used| !**used).count() as u32
    }
}

/// Writes the bitmaps, descriptors and superblocks of a file system.
pub(super) fn write(
    writer: &Writer<'_>,
    usage: &Usage<'_>,
    journal: &[u8; 68],
) -> Result<(), ImageError> {
    let layout = &writer.layout;
    for group in 0..layout.groups {
        let index = group as usize;
        let blocks = layout.group(group);
        let used = &usage.blocks[blocks.start as usize..blocks.end as usize];
        // What is beyond the end counts as used.
        let bitmap = bitmap(BLOCKS_PER_GROUP, |at| {
            used.get(at as usize).copied().unwrap_or(true)
        });
        writer.write(layout.block_bitmaps[index], &bitmap)?;
        let inodes = usage.inodes(layout, group);
        let bitmap = bitmap_of_inodes(layout, inodes);
        writer.write(layout.inode_bitmaps[index], &bitmap)?;
    }
    let descriptors = descriptors(layout, usage);
    let superblock = superblock(writer, usage, journal);
    for group in (0..layout.groups).filter(|group| has_superblock(*group)) {
        let mut block = vec![0; BLOCK as usize];
        let at = if group == 0 { FIRST_AT } else { 0 };
        block[at..at + SUPERBLOCK].copy_from_slice(&superblock);
        put16(&mut block, at + 90, group as u16);
        let start = group * BLOCKS_PER_GROUP;
        writer.write(start, &block)?;
        writer.write(start + 1, &descriptors)?;
    }
    Ok(())
}

fn bitmap(bits: u32, is_set: impl Fn(u32) -> bool) -> Vec<u8> {
    let mut bitmap = vec![0; BLOCK as usize];
    for bit in (0..bits).filter(|bit| is_set(*bit)) {
        bitmap[bit as usize / 8] |= 1 << (bit % 8);
    }
    bitmap
}

fn bitmap_of_inodes(layout: &Layout, used: u32) -> Vec<u8> {
    // What is beyond the group's inodes counts as used.
    bitmap(BLOCKS_PER_GROUP, |at| {
        at < used || at >= layout.inodes_per_group
    })
}

fn descriptors(layout: &Layout, usage: &Usage<'_>) -> Vec<u8> {
    let mut bytes = vec![0; layout.descriptor_blocks as usize * BLOCK as usize];
    for group in 0..layout.groups {
        let index = group as usize;
        let descriptor = &mut bytes[index * DESCRIPTOR..(index + 1) * DESCRIPTOR];
        put32(descriptor, 0, layout.block_bitmaps[index]);
        put32(descriptor, 4, layout.inode_bitmaps[index]);
        put32(descriptor, 8, layout.inode_tables[index]);
        put16(descriptor, 12, usage.free_blocks(layout, group) as u16);
        let free_inodes = layout.inodes_per_group - usage.inodes(layout, group);
        put16(descriptor, 14, free_inodes as u16);
        put16(descriptor, 16, usage.directories[index] as u16);
    }
    bytes
}

fn superblock(writer: &Writer<'_>, usage: &Usage<'_>, journal: &[u8; 68]) -> Vec<u8> {
    let (layout, identity) = (&writer.layout, &writer.identity);
    let free_blocks: u32 = (0..layout.groups)
        .map(|group| usage.free_blocks(layout, group))
        .sum();
    let mut block = vec![0; SUPERBLOCK];
    for (at, value) in [
        (0, layout.inodes()),
        (4, layout.blocks),
        // Blocks that only root may fill, in hundredths.
        (8, layout.blocks / 100),
        (12, free_blocks),
        (16, layout.inodes() - usage.last_inode),
        // Blocks and clusters of 1024 << 2 bytes.
        (24, 2),
        (28, 2),
        (32, BLOCKS_PER_GROUP),
        (36, BLOCKS_PER_GROUP),
        (40, layout.inodes_per_group),
        (48, identity.made),
        (64, identity.made),
        (76, 1),
        (84, FIRST_FREE_INODE),
        (92, COMPATIBLE),
        (96, INCOMPATIBLE),
        (100, READ_ONLY_COMPATIBLE),
        (224, JOURNAL_INODE),
        // Extended attributes of users, and access control lists.
        (256, 0xc),
        (264, identity.made),
        // Hashes of names take characters as signed.
        (352, 1),
    ] {
        put32(&mut block, at, value);
    }
    for (at, value) in [
        // No number of mounts after which to check.
        (54, u16::MAX),
        (56, MAGIC),
        // Clean; go on after an error.
        (58, 1),
        (60, 1),
        (88, INODE as u16),
        (348, EXTRA_SIZE),
        (350, EXTRA_SIZE),
    ] {
        put16(&mut block, at, value);
    }
    block[104..120].copy_from_slice(&identity.uuid);
    let label = &identity.label.as_bytes()[..identity.label.len().min(16)];
    block[120..120 + label.len()].copy_from_slice(label);
    // The seed of the hashes of names, and half MD4.
    block[236..252].copy_from_slice(&identity.uuid);
    block[252] = 1;
    // The superblock has a copy of the journal's inode.
    block[253] = 1;
    block[268..336].copy_from_slice(journal);
    block[372] = layout.groups.next_power_of_two().trailing_zeros() as u8;
    block
}

/// The first block of an empty journal of `blocks` blocks. jbd2's numbers have the highest byte
/// first.
pub(super) fn journal(blocks: u32, uuid: &[u8; 16]) -> Vec<u8> {
    const JOURNAL_MAGIC: u32 = 0xc03b_3998;
    const SUPERBLOCK_OF_VERSION_2: u32 = 4;
    let mut block = vec![0; BLOCK as usize];
    for (at, value) in [
        (0, JOURNAL_MAGIC),
        (4, SUPERBLOCK_OF_VERSION_2),
        (12, BLOCK as u32),
        (16, blocks),
        // The first block of the log, its first transaction; 0: nothing to replay.
        (20, 1),
        (24, 1),
        (28, 0),
        // One file system uses it.
        (64, 1),
    ] {
        block[at..at + 4].copy_from_slice(&u32::to_be_bytes(value));
    }
    block[48..64].copy_from_slice(uuid);
    block
}
