//! Directories: blocks of entries, in the linear form that every ext4 reads.

use super::inode::{ENTRY_DIRECTORY, put16, put32};
use super::layout::BLOCK;

/// Bytes of an entry before its name.
const HEADER: usize = 8;
const BLOCK_LEN: usize = BLOCK as usize;

/// The blocks of a directory that is being written.
#[derive(Debug)]
pub(super) struct DirectoryBlocks {
    full: Vec<Vec<u8>>,
    block: Vec<u8>,
    /// Where the last entry of the block begins; it is made to reach to the block's end.
    last: usize,
}

impl DirectoryBlocks {
    /// A directory with nothing but itself and its parent.
    pub(super) fn new(inode: u32, parent: u32) -> Self {
        let mut blocks = Self {
            full: Vec::new(),
            block: Vec::new(),
            last: 0,
        };
        blocks.add(".", inode, ENTRY_DIRECTORY);
        blocks.add("..", parent, ENTRY_DIRECTORY);
        blocks
    }

    /// Adds an entry, whose name has 255 bytes at most.
    pub(super) fn add(&mut self, name: &str, inode: u32, kind: u8) {
        let len = (HEADER + name.len()).next_multiple_of(4);
        if self.block.len() + len > BLOCK_LEN {
            self.close();
        }
        self.last = self.block.len();
        let mut entry = vec![0; len];
        put32(&mut entry, 0, inode);
        put16(&mut entry, 4, len as u16);
        entry[6] = name.len() as u8;
        entry[7] = kind;
        entry[HEADER..HEADER + name.len()].copy_from_slice(name.as_bytes());
        self.block.extend_from_slice(&entry);
    }

    fn close(&mut self) {
        let mut block = std::mem::take(&mut self.block);
        block.resize(BLOCK_LEN, 0);
        put16(&mut block, self.last + 4, (BLOCK_LEN - self.last) as u16);
        self.full.push(block);
    }

    /// The blocks.
    pub(super) fn finish(mut self) -> Vec<Vec<u8>> {
        self.close();
        self.full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_fill_their_blocks_to_the_end() {
        let mut blocks = DirectoryBlocks::new(12, 2);
        for index in 0..600 {
            blocks.add(&format!("name {index}"), 100 + index, 1);
        }
        let mut names = 0;
        for block in blocks.finish() {
            assert_eq!(block.len(), BLOCK_LEN);
            let mut at = 0;
            while at < block.len() {
                let len = u16::from_le_bytes([block[at + 4], block[at + 5]]) as usize;
                assert!(len >= HEADER + usize::from(block[at + 6]) && len.is_multiple_of(4));
                at += len;
                names += 1;
            }
            assert_eq!(at, block.len());
        }
        assert_eq!(names, 602);
    }
}
