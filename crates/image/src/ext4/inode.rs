//! Inodes as they lie on the disk, and the trees of extents in them.

use super::blocks::Extent;
use super::layout::{BLOCK, INODE};
use super::{Attributes, Kind, Special};

/// Targets of symbolic links that are shorter lie in the inode.
pub(super) const INLINE: usize = 60;
/// The extents that an inode itself has room for.
pub(super) const MOST_INLINE_EXTENTS: usize = 4;

const DIRECTORY: u16 = 0o040_000;
const REGULAR: u16 = 0o100_000;
const SYMLINK: u16 = 0o120_000;
const CHARACTER_DEVICE: u16 = 0o020_000;
const BLOCK_DEVICE: u16 = 0o060_000;
const FIFO: u16 = 0o010_000;

/// The flag of inodes whose blocks are a tree of extents.
const EXTENTS: u32 = 0x80000;
const EXTENT_MAGIC: u16 = 0xf30a;
const EXTENT_ENTRY: usize = 12;
/// Extents of a leaf of one block.
const MOST_LEAF_EXTENTS: usize = (BLOCK as usize - EXTENT_ENTRY) / EXTENT_ENTRY;
/// Bytes of an inode beyond the first 128 that are in use.
pub(super) const EXTRA_SIZE: u16 = 32;
/// The block number, in units of 512 bytes, that `i_blocks` counts in.
const SECTORS: u64 = BLOCK / 512;

/// The kind of a directory entry that names a directory.
pub(super) const ENTRY_DIRECTORY: u8 = 2;

/// The kind that directory entries tell of a node.
pub(super) fn entry_type(kind: &Kind) -> u8 {
    match kind {
        Kind::File { .. } => 1,
        Kind::Directory { .. } => ENTRY_DIRECTORY,
        Kind::Special(Special::Character(..)) => 3,
        Kind::Special(Special::Block(..)) => 4,
        Kind::Special(Special::Fifo) => 5,
        Kind::Symlink(_) => 7,
    }
}

/// The bytes of `i_block` and how many blocks the file has.
#[derive(Clone, Debug)]
pub(super) struct ExtentTree {
    root: [u8; INLINE],
    blocks: u64,
}

impl ExtentTree {
    /// A tree whose extents lie in the inode.
    pub(super) fn inline(extents: &[Extent]) -> Self {
        let mut root = [0; INLINE];
        header(&mut root, extents.len(), MOST_INLINE_EXTENTS, 0);
        entries(&mut root, extents);
        Self {
            root,
            blocks: count(extents),
        }
    }

    /// A tree whose extents lie in the block `leaf`.
    pub(super) fn with_leaf(extents: &[Extent], leaf: u32) -> Self {
        let mut root = [0; INLINE];
        header(&mut root, 1, MOST_INLINE_EXTENTS, 1);
        // The first file block is 0.
        put32(&mut root, EXTENT_ENTRY + 4, leaf);
        Self {
            root,
            blocks: count(extents) + 1,
        }
    }
}

/// The block of a leaf; `None` if there are too many extents.
pub(super) fn leaf(extents: &[Extent]) -> Option<Vec<u8>> {
    if extents.len() > MOST_LEAF_EXTENTS {
        return None;
    }
    let mut block = vec![0; BLOCK as usize];
    header(&mut block, extents.len(), MOST_LEAF_EXTENTS, 0);
    entries(&mut block, extents);
    Some(block)
}

fn header(bytes: &mut [u8], entries: usize, most: usize, depth: u16) {
    put16(bytes, 0, EXTENT_MAGIC);
    put16(bytes, 2, entries as u16);
    put16(bytes, 4, most as u16);
    put16(bytes, 6, depth);
}

fn entries(bytes: &mut [u8], extents: &[Extent]) {
    let mut first = 0;
    for (index, extent) in extents.iter().enumerate() {
        let at = (index + 1) * EXTENT_ENTRY;
        put32(bytes, at, first);
        put16(bytes, at + 4, extent.len as u16);
        put32(bytes, at + 8, extent.start);
        first += extent.len;
    }
}

fn count(extents: &[Extent]) -> u64 {
    extents.iter().map(|extent| u64::from(extent.len)).sum()
}

/// The inode of a regular file.
pub(super) fn file(attributes: &Attributes, links: u32, len: u64, tree: &ExtentTree) -> Vec<u8> {
    with_tree(REGULAR, attributes, links, len, tree)
}

/// The inode of a directory.
pub(super) fn directory(
    attributes: &Attributes,
    links: u32,
    len: u64,
    tree: &ExtentTree,
) -> Vec<u8> {
    with_tree(DIRECTORY, attributes, links, len, tree)
}

/// The inode of a symbolic link whose target is in a block.
pub(super) fn symlink(attributes: &Attributes, links: u32, len: u64, tree: &ExtentTree) -> Vec<u8> {
    with_tree(SYMLINK, attributes, links, len, tree)
}

/// The inode of a symbolic link whose target is shorter than [`INLINE`].
pub(super) fn short_symlink(attributes: &Attributes, links: u32, target: &str) -> Vec<u8> {
    let mut inode = common(SYMLINK, attributes, links, target.len() as u64);
    inode[40..40 + target.len()].copy_from_slice(target.as_bytes());
    inode
}

/// The inode of a device or a named pipe.
pub(super) fn special(attributes: &Attributes, links: u32, special: Special) -> Vec<u8> {
    let (kind, device) = match special {
        Special::Character(major, minor) => (CHARACTER_DEVICE, Some((major, minor))),
        Special::Block(major, minor) => (BLOCK_DEVICE, Some((major, minor))),
        Special::Fifo => (FIFO, None),
    };
    let mut inode = common(kind, attributes, links, 0);
    if let Some((major, minor)) = device {
        // The second word has the wide encoding of Linux's device numbers; the first one the old.
        let wide = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
        if major < 256 && minor < 256 {
            put32(&mut inode, 40, (major << 8) | minor);
        } else {
            put32(&mut inode, 44, wide);
        }
    }
    inode
}

/// The inode of the journal.
pub(super) fn journal(extents: &[Extent], made: u32) -> Vec<u8> {
    let attributes = Attributes {
        permissions: 0o600,
        user: 0,
        group: 0,
        modified: made,
    };
    let tree = ExtentTree::inline(extents);
    file(&attributes, 1, tree.blocks * BLOCK, &tree)
}

/// The 68 bytes of an inode that the superblock has a copy of: `i_block` and the length.
pub(super) fn journal_backup(inode: &[u8]) -> [u8; 68] {
    let mut backup = [0; 68];
    backup[..INLINE].copy_from_slice(&inode[40..100]);
    backup[60..64].copy_from_slice(&inode[108..112]);
    backup[64..].copy_from_slice(&inode[4..8]);
    backup
}

fn with_tree(
    kind: u16,
    attributes: &Attributes,
    links: u32,
    len: u64,
    tree: &ExtentTree,
) -> Vec<u8> {
    let mut inode = common(kind, attributes, links, len);
    let sectors = tree.blocks * SECTORS;
    put32(&mut inode, 28, sectors as u32);
    put16(&mut inode, 116, (sectors >> 32) as u16);
    put32(&mut inode, 32, EXTENTS);
    inode[40..100].copy_from_slice(&tree.root);
    inode
}

fn common(kind: u16, attributes: &Attributes, links: u32, len: u64) -> Vec<u8> {
    let mut inode = vec![0; INODE as usize];
    let Attributes {
        permissions,
        user,
        group,
        modified,
    } = *attributes;
    put16(&mut inode, 0, kind | permissions & 0o7777);
    put16(&mut inode, 2, user as u16);
    put32(&mut inode, 4, len as u32);
    for time in [8, 12, 16, 144] {
        put32(&mut inode, time, modified);
    }
    put16(&mut inode, 24, group as u16);
    put16(&mut inode, 26, links.min(65000) as u16);
    put32(&mut inode, 108, (len >> 32) as u32);
    put16(&mut inode, 120, (user >> 16) as u16);
    put16(&mut inode, 122, (group >> 16) as u16);
    put16(&mut inode, 128, EXTRA_SIZE);
    inode
}

/// Puts a number of 16 bits, the lowest first.
pub(super) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

/// Puts a number of 32 bits, the lowest first.
pub(super) fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}
