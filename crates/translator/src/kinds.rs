//! How instructions are translated, remembered for each opcode in each mode.

use crate::access::memory_operand;
use crate::block::Kind;
use crate::mode::Mode;
use iced_x86::{Code, Instruction};

/// More than there are opcodes, as the decoder tells them apart.
const OPCODES: usize = 1 << 13;
/// Modes that are remembered: a guest uses few, and could use many.
const MOST: usize = 16;

/// What is known of the opcodes of one mode, each with and without an operand in memory.
#[derive(Debug)]
pub struct Known([[Option<Kind>; 2]; OPCODES]);

impl Known {
    /// The kind of `ins`, which `find` finds out if it is not known.
    #[inline]
    pub fn kind(&mut self, ins: &Instruction, find: impl FnOnce() -> Kind) -> Kind {
        if ins.has_lock_prefix() {
            return find();
        }
        let known =
            &mut self.0[ins.code() as usize % OPCODES][usize::from(memory_operand(ins).is_some())];
        if let Some(kind) = *known {
            debug_assert_eq!(kind, find());
            return kind;
        }
        let kind = find();
        // The kind of these depends on prefixes or registers.
        if !ins.is_string_instruction() && ins.code() != Code::Mov_r64_cr {
            *known = Some(kind);
        }
        kind
    }
}

/// What is known of the opcodes of each mode.
#[derive(Debug, Default)]
pub struct Kinds {
    modes: Vec<(Mode, Box<Known>)>,
}

impl Kinds {
    /// What is known in `mode`.
    pub fn of(&mut self, mode: Mode) -> &mut Known {
        let found = self.modes.iter().position(|(known, _)| *known == mode);
        let index = found.unwrap_or_else(|| {
            if self.modes.len() == MOST {
                self.modes.clear();
            }
            let nothing = Box::new(Known([[None; 2]; OPCODES]));
            self.modes.push((mode, nothing));
            self.modes.len() - 1
        });
        &mut self.modes[index].1
    }
}
