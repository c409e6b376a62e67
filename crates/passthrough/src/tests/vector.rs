use super::*;
use belljar_x86::Gpr;
use belljar_x86::bits::rflags;

const ONES: [u64; 8] = [u64::MAX; 8];

#[test]
fn legacy_sse_keeps_the_upper_bits() {
    let mut cpu = cpu();
    cpu.vector.zmm[1] = ONES;
    cpu.vector.zmm[2] = [1, 2, 3, 4, 5, 6, 7, 8];
    run(&mut cpu, &[0x66, 0x0f, 0xd4, 0xca]).unwrap(); // paddq xmm1, xmm2
    let mut expected = ONES;
    expected[..2].copy_from_slice(&[0, 1]);
    assert_eq!(cpu.vector.zmm[1], expected);
}

#[test]
fn vex_clears_the_upper_bits() {
    let mut cpu = cpu();
    cpu.vector.zmm[1] = ONES;
    cpu.vector.zmm[2] = [1, 2, 3, 4, 5, 6, 7, 8];
    cpu.vector.zmm[3] = [10, 20, 30, 40, 50, 60, 70, 80];
    // Without AVX-512 there is nothing above the YMM registers.
    let words = if has_avx512() { 8 } else { 4 };
    run(&mut cpu, &[0xc5, 0xe9, 0xd4, 0xcb]).unwrap(); // vpaddq xmm1, xmm2, xmm3
    assert_eq!(
        cpu.vector.zmm[1][..words],
        [11, 22, 0, 0, 0, 0, 0, 0][..words]
    );
    run(&mut cpu, &[0xc5, 0xed, 0xd4, 0xcb]).unwrap(); // vpaddq ymm1, ymm2, ymm3
    assert_eq!(
        cpu.vector.zmm[1][..words],
        [11, 22, 33, 44, 0, 0, 0, 0][..words]
    );
}

#[test]
fn evex_reaches_the_upper_registers_and_merges_by_mask() {
    if !has_avx512() {
        return;
    }
    let mut cpu = cpu();
    cpu.vector.zmm[17] = ONES;
    cpu.vector.zmm[18] = [1, 2, 3, 4, 5, 6, 7, 8];
    cpu.vector.zmm[19] = [10; 8];
    cpu.vector.k[3] = 0b1000_0001;
    // vpaddq zmm17{k3}, zmm18, zmm19
    run(&mut cpu, &[0x62, 0xa1, 0xed, 0x43, 0xd4, 0xcb]).unwrap();
    let m = u64::MAX;
    assert_eq!(cpu.vector.zmm[17], [11, m, m, m, m, m, m, 18]);
    assert_eq!(cpu.vector.k[3], 0b1000_0001);
}

#[test]
fn rounding_is_the_guests_and_flags_come_back() {
    for (rounding, expected) in [(0, 0x3eaa_aaab_u64), (1, 0x3eaa_aaaa), (2, 0x3eaa_aaab)] {
        let mut cpu = cpu();
        cpu.vector.x87.mxcsr = 0x1f80 | rounding << 13;
        cpu.vector.zmm[0][0] = floats(1.0, 0.0);
        cpu.vector.zmm[1][0] = floats(3.0, 0.0);
        run(&mut cpu, &[0xf3, 0x0f, 0x5e, 0xc1]).unwrap(); // divss xmm0, xmm1
        assert_eq!(cpu.vector.zmm[0][0], expected);
        assert_eq!(cpu.vector.x87.mxcsr, 0x1fa0 | rounding << 13);
    }
    // The host's rounding is its own again.
    assert_eq!((std::hint::black_box(1.0_f32) / 3.0).to_bits(), 0x3eaa_aaab);
}

#[test]
fn sixteen_and_thirty_two_bit_code_is_re_encoded() {
    for bits in [16, 32, 64] {
        let mut cpu = cpu();
        cpu.vector.zmm[1][0] = 0x1122_3344_5566_7788;
        run_bits(bits, &mut cpu, &[0x66, 0x0f, 0x7e, 0xcd]).unwrap(); // movd ebp, xmm1
        assert_eq!(cpu.gpr[Gpr::Rbp as usize], 0x5566_7788);
    }
}

#[test]
fn mxcsr_is_stored_and_loaded_with_its_mask() {
    let mut cpu = cpu();
    cpu.vector.x87.mxcsr = 0x9fc0;
    let mut memory = Bytes(vec![0; 4]);
    run_on(&mut cpu, &[0x0f, 0xae, 0x1b], &mut memory).unwrap(); // stmxcsr [rbx]
    assert_eq!(memory.0, [0xc0, 0x9f, 0, 0]);
    memory.0 = vec![0x80, 0x1f, 1, 0];
    let result = run_on(&mut cpu, &[0x0f, 0xae, 0x13], &mut memory); // ldmxcsr [rbx]
    assert_eq!(result, Err(Exception::general_protection(0)));
    memory.0 = vec![0x80, 0x3f, 0, 0];
    run_on(&mut cpu, &[0x0f, 0xae, 0x13], &mut memory).unwrap();
    assert_eq!(cpu.vector.x87.mxcsr, 0x3f80);
}

#[test]
fn vzeroupper_and_vzeroall_reach_eight_registers_outside_64_bit_mode() {
    for (bits, count) in [(64, 16), (32, 8)] {
        let mut cpu = cpu();
        cpu.vector.zmm = [ONES; 32];
        run_bits(bits, &mut cpu, &[0xc5, 0xf8, 0x77]).unwrap();
        for (number, register) in cpu.vector.zmm.iter().enumerate() {
            let mut expected = ONES;
            if number < count {
                expected[2..].fill(0);
            }
            assert_eq!(*register, expected, "zmm{number}");
        }
        run_bits(bits, &mut cpu, &[0xc5, 0xfc, 0x77]).unwrap();
        let zeroed = cpu.vector.zmm.iter().filter(|each| **each == [0; 8]);
        assert_eq!(zeroed.count(), count);
    }
}

#[test]
fn pcmpestri_uses_its_implied_registers() {
    let mut cpu = cpu();
    cpu.vector.zmm[0][0] = u64::from(b'c');
    cpu.vector.zmm[1][0] = u64::from_le_bytes(*b"abcdefgh");
    cpu.gpr[Gpr::Rax as usize] = 1;
    cpu.gpr[Gpr::Rdx as usize] = 8;
    // pcmpestri xmm0, xmm1, equal any
    run(&mut cpu, &[0x66, 0x0f, 0x3a, 0x61, 0xc1, 0x00]).unwrap();
    assert_eq!(cpu.gpr[Gpr::Rcx as usize], 2);
}

#[test]
fn units_are_checked_as_the_control_registers_say() {
    let mut stubs = stubs();
    let sse = try_compile(&mut stubs, 64, &[0x66, 0x0f, 0xd4, 0xca]).unwrap();
    let mmx = try_compile(&mut stubs, 64, &[0x0f, 0xd4, 0xca]).unwrap();
    let avx = try_compile(&mut stubs, 64, &[0xc5, 0xe9, 0xd4, 0xcb]).unwrap();
    let x87 = try_compile(&mut stubs, 64, &[0xd9, 0xe8]).unwrap();
    let popcnt = try_compile(&mut stubs, 64, &[0xf3, 0x0f, 0xb8, 0xc3]).unwrap();
    let missing = Err(Exception::invalid_opcode());
    let unavailable = Err(Exception::device_not_available());

    let mut switched = cpu();
    switched.cr0 |= cr0::TS;
    for stub in [sse, mmx, avx, x87] {
        assert_eq!(stub.check_enabled(&switched), unavailable, "{stub:?}");
    }
    assert_eq!(popcnt.check_enabled(&switched), Ok(()));

    let mut emulated = cpu();
    emulated.cr0 |= cr0::EM;
    assert_eq!(sse.check_enabled(&emulated), missing);
    assert_eq!(mmx.check_enabled(&emulated), missing);
    assert_eq!(x87.check_enabled(&emulated), unavailable);

    let mut no_avx = cpu();
    no_avx.xcr0 = xstate::X87 | xstate::SSE;
    assert_eq!(avx.check_enabled(&no_avx), missing);
    assert_eq!(sse.check_enabled(&no_avx), Ok(()));

    let mut real_mode = cpu();
    real_mode.cr0 &= !cr0::PE;
    assert_eq!(avx.check_enabled(&real_mode), missing);
    assert_eq!(sse.check_enabled(&real_mode), Ok(()));
}

#[test]
fn equal_instructions_share_their_code() {
    let mut stubs = stubs();
    let first = try_compile(&mut stubs, 64, &[0x66, 0x0f, 0xd4, 0x0b]).unwrap(); // [rbx]
    let second = try_compile(&mut stubs, 64, &[0x66, 0x0f, 0xd4, 0x4c, 0x85, 8]).unwrap();
    assert_eq!(first.entry, second.entry);
}

#[test]
fn full_code_memory_is_reported_and_reset_makes_room() {
    let mut stubs = Stubs::new(64 << 10).unwrap();
    let mut bytes = [0x48, 0x81, 0xc0, 0, 0, 0, 0]; // add rax, imm32
    let full = (0..10_000_u32).find_map(|value| {
        bytes[3..].copy_from_slice(&(value + 0x1000).to_le_bytes());
        try_compile(&mut stubs, 64, &bytes).err()
    });
    assert_eq!(full, Some(CompileError::Full));
    stubs.reset();
    assert!(try_compile(&mut stubs, 64, &bytes).is_ok());
}

#[test]
#[should_panic(expected = "stale")]
fn a_stub_from_before_a_reset_is_refused() {
    let mut stubs = stubs();
    let stub = try_compile(&mut stubs, 64, &[0x48, 0x01, 0xfc]).unwrap();
    stubs.reset();
    let _ = stubs.run(&stub, &mut cpu());
}

#[test]
fn a_conversion_to_an_integer_takes_its_operand_from_memory() {
    let mut cpu = cpu();
    let mut memory = Bytes((-2.5_f64).to_le_bytes().to_vec());
    run_on(&mut cpu, &[0xf2, 0x0f, 0x2c, 0x03], &mut memory).unwrap(); // cvttsd2si eax, [rbx]
    assert_eq!(cpu.gpr[0] as i32, -2);
    // cvtps2pi mm0, [rbx] rounds as MXCSR says: up.
    cpu.vector.x87.mxcsr = 0x5f80;
    let mut memory = Bytes(floats(1.5, -1.5).to_le_bytes().to_vec());
    run_on(&mut cpu, &[0x0f, 0x2d, 0x03], &mut memory).unwrap();
    assert_eq!(cpu.vector.x87.st[0][0], 0xffff_ffff_0000_0002);
}

#[test]
fn both_immediates_of_extrq_count() {
    if !std::arch::is_x86_feature_detected!("sse4a") {
        return;
    }
    let mut cpu = cpu();
    cpu.vector.zmm[4][0] = 0x1122_3344_5566_7788;
    run(&mut cpu, &[0x66, 0x0f, 0x78, 0xc4, 8, 16]).unwrap(); // extrq xmm4, 8, 16
    assert_eq!(cpu.vector.zmm[4][0], 0x66);
}

#[test]
fn alignment_is_checked_in_user_mode_by_the_size_of_the_operand() {
    let mut cpu = cpu();
    cpu.cr0 |= cr0::AM;
    cpu.cpl = 3;
    cpu.rflags |= rflags::AC;
    let mut stubs = stubs();
    let cases: [(&[u8], u64); 4] = [
        (&[0x0f, 0x10, 0x03], 16),      // movups xmm0, [rbx]
        (&[0xf3, 0x0f, 0x10, 0x03], 4), // movss xmm0, [rbx]
        (&[0xdb, 0x2b], 8),             // fld tbyte [rbx]
        (&[0xd9, 0x33], 4),             // fnstenv [rbx]
    ];
    for (bytes, alignment) in cases {
        let stub = try_compile(&mut stubs, 64, bytes).unwrap();
        assert_eq!(
            stub.check_alignment(&cpu, 0x1000 + alignment),
            Ok(()),
            "{bytes:x?}"
        );
        let half = stub.check_alignment(&cpu, 0x1000 + alignment / 2);
        assert_eq!(half, Err(Exception::alignment_check()), "{bytes:x?}");
    }
    cpu.cpl = 0;
    let stub = try_compile(&mut stubs, 64, cases[0].0).unwrap();
    assert_eq!(stub.check_alignment(&cpu, 0x1001), Ok(()));
}
