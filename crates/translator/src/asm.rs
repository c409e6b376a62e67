//! An assembler for the host instructions that translations are made of.
//!
//! Only the forms that the translator needs; SDM 2A, chapter 2 has the encoding.

/// A host register by its number.
pub type Reg = u8;

/// RAX: scratch.
pub const RAX: Reg = 0;
/// RCX.
pub const RCX: Reg = 1;
/// RDX.
pub const RDX: Reg = 2;
/// RBX.
pub const RBX: Reg = 3;
/// RSP: the host's stack.
pub const RSP: Reg = 4;
/// RBP.
pub const RBP: Reg = 5;
/// RSI.
pub const RSI: Reg = 6;
/// RDI.
pub const RDI: Reg = 7;
/// R8.
pub const R8: Reg = 8;
/// R9.
pub const R9: Reg = 9;
/// R10: scratch, the address of memory operands.
pub const R10: Reg = 10;
/// R11.
pub const R11: Reg = 11;

/// A condition of Jcc: the low four bits of its opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cond(pub u8);

impl Cond {
    /// Equal, zero.
    pub const E: Self = Self(4);
    /// Not equal, not zero.
    pub const NE: Self = Self(5);
    /// Unsigned below or equal.
    pub const BE: Self = Self(6);
    /// Unsigned above.
    pub const A: Self = Self(7);
    /// Negative.
    pub const S: Self = Self(8);
}

/// An operation of the first ALU group: the reg field of opcode 81h.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Alu {
    Add = 0,
    Or = 1,
    And = 4,
    Sub = 5,
    Xor = 6,
    Cmp = 7,
}

/// A memory operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mem {
    /// Whether it lies in the vCPU's environment; then it has at most one of base and index.
    pub env: bool,
    /// Base register.
    pub base: Option<Reg>,
    /// Index register and the binary logarithm of its scale. Never RSP.
    pub index: Option<(Reg, u8)>,
    /// Displacement.
    pub disp: i32,
}

/// The field of the environment at `offset`.
pub const fn env(offset: usize) -> Mem {
    Mem {
        env: true,
        base: None,
        index: None,
        disp: offset as i32,
    }
}

/// The environment at `offset` plus `base`.
pub const fn env_at(base: Reg, offset: usize) -> Mem {
    Mem {
        env: true,
        base: Some(base),
        index: None,
        disp: offset as i32,
    }
}

/// Memory at `base + disp`.
pub const fn at(base: Reg, disp: i32) -> Mem {
    Mem {
        env: false,
        base: Some(base),
        index: None,
        disp,
    }
}

/// A place in the code that is not known yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

const UNBOUND: u32 = u32::MAX;

/// The most bytes that a part of the code may have.
pub const CAPACITY: usize = 64 << 10;
/// The most bytes that are written at once.
const WIDEST: usize = 8;

/// A few bytes of an instruction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bytes {
    /// The first is the lowest.
    value: u64,
    /// Eight at most.
    count: u32,
}

impl Bytes {
    /// Appends a byte.
    #[inline(always)]
    pub const fn add(&mut self, byte: u8) {
        self.value |= (byte as u64).wrapping_shl(8 * self.count);
        self.count += 1;
    }

    /// The number of the next byte.
    pub const fn next(&self) -> u32 {
        self.count
    }

    /// The bytes with the bits of `mask` of byte number `at` inverted.
    #[must_use]
    pub const fn inverted(self, at: u32, mask: u8) -> Self {
        Self {
            value: self.value ^ (mask as u64).wrapping_shl(8 * at),
            ..self
        }
    }

    #[inline(always)]
    fn add32(&mut self, value: i32) {
        self.value |= u64::from(value as u32).wrapping_shl(8 * self.count);
        self.count += 4;
    }

    /// Appends ModRM, SIB and displacement of a memory operand.
    #[inline(always)]
    fn add_operand(&mut self, reg: Reg, mem: Mem) {
        let field = (reg & 7) << 3;
        let (index, scale) = mem
            .index
            .map_or((4, 0), |(index, scale)| (index & 7, scale));
        let Some(base) = mem.base else {
            // No base: SIB with a displacement of 32 bits.
            self.add(field | 4);
            self.add(scale << 6 | index << 3 | 5);
            return self.add32(mem.disp);
        };
        let short = i8::try_from(mem.disp).is_ok();
        // RBP and R13 as a base always have a displacement.
        let mode = match mem.disp {
            0 if base & 7 != 5 => 0,
            _ if short => 0x40,
            _ => 0x80,
        };
        if mem.index.is_some() || base & 7 == 4 {
            self.add(mode | field | 4);
            self.add(scale << 6 | index << 3 | base & 7);
        } else {
            self.add(mode | field | base & 7);
        }
        match mode {
            0 => {}
            0x40 => self.add(mem.disp as u8),
            _ => self.add32(mem.disp),
        }
    }

    /// An instruction's beginning: REX if it says something, and the opcode.
    #[inline(always)]
    fn begin(&mut self, rex: u8, opcode: &[u8]) {
        if rex != 0 {
            self.add(0x40 | rex);
        }
        for byte in opcode {
            self.add(*byte);
        }
    }
}

/// A part of the code under construction.
#[derive(Debug)]
struct Part {
    /// With room for what is written at once.
    bytes: Box<[u8; CAPACITY + WIDEST]>,
    /// May be more than there is room for: then the code is useless.
    length: usize,
    /// Offset of its first byte in code memory.
    start: u32,
}

impl Part {
    fn new() -> Self {
        let bytes = vec![0; CAPACITY + WIDEST].into_boxed_slice();
        Self {
            bytes: bytes.try_into().expect("it has that size"),
            length: 0,
            start: 0,
        }
    }

    fn restart(&mut self, start: u32) {
        self.length = 0;
        self.start = start;
    }

    /// Appends the first `count` bytes of `value`.
    #[inline(always)]
    fn put(&mut self, value: u64, count: u32) {
        let at = self.length % CAPACITY;
        self.bytes[at..at + WIDEST].copy_from_slice(&value.to_le_bytes());
        self.length += count as usize;
    }

    fn code(&self) -> Option<&[u8]> {
        (self.length <= CAPACITY).then(|| &self.bytes[..self.length])
    }

    /// Writes the displacements.
    fn resolve(&mut self, fixups: &[(usize, Label)], labels: &[u32]) {
        for &(end, label) in fixups {
            let target = labels[label.0];
            debug_assert_ne!(target, UNBOUND, "a label without a place");
            let displacement = target.wrapping_sub(self.start + end as u32);
            self.bytes[end - 4..end].copy_from_slice(&displacement.to_le_bytes());
        }
    }
}

/// Code under construction, at known places of code memory: what is rarely executed lies apart.
#[derive(Debug)]
pub struct Asm {
    /// The part that is being written.
    part: Part,
    /// The first part, once the rare one is being written.
    other: Part,
    /// How many fixups are in the first part, likewise.
    first: Option<usize>,
    /// Where the rare part will begin.
    rare: u32,
    /// Offsets in code memory.
    labels: Vec<u32>,
    /// Ends of 32-bit displacements in their part, and the labels that they lead to.
    fixups: Vec<(usize, Label)>,
    /// Whether the host's stack pointer holds the environment's address.
    in_block: bool,
}

/// Finished code.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// What is executed often.
    pub code: &'a [u8],
    /// What is not.
    pub rare: &'a [u8],
}

impl Asm {
    /// An assembler.
    pub fn new() -> Self {
        Self {
            part: Part::new(),
            other: Part::new(),
            first: None,
            rare: 0,
            labels: Vec::new(),
            fixups: Vec::new(),
            in_block: false,
        }
    }

    /// An assembler of blocks, for which the host's stack pointer holds the environment's address.
    pub fn of_blocks() -> Self {
        Self {
            in_block: true,
            ..Self::new()
        }
    }

    /// Begins anew, at offset `start` of code memory; what is rare goes to offset `rare`.
    pub fn restart(&mut self, start: u32, rare: u32) {
        self.part.restart(start);
        self.first = None;
        self.rare = rare;
        self.labels.clear();
        self.fixups.clear();
    }

    /// What follows is rarely executed.
    pub fn begin_rare(&mut self) {
        std::mem::swap(&mut self.part, &mut self.other);
        self.part.restart(self.rare);
        self.first = Some(self.fixups.len());
    }

    /// Resolves all labels and gives the code; `None` if there is too much of it.
    pub fn finish(&mut self) -> Option<Parts<'_>> {
        if self.part.length.max(self.other.length) > CAPACITY {
            return None;
        }
        let in_first = self.first.unwrap_or(0);
        self.other.resolve(&self.fixups[..in_first], &self.labels);
        self.part.resolve(&self.fixups[in_first..], &self.labels);
        let code = self.part.code()?;
        Some(match self.first {
            Some(_) => Parts {
                code: self.other.code()?,
                rare: code,
            },
            None => Parts { code, rare: &[] },
        })
    }

    /// Offset in code memory of the next byte.
    pub fn here(&self) -> u32 {
        self.part.start + self.part.length as u32
    }

    /// A new label, without a place.
    pub fn label(&mut self) -> Label {
        self.labels.push(UNBOUND);
        Label(self.labels.len() - 1)
    }

    /// Puts `label` here.
    pub fn bind(&mut self, label: Label) {
        self.labels[label.0] = self.here();
    }

    /// Appends bytes as they are.
    #[inline]
    pub fn bytes(&mut self, bytes: &[u8]) {
        match *bytes {
            [] => {}
            [one] => self.byte(one),
            [a, b, c, d] => self.imm32(i32::from_le_bytes([a, b, c, d])),
            _ => bytes.iter().for_each(|byte| self.byte(*byte)),
        }
    }

    /// Appends a byte.
    #[inline]
    pub fn byte(&mut self, byte: u8) {
        self.part.put(byte.into(), 1);
    }

    /// Appends a few bytes.
    #[inline(always)]
    pub fn put(&mut self, bytes: Bytes) {
        self.part.put(bytes.value, bytes.count);
    }

    fn imm32(&mut self, value: i32) {
        self.part.put(u64::from(value as u32), 4);
    }

    /// An instruction with a register in ModRM.reg and a memory operand. `opcode` may begin with
    /// escape bytes.
    #[inline(always)]
    pub fn mem(&mut self, wide: bool, opcode: &[u8], reg: Reg, mem: Mem) {
        if !(mem.env && self.in_block && opcode.len() == 1) {
            return self.mem_prefixed(&[], wide, opcode, reg, mem);
        }
        // Most are of the environment, at places that are known here already.
        let mem = on_stack(mem);
        let index = mem.index.map_or(0, |(index, _)| index);
        let mut bytes = Bytes::default();
        bytes.begin(rex_bits(wide, reg, index, RSP), opcode);
        bytes.add_operand(reg, mem);
        self.put(bytes);
    }

    /// As [`mem`](Self::mem), with legacy prefixes.
    pub fn mem_prefixed(&mut self, prefixes: &[u8], wide: bool, opcode: &[u8], reg: Reg, mem: Mem) {
        let mem = self.placed(mem);
        let mut head = Bytes::default();
        if mem.env {
            head.add(0x65);
        }
        for prefix in prefixes {
            head.add(*prefix);
        }
        let index = mem.index.map_or(0, |(index, _)| index);
        head.begin(rex_bits(wide, reg, index, mem.base.unwrap_or(0)), opcode);
        self.put(head);
        self.mem_operand(reg, mem);
    }

    /// In a block, what lies in the environment by way of the stack pointer: it needs no prefix, and often
    /// but one byte of displacement.
    pub fn placed(&self, mem: Mem) -> Mem {
        if mem.env && self.in_block {
            on_stack(mem)
        } else {
            mem
        }
    }

    /// ModRM, SIB and displacement of a memory operand.
    pub fn mem_operand(&mut self, reg: Reg, mem: Mem) {
        let mut operand = Bytes::default();
        operand.add_operand(reg, mem);
        self.put(operand);
    }

    /// An instruction with registers in ModRM.reg and ModRM.rm.
    pub fn reg(&mut self, wide: bool, opcode: &[u8], reg: Reg, rm: Reg) {
        let mut bytes = Bytes::default();
        bytes.begin(rex_bits(wide, reg, 0, rm), opcode);
        bytes.add(0xc0 | (reg & 7) << 3 | rm & 7);
        self.put(bytes);
    }

    /// An instruction with a register in its opcode's last bits.
    fn opcode_register(&mut self, wide: bool, opcode: u8, reg: Reg) {
        let mut bytes = Bytes::default();
        bytes.begin(rex_bits(wide, 0, 0, reg), &[opcode | reg & 7]);
        self.put(bytes);
    }

    /// Copies a register, 64 bits.
    pub fn mov(&mut self, to: Reg, from: Reg) {
        self.reg(true, &[0x8b], to, from);
    }

    /// Copies a register, 32 bits, zero-extended.
    pub fn mov32(&mut self, to: Reg, from: Reg) {
        self.reg(false, &[0x8b], to, from);
    }

    /// Loads 64 bits.
    #[inline(always)]
    pub fn load(&mut self, to: Reg, from: Mem) {
        self.mem(true, &[0x8b], to, from);
    }

    /// Loads 32 bits, zero-extended.
    #[inline(always)]
    pub fn load32(&mut self, to: Reg, from: Mem) {
        self.mem(false, &[0x8b], to, from);
    }

    /// Stores 64 bits.
    #[inline(always)]
    pub fn store(&mut self, to: Mem, from: Reg) {
        self.mem(true, &[0x89], from, to);
    }

    /// Stores 32 bits.
    #[inline(always)]
    pub fn store32(&mut self, to: Mem, from: Reg) {
        self.mem(false, &[0x89], from, to);
    }

    /// Stores a constant of 32 bits.
    #[inline(always)]
    pub fn store_imm32(&mut self, to: Mem, value: u32) {
        self.mem(false, &[0xc7], 0, to);
        self.imm32(value as i32);
    }

    /// Stores a constant of 64 bits that is a sign-extended one of 32.
    #[inline(always)]
    pub fn store_imm64(&mut self, to: Mem, value: i32) {
        self.mem(true, &[0xc7], 0, to);
        self.imm32(value);
    }

    /// Loads a constant, by the shortest encoding. The flags stay.
    pub fn mov_imm(&mut self, to: Reg, value: u64) {
        if let Ok(value) = u32::try_from(value) {
            self.opcode_register(false, 0xb8, to);
            self.imm32(value as i32);
        } else if let Ok(value) = i32::try_from(value as i64) {
            self.reg(true, &[0xc7], 0, to);
            self.imm32(value);
        } else {
            self.opcode_register(true, 0xb8, to);
            self.part.put(value, 8);
        }
    }

    /// Computes an address of 64 or 32 bits.
    #[inline(always)]
    pub fn lea(&mut self, wide: bool, to: Reg, address: Mem) {
        self.mem(wide, &[0x8d], to, address);
    }

    /// ALU operation of a register and a constant, 64 or 32 bits.
    pub fn alu_imm(&mut self, op: Alu, wide: bool, to: Reg, value: i32) {
        if let Ok(short) = i8::try_from(value) {
            self.reg(wide, &[0x83], op as u8, to);
            self.byte(short as u8);
        } else if to == RAX {
            self.opcode_register(wide, (op as u8) << 3 | 5, RAX);
            self.imm32(value);
        } else {
            self.reg(wide, &[0x81], op as u8, to);
            self.imm32(value);
        }
    }

    /// ALU operation of a register and memory, 64 bits.
    #[inline(always)]
    pub fn alu_mem(&mut self, op: Alu, wide: bool, to: Reg, from: Mem) {
        self.mem(wide, &[(op as u8) << 3 | 3], to, from);
    }

    /// Compares a byte of memory with a constant.
    #[inline(always)]
    pub fn cmp_byte(&mut self, at: Mem, value: u8) {
        self.mem(false, &[0x80], 7, at);
        self.byte(value);
    }

    /// Rotates 64 or 32 bits right into another register; BMI2. The flags stay.
    pub fn rorx(&mut self, wide: bool, to: Reg, from: Reg, count: u8) {
        // VEX.LZ.F2.0F3A F0 /r ib; R and B are inverted.
        let first = 0x43 | u8::from(to < 8) << 7 | u8::from(from < 8) << 5;
        self.bytes(&[
            0xc4,
            first,
            0x7b | u8::from(wide) << 7,
            0xf0,
            0xc0 | (to & 7) << 3 | from & 7,
            count,
        ]);
    }

    /// In a block, shifts 64 bits right by 32 into another register, as the lowest bits of the stack pointer
    /// say; BMI2. The flags stay.
    pub fn shr_by_stack(&mut self, to: Reg, from: Reg) {
        debug_assert!(
            self.in_block,
            "the stack pointer holds the environment's address"
        );
        // SHRX: VEX.LZ.F2.0F38.W1 F7 /r; R, B and the number of the register that counts are inverted.
        let first = 0x42 | u8::from(to < 8) << 7 | u8::from(from < 8) << 5;
        self.bytes(&[
            0xc4,
            first,
            0x83 | (!RSP & 15) << 3,
            0xf7,
            0xc0 | (to & 7) << 3 | from & 7,
        ]);
    }

    /// Compares 32 bits of memory with a small constant.
    #[inline(always)]
    pub fn cmp32_imm8(&mut self, at: Mem, value: i8) {
        self.mem(false, &[0x83], 7, at);
        self.byte(value as u8);
    }

    /// Logical shift right of 32 bits.
    pub fn shr32(&mut self, to: Reg, count: u8) {
        self.reg(false, &[0xc1], 5, to);
        self.byte(count);
    }

    /// Shift left of 64 bits.
    pub fn shl(&mut self, to: Reg, count: u8) {
        self.reg(true, &[0xc1], 4, to);
        self.byte(count);
    }

    /// Logical shift right of 64 bits.
    pub fn shr(&mut self, to: Reg, count: u8) {
        self.reg(true, &[0xc1], 5, to);
        self.byte(count);
    }

    /// Shift right of 64 bits that keeps the sign.
    pub fn sar(&mut self, to: Reg, count: u8) {
        self.reg(true, &[0xc1], 7, to);
        self.byte(count);
    }

    /// Jumps to a label.
    pub fn jmp(&mut self, label: Label) {
        self.byte(0xe9);
        self.label_fixup(label);
    }

    /// Jumps to a label on a condition.
    pub fn jcc(&mut self, cond: Cond, label: Label) {
        self.bytes(&[0x0f, 0x80 | cond.0]);
        self.label_fixup(label);
    }

    fn label_fixup(&mut self, label: Label) {
        self.imm32(0);
        self.fixups.push((self.part.length, label));
    }

    /// Jumps to an offset of code memory. Gives where the 32-bit displacement lies.
    pub fn jmp_to(&mut self, target: u32) -> u32 {
        self.byte(0xe9);
        self.displacement(target)
    }

    /// Calls an offset of code memory.
    pub fn call_to(&mut self, target: u32) {
        self.byte(0xe8);
        self.displacement(target);
    }

    fn displacement(&mut self, target: u32) -> u32 {
        let place = self.here();
        self.imm32(target.wrapping_sub(place + 4) as i32);
        place
    }

    /// Jumps to where a word of memory says.
    #[inline(always)]
    pub fn jmp_mem(&mut self, at: Mem) {
        self.mem(false, &[0xff], 4, at);
    }

    /// Calls where a register says.
    pub fn call_reg(&mut self, to: Reg) {
        self.reg(false, &[0xff], 2, to);
    }

    /// Pushes on the host's stack.
    pub fn push(&mut self, from: Reg) {
        self.opcode_register(false, 0x50, from);
    }

    /// Pops from the host's stack.
    pub fn pop(&mut self, to: Reg) {
        self.opcode_register(false, 0x58, to);
    }

    /// Returns on the host's stack.
    pub fn ret(&mut self) {
        self.byte(0xc3);
    }

    /// AH = SF ZF AF PF CF, AL = OF.
    pub fn flags_to_ax(&mut self) {
        // lahf; seto al
        self.bytes(&[0x9f, 0x0f, 0x90, 0xc0]);
    }

    /// The reverse of [`flags_to_ax`](Self::flags_to_ax).
    pub fn ax_to_flags(&mut self) {
        // add al, 7fh; sahf
        self.bytes(&[0x04, 0x7f, 0x9e]);
    }
}

/// What lies in the environment, by way of the stack pointer.
#[inline(always)]
fn on_stack(mem: Mem) -> Mem {
    Mem {
        env: false,
        base: Some(RSP),
        index: mem.index.or(mem.base.map(|base| (base, 0))),
        disp: mem.disp,
    }
}

/// The bits W, R, X and B of REX.
#[inline(always)]
const fn rex_bits(wide: bool, reg: Reg, index: Reg, base: Reg) -> u8 {
    (wide as u8) << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | base >> 3
}
