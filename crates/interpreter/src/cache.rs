//! The cache of decoded blocks.
//!
//! A block is a straight run of instructions of one page (or one instruction that crosses into a
//! second). It is found by its instruction pointer, code segment and mode, and holds as long as its
//! page translates to the same page of RAM and that page is unchanged. Direct branches remember the
//! block that they last led to, and so does the end of a block.

use crate::op::Op;
use belljar_memory::CodePages;

/// Slots of the lookup table.
const TABLE: usize = 1 << 16;
/// The most ops that are kept where nothing else is said.
const MOST_OPS: usize = 1 << 20;
/// The most blocks are so many times fewer.
const OPS_PER_BLOCK: usize = 8;
/// No block, no page.
pub const NONE: u32 = u32::MAX;

/// What a block is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Instruction pointer.
    pub rip: u64,
    /// Base of the code segment; 0 in 64-bit code.
    pub base: u64,
    /// Limit of the code segment; 0 in 64-bit code.
    pub limit: u32,
    /// The mode; see [`Core::mode`](crate::processor::Core::mode).
    pub mode: u32,
}

impl Key {
    #[inline(always)]
    fn slot(&self) -> usize {
        let hash = (self.rip ^ self.base).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> 40) as usize ^ (self.mode as usize & 16)
    }

    /// Linear address of the block's first byte.
    pub const fn linear(&self) -> u64 {
        self.rip.wrapping_add(self.base)
    }
}

/// A page of RAM as it was when code was decoded from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Index of the page, or `u32::MAX`.
    pub page: u32,
    /// Its generation.
    pub generation: u32,
}

impl Source {
    /// No page.
    pub const ABSENT: Self = Self {
        page: NONE,
        generation: 0,
    };

    /// Whether the page is still as it was.
    #[inline(always)]
    pub fn is_current(&self, code: &CodePages) -> bool {
        code.generation(self.page as usize) == self.generation
    }
}

/// A run of instructions.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// What it is found by.
    pub key: Key,
    /// [`Mmu::epoch`](crate::mmu::Mmu::epoch) when its pages were last seen to be those of `first`
    /// and `second`.
    pub epoch: u64,
    /// The page of its first byte; absent if that is not RAM, when the block is good for one run.
    pub first: Source,
    /// The page of its last byte if that is another.
    pub second: Source,
    /// Index of its first op.
    pub start: u32,
    /// Number of its ops.
    pub count: u32,
    /// Length in bytes.
    pub length: u32,
    /// The link to what follows its end.
    pub link: u32,
}

/// All decoded blocks of one vCPU.
#[derive(Debug)]
pub struct Cache {
    /// The most ops that are kept. When they, or as many blocks as go with them, are there, everything
    /// is dropped; until then blocks stay that no longer hold.
    pub most_ops: usize,
    table: Box<[u32]>,
    /// The blocks.
    pub blocks: Vec<Block>,
    /// Their ops.
    pub ops: Vec<Op>,
    links: Vec<u32>,
}

impl Cache {
    /// An empty cache.
    pub fn new() -> Self {
        Self {
            most_ops: MOST_OPS,
            table: vec![NONE; TABLE].into(),
            blocks: Vec::new(),
            ops: Vec::new(),
            links: Vec::new(),
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.table.fill(NONE);
        self.blocks.clear();
        self.ops.clear();
        self.links.clear();
    }

    /// Whether another block may not fit.
    pub fn is_full(&self) -> bool {
        self.blocks.len() >= self.most_ops / OPS_PER_BLOCK || self.ops.len() >= self.most_ops
    }

    /// Whether block `id` may run without another look at its translation.
    #[inline(always)]
    pub fn is_valid(&self, id: u32, epoch: u64, code: &CodePages) -> bool {
        let Some(block) = self.blocks.get(id as usize) else {
            return false;
        };
        block.epoch == epoch
            && block.first.is_current(code)
            && (block.second.page == NONE || block.second.is_current(code))
    }

    /// The blocks that may be that of `key`, whether or not they still hold.
    #[inline]
    pub fn candidates(&self, key: &Key) -> [u32; 2] {
        let slot = key.slot();
        [slot, slot ^ 1].map(|slot| {
            let id = self.table[slot % TABLE];
            match self.blocks.get(id as usize) {
                Some(block) if block.key == *key => id,
                _ => NONE,
            }
        })
    }

    /// Whether the pages of block `id` are unchanged.
    pub fn is_unchanged(&self, id: u32, code: &CodePages) -> bool {
        self.blocks.get(id as usize).is_some_and(|block| {
            block.first.page != NONE
                && block.first.is_current(code)
                && (block.second.page == NONE || block.second.is_current(code))
        })
    }

    /// Enters a block, in the place of `old` if that is one.
    pub fn insert(&mut self, block: Block, old: [u32; 2]) -> u32 {
        let id = self.blocks.len() as u32;
        let slot = block.key.slot();
        self.blocks.push(block);
        if block.first.page != NONE {
            // A block of the same key that no longer holds gives way first, then the one of the
            // second slot moves out.
            let place = if old[0] != NONE {
                slot
            } else if old[1] != NONE {
                slot ^ 1
            } else {
                self.table[(slot ^ 1) % TABLE] = self.table[slot % TABLE];
                slot
            };
            self.table[place % TABLE] = id;
        }
        id
    }

    /// A new link, which leads nowhere yet.
    pub fn new_link(&mut self) -> u32 {
        self.links.push(NONE);
        self.links.len() as u32 - 1
    }

    /// The block to which `link` leads, or [`NONE`].
    #[inline(always)]
    pub fn follow(&self, link: u32) -> u32 {
        self.links.get(link as usize).copied().unwrap_or(NONE)
    }

    /// Lets `link` lead to block `id`.
    pub fn set_link(&mut self, link: u32, id: u32) {
        if let Some(link) = self.links.get_mut(link as usize) {
            *link = id;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(rip: u64) -> Block {
        Block {
            key: Key {
                rip,
                base: 0,
                limit: 0,
                mode: 0,
            },
            epoch: 0,
            first: Source {
                page: 1,
                generation: 0,
            },
            second: Source::ABSENT,
            start: 0,
            count: 0,
            length: 1,
            link: NONE,
        }
    }

    #[test]
    fn a_cache_is_full_at_its_bound_also_of_blocks_that_replace_others() {
        let mut cache = Cache::new();
        cache.most_ops = 80;
        let mut old = [NONE; 2];
        for _ in 0..10 {
            assert!(!cache.is_full());
            // The same code, changed again and again.
            old = [cache.insert(block(0x1000), old), NONE];
        }
        assert!(cache.is_full());
        cache.clear();
        assert!(!cache.is_full());
        assert_eq!(cache.candidates(&block(0x1000).key), [NONE; 2]);
    }
}
