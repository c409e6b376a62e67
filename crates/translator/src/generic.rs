//! Innocuous instructions: written anew, with their registers and memory operand replaced.

use crate::access::memory_operand;
use crate::asm::{self, Bytes, Mem, R10, RAX, Reg, at};
use crate::block::Block;
use crate::encoding::{Encoding, Form, REX_W};
use crate::env::Env;
use crate::forms::{
    Field, can_be_memory, exchanged, freed_of_accumulator, freed_of_address, lengthened,
};
use crate::registers::{self, GUEST_RAX, Place, is_high_byte, names_high_byte, number};
use crate::shapes::Shape;
use crate::x87::is_x87;
use belljar_passthrough::Unit;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

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
    /// The memory operand.
    memory: Option<Mem>,
    /// A register of the environment that takes the place of `rm`.
    environment: Option<Mem>,
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
        if self.in_r10 == Some(number) || self.in_r10.is_none() && self.memory.is_none() {
            self.in_r10 = Some(number);
            return Some(R10);
        }
        let lent = self.lent.filter(|(guest, _)| *guest == number);
        lent.map(|(_, host)| host)
    }

    /// Whether no register is elsewhere meanwhile.
    const fn stay(&self) -> bool {
        self.in_rax.is_none() && self.in_r10.is_none() && self.lent.is_none()
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
        if self.memory.is_some()
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
            operands.memory = Some(at(R10, 0));
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
                && operands.memory.is_none()
                && !operands.high
                && registers::place(number(register)) == Place::Memory
                && can_be_memory(ins, n, shape.writes(n))
            {
                operands.environment = Some(Env::gpr(number(register)));
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
}

/// Whether the host may raise an exception for the instruction.
pub fn may_fault(ins: &Instruction, unit: Unit) -> bool {
    !matches!(unit, Unit::Integer | Unit::IntegerVex)
        || matches!(
            ins.mnemonic(),
            Mnemonic::Div | Mnemonic::Idiv | Mnemonic::Cmpxchg16b
        )
}

impl Block<'_> {
    /// Whether the mode allows the unit, and translated code can hold it.
    pub fn is_enabled(&self, unit: Unit) -> bool {
        match unit {
            Unit::Integer | Unit::IntegerVex => true,
            Unit::Sse | Unit::X87 | Unit::Wait => self.mode.sse(),
            Unit::Avx | Unit::Avx512 => self.mode.avx(),
            Unit::Mmx => false,
        }
    }

    /// Writes an innocuous instruction anew; `false` if it cannot be.
    pub fn innocuous(&mut self, unit: Unit) -> bool {
        let guest = &self.guests[self.now];
        let ins = &guest.ins;
        let bytes = &self.bytes[guest.offset..guest.offset + ins.len()];
        let mut encoding = Encoding::parse(bytes, self.wide());
        if !self.wide() {
            encoding = encoding.and_then(|encoding| lengthened(ins, encoding));
        }
        let Some(mut encoding) = encoding else {
            return false;
        };
        let shape = self.shapes.of(ins);
        if shape.names_accumulator {
            encoding = freed_of_accumulator(encoding);
        }
        encoding = freed_of_address(ins, encoding);
        let exchanged = exchanged(ins, &encoding);
        let Some(mut operands) = Operands::of(ins, shape, exchanged.is_some()) else {
            return false;
        };
        encoding = exchanged.unwrap_or(encoding);
        // What was taken apart is what was decoded: no address of the guest's is the host's.
        let in_memory = encoding.modrm.is_some_and(|modrm| modrm < 0xc0);
        if in_memory != operands.memory.is_some() {
            return false;
        }
        if !self.is_enabled(unit) {
            return false;
        }
        let size = ins.memory_size().size();
        if operands.memory.is_some() && !(1..=64).contains(&size) {
            return false;
        }
        match unit {
            Unit::Integer | Unit::IntegerVex => {}
            unit if is_x87(unit) => self.need_x87(),
            _ => self.need_vector(),
        }
        if is_x87(unit) && operands.memory.is_some() {
            self.keep_x87_data(ins);
        }
        if operands.memory.is_some() {
            let write = self.shapes.writes_memory(ins);
            operands.memory = Some(self.access(size, write));
        }
        if operands.in_r10.is_some() {
            self.held = None;
        }
        self.flags_in();
        self.load_operands(ins, &operands);
        self.may_raise |= may_fault(ins, unit);
        self.list_if_raising();
        self.encode(&encoding, &operands);
        self.flags_out();
        self.store_operands(ins, shape, &operands);
        if is_x87(unit) {
            self.note_x87(ins);
        }
        true
    }

    /// Makes the host's vector registers the guest's.
    pub fn need_vector(&mut self) {
        if self.vector {
            return;
        }
        self.vector = true;
        let live = self.guest().live;
        self.spare_flags(live);
        self.asm.cmp_byte(Env::vector_live(), 0);
        let live = self.asm.label();
        self.asm.jcc(asm::Cond::NE, live);
        self.asm.call_to(self.stubs.load_vector);
        self.asm.bind(live);
    }

    fn load_operands(&mut self, ins: &Instruction, operands: &Operands) {
        if operands.stay() {
            return;
        }
        if let Some((guest, host)) = operands.lent {
            self.asm.store(Env::temp(2), host);
            self.asm.load(host, Env::gpr(guest));
        }
        let only_written = matches!(
            ins.mnemonic(),
            Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd
        ) && ins.op0_kind() == OpKind::Register
            && ins.op0_register().size() >= 4;
        let written = only_written.then(|| number(ins.op0_register()));
        let read = |guest: u8| {
            written != Some(guest)
                || ins.op1_kind() == OpKind::Register && number(ins.op1_register()) == guest
        };
        for (host, guest) in [(RAX, operands.in_rax), (R10, operands.in_r10)] {
            let Some(guest) = guest.filter(|guest| read(*guest)) else {
                continue;
            };
            match registers::place(guest) {
                Place::Host(from) => self.asm.mov(host, from),
                Place::Memory => self.asm.load(host, Env::gpr(guest)),
            }
        }
    }

    fn store_operands(&mut self, ins: &Instruction, shape: Shape, operands: &Operands) {
        if operands.stay() {
            return;
        }
        if let Some((_, host)) = operands.lent {
            self.asm.load(host, Env::temp(2));
        }
        for (host, guest) in [(RAX, operands.in_rax), (R10, operands.in_r10)] {
            let Some(guest) = guest else {
                continue;
            };
            let written = (0..ins.op_count()).any(|n| {
                ins.op_kind(n) == OpKind::Register
                    && ins.op_register(n).is_gpr()
                    && number(ins.op_register(n)) == guest
                    && shape.writes(n)
            });
            if !(written || guest == 0 && shape.uses_rax) {
                continue;
            }
            match registers::place(guest) {
                Place::Host(to) => self.asm.mov(to, host),
                Place::Memory => self.asm.store(Env::gpr(guest), host),
            }
        }
    }

    /// Writes the instruction with other operands.
    fn encode(&mut self, encoding: &Encoding, operands: &Operands) {
        if let Form::Legacy(_) = encoding.form {
            self.encode_legacy(encoding, operands);
        } else {
            self.encode_vector(encoding, operands);
        }
    }

    fn encode_legacy(&mut self, encoding: &Encoding, operands: &Operands) {
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
        let modrm = encoding.modrm.unwrap_or(0);
        let (r, b) = (encoding.rex >> 2 & 1, encoding.rex & 1);
        let reg = operands.reg.unwrap_or(r << 3 | modrm >> 3 & 7);
        let rm = operands
            .memory
            .and_then(|memory| memory.base)
            .or(operands.environment.map(|_| 0))
            .or(operands.rm)
            .or(operands.opcode)
            .unwrap_or(b << 3 | modrm & 7);
        let rex = encoding.rex & REX_W | (reg >> 3) << 2 | rm >> 3;
        // An operation of SPL to DIL without register fields of ours has had its REX.
        let had = encoding.rex != 0 && operands.reg.is_none() && operands.rm.is_none();
        if rex != 0 || operands.needs_rex || had && !operands.high {
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
        if operands.opcode.is_some() {
            bytes.add(encoding.opcode & 0xf8 | rm & 7);
        } else {
            bytes.add(encoding.opcode);
        }
        let environment = operands.environment.map(|place| self.asm.placed(place));
        let memory = operands.memory.or(environment);
        if encoding.modrm.is_some() && memory.is_none() {
            bytes.add(0xc0 | (reg & 7) << 3 | rm & 7);
        }
        self.asm.put(bytes);
        if let Some(memory) = memory.filter(|_| encoding.modrm.is_some()) {
            self.asm.mem_operand(reg, memory);
        }
        self.asm.bytes(encoding.immediate);
    }

    /// VEX and EVEX. R, X, B, R', vvvv and V' are inverted.
    fn encode_vector(&mut self, encoding: &Encoding, operands: &Operands) {
        let modrm = encoding.modrm.unwrap_or(0);
        let (mut first, mut second, third) = match encoding.form {
            Form::Vex([first, second]) => (first, second, None),
            Form::Evex([first, second, third]) => (first, second, Some(third)),
            Form::Legacy(_) => return,
        };
        let mut reg = modrm >> 3 & 7;
        if let Some(host) = operands.reg {
            first = first & 0x7f | (!host >> 3 & 1) << 7;
            if third.is_some() {
                first |= 0x10;
            }
            reg = host & 7;
        }
        let mut rm = modrm & 7;
        let replaced = operands
            .memory
            .and_then(|memory| memory.base)
            .or(operands.rm);
        if let Some(host) = replaced {
            // No index; B is the register's fourth bit.
            first = first & 0x9f | 0x40 | (!host >> 3 & 1) << 5;
            rm = host & 7;
        }
        if let Some(host) = operands.vvvv {
            second = second & 0x87 | (!host & 15) << 3;
        }
        match third {
            None => self.asm.bytes(&[0xc4, first, second]),
            Some(third) => self.asm.bytes(&[0x62, first, second, third]),
        }
        self.asm.byte(encoding.opcode);
        if encoding.modrm.is_some() {
            match operands.memory {
                Some(memory) => self.asm.mem_operand(reg, memory),
                None => self.asm.byte(0xc0 | reg << 3 | rm),
            }
        }
        self.asm.bytes(encoding.immediate);
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

/// Innocuous instructions that are not passed on as they stand: none of their forms is worth it.
pub fn is_left_out(ins: &Instruction) -> bool {
    ins.vsib().is_some()
        || matches!(
            ins.mnemonic(),
            Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu | Mnemonic::Maskmovq
        )
        || (0..ins.op_count())
            .any(|n| ins.op_kind(n) == OpKind::Register && is_segment(ins.op_register(n)))
}

fn is_segment(register: Register) -> bool {
    register.is_segment_register() || register.is_cr() || register.is_dr()
}
