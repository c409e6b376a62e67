//! Exits that only ask where to go on: answered without moving any state.

use crate::exit::Exit;
use crate::tables::ANY_PAGE;
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
        let (rip, mode) = match exit {
            Exit::Link(number) => {
                let link = self.cache.tables.links.get(number as usize)?;
                (self.address(link.mode, link.target), link.mode)
            }
            Exit::Cell(number) => {
                let cell = self.cache.tables.cells.get(number as usize)?;
                // Relative code is on its target's page already.
                let target = match cell.page {
                    ANY_PAGE => cell.target,
                    _ => self.env.page | (cell.target & (PAGE_SIZE - 1)),
                };
                (target, cell.mode)
            }
            Exit::Indirect => {
                let set = self.env.system & rflags::AC as u32 != 0;
                let mode = match self.mode? {
                    mode if mode.is_user() => mode,
                    mode => mode.with_access(set),
                };
                (self.env.target, mode)
            }
            _ => return None,
        };
        let core = &mut self.processor.core;
        let own = core.attention.get(core.id as usize)?;
        if self.counting || own.pending() & self.env.heeded != 0 || self.stress.comes_between() {
            return None;
        }
        let (flushes, code) = core.mmu.changes();
        if !self.cache.is_up_to_date(flushes, code) {
            return None;
        }
        let pages = code.pages();
        let page = match core.mmu.known_code_page(mode.set(), rip) {
            Some(page) => page,
            None if core.mmu.must_settle() => return None,
            None => {
                core.set_access(self.env.system);
                match core.mmu.code_page(&core.cpu, rip) {
                    Ok(CodePage::Ram(page)) => page,
                    _ => return None,
                }
            }
        };
        let global = core.mmu.is_global(mode.set(), rip);
        let place = (page as u32, pages);
        let found = self.cache.find_again(rip, mode, place, global)?;
        self.resolve(exit, &found, rip, mode);
        let entry = self.cache.entry(&found);
        trace::enter(self.processor.core.id, rip, mode, entry);
        self.env.page = rip & !(PAGE_SIZE - 1);
        match exit {
            Exit::Link(_) => self.counts.links += 1,
            Exit::Cell(_) => self.counts.cells += 1,
            _ => self.counts.indirect += 1,
        }
        self.counts.entries += 1;
        Some(entry)
    }
}
