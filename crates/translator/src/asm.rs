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

/// Code under construction, at known places of code memory: what is rarely executed lies apart.
#[derive(Debug, Default)]
pub struct Asm {
    /// The part that is being written.
    code: Vec<u8>,
    /// Offset of its first byte in code memory.
    start: u32,
    /// The first part, once the rare one is being written, and how many fixups are in it.
    first: Option<(Vec<u8>, u32, usize)>,
    /// Where the rare part will begin.
    rare: u32,
    /// Offsets in code memory.
    labels: Vec<u32>,
    /// Ends of 32-bit displacements in their part, and the labels that they lead to.
    fixups: Vec<(usize, Label)>,
    /// Room for the next block.
    spare: Vec<u8>,
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
    /// An assembler of blocks, for which the host's stack pointer holds the environment's address.
    pub fn of_blocks() -> Self {
        Self {
            in_block: true,
            ..Self::default()
        }
    }

    /// Begins anew, at offset `start` of code memory; what is rare goes to offset `rare`.
    pub fn restart(&mut self, start: u32, rare: u32) {
        if let Some((first, ..)) = self.first.take() {
            self.spare = std::mem::replace(&mut self.code, first);
        }
        self.code.clear();
        self.labels.clear();
        self.fixups.clear();
        self.start = start;
        self.rare = rare;
    }

    /// What follows is rarely executed.
    pub fn begin_rare(&mut self) {
        let mut rare = std::mem::take(&mut self.spare);
        rare.clear();
        let first = std::mem::replace(&mut self.code, rare);
        self.first = Some((first, self.start, self.fixups.len()));
        self.start = self.rare;
    }

    /// Resolves all labels and gives the code.
    pub fn finish(&mut self) -> Parts<'_> {
        let in_first = match &mut self.first {
            Some((first, start, count)) => {
                resolve(first, *start, &self.fixups[..*count], &self.labels);
                *count
            }
            None => 0,
        };
        resolve(
            &mut self.code,
            self.start,
            &self.fixups[in_first..],
            &self.labels,
        );
        match &self.first {
            Some((first, ..)) => Parts {
                code: first,
                rare: &self.code,
            },
            None => Parts {
                code: &self.code,
                rare: &[],
            },
        }
    }

    /// Offset in code memory of the next byte.
    pub fn here(&self) -> u32 {
        self.start + self.code.len() as u32
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
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    /// Appends a byte.
    pub fn byte(&mut self, byte: u8) {
        self.code.push(byte);
    }

    fn imm32(&mut self, value: i32) {
        self.bytes(&value.to_le_bytes());
    }

    fn rex(&mut self, wide: bool, reg: Reg, index: Reg, base: Reg, force: bool) {
        let rex = 0x40 | u8::from(wide) << 3 | (reg >> 3) << 2 | (index >> 3) << 1 | (base >> 3);
        if rex != 0x40 || force {
            self.byte(rex);
        }
    }

    /// An instruction with a register in ModRM.reg and a memory operand. `opcode` may begin with
    /// escape bytes.
    pub fn mem(&mut self, wide: bool, opcode: &[u8], reg: Reg, mem: Mem) {
        self.mem_prefixed(&[], wide, opcode, reg, mem, false);
    }

    /// As [`mem`](Self::mem), with legacy prefixes and, if `rex`, a REX prefix in any case.
    pub fn mem_prefixed(
        &mut self,
        prefixes: &[u8],
        wide: bool,
        opcode: &[u8],
        reg: Reg,
        mem: Mem,
        rex: bool,
    ) {
        let mem = self.placed(mem);
        if mem.env {
            self.byte(0x65);
        }
        self.bytes(prefixes);
        let index = mem.index.map_or(0, |(index, _)| index);
        self.rex(wide, reg, index, mem.base.unwrap_or(0), rex);
        self.bytes(opcode);
        self.mem_operand(reg, mem);
    }

    /// In a block, what lies in the environment by way of the stack pointer: it needs no prefix, and often
    /// but one byte of displacement.
    pub fn placed(&self, mem: Mem) -> Mem {
        if !(mem.env && self.in_block) {
            return mem;
        }
        Mem {
            env: false,
            base: Some(RSP),
            index: mem.index.or(mem.base.map(|base| (base, 0))),
            disp: mem.disp,
        }
    }

    /// ModRM, SIB and displacement of a memory operand.
    pub fn mem_operand(&mut self, reg: Reg, mem: Mem) {
        let field = (reg & 7) << 3;
        let Some(base) = mem.base else {
            // No base: SIB with a displacement of 32 bits.
            let (index, scale) = mem
                .index
                .map_or((4, 0), |(index, scale)| (index & 7, scale));
            self.bytes(&[field | 4, scale << 6 | index << 3 | 5]);
            self.imm32(mem.disp);
            return;
        };
        let short = i8::try_from(mem.disp).is_ok();
        // RBP and R13 as a base always have a displacement.
        let mode = match mem.disp {
            0 if base & 7 != 5 => 0,
            _ if short => 0x40,
            _ => 0x80,
        };
        if mem.index.is_some() || base & 7 == 4 {
            let (index, scale) = mem
                .index
                .map_or((4, 0), |(index, scale)| (index & 7, scale));
            self.bytes(&[mode | field | 4, scale << 6 | index << 3 | base & 7]);
        } else {
            self.byte(mode | field | base & 7);
        }
        match mode {
            0 => {}
            0x40 => self.byte(mem.disp as u8),
            _ => self.imm32(mem.disp),
        }
    }

    /// An instruction with registers in ModRM.reg and ModRM.rm.
    pub fn reg(&mut self, wide: bool, opcode: &[u8], reg: Reg, rm: Reg) {
        self.rex(wide, reg, 0, rm, false);
        self.bytes(opcode);
        self.byte(0xc0 | (reg & 7) << 3 | rm & 7);
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
    pub fn load(&mut self, to: Reg, from: Mem) {
        self.mem(true, &[0x8b], to, from);
    }

    /// Loads 32 bits, zero-extended.
    pub fn load32(&mut self, to: Reg, from: Mem) {
        self.mem(false, &[0x8b], to, from);
    }

    /// Stores 64 bits.
    pub fn store(&mut self, to: Mem, from: Reg) {
        self.mem(true, &[0x89], from, to);
    }

    /// Stores 32 bits.
    pub fn store32(&mut self, to: Mem, from: Reg) {
        self.mem(false, &[0x89], from, to);
    }

    /// Stores a constant of 32 bits.
    pub fn store_imm32(&mut self, to: Mem, value: u32) {
        self.mem(false, &[0xc7], 0, to);
        self.imm32(value as i32);
    }

    /// Stores a constant of 64 bits that is a sign-extended one of 32.
    pub fn store_imm64(&mut self, to: Mem, value: i32) {
        self.mem(true, &[0xc7], 0, to);
        self.imm32(value);
    }

    /// Loads a constant, by the shortest encoding. The flags stay.
    pub fn mov_imm(&mut self, to: Reg, value: u64) {
        if let Ok(value) = u32::try_from(value) {
            self.rex(false, 0, 0, to, false);
            self.byte(0xb8 | to & 7);
            self.imm32(value as i32);
        } else if let Ok(value) = i32::try_from(value as i64) {
            self.reg(true, &[0xc7], 0, to);
            self.imm32(value);
        } else {
            self.rex(true, 0, 0, to, false);
            self.byte(0xb8 | to & 7);
            self.bytes(&value.to_le_bytes());
        }
    }

    /// Computes an address of 64 or 32 bits.
    pub fn lea(&mut self, wide: bool, to: Reg, address: Mem) {
        self.mem(wide, &[0x8d], to, address);
    }

    /// ALU operation of a register and a constant, 64 or 32 bits.
    pub fn alu_imm(&mut self, op: Alu, wide: bool, to: Reg, value: i32) {
        if let Ok(short) = i8::try_from(value) {
            self.reg(wide, &[0x83], op as u8, to);
            self.byte(short as u8);
        } else if to == RAX {
            self.rex(wide, 0, 0, 0, false);
            self.byte((op as u8) << 3 | 5);
            self.imm32(value);
        } else {
            self.reg(wide, &[0x81], op as u8, to);
            self.imm32(value);
        }
    }

    /// ALU operation of a register and memory, 64 bits.
    pub fn alu_mem(&mut self, op: Alu, wide: bool, to: Reg, from: Mem) {
        self.mem(wide, &[(op as u8) << 3 | 3], to, from);
    }

    /// Compares a byte of memory with a constant.
    pub fn cmp_byte(&mut self, at: Mem, value: u8) {
        self.mem(false, &[0x80], 7, at);
        self.byte(value);
    }

    /// Rotates 32 bits right into another register; BMI2.
    pub fn rorx32(&mut self, to: Reg, from: Reg, count: u8) {
        self.rorx_of(false, to, from, count);
    }

    /// Rotates 64 bits right into another register; BMI2.
    pub fn rorx(&mut self, to: Reg, from: Reg, count: u8) {
        self.rorx_of(true, to, from, count);
    }

    fn rorx_of(&mut self, wide: bool, to: Reg, from: Reg, count: u8) {
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

    /// Compares 32 bits of memory with a small constant.
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
        self.fixups.push((self.code.len(), label));
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
    pub fn jmp_mem(&mut self, at: Mem) {
        self.mem(false, &[0xff], 4, at);
    }

    /// Calls where a register says.
    pub fn call_reg(&mut self, to: Reg) {
        self.reg(false, &[0xff], 2, to);
    }

    /// Pushes on the host's stack.
    pub fn push(&mut self, from: Reg) {
        self.rex(false, 0, 0, from, false);
        self.byte(0x50 | from & 7);
    }

    /// Pops from the host's stack.
    pub fn pop(&mut self, to: Reg) {
        self.rex(false, 0, 0, to, false);
        self.byte(0x58 | to & 7);
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

/// Writes the displacements of the part that begins at `start`.
fn resolve(code: &mut [u8], start: u32, fixups: &[(usize, Label)], labels: &[u32]) {
    for &(end, label) in fixups {
        let target = labels[label.0];
        debug_assert_ne!(target, UNBOUND, "a label without a place");
        let displacement = target.wrapping_sub(start + end as u32);
        code[end - 4..end].copy_from_slice(&displacement.to_le_bytes());
    }
}
