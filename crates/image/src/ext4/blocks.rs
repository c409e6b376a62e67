//! Which blocks are in use. They are given out in ascending order and in as few pieces as can be.

use super::layout::LONGEST_EXTENT;
use std::ops::Range;

/// Neighbouring blocks of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// The first block.
    pub(super) start: u32,
    /// How many they are, [`LONGEST_EXTENT`] at most.
    pub(super) len: u32,
}

/// The blocks of a file system.
#[derive(Clone, Debug)]
pub(super) struct Blocks {
    used: Vec<bool>,
    /// No block below it is given out any more.
    next: u32,
}

impl Blocks {
    /// `count` free blocks.
    pub(super) fn new(count: u32) -> Self {
        Self {
            used: vec![false; count as usize],
            next: 0,
        }
    }

    /// Takes blocks that have a fixed place.
    pub(super) fn reserve(&mut self, blocks: Range<u32>) {
        self.mark(blocks, true);
    }

    /// Gives `count` blocks; `None` if there are not so many.
    pub(super) fn allocate(&mut self, mut count: u32) -> Option<Vec<Extent>> {
        let mut extents = Vec::new();
        while count > 0 {
            let free = self.next_free(count.min(LONGEST_EXTENT))?;
            let (start, len) = (free.start, free.end - free.start);
            self.take(free);
            extents.push(Extent { start, len });
            count -= len;
        }
        Some(extents)
    }

    /// Gives `count` neighbouring blocks; `None` if there are not so many.
    pub(super) fn allocate_together(&mut self, count: u32) -> Option<u32> {
        loop {
            let free = self.next_free(count)?;
            if free.end - free.start == count {
                let start = free.start;
                self.take(free);
                return Some(start);
            }
            self.next = free.end;
        }
    }

    /// Takes blocks back. They are not given out again.
    pub(super) fn release(&mut self, extents: &[Extent]) {
        for extent in extents {
            self.mark(extent.start..extent.start + extent.len, false);
        }
    }

    /// Whether each block is in use.
    pub(super) fn used(&self) -> &[bool] {
        &self.used
    }

    /// The first free blocks that are not below the next one, `most` at most.
    fn next_free(&self, most: u32) -> Option<Range<u32>> {
        let from = self.used.get(self.next as usize..)?;
        let start = self.next + from.iter().position(|used| !used)? as u32;
        let free = self.used[start as usize..].iter().take(most as usize);
        let len = free.take_while(|used| !**used).count() as u32;
        Some(start..start + len)
    }

    fn take(&mut self, blocks: Range<u32>) {
        self.next = blocks.end;
        self.mark(blocks, true);
    }

    fn mark(&mut self, blocks: Range<u32>, used: bool) {
        let end = (blocks.end as usize).min(self.used.len());
        if let Some(blocks) = self.used.get_mut(blocks.start as usize..end) {
            blocks.fill(used);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_long_file_goes_around_what_has_a_fixed_place() {
        let mut blocks = Blocks::new(20);
        blocks.reserve(0..2);
        blocks.reserve(5..6);
        let extents = blocks.allocate(5).unwrap();
        assert_eq!(
            extents,
            [Extent { start: 2, len: 3 }, Extent { start: 6, len: 2 }]
        );
        assert_eq!(blocks.allocate_together(12), Some(8));
        assert_eq!(blocks.allocate(1), None);
    }

    #[test]
    fn neighbours_that_do_not_fit_before_a_fixed_place_come_after_it() {
        let mut blocks = Blocks::new(20);
        blocks.reserve(3..4);
        assert_eq!(blocks.allocate_together(5), Some(4));
        assert!(!blocks.used()[0], "what was passed over is free");
        assert_eq!(blocks.allocate_together(12), None);
    }

    proptest! {
        #[test]
        fn no_block_is_given_twice(
            fixed in prop::collection::vec((0_u32..300, 1_u32..20), 0..6),
            counts in prop::collection::vec((1_u32..40, any::<bool>()), 0..20),
        ) {
            let mut blocks = Blocks::new(300);
            let mut taken = vec![false; 300];
            for (start, len) in fixed {
                blocks.reserve(start..start + len);
                for at in start..(start + len).min(300) {
                    taken[at as usize] = true;
                }
            }
            for (count, together) in counts {
                let extents = if together {
                    blocks.allocate_together(count).map(|start| vec![Extent { start, len: count }])
                } else {
                    blocks.allocate(count)
                };
                let Some(extents) = extents else { break };
                prop_assert_eq!(extents.iter().map(|e| e.len).sum::<u32>(), count);
                for extent in extents {
                    for at in extent.start..extent.start + extent.len {
                        prop_assert!(!std::mem::replace(&mut taken[at as usize], true));
                        prop_assert!(blocks.used()[at as usize]);
                    }
                }
            }
        }
    }
}
