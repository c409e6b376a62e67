use super::*;
use belljar_x86::Gpr;

/// 80-bit 1.0 as it stands in a register.
const ONE: [u64; 2] = [1 << 63, 0x3fff];

fn run_in_turn(cpu: &mut CpuState, instructions: &[&[u8]]) {
    for bytes in instructions {
        run(cpu, bytes).unwrap();
    }
}

#[test]
fn constants_are_pushed_and_added() {
    let mut cpu = cpu();
    run_in_turn(&mut cpu, &[&[0xd9, 0xe8], &[0xd9, 0xe8]]); // fld1; fld1
    assert_eq!(cpu.vector.x87.st[0], ONE);
    assert_eq!(cpu.vector.x87.ftw, 0b1100_0000);
    run(&mut cpu, &[0xde, 0xc1]).unwrap(); // faddp
    assert_eq!(cpu.vector.x87.st[0], [1 << 63, 0x4000]);
    assert_eq!(cpu.vector.x87.ftw, 0b1000_0000);
    assert_eq!(cpu.vector.x87.fsw >> 11 & 7, 7);
    // What lies behind x87's state is untouched.
    assert_eq!(cpu.segments, super::cpu().segments);
}

#[test]
fn an_unmasked_exception_is_raised_by_the_next_waiting_instruction() {
    let mut cpu = cpu();
    cpu.vector.x87.fcw = 0x37b; // zero divide unmasked
    run_in_turn(&mut cpu, &[&[0xd9, 0xee], &[0xd9, 0xe8]]); // fldz; fld1
    run(&mut cpu, &[0xd8, 0xf1]).unwrap(); // fdiv st, st(1)
    assert_ne!(cpu.vector.x87.fsw & 0x84, 0);
    let before = cpu.clone();
    for waiting in [&[0xd9, 0xe8][..], &[0x9b], &[0x0f, 0xd4, 0xca]] {
        assert_eq!(
            run(&mut cpu, waiting),
            Err(Exception::x87()),
            "{waiting:x?}"
        );
        assert_eq!(cpu, before);
    }
    run(&mut cpu, &[0xdf, 0xe0]).unwrap(); // fnstsw ax
    assert_eq!(cpu.gpr[0] as u16, before.vector.x87.fsw);
    run(&mut cpu, &[0xdb, 0xe2]).unwrap(); // fnclex
    run(&mut cpu, &[0x9b]).unwrap();
}

#[test]
fn a_store_with_an_unmasked_exception_leaves_memory_alone() {
    let mut cpu = cpu();
    cpu.vector.x87.fcw = 0x37e; // invalid operation unmasked
    cpu.vector.x87.st[0] = [1 << 63, 0x7fff]; // infinity
    cpu.vector.x87.ftw = 1;
    let mut memory = Bytes(vec![0xaa; 4]);
    run_on(&mut cpu, &[0xdb, 0x1b], &mut memory).unwrap(); // fistp dword [rbx]
    assert_eq!(memory.0, [0xaa; 4]);
    assert_eq!(cpu.vector.x87.ftw, 1);
    cpu.vector.x87.fcw = 0x37f;
    cpu.vector.x87.fsw = 0;
    run_on(&mut cpu, &[0xdb, 0x1b], &mut memory).unwrap();
    assert_eq!(memory.0, [0, 0, 0, 0x80]);
    assert_eq!(cpu.vector.x87.ftw, 0);
}

#[test]
fn pointers_are_recorded_and_stored_in_the_environment() {
    let mut cpu = cpu();
    let mut stubs = stubs();
    let mut number = Bytes(2.5_f64.to_le_bytes().to_vec());
    let load = try_compile(&mut stubs, 64, &[0xdd, 0x45, 0x10]).unwrap(); // fld qword [rbp+0x10]
    stubs.run_with_memory(&load, &mut cpu, &mut number).unwrap();
    load.record_x87_pointers(&mut cpu, 0x40_1234, 0x7fff_0010);
    assert_eq!(cpu.vector.x87.fop, 0x545);
    let mut environment = Bytes(vec![0; 28]);
    let store = try_compile(&mut stubs, 64, &[0xd9, 0x33]).unwrap(); // fnstenv [rbx]
    stubs
        .run_with_memory(&store, &mut cpu, &mut environment)
        .unwrap();
    store.record_x87_pointers(&mut cpu, 1, 2);
    let word = |at: usize| u32::from_le_bytes(environment.0[at..at + 4].try_into().unwrap());
    assert_eq!(word(12), 0x40_1234);
    assert_eq!(word(20), 0x7fff_0010);
    assert_eq!(cpu.vector.x87.fip, 0x40_1234);
    run(&mut cpu, &[0xdb, 0xe3]).unwrap(); // fninit
    assert_eq!(
        (cpu.vector.x87.fip, cpu.vector.x87.fdp, cpu.vector.x87.fop),
        (0, 0, 0)
    );
    let restore = try_compile(&mut stubs, 64, &[0xd9, 0x23]).unwrap(); // fldenv [rbx]
    stubs
        .run_with_memory(&restore, &mut cpu, &mut environment)
        .unwrap();
    assert_eq!(cpu.vector.x87.fip, 0x40_1234);
}

#[test]
fn the_environment_has_its_16_bit_form() {
    let mut stubs = stubs();
    let stub = try_compile(&mut stubs, 64, &[0x66, 0xd9, 0x33]).unwrap();
    let small = try_compile(&mut stubs, 16, &[0xd9, 0x37]).unwrap();
    for stub in [stub, small] {
        let mut environment = Bytes(vec![0; 14]);
        let mut cpu = cpu();
        stubs
            .run_with_memory(&stub, &mut cpu, &mut environment)
            .unwrap();
        assert_eq!(environment.0[..2], [0x7f, 0x03]);
        assert_eq!(environment.0[4..6], [0xff, 0xff]);
    }
}

#[test]
fn mmx_instructions_make_every_register_valid() {
    let mut cpu = cpu();
    cpu.vector.x87.fsw = 3 << 11;
    cpu.gpr[Gpr::Rsp as usize] = 0x1122_3344_5566_7788;
    run(&mut cpu, &[0x48, 0x0f, 0x6e, 0xec]).unwrap(); // movq mm5, rsp
    assert_eq!(cpu.vector.x87.st[5], [0x1122_3344_5566_7788, 0xffff]);
    assert_eq!(cpu.vector.x87.ftw, 0xff);
    assert_eq!(cpu.vector.x87.fsw, 0);
    run(&mut cpu, &[0x0f, 0x77]).unwrap(); // emms
    assert_eq!(cpu.vector.x87.ftw, 0);
}

#[test]
fn conversions_between_mmx_and_sse_use_mxcsr() {
    let mut cpu = cpu();
    cpu.vector.zmm[1][0] = floats(1.5, -2.5);
    run(&mut cpu, &[0x0f, 0x2d, 0xd1]).unwrap(); // cvtps2pi mm2, xmm1
    let negative = u64::from(-2_i32 as u32) << 32;
    assert_eq!(cpu.vector.x87.st[2][0], negative | 2);
    assert_eq!(cpu.vector.x87.mxcsr, 0x1fa0);
}

#[test]
fn maskmovq_stores_the_chosen_bytes() {
    let mut cpu = cpu();
    cpu.vector.x87.ftw = 0xff;
    cpu.vector.x87.st[1][0] = u64::from_le_bytes(*b"abcdefgh");
    cpu.vector.x87.st[2][0] = 0x8000_0000_0080_0000;
    let mut memory = Bytes(b"--------".to_vec());
    run_on(&mut cpu, &[0x0f, 0xf7, 0xca], &mut memory).unwrap(); // maskmovq mm1, mm2
    assert_eq!(memory.0, b"--c----h");
}

#[test]
fn the_host_finds_its_own_control_word() {
    let mut cpu = cpu();
    cpu.vector.x87.fcw = 0x040;
    cpu.vector.x87.fsw = 0;
    let _ = run(&mut cpu, &[0xd9, 0xe8]);
    let mut word = 0_u16;
    // SAFETY: FNSTCW stores the control word and changes nothing.
    unsafe { std::arch::asm!("fnstcw word ptr [{}]", in(reg) &raw mut word) };
    assert_eq!(word, 0x37f);
}

#[test]
fn a_pending_exception_comes_before_a_fault_of_the_operand() {
    let mut cpu = cpu();
    cpu.vector.x87.fcw = 0x37b; // zero divide unmasked
    cpu.vector.x87.fsw = 0x8084;
    let mut nothing = Bytes(Vec::new());
    // fld dword [rbx]; paddq mm1, [rbx]; fldcw [rbx]
    for waiting in [&[0xd9, 0x03][..], &[0x0f, 0xd4, 0x0b], &[0xd9, 0x2b]] {
        let result = run_on(&mut cpu, waiting, &mut nothing);
        assert_eq!(result, Err(Exception::x87()), "{waiting:x?}");
    }
    // fnstcw [rbx] does not wait.
    let result = run_on(&mut cpu, &[0xd9, 0x3b], &mut nothing);
    assert_eq!(result, Err(MISSING));
}

#[test]
fn a_store_that_an_exception_turns_off_faults_all_the_same() {
    let mut cpu = cpu();
    cpu.vector.x87.fcw = 0x37e; // invalid operation unmasked
    cpu.vector.x87.st[0] = [1 << 63, 0x7fff]; // infinity
    cpu.vector.x87.ftw = 1;
    let before = cpu.clone();
    let result = run_on(&mut cpu, &[0xdb, 0x1b], &mut Bytes(Vec::new())); // fistp dword [rbx]
    assert_eq!(result, Err(MISSING));
    assert_eq!(cpu, before);
}

#[test]
fn maskmovq_leaves_the_exponents_of_its_registers() {
    let mut cpu = cpu();
    cpu.vector.x87.st[0] = [0x1122, 0x4005];
    let mut memory = Bytes(vec![0; 8]);
    run_on(&mut cpu, &[0x0f, 0xf7, 0xc1], &mut memory).unwrap(); // maskmovq mm0, mm1
    assert_eq!(cpu.vector.x87.st[0], [0x1122, 0x4005]);
    assert_eq!(cpu.vector.x87.ftw, 0xff);
}
