//! How the engine is set up: the sizes that users get, and those that make what is rare happen all
//! the time.

use belljar_interpreter::tlb;
use std::num::NonZeroU32;

/// The least code memory, in bytes: room for the shared code and a few of the largest blocks.
const LEAST_CODE_MEMORY: usize = 256 << 10;
/// The most code memory, in bytes: what a displacement of 32 bits reaches by far.
const MOST_CODE_MEMORY: usize = 1 << 30;

/// Sizes and habits of the engine. A guest cannot tell one tuning from another, but by the time
/// that it takes. [`Tuning::default`] is for users; the others make rare events frequent, so that
/// tests meet them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Bytes of code memory of each vCPU: from 256 KiB to 1 GiB. When it is full, all translations
    /// are dropped.
    pub code_memory: usize,
    /// The most instructions of a block: from 1 to 32.
    pub most_instructions: usize,
    /// Entries of each set of the software TLB: a power of two from [`tlb::LEAST_SIZE`] to
    /// [`tlb::SIZE`].
    pub tlb_entries: usize,
    /// Drops everything that the software TLB, the jump caches and the cells hold, each time that
    /// generated code has been entered this often.
    pub flush_every: Option<NonZeroU32>,
    /// Drops all translations, each time that generated code has been entered this often.
    pub evict_every: Option<NonZeroU32>,
    /// Makes generated code leave at the next look at the attention word, each time that it has
    /// been entered this often.
    pub exit_every: Option<NonZeroU32>,
    /// Programs get windows when they have been seen running so often; they never do if there is no
    /// number.
    pub patience: Option<u32>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self::USUAL
    }
}

impl Tuning {
    /// What users get.
    pub const USUAL: Self = Self {
        code_memory: 96 << 20,
        most_instructions: crate::block::MOST,
        tlb_entries: tlb::SIZE,
        flush_every: None,
        evict_every: None,
        exit_every: None,
        patience: Some(25),
    };

    /// The tunings under which the engine is tested, with their names.
    pub const STRESSED: [(&str, Self); 8] = [
        (
            "tiny-code",
            Self {
                code_memory: LEAST_CODE_MEMORY,
                ..Self::USUAL
            },
        ),
        (
            "tiny-tlb",
            Self {
                tlb_entries: tlb::LEAST_SIZE,
                ..Self::USUAL
            },
        ),
        (
            "single",
            Self {
                most_instructions: 1,
                ..Self::USUAL
            },
        ),
        (
            "flush",
            Self {
                flush_every: NonZeroU32::new(5),
                ..Self::USUAL
            },
        ),
        (
            "evict",
            Self {
                evict_every: NonZeroU32::new(499),
                ..Self::USUAL
            },
        ),
        (
            "exit",
            Self {
                exit_every: NonZeroU32::new(1),
                ..Self::USUAL
            },
        ),
        (
            "windows",
            Self {
                patience: Some(0),
                ..Self::USUAL
            },
        ),
        (
            "everything",
            Self {
                code_memory: LEAST_CODE_MEMORY,
                most_instructions: 3,
                tlb_entries: tlb::LEAST_SIZE,
                flush_every: NonZeroU32::new(61),
                evict_every: NonZeroU32::new(4001),
                exit_every: NonZeroU32::new(11),
                patience: Some(0),
            },
        ),
    ];

    /// The stressed tuning of that name.
    pub fn stressed(name: &str) -> Option<Self> {
        let mut all = Self::STRESSED.iter();
        all.find(|(other, _)| *other == name)
            .map(|(_, tuning)| *tuning)
    }

    /// The tuning with each size brought into its range.
    pub(crate) fn within_range(self) -> Self {
        let entries = self.tlb_entries.clamp(tlb::LEAST_SIZE, tlb::SIZE);
        Self {
            code_memory: self.code_memory.clamp(LEAST_CODE_MEMORY, MOST_CODE_MEMORY),
            most_instructions: self.most_instructions.clamp(1, crate::block::MOST),
            tlb_entries: 1 << entries.ilog2(),
            ..self
        }
    }
}

/// What is to be done before generated code is entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Due {
    /// [`Tuning::flush_every`]
    pub flush: bool,
    /// [`Tuning::evict_every`]
    pub evict: bool,
    /// [`Tuning::exit_every`]
    pub exit: bool,
}

/// Counts entries into generated code, and says what is due.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stress {
    periods: [Option<NonZeroU32>; 3],
    /// Whether anything is ever due.
    on: bool,
    entries: u32,
    /// Whether the last question of [`comes_between`](Self::comes_between) got a yes.
    passed: bool,
}

impl Stress {
    /// What `tuning` wants.
    pub const fn new(tuning: &Tuning) -> Self {
        let periods = [tuning.flush_every, tuning.evict_every, tuning.exit_every];
        Self {
            periods,
            on: periods[0].is_some() || periods[1].is_some() || periods[2].is_some(),
            entries: 0,
            passed: false,
        }
    }

    /// Whether something else must come between two entries: half the time, if anything is ever due.
    #[inline]
    pub fn comes_between(&mut self) -> bool {
        self.on && {
            self.passed = !self.passed;
            self.passed
        }
    }

    /// What is due at the next entry, which is counted; `None` if nothing ever is.
    #[inline]
    pub fn next(&mut self) -> Option<Due> {
        if !self.on {
            return None;
        }
        self.entries = self.entries.wrapping_add(1);
        let [flush, evict, exit] = self
            .periods
            .map(|period| period.is_some_and(|period| self.entries.is_multiple_of(period.get())));
        Some(Due { flush, evict, exit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_out_of_range_are_brought_into_it() {
        let none = Tuning {
            code_memory: 0,
            most_instructions: 0,
            tlb_entries: 0,
            ..Tuning::default()
        }
        .within_range();
        assert_eq!(none.code_memory, LEAST_CODE_MEMORY);
        assert_eq!((none.most_instructions, none.tlb_entries), (1, 8));
        let much = Tuning {
            code_memory: usize::MAX,
            most_instructions: 65,
            tlb_entries: 1023,
            ..Tuning::default()
        }
        .within_range();
        assert_eq!(much.code_memory, MOST_CODE_MEMORY);
        assert_eq!(
            (much.most_instructions, much.tlb_entries),
            (crate::block::MOST, 512)
        );
    }

    #[test]
    fn tunings_are_within_their_ranges() {
        for (name, tuning) in Tuning::STRESSED {
            assert_eq!(tuning.within_range(), tuning, "{name}");
            assert_eq!(Tuning::stressed(name), Some(tuning));
        }
        assert_eq!(Tuning::default().within_range(), Tuning::default());
    }

    #[test]
    fn what_is_periodic_falls_due_in_its_period() {
        let mut stress = Stress::new(&Tuning {
            flush_every: NonZeroU32::new(3),
            exit_every: NonZeroU32::new(1),
            ..Tuning::default()
        });
        let due: Vec<Due> = (0..6).filter_map(|_| stress.next()).collect();
        assert_eq!(due.iter().filter(|due| due.flush).count(), 2);
        assert_eq!(due.iter().filter(|due| due.exit).count(), 6);
        assert!(due.iter().all(|due| !due.evict));
        assert_eq!(Stress::new(&Tuning::default()).next(), None);
    }
}
