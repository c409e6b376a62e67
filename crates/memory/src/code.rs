//! Which pages of RAM hold code that an engine has cached, and how often they changed.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// Bit 0 of a page's word: some engine holds code decoded from the page as it is.
const CACHED: u32 = 1;

/// One word per page of RAM: bit 0 tells that cached code exists, the rest counts changes.
///
/// The protocol: an engine calls [`mark`](Self::mark) *before* it reads the bytes to decode and
/// remembers the word that it returns; the cached code is valid as long as
/// [`generation`](Self::generation) still gives that word. Whoever writes to the page calls
/// [`changed`](Self::changed) *after* the write; this costs a fence and a load where no code is
/// cached. An engine that writes through a software TLB must not keep a fast path to a page that
/// [`is_code`](Self::is_code).
#[derive(Debug)]
pub struct CodePages {
    words: Box<[AtomicU32]>,
    /// How often cached code became invalid, over all pages.
    changes: AtomicU64,
}

impl CodePages {
    pub(crate) fn new(pages: usize) -> Self {
        Self {
            words: (0..pages).map(|_| AtomicU32::new(0)).collect(),
            changes: AtomicU64::new(0),
        }
    }

    /// Number of pages of RAM.
    pub fn pages(&self) -> usize {
        self.words.len()
    }

    /// Says that code from page `page` is about to be cached. Returns the generation to remember,
    /// and whether this call was the first to mark the page since its last change (then other
    /// writers may hold a fast path to it).
    pub fn mark(&self, page: usize) -> (u32, bool) {
        let old = self.words[page].fetch_or(CACHED, Ordering::SeqCst);
        (old | CACHED, old & CACHED == 0)
    }

    /// The page's present generation.
    #[inline]
    pub fn generation(&self, page: usize) -> u32 {
        self.words[page].load(Ordering::Acquire)
    }

    /// Whether code of this page is cached.
    #[inline]
    pub fn is_code(&self, page: usize) -> bool {
        self.generation(page) & CACHED != 0
    }

    /// Says that page `page` was written to. Returns whether code was cached from it (which is now
    /// invalid).
    #[inline]
    pub fn changed(&self, page: usize) -> bool {
        // The write itself must not come after the load: an engine that marks the page between the
        // two would miss the write, and its mark would be missed here.
        fence(Ordering::SeqCst);
        self.drop_code(page)
    }

    /// Says the same of all `pages`, for one fence.
    pub(crate) fn changed_range(&self, pages: Range<usize>) {
        fence(Ordering::SeqCst);
        for page in pages {
            self.drop_code(page);
        }
    }

    #[inline]
    fn drop_code(&self, page: usize) -> bool {
        if self.words[page].load(Ordering::SeqCst) & CACHED == 0 {
            return false;
        }
        let changed = self.words[page]
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |word| {
                (word & CACHED != 0).then(|| (word & !CACHED).wrapping_add(2))
            })
            .is_ok();
        if changed {
            self.changes.fetch_add(1, Ordering::SeqCst);
        }
        changed
    }

    /// How often cached code became invalid, whatever its page: for engines that look for invalid
    /// code only when there may be some.
    #[inline]
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_invalidates_the_remembered_generation() {
        let pages = CodePages::new(2);
        let (generation, first) = pages.mark(1);
        assert!(first);
        assert_eq!(pages.mark(1), (generation, false));
        assert!(pages.changed(1));
        assert_ne!(pages.generation(1), generation);
        assert!(!pages.is_code(1));
        assert_ne!(pages.mark(1).0, generation);
    }

    #[test]
    fn a_change_of_a_page_without_code_is_free() {
        let pages = CodePages::new(1);
        assert!(!pages.changed(0));
        assert_eq!(pages.generation(0), 0);
    }
}
