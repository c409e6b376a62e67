//! Random encodings of a given instruction: its opcode with random prefixes, operands, displacements and immediates. The
//! decoder tells whether they are what was meant.

use crate::catalogue::is_branch;
use crate::random::Random;
use iced_x86::{
    Code, ConstantOffsets, Decoder, DecoderOptions, EncodingKind, Instruction, MandatoryPrefix,
    OpCodeInfo, OpCodeOperandKind, OpCodeTableKind,
};

/// The longest that an instruction may be.
pub const LONGEST: usize = 15;

/// How often an encoding is tried before the instruction is given up for this case.
const ATTEMPTS: u32 = 200;

/// An encoded instruction.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// What the decoder says, at address 0.
    pub instruction: Instruction,
    /// Where displacement and immediate lie in the bytes.
    pub offsets: ConstantOffsets,
}

/// What memory operands may look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressing {
    /// Any form.
    Any,
    /// A displacement from RBX, RBP, R11 or R13, which a sequence leaves alone.
    Pinned,
}

/// The registers of [`Addressing::Pinned`].
pub const PINNED: [usize; 4] = [3, 5, 11, 13];

/// A random encoding of `code` which `accept` agrees to, or `None` if none was found.
pub fn encode(
    code: Code,
    random: &mut Random,
    addressing: Addressing,
    accept: &mut dyn FnMut(&Instruction) -> bool,
) -> Option<Encoded> {
    let info = code.op_code();
    (0..ATTEMPTS).find_map(|_| {
        let mut bytes = Vec::with_capacity(32);
        match info.encoding() {
            EncodingKind::Legacy => legacy(info, random, &mut bytes)?,
            EncodingKind::VEX => vex(info, random, &mut bytes)?,
            EncodingKind::EVEX => evex(info, random, &mut bytes)?,
            _ => return None,
        }
        operands(info, random, addressing, &mut bytes);
        let encoded = decode(&bytes)?;
        (encoded.instruction.code() == code && accept(&encoded.instruction)).then_some(encoded)
    })
}

/// Decodes the first instruction of `bytes`, as if it lay at address 0.
pub fn decode(bytes: &[u8]) -> Option<Encoded> {
    let mut decoder = Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE);
    let instruction = decoder.decode();
    (!instruction.is_invalid()).then(|| Encoded {
        bytes: bytes[..instruction.len()].to_vec(),
        offsets: decoder.get_constant_offsets(&instruction),
        instruction,
    })
}

/// Prefixes that go with every encoding: segment overrides and the address size.
fn common_prefixes(info: &OpCodeInfo, random: &mut Random, out: &mut Vec<u8>) {
    let branch = is_branch(info.code());
    if random.one_in(8) && !branch {
        out.push(random.pick(&[0x64, 0x65, 0x64, 0x65, 0x26, 0x2e, 0x36, 0x3e]));
    }
    // Branches with an address size of 32 bits are JECXZ and the LOOPs only, where the decoder's code says so.
    if info.address_size() == 32 || (random.one_in(16) && !branch) {
        out.push(0x67);
    }
}

fn legacy(info: &OpCodeInfo, random: &mut Random, out: &mut Vec<u8>) -> Option<()> {
    common_prefixes(info, random, out);
    if info.operand_size() == 16 || info.mandatory_prefix() == MandatoryPrefix::P66 {
        out.push(0x66);
    }
    if info.can_use_lock_prefix() && random.one_in(4) {
        out.push(0xf0);
    }
    let repeat = info.can_use_rep_prefix() || info.can_use_repne_prefix();
    match info.mandatory_prefix() {
        MandatoryPrefix::PF3 => out.push(0xf3),
        MandatoryPrefix::PF2 => out.push(0xf2),
        _ if repeat && random.one_in(2) => out.push(random.pick(&[0xf2, 0xf3])),
        _ => {}
    }
    let wide = info.operand_size() == 64 && !info.default_op_size64();
    if wide || random.one_in(2) {
        let w = wide || random.one_in(4);
        out.push(0x40 | u8::from(w) << 3 | random.byte() & 7);
    }
    match info.table() {
        OpCodeTableKind::Normal => {}
        OpCodeTableKind::T0F => out.push(0x0f),
        OpCodeTableKind::T0F38 => out.extend([0x0f, 0x38]),
        OpCodeTableKind::T0F3A => out.extend([0x0f, 0x3a]),
        _ => return None,
    }
    opcode(info, random, out);
    Some(())
}

/// The opcode's bytes, with a register in the last one where it has one there.
fn opcode(info: &OpCodeInfo, random: &mut Random, out: &mut Vec<u8>) {
    use OpCodeOperandKind as K;
    if info.op_code_len() == 2 {
        out.push((info.op_code() >> 8) as u8);
    }
    let kinds = [info.op0_kind(), info.op1_kind(), info.op2_kind()];
    let register = kinds.iter().any(|kind| {
        matches!(
            kind,
            K::r8_opcode | K::r16_opcode | K::r32_opcode | K::r64_opcode | K::sti_opcode
        )
    });
    let low = if register { random.byte() & 7 } else { 0 };
    out.push(info.op_code() as u8 | low);
}

/// The number of an opcode table in VEX.mmmmm and EVEX.mmm.
fn map(table: OpCodeTableKind) -> Option<u8> {
    Some(match table {
        OpCodeTableKind::T0F => 1,
        OpCodeTableKind::T0F38 => 2,
        OpCodeTableKind::T0F3A => 3,
        OpCodeTableKind::MAP5 => 5,
        OpCodeTableKind::MAP6 => 6,
        _ => return None,
    })
}

/// VEX.pp and EVEX.pp.
fn pp(prefix: MandatoryPrefix) -> u8 {
    match prefix {
        MandatoryPrefix::P66 => 1,
        MandatoryPrefix::PF3 => 2,
        MandatoryPrefix::PF2 => 3,
        _ => 0,
    }
}

/// VEX.W or EVEX.W: fixed or ignored.
fn w(info: &OpCodeInfo, random: &mut Random) -> u8 {
    if info.is_wig() {
        random.byte() & 1
    } else {
        info.w() as u8
    }
}

/// The inverted vvvv field: a register, or the 1111 that stands for none.
fn vvvv(random: &mut Random) -> u8 {
    if random.one_in(2) {
        15
    } else {
        random.byte() & 15
    }
}

/// SDM 2A, 2.3.5.
fn vex(info: &OpCodeInfo, random: &mut Random, out: &mut Vec<u8>) -> Option<()> {
    common_prefixes(info, random, out);
    let map = map(info.table())?;
    let w = w(info, random);
    let l = if info.is_lig() {
        random.byte() & 1
    } else {
        info.l() as u8
    };
    let last = vvvv(random) << 3 | l << 2 | pp(info.mandatory_prefix());
    if map == 1 && w == 0 && random.one_in(2) {
        out.extend([0xc5, random.byte() & 0x80 | last]);
    } else {
        out.extend([0xc4, random.byte() & 0xe0 | map, w << 7 | last]);
    }
    opcode(info, random, out);
    Some(())
}

/// SDM 2A, 2.7.1.
fn evex(info: &OpCodeInfo, random: &mut Random, out: &mut Vec<u8>) -> Option<()> {
    common_prefixes(info, random, out);
    let embedded = info.can_broadcast()
        || info.can_use_rounding_control()
        || info.can_suppress_all_exceptions();
    let b = u8::from(embedded && random.one_in(3));
    let l = if info.is_lig() || (b == 1 && random.one_in(2)) {
        random.byte() & 3
    } else {
        info.l() as u8
    };
    let masked =
        info.require_op_mask_register() || (info.can_use_op_mask_register() && random.one_in(2));
    let mask = if masked { random.byte() & 7 } else { 0 };
    let zeroing = u8::from(mask != 0 && info.can_use_zeroing_masking() && random.one_in(2));
    // V' is stored inverted: 1 unless vvvv or a vector index names one of the upper sixteen registers.
    let v_high = u8::from(!random.one_in(3));
    out.extend([
        0x62,
        random.byte() & 0xf0 | map(info.table())?,
        w(info, random) << 7 | vvvv(random) << 3 | 1 << 2 | pp(info.mandatory_prefix()),
        zeroing << 7 | l << 5 | b << 4 | v_high << 3 | mask,
    ]);
    opcode(info, random, out);
    Some(())
}

/// ModRM and what follows it. Where the instruction has no ModRM byte, it is the first byte of the immediate.
fn operands(info: &OpCodeInfo, random: &mut Random, addressing: Addressing, out: &mut Vec<u8>) {
    if info.op_code_len() == 1 {
        let reg = u8::try_from(info.group_index()).unwrap_or(random.byte() & 7);
        let register = random.one_in(2);
        let rm = match u8::try_from(info.rm_group_index()) {
            Ok(rm) => rm,
            Err(_) if !register && addressing == Addressing::Pinned => random.pick(&[3, 5]),
            Err(_) => random.byte() & 7,
        };
        let mode = match addressing {
            _ if register => 3,
            Addressing::Pinned => random.pick(&[1, 2]),
            Addressing::Any => random.pick(&[0, 1, 2]),
        };
        out.push(mode << 6 | reg << 3 | rm);
        if mode != 3 && rm == 4 {
            out.push(random.byte());
        }
    }
    for _ in 0..4 {
        out.extend(constant(random).to_le_bytes());
    }
}

/// Bytes of a displacement or an immediate.
fn constant(random: &mut Random) -> i32 {
    match random.below(4) {
        0 => i32::from(random.byte() as i8),
        1 => random.pick(&[0, 1, -1, i32::MAX, i32::MIN, 0x7fff, 0x8000, 0xff, 0x80]),
        _ => random.word() as i32,
    }
}

/// Makes an encoding wrong in one of the ways that the manual forbids, so that the processor must refuse it, or turns it
/// into another valid one; whatever comes out must not be one that the catalogue leaves out.
pub fn spoil(encoded: &Encoded, random: &mut Random) -> Vec<u8> {
    let mut bytes = encoded.bytes.clone();
    let escape = bytes.iter().position(|b| matches!(b, 0xc4 | 0xc5 | 0x62));
    match (encoded.instruction.op_code().encoding(), escape) {
        (EncodingKind::VEX | EncodingKind::EVEX, Some(at)) if !random.one_in(3) => {
            // The last byte of the prefix holds vvvv, L and pp of VEX, or z, L'L, b, V' and aaa of EVEX.
            let length = match bytes[at] {
                0xc5 => 1,
                0xc4 => 2,
                _ => 3,
            };
            if let Some(byte) = bytes.get_mut(at + length) {
                *byte ^= 1 << random.below(8);
            }
        }
        // What is too long as well has two faults to choose from, and the decoder does not tell an
        // invalid instruction of the greatest length from one that is longer.
        _ if bytes.len() + 1 < LONGEST => bytes.insert(0, 0xf0),
        _ => {}
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;

    #[test]
    fn every_instruction_of_the_catalogue_can_be_encoded() {
        let all = |_, _| [u32::MAX; 4];
        let catalogue = Catalogue::new(&all, &|_| true);
        assert!(catalogue.codes().len() > 2000);
        let mut random = Random::new(1, 1);
        let missing: Vec<Code> = catalogue
            .codes()
            .iter()
            .copied()
            .filter(|&code| encode(code, &mut random, Addressing::Any, &mut |_| true).is_none())
            .collect();
        assert_eq!(missing, []);
    }
}
