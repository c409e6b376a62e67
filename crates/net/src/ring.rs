//! Bytes on their way, in rings that grow and share one budget.

use std::io::{IoSlice, IoSliceMut};

/// What every ring may have, however little of the budget is left.
pub(crate) const SMALLEST: usize = 4 << 10;
/// The size that a ring begins with while there is budget.
const FIRST: usize = 16 << 10;
/// How much larger a ring becomes when it grows.
const GROWTH: usize = 4;

/// The bytes that all rings of a network may have together, beyond [`SMALLEST`] for each.
#[derive(Debug)]
pub(crate) struct Budget {
    left: usize,
}

impl Budget {
    pub fn new(bytes: usize) -> Self {
        Self { left: bytes }
    }

    /// Whether rings should give back what they do not need.
    pub fn is_short(&self, whole: usize) -> bool {
        self.left < whole / 8
    }
}

/// A ring of bytes.
#[derive(Debug)]
pub(crate) struct Ring {
    bytes: Box<[u8]>,
    start: usize,
    len: usize,
    most: usize,
    /// What the ring has taken from the budget.
    charged: usize,
}

impl Ring {
    /// An empty ring that never has more than `most` bytes.
    pub fn new(most: usize) -> Self {
        Self {
            bytes: Box::default(),
            start: 0,
            len: 0,
            most: most.max(SMALLEST),
            charged: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that can be put without that the ring grows.
    pub fn free(&self) -> usize {
        self.bytes.len() - self.len
    }

    /// Makes room for more bytes if the budget allows; whether there is room.
    pub fn grow(&mut self, budget: &mut Budget) -> bool {
        let old = self.bytes.len();
        if old >= self.most {
            return self.free() > 0;
        }
        let wanted = match old {
            0 => FIRST,
            old => old.saturating_mul(GROWTH),
        }
        .min(self.most);
        let size = if wanted - old <= budget.left {
            budget.left -= wanted - old;
            self.charged += wanted - old;
            wanted
        } else if old == 0 {
            SMALLEST
        } else {
            return self.free() > 0;
        };
        let mut bytes = vec![0; size].into_boxed_slice();
        let (first, second) = self.range(0, self.len);
        let (at, rest) = bytes.split_at_mut(first.len());
        at.copy_from_slice(first);
        rest[..second.len()].copy_from_slice(second);
        self.bytes = bytes;
        self.start = 0;
        true
    }

    /// Gives the bytes of the ring back to the budget, if it is empty.
    pub fn give_back(&mut self, budget: &mut Budget) {
        if self.len == 0 {
            self.bytes = Box::default();
            self.start = 0;
            budget.left += std::mem::take(&mut self.charged);
        }
    }

    /// Gives everything back: the ring is not used any more.
    pub fn discard(&mut self, budget: &mut Budget) {
        self.len = 0;
        self.give_back(budget);
    }

    /// The free bytes, to be read into; [`commit`](Self::commit) tells how many were.
    pub fn spare(&mut self) -> [IoSliceMut<'_>; 2] {
        let size = self.bytes.len();
        if self.len == 0 {
            self.start = 0;
        }
        let end = self.start + self.len;
        if end >= size {
            let (end, start) = (end - size, self.start);
            [
                IoSliceMut::new(&mut self.bytes[end..start]),
                IoSliceMut::new(&mut []),
            ]
        } else {
            let (head, tail) = self.bytes.split_at_mut(end);
            [
                IoSliceMut::new(tail),
                IoSliceMut::new(&mut head[..self.start]),
            ]
        }
    }

    /// `count` of the [`spare`](Self::spare) bytes now hold data.
    pub fn commit(&mut self, count: usize) {
        self.len += count.min(self.free());
    }

    /// Appends as much of `data` as there is room for; how much that was.
    pub fn put(&mut self, data: &[u8], budget: &mut Budget) -> usize {
        while self.free() < data.len() {
            let before = self.bytes.len();
            self.grow(budget);
            if self.bytes.len() == before {
                break;
            }
        }
        let count = data.len().min(self.free());
        let mut from = &data[..count];
        for part in &mut self.spare() {
            let now = part.len().min(from.len());
            part[..now].copy_from_slice(&from[..now]);
            from = &from[now..];
        }
        self.commit(count);
        count
    }

    /// The `len` bytes that follow the first `offset`, in two parts.
    pub fn range(&self, offset: usize, len: usize) -> (&[u8], &[u8]) {
        let offset = offset.min(self.len);
        let len = len.min(self.len - offset);
        let size = self.bytes.len();
        let mut from = self.start + offset;
        if from >= size {
            from -= size;
        }
        if from + len <= size {
            (&self.bytes[from..from + len], &[])
        } else {
            (&self.bytes[from..], &self.bytes[..from + len - size])
        }
    }

    /// All bytes, to be written from.
    pub fn filled(&self) -> [IoSlice<'_>; 2] {
        let (first, second) = self.range(0, self.len);
        [IoSlice::new(first), IoSlice::new(second)]
    }

    /// Drops the first `count` bytes.
    pub fn consume(&mut self, count: usize) {
        let count = count.min(self.len);
        self.len -= count;
        self.start += count;
        if self.start >= self.bytes.len() {
            self.start -= self.bytes.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[test]
    fn an_exhausted_budget_leaves_the_smallest_ring() {
        let mut budget = Budget::new(100);
        let mut ring = Ring::new(1 << 20);
        assert_eq!(ring.put(&[7; 10_000], &mut budget), SMALLEST);
        ring.discard(&mut budget);
        assert_eq!(budget.left, 100);
    }

    proptest! {
        #[test]
        fn a_ring_is_a_queue(
            steps in proptest::collection::vec((any::<bool>(), 0usize..9000), 0..60),
            whole in 0usize..100_000,
        ) {
            let mut budget = Budget::new(whole);
            let mut ring = Ring::new(40_000);
            let mut model = VecDeque::new();
            let mut next = 0u8;
            for (put, count) in steps {
                if put {
                    let data: Vec<u8> = (0..count).map(|_| { next = next.wrapping_add(1); next }).collect();
                    let taken = ring.put(&data, &mut budget);
                    model.extend(&data[..taken]);
                } else {
                    ring.consume(count);
                    model.drain(..count.min(model.len()));
                    if count % 3 == 0 {
                        ring.give_back(&mut budget);
                    }
                }
                prop_assert_eq!(ring.len(), model.len());
                let offset = count / 2;
                let (a, b) = ring.range(offset, count);
                let got: Vec<u8> = a.iter().chain(b).copied().collect();
                let want: Vec<u8> = model.iter().skip(offset).take(count).copied().collect();
                prop_assert_eq!(got, want);
            }
            ring.discard(&mut budget);
            prop_assert_eq!(budget.left, whole);
        }
    }
}
