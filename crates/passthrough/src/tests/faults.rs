use super::*;
use belljar_x86::Gpr;

/// `bytes` on xmm0 = `left` and xmm1 = `right`, with the exception of MXCSR's flag `bit` unmasked.
fn unmasked(bytes: &[u8], left: f32, right: f32, bit: u32) -> (CpuState, Result<(), Exception>) {
    let mut cpu = cpu();
    cpu.vector.x87.mxcsr = 0x1f80 & !(1 << (bit + 7));
    cpu.vector.zmm[0][0] = floats(left, 0.0);
    cpu.vector.zmm[1][0] = floats(right, 0.0);
    let result = run(&mut cpu, bytes);
    (cpu, result)
}

const DIVSS: &[u8] = &[0xf3, 0x0f, 0x5e, 0xc1];
const MULSS: &[u8] = &[0xf3, 0x0f, 0x59, 0xc1];

#[test]
fn each_unmasked_simd_exception_is_raised_and_leaves_the_destination() {
    let denormal = f32::from_bits(1);
    let cases = [
        (DIVSS, 0.0, 0.0, 0),
        (MULSS, denormal, 1.0, 1),
        (DIVSS, 1.0, 0.0, 2),
        (MULSS, f32::MAX, f32::MAX, 3),
        (MULSS, f32::MIN_POSITIVE, f32::MIN_POSITIVE, 4),
        (DIVSS, 1.0, 3.0, 5),
    ];
    for (bytes, left, right, bit) in cases {
        let (cpu, result) = unmasked(bytes, left, right, bit);
        assert_eq!(result, Err(Exception::simd()), "flag {bit}");
        assert_ne!(cpu.vector.x87.mxcsr & 1 << bit, 0, "flag {bit}");
        assert_eq!(cpu.vector.zmm[0][0], floats(left, 0.0));
    }
    // The host goes on with its own MXCSR: 1/0 is no exception.
    assert!((std::hint::black_box(1.0_f32) / std::hint::black_box(0.0)).is_infinite());
}

#[test]
fn a_simd_exception_without_osxmmexcpt_is_invalid_opcode() {
    let mut cpu = cpu();
    cpu.cr4 &= !cr4::OSXMMEXCPT;
    cpu.vector.x87.mxcsr = 0;
    cpu.vector.zmm[0][0] = floats(1.0, 0.0);
    let result = run(&mut cpu, DIVSS);
    assert_eq!(result, Err(Exception::invalid_opcode()));
}

#[test]
fn division_by_zero_is_divide_error() {
    let mut cpu = cpu();
    cpu.gpr[Gpr::Rax as usize] = 7;
    let before = cpu.clone();
    let result = run(&mut cpu, &[0x48, 0xf7, 0xf3]); // div rbx
    assert_eq!(result, Err(Exception::divide_error()));
    assert_eq!(cpu, before);
}

#[test]
fn misaligned_operands_are_general_protection() {
    #[repr(align(64))]
    struct Aligned([u8; 128]);
    let mut buffer = Aligned([7; 128]);
    let mut stubs = stubs();
    let mut cpu = cpu();
    let aligned = try_compile(&mut stubs, 64, &[0x0f, 0x28, 0x03]).unwrap(); // movaps xmm0, [rbx]
    let unaligned = try_compile(&mut stubs, 64, &[0x0f, 0x10, 0x03]).unwrap(); // movups
    let at = buffer.0[8..].as_mut_ptr();
    // SAFETY: 16 bytes from there are in the buffer, which nothing borrows.
    let (first, second) = unsafe {
        (
            stubs.run_at(&aligned, &mut cpu, at),
            stubs.run_at(&unaligned, &mut cpu, at),
        )
    };
    assert_eq!(first, Err(Exception::general_protection(0)));
    assert_eq!(second, Ok(()));
    assert_eq!(cpu.vector.zmm[0][0], 0x0707_0707_0707_0707);
    let fault = Err(Exception::general_protection(0));
    assert_eq!(aligned.check_alignment(&cpu, 0x1008), fault);
    assert_eq!(aligned.check_alignment(&cpu, 0x1010), Ok(()));
    assert_eq!(unaligned.check_alignment(&cpu, 0x1001), Ok(()));
}

#[test]
fn faults_of_many_threads_stay_apart() {
    let threads = (0..8_u32).map(|thread| {
        std::thread::spawn(move || {
            let mut stubs = stubs();
            let stub = try_compile(&mut stubs, 64, DIVSS).unwrap();
            for round in 0..200_u32 {
                let mut cpu = cpu();
                cpu.vector.x87.mxcsr = if (round + thread) % 2 == 0 { 0x1f80 } else { 0 };
                cpu.vector.zmm[0][0] = floats(1.0, 0.0);
                let result = stubs.run(&stub, &mut cpu);
                assert_eq!(result.is_ok(), (round + thread) % 2 == 0);
            }
        })
    });
    for thread in threads.collect::<Vec<_>>() {
        thread.join().unwrap();
    }
}
