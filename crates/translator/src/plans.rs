//! How innocuous instructions are written anew, with other operands, remembered for each encoding up to
//! ModRM: what follows it does not matter to that.

use crate::access::memory_operand;
use crate::asm::{self, Bytes, R10, RAX, Reg};
use crate::encoding::{Encoding, Form, REX_W};
use crate::forms::{
    Field, can_be_memory, exchanged, freed_of_accumulator, freed_of_address, lengthened,
};
use crate::registers::{self, GUEST_RAX, Place, is_high_byte, names_high_byte, number};
use crate::shapes::{Shape, Shapes};
use belljar_interpreter::mix;
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

/// Plans that are remembered.
const SIZE: usize = 1 << 11;

/// How an instruction is written anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its bytes up to the opcode, and ModRM if that names no memory.
    pub head: Bytes,
    /// The number of the byte, and the bit of it, that say whether the index is one of the last eight
    /// registers, if memory is named; no index is.
    extension: (u32, u8),
    /// What stands in ModRM.reg otherwise.
    pub reg: Reg,
    /// Whether an operand is in memory.
    pub memory: bool,
    /// The guest's register of the environment that is named as memory instead.
    pub environment: Option<u8>,
    /// Whether what follows is the same.
    pub immediate: bool,
    /// The guest's register that is in RAX meanwhile.
    pub in_rax: Option<u8>,
    /// The guest's register that is in R10 meanwhile, if no address is.
    pub in_r10: Option<u8>,
    /// The guest's register that is in another's place meanwhile, if neither RAX nor R10 is free.
    pub lent: Option<(u8, Reg)>,
}

impl Plan {
    /// [`head`](Self::head) for an index that is one of the last eight registers.
    pub const fn head_of_extended(&self) -> Bytes {
        let (at, bit) = self.extension;
        self.head.inverted(at, bit)
    }

    /// Whether no register is elsewhere meanwhile.
    pub const fn stays(&self) -> bool {
        self.in_rax.is_none() && self.in_r10.is_none() && self.lent.is_none()
    }

    /// The plan for `ins`; `None` if it cannot be written anew.
    fn new(ins: &Instruction, shape: Shape, encoding: Encoding<'_>, code32: bool) -> Option<Self> {
        let mut encoding = encoding;
        if code32 {
            encoding = lengthened(ins, encoding)?;
        }
        if shape.names_accumulator {
            encoding = freed_of_accumulator(encoding);
        }
        let immediate = encoding.immediate.len();
        encoding = freed_of_address(ins, encoding);
        let immediate = immediate == encoding.immediate.len();
        let exchanged = exchanged(ins, &encoding);
        let operands = Operands::of(ins, shape, exchanged.is_some())?;
        let encoding = exchanged.unwrap_or(encoding);
        // What was taken apart is what was decoded: no address of the guest's is the host's.
        let in_memory = encoding.modrm.is_some_and(|modrm| modrm < 0xc0);
        if in_memory != operands.memory {
            return None;
        }
        let (mut head, reg, rm) = operands.head(&encoding);
        let extension = Operands::extension(&encoding);
        let named = operands.memory || operands.environment.is_some();
        if encoding.modrm.is_some() && !named {
            head.add(0xc0 | (reg & 7) << 3 | rm & 7);
        }
        Some(Self {
            head,
            extension,
            reg,
            memory: operands.memory,
            environment: operands.environment,
            immediate,
            in_rax: operands.in_rax,
            in_r10: operands.in_r10,
            lent: operands.lent,
        })
    }
}

/// What plans are found by: the encoding up to ModRM with the width of the code, and the opcode.
type Key = (u64, Code);

/// Plans made lately.
#[derive(Debug)]
pub struct Plans {
    known: Box<[(Key, Option<Plan>)]>,
    /// What they are made from.
    pub shapes: Shapes,
}

impl Plans {
    /// None was made.
    pub fn new() -> Self {
        Self {
            known: vec![((0, Code::INVALID), None); SIZE].into(),
            shapes: Shapes::new(),
        }
    }

    /// The plan for `ins`, an instruction of 64-bit code that names other registers than its encoding.
    pub fn anew(&mut self, ins: &Instruction, encoding: Encoding<'_>) -> Option<Plan> {
        Plan::new(ins, self.shapes.of(ins), encoding, false)
    }

    /// The plan for `ins`; `None` if it cannot be written anew.
    #[inline]
    pub fn of(&mut self, ins: &Instruction, encoding: &Encoding<'_>, code32: bool) -> Option<Plan> {
        let number = encoding.key() << 1 | u64::from(code32);
        let key = (number, ins.code());
        let known = &mut self.known[mix(number, SIZE.trailing_zeros())];
        if known.0 != key {
            let shape = self.shapes.of(ins);
            *known = (key, Plan::new(ins, shape, *encoding, code32));
        }
        debug_assert_eq!(
            known.1,
            Plan::new(ins, self.shapes.of(ins), *encoding, code32)
        );
        known.1
    }
}

/// What replaces the operands of one instruction.
#[derive(Clone, Copy, Debug, Default)]
struct Operands {
    /// The guest's register that is in RAX meanwhile.
    in_rax: Option<u8>,
    /// The guest's register that is in R10 meanwhile, if no address is.
    in_r10: Option<u8>,
    /// The guest's register that is in another's place meanwhile, if neither RAX nor R10 is free.
    lent: Option<(u8, Reg)>,
    reg: Option<Reg>,
    rm: Option<Reg>,
    vvvv: Option<Reg>,
    opcode: Option<Reg>,
    /// Whether an operand is in memory; its address is in R10.
    memory: bool,
    /// A register of the environment that takes the place of `rm`.
    environment: Option<u8>,
    high: bool,
    /// A byte register without REX would be another one.
    needs_rex: bool,
}

impl Operands {
    /// The host's register for the guest's `number`; `None` if there is no room for it.
    fn host(&mut self, number: u8) -> Option<Reg> {
        if self.in_rax == Some(number) {
            return Some(RAX);
        }
        match registers::place(number) {
            // Without REX, R9 cannot be had.
            Place::Host(GUEST_RAX) if self.high => {}
            Place::Host(host) => return Some(host),
            Place::Memory => {}
        }
        if self.in_rax.is_none() {
            self.in_rax = Some(number);
            return Some(RAX);
        }
        if self.in_r10 == Some(number) || self.in_r10.is_none() && !self.memory {
            self.in_r10 = Some(number);
            return Some(R10);
        }
        let lent = self.lent.filter(|(guest, _)| *guest == number);
        lent.map(|(_, host)| host)
    }

    /// Finds a place for the second operand of CMPXCHG, which needs RAX and R10 otherwise.
    fn lend(&mut self, ins: &Instruction) {
        let used = |host: Reg| {
            (0..ins.op_count()).any(|n| {
                ins.op_kind(n) == OpKind::Register
                    && registers::place(number(ins.op_register(n))) == Place::Host(host)
            })
        };
        let register = ins.op1_register();
        if self.memory
            && registers::place(number(register)) == Place::Memory
            && let Some(host) = [asm::RCX, asm::RBX].into_iter().find(|host| !used(*host))
        {
            self.lent = Some((number(register), host));
        }
    }

    /// The operands of `ins`, whose fields are exchanged if `exchanged`.
    fn of(ins: &Instruction, shape: Shape, exchanged: bool) -> Option<Self> {
        let mut operands = Self {
            high: names_high_byte(ins),
            ..Self::default()
        };
        if memory_operand(ins).is_some() {
            // The address is in R10, which needs REX.
            if operands.high {
                return None;
            }
            operands.memory = true;
        }
        if shape.in_rax {
            operands.in_rax = Some(0);
        }
        if ins.mnemonic() == Mnemonic::Cmpxchg {
            operands.lend(ins);
        }
        let registers = registers(ins);
        for n in 0..ins.op_count().min(4) {
            let register = registers[n as usize % 4];
            let Some(mut field) = shape.fields[n as usize % 4] else {
                continue;
            };
            if !register.is_gpr() {
                continue;
            }
            if exchanged {
                field = if field == Field::Reg {
                    Field::Rm
                } else {
                    Field::Reg
                };
            }
            if field == Field::Rm
                && !operands.memory
                && !operands.high
                && registers::place(number(register)) == Place::Memory
                && can_be_memory(ins, n, shape.writes(n))
            {
                operands.environment = Some(number(register));
                continue;
            }
            let host = if is_high_byte(register) {
                operands.host(number(register))? + 4
            } else {
                operands.host(number(register))?
            };
            if register.is_gpr8() && !is_high_byte(register) && (4..8).contains(&host) {
                operands.needs_rex = true;
            }
            let place = match field {
                Field::Reg => &mut operands.reg,
                Field::Rm => &mut operands.rm,
                Field::Vvvv => &mut operands.vvvv,
                Field::Opcode => &mut operands.opcode,
                Field::Implicit => continue,
            };
            *place = Some(host);
        }
        let used = [operands.reg, operands.rm, operands.opcode];
        let extended = used.into_iter().flatten().any(|host| host >= 8);
        if operands.high && (operands.needs_rex || extended) {
            return None;
        }
        Some(operands)
    }

    /// See [`Plan::extension`]. The address in R10 needs REX.
    fn extension(encoding: &Encoding<'_>) -> (u32, u8) {
        match encoding.form {
            Form::Legacy(_) => (Self::prefixes(encoding).next(), 1 << 1),
            Form::Vex(_) | Form::Evex(_) => (1, 1 << 6),
        }
    }

    /// The prefixes of a legacy instruction before REX.
    fn prefixes(encoding: &Encoding<'_>) -> Bytes {
        let mut bytes = Bytes::default();
        if encoding.lock {
            bytes.add(0xf0);
        }
        if encoding.operand_size {
            bytes.add(0x66);
        }
        if let Some(repeat) = encoding.repeat {
            bytes.add(repeat);
        }
        bytes
    }

    /// The bytes of a legacy instruction up to its opcode, and what stands in ModRM.reg and ModRM.rm.
    fn legacy(&self, encoding: &Encoding<'_>) -> (Bytes, Reg, Reg) {
        let mut bytes = Self::prefixes(encoding);
        let modrm = encoding.modrm.unwrap_or(0);
        let (r, b) = (encoding.rex >> 2 & 1, encoding.rex & 1);
        let reg = self.reg.unwrap_or(r << 3 | modrm >> 3 & 7);
        let rm = self
            .memory
            .then_some(R10)
            .or(self.environment.map(|_| 0))
            .or(self.rm)
            .or(self.opcode)
            .unwrap_or(b << 3 | modrm & 7);
        let rex = encoding.rex & REX_W | (reg >> 3) << 2 | rm >> 3;
        // An operation of SPL to DIL without register fields of ours has had its REX.
        let had = encoding.rex != 0 && self.reg.is_none() && self.rm.is_none();
        if rex != 0 || self.needs_rex || had && !self.high {
            bytes.add(0x40 | rex);
        }
        if let Form::Legacy(1..) = encoding.form {
            bytes.add(0x0f);
        }
        match encoding.form {
            Form::Legacy(2) => bytes.add(0x38),
            Form::Legacy(3) => bytes.add(0x3a),
            _ => {}
        }
        if self.opcode.is_some() {
            bytes.add(encoding.opcode & 0xf8 | rm & 7);
        } else {
            bytes.add(encoding.opcode);
        }
        (bytes, reg, rm)
    }

    /// The same of VEX and EVEX. R, X, B, R', vvvv and V' are inverted.
    fn head(&self, encoding: &Encoding<'_>) -> (Bytes, Reg, Reg) {
        let modrm = encoding.modrm.unwrap_or(0);
        let (mut first, mut second, third) = match encoding.form {
            Form::Vex([first, second]) => (first, second, None),
            Form::Evex([first, second, third]) => (first, second, Some(third)),
            Form::Legacy(_) => return self.legacy(encoding),
        };
        let mut reg = modrm >> 3 & 7;
        if let Some(host) = self.reg {
            first = first & 0x7f | (!host >> 3 & 1) << 7;
            if third.is_some() {
                first |= 0x10;
            }
            reg = host & 7;
        }
        let mut rm = modrm & 7;
        let replaced = self.memory.then_some(R10).or(self.rm);
        if let Some(host) = replaced {
            // No index; B is the register's fourth bit.
            first = first & 0x9f | 0x40 | (!host >> 3 & 1) << 5;
            rm = host & 7;
        }
        if let Some(host) = self.vvvv {
            second = second & 0x87 | (!host & 15) << 3;
        }
        let mut bytes = Bytes::default();
        bytes.add(if third.is_some() { 0x62 } else { 0xc4 });
        for byte in [Some(first), Some(second), third].into_iter().flatten() {
            bytes.add(byte);
        }
        bytes.add(encoding.opcode);
        (bytes, reg, rm)
    }
}

/// The registers that are operands, in their order.
const fn registers(ins: &Instruction) -> [Register; 4] {
    [
        ins.op0_register(),
        ins.op1_register(),
        ins.op2_register(),
        ins.op3_register(),
    ]
}
