//! Accesses of programs through windows: random ones, amid page tables that change, run by the interpreter
//! and by the translator, which must agree in everything.

#[path = "../../interpreter/tests/suite/harness/mod.rs"]
mod harness;
mod random;

use belljar_engine::{Engine, Exit};
use belljar_interpreter::Interpreter;
use belljar_lockstep::fields;
use belljar_memory::GuestPhysAddr;
use belljar_translator::{Translator, Tuning};
use belljar_x86::bits::rflags;
use belljar_x86::{CpuState, Gpr, Seg};
use harness::{
    CODE, DATA, HANDLERS, Machine, PAGES, TABLES, assemble, assemble_at, entry_of, state_of_program,
};
use iced_x86::code_asm::*;
use random::Random;
use std::sync::Arc;

/// Where the supervisor's code lies.
const SYSTEM: u64 = CODE + 0x3000;
/// What the program does, step by step.
const STEPS: u64 = DATA + 0x1000;
/// How many steps there are.
const COUNT: u64 = 400;
/// Words of a step.
const WORDS: usize = 6;
/// What faults left: a sum of what was pushed for them.
const FAULTS: u64 = DATA + 0x100;
/// Pages of RAM that are mapped here and there.
const FRAMES: u64 = 0x40_0000;
const FRAME_COUNT: u64 = 8;
/// The first of those that hold code, and nothing else.
const CODE_FRAME: u64 = 6;
/// Pages that data are mapped at, and behind them such for code.
const DATA_PAGES: u64 = 12;
/// The same address space as seen from another root.
const OTHER_ROOT: u64 = TABLES + 0x8000;
/// A slot of its own, in which [`PAGES`]'s table is seen again; the page before and the one behind the end
/// of the slot are in it.
const FAR: u64 = 0x7f12_ffe0_0000;
/// A large page behind [`PAGES`], its entry, and where it may lie.
const LARGE: u64 = PAGES + 0x20_0000;
const LARGE_ENTRY: u64 = TABLES + 0x3008;
const LARGE_FRAMES: [u64; 2] = [0x80_0000, 0xa0_0000];
/// No RAM.
const DEVICE: u64 = 0x8000_0000;

/// Present, writable, and for programs.
const USABLE: u64 = 7;

// What the harness wants of a suite.

fn engine() -> Arc<dyn Engine> {
    Arc::new(Interpreter::new())
}

fn counted() -> bool {
    false
}

/// How a step accesses memory. The program has a piece of code for each, in this order.
const ACCESSES: [fn(&mut CodeAssembler); 16] = [
    |a| a.add(r12, qword_ptr(rdi)).unwrap(),
    |a| {
        a.mov(qword_ptr(rdi), rax).unwrap();
        a.xor(r12d, dword_ptr(rdi + 4)).unwrap();
    },
    |a| {
        a.stc().unwrap();
        a.adc(qword_ptr(rdi - 8), rax).unwrap();
        a.adc(r12, 0).unwrap();
    },
    |a| {
        // A register that has to be lent another.
        a.mov(r9, rax).unwrap();
        a.mov(rax, r12).unwrap();
        a.lock().cmpxchg(qword_ptr(rdi), r9).unwrap();
        a.add(r12, rax).unwrap();
    },
    |a| {
        a.movups(xmm1, xmmword_ptr(rdi)).unwrap();
        a.movups(xmmword_ptr(rdi + 8), xmm1).unwrap();
    },
    |a| {
        // The base lies elsewhere.
        a.sub(rdi, 0x7000_0000).unwrap();
        a.mov(byte_ptr(rdi + 0x7000_0000), al).unwrap();
        a.add(r12b, byte_ptr(rdi + 0x7000_0001)).unwrap();
    },
    |a| {
        a.mov(r10, rax).unwrap();
        a.and(r10d, 0xff8).unwrap();
        a.add(r12, qword_ptr(rdi + r10 * 2)).unwrap();
        a.mov(qword_ptr(rdi + r10 * 2 - 16), r12).unwrap();
    },
    |a| {
        // Pushes that move the stack pointer late.
        a.mov(rbp, rsp).unwrap();
        a.mov(rsp, rdi).unwrap();
        a.push(rax).unwrap();
        a.push(r12).unwrap();
        a.push(0x1234).unwrap();
        a.pop(rcx).unwrap();
        a.pop(rdx).unwrap();
        a.pop(rbx).unwrap();
        a.mov(rsp, rbp).unwrap();
        a.add(r12, rcx).unwrap();
    },
    |a| {
        a.mov(rbp, rdi).unwrap();
        a.mov(rdx, rsp).unwrap();
        a.leave().unwrap();
        a.mov(rsp, rdx).unwrap();
        a.add(r12, rbp).unwrap();
    },
    |a| {
        a.mov(byte_ptr(rdi + 4), al).unwrap();
        a.call(rdi).unwrap();
    },
    |a| {
        a.fld(qword_ptr(rdi)).unwrap();
        a.fstp(qword_ptr(rdi + 24)).unwrap();
    },
    |a| {
        a.and(rdi, !15).unwrap();
        a.movaps(xmm2, xmmword_ptr(rdi)).unwrap();
        a.mov(ecx, 20).unwrap();
        a.mov(rsi, rdi).unwrap();
        a.rep().stosb().unwrap();
    },
    |a| {
        // A loop that borrows registers, and faults in any turn.
        let mut again = a.create_label();
        a.mov(r9, rdi).unwrap();
        a.mov(r10d, 40).unwrap();
        a.lea(r11, ptr(rdi + 8)).unwrap();
        a.set_label(&mut again).unwrap();
        a.add(r12, qword_ptr(r9)).unwrap();
        a.xor(qword_ptr(r11), r12).unwrap();
        a.lea(r9, ptr(r9 + r10 * 8)).unwrap();
        a.add(r11, 0x210).unwrap();
        a.sub(r10d, 1).unwrap();
        a.jne(again).unwrap();
        a.add(r12, r9).unwrap();
        a.xor(r12, r11).unwrap();
    },
    |a| {
        // The same with vectors, another way out, and operands of all sizes.
        let (mut again, mut out) = (a.create_label(), a.create_label());
        a.mov(r11d, eax).unwrap();
        a.mov(r10, rdi).unwrap();
        a.set_label(&mut again).unwrap();
        a.movsd_2(xmm0, qword_ptr(r10)).unwrap();
        a.movups(xmm1, xmmword_ptr(r10 + 7)).unwrap();
        a.paddq(xmm0, xmm1).unwrap();
        a.add(r10, 0x108).unwrap();
        a.mov(r9w, r11w).unwrap();
        a.shr(r11d, 1).unwrap();
        a.je(out).unwrap();
        a.mov(byte_ptr(r10), r9b).unwrap();
        a.movsd_2(qword_ptr(r10 + 1), xmm0).unwrap();
        a.test(r11b, r11b).unwrap();
        a.jne(again).unwrap();
        a.set_label(&mut out).unwrap();
        a.lea(r12, ptr(r12 + r10)).unwrap();
        a.xor(r12, r9).unwrap();
    },
    |a| {
        // A loop in which more registers would be borrowed than are free.
        let mut again = a.create_label();
        for register in [r8, r9, r10, r11] {
            a.mov(register, rdi).unwrap();
        }
        a.mov(ebp, 9).unwrap();
        a.set_label(&mut again).unwrap();
        a.add(r8, rsi).unwrap();
        a.add(r12, qword_ptr(r8 + rbp * 8)).unwrap();
        a.lea(r9, ptr(r9 + rbp)).unwrap();
        a.lea(r10, ptr(r9 + rsi * 2 + 0x300)).unwrap();
        a.mov(qword_ptr(r10), r15).unwrap();
        a.xchg(qword_ptr(r9), r11).unwrap();
        a.xor(r12, r13).unwrap();
        a.xor(r12, r14).unwrap();
        a.dec(ebp).unwrap();
        a.jne(again).unwrap();
    },
    |a| {
        // Through FS.
        a.add(r12, qword_ptr(0x28).fs()).unwrap();
        a.mov(qword_ptr(0x30).fs(), rax).unwrap();
        a.mov(r9, qword_ptr(0x7000_0000).fs()).unwrap();
    },
];

/// Reads the steps and does them, with a call of the system behind each.
fn program(a: &mut CodeAssembler) {
    let (mut top, mut next) = (a.create_label(), a.create_label());
    let mut pieces: Vec<CodeLabel> = ACCESSES.iter().map(|_| a.create_label()).collect();
    a.lea(r13, ptr(next)).unwrap();
    a.mov(r14, STEPS).unwrap();
    a.mov(r15, rsp).unwrap();
    a.set_label(&mut top).unwrap();
    a.mov(rsi, qword_ptr(r14)).unwrap();
    a.mov(rdi, qword_ptr(r14 + 8)).unwrap();
    a.mov(rax, qword_ptr(r14 + 16)).unwrap();
    for (number, piece) in pieces.iter().enumerate() {
        a.cmp(esi, number as i32).unwrap();
        a.je(*piece).unwrap();
    }
    a.set_label(&mut next).unwrap();
    a.mov(rsp, r15).unwrap();
    a.syscall().unwrap();
    a.add(r14, 8 * WORDS as i32).unwrap();
    a.jmp(top).unwrap();
    for (piece, access) in pieces.iter_mut().zip(ACCESSES) {
        a.set_label(piece).unwrap();
        access(a);
        a.jmp(next).unwrap();
    }
}

/// Changes an entry of the page tables as the step says, and has the processor take note of it.
fn supervisor(a: &mut CodeAssembler) {
    let (mut root, mut done, mut end) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(rdx, qword_ptr(r14 + 24)).unwrap();
    a.test(rdx, rdx).unwrap();
    a.je(done).unwrap();
    a.mov(rbx, qword_ptr(r14 + 32)).unwrap();
    a.mov(rsi, qword_ptr(r14 + 40)).unwrap();
    a.mov(qword_ptr(rdx), rbx).unwrap();
    a.cmp(rsi, 2).unwrap();
    a.jbe(root).unwrap();
    a.invlpg(byte_ptr(rsi)).unwrap();
    // The same page as seen from the other slot, and from the one behind that.
    a.mov(rbx, FAR - PAGES).unwrap();
    a.add(rsi, rbx).unwrap();
    a.invlpg(byte_ptr(rsi)).unwrap();
    a.invlpg(byte_ptr(rsi + 0x20_0000)).unwrap();
    a.jmp(done).unwrap();
    a.set_label(&mut root).unwrap();
    a.mov(rbx, cr3).unwrap();
    a.mov(edx, (TABLES ^ OTHER_ROOT) as u32).unwrap();
    a.cmp(esi, 2).unwrap();
    let mut same = a.create_label();
    a.jne(same).unwrap();
    a.xor(rbx, rdx).unwrap();
    a.set_label(&mut same).unwrap();
    a.mov(cr3, rbx).unwrap();
    a.set_label(&mut done).unwrap();
    a.cmp(r14, (STEPS + (COUNT - 1) * 8 * WORDS as u64) as i32)
        .unwrap();
    a.je(end).unwrap();
    a.sysretq().unwrap();
    a.set_label(&mut end).unwrap();
    a.hlt().unwrap();
}

/// Notes a fault and lets the program go on with the next step.
fn fault(a: &mut CodeAssembler) {
    a.push(rax).unwrap();
    a.mov(rax, cr2).unwrap();
    a.add(rax, qword_ptr(rsp + 8)).unwrap();
    a.add(rax, qword_ptr(rsp + 16)).unwrap();
    a.rol(qword_ptr(FAULTS), 3).unwrap();
    a.add(qword_ptr(FAULTS), rax).unwrap();
    // Status flags that are not read again need not be exact.
    a.and(qword_ptr(rsp + 32), !(rflags::STATUS as i32))
        .unwrap();
    // The stack pointer, too.
    a.mov(rax, qword_ptr(rsp + 40)).unwrap();
    a.add(qword_ptr(FAULTS), rax).unwrap();
    // And what may be lent, or borrow.
    for register in [
        rcx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15,
    ] {
        a.xor(qword_ptr(FAULTS), register).unwrap();
        a.rol(qword_ptr(FAULTS), 5).unwrap();
    }
    a.inc(qword_ptr(FAULTS + 8)).unwrap();
    a.mov(qword_ptr(rsp + 16), r13).unwrap();
    a.pop(rax).unwrap();
    a.lea(rsp, qword_ptr(rsp + 8)).unwrap();
    a.iretq().unwrap();
}

/// The number of the access that changes and calls code.
const CALL: u64 = 9;
/// The first of those that go on upward, over no more than six pages: what lies behind is code.
const LOOPS: u64 = 12;

/// An address that steps access.
fn address(random: &mut Random, access: u64) -> u64 {
    if access == CALL {
        let slot = random.of(&[PAGES, FAR]);
        let page = DATA_PAGES + random.below(2);
        return slot + page * 0x1000 + random.below(255) * 16;
    }
    let offset = match random.below(4) {
        0 => 0x1000 - random.below(24),
        1 => random.below(0x40),
        _ => random.below(0x200) * 8,
    };
    let pages = if access < LOOPS {
        DATA_PAGES
    } else {
        DATA_PAGES - 6
    };
    let page = random.below(pages) * 0x1000;
    match random.below(20) {
        0 => 0x8000_0000_0000 + offset,
        1 => 0xffff_ffff_ffff_0000 + offset,
        2 => random.below(0x40),
        3 => 0x1000_0000_0000_0000 + PAGES + page + offset,
        4 => FAR + 0x20_0000 - random.below(40),
        9..12 => LARGE + page + offset,
        5..9 => FAR + page + offset,
        _ => PAGES + page + offset,
    }
}

/// What the supervisor does behind a step: where it writes what, and what it has the processor forget.
fn change(random: &mut Random) -> [u64; 3] {
    if random.below(3) != 0 {
        return [0; 3];
    }
    if random.below(8) == 0 {
        let rights = random.of(&[0x85, 0x87, 0x87]);
        let somewhere = LARGE + random.below(512) * 0x1000;
        let forget = random.of(&[1, 2, somewhere]);
        return [LARGE_ENTRY, random.of(&LARGE_FRAMES) | rights, forget];
    }
    let number = random.below(DATA_PAGES + 2);
    let page = PAGES + number * 0x1000;
    let frame = match random.below(14) {
        _ if number >= DATA_PAGES => FRAMES + (CODE_FRAME + random.below(2)) * 0x1000,
        0 => DEVICE,
        _ => FRAMES + random.below(CODE_FRAME) * 0x1000,
    };
    let rights = match random.below(8) {
        0 => 0,
        1..4 => 5,
        4 => 3,
        _ => USABLE,
    };
    let forget = match random.below(6) {
        0 => 1,
        1 => 2,
        _ => page,
    };
    [entry_of(page), frame | rights, forget]
}

fn state() -> CpuState {
    let mut cpu = state_of_program();
    cpu.tr.base = DATA + 0xff00;
    cpu.msr.lstar = SYSTEM;
    cpu.msr.fmask = 0x700;
    cpu.gpr[Gpr::R12 as usize] = 77;
    cpu.segments[Seg::Fs as usize].base = PAGES + 0xff0;
    cpu
}

fn machine(engine: &dyn Engine, seed: u64) -> Machine {
    let random = &mut Random(seed * 0x9e37_79b9 + 1);
    let machine = Machine::with_engine(engine, &assemble(program), state());
    let words = |at: u64, words: &[u64]| {
        for (at, word) in (at..).step_by(8).zip(words) {
            machine.write(at, &word.to_le_bytes());
        }
    };
    machine.write(SYSTEM, &assemble_at(SYSTEM, supervisor));
    words(
        harness::GDT + 0x18,
        &[0, 0x00cf_f300_0000_ffff, 0x00af_fb00_0000_ffff],
    );
    // The stack of the task-state segment.
    machine.write(DATA + 0xff04, &(DATA + 0xff00).to_le_bytes());
    for vector in [12, 13, 14] {
        let handler = HANDLERS + vector * 16;
        let jump = assemble_at(handler, |a| a.jmp(HANDLERS + 0x2000).unwrap());
        machine.write(handler, &jump);
    }
    machine.write(HANDLERS + 0x2000, &assemble_at(HANDLERS + 0x2000, fault));
    for frame in CODE_FRAME..FRAME_COUNT {
        // A function that programs call and change.
        for at in (FRAMES + frame * 0x1000..).step_by(16).take(256) {
            machine.write(at, &[0x4d, 0x8d, 0x64, 0x24, frame as u8, 0xc3]);
        }
    }
    for page in 0..DATA_PAGES + 2 {
        let frame = match page {
            0..DATA_PAGES => page % CODE_FRAME,
            _ => CODE_FRAME + page % 2,
        };
        machine.map(PAGES + page * 0x1000, FRAMES + frame * 0x1000, USABLE);
    }
    words(LARGE_ENTRY, &[LARGE_FRAMES[0] | 0x87]);
    // The other root, and the other slot with its last page and the first one of the next.
    let lower = [(TABLES + 0x1000) | USABLE];
    words(OTHER_ROOT, &lower);
    for root in [TABLES, OTHER_ROOT] {
        words(root + (FAR >> 39) * 8, &[(TABLES + 0x5000) | USABLE]);
    }
    words(
        TABLES + 0x5000 + (FAR >> 30) % 512 * 8,
        &[(TABLES + 0x6000) | USABLE, (TABLES + 0x6000) | USABLE],
    );
    words(TABLES + 0x6000 + 511 * 8, &[(TABLES + 0x4000) | USABLE]);
    words(TABLES + 0x6000, &[(TABLES + 0x4000) | USABLE]);
    words(entry_of(PAGES + 511 * 0x1000), &[FRAMES | USABLE]);
    for step in 0..COUNT {
        let access = random.below(ACCESSES.len() as u64);
        let to = address(random, access);
        let [entry, value, forget] = change(random);
        let what = [access, to, random.below(u64::MAX), entry, value, forget];
        words(STEPS + step * 8 * WORDS as u64, &what);
    }
    machine
}

fn memory(machine: &Machine) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (at, length) in [
        (DATA, 0x1_0000),
        (TABLES, 0x1_0000),
        (FRAMES, FRAME_COUNT as usize * 0x1000),
        (LARGE_FRAMES[0], 0x1_0000),
        (LARGE_FRAMES[1], 0x1_0000),
    ] {
        let mut part = vec![0; length];
        machine.memory.read(GuestPhysAddr(at), &mut part).unwrap();
        bytes.append(&mut part);
    }
    bytes
}

/// Runs cases in the interpreter and under `tuning`; gives how many came to their end, and how many pages
/// windows had.
fn agree(name: &str, tuning: Tuning, seeds: std::ops::Range<u64>) -> (u64, u64) {
    let (mut whole, mut pages) = (0, 0);
    for seed in seeds {
        let mut left = machine(&Interpreter::new(), seed);
        let mut right = machine(&Translator::with_tuning(tuning), seed);
        let exits = [&mut left, &mut right]
            .map(|side| harness::run(&mut *side.vcpu, &side.attention, 0, u64::MAX));
        assert_eq!(exits[0], exits[1], "{name}, seed {seed}");
        let found = fields(left.vcpu.state(), right.vcpu.state());
        assert!(found.is_empty(), "{name}, seed {seed}: {found:#x?}");
        let (a, b) = (memory(&left), memory(&right));
        let differs = a.iter().zip(&b).position(|(a, b)| a != b);
        let at = differs.unwrap_or(0) & !7;
        let word = |bytes: &[u8]| format!("{:x?}", &bytes[at..at + 8]);
        assert_eq!(
            differs,
            None,
            "{name}, seed {seed}: memory at {at:x}, {} and {}",
            word(&a),
            word(&b)
        );
        assert_eq!(
            *left.board.writes.lock().unwrap(),
            *right.board.writes.lock().unwrap(),
            "{name}, seed {seed}"
        );
        whole += u64::from(exits[0] == Exit::Halted && left.vector().is_none());
        let counters = right.vcpu.counters();
        let found = counters.iter().find(|(name, _)| *name == "window_pages");
        pages += found.map_or(0, |(_, pages)| *pages);
    }
    (whole, pages)
}

#[test]
fn programs_do_the_same_through_windows() {
    let tuning = Tuning::stressed("windows").unwrap();
    let (whole, pages) = agree("windows", tuning, 1..300);
    assert!(whole > 100, "{whole} came to their end");
    assert!(pages > 10_000, "{pages} pages were mapped");
}

#[test]
fn they_do_with_everything_else_going_on() {
    for (name, tuning) in Tuning::STRESSED {
        let tuning = Tuning {
            patience: Some(0),
            ..tuning
        };
        agree(name, tuning, 1000..1040);
    }
}
