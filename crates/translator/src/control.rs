//! Instructions that are translated by hand: control transfers, the stack, and some others.

use crate::access::{Address, memory_operand};
use crate::asm::{self, Cond, Mem, R10, RAX, at};
use crate::block::Block;
use crate::encoding::Encoding;
use crate::env::Env;
use crate::flags::{self, Flags};
use crate::registers::{self, GUEST_RSP, Place, RSP_NUMBER};
use crate::width::has_address32;
use iced_x86::{Code, Instruction, Mnemonic, OpKind};

/// How a value is pushed.
#[derive(Clone, Copy, Debug)]
pub enum Value {
    /// A register, by the guest's number.
    Register(u8),
    /// A constant.
    Constant(u64),
    /// An address next to the code.
    Code(u64),
    /// The value on its way that has number 1.
    Temp,
}

/// Whether the instruction is one of those that are translated by hand and leave the block going.
pub fn is_special(ins: &Instruction) -> bool {
    match ins.code() {
        Code::Push_r64
        | Code::Pop_r64
        | Code::Pushq_imm32
        | Code::Pushq_imm8
        | Code::Push_rm64
        | Code::Leaveq => true,
        Code::Push_r32
        | Code::Pop_r32
        | Code::Pushd_imm32
        | Code::Pushd_imm8
        | Code::Push_rm32
        | Code::Leaved => true,
        Code::Mfence | Code::Sfence | Code::Lfence => true,
        Code::Bt_rm32_r32
        | Code::Bt_rm64_r64
        | Code::Bts_rm32_r32
        | Code::Bts_rm64_r64
        | Code::Btr_rm32_r32
        | Code::Btr_rm64_r64
        | Code::Btc_rm32_r32
        | Code::Btc_rm64_r64 => ins.op0_kind() == OpKind::Memory,
        _ => false,
    }
}

/// Whether it is a PUSH or POP of a register or a constant.
pub fn moves_stack(ins: &Instruction) -> bool {
    matches!(ins.mnemonic(), Mnemonic::Push | Mnemonic::Pop) && memory_operand(ins).is_none()
}

/// Whether it is a control transfer that is translated and ends the block.
pub fn is_transfer(ins: &Instruction) -> bool {
    matches!(
        ins.code(),
        Code::Jmp_rel8_64
            | Code::Jmp_rel32_64
            | Code::Jmp_rm64
            | Code::Call_rel32_64
            | Code::Call_rm64
            | Code::Retnq
            | Code::Retnq_imm16
            | Code::Jrcxz_rel8_64
            | Code::Jmp_rel8_32
            | Code::Jmp_rel32_32
            | Code::Jmp_rm32
            | Code::Call_rel32_32
            | Code::Call_rm32
            | Code::Retnd
            | Code::Retnd_imm16
            | Code::Jecxz_rel8_32
    )
}

/// Whether it is a conditional jump that is translated.
pub fn is_branch(ins: &Instruction) -> bool {
    let target = ins.op0_kind();
    ins.is_jcc_short_or_near() && matches!(target, OpKind::NearBranch32 | OpKind::NearBranch64)
}

impl Block<'_> {
    /// Translates LEA; `false` if it is not done.
    pub fn lea(&mut self) -> bool {
        let ins = self.guest().ins;
        let to = ins.op0_register();
        if to.size() < 4 {
            return false;
        }
        let wide = to.size() == 8;
        let number = registers::number(to);
        let host = match registers::place(number) {
            Place::Host(host) => host,
            Place::Memory => R10,
        };
        if let Some(value) = self.effective_address(&ins, host, wide) {
            let value = if wide { value } else { value & 0xffff_ffff };
            self.asm.mov_imm(host, value);
        }
        if !wide && ins.memory_base().is_ip() {
            self.asm.mov32(host, host);
        }
        if host == R10 {
            self.asm.store(Env::gpr(number), R10);
        }
        true
    }

    /// Translates an instruction for which [`is_special`] holds.
    pub fn special(&mut self) {
        let guest = *self.guest();
        let ins = guest.ins;
        match ins.code() {
            Code::Push_r64 | Code::Push_r32 => {
                self.push(Value::Register(registers::number(ins.op0_register())));
            }
            Code::Pushq_imm32 | Code::Pushq_imm8 | Code::Pushd_imm32 | Code::Pushd_imm8 => {
                self.push(Value::Constant(ins.immediate(0)));
            }
            Code::Push_rm64 | Code::Push_rm32 => self.push_operand(),
            Code::Pop_r64 | Code::Pop_r32 => self.pop(registers::number(ins.op0_register())),
            Code::Leaveq | Code::Leaved => self.leave_frame(),
            Code::Mfence => self.asm.bytes(&[0x0f, 0xae, 0xf0]),
            Code::Sfence => self.asm.bytes(&[0x0f, 0xae, 0xf8]),
            Code::Lfence => self.asm.bytes(&[0x0f, 0xae, 0xe8]),
            _ => self.bit_of_string(),
        }
    }

    /// Translates a conditional jump.
    pub fn branch(&mut self) {
        let guest = *self.guest();
        let bytes = &self.bytes[guest.offset..guest.offset + guest.ins.len()];
        let Some(encoding) = Encoding::parse(bytes, self.wide()) else {
            return;
        };
        self.need_flags(flags::ALL);
        let target = guest.ins.near_branch_target();
        self.jump_if(Cond(encoding.opcode & 15), target);
    }

    /// Translates an instruction for which [`is_transfer`] holds.
    pub fn transfer(&mut self) {
        let ins = self.guest().ins;
        match ins.code() {
            Code::Jmp_rel8_64 | Code::Jmp_rel32_64 | Code::Jmp_rel8_32 | Code::Jmp_rel32_32 => {
                self.jump(ins.near_branch_target());
            }
            Code::Jrcxz_rel8_64 | Code::Jecxz_rel8_32 => self.jump_if_rcx_is_zero(&ins),
            Code::Call_rel32_64 | Code::Call_rel32_32 => {
                self.push(Value::Code(ins.next_ip()));
                self.settle_stack();
                self.jump(ins.near_branch_target());
            }
            Code::Jmp_rm64 | Code::Jmp_rm32 => {
                self.target(&ins, flags::ALL);
                self.dispatch(0);
            }
            Code::Call_rm64 | Code::Call_rm32 => self.call_indirect(&ins),
            Code::Syscall => self.system_call(),
            Code::Sysretq => self.system_return(),
            _ => {
                let more = if matches!(ins.code(), Code::Retnq_imm16 | Code::Retnd_imm16) {
                    i32::from(ins.immediate16())
                } else {
                    0
                };
                let place = self.stack_top(0, false);
                // Saving the flags changes RAX.
                self.spare_flags(flags::ALL);
                self.list_if_raising();
                self.load_word(RAX, place);
                self.dispatch(self.word() + more);
            }
        }
    }

    fn call_indirect(&mut self, ins: &Instruction) {
        self.target(ins, flags::ALL);
        self.store_word(Env::temp(1), RAX);
        if self.wide() {
            // The exception comes before the push.
            self.leave_unless_canonical();
        }
        self.push(Value::Code(ins.next_ip()));
        self.settle_stack();
        self.load_word(RAX, Env::temp(1));
        self.dispatch(0);
    }

    /// Loads the operand of an indirect jump, an indirect call or a PUSH into RAX. The flags that matter
    /// at `live` are in the environment then.
    fn target(&mut self, ins: &Instruction, live: Flags) {
        self.held = None;
        self.spare_flags(live);
        if memory_operand(ins).is_some() {
            // The group of the instruction is that of its push.
            let size = self.word() as usize;
            let address = self.address(ins, size);
            self.check(address, size, false);
            self.load_word(RAX, at(R10, 0));
            return;
        }
        self.load_register(registers::number(ins.op0_register()));
    }

    fn jump_if_rcx_is_zero(&mut self, ins: &Instruction) {
        // jrcxz (with a prefix jecxz) over the jump to what follows
        let taken = self.asm.label();
        let end = self.asm.label();
        if !self.wide() {
            self.asm.byte(0x67);
        }
        self.asm.bytes(&[0xe3, 5]);
        self.asm.jmp(end);
        self.asm.jmp(taken);
        self.asm.bind(end);
        // Both ways are ends of the block.
        let loc = self.loc;
        self.jump(ins.next_ip());
        self.loc = loc;
        self.asm.bind(taken);
        self.jump(ins.near_branch_target());
    }

    /// The host's place of the word `offset` from the top of the stack, by way of R10.
    pub fn stack_top(&mut self, offset: i32, write: bool) -> Mem {
        self.stack_word(GUEST_RSP, offset, write)
    }

    /// The same, `offset` from a register of the host.
    fn stack_word(&mut self, base: asm::Reg, offset: i32, write: bool) -> Mem {
        let guest = *self.guest();
        let size = self.word() as usize;
        if self.windows {
            let owed = if base == GUEST_RSP { self.owed } else { 0 };
            return self.through_slot(guest.member, base, offset + owed);
        }
        if let Some(member) = guest.member {
            return self.shared(member, size, write, |block, start| {
                block.lea_word(R10, at(base, start));
            });
        }
        self.spare_flags(guest.live);
        self.lea_word(R10, at(base, offset));
        self.check_operand(Address::Computed, size, write);
        at(R10, 0)
    }

    /// Pushes a value.
    pub fn push(&mut self, value: Value) {
        let place = self.stack_top(-self.word(), true);
        match value {
            Value::Register(number) => {
                let host = self.held_in(number, RAX);
                self.list_if_raising();
                self.store_word(place, host);
            }
            Value::Code(address) if self.mode.is_relative() => {
                self.load_address(RAX, address);
                self.list_if_raising();
                self.store_word(place, RAX);
            }
            Value::Constant(value) | Value::Code(value) if !self.wide() => {
                self.list_if_raising();
                self.asm.store_imm32(place, value as u32);
            }
            Value::Constant(value) | Value::Code(value) => {
                if let Ok(value) = i32::try_from(value as i64) {
                    self.list_if_raising();
                    self.asm.store_imm64(place, value);
                } else {
                    self.asm.mov_imm(RAX, value);
                    self.list_if_raising();
                    self.store_word(place, RAX);
                }
            }
            Value::Temp => {
                self.load_word(RAX, Env::temp(1));
                self.list_if_raising();
                self.store_word(place, RAX);
            }
        }
        self.add_to_stack(-self.word());
    }

    fn push_operand(&mut self) {
        let ins = self.guest().ins;
        if memory_operand(&ins).is_none() {
            self.push(Value::Register(registers::number(ins.op0_register())));
            return;
        }
        let live = self.guest().live;
        self.target(&ins, live);
        self.store_word(Env::temp(1), RAX);
        self.push(Value::Temp);
    }

    fn pop(&mut self, number: u8) {
        let place = self.stack_top(0, false);
        self.list_if_raising();
        match registers::place(number) {
            Place::Host(host) => self.load_word(host, place),
            Place::Memory => {
                self.asm.load(RAX, place);
                self.asm.store(Env::gpr(number), RAX);
            }
        }
        if number != RSP_NUMBER {
            self.add_to_stack(self.word());
        }
    }

    fn leave_frame(&mut self) {
        let place = self.stack_word(asm::RBP, 0, false);
        self.list_if_raising();
        self.load_word(RAX, place);
        self.lea_word(GUEST_RSP, at(asm::RBP, self.word()));
        self.move_word(asm::RBP, RAX);
    }

    /// BT, BTS, BTR and BTC whose bit number is in a register and counts from the address of memory
    /// in both directions. SDM 1, 3.1.1.9 of the instruction reference.
    fn bit_of_string(&mut self) {
        let guest = *self.guest();
        let ins = guest.ins;
        let wide = ins.memory_size().size() == 8;
        let size = if wide { 8 } else { 4 };
        self.spare_flags(guest.live);
        let index = registers::number(ins.op1_register());
        if let Some(value) = self.effective_address(&ins, R10, true) {
            self.asm.mov_imm(R10, value);
        }
        self.load_register(index);
        // The number of the word that holds the bit.
        if wide {
            self.asm.sar(RAX, 6);
        } else {
            self.asm.reg(true, &[0x63], RAX, RAX); // movsxd
            self.asm.sar(RAX, 5);
        }
        let word = Mem {
            index: Some((RAX, if wide { 3 } else { 2 })),
            ..at(R10, 0)
        };
        // The number counts from the address, and wraps as it does.
        self.asm.lea(self.wide() && !has_address32(&ins), R10, word);
        self.add_base(&ins, size);
        self.check(Address::Computed, size, ins.mnemonic() != Mnemonic::Bt);
        self.load_register(index);
        self.asm
            .alu_imm(asm::Alu::And, false, RAX, if wide { 63 } else { 31 });
        self.asm.store(Env::temp(2), RAX);
        self.flags_in();
        self.asm.load(RAX, Env::temp(2));
        if ins.has_lock_prefix() {
            self.asm.byte(0xf0);
        }
        let opcode = match ins.mnemonic() {
            Mnemonic::Bt => 0xa3,
            Mnemonic::Bts => 0xab,
            Mnemonic::Btr => 0xb3,
            _ => 0xbb,
        };
        self.asm.mem(wide, &[0x0f, opcode], RAX, at(R10, 0));
        self.flags_out();
    }

    /// Loads a word of the guest's register of that number into RAX.
    fn load_register(&mut self, number: u8) {
        match registers::place(number) {
            Place::Host(host) => self.move_word(RAX, host),
            Place::Memory => self.load_word(RAX, Env::gpr(number)),
        }
    }
}
