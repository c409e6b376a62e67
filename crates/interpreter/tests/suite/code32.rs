//! 32-bit code with flat segments and with others, and with the ways in which it differs from
//! 64-bit code: addresses that wrap at 4 GiB, words of the stack, encodings that it has alone.

use super::engine;
use super::harness::code32::{CODE32, TOP, World, assemble32, assemble32_at};
use super::harness::{CODE, DATA, GDT, Machine, STACK, assemble_at};
use belljar_x86::{CpuState, Gpr, Seg};
use iced_x86::code_asm::*;

/// Garbage in the upper half of a register, which 32-bit code never sees.
const GARBAGE: u64 = 0xdead_beef << 32;
const DATA32: u32 = DATA as u32;

fn run(world: World, code: &[u8], change: impl FnOnce(&mut CpuState)) -> Machine {
    world.run(&*engine(), code, change)
}

/// Runs 32-bit code in every world to its end.
fn everywhere(
    write: impl Fn(&mut CodeAssembler),
    change: impl Fn(&mut CpuState),
    check: impl Fn(&Machine, &CpuState),
) {
    let code = assemble32(write);
    for world in World::ALL {
        let mut machine = run(world, &code, &change);
        let state = machine.vcpu.state().clone();
        assert_eq!(machine.vector(), Some(6), "{world:?}: {state:x?}");
        check(&machine, &state);
    }
}

fn gpr(state: &CpuState, register: Gpr) -> u64 {
    state.gpr[register as usize]
}

#[test]
fn encodings_that_64_bit_code_does_not_have() {
    everywhere(
        |a| {
            // inc eax; dec edx; inc si; add cl, 5 (by opcode 82h)
            a.db(&[0x40, 0x4a, 0x66, 0x46, 0x82, 0xc1, 5]).unwrap();
            // mov [DATA], eax; mov al, [DATA + 8]; mov [DATA + 12], al; mov ax, [DATA + 16]
            a.db(&[0xa3, 0, 0, 0x20, 0, 0xa0, 8, 0, 0x20, 0]).unwrap();
            a.db(&[0xa2, 12, 0, 0x20, 0, 0x66, 0xa1, 16, 0, 0x20, 0])
                .unwrap();
            a.mov(dword_ptr(DATA32 + 20), eax).unwrap();
            // mov eax, [DATA]
            a.db(&[0xa1, 0, 0, 0x20, 0]).unwrap();
        },
        |cpu| {
            cpu.gpr[Gpr::Rax as usize] = GARBAGE | 0xffff_fffe;
            cpu.gpr[Gpr::Rdx as usize] = GARBAGE;
            cpu.gpr[Gpr::Rsi as usize] = GARBAGE | 0x1_ffff;
            cpu.gpr[Gpr::Rcx as usize] = GARBAGE | 0xfe;
            cpu.gpr[Gpr::Rbp as usize] = GARBAGE;
        },
        |machine, state| {
            assert_eq!(machine.word32(DATA), 0xffff_ffff);
            assert_eq!(machine.word32(DATA + 20), 0xffff_0000);
            assert_eq!(gpr(state, Gpr::Rax), 0xffff_ffff);
            assert_eq!(gpr(state, Gpr::Rdx), 0xffff_ffff);
            assert_eq!(gpr(state, Gpr::Rsi), GARBAGE | 0x1_0000);
            assert_eq!(gpr(state, Gpr::Rcx), GARBAGE | 3);
            assert_eq!(gpr(state, Gpr::Rbp), GARBAGE);
        },
    );
}

#[test]
fn addresses_wrap_at_4_gib() {
    everywhere(
        |a| {
            a.mov(ebx, 0xffff_fff0u32).unwrap();
            a.mov(dword_ptr(ebx + (DATA32 + 0x10)), 0x1234_5678)
                .unwrap();
            a.mov(eax, dword_ptr(ebx + (DATA32 + 0x12))).unwrap();
            a.add(ebx, 0x20).unwrap();
            a.mov(ecx, dword_ptr(ebx + (DATA32 - 0x10))).unwrap();
            a.mov(esi, 0x4000_0000).unwrap();
            a.mov(edx, dword_ptr(DATA32 + esi * 4)).unwrap();
            a.lea(edi, dword_ptr(esi + esi * 8 + 5)).unwrap();
        },
        |cpu| cpu.gpr[Gpr::Rsi as usize] = GARBAGE,
        |_, state| {
            assert_eq!(gpr(state, Gpr::Rax), 0x1234);
            assert_eq!(gpr(state, Gpr::Rcx), 0x1234_5678);
            assert_eq!(gpr(state, Gpr::Rdx), 0x1234_5678);
            assert_eq!(gpr(state, Gpr::Rdi), 0x4000_0005);
        },
    );
}

#[test]
fn an_operand_across_4_gib_is_beyond_the_limit() {
    let code = assemble32(|a| {
        a.mov(ebx, 0xffff_fffeu32).unwrap();
        a.mov(ax, word_ptr(ebx)).unwrap();
        a.mov(ecx, 1).unwrap();
        a.mov(eax, dword_ptr(ebx)).unwrap();
    });
    let stack = assemble32(|a| {
        a.mov(esp, 2).unwrap();
        a.mov(ecx, 1).unwrap();
        a.push(eax).unwrap();
    });
    for world in World::ALL.into_iter().filter(|world| world.has_top()) {
        let mut machine = run(world, &code, |_| ());
        assert_eq!(machine.vector(), Some(13), "{world:?}");
        assert_eq!(gpr(machine.vcpu.state(), Gpr::Rcx), 1);
        if world.is_program() {
            let mut machine = run(world, &stack, |_| ());
            assert_eq!(machine.vector(), Some(12), "{world:?}");
            assert_eq!(gpr(machine.vcpu.state(), Gpr::Rcx), 1);
        }
    }
}

#[test]
fn code_runs_on_beyond_4_gib() {
    let at = 0xffff_fff0_u64;
    // mov eax, 77h; nops; inc ecx, which ends at 4 GiB
    let mut head = vec![0xb8, 0x77, 0, 0, 0];
    head.resize(15, 0x90);
    head.push(0x41);
    let tail = assemble32_at(0, |a| {
        a.inc(edx).unwrap();
        a.cmp(edx, 5).unwrap();
        a.jb(at).unwrap();
    });
    let code = assemble32(|a| a.jmp(at).unwrap());
    for world in World::ALL.into_iter().filter(|world| world.has_top()) {
        let mut cpu = world.state();
        cpu.gpr[Gpr::Rcx as usize] = 0;
        cpu.gpr[Gpr::Rdx as usize] = 0;
        let mut machine = world.machine(&*engine(), &code, cpu);
        machine.write(TOP + 0xff0, &head);
        machine.write(0, &tail);
        machine.run();
        assert_eq!(machine.vector(), Some(6), "{world:?}");
        let state = machine.vcpu.state();
        assert_eq!(gpr(state, Gpr::Rax), 0x77);
        assert_eq!([gpr(state, Gpr::Rcx), gpr(state, Gpr::Rdx)], [5, 5]);
    }
}

#[test]
fn an_instruction_across_4_gib_is_beyond_the_limit() {
    let at = 0xffff_fffe_u64;
    let code = assemble32(|a| a.jmp(at).unwrap());
    for world in World::ALL.into_iter().filter(|world| world.has_top()) {
        let mut machine = world.machine(&*engine(), &code, world.state());
        machine.write(TOP + 0xffe, &[0xb8, 0x77]);
        machine.write(0, &[0, 0, 0, 0xf4]);
        machine.run();
        assert_eq!(machine.vector(), Some(13), "{world:?}");
    }
}

#[test]
fn the_stack_holds_words_of_32_bits() {
    everywhere(
        |a| {
            let (mut function, mut end) = (a.create_label(), a.create_label());
            a.mov(ebx, DATA32).unwrap();
            a.mov(eax, 0x1111_2222).unwrap();
            a.push(eax).unwrap();
            a.push(-2).unwrap();
            a.push(0x1234_5678).unwrap();
            a.push(dword_ptr(esp + 4)).unwrap();
            a.call(function).unwrap();
            a.pop(ecx).unwrap();
            a.pop(edx).unwrap();
            a.pushad().unwrap();
            a.popad().unwrap();
            // push ax; pop si
            a.db(&[0x66, 0x50, 0x66, 0x5e]).unwrap();
            a.push(esp).unwrap();
            a.pop(edi).unwrap();
            a.jmp(end).unwrap();
            a.set_label(&mut function).unwrap();
            a.push(ebp).unwrap();
            a.mov(ebp, esp).unwrap();
            a.sub(esp, 0x40).unwrap();
            a.mov(eax, dword_ptr(ebp + 8)).unwrap();
            a.mov(dword_ptr(ebx), eax).unwrap();
            a.mov(eax, dword_ptr(ebp + 4)).unwrap();
            a.mov(dword_ptr(ebx + 4), eax).unwrap();
            a.pushfd().unwrap();
            a.pop(eax).unwrap();
            a.mov(dword_ptr(ebx + 8), eax).unwrap();
            a.push(eax).unwrap();
            a.popfd().unwrap();
            a.leave().unwrap();
            a.ret_1(4).unwrap();
            a.set_label(&mut end).unwrap();
            a.mov(eax, dword_ptr(esp)).unwrap();
        },
        |cpu| {
            cpu.gpr[Gpr::Rbp as usize] = 0x7777;
            cpu.gpr[Gpr::Rsi as usize] = 0;
        },
        |machine, state| {
            assert_eq!(machine.word32(DATA), 0xffff_fffe);
            let back = machine.word32(DATA + 4);
            assert!(u64::from(back) > CODE && u64::from(back) < CODE + 0x40);
            assert_eq!(machine.word32(DATA + 8) & 2, 2);
            assert_eq!(gpr(state, Gpr::Rcx), 0x1234_5678);
            assert_eq!(gpr(state, Gpr::Rdx), 0xffff_fffe);
            assert_eq!(gpr(state, Gpr::Rax), 0x1111_2222);
            assert_eq!(gpr(state, Gpr::Rdi), STACK - 4);
            assert_eq!(gpr(state, Gpr::Rbp), 0x7777);
        },
    );
}

#[test]
fn transfers_of_control() {
    // Behind a short jump: a function of three bytes, and UD2.
    let function = CODE as u32 + 2;
    let end = function + 3;
    everywhere(
        |a| {
            let (mut start, mut top, mut zero) =
                (a.create_label(), a.create_label(), a.create_label());
            a.jmp(start).unwrap();
            a.add(eax, ecx).unwrap();
            a.ret().unwrap();
            a.ud2().unwrap();
            a.set_label(&mut start).unwrap();
            a.mov(ecx, 40).unwrap();
            a.xor(eax, eax).unwrap();
            a.mov(ebx, function).unwrap();
            a.mov(dword_ptr(DATA32), ebx).unwrap();
            a.set_label(&mut top).unwrap();
            a.jecxz(zero).unwrap();
            a.call(ebx).unwrap();
            a.call(dword_ptr(DATA32)).unwrap();
            a.dec(ecx).unwrap();
            a.jmp(top).unwrap();
            a.set_label(&mut zero).unwrap();
            a.mov(edx, end).unwrap();
            a.jmp(edx).unwrap();
            a.mov(eax, 0).unwrap();
        },
        |cpu| {
            cpu.gpr[Gpr::Rbx as usize] = GARBAGE;
            cpu.gpr[Gpr::Rcx as usize] = GARBAGE;
        },
        |_, state| assert_eq!(gpr(state, Gpr::Rax), 2 * (40 * 41 / 2)),
    );
}

#[test]
fn thread_local_data_lies_around_the_base() {
    everywhere(
        |a| {
            a.mov(dword_ptr(4).gs(), 0x44).unwrap();
            a.mov(dword_ptr(0xffff_fffc_u32).gs(), 0x55).unwrap();
            a.mov(ebx, -8).unwrap();
            a.mov(dword_ptr(ebx).gs(), 0x66).unwrap();
            a.mov(ecx, dword_ptr(ebx + 4).gs()).unwrap();
        },
        |cpu| cpu.segments[Seg::Gs as usize].base = DATA + 0x100,
        |machine, state| {
            assert_eq!(machine.word32(DATA + 0x104), 0x44);
            assert_eq!(machine.word32(DATA + 0xfc), 0x55);
            assert_eq!(machine.word32(DATA + 0xf8), 0x66);
            assert_eq!(gpr(state, Gpr::Rcx), 0x55);
        },
    );
    // Across the limit, though not across a page.
    let codes = [
        assemble32(|a| a.mov(eax, dword_ptr(0xffff_fffe_u32).gs()).unwrap()),
        assemble32(|a| {
            a.mov(ebx, -2).unwrap();
            a.mov(eax, dword_ptr(ebx).gs()).unwrap();
        }),
    ];
    for (world, code) in World::ALL
        .into_iter()
        .flat_map(|w| [(w, &codes[0]), (w, &codes[1])])
    {
        let mut machine = run(world, code, |cpu| {
            cpu.segments[Seg::Gs as usize].base = DATA + 0x100;
        });
        assert_eq!(machine.vector(), Some(13), "{world:?}");
    }
}

#[test]
fn segments_that_are_not_flat_are_checked() {
    let code = assemble32(|a| {
        a.mov(dword_ptr(0x20), 0x77).unwrap();
        a.mov(ecx, 1).unwrap();
        a.mov(edi, 0x40).unwrap();
        a.stosd().unwrap();
        a.mov(ecx, 2).unwrap();
        a.mov(byte_ptr(0xfff), 1).unwrap();
        a.mov(ecx, 3).unwrap();
        a.mov(eax, dword_ptr(0xffd)).unwrap();
    });
    for world in World::ALL {
        let mut machine = run(world, &code, |cpu| {
            cpu.gpr[Gpr::Rax as usize] = 0x88;
            for seg in [Seg::Ds, Seg::Es] {
                cpu.segments[seg as usize].base = DATA;
                cpu.segments[seg as usize].limit = 0xfff;
            }
        });
        assert_eq!(machine.vector(), Some(13), "{world:?}");
        assert_eq!(gpr(machine.vcpu.state(), Gpr::Rcx), 3, "{world:?}");
        assert_eq!(machine.word32(DATA + 0x20), 0x77);
        assert_eq!(machine.word32(DATA + 0x40), 0x88);
        for unusable in [Seg::Ds, Seg::Es] {
            let mut machine = run(world, &code, |cpu| {
                cpu.gpr[Gpr::Rcx as usize] = 0;
                cpu.segments[unusable as usize].usable = false;
            });
            assert_eq!(machine.vector(), Some(13), "{world:?}");
            let expected = u64::from(unusable == Seg::Es);
            assert_eq!(gpr(machine.vcpu.state(), Gpr::Rcx), expected);
        }
    }
}

#[test]
fn code_and_stack_segments_may_have_bases() {
    let code = assemble32_at(0x30, |a| {
        let mut next = a.create_label();
        a.push(0x1234).unwrap();
        a.call(next).unwrap();
        a.set_label(&mut next).unwrap();
        a.pop(ecx).unwrap();
        a.pop(eax).unwrap();
    });
    for world in World::ALL.into_iter().filter(|world| world.is_program()) {
        let mut machine = run(world, &code, |cpu| {
            cpu.segments[Seg::Cs as usize].base = CODE - 0x30;
            cpu.segments[Seg::Ss as usize].base = DATA;
            cpu.segments[Seg::Ss as usize].limit = 0x1fff;
            cpu.rip = 0x30;
            cpu.gpr[Gpr::Rsp as usize] = 0x100;
        });
        assert_eq!(machine.vector(), Some(6), "{world:?}");
        assert_eq!(machine.word32(DATA + 0xfc), 0x1234);
        let state = machine.vcpu.state();
        assert_eq!(gpr(state, Gpr::Rax), 0x1234);
        assert_eq!(gpr(state, Gpr::Rcx), 0x3a);
    }
}

#[test]
fn the_same_code_runs_with_other_segments() {
    // Descriptors of data: flat, and from DATA + 1000h on.
    let flat: u64 = 0x00cf_f300_0000_ffff;
    let based: u64 = 0x00cf_f320_1000_ffff;
    let code = assemble32(|a| {
        let (mut top, mut read) = (a.create_label(), a.create_label());
        a.mov(esi, 6).unwrap();
        a.set_label(&mut top).unwrap();
        a.mov(eax, 0x23).unwrap();
        a.call(read).unwrap();
        a.mov(eax, 0x2b).unwrap();
        a.call(read).unwrap();
        a.dec(esi).unwrap();
        a.jne(top).unwrap();
        a.ud2().unwrap();
        a.set_label(&mut read).unwrap();
        a.mov(ds, eax).unwrap();
        a.mov(fs, eax).unwrap();
        a.mov(edx, dword_ptr(ebx)).unwrap();
        a.add(edi, edx).unwrap();
        a.add(edi, dword_ptr(ebx).fs()).unwrap();
        a.ret().unwrap();
    });
    for world in World::ALL {
        let mut cpu = world.state();
        cpu.gpr[Gpr::Rbx as usize] = DATA;
        cpu.gpr[Gpr::Rdi as usize] = 0;
        let mut machine = world.machine(&*engine(), &code, cpu);
        machine.write(GDT + 0x20, &flat.to_le_bytes());
        machine.write(GDT + 0x28, &based.to_le_bytes());
        machine.write(DATA, &1u32.to_le_bytes());
        machine.write(0x20_1000 + DATA, &0x100u32.to_le_bytes());
        machine.run();
        assert_eq!(machine.vector(), Some(6), "{world:?}");
        assert_eq!(gpr(machine.vcpu.state(), Gpr::Rdi), 12 * 0x101, "{world:?}");
    }
}

#[test]
fn bit_strings_reach_both_ways() {
    everywhere(
        |a| {
            a.mov(ebx, DATA32 + 0x20).unwrap();
            a.mov(ecx, -33).unwrap();
            a.bts(dword_ptr(ebx), ecx).unwrap();
            a.mov(ecx, 0x47).unwrap();
            a.bts(dword_ptr(ebx), ecx).unwrap();
            a.btc(dword_ptr(ebx), ecx).unwrap();
            a.setb(dl).unwrap();
        },
        |cpu| {
            cpu.gpr[Gpr::Rcx as usize] = GARBAGE;
            cpu.gpr[Gpr::Rdx as usize] = 0;
        },
        |machine, state| {
            assert_eq!(machine.word32(DATA + 0x18), 1 << 31);
            assert_eq!(machine.word32(DATA + 0x28), 0);
            assert_eq!(gpr(state, Gpr::Rdx), 1);
        },
    );
}

#[test]
fn strings_count_by_32_bits() {
    everywhere(
        |a| {
            a.mov(edi, DATA32).unwrap();
            a.mov(eax, 0x0102_0304).unwrap();
            // The upper halves of RCX are garbage.
            a.mov(cl, 8).unwrap();
            a.rep().stosd().unwrap();
            a.mov(esi, DATA32 + 2).unwrap();
            a.mov(cl, 6).unwrap();
            a.rep().movsb().unwrap();
            a.rep().stosd().unwrap();
        },
        |cpu| cpu.gpr[Gpr::Rcx as usize] = GARBAGE,
        |machine, state| {
            assert_eq!(machine.word32(DATA + 0x1c), 0x0102_0304);
            assert_eq!(machine.word32(DATA + 0x20), 0x0304_0102);
            assert_eq!(machine.word32(DATA + 0x24), 0x0102);
            assert_eq!(gpr(state, Gpr::Rcx), 0);
            assert_eq!(gpr(state, Gpr::Rdi), DATA + 0x26);
            assert_eq!(gpr(state, Gpr::Rsi), DATA + 8);
        },
    );
}

#[test]
fn code_of_both_widths_calls_each_other() {
    let long = CODE + 0x800;
    let code = assemble32(|a| {
        let mut top = a.create_label();
        a.mov(ecx, 20).unwrap();
        a.set_label(&mut top).unwrap();
        a.inc(eax).unwrap();
        // call 8:long
        let target = (long as u32).to_le_bytes();
        a.db(&[0x9a, target[0], target[1], target[2], target[3], 8, 0])
            .unwrap();
        a.dec(ecx).unwrap();
        a.jne(top).unwrap();
    });
    let far = assemble_at(long, |a| {
        a.add(r8, rax).unwrap();
        a.mov(edx, dword_ptr(rsp + 4)).unwrap();
        // RETF with words of 32 bits.
        a.db(&[0xcb]).unwrap();
    });
    let mut cpu = World::Compatible.state();
    cpu.gpr[Gpr::R8 as usize] = 1 << 40;
    cpu.gpr[Gpr::Rax as usize] = 0;
    let mut machine = World::Compatible.machine(&*engine(), &code, cpu);
    machine.write(long, &far);
    machine.run();
    assert_eq!(machine.vector(), Some(6));
    let state = machine.vcpu.state();
    assert_eq!(gpr(state, Gpr::R8), (1 << 40) + 210);
    assert_eq!(gpr(state, Gpr::Rdx), u64::from(CODE32));
}

#[test]
fn the_upper_half_of_the_stack_pointer_stays() {
    let code = assemble32(|a| {
        a.push(eax).unwrap();
        a.pop(ecx).unwrap();
        a.inc(eax).unwrap();
    });
    let mut machine = World::CompatibleProgram.machine(&*engine(), &code, {
        let mut cpu = World::CompatibleProgram.state();
        cpu.gpr[Gpr::Rsp as usize] |= GARBAGE;
        cpu.gpr[Gpr::Rax as usize] = 5;
        cpu
    });
    machine.run();
    assert_eq!(machine.vector(), Some(6));
    let state = machine.vcpu.state();
    assert_eq!([gpr(state, Gpr::Rax), gpr(state, Gpr::Rcx)], [6, 5]);
}
