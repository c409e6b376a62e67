//! What generated code refers to by number: sites, links and cells.

use crate::exit::Exit;
use crate::loops::Loan;
use crate::mixer::Mixer;
use crate::mode::Mode;
use std::collections::HashMap;
use std::hash::BuildHasherDefault;

/// Where the status flags are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loc {
    /// In the host's flags.
    Host,
    /// In the environment.
    Saved,
    /// In both.
    Both,
    /// Nowhere: the block overwrites them before anything reads them.
    Dead,
}

/// An instruction at which generated code can be left.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Site {
    /// Its address; in relative code counted from the page.
    pub rip: u64,
    /// The start of its block, likewise.
    pub head: u64,
    /// Where the flags are before it.
    pub flags: Loc,
    /// Instructions of the block from this one on: counting code has counted them already.
    pub uncounted: u8,
    /// The mode of its block.
    pub mode: Mode,
    /// Whether it checks a group's range.
    pub grouped: bool,
    /// What the block has still to add to the stack pointer.
    pub owed: i32,
    /// Registers that are in each other's place.
    pub loan: Loan,
    /// Where behind the address that it checks its access is, if a page fault there is all that can
    /// be wrong with it.
    pub access: Option<u8>,
}

/// The entries of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// The flags are in the host's.
    Host,
    /// The same, and the attention word is looked at.
    Poll,
    /// The flags are in the environment.
    Saved,
    /// The same, and the attention word is looked at.
    PollSaved,
}

/// A direct jump within a page.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Where its displacement lies in code memory.
    pub patch: u32,
    /// Where it leads; in relative code counted from the page.
    pub target: u64,
    /// By which entry.
    pub entry: Entry,
    /// The mode of both blocks.
    pub mode: Mode,
    /// The page of RAM that both blocks lie in.
    pub page: u32,
}

/// The page of cells of code that is not relative.
pub const ANY_PAGE: u32 = u32::MAX;

/// Where a jump to another page leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cell {
    /// Address of the target; in relative code counted from the page of the jump.
    pub target: u64,
    /// The page of the jump, if its code is relative.
    pub page: u32,
    /// Mode of both blocks.
    pub mode: Mode,
    /// By which entry.
    pub entry: Entry,
}

/// All sites, links and cells.
#[derive(Debug, Default)]
pub struct Tables {
    /// Sites by number.
    pub sites: Vec<Site>,
    /// Links by number.
    pub links: Vec<Link>,
    /// Cells by number.
    pub cells: Vec<Cell>,
    /// Where in code memory they lead while they are empty, by number.
    pub empty_cells: Vec<u32>,
    cell_numbers: HashMap<Cell, u32, BuildHasherDefault<Mixer>>,
    /// Where in code memory instructions begin that the host may raise exceptions for, ascending,
    /// with their sites.
    pub faults: Vec<(u32, u32)>,
}

impl Tables {
    /// Forgets everything.
    pub fn clear(&mut self) {
        self.sites.clear();
        self.links.clear();
        self.cells.clear();
        self.empty_cells.clear();
        self.cell_numbers.clear();
        self.faults.clear();
    }

    /// Whether another block may not find numbers.
    pub fn is_full(&self) -> bool {
        const ROOM: usize = 1024;
        self.cells.len() + ROOM > crate::env::CELLS
            || self.sites.len() + ROOM > Exit::LIMIT as usize / 64
            || self.links.len() + ROOM > Exit::LIMIT as usize / 64
    }

    /// Adds a site.
    pub fn site(&mut self, site: Site) -> u32 {
        self.sites.push(site);
        self.sites.len() as u32 - 1
    }

    /// Adds a link.
    pub fn link(&mut self, link: Link) -> u32 {
        self.links.push(link);
        self.links.len() as u32 - 1
    }

    /// The number of a cell.
    pub fn cell(&mut self, cell: Cell) -> u32 {
        let next = self.cells.len() as u32;
        let number = *self.cell_numbers.entry(cell).or_insert(next);
        if number == next {
            self.cells.push(cell);
        }
        number
    }

    /// Forgets the cells from number `first` on, of a block that was not written.
    pub fn forget_cells(&mut self, first: usize) {
        for cell in self.cells.drain(first..) {
            self.cell_numbers.remove(&cell);
        }
        self.empty_cells.truncate(first);
    }

    /// The site of the instruction whose code holds offset `at` of code memory.
    pub fn fault_site(&self, at: u32) -> Option<u32> {
        let index = self.faults.partition_point(|(start, _)| *start <= at);
        index.checked_sub(1).map(|index| self.faults[index].1)
    }
}
