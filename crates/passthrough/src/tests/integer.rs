use super::*;
use belljar_x86::Gpr;
use belljar_x86::bits::rflags;

#[test]
fn popcnt_counts_and_sets_zf() {
    let mut cpu = cpu();
    cpu.gpr[Gpr::Rbx as usize] = 0xff00_ff00_0000_0001;
    cpu.rflags = rflags::FIXED | rflags::STATUS | rflags::IF;
    run(&mut cpu, &[0xf3, 0x48, 0x0f, 0xb8, 0xc3]).unwrap(); // popcnt rax, rbx
    assert_eq!(cpu.gpr[0], 17);
    assert_eq!(cpu.rflags, rflags::FIXED | rflags::IF);
    cpu.gpr[Gpr::Rbx as usize] = 0;
    run(&mut cpu, &[0xf3, 0x48, 0x0f, 0xb8, 0xc3]).unwrap();
    assert_eq!(cpu.rflags, rflags::FIXED | rflags::IF | rflags::ZF);
}

#[test]
fn add_takes_rsp_as_an_ordinary_register() {
    let mut cpu = cpu();
    cpu.gpr[Gpr::Rsp as usize] = 0x1000;
    cpu.gpr[Gpr::Rdi as usize] = 0x234;
    run(&mut cpu, &[0x48, 0x01, 0xfc]).unwrap(); // add rsp, rdi
    assert_eq!(cpu.gpr[Gpr::Rsp as usize], 0x1234);
}

#[test]
fn every_register_stands_for_itself_or_another() {
    for register in 0..16_u8 {
        let mut cpu = cpu();
        for (number, value) in cpu.gpr.iter_mut().enumerate() {
            *value = 0x0101_0101_0101_0101 * number as u64;
        }
        let expected = cpu.gpr[usize::from(register)].swap_bytes() ^ 0xff;
        let before = cpu.gpr;
        cpu.gpr[usize::from(register)] = expected.swap_bytes();
        let rex = 0x48 | register >> 3;
        run(&mut cpu, &[rex, 0x0f, 0xc8 + (register & 7)]).unwrap(); // bswap
        let mut after = before;
        after[usize::from(register)] = expected;
        assert_eq!(cpu.gpr, after);
    }
}

#[test]
fn high_byte_registers_are_redirected() {
    let mut cpu = cpu();
    cpu.gpr[Gpr::Rbx as usize] = 0x1122_3344_5566_7788;
    cpu.gpr[Gpr::Rcx as usize] = 0x0000_0000_0000_0100;
    run(&mut cpu, &[0x00, 0xef]).unwrap(); // add bh, ch
    assert_eq!(cpu.gpr[Gpr::Rbx as usize], 0x1122_3344_5566_7888);
    cpu.gpr[Gpr::Rbp as usize] = 0;
    run(&mut cpu, &[0xf2, 0x0f, 0x38, 0xf0, 0xef]).unwrap(); // crc32 ebp, bh
    assert_ne!(cpu.gpr[Gpr::Rbp as usize], 0);
}

#[test]
fn shld_by_zero_keeps_all_flags() {
    let mut cpu = cpu();
    cpu.rflags = rflags::FIXED | rflags::CF | rflags::OF | rflags::AF | rflags::PF;
    let flags = cpu.rflags;
    cpu.gpr[Gpr::Rcx as usize] = 0x40;
    run(&mut cpu, &[0x48, 0x0f, 0xa5, 0xd8]).unwrap(); // shld rax, rbx, cl
    assert_eq!(cpu.rflags, flags);
}

#[test]
fn adcx_and_adox_keep_each_others_carry() {
    let mut cpu = cpu();
    cpu.gpr[Gpr::Rax as usize] = u64::MAX;
    cpu.gpr[Gpr::Rbx as usize] = 0;
    cpu.rflags = rflags::FIXED | rflags::CF | rflags::SF;
    run(&mut cpu, &[0x66, 0x48, 0x0f, 0x38, 0xf6, 0xc3]).unwrap(); // adcx rax, rbx
    assert_eq!(cpu.gpr[0], 0);
    assert_eq!(cpu.rflags, rflags::FIXED | rflags::CF | rflags::SF);
    run(&mut cpu, &[0xf3, 0x48, 0x0f, 0x38, 0xf6, 0xc3]).unwrap(); // adox rax, rbx
    assert_eq!(cpu.rflags, rflags::FIXED | rflags::CF | rflags::SF);
    cpu.rflags |= rflags::OF;
    run(&mut cpu, &[0xf3, 0x48, 0x0f, 0x38, 0xf6, 0xc3]).unwrap();
    assert_eq!(cpu.gpr[0], 1);
    assert_eq!(cpu.rflags, rflags::FIXED | rflags::CF | rflags::SF);
}

#[test]
fn mulx_uses_its_implied_register() {
    let mut cpu = cpu();
    cpu.gpr[Gpr::Rdx as usize] = 1 << 63;
    cpu.gpr[Gpr::Rsi as usize] = 6;
    run(&mut cpu, &[0xc4, 0xe2, 0xe3, 0xf6, 0xe6]).unwrap(); // mulx rsp, rbx, rsi
    assert_eq!(cpu.gpr[Gpr::Rsp as usize], 3);
    assert_eq!(cpu.gpr[Gpr::Rbx as usize], 0);
    assert_eq!(cpu.gpr[Gpr::Rdx as usize], 1 << 63);
}

#[test]
fn operands_of_sixteen_bits_keep_the_upper_bits_in_any_mode() {
    for (bits, bytes) in [
        (64, &[0x66, 0x0f, 0xbc, 0xc3][..]), // bsf ax, bx
        (32, &[0x66, 0x0f, 0xbc, 0xc3]),
        (16, &[0x0f, 0xbc, 0xc3]),
    ] {
        let mut cpu = cpu();
        cpu.gpr[Gpr::Rax as usize] = 0x1234_5678_9abc_def0;
        cpu.gpr[Gpr::Rbx as usize] = 0x10;
        run_bits(bits, &mut cpu, bytes).unwrap();
        assert_eq!(cpu.gpr[0], 0x1234_5678_9abc_0004, "{bits}");
    }
}

#[test]
fn movbe_swaps_memory_both_ways() {
    let mut cpu = cpu();
    let mut memory = Bytes(vec![1, 2, 3, 4, 5, 6, 7, 8]);
    run_on(&mut cpu, &[0x48, 0x0f, 0x38, 0xf0, 0x33], &mut memory).unwrap(); // movbe rsi, [rbx]
    assert_eq!(cpu.gpr[Gpr::Rsi as usize], 0x0102_0304_0506_0708);
    cpu.gpr[Gpr::Rsi as usize] = 0x1122_3344;
    run_on(&mut cpu, &[0x0f, 0x38, 0xf1, 0x33], &mut memory).unwrap(); // movbe [rbx], esi
    assert_eq!(memory.0, [0x11, 0x22, 0x33, 0x44, 5, 6, 7, 8]);
}

/// Memory that can be read only.
struct ReadOnly;
impl OperandMemory for ReadOnly {
    fn read(&mut self, _: &CpuState, _: u64, bytes: &mut [u8]) -> Result<(), Exception> {
        bytes.fill(0xff);
        Ok(())
    }
    fn check_write(&mut self, _: &CpuState, _: u64, _: usize) -> Result<(), Exception> {
        Err(MISSING)
    }
    fn write(&mut self, _: &CpuState, _: u64, _: &[u8]) -> Result<(), Exception> {
        Err(MISSING)
    }
}

#[test]
fn a_store_that_faults_changes_nothing() {
    let mut cpu = cpu();
    cpu.gpr[Gpr::Rax as usize] = 1;
    cpu.rflags = rflags::FIXED;
    let mut stubs = stubs();
    let stub = try_compile(&mut stubs, 64, &[0x48, 0x01, 0x03]).unwrap(); // add [rbx], rax
    let before = cpu.clone();
    let result = stubs.run_with_memory(&stub, &mut cpu, &mut ReadOnly);
    assert_eq!(result, Err(MISSING));
    assert_eq!(cpu, before);
}

#[test]
fn what_is_not_innocuous_is_refused() {
    let cases: [&[u8]; 16] = [
        &[0x0f, 0xa2],                   // cpuid
        &[0xc3],                         // ret
        &[0x50],                         // push rax
        &[0xa4],                         // movsb
        &[0x48, 0x8d, 0x03],             // lea rax, [rbx]
        &[0xf0, 0x48, 0x01, 0x03],       // lock add [rbx], rax
        &[0x48, 0x87, 0x03],             // xchg [rbx], rax
        &[0x48, 0x0f, 0xa3, 0x03],       // bt [rbx], rax
        &[0x0f, 0xae, 0x03],             // fxsave [rbx]
        &[0x0f, 0xc7, 0xf0],             // rdrand eax
        &[0x0f, 0x22, 0xc0],             // mov cr0, rax
        &[0x0f, 0xae, 0xf0],             // mfence
        &[0x0f, 0x18, 0x03],             // prefetchnta [rbx]
        &[0xf3, 0x48, 0x0f, 0xae, 0xd0], // wrfsbase rax
        &[0x0f, 0x01, 0xd0],             // xgetbv
        &[0x0f, 0x05],                   // syscall
    ];
    let mut stubs = stubs();
    for bytes in cases {
        let result = try_compile(&mut stubs, 64, bytes);
        assert_eq!(result.err(), Some(CompileError::NotInnocuous), "{bytes:x?}");
    }
}
