//! The blocks of one vCPU: where they lie, by what they are found, when they end.

mod jumps;
mod translate;

use crate::asm::Asm;
use crate::block::{Guest, Layout, MOST};
use crate::bound::Place;
use crate::env::Env;
use crate::kinds::Kinds;
use crate::mixer::Mixer;
use crate::mode::Mode;
use crate::near;
use crate::plans::Plans;
use crate::rare::Rare;
use crate::recent::Recent;
use crate::stubs::{self, Stubs};
use crate::tables::{Entry, Tables};
use crate::tuning::Tuning;
use belljar_interpreter::Source;
use belljar_interpreter::mmu::{CodePage, Flushes};
use belljar_interpreter::processor::Core;
use belljar_memory::{CodePages, PAGE_SIZE};
use belljar_passthrough::Error;
use belljar_passthrough::code_memory::CodeMemory;
use belljar_passthrough::fault::Registration;
use belljar_x86::Exception;
use jumps::Jumps;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasherDefault;

/// The longest instruction. SDM 2A, 2.3.11.
const LONGEST: usize = 15;

/// What a block is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Address; of relative code the offset in its page.
    pub rip: u64,
    /// Mode of its code.
    pub mode: Mode,
    /// Its page of RAM.
    pub page: u32,
}

impl Key {
    /// The key of the block at address `rip`, which lies in page `page` of RAM.
    pub fn new(rip: u64, mode: Mode, page: u32) -> Self {
        let rip = if mode.is_relative() {
            rip % PAGE_SIZE
        } else {
            rip
        };
        Self { rip, mode, page }
    }
}

type Map<K, V> = HashMap<K, V, BuildHasherDefault<Mixer>>;
type Set<K> = HashSet<K, BuildHasherDefault<Mixer>>;

/// A translated block.
#[derive(Clone, Copy, Debug)]
pub struct Translated {
    layout: Layout,
    /// The pages that its bytes lie in.
    sources: [Source; 2],
}

/// A page that code was translated from. What is translated together lies in one page mostly, whose
/// table is at hand while one of all blocks would not be.
#[derive(Debug)]
struct Page {
    generation: u32,
    /// The blocks that begin here, by address and mode.
    blocks: Map<(u64, Mode), Translated>,
    /// Blocks that begin in the page before and end here.
    tails: Vec<Key>,
    starts: Box<Starts>,
}

impl Page {
    fn new(generation: u32) -> Self {
        Self {
            generation,
            blocks: Map::default(),
            tails: Vec::new(),
            starts: Box::new(Starts::NONE),
        }
    }

    /// The block of `key`, which begins here if there is one.
    fn block(&self, key: &Key) -> Option<&Translated> {
        if !self.starts.has(key.rip) {
            return None;
        }
        self.blocks.get(&(key.rip, key.mode))
    }
}

/// At which bytes of a page blocks begin, in whatever mode: most questions are answered without a look
/// for the block.
#[derive(Debug)]
struct Starts([u64; PAGE_SIZE as usize / 64]);

impl Starts {
    const NONE: Self = Self([0; PAGE_SIZE as usize / 64]);

    fn place(rip: u64) -> (usize, u64) {
        let offset = rip % PAGE_SIZE;
        (offset as usize / 64, 1 << (offset % 64))
    }

    fn has(&self, rip: u64) -> bool {
        let (word, bit) = Self::place(rip);
        self.0[word] & bit != 0
    }

    fn add(&mut self, rip: u64) {
        let (word, bit) = Self::place(rip);
        self.0[word] |= bit;
    }
}

/// Counters of the cache.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Blocks translated.
    pub translations: u64,
    /// Instructions translated.
    pub translated: u64,
    /// Bytes of code written.
    pub bytes: u64,
    /// Pages whose blocks were dropped because they changed.
    pub invalidations: u64,
    /// How often everything was dropped.
    pub evictions: u64,
    /// How often jump caches and cells were emptied.
    pub jump_flushes: u64,
}

/// The translated code of one vCPU.
#[derive(Debug)]
pub struct Cache {
    // Dropped before the memory, so that the fault handler never knows a range that is gone.
    _registration: Registration,
    memory: CodeMemory,
    tuning: Tuning,
    /// The code that all blocks share.
    pub stubs: Stubs,
    stubs_end: u32,
    /// What the code refers to by number.
    pub tables: Tables,
    pages: Map<u32, Page>,
    /// [`CodePages::changes`] when the pages were last looked at.
    seen: u64,
    /// Pages whose code changes itself.
    exact: Set<u32>,
    /// Accesses to two pages by groups of a block.
    straddles: Map<Key, u32>,
    /// Blocks found lately.
    recent: Recent,
    /// Where jumps lead.
    jumps: Jumps,
    asm: Asm,
    kinds: Kinds,
    plans: Plans,
    bmi2: bool,
    guests: Vec<Guest>,
    /// The bytes of the block under translation.
    bytes: Box<[u8; LONGEST * MOST]>,
    /// What is rarely executed of it.
    rare: Vec<Rare>,
    dealer: near::Dealer,
    /// What happened.
    pub counts: Counts,
}

/// A block to go on with.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Where its code lies.
    pub layout: Layout,
    /// Its page of RAM.
    pub page: u32,
    /// Whether its instruction ends in another page.
    pub leaves_page: bool,
    /// Whether its page is mapped globally.
    pub global: bool,
}

impl Found {
    fn new(block: &Translated, global: bool) -> Self {
        Self {
            layout: block.layout,
            page: block.sources[0].page,
            leaves_page: block.sources[1] != Source::ABSENT,
            global,
        }
    }

    /// A block that lies in page `page` alone.
    const fn in_page(layout: Layout, page: u32, global: bool) -> Self {
        Self {
            layout,
            page,
            leaves_page: false,
            global,
        }
    }
}

impl Cache {
    /// An empty cache for blocks as `tuning` wants them.
    ///
    /// # Errors
    /// If the host gives no memory or refuses the signal handlers.
    pub fn new(tuning: Tuning) -> Result<Self, Error> {
        let size = tuning.code_memory;
        let mut memory = CodeMemory::with_rare(size, size / 2)?;
        let stubs =
            stubs::write(&mut memory, tuning.tlb_entries).ok_or(Error::BadCapacity(size))?;
        Ok(Self {
            // SAFETY: wherever code of this memory runs, RSP is the environment's address or a little less,
            // and the stack lies below it.
            _registration: unsafe {
                Registration::with_page_faults(memory.start() as usize, memory.size())
            }?,
            tuning,
            stubs,
            stubs_end: memory.used(),
            memory,
            tables: Tables::default(),
            pages: Map::default(),
            seen: 0,
            exact: Set::default(),
            straddles: Map::default(),
            recent: Recent::new(),
            jumps: Jumps::new(),
            asm: Asm::of_blocks(),
            kinds: Kinds::default(),
            plans: Plans::new(),
            bmi2: is_x86_feature_detected!("bmi2"),
            guests: Vec::new(),
            bytes: Box::new([0; LONGEST * MOST]),
            rare: Vec::new(),
            dealer: near::Dealer::default(),
            counts: Counts::default(),
        })
    }

    /// Whether blocks can compute a place in a table without changing the flags.
    pub const fn has_flagless_checks(&self) -> bool {
        self.bmi2
    }

    /// Address of an offset of code memory.
    pub fn address(&self, offset: u32) -> u64 {
        self.memory.start() as u64 + u64::from(offset)
    }

    /// The offset of an address in code memory.
    pub fn offset(&self, address: u64) -> u32 {
        address.wrapping_sub(self.memory.start() as u64) as u32
    }

    /// Drops everything.
    pub fn clear(&mut self, env: &mut Env) {
        self.counts.evictions += 1;
        self.memory.truncate(self.stubs_end);
        self.tables.clear();
        self.pages.clear();
        self.straddles.clear();
        self.recent.forget();
        self.forget_jumps(env);
    }

    /// Forgets what changes of mappings and code have made stale.
    pub fn catch_up(&mut self, env: &mut Env, flushes: &mut Flushes, code: &CodePages) {
        if flushes.all {
            self.forget_jumps(env);
        } else {
            if flushes
                .addresses
                .iter()
                .any(|linear| self.leads_to(*linear))
            {
                self.forget_jumps(env);
            }
            if flushes.non_global {
                self.forget_local_jumps(env);
            }
        }
        flushes.all = false;
        flushes.non_global = false;
        flushes.addresses.clear();
        let changes = code.changes();
        if changes != self.seen {
            self.seen = changes;
            self.drop_stale(env, code);
        }
    }

    /// Drops the blocks of pages that changed.
    fn drop_stale(&mut self, env: &mut Env, code: &CodePages) {
        let stale: Vec<u32> = self
            .pages
            .iter()
            .filter(|(page, info)| code.generation(**page as usize) != info.generation)
            .map(|(page, _)| *page)
            .collect();
        for page in &stale {
            let Some(info) = self.pages.remove(page) else {
                continue;
            };
            self.counts.invalidations += 1;
            self.drop_blocks(&info.tails);
        }
        if !stale.is_empty() {
            self.recent.forget();
            self.forget_jumps(env);
        }
    }

    fn drop_blocks(&mut self, keys: &[Key]) {
        for key in keys {
            if let Some(page) = self.pages.get_mut(&key.page) {
                page.blocks.remove(&(key.rip, key.mode));
            }
        }
    }

    /// The block at `rip`: an old one, or translated now.
    ///
    /// # Errors
    /// The exception of the fetch.
    pub fn find(
        &mut self,
        core: &mut Core,
        env: &mut Env,
        rip: u64,
        mode: Mode,
    ) -> Result<Option<Found>, Exception> {
        let page = core.mmu.code_page(&core.cpu, rip)?;
        let CodePage::Ram(number) = page else {
            return Ok(None);
        };
        let number = number as u32;
        let relative = mode.is_relative();
        let key = Key::new(rip, mode, number);
        let global = !relative && core.mmu.code_is_global(&core.cpu, rip);
        if relative {
            let pages = core.mmu.memory().code().pages();
            self.bind(env, number, rip - rip % PAGE_SIZE, pages);
        }
        if let Some(layout) = self.recent.find(&key) {
            return Ok(Some(Found::in_page(layout, number, global)));
        }
        let code = core.mmu.memory().code();
        if let Some(block) = self.block(&key)
            && block.sources[0].is_current(code)
            && (block.sources[1] == Source::ABSENT || block.sources[1].is_current(code))
            && second_page_holds(core, rip, &block)
        {
            self.remember(&key, &block);
            return Ok(Some(Found::new(&block, global)));
        }
        let block = self.translate(core, env, key, rip, page);
        if let Some(block) = block {
            self.remember(&key, &block);
        }
        Ok(block.map(|block| Found::new(&block, global)))
    }

    /// A block that lies in one page holds until [`Recent::forget`].
    fn remember(&mut self, key: &Key, block: &Translated) {
        if block.sources[1] == Source::ABSENT {
            self.recent.enter(key, block.layout);
        }
    }

    /// The block at `rip` in page `page` of RAM, which the TLB has, if it was found lately and
    /// nothing that it depends on has changed since.
    #[inline]
    pub fn find_again(&mut self, core: &Core, rip: u64, mode: Mode, page: u32) -> Option<Found> {
        let layout = self.recent.find(&Key::new(rip, mode, page))?;
        if mode.is_relative() {
            let mapped = rip - rip % PAGE_SIZE;
            match self.jumps.bound.look(page, mapped) {
                Place::Known => {}
                Place::New => {
                    let pages = core.mmu.memory().code().pages();
                    self.jumps.bound.note(page, mapped, pages);
                }
                Place::Elsewhere => return None,
            }
        }
        let global = !mode.is_relative() && core.mmu.is_global(mode.set(), rip);
        Some(Found::in_page(layout, page, global))
    }

    /// Whether [`catch_up`](Self::catch_up) has nothing to do.
    #[inline]
    pub fn is_up_to_date(&self, flushes: &Flushes, code: &CodePages) -> bool {
        flushes.is_empty() && code.changes() == self.seen
    }

    /// The block of `key`, if it was translated.
    fn block(&self, key: &Key) -> Option<Translated> {
        self.pages.get(&key.page)?.block(key).copied()
    }

    fn enter(&mut self, env: &mut Env, key: Key, block: Translated) {
        for source in block.sources {
            if source == Source::ABSENT {
                continue;
            }
            let page = self
                .pages
                .entry(source.page)
                .or_insert_with(|| Page::new(source.generation));
            if page.generation != source.generation {
                // It changed while the block was translated.
                let old = std::mem::replace(page, Page::new(source.generation));
                self.drop_blocks(&old.tails);
                self.recent.forget();
                self.forget_jumps(env);
            }
        }
        let [first, second] = block.sources.map(|source| source.page);
        if let Some(page) = self.pages.get_mut(&first) {
            page.starts.add(key.rip);
            page.blocks.insert((key.rip, key.mode), block);
        }
        if let Some(page) = self.pages.get_mut(&second) {
            page.tails.push(key);
        }
    }

    /// Keeps the flags exact in code of `page` from now on.
    pub fn be_exact(&mut self, page: u32) {
        self.exact.insert(page);
    }

    /// Counts an access to two pages by a group of the block at `rip`. After a few of them a block
    /// without groups takes its place.
    pub fn note_straddle(&mut self, core: &mut Core, env: &mut Env, rip: u64, mode: Mode) {
        const FEW: u32 = 4;
        let Ok(CodePage::Ram(page)) = core.mmu.code_page(&core.cpu, rip) else {
            return;
        };
        let key = Key::new(rip, mode, page as u32);
        let count = self.straddles.entry(key).or_insert(0);
        *count += 1;
        if *count != FEW {
            return;
        }
        let Some(old) = self.block(&key) else {
            return;
        };
        let evictions = self.counts.evictions;
        let Ok(Some(new)) = self.find(core, env, rip, mode.narrow()) else {
            return;
        };
        if evictions != self.counts.evictions {
            return;
        }
        for entry in [Entry::Host, Entry::Poll, Entry::Saved, Entry::PollSaved] {
            let (from, to) = (old.layout.entry(entry), new.layout.entry(entry));
            let displacement = to.wrapping_sub(from + 5).to_le_bytes();
            self.memory.patch(from, &[0xe9]);
            self.memory.patch(from + 1, &displacement);
        }
        let new = Translated {
            layout: new.layout,
            ..old
        };
        if let Some(page) = self.pages.get_mut(&key.page) {
            page.blocks.insert((key.rip, key.mode), new);
        }
        self.recent.forget();
    }

    /// Address of the entry of a block for Rust: the flags are in the environment.
    pub fn entry(&self, found: &Found) -> u64 {
        self.address(found.layout.saved)
    }

    /// Address of the code that loads the guest's registers.
    pub fn entry_stub(&self) -> u64 {
        self.address(self.stubs.enter)
    }
}

/// The page after that of `rip`.
const fn second_page(rip: u64) -> u64 {
    (rip | (PAGE_SIZE - 1)).wrapping_add(1)
}

/// Whether the second page of a block, if it has one, is still mapped where it was.
fn second_page_holds(core: &mut Core, rip: u64, block: &Translated) -> bool {
    block.sources[1] == Source::ABSENT
        || matches!(
            core.mmu.code_page(&core.cpu, second_page(rip)),
            Ok(CodePage::Ram(page)) if page as u32 == block.sources[1].page
        )
}
