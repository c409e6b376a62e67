//! Exits that only ask where to go on: answered without moving any state.

use crate::exit::Exit;
use crate::mode::Mode;
use crate::trace;
use crate::vcpu::TranslatorVcpu;
use belljar_interpreter::mmu::CodePage;
use belljar_memory::PAGE_SIZE;
use belljar_x86::bits::rflags;

impl TranslatorVcpu {
    /// Where generated code that was just left goes on, if it asked for nothing else and the answer
    /// is known: an address in code memory. The state is still the environment's; else nothing has
    /// changed.
    pub(crate) fn go_on_quickly(&mut self) -> Option<u64> {
        let exit = Exit::decode(self.env.exit);
        let rip = self.target(exit)?;
        let mode = self.target_mode(exit)?;
        let core = &mut self.processor.core;
        let own = core.attention.get(core.id as usize)?;
        if self.counting || own.pending() & self.env.heeded != 0 || self.stress.comes_between() {
            return None;
        }
        let (flushes, code) = core.mmu.changes();
        if !self.cache.is_up_to_date(flushes, code) {
            return None;
        }
        core.set_access(self.env.system);
        core.cpu.cpl = self.env.cpl as u8;
        let mode = match exit {
            Exit::Indirect => self.with_windows(mode),
            _ => mode,
        };
        let core = &mut self.processor.core;
        let page = match core.mmu.known_code_page(mode.set(), rip) {
            Some(page) => page,
            None if core.mmu.must_settle() => return None,
            None => match core.mmu.code_page(&core.cpu, rip) {
                Ok(CodePage::Ram(page)) => page,
                _ => return None,
            },
        };
        let found = self.cache.find_again(core, rip, mode, page as u32)?;
        self.resolve(exit, &found, rip, mode);
        let entry = self.cache.entry(&found);
        trace::enter(self.processor.core.id, rip, mode, entry);
        self.env.page = rip & !(PAGE_SIZE - 1);
        self.count_jump(exit);
        self.counts.entries += 1;
        Some(entry)
    }

    /// The mode of the code that a jump leads to.
    fn target_mode(&self, exit: Exit) -> Option<Mode> {
        let tables = &self.cache.tables;
        match exit {
            Exit::Link(number) => tables.links.get(number as usize).map(|link| link.mode),
            Exit::Cell(number) => tables.cells.get(number as usize).map(|cell| cell.mode),
            _ => self.mode.map(|mode| match self.env.cpl {
                3 => mode.of_programs(),
                _ => mode.with_access(self.env.system & rflags::AC as u32 != 0),
            }),
        }
    }
}
