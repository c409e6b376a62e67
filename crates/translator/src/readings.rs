//! What code often asks of the processor: selectors, bases of segments, control registers, time.

use crate::asm::{Cond, R10, RAX, RCX, RDX, at};
use crate::block::Block;
use crate::env::Env;
use crate::mode::Mode;
use crate::registers::{self, GUEST_RAX, Place};
use belljar_x86::bits::cr4;
use belljar_x86::{CpuState, Segment};
use iced_x86::{Code, Instruction, OpKind, Register};
use std::mem::offset_of;

/// Whether the instruction is translated by [`Block::reading`].
pub fn is_reading(ins: &Instruction, mode: Mode) -> bool {
    match ins.code() {
        Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg | Code::Mov_rm16_Sreg => {
            ins.op0_kind() == OpKind::Register
        }
        Code::Mov_r64_cr => {
            let held = [Register::CR0, Register::CR2, Register::CR3, Register::CR4];
            !mode.is_user() && held.contains(&ins.op1_register())
        }
        Code::Rdfsbase_r32
        | Code::Rdfsbase_r64
        | Code::Rdgsbase_r32
        | Code::Rdgsbase_r64
        | Code::Wrfsbase_r32
        | Code::Wrfsbase_r64
        | Code::Wrgsbase_r32
        | Code::Wrgsbase_r64 => !mode.is_code32(),
        // The time of counting code is the interpreter's.
        Code::Rdtsc | Code::Rdtscp => !mode.counting(),
        _ => false,
    }
}

impl Block<'_> {
    /// Translates an instruction for which [`is_reading`] holds.
    pub fn reading(&mut self, ins: &Instruction) {
        match ins.code() {
            Code::Mov_r32m16_Sreg | Code::Mov_r64m16_Sreg | Code::Mov_rm16_Sreg => {
                self.read_selector(ins);
            }
            Code::Mov_r64_cr => self.read_control(ins),
            Code::Rdfsbase_r32 | Code::Rdfsbase_r64 => self.read_base(ins, false),
            Code::Rdgsbase_r32 | Code::Rdgsbase_r64 => self.read_base(ins, true),
            Code::Wrfsbase_r32 | Code::Wrfsbase_r64 => self.write_base(ins, false),
            Code::Wrgsbase_r32 | Code::Wrgsbase_r64 => self.write_base(ins, true),
            _ => self.read_time(ins),
        }
    }

    fn read_selector(&mut self, ins: &Instruction) {
        match ins.op1_register() {
            Register::CS => self.asm.load32(RAX, Env::selectors()),
            Register::SS => self.asm.load32(RAX, Env::stack_selector()),
            segment => {
                let number = segment.number();
                let place = offset_of!(CpuState, segments)
                    + number * size_of::<Segment>()
                    + offset_of!(Segment, selector);
                self.asm.load(RAX, Env::cpu());
                self.asm
                    .mem(false, &[0x0f, 0xb7], RAX, at(RAX, place as i32)); // movzx
            }
        }
        let number = registers::number(ins.op0_register());
        let narrow = ins.code() == Code::Mov_rm16_Sreg;
        match registers::place(number) {
            // The rest of the register stays.
            Place::Host(host) if narrow => {
                self.asm.byte(0x66);
                self.asm.mov32(host, RAX);
            }
            Place::Memory if narrow => {
                self.asm
                    .mem_prefixed(&[0x66], false, &[0x89], RAX, Env::gpr(number));
            }
            Place::Host(host) => self.asm.mov32(host, RAX),
            Place::Memory => self.asm.store(Env::gpr(number), RAX),
        }
    }

    fn read_control(&mut self, ins: &Instruction) {
        let place = match ins.op1_register() {
            Register::CR0 => offset_of!(CpuState, cr0),
            Register::CR2 => offset_of!(CpuState, cr2),
            Register::CR3 => offset_of!(CpuState, cr3),
            _ => offset_of!(CpuState, cr4),
        };
        self.asm.load(RAX, Env::cpu());
        self.asm.load(RAX, at(RAX, place as i32));
        self.set_register(ins.op0_register());
    }

    /// RAX, or its lower half, into a register.
    fn set_register(&mut self, register: Register) {
        let number = registers::number(register);
        if register.size() == 4 {
            self.asm.mov32(RAX, RAX);
        }
        match registers::place(number) {
            Place::Host(host) => self.asm.mov(host, RAX),
            Place::Memory => self.asm.store(Env::gpr(number), RAX),
        }
    }

    /// Leaves for the interpreter if the instructions for bases are not enabled.
    fn need_bases(&mut self) {
        let live = self.guest().live;
        self.spare_flags(live);
        self.asm.load(RAX, Env::cpu());
        let place = offset_of!(CpuState, cr4) as i32;
        self.asm.mem(false, &[0xf7], 0, at(RAX, place)); // test dword, imm32
        self.asm.bytes(&(cr4::FSGSBASE as u32).to_le_bytes());
        self.leave_if(Cond::E);
    }

    fn read_base(&mut self, ins: &Instruction, gs: bool) {
        self.need_bases();
        self.asm.load(RAX, Env::base(gs));
        self.set_register(ins.op0_register());
    }

    fn write_base(&mut self, ins: &Instruction, gs: bool) {
        self.need_bases();
        let register = ins.op0_register();
        let from = self.held_in(registers::number(register), RAX);
        if register.size() == 4 {
            self.asm.mov32(RAX, from);
        } else {
            if from != RAX {
                self.asm.mov(RAX, from);
            }
            self.leave_unless_canonical();
        }
        self.asm.store(Env::base(gs), RAX);
    }

    /// RDTSC and RDTSCP.
    fn read_time(&mut self, ins: &Instruction) {
        let live = self.guest().live;
        self.spare_flags(live);
        self.asm.cmp_byte(Env::may_read_time(), 0);
        self.leave_if(Cond::E);
        if ins.code() == Code::Rdtscp {
            self.asm.bytes(&[0x0f, 0xae, 0xe8]); // lfence
        }
        self.asm.bytes(&[0x0f, 0x31]); // rdtsc
        self.asm.shl(RDX, 32);
        self.asm.reg(true, &[0x0b], RAX, RDX); // or
        self.asm
            .alu_mem(crate::asm::Alu::Sub, true, RAX, Env::ahead());
        self.asm.mov32(GUEST_RAX, RAX);
        self.asm.mov(RDX, RAX);
        self.asm.shr(RDX, 32);
        if ins.code() == Code::Rdtscp {
            self.asm.load(R10, Env::cpu());
            let place = offset_of!(CpuState, msr.tsc_aux) as i32;
            self.asm.load32(RCX, at(R10, place));
        }
    }
}
