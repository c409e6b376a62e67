//! Innocuous instructions: written anew, with their registers and memory operand replaced.

use crate::asm::{self, R10, RAX};
use crate::block::Block;
use crate::encoding::Encoding;
use crate::env::Env;
use crate::plans::Plan;
use crate::registers::{self, Place, number};
use crate::x87::is_x87;
use belljar_passthrough::Unit;
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

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
        let Some(encoding) = Encoding::parse(bytes, self.wide()) else {
            return false;
        };
        let plan = if self.loan.is_none() {
            self.plans.of(ins, &encoding, self.mode.is_code32())
        } else {
            // What is remembered by the encoding has the registers that it names.
            self.plans.anew(ins, encoding)
        };
        let Some(plan) = plan else {
            return false;
        };
        if !self.is_enabled(unit) {
            return false;
        }
        let size = ins.memory_size().size();
        if plan.memory && !(1..=64).contains(&size) {
            return false;
        }
        if is_x87(unit) {
            self.need_x87();
        } else if is_vector(unit) {
            self.need_vector();
        }
        if is_x87(unit) && plan.memory {
            self.keep_x87_data(ins);
        }
        let environment = |number| self.asm.placed(Env::gpr(number));
        let mut memory = plan.environment.map(environment);
        if plan.memory {
            let write = self.plans.shapes.writes_memory(ins);
            // A register that was lent must not be seen by who looks after a fault.
            memory = Some(match plan.lent {
                Some(_) if self.windows => self.checked_access(size, write),
                _ => {
                    if self.windows {
                        // While RAX is free; the access leaves the flags alone.
                        self.flags_in();
                    }
                    self.access(size, write, plan.in_rax.is_none())
                }
            });
        }
        if plan.in_r10.is_some() {
            self.held = None;
        }
        self.flags_in();
        self.load_operands(ins, &plan);
        self.may_raise |= may_fault(ins, unit);
        self.list_if_raising();
        let index = memory.and_then(|memory| memory.index);
        let extended = index.is_some_and(|(index, _)| index >= 8);
        self.asm.put(if extended {
            plan.head_of_extended()
        } else {
            plan.head
        });
        if let Some(memory) = memory {
            self.asm.mem_operand(plan.reg, memory);
        }
        if plan.immediate {
            self.asm.bytes(encoding.immediate);
        }
        self.flags_out();
        self.store_operands(ins, &plan);
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

    fn load_operands(&mut self, ins: &Instruction, plan: &Plan) {
        if plan.stays() {
            return;
        }
        if let Some((guest, host)) = plan.lent {
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
        for (host, guest) in [(RAX, plan.in_rax), (R10, plan.in_r10)] {
            let Some(guest) = guest.filter(|guest| read(*guest)) else {
                continue;
            };
            match registers::place(guest) {
                Place::Host(from) => self.asm.mov(host, from),
                Place::Memory => self.asm.load(host, Env::gpr(guest)),
            }
        }
    }

    fn store_operands(&mut self, ins: &Instruction, plan: &Plan) {
        if plan.stays() {
            return;
        }
        let shape = self.plans.shapes.of(ins);
        if let Some((_, host)) = plan.lent {
            self.asm.load(host, Env::temp(2));
        }
        for (host, guest) in [(RAX, plan.in_rax), (R10, plan.in_r10)] {
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
}

/// Whether a unit's instructions use the vector registers.
pub fn is_vector(unit: Unit) -> bool {
    !matches!(unit, Unit::Integer | Unit::IntegerVex) && !is_x87(unit)
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
