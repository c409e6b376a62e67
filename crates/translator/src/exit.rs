//! Why generated code comes back.

/// Why generated code was left. The environment holds it as one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A direct jump within a page that leads nowhere yet, by its link.
    Link(u32),
    /// A jump to another page whose cell is empty.
    Cell(u32),
    /// An indirect jump that missed the jump cache.
    Indirect,
    /// The instruction at a site must be executed by the interpreter.
    Fallback(u32),
    /// The attention word asks for something, before the instruction at a site.
    Poll(u32),
    /// The budget does not cover the block that begins at a site.
    Budget(u32),
    /// The host raised an exception.
    Fault,
}

const SHIFT: u32 = 28;

impl Exit {
    /// Sites, links and cells have numbers below this.
    pub const LIMIT: u32 = 1 << SHIFT;

    /// The word for the environment.
    pub const fn encode(self) -> u32 {
        let (kind, number) = match self {
            Self::Link(number) => (0, number),
            Self::Cell(number) => (1, number),
            Self::Indirect => (2, 0),
            Self::Fallback(site) => (3, site),
            Self::Poll(site) => (4, site),
            Self::Budget(site) => (5, site),
            Self::Fault => (6, 0),
        };
        kind << SHIFT | number
    }

    /// What the environment's word says.
    pub const fn decode(word: u32) -> Self {
        let number = word & (Self::LIMIT - 1);
        match word >> SHIFT {
            0 => Self::Link(number),
            1 => Self::Cell(number),
            2 => Self::Indirect,
            3 => Self::Fallback(number),
            4 => Self::Poll(number),
            5 => Self::Budget(number),
            _ => Self::Fault,
        }
    }
}
