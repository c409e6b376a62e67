//! Frequent instructions that touch the system, and bulk string operations.
//!
//! The flags beside the status flags live in the environment while generated code runs: IF in
//! [`Env::interrupts`], the others in [`Env::system`]. Code that counts its instructions leaves all
//! that changes IF to the interpreter, so that an interrupt that waits is taken at the same
//! instruction as there.

use crate::access::Address;
use crate::asm::{Alu, Cond, Label, Mem, R10, RAX, RCX, RDI, RSI, at};
use crate::block::Block;
use crate::control::Value;
use crate::env::Env;
use crate::exit::Exit;
use crate::mode::Mode;
use crate::rare::Rare;
use crate::readings;
use crate::registers::GUEST_RAX;
use crate::tables::Loc;
use belljar_engine::Reason;
use belljar_x86::bits::rflags;
use iced_x86::{Code, Instruction, OpKind};

/// What POPF may change without the interpreter.
const PLAIN: u64 = rflags::STATUS | rflags::IF | rflags::FIXED;

/// Whether the instruction is translated by [`Block::system`], which leaves the block going.
pub fn is_system(ins: &Instruction, mode: Mode) -> bool {
    let supervisor = !mode.is_user();
    match ins.code() {
        Code::Cli | Code::Sti | Code::Popfq | Code::Popfd => supervisor && !mode.counting(),
        Code::Swapgs => supervisor,
        Code::Pushfq | Code::Pushfd => true,
        Code::Stosb_m8_AL
        | Code::Stosd_m32_EAX
        | Code::Stosq_m64_RAX
        | Code::Movsb_m8_m8
        | Code::Movsd_m32_m32
        | Code::Movsq_m64_m64 => {
            // An address-size prefix is rare.
            let usual = if mode.is_code32() {
                OpKind::MemoryESEDI
            } else {
                OpKind::MemoryESRDI
            };
            let plain = ins.op0_kind() == usual
                && !ins.has_segment_prefix()
                && (ins.has_rep_prefix() != ins.has_repne_prefix());
            plain && !mode.counting()
        }
        Code::Cld | Code::Std => true,
        _ => readings::is_reading(ins, mode),
    }
}

/// Whether the instruction sets or clears AC, which ends the block.
pub fn changes_access(ins: &Instruction, mode: Mode) -> bool {
    matches!(ins.code(), Code::Stac | Code::Clac) && !mode.is_user()
}

impl Block<'_> {
    /// Translates an instruction for which [`is_system`] holds; `false` if it is not done.
    pub fn system(&mut self) -> bool {
        let ins = self.guest().ins;
        self.held = None;
        match ins.code() {
            Code::Cli => {
                self.asm.load32(RAX, Env::heeded_off());
                self.asm.store32(Env::heeded(), RAX);
                self.asm.store_imm32(Env::interrupts(), 0);
            }
            Code::Sti => {
                // The next instruction must follow without a look at the attention word.
                if self.now + 1 == self.guests.len() {
                    return false;
                }
                let live = self.guest().live;
                self.spare_flags(live);
                self.leave_if_interrupted();
                self.asm.load32(RAX, Env::heeded_on());
                self.asm.store32(Env::heeded(), RAX);
                self.asm.store_imm32(Env::interrupts(), rflags::IF as u32);
            }
            Code::Pushfq | Code::Pushfd => self.push_flags(),
            Code::Popfq | Code::Popfd => self.pop_flags(),
            Code::Swapgs => {
                self.asm.load(RAX, Env::base(true));
                self.asm.load(R10, Env::kernel_gs());
                self.asm.store(Env::base(true), R10);
                self.asm.store(Env::kernel_gs(), RAX);
            }
            Code::Cld => self.change_direction(Alu::And, !rflags::DF),
            Code::Std => self.change_direction(Alu::Or, rflags::DF),
            _ if readings::is_reading(&ins, self.mode) => self.reading(&ins),
            _ => self.bulk(&ins),
        }
        true
    }

    /// STAC and CLAC: the code that follows is that of another mode.
    pub fn change_access(&mut self) {
        let ins = self.guest().ins;
        let set = ins.code() == Code::Stac;
        let mode = self.mode.with_access(set);
        if mode != self.mode {
            let change = rflags::AC as i32;
            self.asm.load32(RAX, Env::system());
            self.asm
                .lea(false, RAX, at(RAX, if set { change } else { -change }));
            self.asm.store32(Env::system(), RAX);
        }
        self.jump_to_mode(ins.next_ip(), mode);
    }

    fn change_direction(&mut self, op: Alu, mask: u64) {
        let live = self.guest().live;
        self.spare_flags(live);
        self.asm.mem(false, &[0x81], op as u8, Env::system());
        self.asm.bytes(&(mask as u32).to_le_bytes());
    }

    fn push_flags(&mut self) {
        self.spare_flags(crate::flags::ALL);
        self.gather_flags();
        self.asm.store(Env::temp(1), RAX);
        self.push(Value::Temp);
    }

    /// RFLAGS into RAX. The status flags are in the environment. Changes R10 and the host's flags.
    pub fn gather_flags(&mut self) {
        self.asm.load32(RAX, Env::flags());
        self.asm.mov32(R10, RAX);
        self.asm.alu_imm(Alu::And, false, R10, 1);
        self.asm.shl(R10, 11);
        self.asm.shr32(RAX, 8);
        self.asm
            .alu_imm(Alu::And, false, RAX, rflags::STATUS as u8 as i32);
        self.asm.reg(false, &[0x0b], RAX, R10); // or
        self.asm.alu_mem(Alu::Or, false, RAX, Env::interrupts());
        self.asm.alu_mem(Alu::Or, false, RAX, Env::system());
    }

    /// The status flags and IF become those of the word in RAX. Changes RAX, R10 and the host's
    /// flags.
    pub fn spread_flags(&mut self) {
        self.asm.mov32(R10, RAX);
        self.asm.alu_imm(Alu::And, false, R10, rflags::IF as i32);
        self.asm.store32(Env::interrupts(), R10);
        self.asm.load32(R10, Env::heeded_off());
        // test eax, imm32; cmovnz r10d, [heeded_on]
        self.asm.byte(0xa9);
        self.asm.bytes(&(rflags::IF as u32).to_le_bytes());
        self.asm.mem(false, &[0x0f, 0x45], R10, Env::heeded_on());
        self.asm.store32(Env::heeded(), R10);
        self.asm.mov32(R10, RAX);
        self.asm.shr32(R10, 11);
        self.asm.alu_imm(Alu::And, false, R10, 1);
        self.asm.shl(RAX, 8);
        self.asm
            .alu_imm(Alu::And, false, RAX, (rflags::STATUS as u8 as i32) << 8);
        self.asm.reg(false, &[0x0b], RAX, R10);
        self.asm.store32(Env::flags(), RAX);
    }

    fn pop_flags(&mut self) {
        let place = self.stack_top(0, false);
        // Until the flags are loaded the old ones are where a fault finds them.
        self.load_word(RAX, place);
        self.asm.mov32(R10, RAX);
        self.asm.alu_mem(Alu::Xor, false, R10, Env::system());
        self.held = None;
        // test r10d, imm32
        self.asm.reg(false, &[0xf7], 0, R10);
        self.asm.bytes(&(!PLAIN as u32).to_le_bytes());
        self.leave_if(Cond::NE);
        self.leave_if_interrupted();
        self.spread_flags();
        self.add_to_stack(self.word());
        self.loc = Loc::Saved;
    }

    /// Leaves for the interpreter if an interrupt waits, which is to be taken after this very
    /// instruction or the next. Changes R10 and the flags.
    fn leave_if_interrupted(&mut self) {
        self.asm.load(R10, Env::attention());
        self.asm.mem(false, &[0xf7], 0, at(R10, 0)); // test dword [r10], imm32
        self.asm.bytes(&Reason::INTERRUPT.0.to_le_bytes());
        self.leave_if(Cond::NE);
    }

    /// Leaves for the interpreter, which executes the instruction, on a condition.
    pub fn leave_if(&mut self, cond: Cond) {
        let label = self.asm.label();
        self.asm.jcc(cond, label);
        self.leave_at(label);
    }

    /// Leaves for the interpreter if the address in RAX is not canonical. Changes R10 and the flags.
    pub fn leave_unless_canonical(&mut self) {
        let label = self.asm.label();
        self.check_canonical(label, self.mode.is_user());
        self.leave_at(label);
    }

    /// What jumps to `label` leaves for the interpreter.
    fn leave_at(&mut self, label: Label) {
        let site = self.site();
        self.rare.push(Rare::Leave {
            label,
            exit: Exit::Fallback(site),
        });
    }

    /// REP MOVS and REP STOS upward within a page each: the host does it in one go. The rest is the
    /// interpreter's.
    fn bulk(&mut self, ins: &Instruction) {
        let (copies, scale, opcode): (bool, u8, &[u8]) = match ins.code() {
            Code::Stosb_m8_AL => (false, 0, &[0xf3, 0xaa]),
            Code::Stosd_m32_EAX => (false, 2, &[0xf3, 0xab]),
            Code::Stosq_m64_RAX => (false, 3, &[0xf3, 0x48, 0xab]),
            Code::Movsb_m8_m8 => (true, 0, &[0xf3, 0xa4]),
            Code::Movsd_m32_m32 => (true, 2, &[0xf3, 0xa5]),
            _ => (true, 3, &[0xf3, 0x48, 0xa5]),
        };
        let live = self.guest().live;
        self.spare_flags(live);
        // test rcx, rcx
        let (end, wide) = (self.asm.label(), self.wide());
        self.asm.reg(wide, &[0x85], RCX, RCX);
        self.asm.jcc(Cond::E, end);
        self.asm.alu_imm(Alu::Cmp, wide, RCX, 4096);
        self.leave_if(Cond::A);
        self.asm.load32(RAX, Env::system());
        self.asm.byte(0xa9); // test eax, imm32
        self.asm.bytes(&(rflags::DF as u32).to_le_bytes());
        self.leave_if(Cond::NE);
        self.room(RDI, scale);
        if copies {
            self.room(RSI, scale);
            self.move_word(R10, RSI);
            self.check(Address::Computed, 1, false);
            self.asm.store(Env::temp(2), R10);
        }
        self.move_word(R10, RDI);
        self.check(Address::Computed, 1, true);
        // The registers as they are afterwards.
        self.after(RDI, scale, 1);
        if copies {
            self.after(RSI, scale, 3);
            self.asm.load(RSI, Env::temp(2));
        }
        self.asm.mov(RDI, R10);
        if !wide {
            self.asm.mov32(RCX, RCX);
        }
        self.asm.mov(RAX, GUEST_RAX);
        self.asm.bytes(opcode);
        self.asm.load(RDI, Env::temp(1));
        if copies {
            self.asm.load(RSI, Env::temp(3));
        }
        self.asm.bind(end);
    }

    /// Leaves if RCX elements from `register` on reach beyond its page.
    fn room(&mut self, register: u8, scale: u8) {
        self.asm.mov32(RAX, register);
        self.asm.alu_imm(Alu::And, false, RAX, 0xfff);
        let end = Mem {
            index: Some((RCX, scale)),
            ..at(RAX, 0)
        };
        self.lea_word(RAX, end);
        self.asm.alu_imm(Alu::Cmp, true, RAX, 4096);
        self.leave_if(Cond::A);
    }

    /// Notes `register` plus RCX elements in a value on its way.
    fn after(&mut self, register: u8, scale: u8, temp: usize) {
        let end = Mem {
            index: Some((RCX, scale)),
            ..at(register, 0)
        };
        self.lea_word(RAX, end);
        self.asm.store(Env::temp(temp), RAX);
    }
}
