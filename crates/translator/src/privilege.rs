//! SYSCALL and SYSRET of 64-bit code: changes of privilege that generated code makes by itself.
//!
//! The code that follows is of another mode, which is found in that mode's jump cache. CS and SS
//! stay as they were: [`Env::switched`] says what has become of them, and they are loaded when the
//! state goes back to the processor. What is not usual is left to the interpreter: SDM 2, SYSCALL
//! and SYSRET, has it all.

use crate::asm::{Alu, Cond, R10, RAX, RCX, at};
use crate::block::Block;
use crate::env::{Env, SYSCALL, SYSRET};
use crate::flags;
use crate::mode::Mode;
use belljar_x86::bits::{efer, rflags};
use belljar_x86::{CpuState, Seg, syscall};
use iced_x86::{Code, Instruction};

/// The flags that SYSCALL must clear if generated code is to do it: the code that follows is the
/// supervisor's with AC clear, and takes no interrupts at once.
const CLEARED: u64 = rflags::IF | rflags::TF | rflags::AC;
/// The flags that SYSRET restores. SDM 2, SYSRET.
const RESTORED: u32 = 0x3c_7fd7;
/// The guest's number of R11, which holds the flags.
const R11_NUMBER: u8 = 11;

/// Whether the instruction changes the privilege level and is translated. Counting code leaves it to
/// the interpreter, so that an interrupt is taken at the same instruction as there.
pub fn changes(ins: &Instruction, mode: Mode) -> bool {
    let plain = !mode.counting() && !mode.is_code32();
    match ins.code() {
        Code::Syscall => plain && mode.is_user(),
        Code::Sysretq => plain && !mode.is_user(),
        _ => false,
    }
}

/// Where SYSCALL leads if generated code may do it, and SYSRET; else 0.
pub fn system_calls(cpu: &CpuState) -> u64 {
    let usual = cpu.efer & efer::SCE != 0 && cpu.msr.fmask & CLEARED == CLEARED;
    if usual && cpu.code64() {
        cpu.msr.lstar
    } else {
        0
    }
}

/// The selectors of CS and SS as [`Env::selectors`] has them.
pub fn selectors(cpu: &CpuState) -> u64 {
    let [code, stack] = [Seg::Cs, Seg::Ss].map(|seg| u64::from(cpu.seg(seg).selector));
    code | stack << 32
}

/// What SYSCALL and SYSRET load.
pub fn switched_selectors(cpu: &CpuState) -> [u64; 2] {
    [syscall::supervisor_selectors, syscall::program_selectors].map(|selectors| {
        let (code, stack) = selectors(cpu);
        u64::from(code) | u64::from(stack) << 32
    })
}

impl Block<'_> {
    /// SYSCALL.
    pub fn system_call(&mut self) {
        let next = self.guest().ins.next_ip();
        self.begin_switch();
        self.gather_flags();
        self.asm.store(Env::gpr(R11_NUMBER), RAX);
        self.load_address(RCX, next);
        self.asm.alu_mem(Alu::And, false, RAX, Env::kept_flags());
        self.end_switch(SYSCALL, self.mode.with_access(false));
    }

    /// SYSRET to 64-bit code.
    pub fn system_return(&mut self) {
        self.begin_switch();
        self.asm.mov(RAX, RCX);
        self.leave_unless_canonical();
        self.asm.load32(RAX, Env::gpr(R11_NUMBER));
        self.asm.alu_imm(Alu::And, false, RAX, RESTORED as i32);
        self.asm.alu_imm(Alu::Or, false, RAX, rflags::FIXED as i32);
        // A trap, or alignment checks.
        self.asm.byte(0xa9); // test eax, imm32
        let unusual = (rflags::TF | rflags::AC) as u32;
        self.asm.bytes(&unusual.to_le_bytes());
        self.leave_if(Cond::NE);
        self.end_switch(SYSRET, self.mode.of_programs());
    }

    /// Leaves for the interpreter if there is anything to look at, or the system is not set up as
    /// usual. Flags that an interrupt would see go to the environment.
    fn begin_switch(&mut self) {
        self.spare_flags(flags::ALL);
        self.held = None;
        self.asm.load(R10, Env::attention());
        self.asm.cmp32_imm8(at(R10, 0), 0);
        self.leave_if(Cond::NE);
        self.asm.load(RAX, Env::system_calls());
        self.asm.reg(true, &[0x85], RAX, RAX); // test
        self.leave_if(Cond::E);
    }

    /// Takes the flags in RAX, and goes on with code of `mode`.
    fn end_switch(&mut self, by: u32, mode: Mode) {
        self.asm.mov32(R10, RAX);
        let others = !(rflags::STATUS | rflags::IF) as u32;
        self.asm.alu_imm(Alu::And, false, R10, others as i32);
        self.asm.store32(Env::system(), R10);
        self.spread_flags();
        self.asm
            .store_imm32(Env::cpl(), if by == SYSCALL { 0 } else { 3 });
        self.asm.store_imm32(Env::switched(), by);
        self.asm.load(RAX, Env::switched_selectors(by));
        self.asm.store(Env::selectors(), RAX);
        if by == SYSCALL {
            self.asm.load(RAX, Env::system_calls());
        } else {
            self.asm.mov(RAX, RCX);
        }
        let missed = self.asm.label();
        self.dispatch_to(mode, missed, 0);
    }
}
