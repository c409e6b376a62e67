//! Changes of privilege: random system calls, returns and page faults, run to their end by the
//! interpreter and by the translator, which must agree in everything.

#[path = "../../interpreter/tests/suite/harness/mod.rs"]
mod harness;
mod random;

use belljar_clock::{Clock, HostClock, HostEntropy};
use belljar_engine::{Engine, Exit, Reason, VcpuSetup};
use belljar_interpreter::Interpreter;
use belljar_lockstep::fields;
use belljar_memory::GuestPhysAddr;
use belljar_translator::{Translator, Tuning};
use belljar_x86::bits::{cr0, cr4, rflags};
use belljar_x86::{CpuState, Gpr};
use harness::{
    CODE, DATA, HANDLERS, Machine, PAGES, STACK, USER_CODE, USER_DATA, assemble, assemble_at,
    state_of_program, state64,
};
use iced_x86::code_asm::*;
use random::Random;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Where the supervisor's code lies.
const SYSTEM: u64 = CODE + 0x3000;
/// What the supervisor makes of R11, RCX and its own flags before it returns, by the call's number.
const ORDERS: u64 = DATA + 0x8000;
/// Calls of a program.
const CALLS: u64 = 60;
/// The vector of the interrupt.
const VECTOR: u64 = 0x40;

const PAGE_FAULT: u64 = 14;
/// Selector of programs' 32-bit code.
const USER_CODE32: u64 = 0x1b;

// What the harness wants of a suite.

fn engine() -> Arc<dyn Engine> {
    Arc::new(Interpreter::new())
}

fn counted() -> bool {
    false
}

/// What the supervisor does before it returns.
#[derive(Clone, Copy, Debug)]
struct Order {
    /// Flags that change in R11.
    flags: u64,
    /// How far RCX moves.
    distance: u64,
    /// Whether it returns by IRET, and to what code: 0, or a selector.
    selector: u64,
}

/// A random case.
#[derive(Debug)]
struct Case {
    orders: Vec<Order>,
    fmask: u64,
    flags: u64,
    alignment: bool,
    bases: bool,
    enabled: bool,
    interrupt: bool,
}

impl Case {
    fn new(random: &mut Random) -> Self {
        let usual = rflags::STATUS
            | rflags::TF
            | rflags::IF
            | rflags::DF
            | rflags::IOPL
            | rflags::NT
            | rflags::AC
            | rflags::ID;
        // One order of many is a last one, most likely.
        let orders = (0..CALLS).map(|_| Order {
            flags: match random.below(200) {
                0 => rflags::TF,
                1 => rflags::AC,
                2 => rflags::NT,
                3 => rflags::RF | rflags::VM,
                4..8 => rflags::IF,
                8..12 => rflags::IOPL,
                12..40 => rflags::ID | rflags::DF,
                _ => random.below(1 << 12) & rflags::STATUS,
            },
            distance: match random.below(600) {
                0 => 1 << 47,
                1 => 0x4000_0000,
                _ => 0,
            },
            selector: match random.below(600) {
                0 => USER_CODE32,
                1 => 0x08,
                2..180 => USER_CODE,
                _ => 0,
            },
        });
        Self {
            orders: orders.collect(),
            fmask: match random.below(8) {
                0 => usual & !rflags::IF,
                1 => usual & !rflags::AC,
                2 => usual & !rflags::TF,
                3 => usual & !(rflags::STATUS | rflags::DF),
                4 => rflags::IF | rflags::TF | rflags::AC | rflags::FIXED,
                5 => 0xffff_ffff,
                _ => usual,
            },
            flags: rflags::FIXED | random.of(&[0, rflags::ID, rflags::IF, rflags::DF, rflags::AC]),
            alignment: random.below(4) == 0,
            bases: random.below(40) != 0,
            enabled: random.below(30) != 0,
            interrupt: random.below(6) == 0,
        }
    }

    /// A processor about to run the program at level 3.
    fn state(&self) -> CpuState {
        let mut cpu = state_of_program();
        cpu.tr.base = DATA + 0xf000;
        cpu.rflags = self.flags;
        cpu.msr.lstar = SYSTEM;
        cpu.msr.cstar = HANDLERS + 0xfe0;
        cpu.msr.fmask = self.fmask;
        cpu.msr.kernel_gs_base = DATA + 0x4000;
        if !self.enabled {
            cpu.efer &= !belljar_x86::bits::efer::SCE;
        }
        if self.bases {
            cpu.cr4 |= cr4::FSGSBASE;
        }
        if self.alignment {
            cpu.cr0 |= cr0::AM;
        }
        for (n, register) in cpu.gpr.iter_mut().enumerate() {
            if n != Gpr::Rsp as usize {
                *register = 0x1234_5678_9abc_def0_u64.rotate_left(n as u32 * 4);
            }
        }
        cpu.gpr[Gpr::R15 as usize] = 0;
        cpu
    }

    fn machine(&self, engine: &dyn Engine) -> Machine {
        let machine = Machine::with_engine(engine, &assemble(program), self.state());
        machine.write(SYSTEM, &assemble_at(SYSTEM, supervisor));
        let gdt = [
            0x00cf_fb00_0000_ffff_u64, // 32-bit code of programs
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
        ];
        for (at, descriptor) in (harness::GDT + 0x18..).step_by(8).zip(gdt) {
            machine.write(at, &descriptor.to_le_bytes());
        }
        machine.write(DATA + 0xf004, &(STACK - 0x80).to_le_bytes());
        for (at, order) in (ORDERS..).step_by(32).zip(&self.orders) {
            for (at, word) in (at..)
                .step_by(8)
                .zip([order.flags, order.distance, order.selector])
            {
                machine.write(at, &word.to_le_bytes());
            }
        }
        // The page after these is there when the handler of page faults has mapped it.
        machine.map(PAGES, 0x40_0000, 7);
        machine.map(PAGES + 0x1000, 0x60_0000, 5);
        let handler = HANDLERS + PAGE_FAULT * 16;
        machine.write(
            handler,
            &assemble_at(handler, |a| a.jmp(HANDLERS + 0x2000).unwrap()),
        );
        machine.write(
            HANDLERS + 0x2000,
            &assemble_at(HANDLERS + 0x2000, page_fault),
        );
        if self.interrupt {
            machine.board.vector.store(VECTOR as u32, Ordering::SeqCst);
            machine.attention[0].raise(Reason::INTERRUPT);
        }
        machine
    }
}

/// Calls the system again and again, and notes what it finds afterwards. Every other time it touches
/// what it may not.
fn program(a: &mut CodeAssembler) {
    let (mut top, mut next) = (a.create_label(), a.create_label());
    a.set_label(&mut top).unwrap();
    a.add(rax, rbx).unwrap();
    a.cvtsi2sd(xmm1, rax).unwrap();
    a.rol(rbx, 5).unwrap();
    a.test(r15d, 1).unwrap();
    a.je(next).unwrap();
    a.mov(rdi, PAGES + 0x10f0).unwrap();
    // One check for all; the second access alone writes.
    a.add(r8, qword_ptr(rdi + 8)).unwrap();
    a.add(qword_ptr(rdi + 24), rax).unwrap();
    a.mov(rdi, PAGES + 0x2ff8).unwrap();
    a.cmp(eax, dword_ptr(rdi)).unwrap();
    a.push(qword_ptr(rdi - 0x800)).unwrap();
    a.pop(r9).unwrap();
    // The first access alone writes, and lies behind the start of what is checked.
    a.mov(r14, PAGES + 0x3000).unwrap();
    a.mov(dword_ptr(r14 + 0x18), eax).unwrap();
    a.sub(edx, dword_ptr(r14 + 0x10)).unwrap();
    a.set_label(&mut next).unwrap();
    a.adc(rax, 7).unwrap();
    bases(a);
    a.syscall().unwrap();
    a.mov(rsi, r15).unwrap();
    a.shl(rsi, 5).unwrap();
    a.add(rsi, DATA as i32).unwrap();
    a.pushfq().unwrap();
    a.pop(qword_ptr(rsi)).unwrap();
    a.mov(qword_ptr(rsi + 8), rcx).unwrap();
    a.mov(qword_ptr(rsi + 16), r11).unwrap();
    a.mov(edx, cs).unwrap();
    a.mov(dword_ptr(rsi + 24), edx).unwrap();
    a.mov(edx, ss).unwrap();
    a.mov(dword_ptr(rsi + 28), edx).unwrap();
    a.inc(r15).unwrap();
    a.jmp(top).unwrap();
}

/// Notes what it finds and returns as the order says; after the last it halts.
fn supervisor(a: &mut CodeAssembler) {
    let (mut end, mut interrupt) = (a.create_label(), a.create_label());
    a.pushfq().unwrap();
    a.swapgs().unwrap();
    a.mov(rsi, r15).unwrap();
    a.shl(rsi, 5).unwrap();
    a.add(rsi, ORDERS as i32).unwrap();
    a.pop(qword_ptr(rsi + 24)).unwrap();
    for register in [cr0, cr2, cr3, cr4] {
        a.mov(r9, register).unwrap();
        a.mov(rdx, register).unwrap();
        a.add(qword_ptr(rsi + 24), rdx).unwrap();
        a.adc(qword_ptr(rsi + 24), r9).unwrap();
    }
    a.mov(edx, cs).unwrap();
    a.add(qword_ptr(rsi + 24), rdx).unwrap();
    a.mov(edx, ss).unwrap();
    a.add(qword_ptr(rsi + 24), rdx).unwrap();
    a.cmp(r15, CALLS as i32 - 1).unwrap();
    a.je(end).unwrap();
    remap(a, PAGES + 0x1000, 0x60_0005);
    remap(a, PAGES + 0x2000, 0);
    remap(a, PAGES + 0x3000, 0);
    a.xor(r11, qword_ptr(rsi)).unwrap();
    a.add(rcx, qword_ptr(rsi + 8)).unwrap();
    a.cmp(qword_ptr(rsi + 16), 0).unwrap();
    a.jne(interrupt).unwrap();
    a.swapgs().unwrap();
    a.sysretq().unwrap();
    a.set_label(&mut interrupt).unwrap();
    a.mov(rdx, rsp).unwrap();
    a.push(USER_DATA as i32).unwrap();
    a.push(rdx).unwrap();
    a.push(r11).unwrap();
    a.push(qword_ptr(rsi + 16)).unwrap();
    a.push(rcx).unwrap();
    a.swapgs().unwrap();
    a.iretq().unwrap();
    a.set_label(&mut end).unwrap();
    a.hlt().unwrap();
}

/// Direction, selectors and bases, amid flags that are read afterwards. Without the instructions for
/// bases it is the end.
fn bases(a: &mut CodeAssembler) {
    a.std().unwrap();
    a.sbb(r12, rax).unwrap();
    a.rdfsbase(r10).unwrap();
    a.adc(r10, r12).unwrap();
    a.shl(r10, 20).unwrap();
    a.sar(r10, 20).unwrap();
    a.cld().unwrap();
    a.wrfsbase(r10).unwrap();
    a.rdfsbase(r13d).unwrap();
    a.wrgsbase(r13d).unwrap();
    a.rdgsbase(rbp).unwrap();
    a.mov(bp, ds).unwrap();
    a.mov(r9w, ss).unwrap();
    a.mov(r8w, cs).unwrap();
    a.adc(r13, rbp).unwrap();
    a.cmp(r15d, 40).unwrap();
    let mut end = a.create_label();
    a.jb(end).unwrap();
    // Once in a while one that is not canonical.
    a.test(r13d, 0xff0).unwrap();
    a.jne(end).unwrap();
    a.bts(r10, 62).unwrap();
    a.wrgsbase(r10).unwrap();
    a.set_label(&mut end).unwrap();
    a.xor(r12d, r13d).unwrap();
}

/// Maps a page, or none, by the processor's next look.
fn remap(a: &mut CodeAssembler, linear: u64, entry: i32) {
    a.mov(qword_ptr(harness::entry_of(linear)), entry).unwrap();
    a.mov(rdi, linear).unwrap();
    a.invlpg(byte_ptr(rdi)).unwrap();
}

/// Counts the faults by error code and address, and lets the instruction succeed.
fn page_fault(a: &mut CodeAssembler) {
    a.push(rax).unwrap();
    a.push(rbx).unwrap();
    a.mov(rax, cr2).unwrap();
    a.mov(rbx, qword_ptr(rsp + 16)).unwrap();
    a.imul_3(rbx, rbx, 0x1001).unwrap();
    a.add(rax, rbx).unwrap();
    a.add(rax, qword_ptr(rsp + 24)).unwrap();
    a.add(qword_ptr(DATA + 0x4100), rax).unwrap();
    a.mov(rbx, qword_ptr(rsp + 40)).unwrap();
    a.rol(qword_ptr(DATA + 0x4100), 1).unwrap();
    // RF, among others; status flags that are not read again need not be exact.
    a.and(ebx, !(rflags::STATUS as i32)).unwrap();
    a.add(qword_ptr(DATA + 0x4108), rbx).unwrap();
    a.inc(qword_ptr(DATA + 0x4110)).unwrap();
    a.mov(rax, cr2).unwrap();
    a.shr(rax, 12).unwrap();
    a.and(eax, 511).unwrap();
    a.mov(rbx, 0x60_0007_u64).unwrap();
    a.mov(qword_ptr(rax * 8 + (harness::TABLES + 0x4000) as i32), rbx)
        .unwrap();
    a.mov(rax, cr2).unwrap();
    a.invlpg(byte_ptr(rax)).unwrap();
    a.pop(rbx).unwrap();
    a.pop(rax).unwrap();
    a.lea(rsp, qword_ptr(rsp + 8)).unwrap();
    a.iretq().unwrap();
}

fn memory(machine: &Machine) -> Vec<u8> {
    let mut bytes = vec![0; 0x1_0000];
    machine
        .memory
        .read(GuestPhysAddr(DATA), &mut bytes)
        .unwrap();
    for (at, length) in [(STACK - 0x40, 0x40), (0x60_0000, 0x1000)] {
        let mut part = vec![0; length];
        machine.memory.read(GuestPhysAddr(at), &mut part).unwrap();
        bytes.append(&mut part);
    }
    bytes
}

/// Runs cases in the interpreter and under `tuning`; gives how many of them came to the last call.
fn agree(name: &str, tuning: Tuning, seeds: std::ops::Range<u64>) -> u64 {
    let mut whole = 0;
    for seed in seeds {
        let case = Case::new(&mut Random(seed * 0x9e37_79b9 + 1));
        let mut left = case.machine(&Interpreter::new());
        let mut right = case.machine(&Translator::with_tuning(tuning));
        let exits = [&mut left, &mut right]
            .map(|side| harness::run(&mut *side.vcpu, &side.attention, 0, u64::MAX));
        assert_eq!(exits[0], exits[1], "{name}, seed {seed}: {case:x?}");
        let found = fields(left.vcpu.state(), right.vcpu.state());
        assert!(
            found.is_empty(),
            "{name}, seed {seed}: {found:#x?} {case:x?}"
        );
        assert!(
            memory(&left) == memory(&right),
            "{name}, seed {seed}: memory differs, {case:x?}"
        );
        whole += u64::from(exits[0] == Exit::Halted && left.vector().is_none());
    }
    whole
}

#[test]
fn system_calls_and_faults_are_as_in_the_interpreter() {
    let whole = agree("usual", Tuning::default(), 1..400);
    assert!(whole > 20, "{whole} came to their end");
}

#[test]
fn they_are_under_every_tuning() {
    for (start, (name, tuning)) in (1000..).step_by(60).zip(Tuning::STRESSED) {
        agree(name, tuning, start..start + 60);
    }
}

/// The code reads time twice, and keeps the first and the difference.
#[test]
fn time_goes_on_as_the_clock_says() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.mov(ecx, 1000).unwrap();
        a.xor(ebx, ebx).unwrap();
        a.set_label(&mut top).unwrap();
        a.mov(esi, ecx).unwrap();
        a.cmp(ecx, 500).unwrap();
        a.rdtscp().unwrap();
        a.sbb(edi, edi).unwrap();
        a.add(ebp, ecx).unwrap();
        a.mov(r8d, eax).unwrap();
        a.shl(rdx, 32).unwrap();
        a.or(r8, rdx).unwrap();
        a.rdtsc().unwrap();
        a.shl(rdx, 32).unwrap();
        a.or(rax, rdx).unwrap();
        a.cmp(rax, r8).unwrap();
        a.adc(ebx, 0).unwrap();
        a.mov(ecx, esi).unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
        a.hlt().unwrap();
    });
    let machine = Machine::new(&code);
    let mut state = state64();
    state.msr.tsc_adjust = 1 << 50;
    state.msr.tsc_aux = 7;
    state.gpr[Gpr::Rbp as usize] = 0;
    let clock = Arc::new(HostClock::new());
    clock.resume();
    let mut vcpu = Translator::new()
        .create_vcpu(VcpuSetup {
            id: 0,
            memory: machine.memory.clone(),
            board: machine.board.clone(),
            attention: machine.attention.clone(),
            cpuid: machine.model.clone(),
            clock: clock.clone(),
            entropy: Arc::new(HostEntropy::new().unwrap()),
            state,
        })
        .unwrap();
    let before = clock.tsc();
    assert_eq!(vcpu.run(None), Exit::Halted);
    let after = clock.tsc();
    let state = vcpu.state();
    let last = state.gpr[Gpr::Rax as usize] - (1 << 50);
    assert!(before < last && last < after, "{before} {last} {after}");
    assert_eq!(state.gpr[Gpr::Rbx as usize], 0, "time went back");
    assert_eq!(state.gpr[Gpr::Rbp as usize], 7000, "TSC_AUX");
    assert_eq!(state.gpr[Gpr::Rdi as usize], 0xffff_ffff, "the carry");
}
