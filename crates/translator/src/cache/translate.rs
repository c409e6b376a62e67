//! How a block is made: its bytes are read, decoded, and written as code of the host.

use super::{Cache, Key, LONGEST, Translated, second_page};
use crate::asm::CAPACITY;
use crate::block::{Block, MOST};
use crate::env::Env;
use crate::groups::{self, Group};
use crate::loops::{self, Loan};
use crate::near;
use crate::scan::{Fragment, scan};
use crate::tables::{ANY_PAGE, Loc};
use crate::trace::Translation;
use belljar_interpreter::Source;
use belljar_interpreter::mmu::CodePage;
use belljar_interpreter::processor::Core;
use belljar_memory::PAGE_SIZE;

/// Bytes that are read of a block at first: most are much shorter.
const WINDOW: usize = 256;

/// The code of a block, whose bytes are in [`Cache::bytes`].
struct Scanned {
    sources: [Source; 2],
    /// The address behind its last instruction.
    next: u64,
}

impl Cache {
    /// Translates the block of `key`; `None` if its first instruction must be interpreted.
    pub(super) fn translate(
        &mut self,
        core: &mut Core,
        env: &mut Env,
        key: Key,
        rip: u64,
        page: CodePage,
    ) -> Option<Translated> {
        if self.tables.is_full() || self.memory.room() < CAPACITY {
            self.clear(env);
        }
        let mut scanned = self.scan(core, &key, rip, page)?;
        let loan = loops::borrow(&mut self.guests, key.mode, rip);
        if !loan.is_none() {
            scanned.next = self.guests.last()?.ins.next_ip();
        }
        let groups = self.groups(&key, rip);
        self.emit(env, key, rip, &scanned, &groups, loan)
    }

    /// Decodes the block of `key` into `guests` and `bytes`.
    fn scan(&mut self, core: &mut Core, key: &Key, rip: u64, page: CodePage) -> Option<Scanned> {
        let mut sources = [self.mark(core, page, key.page)?, Source::ABSENT];
        let offset = rip % PAGE_SIZE;
        let room = (PAGE_SIZE - offset) as usize;
        let whole = room.min(LONGEST * MOST - LONGEST);
        let mut next = rip;
        for length in [WINDOW.min(whole), whole] {
            next = self.scan_bytes(core, key, rip, page, length);
            // What lies within the window cannot go on beyond it.
            if length == whole || next.wrapping_sub(rip) <= (WINDOW - LONGEST) as u64 {
                break;
            }
        }
        if self.guests.is_empty() {
            if key.mode.is_code32() && second_page(rip) >> 32 != 0 {
                // Beyond the limit of CS.
                return None;
            }
            let second = core.mmu.code_page(&core.cpu, second_page(rip)).ok()?;
            sources[1] = belljar_interpreter::mark(core, second)?;
            let length = room + LONGEST;
            let bytes = &mut self.bytes[..length];
            core.mmu.read_code(second, 0, &mut bytes[room..]);
            let one = belljar_interpreter::decoder(core, rip, bytes)
                .decode()
                .len();
            let source = Fragment {
                rip,
                bytes: &bytes[..one],
                page,
                exact: true,
            };
            let most = self.tuning.most_instructions;
            let kinds = self.kinds.of(key.mode);
            next = scan(
                core,
                key.mode,
                kinds,
                &source,
                most,
                |_| false,
                &mut self.guests,
            );
            if self.guests.is_empty() {
                return None;
            }
        }
        Some(Scanned { sources, next })
    }

    /// Says that code of a page is about to be translated, unless it is known.
    fn mark(&self, core: &mut Core, page: CodePage, number: u32) -> Option<Source> {
        let generation = core.mmu.memory().code().generation(number as usize);
        match self.pages.get(&number) {
            Some(known) if known.generation == generation => Some(Source {
                page: number,
                generation,
            }),
            _ => belljar_interpreter::mark(core, page),
        }
    }

    /// Decodes what of a block lies in the `length` bytes from `rip` on; gives where it ends.
    fn scan_bytes(
        &mut self,
        core: &Core,
        key: &Key,
        rip: u64,
        page: CodePage,
        length: usize,
    ) -> u64 {
        let bytes = &mut self.bytes[..length];
        core.mmu.read_code(page, rip % PAGE_SIZE, bytes);
        let known = self.pages.get(&key.page);
        let begins = |at: u64| {
            let key = Key::new(at, key.mode, key.page);
            known.is_some_and(|page| page.block(&key).is_some())
        };
        let source = Fragment {
            rip,
            bytes,
            page,
            exact: key.mode.counting() || self.exact.contains(&key.page),
        };
        let most = self.tuning.most_instructions;
        let kinds = self.kinds.of(key.mode);
        scan(
            core,
            key.mode,
            kinds,
            &source,
            most,
            begins,
            &mut self.guests,
        )
    }

    /// The groups of the block in `guests`, whose accesses that stay near are found, too.
    fn groups(&mut self, key: &Key, rip: u64) -> Vec<Group> {
        near::find(&mut self.guests, &mut self.dealer);
        let shapes = &mut self.plans.shapes;
        if key.mode.is_narrow() {
            for guest in &mut self.guests {
                guest.member = None;
            }
            Vec::new()
        } else {
            groups::find(
                &mut self.guests,
                rip & !0xfff,
                key.mode.has_windows(),
                shapes,
            )
        }
    }

    /// Writes the code of the block in `guests`.
    fn emit(
        &mut self,
        env: &mut Env,
        key: Key,
        rip: u64,
        scanned: &Scanned,
        groups: &[Group],
        loan: Loan,
    ) -> Option<Translated> {
        let bytes = &self.bytes[..];
        let next = scanned.next;
        self.asm
            .restart(self.memory.next(), self.memory.next_rare());
        let (cells, faults) = (self.tables.cells.len(), self.tables.faults.len());
        let block = Block {
            asm: &mut self.asm,
            tables: &mut self.tables,
            plans: &mut self.plans,
            stubs: &self.stubs,
            tuning: &self.tuning,
            // What follows a block without groups may have them.
            mode: key.mode.wide(),
            rip,
            source: key.page,
            page: if key.mode.is_relative() {
                key.page
            } else {
                ANY_PAGE
            },
            leaves_page: next & !0xfff == rip & !0xfff
                && (next % PAGE_SIZE) as usize + LONGEST > PAGE_SIZE as usize,
            guests: &self.guests,
            bytes,
            now: 0,
            loc: Loc::Host,
            vector: false,
            x87: false,
            bmi2: self.bmi2,
            windows: key.mode.has_windows() && !key.mode.is_narrow(),
            groups,
            checked: 0,
            kept: 0,
            held: None,
            lost: false,
            owed: 0,
            loan,
            again: None,
            may_raise: false,
            rare: &mut self.rare,
        };
        let layout = block.translate(next);
        let Some((layout, code)) = layout.zip(self.asm.finish()) else {
            self.tables.faults.truncate(faults);
            self.tables.forget_cells(cells);
            return None;
        };
        Translation {
            rip,
            mode: key.mode,
            page: key.page,
            guests: &self.guests,
            bytes,
            layout,
            code,
            start: self.memory.next(),
            rare: self.memory.next_rare(),
            base: self.memory.start() as u64,
        }
        .tell();
        self.counts.translations += 1;
        self.counts.translated += self.guests.len() as u64;
        self.counts.bytes += (code.code.len() + code.rare.len()) as u64;
        self.memory.append_rare(code.rare)?;
        self.memory.append(code.code)?;
        for number in cells..self.tables.cells.len() {
            self.empty_cell(env, number as u32);
        }
        let block = Translated {
            layout,
            sources: scanned.sources,
        };
        self.enter(env, key, block);
        Some(block)
    }
}
