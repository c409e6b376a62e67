//! Results and flags of arithmetic against the host's processor.

use super::harness::{Machine, assemble, state64};
use belljar_x86::Gpr;
use belljar_x86::bits::rflags;
use iced_x86::code_asm::*;
use proptest::prelude::*;
use std::arch::asm;

/// Runs one instruction on RAX and RDX on the host: its result and status flags.
macro_rules! on_host {
    ($instruction:literal, $a:expr, $b:expr, $flags:expr) => {{
        let (mut a, mut flags): (u64, u64) = ($a, $flags & rflags::STATUS | rflags::FIXED);
        // SAFETY: the instruction changes RAX and the status flags alone.
        unsafe {
            asm!(
                "push {f}",
                "popfq",
                $instruction,
                "pushfq",
                "pop {f}",
                f = inout(reg) flags,
                inout("rax") a,
                in("rdx") $b,
                in("rcx") $b,
            );
        }
        (a, flags & rflags::STATUS)
    }};
}

fn in_guest(code: &[u8], a: u64, b: u64, flags: u64) -> (u64, u64) {
    let mut cpu = state64();
    cpu.gpr[Gpr::Rax as usize] = a;
    cpu.gpr[Gpr::Rdx as usize] = b;
    cpu.gpr[Gpr::Rcx as usize] = b;
    cpu.rflags = flags & rflags::STATUS | rflags::FIXED;
    let mut machine = Machine::with_state(code, cpu);
    let state = machine.run();
    (state.gpr[Gpr::Rax as usize], state.rflags & rflags::STATUS)
}

/// An operand: often one at an edge.
fn operand() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0u32..64).prop_map(|n| 1 << n),
        (0u32..64).prop_map(|n| (1u64 << n).wrapping_sub(1)),
        Just(0),
        Just(u64::MAX),
    ]
}

macro_rules! compare {
    ($a:ident, $b:ident, $flags:ident: $($host:literal => |$asm:ident| $write:expr;)*) => {
        $(
            let code = assemble(|$asm| {
                $write.unwrap();
                $asm.hlt().unwrap();
            });
            prop_assert_eq!(
                in_guest(&code, $a, $b, $flags),
                on_host!($host, $a, $b, $flags),
                $host
            );
        )*
    };
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn additions_and_subtractions_match_the_host(a in operand(), b in operand(), flags: u64) {
        compare! { a, b, flags:
            "add rax, rdx" => |s| s.add(rax, rdx);
            "add ax, dx" => |s| s.add(ax, dx);
            "adc eax, edx" => |s| s.adc(eax, edx);
            "adc al, dl" => |s| s.adc(al, dl);
            "sub rax, rdx" => |s| s.sub(rax, rdx);
            "sub ah, dl" => |s| s.sub(ah, dl);
            "sbb rax, rdx" => |s| s.sbb(rax, rdx);
            "sbb ax, dx" => |s| s.sbb(ax, dx);
            "cmp eax, edx" => |s| s.cmp(eax, edx);
            "inc rax" => |s| s.inc(rax);
            "inc al" => |s| s.inc(al);
            "dec eax" => |s| s.dec(eax);
            "dec ax" => |s| s.dec(ax);
            "neg rax" => |s| s.neg(rax);
            "neg al" => |s| s.neg(al);
        }
    }

    #[test]
    fn logic_matches_the_host(a in operand(), b in operand(), flags: u64) {
        compare! { a, b, flags:
            "and rax, rdx" => |s| s.and(rax, rdx);
            "or ax, dx" => |s| s.or(ax, dx);
            "xor eax, edx" => |s| s.xor(eax, edx);
            "test al, dl" => |s| s.test(al, dl);
            "not rax" => |s| s.not(rax);
            "bt rax, rdx" => |s| s.bt(rax, rdx);
            "btc eax, edx" => |s| s.btc(eax, edx);
        }
    }

    #[test]
    fn rotates_through_carry_match_the_host(a in operand(), b in operand(), flags: u64) {
        compare! { a, b, flags:
            "rcl rax, 1" => |s| s.rcl(rax, 1);
            "rcr eax, 1" => |s| s.rcr(eax, 1);
            "rol al, 1" => |s| s.rol(al, 1);
            "ror ax, 1" => |s| s.ror(ax, 1);
        }
    }

    #[test]
    fn results_of_shifts_match_the_host(a in operand(), b in operand(), flags: u64) {
        let defined = rflags::CF | rflags::ZF | rflags::SF | rflags::PF;
        let same = |code: &[u8], (value, host): (u64, u64), width: u32| {
            let count = b & if width == 64 { 63 } else { 31 };
            // CF is undefined for counts beyond the operand's width.
            let mask = if count > u64::from(width) { defined & !rflags::CF } else { defined };
            let (result, guest) = in_guest(code, a, b, flags);
            (result, guest & mask) == (value, host & mask)
        };
        macro_rules! shift {
            ($host:literal, $width:literal, |$s:ident| $write:expr) => {
                let code = assemble(|$s| {
                    $write.unwrap();
                    $s.hlt().unwrap();
                });
                prop_assert!(same(&code, on_host!($host, a, b, flags), $width), $host);
            };
        }
        shift!("shl rax, cl", 64, |s| s.shl(rax, cl));
        shift!("shr eax, cl", 32, |s| s.shr(eax, cl));
        shift!("sar ax, cl", 16, |s| s.sar(ax, cl));
        shift!("shl al, cl", 8, |s| s.shl(al, cl));
        shift!("sar rax, cl", 64, |s| s.sar(rax, cl));
        shift!("shld rax, rdx, cl", 64, |s| s.shld(rax, rdx, cl));
        shift!("shrd eax, edx, cl", 32, |s| s.shrd(eax, edx, cl));
    }
}
