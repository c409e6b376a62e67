//! Stubs against the same bytes run directly.

use super::*;
use proptest::prelude::*;
use std::arch::asm;
use std::arch::is_x86_feature_detected as detected;

/// The registers that the instructions of these tests use.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C)]
struct Registers {
    ymm: [[u64; 4]; 4],
    /// RAX, RCX and RDX.
    gpr: [u64; 3],
    rflags: u64,
    mxcsr: u32,
    host_mxcsr: u32,
}

struct Case {
    bytes: &'static [u8],
    native: fn(&mut Registers),
}

/// An instruction on registers 0 to 3 of their kinds, without RBX.
macro_rules! case {
    ($($byte:literal)*) => {
        Case {
            bytes: &[$($byte),*],
            native: |registers| {
                // SAFETY: the instruction changes only registers that the ABI lets a callee change;
                // the asm restores MXCSR and touches no memory but `registers` and its stack.
                unsafe {
                    asm!(
                        "ldmxcsr [r8 + 160]",
                        "vmovdqu ymm0, [r8]",
                        "vmovdqu ymm1, [r8 + 32]",
                        "vmovdqu ymm2, [r8 + 64]",
                        "vmovdqu ymm3, [r8 + 96]",
                        "mov rax, [r8 + 128]",
                        "mov rcx, [r8 + 136]",
                        "mov rdx, [r8 + 144]",
                        "push qword ptr [r8 + 152]",
                        "popfq",
                        concat!(".byte 0x90" $(, ",", stringify!($byte))*),
                        "pushfq",
                        "pop qword ptr [r8 + 152]",
                        "mov [r8 + 128], rax",
                        "mov [r8 + 136], rcx",
                        "mov [r8 + 144], rdx",
                        "vmovdqu [r8], ymm0",
                        "vmovdqu [r8 + 32], ymm1",
                        "vmovdqu [r8 + 64], ymm2",
                        "vmovdqu [r8 + 96], ymm3",
                        "stmxcsr [r8 + 160]",
                        "ldmxcsr [r8 + 164]",
                        "vzeroupper",
                        in("r8") std::ptr::from_mut(registers),
                        clobber_abi("sysv64"),
                    );
                }
            },
        }
    };
}

const SSE: &[Case] = &[
    case!(0x66 0x0f 0xfc 0xc1),           // paddb xmm0, xmm1
    case!(0x66 0x0f 0xf5 0xc1),           // pmaddwd
    case!(0x66 0x0f 0xf6 0xd1),           // psadbw xmm2, xmm1
    case!(0x66 0x0f 0x67 0xc1),           // packuswb
    case!(0x66 0x0f 0x70 0xc1 0x1b),      // pshufd
    case!(0x66 0x0f 0x73 0xf9 0x03),      // pslldq xmm1, 3
    case!(0x66 0x0f 0xd7 0xc1),           // pmovmskb eax, xmm1
    case!(0x66 0x0f 0xc4 0xc1 0x05),      // pinsrw xmm0, ecx, 5
    case!(0x66 0x48 0x0f 0x6e 0xc2),      // movq xmm0, rdx
    case!(0x0f 0x58 0xc1),                // addps
    case!(0x0f 0x59 0xc1),                // mulps
    case!(0x0f 0x5e 0xc1),                // divps
    case!(0x66 0x0f 0x5e 0xc1),           // divpd
    case!(0x66 0x0f 0x51 0xc1),           // sqrtpd
    case!(0xf3 0x0f 0x51 0xc1),           // sqrtss
    case!(0xf2 0x0f 0x5c 0xc1),           // subsd
    case!(0x0f 0x5d 0xc1),                // minps
    case!(0x0f 0x53 0xc1),                // rcpps
    case!(0xf3 0x0f 0x52 0xc1),           // rsqrtss
    case!(0xf3 0x0f 0x10 0xc1),           // movss
    case!(0x0f 0xc6 0xc1 0x4e),           // shufps
    case!(0x0f 0xc2 0xc1 0x01),           // cmpltps
    case!(0x66 0x0f 0x2e 0xc1),           // ucomisd
    case!(0x0f 0x2f 0xc1),                // comiss
    case!(0x66 0x0f 0x5b 0xc1),           // cvtps2dq
    case!(0x66 0x0f 0x5a 0xc1),           // cvtpd2ps
    case!(0xf2 0x48 0x0f 0x2d 0xc1),      // cvtsd2si rax, xmm1
    case!(0xf3 0x0f 0x2a 0xc1),           // cvtsi2ss xmm0, ecx
    case!(0xf2 0x0f 0x7c 0xc1),           // haddps
    case!(0xf2 0x0f 0xd0 0xc1),           // addsubps
    case!(0x66 0x0f 0x38 0x00 0xc1),      // pshufb
    case!(0x66 0x0f 0x38 0x14 0xca),      // blendvps xmm1, xmm2, xmm0
    case!(0x66 0x0f 0x38 0x17 0xc1),      // ptest
    case!(0x66 0x0f 0x3a 0x40 0xc1 0xff), // dpps
    case!(0x66 0x0f 0x3a 0x08 0xc1 0x04), // roundps
    case!(0x66 0x0f 0x3a 0x42 0xc1 0x05), // mpsadbw
    case!(0x66 0x0f 0x3a 0x61 0xc1 0x0c), // pcmpestri
    case!(0x66 0x0f 0x3a 0x62 0xd9 0x40), // pcmpistrm xmm3, xmm1
];

const AVX: &[Case] = &[
    case!(0xc5 0xf5 0xfc 0xc2),           // vpaddb ymm0, ymm1, ymm2
    case!(0xc5 0xf0 0x58 0xc2),           // vaddps xmm0, xmm1, xmm2
    case!(0xc5 0xf5 0x5e 0xc2),           // vdivpd ymm0, ymm1, ymm2
    case!(0xc5 0xf3 0x51 0xc2),           // vsqrtsd xmm0, xmm1, xmm2
    case!(0xc4 0xe3 0x75 0x4a 0xc2 0x30), // vblendvps ymm0, ymm1, ymm2, ymm3
    case!(0xc4 0xe3 0x75 0x06 0xc2 0x13), // vperm2f128 ymm0, ymm1, ymm2
    case!(0xc4 0xe3 0x7d 0x19 0xc8 0x01), // vextractf128 xmm0, ymm1, 1
    case!(0xc4 0xe2 0x75 0x36 0xc2),      // vpermd ymm0, ymm1, ymm2
    case!(0xc4 0xe2 0x75 0x47 0xc2),      // vpsllvd ymm0, ymm1, ymm2
    case!(0xc4 0xe2 0xf5 0x98 0xc2),      // vfmadd132pd ymm0, ymm1, ymm2
    case!(0xc4 0xe2 0x71 0xbd 0xc2),      // vfnmadd231ss xmm0, xmm1, xmm2
    case!(0xc4 0xe2 0x7d 0x13 0xc1),      // vcvtph2ps ymm0, xmm1
    case!(0xc4 0xe3 0x7d 0x1d 0xc8 0x04), // vcvtps2ph xmm0, ymm1
    case!(0xc5 0xfc 0x50 0xc1),           // vmovmskps eax, ymm1
];

const CRYPTOGRAPHY: &[Case] = &[
    case!(0x66 0x0f 0x38 0xdc 0xc1),      // aesenc
    case!(0x66 0x0f 0x38 0xdf 0xc1),      // aesdeclast
    case!(0x66 0x0f 0x3a 0xdf 0xc1 0x1b), // aeskeygenassist
    case!(0x66 0x0f 0x3a 0x44 0xc1 0x11), // pclmulqdq
    case!(0x0f 0x38 0xc8 0xc1),           // sha1nexte
    case!(0x0f 0x38 0xcb 0xd1),           // sha256rnds2 xmm2, xmm1
    case!(0x0f 0x3a 0xcc 0xc1 0x02),      // sha1rnds4
];

const INTEGER: &[Case] = &[
    case!(0x48 0x11 0xc8),                // adc rax, rcx
    case!(0x66 0x29 0xc8),                // sub ax, cx
    case!(0x00 0xec),                     // add ah, ch
    case!(0x48 0xf7 0xe1),                // mul rcx
    case!(0x0f 0xaf 0xc1),                // imul eax, ecx
    case!(0x48 0xd3 0xc0),                // rol rax, cl
    case!(0xd3 0xd0),                     // rcl eax, cl
    case!(0x48 0xd3 0xf8),                // sar rax, cl
    case!(0x0f 0xa5 0xd0),                // shld eax, edx, cl
    case!(0x66 0x0f 0xac 0xd0 0x05),      // shrd ax, dx, 5
    case!(0x0f 0xbc 0xc1),                // bsf eax, ecx
    case!(0x48 0x0f 0xbd 0xc1),           // bsr rax, rcx
    case!(0xf3 0x0f 0xbc 0xc1),           // tzcnt eax, ecx
    case!(0xf3 0x48 0x0f 0xbd 0xc1),      // lzcnt rax, rcx
    case!(0x66 0xf3 0x0f 0xb8 0xc1),      // popcnt ax, cx
    case!(0x48 0x0f 0xab 0xc8),           // bts rax, rcx
    case!(0x0f 0x4c 0xc1),                // cmovl eax, ecx
    case!(0x0f 0x96 0xc4),                // setbe ah
    case!(0x48 0x0f 0xb1 0xca),           // cmpxchg rdx, rcx
    case!(0x0f 0xc1 0xc8),                // xadd eax, ecx
    case!(0xf2 0x48 0x0f 0x38 0xf1 0xc1), // crc32 rax, rcx
    case!(0xc4 0xe2 0xf0 0xf2 0xc2),      // andn rax, rcx, rdx
    case!(0xc4 0xe2 0xf0 0xf7 0xc2),      // bextr rax, rdx, rcx
    case!(0xc4 0xe2 0xf3 0xf5 0xc2),      // pdep rax, rcx, rdx
    case!(0xc4 0xe2 0x72 0xf5 0xc2),      // pext eax, ecx, edx
    case!(0xc4 0xe2 0xf8 0xf3 0xd9),      // blsi rax, rcx
    case!(0xc4 0xe3 0xfb 0xf0 0xc1 0x07), // rorx rax, rcx, 7
    case!(0x9f),                          // lahf
    case!(0x9e),                          // sahf
];

/// Words that make interesting numbers of every format as well as any others.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        any::<(f32, f32)>().prop_map(|(low, high)| floats(low, high)),
        any::<f64>().prop_map(f64::to_bits),
        0..64_u64,
        Just(floats(f32::NAN, f32::INFINITY)),
        Just(floats(f32::MIN_POSITIVE / 2.0, f32::MAX)),
    ]
}

fn registers() -> impl Strategy<Value = Registers> {
    let ymm = proptest::collection::vec(word(), 16);
    (ymm, [word(), word(), word()], 0..0x1000_u64, 0..4_u32).prop_map(
        |(words, gpr, flags, rounding)| {
            let mut ymm = [[0; 4]; 4];
            ymm.as_flattened_mut().copy_from_slice(&words);
            Registers {
                ymm,
                gpr,
                // Trap and interrupt flags stay clear.
                rflags: flags & belljar_x86::bits::rflags::STATUS | 0x202,
                mxcsr: 0x1f80 | rounding << 13,
                host_mxcsr: 0x1f80,
            }
        },
    )
}

fn compare(cases: &[Case], before: &Registers) -> Result<(), TestCaseError> {
    let mut stubs = stubs();
    for case in cases {
        let stub = try_compile(&mut stubs, 64, case.bytes).unwrap();
        let mut cpu = cpu();
        for (zmm, ymm) in cpu.vector.zmm.iter_mut().zip(&before.ymm) {
            zmm[..4].copy_from_slice(ymm);
        }
        cpu.gpr[..3].copy_from_slice(&before.gpr);
        cpu.rflags = before.rflags;
        cpu.vector.x87.mxcsr = before.mxcsr;
        stubs.run(&stub, &mut cpu).unwrap();

        let mut expected = before.clone();
        (case.native)(&mut expected);
        let mut after = before.clone();
        for (ymm, zmm) in after.ymm.iter_mut().zip(&cpu.vector.zmm) {
            ymm.copy_from_slice(&zmm[..4]);
        }
        after.gpr.copy_from_slice(&cpu.gpr[..3]);
        after.rflags = cpu.rflags;
        after.mxcsr = cpu.vector.x87.mxcsr;
        prop_assert_eq!(after, expected, "{:x?}", case.bytes);
    }
    Ok(())
}

proptest! {
    #[test]
    fn stubs_do_what_the_host_does(before in registers()) {
        // The harness itself needs AVX.
        if detected!("avx2") && detected!("fma") && detected!("f16c") {
            compare(SSE, &before)?;
            compare(AVX, &before)?;
        }
        if detected!("avx") && detected!("aes") && detected!("pclmulqdq") && detected!("sha") {
            compare(CRYPTOGRAPHY, &before)?;
        }
        if detected!("avx") && detected!("bmi1") && detected!("bmi2") && detected!("lzcnt") {
            compare(INTEGER, &before)?;
        }
    }
}
