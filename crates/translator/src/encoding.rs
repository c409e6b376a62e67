//! The parts of an instruction's encoding, for writing it anew with other operands. SDM 2A, chapter
//! 2.

/// Which of the three encodings an instruction has, with its prefix bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Legacy: the opcode map 0 to 3.
    Legacy(u8),
    /// VEX: the second and third byte of the three-byte form.
    Vex([u8; 2]),
    /// EVEX: the three bytes after 62h.
    Evex([u8; 3]),
}

/// An instruction's encoding, taken apart.
#[derive(Clone, Copy, Debug)]
pub struct Encoding<'a> {
    /// The operand-size prefix is there.
    pub operand_size: bool,
    /// The last repeat prefix.
    pub repeat: Option<u8>,
    /// The LOCK prefix is there.
    pub lock: bool,
    /// The bits W, R, X and B of the REX prefix.
    pub rex: u8,
    /// The REX prefix is there: it names other byte registers, even if it has no bit.
    pub has_rex: bool,
    /// The encoding.
    pub form: Form,
    /// The opcode's last byte.
    pub opcode: u8,
    /// ModRM.
    pub modrm: Option<u8>,
    /// What follows ModRM, SIB and displacement.
    pub immediate: &'a [u8],
}

/// REX.W.
pub const REX_W: u8 = 8;

/// Which opcodes of map 0 and map 1 have a ModRM byte.
static HAS_MODRM: [[bool; 256]; 2] = {
    let mut has = [[false; 256]; 2];
    let mut opcode = 0;
    while opcode < 256 {
        has[0][opcode] = map0_has_modrm(opcode as u8);
        has[1][opcode] = map1_has_modrm(opcode as u8);
        opcode += 1;
    }
    has
};

/// Whether an opcode of map 0 has a ModRM byte. SDM 2D, table A-2.
const fn map0_has_modrm(opcode: u8) -> bool {
    match opcode {
        0x00..=0x3f => opcode & 7 < 4,
        0x62 | 0x63 | 0x69 | 0x6b | 0x80..=0x8f | 0xc0 | 0xc1 | 0xc4..=0xc7 | 0xd0..=0xd3 => true,
        0xd8..=0xdf | 0xf6 | 0xf7 | 0xfe | 0xff => true,
        _ => false,
    }
}

/// The same of map 1. SDM 2D, table A-3.
const fn map1_has_modrm(opcode: u8) -> bool {
    !matches!(
        opcode,
        0x04..=0x0c
            | 0x0e
            | 0x30..=0x37
            | 0x77
            | 0x80..=0x8f
            | 0xa0..=0xa2
            | 0xa8..=0xaa
            | 0xc8..=0xcf
    )
}

impl<'a> Encoding<'a> {
    /// Takes `bytes`, one whole instruction of 64-bit code if `long`, apart. `None` if it is cut
    /// short.
    #[inline]
    pub fn parse(bytes: &'a [u8], long: bool) -> Option<Self> {
        let mut rest = bytes;
        let mut encoding = Self {
            operand_size: false,
            repeat: None,
            lock: false,
            rex: 0,
            has_rex: false,
            form: Form::Legacy(0),
            opcode: 0,
            modrm: None,
            immediate: &[],
        };
        loop {
            // Of REX, only what stands right before the opcode counts. SDM 2A, 2.2.1.
            let (mut rex, mut has_rex) = (0, false);
            let (&byte, after) = rest.split_first()?;
            match byte {
                0x66 => encoding.operand_size = true,
                0xf2 | 0xf3 => encoding.repeat = Some(byte),
                0xf0 => encoding.lock = true,
                0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67 => {}
                0x40..=0x4f if long => (rex, has_rex) = (byte & 15, true),
                _ => break,
            }
            (encoding.rex, encoding.has_rex) = (rex, has_rex);
            rest = after;
        }
        rest = encoding.opcode(rest, long)?;
        let has_modrm = match encoding.form {
            Form::Legacy(map @ (0 | 1)) => {
                HAS_MODRM[usize::from(map)][usize::from(encoding.opcode)]
            }
            // VZEROUPPER and VZEROALL.
            Form::Vex([map, _]) => !(map & 0x1f == 1 && encoding.opcode == 0x77),
            _ => true,
        };
        if has_modrm {
            let (&modrm, after) = rest.split_first()?;
            encoding.modrm = Some(modrm);
            rest = after.get(address_length(modrm, after.first().copied())..)?;
        }
        encoding.immediate = rest;
        Some(encoding)
    }

    /// All up to ModRM as a number that no other encoding has, less than 2^54.
    pub fn key(&self) -> u64 {
        let (form, bytes) = match self.form {
            Form::Legacy(map) => (1 + map, [0; 3]),
            Form::Vex([first, second]) => (5, [first, second, 0]),
            Form::Evex(bytes) => (6, bytes),
        };
        let [first, second, third] = bytes.map(u64::from);
        let repeat = match self.repeat {
            None => 0,
            Some(byte) => u64::from(byte & 1) + 1,
        };
        let prefixes = u64::from(self.rex)
            | repeat << 4
            | u64::from(self.lock) << 6
            | u64::from(self.operand_size) << 7
            | u64::from(self.has_rex) << 53;
        let modrm = self.modrm.map_or(0, |modrm| 0x100 | u64::from(modrm));
        prefixes
            | first << 8
            | second << 16
            | third << 24
            | u64::from(self.opcode) << 32
            | modrm << 40
            | u64::from(form) << 49
    }

    /// Reads escapes and opcode; gives what follows.
    fn opcode(&mut self, rest: &'a [u8], long: bool) -> Option<&'a [u8]> {
        let vector = |next: Option<&u8>| long || next.is_some_and(|byte| *byte >= 0xc0);
        let (form, length) = match *rest.first()? {
            0xc5 if vector(rest.get(1)) => {
                let byte = *rest.get(1)?;
                // Of the two-byte form only R is there; the map is 0Fh and W is 0.
                (Form::Vex([byte & 0x80 | 0x61, byte & 0x7f]), 2)
            }
            0xc4 if vector(rest.get(1)) => (Form::Vex([*rest.get(1)?, *rest.get(2)?]), 3),
            0x62 if vector(rest.get(1)) => {
                (Form::Evex([*rest.get(1)?, *rest.get(2)?, *rest.get(3)?]), 4)
            }
            0x0f => match *rest.get(1)? {
                0x38 => (Form::Legacy(2), 2),
                0x3a => (Form::Legacy(3), 2),
                _ => (Form::Legacy(1), 1),
            },
            _ => (Form::Legacy(0), 0),
        };
        self.form = form;
        let (&opcode, after) = rest.get(length..)?.split_first()?;
        self.opcode = opcode;
        Some(after)
    }
}

/// Bytes of SIB and displacement, for addresses of 32 and 64 bits. SDM 2A, table 2-2.
fn address_length(modrm: u8, sib: Option<u8>) -> usize {
    let (mode, rm) = (modrm >> 6, modrm & 7);
    let has_sib = mode != 3 && rm == 4;
    let displacement = match mode {
        0 if rm == 5 || has_sib && sib.is_some_and(|sib| sib & 7 == 5) => 4,
        1 => 1,
        2 => 4,
        _ => 0,
    };
    usize::from(has_sib) + displacement
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Encoding<'_> {
        Encoding::parse(bytes, true).unwrap()
    }

    #[test]
    fn a_legacy_instruction_with_everything() {
        // lock add qword ptr fs:[rax+r9*4+12345678h], 1
        let encoding = parse(&[
            0x64, 0xf0, 0x4a, 0x83, 0x84, 0x88, 0x78, 0x56, 0x34, 0x12, 1,
        ]);
        assert!(encoding.lock && encoding.rex & REX_W != 0);
        assert_eq!(encoding.form, Form::Legacy(0));
        assert_eq!((encoding.opcode, encoding.modrm), (0x83, Some(0x84)));
        assert_eq!(encoding.immediate, [1]);
    }

    #[test]
    fn a_two_byte_vex_prefix_becomes_a_three_byte_one() {
        // vaddps xmm8, xmm1, xmm2 = C5 70 58 C2
        let encoding = parse(&[0xc5, 0x70, 0x58, 0xc2]);
        assert_eq!(encoding.form, Form::Vex([0x61, 0x70]));
        assert_eq!(encoding.opcode, 0x58);
        assert!(encoding.immediate.is_empty());
    }

    #[test]
    fn every_prefix_of_an_instruction_is_cut_short() {
        // vpternlogd zmm1, zmm2, [rip+8], 0xff
        let whole = [0x62, 0xf3, 0x6d, 0x48, 0x25, 0x0d, 8, 0, 0, 0, 0xff];
        assert_eq!(parse(&whole).immediate, [0xff]);
        for length in 0..6 {
            assert!(
                Encoding::parse(&whole[..length], true).is_none(),
                "{length}"
            );
        }
    }

    #[test]
    fn rex_counts_right_before_the_opcode_alone() {
        // mov [rbx], ax behind a REX that does not count; mov [r11], rax behind two of them.
        let encoding = parse(&[0x48, 0x66, 0x89, 0x03]);
        assert_eq!((encoding.opcode, encoding.modrm), (0x89, Some(0x03)));
        assert_eq!((encoding.rex, encoding.operand_size), (0, true));
        let encoding = parse(&[0x42, 0x41, 0x49, 0x89, 0x03]);
        assert_eq!((encoding.opcode, encoding.modrm), (0x89, Some(0x03)));
        assert_eq!(encoding.rex, 9);
    }

    #[test]
    fn opcodes_without_modrm() {
        assert_eq!(parse(&[0x48, 0x0f, 0xc9]).modrm, None);
        assert_eq!(parse(&[0xc5, 0xf8, 0x77]).modrm, None);
        assert_eq!(parse(&[0xb8, 1, 2, 3, 4]).immediate, [1, 2, 3, 4]);
    }
}
