//! Which status flags instructions read and overwrite.

use iced_x86::{Instruction, Mnemonic, OpKind};

/// A set of status flags: the low six of [`iced_x86::RflagsBits`].
pub type Flags = u8;

/// All six status flags.
pub const ALL: Flags = 0x3f;

/// What an instruction does to the status flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// Flags that it depends on, or may leave as they were.
    pub reads: Flags,
    /// Flags that it sets whatever they were.
    pub kills: Flags,
}

impl Effect {
    /// An effect that needs all flags, as everything does that the interpreter executes.
    pub const UNKNOWN: Self = Self {
        reads: ALL,
        kills: 0,
    };

    /// The effect of `instruction`. Flags that the manual calls undefined behind it need not be what the
    /// processor would make of them unless `exact`: what is not exact is overwritten, whatever it was.
    pub fn of(instruction: &Instruction, exact: bool) -> Self {
        let reads = instruction.rflags_read() as u8 & ALL;
        let modified = instruction.rflags_modified() as u8 & ALL;
        if modified == 0 {
            return Self { reads, kills: 0 };
        }
        if may_keep(instruction) {
            return Self {
                reads: ALL,
                kills: 0,
            };
        }
        // What is undefined may depend on what it was (IMUL keeps it, on some), but for the operations
        // whose results all processors agree on.
        let undefined = if !exact || is_defined(instruction.mnemonic()) {
            0
        } else {
            instruction.rflags_undefined() as u8 & ALL
        };
        Self {
            reads: reads | undefined,
            kills: modified & !undefined,
        }
    }

    /// Whether the instruction has to do with the flags at all.
    pub const fn touches(self) -> bool {
        self.reads | self.kills != 0
    }

    /// The flags that matter before the instruction if `after` matter behind it.
    pub const fn live_before(self, after: Flags) -> Flags {
        self.reads | after & !self.kills
    }
}

/// Shifts and rotations by a count that may be 0.
fn may_keep(instruction: &Instruction) -> bool {
    let shifts = matches!(
        instruction.mnemonic(),
        Mnemonic::Rcl
            | Mnemonic::Rcr
            | Mnemonic::Rol
            | Mnemonic::Ror
            | Mnemonic::Sal
            | Mnemonic::Sar
            | Mnemonic::Shl
            | Mnemonic::Shld
            | Mnemonic::Shr
            | Mnemonic::Shrd
    );
    let last = instruction.op_count().saturating_sub(1);
    shifts
        && match instruction.op_kind(last) {
            OpKind::Immediate8 => instruction.immediate8() & 0x1f == 0,
            _ => true,
        }
}

/// Operations whose undefined flags (AF) come out the same whatever they were.
const fn is_defined(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::And | Mnemonic::Or | Mnemonic::Xor | Mnemonic::Test
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions};

    fn effect(bytes: &[u8]) -> Effect {
        Effect::of(
            &Decoder::new(64, bytes, DecoderOptions::NONE).decode(),
            true,
        )
    }

    #[test]
    fn undefined_flags_are_kept_by_exact_code_alone() {
        // imul eax, ebx leaves SF, ZF, AF and PF undefined.
        let imul = Decoder::new(64, &[0x0f, 0xaf, 0xc3], DecoderOptions::NONE).decode();
        assert_ne!(Effect::of(&imul, true).reads, 0);
        let inexact = Effect {
            reads: 0,
            kills: ALL,
        };
        assert_eq!(Effect::of(&imul, false), inexact);
        // rol eax, 5 keeps what it does not define, in any case.
        let rol = Decoder::new(64, &[0xc1, 0xc0, 5], DecoderOptions::NONE).decode();
        let kills = Effect::of(&rol, false).kills;
        assert!(kills != 0 && kills != ALL, "{kills:x}");
    }

    #[test]
    fn arithmetic_and_logic_overwrite_everything() {
        // add eax, ebx; test eax, eax
        for bytes in [[0x01, 0xd8], [0x85, 0xc0]] {
            assert_eq!(
                effect(&bytes),
                Effect {
                    reads: 0,
                    kills: ALL
                }
            );
        }
    }

    #[test]
    fn increments_and_shifts_by_cl_keep_some() {
        // inc eax
        assert_ne!(effect(&[0xff, 0xc0]).kills, ALL);
        // shl eax, cl; shl eax, 32
        assert_eq!(effect(&[0xd3, 0xe0]).reads, ALL);
        assert_eq!(effect(&[0xc1, 0xe0, 32]).kills, 0);
    }

    #[test]
    fn moves_have_nothing_to_do_with_flags() {
        assert!(!effect(&[0x89, 0xd8]).touches());
    }
}
