//! Random 32-bit code: the translator and the interpreter run it side by side and must agree in
//! everything. Instructions that leave flags undefined in other ways than the host are left out.

#[path = "../../interpreter/tests/suite/harness/mod.rs"]
mod harness;
mod random;

use belljar_engine::{Engine, Exit};
use belljar_interpreter::Interpreter;
use belljar_lockstep::fields;
use belljar_memory::GuestPhysAddr;
use belljar_translator::{Translator, Tuning};
use belljar_x86::{CpuState, Gpr, Seg};
use harness::code32::World;
use harness::{CODE, DATA, Machine, STACK};
use iced_x86::{Decoder, DecoderOptions, FastFormatter, Instruction, Mnemonic, OpKind, Register};
use random::Random;
use std::sync::Arc;

/// Programs for each world and tuning.
const PROGRAMS: u64 = 60;
/// Instructions of each, before the loop's end.
const LENGTH: usize = 40;
/// How often each goes round.
const ROUNDS: u32 = 6;
/// Where the base of GS lies.
const THREAD: u64 = DATA + 0x4000;

// What the harness wants of a suite.

fn engine() -> Arc<dyn Engine> {
    Arc::new(Interpreter::new())
}

fn counted() -> bool {
    true
}

/// EAX, ECX, EDX and EDI: the others hold addresses.
const FREE: [u8; 4] = [0, 1, 2, 7];

/// CMP EAX, ECX, which defines all status flags.
const DEFINE: [u8; 2] = [0x39, 0xc8];

/// The flags that are undefined behind an instruction if `before` are before it. Processors agree on
/// AF after operations of logic.
fn after(ins: &Instruction, before: u32) -> u32 {
    let logic = matches!(
        ins.mnemonic(),
        Mnemonic::And | Mnemonic::Or | Mnemonic::Xor | Mnemonic::Test
    );
    let undefined = if logic { 0 } else { ins.rflags_undefined() };
    // The count of a shift may be 0.
    let sure = ins.rflags_modified() & !undefined;
    let shifts = ins.op1_kind() == OpKind::Immediate8 || ins.op1_register() == Register::CL;
    if shifts && undefined != 0 {
        before | undefined
    } else {
        before & !sure | undefined
    }
}

/// Whether `code` depends on flags that are undefined, as `before` are before it, and which are behind it.
fn follow(code: &[u8], before: u32) -> (bool, u32) {
    let mut decoder = Decoder::new(32, code, DecoderOptions::NONE);
    decoder
        .iter()
        .fold((false, before), |(depends, left), ins| {
            // What follows a jump that may be taken is not always executed.
            let reads = ins.rflags_read() & left != 0 || ins.is_jcc_short();
            (depends || reads, after(&ins, left))
        })
}

/// A program in the making. EBX points to data, ESI is a small index, EBP an address that reaches
/// data by wrapping at 4 GiB.
struct Program {
    random: Random,
    code: Vec<u8>,
    depth: u32,
}

impl Program {
    /// ModRM and what belongs to it: a memory operand, or now and then a register.
    fn operand(&mut self, reg: u8, registers: bool) -> (Option<u8>, Vec<u8>) {
        let reg = reg << 3;
        let offset = self.random.below(0x400) as u32;
        let address = |modrm: &[u8], disp: u32| [modrm, &disp.to_le_bytes()].concat();
        match self.random.below(if registers { 10 } else { 7 }) {
            0 => (None, vec![0x43 | reg, offset as u8 & 0x7f]),
            1 => (None, address(&[0x83 | reg], offset)),
            2 => (None, address(&[0x05 | reg], DATA as u32 + offset)),
            // [ebp + disp32], [esi * 4 + disp32]
            3 => (None, address(&[0x85 | reg], DATA as u32 + 0x100 + offset)),
            4 => (None, address(&[0x04 | reg, 0xb5], DATA as u32 + offset)),
            // gs: [disp32] around the base
            5 => (
                Some(0x65),
                address(&[0x05 | reg], offset.wrapping_sub(0x200)),
            ),
            // [ebx + esi * 8 + disp8]
            6 => (None, vec![0x44 | reg, 0xf3, offset as u8 & 0x7f]),
            _ => (None, vec![0xc0 | reg | self.random.of(&FREE)]),
        }
    }

    fn emit(&mut self, prefix: Option<u8>, opcode: &[u8], rest: &[u8]) {
        self.code.extend(prefix);
        self.code.extend_from_slice(opcode);
        self.code.extend_from_slice(rest);
    }

    /// The same with a ModRM operand, and an operand size of 16 bits now and then.
    fn with_operand(&mut self, opcode: &[u8], reg: u8, registers: bool, immediate: &[u8]) {
        let (prefix, operand) = self.operand(reg, registers);
        if self.random.below(6) == 0 && immediate.len() < 2 {
            self.code.push(0x66);
        }
        self.emit(prefix, opcode, &operand);
        self.code.extend_from_slice(immediate);
    }

    fn instruction(&mut self) {
        let register = self.random.of(&FREE);
        let byte = self.random.byte();
        match self.random.below(18) {
            0 | 1 => {
                let opcode = self.random.of(&[0, 1, 2, 3]) + 8 * (byte & 7);
                self.with_operand(&[opcode], register, true, &[]);
            }
            2 => {
                // Bytes of registers, the high ones too: AL, CL, DL, AH, CH, DH
                let register = self.random.of(&[0, 1, 2, 4, 5, 6]);
                let opcode = self.random.of(&[0x8a, 0x88, 0x02, 0x3a, 0x84, 0x86]);
                self.with_operand(&[opcode], register, false, &[]);
            }
            3 => {
                let opcode = self.random.of(&[0x89, 0x8b, 0x85, 0x87]);
                self.with_operand(&[opcode], register, true, &[]);
            }
            4 => {
                let opcode = self.random.of(&[0x40, 0x48]) + register;
                let wide = self.random.below(4) != 0;
                self.emit((!wide).then_some(0x66), &[opcode], &[]);
            }
            5 => {
                // MOV between the accumulator and an address
                let opcode = self.random.of(&[0xa0, 0xa1, 0xa2, 0xa3]);
                let at = DATA as u32 + self.random.below(0x400) as u32;
                self.emit(None, &[opcode], &at.to_le_bytes());
            }
            6 => {
                let opcode = self.random.of(&[0x80, 0x82, 0x83, 0xc0, 0xc1]);
                self.with_operand(&[opcode], byte & 7, true, &[byte]);
            }
            7 => {
                let opcode = self.random.of(&[0xd0, 0xd1, 0xd2, 0xd3]);
                self.with_operand(&[opcode], byte & 7, true, &[]);
            }
            8 => {
                // NOT, NEG, MUL, IMUL
                let reg = self.random.of(&[2, 3, 4, 5]);
                let opcode = self.random_f6();
                self.with_operand(&[opcode], reg, true, &[]);
            }
            9 => {
                let opcode = self.random.of(&[0xb6, 0xb7, 0xbe, 0xbf, 0xaf]);
                self.with_operand(&[0x0f, opcode], register, true, &[]);
            }
            10 => {
                // CMOVcc, SETcc
                let opcode = self.random.of(&[0x40, 0x90]) + (byte & 15);
                let register = if opcode < 0x90 { register } else { 0 };
                self.with_operand(&[0x0f, opcode], register, opcode < 0x90, &[]);
            }
            11 => {
                // BT, BTS, BTR, BTC by a small index in ESI or by an immediate
                let opcode = self.random.of(&[0xa3, 0xab, 0xb3, 0xbb]);
                self.with_operand(&[0x0f, opcode], 6, true, &[]);
                self.with_operand(&[0x0f, 0xba], 4 + (byte & 3), true, &[byte]);
            }
            12 => {
                let register = self.random_push();
                self.emit(None, &[0x50 + register], &[]);
            }
            13 if self.depth > 0 => {
                self.depth -= 1;
                self.emit(None, &[0x58 + register], &[]);
            }
            14 => {
                // PUSH of memory and of a constant, PUSHF
                self.depth += 2;
                self.with_wide(&[0xff], 6);
                self.emit(None, &[0x6a, byte], &[]);
            }
            15 => {
                // LEA
                self.with_operand(&[0x8d], register, false, &[]);
            }
            16 => {
                // A jump over an instruction of two bytes, XADD, CMPXCHG
                self.emit(
                    None,
                    &[0x70 + (byte & 15), 2, 0x31, 0xc0 | byte & 7 << 3],
                    &[],
                );
                let opcode = self.random.of(&[0xc1, 0xb1]);
                self.with_operand(&[0x0f, opcode], register, true, &[]);
            }
            _ => {
                self.depth += 1;
                self.emit(None, &[0x9c], &[]);
            }
        }
    }

    /// One, or a few, that do not depend on flags that the manual calls undefined, as `undefined` are
    /// before: what they are differs from code that counts.
    fn defined_instruction(&mut self, undefined: &mut u32) {
        let start = self.code.len();
        self.instruction();
        let (depends, left) = follow(&self.code[start..], *undefined);
        *undefined = if depends {
            self.code.splice(start..start, DEFINE);
            follow(&self.code[start..], *undefined).1
        } else {
            left
        };
    }

    fn random_f6(&mut self) -> u8 {
        self.random.of(&[0xf6, 0xf7])
    }

    fn random_push(&mut self) -> u8 {
        self.depth += 1;
        self.random.below(8) as u8
    }

    fn with_wide(&mut self, opcode: &[u8], reg: u8) {
        let (prefix, operand) = self.operand(reg, true);
        self.emit(prefix, opcode, &operand);
    }

    /// A loop of random instructions, which ends by UD2.
    fn write(seed: u64) -> Vec<u8> {
        let mut program = Self {
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            code: Vec::new(),
            depth: 0,
        };
        let mut undefined = 0;
        for _ in 0..LENGTH {
            program.defined_instruction(&mut undefined);
        }
        program.code.extend(DEFINE);
        // lea esp, [esp + depth]; dec dword [counter]; jnz top
        let depth = program.depth * 4;
        program.emit(None, &[0x8d, 0xa4, 0x24], &depth.to_le_bytes());
        let counter = (DATA as u32 + 0x8000).to_le_bytes();
        program.emit(None, &[0xff, 0x0d], &counter);
        let back = -(program.code.len() as i32 + 6);
        program.emit(None, &[0x0f, 0x85], &back.to_le_bytes());
        program.emit(None, &[0x0f, 0x0b], &[]);
        program.code
    }
}

fn state(world: World, seed: u64) -> CpuState {
    let mut cpu = world.state();
    for (n, register) in cpu.gpr.iter_mut().enumerate() {
        *register = (seed | 0x1234_5678_9abc_def0).rotate_left(n as u32 * 4);
    }
    cpu.gpr[Gpr::Rbx as usize] = 0x7777_7777 << 32 | DATA;
    cpu.gpr[Gpr::Rsi as usize] = 0x5555 << 32 | 3;
    cpu.gpr[Gpr::Rbp as usize] = 0x99 << 32 | 0xffff_ff00;
    cpu.gpr[Gpr::Rsp as usize] = STACK;
    cpu.segments[Seg::Gs as usize].base = THREAD;
    cpu
}

fn memory(machine: &Machine) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (at, length) in [(DATA, 0x9000), (STACK - 0x1000, 0x1000)] {
        let mut part = vec![0; length];
        machine.memory.read(GuestPhysAddr(at), &mut part).unwrap();
        bytes.append(&mut part);
    }
    bytes
}

/// Runs program `seed` to its end, in pieces of `budget` instructions.
fn run(engine: &dyn Engine, world: World, seed: u64, budget: Option<u64>) -> Machine {
    let code = Program::write(seed);
    let mut machine = world.machine(engine, &code, state(world, seed));
    machine.write(DATA + 0x8000, &ROUNDS.to_le_bytes());
    for _ in 0..10_000 {
        match machine.vcpu.run(budget) {
            Exit::Budget => {}
            Exit::Halted => break,
            exit => panic!("{world:?}, seed {seed}: {exit:?}"),
        }
    }
    machine
}

/// The text of a program.
fn listing(code: &[u8]) -> String {
    let mut formatter = FastFormatter::new();
    let mut text = String::new();
    for ins in &mut Decoder::with_ip(32, code, CODE, DecoderOptions::NONE) {
        text.push('\n');
        formatter.format(&ins, &mut text);
    }
    text
}

fn agrees(name: &str, tuning: Tuning, budget: Option<u64>, first: u64) {
    for world in World::ALL {
        for seed in first..first + PROGRAMS {
            let mut left = run(&Interpreter::new(), world, seed, Some(1000));
            let mut right = run(&Translator::with_tuning(tuning), world, seed, budget);
            let found = fields(left.vcpu.state(), right.vcpu.state());
            assert!(
                found.is_empty(),
                "{name}, {world:?}, seed {seed}: {found:#x?}{}",
                listing(&Program::write(seed))
            );
            // An operand may reach beyond the limit of GS.
            assert!(
                matches!(left.vector(), Some(6 | 13)),
                "{world:?}, seed {seed}"
            );
            assert!(
                memory(&left) == memory(&right),
                "memory, {name}, {world:?}, seed {seed}"
            );
        }
    }
}

#[test]
fn random_code_agrees_as_users_get_it() {
    agrees("usual", Tuning::default(), None, 1);
}

#[test]
fn random_code_agrees_when_it_counts() {
    agrees("usual", Tuning::default(), Some(7), 1000);
}

#[test]
fn random_code_agrees_under_every_tuning() {
    for (first, (name, tuning)) in (2000..).step_by(100).zip(Tuning::STRESSED) {
        agrees(name, tuning, None, first);
    }
}

#[test]
fn most_of_it_is_translated() {
    for world in World::ALL {
        let machine = run(&Translator::new(), world, 5, None);
        let counters = machine.vcpu.counters();
        let count = |wanted| {
            let found = counters.iter().find(|(name, _)| *name == wanted);
            found.map_or(0, |(_, count)| *count)
        };
        assert!(count("instructions_translated") > 20, "{world:?}");
        assert!(count("untranslated") < 10, "{world:?}: {counters:?}");
    }
}
