//! The loop around generated code: finds blocks, enters them, and does what they leave.

use crate::cache::{Cache, Found};
use crate::env::{Env, LATER, NOTHING, Room, SYSCALL, SYSRET};
use crate::exit::Exit;
use crate::gs;
use crate::mode::Mode;
use crate::privilege;
use crate::tables::{ANY_PAGE, Loc};
use crate::trace;
use crate::tuning::{Stress, Tuning};
use belljar_engine::{Counters, EngineError, Exit as MachineExit, Reason, Vcpu};
use belljar_interpreter::mmu::CodePage;
use belljar_interpreter::{Flow, InterpreterVcpu};
use belljar_x86::bits::{cr4, rflags, xstate};
use belljar_x86::paging::Flush;
use belljar_x86::{CpuState, Gpr, Seg, debug, syscall};
use std::ptr::{self, NonNull};

/// The flags that generated code keeps in [`Env::system`].
const SYSTEM: u64 = !(rflags::STATUS | rflags::IF | rflags::RF | rflags::VM) & 0xffff_ffff;

/// The most decoded instructions that the interpreter keeps: what it executes here is rare, and pages that
/// change have it decode the same code again and again.
const MOST_INTERPRETED: usize = 1 << 17;

/// Exits of generated code, by kind.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Instructions executed in counting runs.
    pub(crate) executed: u64,
    pub(crate) entries: u64,
    pub(crate) links: u64,
    pub(crate) cells: u64,
    pub(crate) indirect: u64,
    pub(crate) fallbacks: u64,
    pub(crate) straddles: u64,
    pub(crate) polls: u64,
    pub(crate) faults: u64,
    pub(crate) untranslated: u64,
}

/// A vCPU of the translator.
#[derive(Debug)]
pub struct TranslatorVcpu {
    // The processor's TLB lies in the environment: it is dropped first.
    pub(crate) processor: Box<InterpreterVcpu>,
    pub(crate) env: Room,
    pub(crate) cache: Cache,
    pub(crate) stress: Stress,
    /// Bits of XCR0 that code with AVX needs.
    avx: u64,
    /// Whether instructions are counted.
    pub(crate) counting: bool,
    /// The mode of the code that was last entered, with groups.
    pub(crate) mode: Option<Mode>,
    /// [`Mmu::invalidations`](belljar_interpreter::mmu::Mmu::invalidations) of which the other
    /// vCPUs know.
    announced: u64,
    /// STAR when [`Env::switched_selectors`] was filled in.
    star: u64,
    /// What the host's time-stamp counter is ahead of the machine's, in this run.
    ahead: Option<u64>,
    /// System flags with which generated code was entered.
    loaded_flags: u64,
    pub(crate) counts: Counts,
}

// SAFETY: the raw pointers of the environment lead to what the vCPU itself owns, or to its attention
// word, which it keeps alive.
unsafe impl Send for TranslatorVcpu {}

/// What to do next.
enum Next {
    /// Enter generated code at the block of the instruction pointer.
    Enter,
    /// What the last exit asked for, resolved once its block is known.
    Resolve(Exit),
    /// The same at the block without groups.
    Narrow,
    /// Look at everything.
    Loop,
    /// Come back.
    Return(MachineExit),
}

impl TranslatorVcpu {
    /// A vCPU that executes by `processor` what it does not translate, set up as `tuning` says.
    pub fn new(processor: InterpreterVcpu, tuning: Tuning) -> Result<Self, EngineError> {
        let tuning = tuning.within_range();
        let unavailable = |reason: &dyn ToString| EngineError::Unavailable {
            engine: crate::engine::NAME,
            reason: reason.to_string(),
        };
        let cache = Cache::new(tuning).map_err(|error| unavailable(&error))?;
        let mut processor = Box::new(processor);
        processor.keep_at_most(MOST_INTERPRETED);
        let mut env = Room::new().map_err(|error| unavailable(&error))?;
        let offered = processor.core.model.xcr0_mask();
        // SAFETY: the environment is dropped after the processor, and does not move. Generated code,
        // which reads the table, runs only while no method of the TLB does.
        unsafe {
            processor
                .core
                .mmu
                .place_tlb(NonNull::from(&mut env.tlb), tuning.tlb_entries);
        }
        let vcpus = processor.core.attention.len();
        if let Some(patience) = tuning.patience.filter(|_| cache.has_flagless_checks())
            && let Some(table) = env.windows()
        {
            // SAFETY: as above; nothing can be accessed behind the table.
            unsafe { processor.core.mmu.allow_windows(vcpus, patience, table) };
        }
        if vcpus > 1 {
            processor.core.mmu.keep_evicted();
        }
        env.vector = ptr::from_mut(&mut processor.core.cpu.vector);
        env.processor = ptr::from_mut(&mut *processor);
        env.own = ptr::from_mut(&mut *env);
        env.cpu = ptr::from_ref(&processor.core.cpu);
        if let Some(attention) = processor.core.attention.get(processor.core.id as usize) {
            env.attention = attention.word().as_ptr();
        }
        Ok(Self {
            processor,
            env,
            cache,
            stress: Stress::new(&tuning),
            avx: offered & (xstate::SSE | xstate::AVX | xstate::AVX512),
            counting: false,
            mode: None,
            announced: 0,
            star: 0,
            ahead: None,
            loaded_flags: 0,
            counts: Counts::default(),
        })
    }

    fn run_until_exit(&mut self) -> MachineExit {
        let mut next = Next::Loop;
        loop {
            next = match next {
                Next::Loop => self.look_around(),
                Next::Enter => self.enter_block(None, false),
                Next::Narrow => self.enter_block(None, true),
                Next::Resolve(exit) => self.enter_block(Some(exit), false),
                Next::Return(exit) => return exit,
            };
        }
    }

    /// Everything that may have to happen between two instructions.
    fn look_around(&mut self) -> Next {
        let core = &mut self.processor.core;
        if core.calls() != 0 {
            if core.cpu.cpl == 3 && core.cpu.code64() {
                core.mmu.note_program(&core.cpu);
            }
            if let Some(exit) = self.processor.attend() {
                return Next::Return(exit);
            }
        }
        if self.processor.core.special && !self.resume() {
            return match self.processor.step() {
                Some(exit) => Next::Return(exit),
                None => self.interpreted(),
            };
        }
        if self.processor.remaining == 0 {
            return Next::Return(MachineExit::Budget);
        }
        Next::Enter
    }

    /// If nothing but RF asks for a look after the next instruction, does without it. RF holds back
    /// breakpoints, and there are none. Counting code is exact.
    fn resume(&mut self) -> bool {
        let core = &mut self.processor.core;
        if self.counting || debug::any_active(&core.cpu) {
            return false;
        }
        core.cpu.rflags &= !rflags::RF;
        core.heed();
        !core.special
    }

    /// After the interpreter has executed something.
    fn interpreted(&mut self) -> Next {
        let core = &self.processor.core;
        if core.mmu.invalidations != self.announced {
            self.announced = core.mmu.invalidations;
            // Others may run what has changed without ever leaving it.
            for (id, other) in core.attention.iter().enumerate() {
                if id != core.id as usize {
                    other.raise(Reason::ENGINE);
                }
            }
        }
        Next::Loop
    }

    /// Executes at most `limit` instructions by the interpreter.
    fn interpret(&mut self, limit: u64) -> Next {
        match self.processor.execute_some(limit) {
            Some(exit) => Next::Return(exit),
            None => self.interpreted(),
        }
    }

    /// Finds the block at the instruction pointer and runs it and what follows it.
    fn enter_block(&mut self, resolve: Option<Exit>, narrow: bool) -> Next {
        let flushes = self.cache.counts.jump_flushes;
        if !narrow {
            self.stress();
        }
        let core = &mut self.processor.core;
        let (flushed, code) = core.mmu.changes();
        self.cache.catch_up(&mut self.env, flushed, code);
        let Some(mode) = Mode::of(&core.cpu, self.avx, self.counting) else {
            self.counts.untranslated += 1;
            return self.interpret(u64::MAX);
        };
        let mode = self.with_windows(mode);
        let core = &mut self.processor.core;
        self.cache.use_mode(&mut self.env, mode);
        let mode = if narrow { mode.narrow() } else { mode };
        let rip = core.cpu.rip;
        let found = match self.cache.find(core, &mut self.env, rip, mode) {
            Ok(Some(found)) => found,
            Ok(None) => {
                self.counts.untranslated += 1;
                return self.interpret(1);
            }
            Err(exception) => {
                let _ = core.raise(exception);
                return match self.processor.deliver_fault() {
                    Flow::TripleFault => Next::Return(MachineExit::TripleFault),
                    _ => Next::Loop,
                };
            }
        };
        // What was left may be gone, or its page be mapped elsewhere.
        if flushes == self.cache.counts.jump_flushes
            && let Some(exit) = resolve
        {
            self.resolve(exit, &found, rip, mode);
        }
        let entry = self.cache.entry(&found);
        trace::enter(self.processor.core.id, rip, mode, entry);
        self.env.page = rip & !0xfff;
        self.mode = Some(mode.wide());
        self.load();
        self.enter(entry);
        while let Some(entry) = self.go_on_quickly() {
            self.enter(entry);
        }
        self.store();
        self.leave()
    }

    /// The same mode with windows, if the program has any.
    pub(crate) fn with_windows(&mut self, mode: Mode) -> Mode {
        let core = &mut self.processor.core;
        if !mode.is_user() || mode.is_code32() {
            return mode;
        }
        mode.with_windows(core.mmu.has_windows(&core.cpu))
    }

    /// Lets what was left lead to its target, which was found, from now on.
    pub(crate) fn resolve(&mut self, exit: Exit, found: &Found, rip: u64, mode: Mode) {
        let (cache, env) = (&mut self.cache, &mut self.env);
        match exit {
            Exit::Link(number) => cache.resolve_link(number, found),
            Exit::Cell(number) => cache.resolve_cell(env, number, rip, found),
            Exit::Indirect => cache.resolve_jump(env, mode.space(), rip, found),
            _ => {}
        }
    }

    /// Does what the tuning wants done before generated code is entered.
    #[inline]
    fn stress(&mut self) {
        let Some(due) = self.stress.next() else {
            return;
        };
        let core = &mut self.processor.core;
        if due.flush {
            core.mmu.flush(Flush::All);
        }
        if due.evict {
            self.cache.clear(&mut self.env);
        }
        // Counting code looks at the word before it does anything: twice in a row, it would do
        // nothing.
        let looked = self.counting && matches!(Exit::decode(self.env.exit), Exit::Poll(_));
        if due.exit
            && !looked
            && let Some(own) = core.attention.get(core.id as usize)
        {
            own.raise(Reason::ENGINE);
        }
    }

    /// From the processor's state to the environment.
    fn load(&mut self) {
        let core = &mut self.processor.core;
        let env = &mut self.env;
        env.set_gpr(&core.cpu.gpr);
        let status = core.flags.bits();
        env.flags = (status as u32 & 0xff) << 8 | u32::from(status & rflags::OF != 0);
        env.bases = [core.cpu.seg(Seg::Fs).base, core.cpu.seg(Seg::Gs).base];
        env.kernel_gs = core.cpu.msr.kernel_gs_base;
        env.system = (core.cpu.rflags & SYSTEM) as u32;
        env.interrupts = (core.cpu.rflags & rflags::IF) as u32;
        self.loaded_flags = u64::from(env.system | env.interrupts);
        env.heeded = core.heeded;
        env.heeded_on = core.heeded | Reason::INTERRUPT.0;
        env.heeded_off = core.heeded & !Reason::INTERRUPT.0;
        env.cpl = u32::from(core.cpu.cpl);
        env.switched = NOTHING;
        env.selectors = privilege::selectors(&core.cpu);
        if self.star != core.cpu.msr.star {
            self.star = core.cpu.msr.star;
            env.switched_selectors = privilege::switched_selectors(&core.cpu);
        }
        let readable = core.cpu.cr4 & cr4::TSD == 0 && self.ahead.is_some();
        env.may_read_time = u32::from(readable);
        env.ahead = self
            .ahead
            .unwrap_or(0)
            .wrapping_sub(core.cpu.msr.tsc_adjust);
        env.system_calls = privilege::system_calls(&core.cpu);
        env.kept_flags = !(core.cpu.msr.fmask as u32) | rflags::FIXED as u32;
        env.x87_opcode = core.cpu.vector.x87.fop.into();
        env.x87_code = core.cpu.vector.x87.fip;
        env.x87_data = core.cpu.vector.x87.fdp;
        env.budget = self.processor.remaining;
        self.counts.entries += 1;
    }

    /// Runs generated code from `entry` on until it leaves.
    fn enter(&mut self, entry: u64) {
        let stub = self.cache.entry_stub() as usize as *const ();
        // SAFETY: the stub is code that this vCPU's cache has written. It obeys the ABI, and reaches
        // nothing but the environment (GS) and the stack below it, the vector state, and guest memory
        // through the TLB or windows. What it calls back takes the processor by the environment's
        // pointer; no reference to either is in use meanwhile.
        unsafe {
            let run: extern "sysv64" fn(u64) = std::mem::transmute(stub);
            run(entry);
        }
    }

    /// From the environment to the processor's state, but for the instruction pointer and the flags.
    fn store(&mut self) {
        let (core, env) = (&mut self.processor.core, &self.env);
        // No address of a group outlasts its block.
        core.mmu.settle();
        env.take_gpr(&mut core.cpu.gpr);
        core.cpu.segments[Seg::Fs as usize].base = env.bases[0];
        core.cpu.segments[Seg::Gs as usize].base = env.bases[1];
        core.cpu.msr.kernel_gs_base = env.kernel_gs;
        let x87 = &mut core.cpu.vector.x87;
        (x87.fop, x87.fip, x87.fdp) = (env.x87_opcode as u16, env.x87_code, env.x87_data);
        let flags = u64::from(env.system | env.interrupts);
        // A refill may have changed AC as it was at that time.
        let known = core.cpu.rflags & (SYSTEM | rflags::IF);
        core.cpu.cpl = env.cpl as u8;
        match env.switched {
            SYSCALL => syscall::load_supervisor(&mut core.cpu),
            SYSRET => syscall::load_program(&mut core.cpu, true),
            _ => {}
        }
        if flags != self.loaded_flags || flags != known || env.switched != NOTHING {
            core.cpu.rflags = core.cpu.rflags & !(SYSTEM | rflags::IF) | flags;
            core.refresh();
        }
        if self.counting {
            self.processor.remaining = self.env.budget;
        }
    }

    fn take_flags(&mut self, word: u32) {
        let word = u64::from(word);
        let status = word >> 8 & 0xd5 | (word & 1) << 11;
        self.processor.core.flags.set_bits(status);
    }

    /// Does what generated code was left for.
    fn leave(&mut self) -> Next {
        let exit = Exit::decode(self.env.exit);
        let page_fault = std::mem::take(&mut self.env.page_fault) != 0;
        if exit != Exit::Fault {
            self.take_flags(self.env.flags);
        }
        match exit {
            Exit::Link(_) | Exit::Cell(_) | Exit::Indirect => {
                self.count_jump(exit);
                self.go_on(self.target(exit), exit)
            }
            Exit::Fallback(site) => {
                self.return_to(site);
                let access = self.cache.tables.sites.get(site as usize);
                if self.env.straddles != 0 && access.is_some_and(|site| site.grouped) {
                    self.counts.straddles += 1;
                    self.note_straddle(site);
                    return Next::Narrow;
                }
                if page_fault && let Some(behind) = access.and_then(|site| site.access) {
                    return self.raise(behind);
                }
                self.counts.fallbacks += 1;
                self.interpret_one()
            }
            Exit::Poll(site) => {
                self.counts.polls += 1;
                self.go_to(site);
                Next::Loop
            }
            Exit::Budget(site) => {
                self.go_to(site);
                match self.processor.remaining {
                    0 => Next::Loop,
                    remaining => self.interpret(remaining),
                }
            }
            Exit::Fault => {
                self.counts.faults += 1;
                let unmended = std::mem::take(&mut self.env.unmended);
                let at = self.cache.offset(self.env.fault);
                let site = self
                    .cache
                    .tables
                    .fault_site(at)
                    .expect("only instructions with a site may fault");
                let saved = self.cache.tables.sites[site as usize].flags;
                let in_host = matches!(saved, Loc::Host | Loc::Both);
                self.take_flags(if in_host {
                    self.env.temp[0] as u32
                } else {
                    self.env.flags
                });
                let mut windows = false;
                if let Some(site) = self.cache.tables.sites.get(site as usize) {
                    let stack = &mut self.processor.core.cpu.gpr[Gpr::Rsp as usize];
                    *stack = stack.wrapping_add(site.owed as i64 as u64);
                    windows = site.mode.has_windows();
                }
                self.return_to(site);
                if windows && unmended != LATER {
                    self.note_straddle(site);
                }
                self.interpret(1)
            }
        }
    }

    /// Delivers the page fault of an access, which lies `behind` the address that was looked up.
    fn raise(&mut self, behind: u8) -> Next {
        let address = &mut self.processor.core.exception.payload;
        *address = address.wrapping_add(u64::from(behind));
        match self.processor.deliver_fault() {
            Flow::TripleFault => Next::Return(MachineExit::TripleFault),
            _ => self.interpreted(),
        }
    }

    /// Executes one instruction by the interpreter. If it changes code of its own page, that page's
    /// code is translated anew with exact flags: what takes its place may read flags that the code
    /// of before overwrote.
    fn interpret_one(&mut self) -> Next {
        let core = &mut self.processor.core;
        let (rip, before) = (core.cpu.rip, core.mmu.invalidations);
        let next = self.interpret(1);
        let core = &mut self.processor.core;
        if core.mmu.invalidations != before
            && let Ok(CodePage::Ram(page)) = core.mmu.code_page(&core.cpu, rip)
            && !core.mmu.memory().code().is_code(page)
        {
            self.cache.be_exact(page as u32);
        }
        next
    }

    /// Counts an exit that asks where a jump leads.
    pub(crate) fn count_jump(&mut self, exit: Exit) {
        let counts = &mut self.counts;
        match exit {
            Exit::Link(_) => counts.links += 1,
            Exit::Cell(_) => counts.cells += 1,
            _ => counts.indirect += 1,
        }
    }

    /// The address that a jump leads to, if that is what the exit asks.
    pub(crate) fn target(&self, exit: Exit) -> Option<u64> {
        let tables = &self.cache.tables;
        match exit {
            Exit::Link(number) => {
                let link = tables.links.get(number as usize)?;
                Some(self.address(link.mode, link.target))
            }
            Exit::Cell(number) => {
                let cell = tables.cells.get(number as usize)?;
                // Relative code is on its target's page already.
                Some(match cell.page {
                    ANY_PAGE => cell.target,
                    _ => self.env.page | cell.target & 0xfff,
                })
            }
            Exit::Indirect => Some(self.env.target),
            _ => None,
        }
    }

    /// Goes on at `target`, where `exit` is to lead from now on.
    fn go_on(&mut self, target: Option<u64>, exit: Exit) -> Next {
        let core = &mut self.processor.core;
        core.cpu.rip = target.unwrap_or(core.cpu.rip);
        if core.calls() != 0 || self.processor.remaining == 0 {
            return Next::Loop;
        }
        Next::Resolve(exit)
    }

    /// Lets a block whose accesses often lie in two pages give way to one without groups.
    fn note_straddle(&mut self, site: u32) {
        let Some(site) = self.cache.tables.sites.get(site as usize).copied() else {
            return;
        };
        let head = self.address(site.mode, site.head);
        self.cache
            .note_straddle(&mut self.processor.core, &mut self.env, head, site.mode);
    }

    /// The address that the tables hold as `place`.
    pub(crate) fn address(&self, mode: Mode, place: u64) -> u64 {
        if !mode.is_relative() {
            return place;
        }
        let address = self.env.page.wrapping_add(place);
        if mode.is_code32() {
            address & 0xffff_ffff
        } else {
            address
        }
    }

    /// The state, which was stored at `site`, becomes that before its instruction.
    fn go_to(&mut self, site: u32) {
        if let Some(site) = self.cache.tables.sites.get(site as usize) {
            self.processor.core.cpu.rip = self.address(site.mode, site.rip);
            site.loan.settle(&mut self.processor.core.cpu.gpr);
        }
    }

    /// The instruction of `site` is to be executed next.
    fn return_to(&mut self, site: u32) {
        self.go_to(site);
        let Some(site) = self.cache.tables.sites.get(site as usize) else {
            return;
        };
        if self.counting {
            self.processor.remaining += u64::from(site.uncounted);
        }
    }
}

impl Vcpu for TranslatorVcpu {
    fn run(&mut self, budget: Option<u64>) -> MachineExit {
        self.counting = budget.is_some();
        self.processor.begin(budget);
        self.ahead = self.processor.core.clock.behind_host();
        let own = ptr::from_ref::<Env>(&self.env) as u64;
        let before = gs::swap(own);
        let exit = self.run_until_exit();
        gs::swap(before);
        if let Some(budget) = budget {
            self.counts.executed += budget - self.processor.remaining;
        }
        self.processor.end();
        exit
    }

    fn state(&mut self) -> &CpuState {
        self.processor.state()
    }

    fn set_state(&mut self, state: CpuState) {
        self.processor.set_state(state);
    }

    fn counters(&self) -> Counters {
        let (own, cache) = (&self.counts, &self.cache.counts);
        let [mapped, compared] = self.processor.core.mmu.windows_counts();
        let mut counters = self.processor.counters();
        for (name, _) in &mut counters {
            if *name == "instructions" {
                *name = "instructions_interpreted";
            }
        }
        counters.insert(0, ("instructions", own.executed));
        counters.extend([
            ("blocks_translated", cache.translations),
            ("instructions_translated", cache.translated),
            ("code_bytes", cache.bytes),
            ("pages_invalidated", cache.invalidations),
            ("code_evictions", cache.evictions),
            ("jump_flushes", cache.jump_flushes),
            ("tlb_refills", self.env.misses),
            ("entries", own.entries),
            ("exits_link", own.links),
            ("exits_cell", own.cells),
            ("exits_indirect", own.indirect),
            ("exits_interpreter", own.fallbacks),
            ("exits_straddle", own.straddles),
            ("exits_poll", own.polls),
            ("exits_fault", own.faults),
            ("window_pages", mapped),
            ("window_comparisons", compared),
            ("untranslated", own.untranslated),
        ]);
        counters
    }
}
