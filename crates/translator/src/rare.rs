//! Code that is written behind a block: what is rarely executed.

use crate::asm::{self, Alu, Label, R10, RAX, at};
use crate::block::Block;
use crate::env::Env;
use crate::exit::Exit;
use crate::near::Near;
use crate::tables::{Cell, Entry, Link, Loc};

/// Code that is written behind the block.
#[derive(Debug)]
pub enum Rare {
    /// An access missed the TLB.
    Miss {
        label: Label,
        retry: Label,
        site: u32,
        size: usize,
        write: bool,
        /// The TLB's tag that was subtracted from the address in R10.
        tag: asm::Mem,
    },
    /// An access is not where the near copy is.
    Far {
        label: Label,
        /// The near check.
        retry: Label,
        done: Label,
        near: Near,
        site: u32,
        size: usize,
        write: bool,
    },
    /// A direct jump.
    Jump {
        label: Label,
        target: u64,
        loc: Loc,
        /// Where the displacement of a jump to `label` lies, which can lead to the target itself.
        patch: Option<u32>,
        /// Instructions of the block that are not executed.
        skipped: u8,
        /// Whether it leads backward.
        backward: bool,
        /// Whether no register is in another's place any more.
        exchanged: bool,
    },
    /// An indirect jump, to what is in RAX, missed the jump cache.
    Indirect {
        label: Label,
        /// The jump itself, which raises an exception if the target is not canonical.
        site: u32,
        release: i32,
        /// Whether the target is code of programs.
        user: bool,
    },
    /// The environment says where to go; the flags are in the environment.
    Leave { label: Label, exit: Exit },
}

impl Block<'_> {
    /// Writes it, and the block is done.
    pub fn write_rare(&mut self) {
        let mut all = std::mem::take(self.rare);
        for rare in all.drain(..) {
            match rare {
                Rare::Miss {
                    label,
                    retry,
                    site,
                    size,
                    write,
                    tag,
                } => {
                    self.asm.bind(label);
                    self.asm.alu_mem(Alu::Add, true, R10, tag);
                    self.refill(site, size, write);
                    self.asm.jmp(retry);
                }
                Rare::Far {
                    label,
                    retry,
                    done,
                    near,
                    site,
                    size,
                    write,
                } => {
                    self.asm.bind(label);
                    self.approach(near, size, write, done);
                    self.refill(site, size, write);
                    self.asm.jmp(retry);
                }
                Rare::Indirect {
                    label,
                    site,
                    release,
                    user,
                } => {
                    self.asm.bind(label);
                    let wrong = self.asm.label();
                    self.check_canonical(wrong, user);
                    self.release(release);
                    self.asm.store(Env::target(), RAX);
                    self.leave(Exit::Indirect);
                    self.asm.bind(wrong);
                    self.leave(Exit::Fallback(site));
                }
                Rare::Leave { label, exit } => {
                    self.asm.bind(label);
                    self.leave(exit);
                }
                Rare::Jump {
                    label,
                    target,
                    loc,
                    patch,
                    skipped,
                    backward,
                    exchanged,
                } => {
                    self.asm.bind(label);
                    let patch = if exchanged {
                        patch
                    } else {
                        self.exchange_before(patch)
                    };
                    self.write_jump(target, loc, patch, skipped, backward);
                }
            }
        }
        *self.rare = all;
        self.write_empty_cells();
    }

    /// Puts registers back in their places before a jump to what is known. Gives the place of the
    /// displacement that can lead to the target itself from now on, if there was one.
    fn exchange_before(&mut self, patch: Option<u32>) -> Option<u32> {
        self.exchange();
        patch.map(|_| {
            let next = self.asm.label();
            self.asm.jmp(next);
            let patch = self.asm.here() - 4;
            self.asm.bind(next);
            patch
        })
    }

    /// Leaves with the flags in the environment.
    fn leave(&mut self, exit: Exit) {
        self.asm.store_imm32(Env::exit(), exit.encode());
        self.asm.jmp_to(self.stubs.exit_saved);
    }

    /// Jumps to a target that is known, by a link if `patch` is the place of its displacement, else by a
    /// cell.
    pub fn write_jump(
        &mut self,
        target: u64,
        loc: Loc,
        patch: Option<u32>,
        skipped: u8,
        backward: bool,
    ) {
        if self.mode.counting() && skipped != 0 {
            self.asm.load(RAX, Env::budget());
            self.asm.lea(true, RAX, at(RAX, i32::from(skipped)));
            self.asm.store(Env::budget(), RAX);
        }
        let entry = match loc {
            Loc::Saved if backward => Entry::PollSaved,
            Loc::Saved => Entry::Saved,
            _ if backward => Entry::Poll,
            _ => Entry::Host,
        };
        let saved = loc == Loc::Saved;
        if let Some(patch) = patch {
            let link = self.tables.link(Link {
                patch,
                target: self.place_of(target),
                entry,
                mode: self.mode,
                page: self.source,
            });
            self.asm.store_imm32(Env::exit(), Exit::Link(link).encode());
            self.asm.jmp_to(if saved {
                self.stubs.exit_saved
            } else {
                self.stubs.exit_host
            });
            return;
        }
        if self.mode.is_relative() {
            self.turn_to_page(target, loc);
        }
        self.jump_by_cell(Cell {
            target: self.place_of(target),
            page: self.page,
            mode: self.mode,
            entry,
        });
    }

    /// Jumps to where a cell leads.
    pub fn jump_by_cell(&mut self, cell: Cell) {
        let number = self.tables.cell(cell);
        self.asm.jmp_mem(Env::cell(number));
    }

    /// Writes what the cells that the block made lead to while they are empty.
    fn write_empty_cells(&mut self) {
        for number in self.tables.empty_cells.len()..self.tables.cells.len() {
            self.tables.empty_cells.push(self.asm.here());
            self.asm
                .store_imm32(Env::exit(), Exit::Cell(number as u32).encode());
            self.asm.jmp_to(match self.tables.cells[number].entry {
                Entry::Host | Entry::Poll => self.stubs.exit_host,
                Entry::Saved | Entry::PollSaved => self.stubs.exit_saved,
            });
        }
    }

    /// The page that runs becomes that of `target`.
    fn turn_to_page(&mut self, target: u64, loc: Loc) {
        let distance = self.beyond_page(target & !0xfff);
        match i32::try_from(distance) {
            Ok(0) => {}
            Ok(distance) if matches!(loc, Loc::Saved | Loc::Dead) => {
                // add
                self.asm
                    .mem(self.wide(), &[0x81], Alu::Add as u8, Env::page());
                self.asm.bytes(&distance.to_le_bytes());
            }
            _ => {
                self.load_address(RAX, target & !0xfff);
                self.asm.store(Env::page(), RAX);
            }
        }
    }
}
