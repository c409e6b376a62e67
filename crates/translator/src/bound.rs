//! Where pages of relative code are mapped.

use belljar_memory::PAGE_SIZE;

/// The bits of a word below an address, which hold the time of the note.
const STAMP: u64 = PAGE_SIZE - 1;

/// A note for each page of RAM: where its relative code was run last.
#[derive(Debug)]
pub struct Bound {
    /// By page: its address, and when it was noted in the bits below.
    notes: Vec<u64>,
    stamp: u64,
}

/// What was known about a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is mapped there.
    Known,
    /// Nothing.
    New,
    /// It is mapped elsewhere.
    Elsewhere,
}

impl Bound {
    /// No notes.
    pub const fn new() -> Self {
        Self {
            notes: Vec::new(),
            stamp: 1,
        }
    }

    /// What is known about page `page` of RAM at `mapped`.
    #[inline]
    pub fn look(&self, page: u32, mapped: u64) -> Place {
        match self.notes.get(page as usize) {
            Some(note) if *note == mapped | self.stamp => Place::Known,
            Some(note) if note & STAMP == self.stamp => Place::Elsewhere,
            _ => Place::New,
        }
    }

    /// Notes that page `page` of the `pages` of RAM is mapped at `mapped`.
    pub fn note(&mut self, page: u32, mapped: u64, pages: usize) {
        if self.notes.is_empty() {
            // Fresh memory costs nothing until it is used.
            self.notes = vec![0; pages];
        }
        if let Some(note) = self.notes.get_mut(page as usize) {
            *note = mapped | self.stamp;
        }
    }

    /// Forgets all notes.
    pub fn forget(&mut self) {
        self.stamp += 1;
        if self.stamp > STAMP {
            *self = Self::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_hold_until_they_are_forgotten() {
        let mut bound = Bound::new();
        assert_eq!(bound.look(3, 0x5000), Place::New);
        bound.note(3, 0x5000, 8);
        assert_eq!(bound.look(3, 0x5000), Place::Known);
        assert_eq!(bound.look(3, 0x6000), Place::Elsewhere);
        for _ in 0..2 * STAMP {
            bound.forget();
            assert_eq!(bound.look(3, 0x5000), Place::New);
        }
    }
}
