//! Where jumps lead: links, cells and jump caches, and until when.

use super::{Cache, Found, second_page};
use crate::bound::{Bound, Place};
use crate::env::{CELLS, Env, JUMP_CACHES, Jump, jump_slot};
use crate::mode::{Mode, Space};
use belljar_interpreter::mix;

/// Bits of the record of pages that jump caches and cells lead to.
const LED_TO: usize = 1 << 15;

/// What is known about the jump caches and cells.
#[derive(Debug)]
pub(super) struct Jumps {
    /// Where pages of relative code are mapped, of those that jump caches and cells lead to or from.
    pub(super) bound: Bound,
    /// Pages of guest-virtual addresses that jump caches or cells lead to: a bit for many.
    led_to: Box<[u64; LED_TO / 64]>,
    /// Slots of the jump caches that were filled since they were last emptied.
    filled_slots: [Vec<u16>; JUMP_CACHES],
    /// What the code that each jump cache leads to has in common.
    habits: [Option<Mode>; JUMP_CACHES],
    /// Jump caches with entries that are not global.
    local_caches: [bool; JUMP_CACHES],
    /// Cells that lead to pages that are global.
    global_cells: Vec<u32>,
    /// Cells that lead to other pages.
    local_cells: Vec<u32>,
}

impl Jumps {
    /// Nothing leads anywhere.
    pub fn new() -> Self {
        Self {
            bound: Bound::new(),
            led_to: Box::new([0; LED_TO / 64]),
            filled_slots: [const { Vec::new() }; JUMP_CACHES],
            habits: [None; JUMP_CACHES],
            local_caches: [false; JUMP_CACHES],
            global_cells: Vec::new(),
            local_cells: Vec::new(),
        }
    }
}

impl Cache {
    /// Empties all jump caches and cells.
    pub(super) fn forget_jumps(&mut self, env: &mut Env) {
        self.counts.jump_flushes += 1;
        for cache in 0..JUMP_CACHES {
            self.empty_jumps(env, cache);
        }
        self.jumps.local_caches = [false; JUMP_CACHES];
        for number in std::mem::take(&mut self.jumps.global_cells) {
            self.empty_cell(env, number);
        }
        for number in std::mem::take(&mut self.jumps.local_cells) {
            self.empty_cell(env, number);
        }
        self.jumps.led_to.fill(0);
        self.jumps.bound.forget();
    }

    /// Empties the jump caches and cells that lead to pages that are not global.
    pub(super) fn forget_local_jumps(&mut self, env: &mut Env) {
        self.counts.jump_flushes += 1;
        for cache in 0..JUMP_CACHES {
            if std::mem::take(&mut self.jumps.local_caches[cache]) {
                self.empty_jumps(env, cache);
            }
        }
        for number in std::mem::take(&mut self.jumps.local_cells) {
            self.empty_cell(env, number);
        }
        self.jumps.bound.forget();
    }

    fn empty_jumps(&mut self, env: &mut Env, cache: usize) {
        for slot in self.jumps.filled_slots[cache].drain(..) {
            env.empty_jump(cache, usize::from(slot));
        }
    }

    pub(super) fn empty_cell(&self, env: &mut Env, number: u32) {
        if let Some(leave) = self.tables.empty_cells.get(number as usize) {
            env.cells[number as usize % CELLS] = self.address(*leave);
        }
    }

    /// Code of `mode` is about to run: sees to it that the jump caches lead to such code alone. They
    /// are found by privilege and width, but other code of the same counts its instructions, or not,
    /// or has other units or segments at hand.
    #[inline]
    pub fn use_mode(&mut self, env: &mut Env, mode: Mode) {
        let habits = Some(mode.habits());
        let space = mode.space();
        if self.jumps.habits[space as usize] != habits {
            for &space in space.family() {
                self.jumps.habits[space as usize] = habits;
                self.empty_jumps(env, space as usize);
            }
        }
    }

    /// Notes where a page of relative code is mapped. Cells of its blocks lead to pages by their
    /// distance, so they hold for one place at a time.
    pub(super) fn bind(&mut self, env: &mut Env, page: u32, mapped: u64, pages: usize) {
        match self.jumps.bound.look(page, mapped) {
            Place::Known => return,
            Place::Elsewhere => self.forget_jumps(env),
            Place::New => {}
        }
        self.jumps.bound.note(page, mapped, pages);
    }

    /// Lets a link lead to its target from now on.
    pub fn resolve_link(&mut self, number: u32, found: &Found) {
        let Some(link) = self.tables.links.get(number as usize) else {
            return;
        };
        if found.leaves_page || found.page != link.page {
            // It holds no longer than the next page's mapping, and links hold for good; or the page
            // has just been mapped elsewhere, without a flush as yet.
            return;
        }
        let target = found.layout.entry(link.entry);
        let displacement = target.wrapping_sub(link.patch + 4);
        self.memory.patch(link.patch, &displacement.to_le_bytes());
    }

    /// Lets a cell lead to its target until mappings change.
    pub fn resolve_cell(&mut self, env: &mut Env, number: u32, rip: u64, found: &Found) {
        let Some(cell) = self.tables.cells.get(number as usize) else {
            return;
        };
        let target = self.address(found.layout.entry(cell.entry));
        self.lead_to(rip, found);
        env.cells[number as usize % CELLS] = target;
        if found.global {
            self.jumps.global_cells.push(number);
        } else {
            self.jumps.local_cells.push(number);
        }
    }

    fn lead_to(&mut self, rip: u64, found: &Found) {
        let mut note =
            |linear| self.jumps.led_to[led_to_bit(linear) / 64] |= 1 << (led_to_bit(linear) % 64);
        note(rip);
        if found.leaves_page {
            note(second_page(rip));
        }
    }

    /// Whether jump caches or cells may lead to the page of `linear`.
    pub(super) fn leads_to(&self, linear: u64) -> bool {
        let bit = led_to_bit(linear);
        self.jumps.led_to[bit / 64] & 1 << (bit % 64) != 0
    }

    /// Enters a target into the jump cache.
    pub fn resolve_jump(&mut self, env: &mut Env, space: Space, rip: u64, found: &Found) {
        let (cache, slot) = (space as usize, jump_slot(rip));
        if env.is_empty_jump(cache, slot) {
            self.jumps.filled_slots[cache].push(slot as u16);
        }
        self.lead_to(rip, found);
        env.jumps[cache][slot] = Jump {
            key: rip,
            target: self.address(found.layout.saved),
        };
        self.jumps.local_caches[cache] |= !found.global;
    }
}

/// The bit of a page in the record of those that jump caches and cells lead to.
const fn led_to_bit(linear: u64) -> usize {
    mix(linear >> 12, LED_TO.trailing_zeros())
}
