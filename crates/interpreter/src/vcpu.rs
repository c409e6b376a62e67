//! The loop that finds and runs blocks, and what happens between instructions.

use crate::cache::{Block, Cache, Key, NONE};
use crate::decode;
use crate::mmu::CodePage;
use crate::op::{Fault, Flow, Op, Step};
use crate::processor::Core;
use belljar_engine::{Counters, Exit, Reason, Vcpu};
use belljar_x86::bits::rflags;
use belljar_x86::paging::Flush;
use belljar_x86::state::{Activity, Shadow};
use belljar_x86::syscall::Vendor;
use belljar_x86::{CpuState, Event, Exception, Seg, debug};

/// A vCPU of the interpreter.
#[derive(Debug)]
pub struct InterpreterVcpu {
    /// The processor.
    pub core: Core,
    cache: Cache,
    /// Instructions that may still be executed in this run.
    pub remaining: u64,
    /// The link to follow to the next block, or [`NONE`].
    link: u32,
    /// The present instruction raised an exception.
    faulted: bool,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    instructions: u64,
    decoded: u64,
    exits: u64,
    events: u64,
    cache_flushes: u64,
}

impl InterpreterVcpu {
    /// A vCPU around `core`.
    pub fn new(core: Core) -> Self {
        Self {
            core,
            cache: Cache::new(),
            remaining: 0,
            link: NONE,
            faulted: false,
            counts: Counts::default(),
        }
    }

    /// Keeps at most about so many decoded instructions, for an engine that executes by this one what
    /// is rare. When there are more, all are dropped.
    pub fn keep_at_most(&mut self, instructions: usize) {
        self.cache.most_ops = instructions;
    }

    fn run_until_exit(&mut self) -> Exit {
        loop {
            if self.core.calls() != 0
                && let Some(exit) = self.attend()
            {
                return exit;
            }
            if self.core.special {
                if let Some(exit) = self.step() {
                    return exit;
                }
                continue;
            }
            if self.remaining == 0 {
                return Exit::Budget;
            }
            let left = match self.find_block() {
                Ok(id) => self.execute(id, u64::MAX),
                Err(Fault) => self.deliver_fault(),
            };
            if left == Flow::TripleFault {
                return Exit::TripleFault;
            }
        }
    }

    /// Acts on the attention word. An exit ends the run.
    #[cold]
    pub fn attend(&mut self) -> Option<Exit> {
        let calls = self.core.calls();
        if calls & Reason::ENGINE.0 != 0 {
            self.core.answer_requests();
        }
        if calls & Reason::MACHINE.0 != 0 {
            return Some(Exit::Attention);
        }
        if self.remaining == 0 {
            return None;
        }
        let event = self.next_event(calls)?;
        self.counts.events += 1;
        self.core.cpu.activity = Activity::Running;
        self.link = NONE;
        (self.core.deliver(event) == Flow::TripleFault).then_some(Exit::TripleFault)
    }

    /// The interrupt that is to be delivered now. SDM 3A, 6.9.
    fn next_event(&mut self, calls: u32) -> Option<Event> {
        let cpu = &self.core.cpu;
        let waits = matches!(cpu.activity, Activity::WaitForSipi | Activity::Shutdown);
        if waits
            // STI holds back NMIs, too, on today's processors. SDM 2, STI.
            || cpu.shadow != Shadow::None
            || cpu.pending_event.is_some()
            || cpu.pending_debug != 0
        {
            return None;
        }
        if calls & Reason::NMI.0 != 0
            && !cpu.nmi_blocked
            && let Some(own) = self.core.attention.get(self.core.id as usize)
        {
            own.clear(Reason::NMI);
            return Some(Event::Nmi);
        }
        if calls & Reason::INTERRUPT.0 != 0 && cpu.rflags & rflags::IF != 0 {
            return self
                .core
                .board
                .acknowledge_interrupt(self.core.id)
                .map(Event::Interrupt);
        }
        None
    }

    /// Executes one instruction with everything that may have to happen before and after it: for
    /// processors that are [`special`](Core::special). An exit ends the run.
    #[cold]
    pub fn step(&mut self) -> Option<Exit> {
        self.link = NONE;
        let cpu = &mut self.core.cpu;
        // A debug exception ends HLT, also that of HLT's own trap. SDM 2, HLT.
        if cpu.activity == Activity::Halted && cpu.pending_debug != 0 {
            cpu.activity = Activity::Running;
        }
        match cpu.activity {
            Activity::Running => {}
            Activity::Halted | Activity::WaitForSipi => return Some(Exit::Halted),
            Activity::Shutdown => return Some(Exit::TripleFault),
        }
        if let Some(event) = self.core.cpu.pending_event.take() {
            return self.deliver(event);
        }
        let shadow = self.core.cpu.shadow;
        if self.core.cpu.pending_debug != 0 && shadow != Shadow::MovSs {
            let bits = std::mem::take(&mut self.core.cpu.pending_debug);
            return self.deliver(Event::Exception(Exception::debug(bits)));
        }
        if self.remaining == 0 {
            return Some(Exit::Budget);
        }
        if let Some(exit) = self.code_breakpoint(shadow) {
            return exit;
        }
        let flags_before = self.core.cpu.rflags;
        self.core.cpu.shadow = Shadow::None;
        self.core.single = true;
        self.faulted = false;
        let left = match self.find_block() {
            Ok(id) => self.execute(id, 1),
            Err(Fault) => self.deliver_fault(),
        };
        self.core.single = false;
        self.link = NONE;
        if left == Flow::TripleFault {
            return Some(Exit::TripleFault);
        }
        self.finish_step(flags_before, left);
        None
    }

    /// #DB for a breakpoint on the instruction. `None` if there is none; else what
    /// [`step`](Self::step) gives.
    #[allow(clippy::option_option)]
    fn code_breakpoint(&mut self, shadow: Shadow) -> Option<Option<Exit>> {
        let cpu = &self.core.cpu;
        if !debug::any_active(cpu) || cpu.rflags & rflags::RF != 0 {
            return None;
        }
        // Intel's processors alone hold these back, too. SDM 3A, 6.8.3.
        if shadow == Shadow::MovSs && self.core.vendor == Vendor::Intel {
            return None;
        }
        let bits = debug::instruction_breakpoint(cpu, self.key().linear())?;
        Some(self.deliver(Event::Exception(Exception::debug(bits))))
    }

    /// The traps after an instruction. SDM 3A, 6.9 and 17.3.1.4.
    fn finish_step(&mut self, flags_before: u64, left: Flow) {
        let hits = std::mem::take(&mut self.core.mmu.breakpoints);
        let core = &mut self.core;
        if self.faulted {
            return;
        }
        core.cpu.pending_debug |= hits;
        // An interrupt or SYSCALL that cleared TF is not traced, nor is MOV SS.
        let untraced = core.cpu.shadow == Shadow::MovSs
            || (left == Flow::ResyncJump && core.cpu.rflags & rflags::TF == 0);
        if flags_before & rflags::TF != 0 && !untraced {
            core.cpu.pending_debug |= belljar_x86::bits::debug::DR6_BS;
        }
        // RF holds for one instruction, unless that instruction loaded it.
        if flags_before & rflags::RF != 0 && left != Flow::ResyncJump {
            core.cpu.rflags &= !rflags::RF;
        }
        core.heed();
    }

    fn deliver(&mut self, event: Event) -> Option<Exit> {
        self.counts.events += 1;
        (self.core.deliver(event) == Flow::TripleFault).then_some(Exit::TripleFault)
    }

    /// Executes at most `limit` instructions, of one block. An exit ends the run.
    pub fn execute_some(&mut self, limit: u64) -> Option<Exit> {
        self.link = NONE;
        let left = match self.find_block() {
            Ok(id) => self.execute(id, limit),
            Err(Fault) => self.deliver_fault(),
        };
        self.link = NONE;
        (left == Flow::TripleFault).then_some(Exit::TripleFault)
    }

    /// Starts a run of at most `budget` instructions.
    pub fn begin(&mut self, budget: Option<u64>) {
        self.remaining = budget.unwrap_or(u64::MAX);
        self.link = NONE;
        self.core.member.start();
        self.core.answer_requests();
        self.core.refresh();
    }

    /// Ends a run.
    pub fn end(&mut self) {
        self.core.sync_flags();
        // A vCPU that does not run counts as having answered.
        self.core.answer_requests();
        self.core.member.stop();
        self.counts.exits += 1;
    }

    /// Delivers the exception of a fault, with `rip` as it stands.
    pub fn deliver_fault(&mut self) -> Flow {
        self.counts.events += 1;
        self.faulted = true;
        self.link = NONE;
        self.core.mmu.breakpoints = 0;
        let exception = self.core.exception;
        self.core.deliver(Event::Exception(exception))
    }

    #[inline(always)]
    fn key(&self) -> Key {
        let core = &self.core;
        let (base, limit) = if core.code64 {
            (0, 0)
        } else {
            let code = core.cpu.seg(Seg::Cs);
            (code.base, code.limit)
        };
        Key {
            rip: core.cpu.rip,
            base,
            limit,
            mode: core.mode,
        }
    }

    /// The block at `rip`: by the link, by lookup, or decoded now.
    #[inline(always)]
    fn find_block(&mut self) -> Result<u32, Fault> {
        let link = std::mem::replace(&mut self.link, NONE);
        let epoch = self.core.mmu.epoch;
        if link != NONE {
            let id = self.cache.follow(link);
            if self
                .cache
                .is_valid(id, epoch, self.core.mmu.memory().code())
            {
                return Ok(id);
            }
        }
        let key = self.key();
        let candidates = self.cache.candidates(&key);
        for id in candidates {
            if self
                .cache
                .is_valid(id, epoch, self.core.mmu.memory().code())
            {
                self.cache.set_link(link, id);
                return Ok(id);
            }
        }
        let before = self.counts.cache_flushes;
        let id = self.find_block_slowly(&key, candidates)?;
        if self.counts.cache_flushes == before {
            self.cache.set_link(link, id);
        }
        Ok(id)
    }

    #[cold]
    #[inline(never)]
    fn find_block_slowly(&mut self, key: &Key, candidates: [u32; 2]) -> Result<u32, Fault> {
        let core = &mut self.core;
        let linear = key.linear();
        let page = core
            .mmu
            .code_page(&core.cpu, linear)
            .map_err(|e| core.raise(e))?;
        for id in candidates {
            let Some(block) = self.cache.blocks.get(id as usize).copied() else {
                continue;
            };
            if !matches!(page, CodePage::Ram(page) if page as u32 == block.first.page) {
                continue;
            }
            if block.second.page != NONE {
                let last = linear.wrapping_add(u64::from(block.length) - 1);
                let second = core
                    .mmu
                    .code_page(&core.cpu, last & !0xfff)
                    .map_err(|e| core.raise(e))?;
                if !matches!(second, CodePage::Ram(page) if page as u32 == block.second.page) {
                    continue;
                }
            }
            if self.cache.is_unchanged(id, core.mmu.memory().code()) {
                self.cache.blocks[id as usize].epoch = core.mmu.epoch;
                return Ok(id);
            }
        }
        self.decode_block(key, page, candidates)
    }

    #[cold]
    fn decode_block(
        &mut self,
        key: &Key,
        page: CodePage,
        candidates: [u32; 2],
    ) -> Result<u32, Fault> {
        if self.cache.is_full() || self.core.instructions.len() > self.cache.most_ops {
            self.drop_code();
        }
        self.counts.decoded += 1;
        let old = if self.cache.blocks.is_empty() {
            [NONE; 2]
        } else {
            let code = self.core.mmu.memory().code();
            candidates.map(|id| {
                if self.cache.is_unchanged(id, code) {
                    NONE
                } else {
                    id
                }
            })
        };
        let decoded = match decode::block(&mut self.core, &mut self.cache, key, page) {
            Err(decode::Stop::CodeFull) => {
                self.drop_code();
                decode::block(&mut self.core, &mut self.cache, key, page)
            }
            other => other,
        };
        match decoded {
            Ok(block) => Ok(self.insert(block, old)),
            Err(decode::Stop::Fault) => Err(Fault),
            // The code memory is empty and yet takes nothing: the instruction cannot be had.
            Err(decode::Stop::CodeFull) => Err(self.core.invalid_opcode()),
        }
    }

    fn insert(&mut self, mut block: Block, old: [u32; 2]) -> u32 {
        block.epoch = if block.first.page == NONE {
            0
        } else {
            self.core.mmu.epoch
        };
        self.cache.insert(block, old)
    }

    /// Drops all decoded code.
    fn drop_code(&mut self) {
        self.counts.cache_flushes += 1;
        self.link = NONE;
        self.cache.clear();
        self.core.instructions.clear();
        self.core.compiled.clear();
        self.core.stubs.reset();
    }

    /// Runs a block, but at most `limit` instructions of it. Sets `rip` and the link to follow.
    #[inline(always)]
    fn execute(&mut self, id: u32, limit: u64) -> Flow {
        let Some(block) = self.cache.blocks.get(id as usize) else {
            return Flow::Jump;
        };
        let whole = u64::from(block.count);
        let now = whole.min(limit).min(self.remaining);
        let (start, end) = (block.start as usize, block.start as usize + now as usize);
        let Some(ops) = self.cache.ops.get(start..end) else {
            return Flow::Jump;
        };
        let core = &mut self.core;
        core.block_rip = block.key.rip;
        core.mmu.disturbed = false;
        for (number, op) in ops.iter().enumerate() {
            let step = (op.handler)(core, op);
            if step != Ok(Flow::Next) {
                let op = *op;
                return self.leave(number as u64, &op, step);
            }
        }
        if now == whole {
            self.link = block.link;
            core.cpu.rip = core.next_after(u64::from(block.length));
        } else if let Some(op) = ops.last() {
            core.cpu.rip = core.next_after(op.end());
        }
        self.count(now);
        Flow::Next
    }

    #[inline(always)]
    fn count(&mut self, instructions: u64) {
        self.remaining = self.remaining.wrapping_sub(instructions);
        self.counts.instructions = self.counts.instructions.wrapping_add(instructions);
    }

    /// Leaves a block at op number `number`.
    #[inline(always)]
    fn leave(&mut self, number: u64, op: &Op, step: Step) -> Flow {
        match step {
            Ok(Flow::Taken) => {
                self.count(number + 1);
                self.link = op.disp as u32;
                Flow::Taken
            }
            Ok(Flow::Jump) => {
                self.count(number + 1);
                Flow::Jump
            }
            _ => self.leave_slowly(number, op, step),
        }
    }

    #[inline(never)]
    fn leave_slowly(&mut self, number: u64, op: &Op, step: Step) -> Flow {
        let Ok(flow) = step else {
            return self.leave_by_fault(number, op);
        };
        self.count(number + 1);
        if matches!(flow, Flow::Next | Flow::Leave | Flow::Resync) {
            self.core.cpu.rip = self.core.next_after(op.end());
        }
        if matches!(flow, Flow::Resync | Flow::ResyncJump) {
            self.core.refresh();
        }
        flow
    }

    /// Leaves a block at op number `number`, which raised an exception.
    #[inline(never)]
    fn leave_by_fault(&mut self, number: u64, op: &Op) -> Flow {
        self.count(number);
        let core = &mut self.core;
        core.cpu.rip = core.next_after(u64::from(op.offset));
        if std::mem::take(&mut core.mmu.noncanonical)
            && op.seg == Seg::Ss as u8
            && core.exception == Exception::general_protection(0)
        {
            core.exception = Exception::stack_fault(0);
        }
        self.deliver_fault()
    }
}

impl Vcpu for InterpreterVcpu {
    fn run(&mut self, budget: Option<u64>) -> Exit {
        self.begin(budget);
        let exit = self.run_until_exit();
        self.end();
        exit
    }

    fn state(&mut self) -> &CpuState {
        &self.core.cpu
    }

    fn set_state(&mut self, state: CpuState) {
        self.core.cpu = state;
        self.core.load_flags();
        // Decoded code stays: it is found by all that it depends on, once its pages are looked at
        // anew.
        self.core.mmu.flush(Flush::All);
        self.link = NONE;
        self.core.refresh();
    }

    fn counters(&self) -> Counters {
        vec![
            ("instructions", self.counts.instructions),
            ("blocks_decoded", self.counts.decoded),
            ("tlb_misses", self.core.mmu.misses),
            ("exits", self.counts.exits),
            ("events", self.counts.events),
            ("code_invalidations", self.core.mmu.invalidations),
            ("cache_flushes", self.counts.cache_flushes),
        ]
    }
}
