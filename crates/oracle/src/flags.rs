//! Which status flags a case of several instructions relies on.
//!
//! The manual leaves flags undefined after many instructions, and processors of one maker even differ there. What an
//! instruction makes of such a flag would be a difference that no rule could tell from a mistake. So a case settles for some
//! flags: none of its instructions leaves these undefined, and none reads others.

use crate::random::Random;
use belljar_x86::bits::rflags;
use iced_x86::{Code, Instruction, Mnemonic, OpKind, RflagsBits};

/// The status flags in the decoder's words.
const STATUS: u32 = RflagsBits::OF
    | RflagsBits::SF
    | RflagsBits::ZF
    | RflagsBits::AF
    | RflagsBits::CF
    | RflagsBits::PF;

/// Status flags that are never undefined in a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defined(u32);

impl Defined {
    /// All of them.
    pub const ALL: Self = Self(STATUS);

    /// Flags that suit some kind of instructions.
    pub fn pick(random: &mut Random) -> Self {
        random.pick(&[
            Self::ALL,
            // AND and its like
            Self(STATUS & !RflagsBits::AF),
            // Shifts
            Self(STATUS & !(RflagsBits::AF | RflagsBits::OF)),
            // MUL
            Self(RflagsBits::CF | RflagsBits::OF),
            // BT
            Self(RflagsBits::CF | RflagsBits::ZF),
            // BSF
            Self(RflagsBits::ZF),
            Self(0),
        ])
    }

    /// Whether `instruction` leaves these defined and reads no others.
    pub fn allows(self, instruction: &Instruction) -> bool {
        undefined(instruction) & self.0 == 0 && instruction.rflags_read() & STATUS & !self.0 == 0
    }

    /// The same of instructions with `code`, whatever their operands.
    pub fn allows_code(self, code: Code) -> bool {
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        // Shifts by 0 and 1 leave more defined than others.
        instruction.set_immediate8(2);
        self.allows(&instruction)
    }

    /// The status flags that may be undefined, as bits of RFLAGS.
    pub fn others(self) -> u64 {
        in_rflags(STATUS & !self.0)
    }
}

/// The flags that `instruction` leaves undefined, in the decoder's words.
pub fn undefined(instruction: &Instruction) -> u32 {
    let known = instruction.rflags_undefined();
    let rotates = matches!(instruction.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr);
    let by_immediate = instruction.op1_kind() == OpKind::Immediate8;
    // The decoder takes a rotation by all of its bits for none. SDM 2B, RCL.
    if rotates && by_immediate && instruction.immediate8() & 0x1f > 1 {
        known | RflagsBits::OF
    } else {
        known
    }
}

/// Status flags in the decoder's words as bits of RFLAGS.
pub fn in_rflags(bits: u32) -> u64 {
    const FLAGS: [(u32, u64); 6] = [
        (RflagsBits::OF, rflags::OF),
        (RflagsBits::SF, rflags::SF),
        (RflagsBits::ZF, rflags::ZF),
        (RflagsBits::AF, rflags::AF),
        (RflagsBits::CF, rflags::CF),
        (RflagsBits::PF, rflags::PF),
    ];
    let chosen = FLAGS.iter().filter(|(name, _)| bits & name != 0);
    chosen.fold(0, |mask, (_, flag)| mask | flag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_reads_or_spoils_an_undefined_flag_is_not_allowed() {
        let shifts = Defined(STATUS & !(RflagsBits::AF | RflagsBits::OF));
        assert!(shifts.allows_code(Code::Shl_rm32_imm8));
        assert!(shifts.allows_code(Code::Jb_rel8_64));
        assert!(!shifts.allows_code(Code::Jo_rel8_64));
        assert!(!shifts.allows_code(Code::Bsf_r32_rm32));
        assert!(!Defined::ALL.allows_code(Code::Shl_rm32_imm8));
        assert!(Defined(0).allows_code(Code::Bsf_r32_rm32));
        assert!(!Defined(0).allows_code(Code::Adc_rm8_r8));
        assert_eq!(shifts.others(), rflags::AF | rflags::OF);
    }
}
