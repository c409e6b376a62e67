//! Instructions whose places are not known yet.

use crate::case;
use crate::generate::patch;
use crate::random::Random;

/// Which unit, wherever it comes to lie.
pub type Id = usize;

/// What a constant in an instruction is to lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Some later unit of the same region.
    Later,
    /// This unit or some earlier one of the same region.
    Earlier,
    /// What follows this unit.
    Behind,
    /// Some later region.
    Call,
    /// This byte of the cells.
    Cell(usize),
    /// A byte of a unit.
    Byte(Id, usize),
}

/// How a constant says where its goal lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// By the distance from the instruction's end, in this many bytes.
    Relative(usize),
    /// By the address, in 4 bytes.
    Absolute,
    /// It is the branch's displacement of this many bytes that would let the branch at the begin of the other unit lead to
    /// the goal, as seen from that unit.
    Of(Id, usize),
    /// By the address, in the 8 bytes of this cell instead of the instruction.
    InCell(usize),
}

/// A constant that is yet to be filled in.
#[derive(Clone, Copy, Debug)]
pub struct Fix {
    /// Where in the instruction.
    pub at: usize,
    pub form: Form,
    pub goal: Goal,
}

/// An instruction.
#[derive(Clone, Debug)]
pub struct Draft {
    pub bytes: Vec<u8>,
    pub fixes: Vec<Fix>,
}

impl Draft {
    /// An instruction that is the same everywhere.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self {
            bytes: bytes.into(),
            fixes: Vec::new(),
        }
    }

    /// With a constant at `at` to be filled in.
    pub fn with(mut self, at: usize, form: Form, goal: Goal) -> Self {
        self.fixes.push(Fix { at, form, goal });
        self
    }

    /// With a distance of four bytes at its end.
    pub fn ending_in_distance(self, goal: Goal) -> Self {
        let at = self.bytes.len() - 4;
        self.with(at, Form::Relative(4), goal)
    }
}

/// Instructions that belong together.
#[derive(Clone, Debug)]
pub struct Unit {
    id: Id,
    drafts: Vec<Draft>,
    patches: Option<Id>,
    needed: bool,
}

impl Unit {
    fn length(&self) -> usize {
        self.drafts.iter().map(|draft| draft.bytes.len()).sum()
    }

    /// The bytes of its instructions.
    pub fn into_bytes(self) -> impl Iterator<Item = Vec<u8>> {
        self.drafts.into_iter().map(|draft| draft.bytes)
    }
}

/// Where a unit lies.
#[derive(Clone, Copy, Debug, Default)]
struct Spot {
    region: usize,
    position: usize,
    start: u64,
    end: u64,
}

/// A block's units and cells.
#[derive(Clone, Debug)]
pub struct Program {
    pub regions: Vec<Vec<Unit>>,
    pub cells: Vec<u8>,
    ids: Id,
}

impl Program {
    /// A program of empty regions.
    pub fn new(regions: usize) -> Self {
        Self {
            regions: vec![Vec::new(); regions],
            cells: Vec::new(),
            ids: 0,
        }
    }

    /// A new cell of 8 bytes; gives its offset in the cells.
    pub fn cell(&mut self, content: u64) -> usize {
        let offset = self.cells.len();
        self.cells.extend(content.to_le_bytes());
        offset
    }

    fn unit(&mut self, drafts: Vec<Draft>, patches: Option<Id>) -> Unit {
        let id = self.ids;
        self.ids += 1;
        Unit {
            id,
            drafts,
            patches,
            needed: false,
        }
    }

    /// Adds a unit at the end of `region`.
    pub fn add(&mut self, region: usize, drafts: Vec<Draft>) -> Id {
        let unit = self.unit(drafts, None);
        let id = unit.id;
        self.regions[region].push(unit);
        id
    }

    /// Says that the others rely on unit `id`.
    pub fn need(&mut self, id: Id) {
        let mut units = self.regions.iter_mut().flatten();
        if let Some(unit) = units.find(|unit| unit.id == id) {
            unit.needed = true;
        }
    }

    /// Adds a unit that stores into the unit `patches`: right before the unit `before`, or anywhere but at the end of a region.
    pub fn insert(
        &mut self,
        random: &mut Random,
        drafts: Vec<Draft>,
        patches: Id,
        before: Option<Id>,
    ) {
        let unit = self.unit(drafts, Some(patches));
        let found = self.regions.iter().enumerate().find_map(|(number, units)| {
            let at = units.iter().position(|unit| Some(unit.id) == before)?;
            Some((number, at))
        });
        let (region, at) = found.unwrap_or_else(|| {
            let region = random.below(self.regions.len() as u64) as usize;
            let places = self.regions[region].len().max(1);
            (region, random.below(places as u64) as usize)
        });
        self.regions[region].insert(at, unit);
    }

    /// Bytes of all instructions.
    pub fn length(&self) -> usize {
        self.regions.iter().flatten().map(Unit::length).sum()
    }

    /// The units as a case tells of them.
    pub fn units(&self) -> Vec<case::Unit> {
        let number = |id| self.regions.iter().flatten().position(|unit| unit.id == id);
        let units = self.regions.iter().flatten();
        units
            .map(|unit| case::Unit {
                length: unit.drafts.len(),
                patches: unit.patches.and_then(number),
                needed: unit.needed,
            })
            .collect()
    }

    /// Fills in all constants, for instructions that begin at `start` and cells that lie at `cells`.
    pub fn link(&mut self, random: &mut Random, start: u64, cells: u64) {
        let spots = self.spots(start);
        let mut regions = std::mem::take(&mut self.regions);
        for unit in regions.iter_mut().flatten() {
            let spot = spots[unit.id];
            let mut end = spot.start;
            for draft in &mut unit.drafts {
                end += draft.bytes.len() as u64;
                for fix in &draft.fixes {
                    let mut linker = Linker {
                        spots: &spots,
                        cells,
                        random,
                    };
                    let (at, value) = linker.constant(fix, spot, end);
                    match fix.form {
                        Form::InCell(cell) => {
                            self.cells[cell..cell + 8].copy_from_slice(&value.to_le_bytes());
                        }
                        Form::Relative(size) | Form::Of(_, size) => {
                            patch(&mut draft.bytes, at, size, value as i64);
                        }
                        Form::Absolute => patch(&mut draft.bytes, at, 4, value as i64),
                    }
                }
            }
        }
        self.regions = regions;
    }

    /// Where each unit lies, by its [`Id`].
    fn spots(&self, start: u64) -> Vec<Spot> {
        let mut spots = vec![Spot::default(); self.ids];
        let mut at = start;
        for (region, units) in self.regions.iter().enumerate() {
            for (position, unit) in units.iter().enumerate() {
                let start = at;
                at += unit.length() as u64;
                spots[unit.id] = Spot {
                    region,
                    position,
                    start,
                    end: at,
                };
            }
        }
        spots
    }
}

/// Finds the values of constants.
struct Linker<'a> {
    spots: &'a [Spot],
    cells: u64,
    random: &'a mut Random,
}

impl Linker<'_> {
    /// Where in its instruction, which belongs to the unit at `spot` and ends at `end`, the constant lies, and its value.
    fn constant(&mut self, fix: &Fix, spot: Spot, end: u64) -> (usize, u64) {
        let value = match fix.form {
            Form::Relative(size) => self.target(fix.goal, spot, end, size).wrapping_sub(end),
            Form::Absolute | Form::InCell(_) => self.target(fix.goal, spot, end, 4),
            Form::Of(branch, size) => {
                let spot = self.spots[branch];
                self.target(fix.goal, spot, spot.end, size)
                    .wrapping_sub(spot.end)
            }
        };
        (fix.at, value)
    }

    /// The address of a goal that a distance of `size` bytes from `end` reaches.
    fn target(&mut self, goal: Goal, spot: Spot, end: u64, size: usize) -> u64 {
        let reached = |start: u64| size > 1 || i8::try_from(start.wrapping_sub(end) as i64).is_ok();
        let wanted = |other: &Spot| match goal {
            Goal::Later => other.region == spot.region && other.position > spot.position,
            Goal::Earlier => other.region == spot.region && other.position <= spot.position,
            Goal::Call => other.region > spot.region && other.position == 0,
            _ => false,
        };
        match goal {
            Goal::Behind => spot.end,
            Goal::Cell(offset) => self.cells + offset as u64,
            Goal::Byte(unit, offset) => self.spots[unit].start + offset as u64,
            Goal::Later | Goal::Earlier | Goal::Call => {
                let starts = self.spots.iter().filter(|&s| wanted(s)).map(|s| s.start);
                let starts: Vec<u64> = starts.filter(|&start| reached(start)).collect();
                // Of the next unit and of this one's begin, one is always in reach.
                if starts.is_empty() {
                    spot.end
                } else {
                    self.random.pick(&starts)
                }
            }
        }
    }
}
