//! Writes an ext4 file system into a file, in one pass and without mounting anything.
//!
//! The kernel's Documentation/filesystems/ext4 describes the format. Files' contents go to the disk
//! as they come, one after the other; the tree of names stays in memory, and [`Writer::finish`] writes
//! the inodes, directories, bitmaps and descriptors that follow from it. What is not written stays a
//! hole of the file.
//!
//! The features are those that every kernel since 2.6.28 knows: extents, a journal, flexible block
//! groups (all tables lie at the front), typed directory entries. A path's parents may be symbolic
//! links to directories of the tree, as in a system whose `/bin` is a link to `/usr/bin`.

mod blocks;
mod directory;
mod inode;
mod layout;
mod path;
mod superblock;

use crate::ImageError;
use blocks::{Blocks, Extent};
use directory::DirectoryBlocks;
use layout::{BLOCK, FIRST_FREE_INODE, JOURNAL_INODE, LOST_AND_FOUND, Layout, ROOT_INODE};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Cursor, Read};
use std::os::unix::fs::FileExt;
use superblock::Usage;

/// The bytes that are copied at a time.
const CHUNK: usize = 1 << 20;
/// The longest name of a directory entry.
const LONGEST_NAME: usize = 255;
/// The longest target of a symbolic link: one block, with its final zero.
const LONGEST_TARGET: usize = BLOCK as usize - 1;

/// Who owns a file, its permissions, and when it was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The lower twelve bits of the mode.
    pub permissions: u16,
    /// The owner.
    pub user: u32,
    /// The group.
    pub group: u32,
    /// The last change of its contents, in seconds since 1970.
    pub modified: u32,
}

/// What a file system is to be called, and when it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Its UUID, as bytes in the order in which it is printed.
    pub uuid: [u8; 16],
    /// Its label.
    pub label: &'static str,
    /// When it was made, in seconds since 1970.
    pub made: u32,
}

/// A device, by its major and minor number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    /// A character device.
    Character(u32, u32),
    /// A block device.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

#[derive(Clone, Debug)]
enum Kind {
    Directory {
        parent: usize,
        entries: BTreeMap<String, usize>,
    },
    File {
        len: u64,
        extents: Vec<Extent>,
    },
    Symlink(String),
    Special(Special),
}

#[derive(Clone, Debug)]
struct Node {
    kind: Kind,
    attributes: Attributes,
    /// Directory entries that name it, without a directory's own.
    links: u32,
}

/// An ext4 file system that is being written. See the [module](self).
#[derive(Debug)]
pub struct Writer<'a> {
    file: &'a File,
    offset: u64,
    identity: Identity,
    layout: Layout,
    blocks: Blocks,
    journal: Vec<Extent>,
    nodes: Vec<Node>,
}

/// The index of the root's node.
const ROOT: usize = 0;

impl<'a> Writer<'a> {
    /// Begins a file system in the `len` bytes of `file` at `offset`, which must be zeroes.
    ///
    /// # Errors
    /// [`ImageError::DiskTooSmall`] below 64 MiB.
    pub fn new(
        file: &'a File,
        offset: u64,
        len: u64,
        identity: Identity,
    ) -> Result<Self, ImageError> {
        let (layout, mut blocks) = Layout::new(len).ok_or(ImageError::DiskTooSmall { len })?;
        let journal = blocks
            .allocate(layout.journal_blocks)
            .ok_or(ImageError::DiskTooSmall { len })?;
        let root = Attributes {
            permissions: 0o755,
            user: 0,
            group: 0,
            modified: identity.made,
        };
        let mut writer = Self {
            file,
            offset,
            identity,
            layout,
            blocks,
            journal,
            nodes: vec![Node {
                kind: Kind::Directory {
                    parent: ROOT,
                    entries: BTreeMap::new(),
                },
                attributes: root,
                links: 0,
            }],
        };
        let lost_and_found = Attributes {
            permissions: 0o700,
            ..root
        };
        writer.directory(LOST_AND_FOUND, lost_and_found)?;
        Ok(writer)
    }

    /// Adds a directory, or changes the attributes of one that is there. A link to a directory that
    /// is there stays.
    ///
    /// # Errors
    /// [`ImageError::BadPlace`] if a part of `path` is no directory.
    pub fn directory(&mut self, path: &str, attributes: Attributes) -> Result<(), ImageError> {
        if path.is_empty() {
            self.nodes[ROOT].attributes = attributes;
            return Ok(());
        }
        let (parent, name) = self.place(path)?;
        if let Some(old) = self.entry(parent, name) {
            match &self.nodes[old].kind {
                Kind::Directory { .. } => self.nodes[old].attributes = attributes,
                Kind::Symlink(_) if self.find_directory(path).is_some() => {}
                _ => return Err(ImageError::BadPlace(path.to_owned())),
            }
            return Ok(());
        }
        let entries = BTreeMap::new();
        self.insert(
            parent,
            name,
            Kind::Directory { parent, entries },
            attributes,
        )
    }

    /// Adds a regular file with all that `contents` has; it replaces another file or a link.
    ///
    /// # Errors
    /// [`ImageError::BadPlace`] if a part of `path` is no directory, or `path` is one;
    /// [`ImageError::DiskFull`]; [`ImageError::Io`] if `contents` cannot be read or the host refuses.
    pub fn file(
        &mut self,
        path: &str,
        attributes: Attributes,
        len: u64,
        contents: &mut dyn Read,
    ) -> Result<(), ImageError> {
        let (parent, name) = self.place(path)?;
        let extents = self.store(path, len, contents)?;
        self.insert(parent, name, Kind::File { len, extents }, attributes)
    }

    /// Adds a symbolic link; it replaces a file or another link, but no directory.
    ///
    /// # Errors
    /// As for [`file`](Self::file).
    pub fn symlink(
        &mut self,
        path: &str,
        target: &str,
        attributes: Attributes,
    ) -> Result<(), ImageError> {
        let (parent, name) = self.place(path)?;
        if target.is_empty() || target.len() > LONGEST_TARGET || target.contains('\0') {
            return Err(ImageError::BadPlace(path.to_owned()));
        }
        let old = self.entry(parent, name);
        if old.is_some_and(|old| matches!(self.nodes[old].kind, Kind::Directory { .. })) {
            return Ok(());
        }
        let attributes = Attributes {
            permissions: 0o777,
            ..attributes
        };
        self.insert(parent, name, Kind::Symlink(target.to_owned()), attributes)
    }

    /// Adds another name of the file `target`.
    ///
    /// # Errors
    /// As for [`file`](Self::file); also if there is no file `target`.
    pub fn hard_link(&mut self, path: &str, target: &str) -> Result<(), ImageError> {
        let bad = || ImageError::BadPlace(path.to_owned());
        let (target_parent, target_name) = self.place(target)?;
        let node = self.entry(target_parent, target_name).ok_or_else(bad)?;
        let (parent, name) = self.place(path)?;
        if matches!(self.nodes[node].kind, Kind::Directory { .. }) {
            return Err(bad());
        }
        self.link(parent, name, node)
    }

    /// Adds a device or a named pipe.
    ///
    /// # Errors
    /// As for [`file`](Self::file).
    pub fn special(
        &mut self,
        path: &str,
        special: Special,
        attributes: Attributes,
    ) -> Result<(), ImageError> {
        let (parent, name) = self.place(path)?;
        self.insert(parent, name, Kind::Special(special), attributes)
    }

    /// Whether there is something at `path`, a link itself and not what it points to.
    pub fn has(&self, path: &str) -> bool {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        self.find_directory(parent)
            .is_some_and(|parent| self.entry(parent, name).is_some())
    }

    /// Puts the contents of a file on the disk.
    fn store(
        &mut self,
        path: &str,
        len: u64,
        contents: &mut dyn Read,
    ) -> Result<Vec<Extent>, ImageError> {
        let count = len.div_ceil(BLOCK);
        let full = || ImageError::DiskFull(path.to_owned());
        let count = u32::try_from(count).map_err(|_| full())?;
        let extents = self.blocks.allocate(count).ok_or_else(full)?;
        let mut buffer = vec![0; CHUNK.min(len as usize)];
        let mut left = len;
        for extent in &extents {
            let mut at = self.offset + u64::from(extent.start) * BLOCK;
            let mut of_extent = left.min(u64::from(extent.len) * BLOCK);
            left -= of_extent;
            while of_extent > 0 {
                let part = buffer.len().min(of_extent as usize);
                let chunk = &mut buffer[..part];
                contents
                    .read_exact(chunk)
                    .map_err(ImageError::io("read", path))?;
                self.file
                    .write_all_at(chunk, at)
                    .map_err(ImageError::io("write", path))?;
                at += chunk.len() as u64;
                of_extent -= chunk.len() as u64;
            }
        }
        Ok(extents)
    }

    fn insert(
        &mut self,
        parent: usize,
        name: &str,
        kind: Kind,
        attributes: Attributes,
    ) -> Result<(), ImageError> {
        self.nodes.push(Node {
            kind,
            attributes,
            links: 0,
        });
        self.link(parent, name, self.nodes.len() - 1)
    }

    /// Makes `name` in the directory `parent` mean `node`.
    fn link(&mut self, parent: usize, name: &str, node: usize) -> Result<(), ImageError> {
        let bad = || ImageError::BadPlace(name.to_owned());
        self.nodes[node].links += 1;
        if let Some(old) = self.entry(parent, name) {
            if matches!(self.nodes[old].kind, Kind::Directory { .. }) {
                return Err(bad());
            }
            self.unlink(old);
        }
        match &mut self.nodes[parent].kind {
            Kind::Directory { entries, .. } => entries.insert(name.to_owned(), node),
            _ => return Err(bad()),
        };
        Ok(())
    }

    /// Takes a name from a node that is no directory; without names its blocks are free.
    fn unlink(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        node.links -= 1;
        if let (0, Kind::File { extents, .. }) = (node.links, &node.kind) {
            self.blocks.release(extents);
        }
    }

    fn entry(&self, parent: usize, name: &str) -> Option<usize> {
        match &self.nodes[parent].kind {
            Kind::Directory { entries, .. } => entries.get(name).copied(),
            _ => None,
        }
    }

    fn write(&self, block: u32, bytes: &[u8]) -> Result<(), ImageError> {
        self.file
            .write_all_at(bytes, self.offset + u64::from(block) * BLOCK)
            .map_err(ImageError::io("write", "the file system"))
    }

    /// Writes everything but the contents of files, and has the host put it on its disk.
    ///
    /// # Errors
    /// [`ImageError::DiskFull`] if the directories or inodes do not fit; [`ImageError::Io`].
    pub fn finish(mut self) -> Result<(), ImageError> {
        let numbers = self.number()?;
        let mut directories = vec![0; self.layout.groups as usize];
        for (index, number) in numbers.iter().enumerate() {
            let Some(number) = *number else { continue };
            if matches!(self.nodes[index].kind, Kind::Directory { .. }) {
                directories[((number - 1) / self.layout.inodes_per_group) as usize] += 1;
            }
            let bytes = self.inode(index, &numbers)?;
            self.write_inode(number, &bytes)?;
        }
        let journal = inode::journal(&self.journal, self.identity.made);
        self.write_inode(JOURNAL_INODE, &journal)?;
        if let Some(first) = self.journal.first() {
            let head = superblock::journal(self.layout.journal_blocks, &self.identity.uuid);
            self.write(first.start, &head)?;
        }
        let usage = Usage {
            blocks: self.blocks.used(),
            last_inode: numbers
                .iter()
                .flatten()
                .copied()
                .fold(FIRST_FREE_INODE, u32::max),
            directories: &directories,
        };
        superblock::write(&self, &usage, &inode::journal_backup(&journal))?;
        self.file
            .sync_all()
            .map_err(ImageError::io("write", "the file system"))
    }

    /// Numbers for the inodes of all nodes that have a name; the root's is 2.
    fn number(&self) -> Result<Vec<Option<u32>>, ImageError> {
        let mut next = FIRST_FREE_INODE;
        let mut numbers = Vec::with_capacity(self.nodes.len());
        for (index, node) in self.nodes.iter().enumerate() {
            let number = match index {
                ROOT => Some(ROOT_INODE),
                _ if node.links == 0 => None,
                _ => {
                    next += 1;
                    Some(next - 1)
                }
            };
            numbers.push(number);
        }
        if next - 1 > self.layout.inodes() {
            return Err(ImageError::DiskFull("the table of inodes".to_owned()));
        }
        Ok(numbers)
    }

    fn write_inode(&self, number: u32, bytes: &[u8]) -> Result<(), ImageError> {
        self.file
            .write_all_at(bytes, self.offset + self.layout.place_of_inode(number))
            .map_err(ImageError::io("write", "the table of inodes"))
    }

    /// The inode of a node, whose directory blocks or link's target are put on the disk.
    fn inode(&mut self, index: usize, numbers: &[Option<u32>]) -> Result<Vec<u8>, ImageError> {
        let node = &self.nodes[index];
        let attributes = node.attributes;
        let inode = match &node.kind {
            Kind::File { len, extents } => {
                let (extents, links, len) = (extents.clone(), node.links, *len);
                let tree = self.tree(&extents)?;
                inode::file(&attributes, links, len, &tree)
            }
            Kind::Special(special) => inode::special(&attributes, node.links, *special),
            Kind::Symlink(target) if target.len() < inode::INLINE => {
                inode::short_symlink(&attributes, node.links, target)
            }
            Kind::Symlink(target) => {
                let (target, links) = (target.clone(), node.links);
                let extents = self.allocate(1)?;
                let mut block = target.clone().into_bytes();
                block.resize(BLOCK as usize, 0);
                self.write(extents[0].start, &block)?;
                let tree = self.tree(&extents)?;
                inode::symlink(&attributes, links, target.len() as u64, &tree)
            }
            Kind::Directory { .. } => return self.directory_inode(index, numbers),
        };
        Ok(inode)
    }

    fn directory_inode(
        &mut self,
        index: usize,
        numbers: &[Option<u32>],
    ) -> Result<Vec<u8>, ImageError> {
        let Node {
            kind, attributes, ..
        } = &self.nodes[index];
        let attributes = *attributes;
        let Kind::Directory { parent, entries } = kind else {
            return Err(ImageError::BadPlace("a directory".to_owned()));
        };
        let number = |node: usize| numbers.get(node).copied().flatten().unwrap_or(ROOT_INODE);
        let mut blocks = DirectoryBlocks::new(number(index), number(*parent));
        let mut subdirectories = 0;
        for (name, node) in entries {
            let kind = inode::entry_type(&self.nodes[*node].kind);
            subdirectories += u32::from(kind == inode::ENTRY_DIRECTORY);
            blocks.add(name, number(*node), kind);
        }
        let blocks = blocks.finish();
        let extents = self.allocate(blocks.len() as u32)?;
        let places = extents.iter().flat_map(|e| e.start..e.start + e.len);
        for (place, block) in places.zip(&blocks) {
            self.write(place, block)?;
        }
        let tree = self.tree(&extents)?;
        let len = blocks.len() as u64 * BLOCK;
        Ok(inode::directory(
            &attributes,
            subdirectories + 2,
            len,
            &tree,
        ))
    }

    fn allocate(&mut self, count: u32) -> Result<Vec<Extent>, ImageError> {
        self.blocks
            .allocate(count)
            .ok_or_else(|| ImageError::DiskFull("a directory".to_owned()))
    }

    /// The tree of `extents`, whose leaf is put on the disk if it does not fit into the inode.
    fn tree(&mut self, extents: &[Extent]) -> Result<inode::ExtentTree, ImageError> {
        if extents.len() <= inode::MOST_INLINE_EXTENTS {
            return Ok(inode::ExtentTree::inline(extents));
        }
        let leaf = self.allocate(1)?[0].start;
        let block = inode::leaf(extents)
            .ok_or_else(|| ImageError::DiskFull("a file of many pieces".to_owned()))?;
        self.write(leaf, &block)?;
        Ok(inode::ExtentTree::with_leaf(extents, leaf))
    }
}

impl Writer<'_> {
    /// Adds a regular file whose contents are in memory.
    ///
    /// # Errors
    /// As for [`file`](Self::file).
    pub fn small_file(
        &mut self,
        path: &str,
        attributes: Attributes,
        contents: &[u8],
    ) -> Result<(), ImageError> {
        let mut reader = Cursor::new(contents);
        self.file(path, attributes, contents.len() as u64, &mut reader)
    }
}

#[cfg(test)]
mod tests;
