use super::*;

#[test]
fn a_masked_load_touches_only_enabled_elements() {
    let mut cpu = cpu();
    cpu.vector.zmm[2] = [1 << 63, 1 << 31, 0, 0, 0, 0, 0, 0]; // elements 1 and 2
    let mut memory = Bytes((0..12).collect());
    // vpmaskmovd xmm1, xmm2, [rbx]: the operand's last 4 bytes are missing
    run_on(&mut cpu, &[0xc4, 0xe2, 0x69, 0x8c, 0x0b], &mut memory).unwrap();
    assert_eq!(
        cpu.vector.zmm[1],
        [0x0706_0504 << 32, 0x0b0a_0908, 0, 0, 0, 0, 0, 0]
    );
    cpu.vector.zmm[2][1] = 1 << 63;
    let result = run_on(&mut cpu, &[0xc4, 0xe2, 0x69, 0x8c, 0x0b], &mut memory);
    assert_eq!(result, Err(MISSING));
}

#[test]
fn a_masked_store_writes_only_enabled_elements() {
    if !has_avx512() {
        return;
    }
    let mut cpu = cpu();
    cpu.vector.zmm[1] = [u64::from_le_bytes(*b"abcdefgh"); 8];
    cpu.vector.k[1] = 0b1_0000_0110;
    let mut memory = Bytes(vec![b'-'; 9]);
    // vmovdqu8 [rbx]{k1}, zmm1
    run_on(&mut cpu, &[0x62, 0xf1, 0x7f, 0x49, 0x7f, 0x0b], &mut memory).unwrap();
    assert_eq!(memory.0, b"-bc-----a");
}

#[test]
fn compress_and_expand_touch_as_many_elements_as_the_mask_has_bits() {
    if !has_avx512() {
        return;
    }
    let mut cpu = cpu();
    cpu.vector.zmm[1] = [10, 11, 12, 13, 14, 15, 16, 17];
    cpu.vector.k[1] = 0b1010_0000;
    let mut memory = Bytes(vec![0xff; 16]);
    // vpcompressq [rbx]{k1}, zmm1
    run_on(&mut cpu, &[0x62, 0xf2, 0xfd, 0x49, 0x8b, 0x0b], &mut memory).unwrap();
    assert_eq!(memory.0, [15, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0]);
    // vpexpandq zmm2{k1}{z}, [rbx]
    run_on(&mut cpu, &[0x62, 0xf2, 0xfd, 0xc9, 0x89, 0x13], &mut memory).unwrap();
    assert_eq!(cpu.vector.zmm[2], [0, 0, 0, 0, 0, 15, 0, 17]);
}

#[test]
fn a_broadcast_with_an_empty_mask_reads_nothing() {
    if !has_avx512() {
        return;
    }
    let mut cpu = cpu();
    cpu.vector.zmm[1] = [5; 8];
    let mut memory = Bytes(vec![]);
    // vpaddq zmm1{k1}, zmm1, qword [rbx]{1to8}
    let bytes = [0x62, 0xf1, 0xf5, 0x59, 0xd4, 0x0b];
    run_on(&mut cpu, &bytes, &mut memory).unwrap();
    assert_eq!(cpu.vector.zmm[1], [5; 8]);
    cpu.vector.k[1] = 2;
    assert_eq!(run_on(&mut cpu, &bytes, &mut memory), Err(MISSING));
    memory.0 = vec![1, 0, 0, 0, 0, 0, 0, 0];
    run_on(&mut cpu, &bytes, &mut memory).unwrap();
    assert_eq!(cpu.vector.zmm[1], [5, 6, 5, 5, 5, 5, 5, 5]);
}

#[test]
fn a_gather_that_faults_keeps_what_is_done() {
    let mut cpu = cpu();
    let all = u64::MAX;
    cpu.vector.zmm[1] = [7; 8];
    cpu.vector.zmm[2] = [1 | 2 << 32, 0x64 | 3 << 32, 0, 0, 0, 0, 0, 0]; // indices 1, 2, 100 and 3
    cpu.vector.zmm[3] = [all, all, 0, 0, 0, 0, 0, 0];
    let mut memory = Bytes((0..32).collect());
    // vpgatherdd xmm1, [rbx+xmm2*4], xmm3
    let bytes = [0xc4, 0xe2, 0x61, 0x90, 0x0c, 0x93];
    assert_eq!(run_on(&mut cpu, &bytes, &mut memory), Err(MISSING));
    assert_eq!(cpu.vector.zmm[1][..2], [0x0b0a_0908_0706_0504, 7]);
    assert_eq!(cpu.vector.zmm[3], [0, all, 0, 0, 0, 0, 0, 0]);
    cpu.vector.zmm[2][1] = 4 | 3 << 32;
    run_on(&mut cpu, &bytes, &mut memory).unwrap();
    let words = [0x0b0a_0908_0706_0504, 0x0f0e_0d0c_1312_1110];
    assert_eq!(cpu.vector.zmm[1], [words[0], words[1], 0, 0, 0, 0, 0, 0]);
    assert_eq!(cpu.vector.zmm[3], [0; 8]);
}

/// Remembers what was written.
struct Log(Vec<(u64, Vec<u8>)>);
impl OperandMemory for Log {
    fn read(&mut self, _: &CpuState, _: u64, _: &mut [u8]) -> Result<(), Exception> {
        Err(MISSING)
    }
    fn check_write(&mut self, _: &CpuState, _: u64, _: usize) -> Result<(), Exception> {
        Ok(())
    }
    fn write(&mut self, _: &CpuState, offset: u64, bytes: &[u8]) -> Result<(), Exception> {
        self.0.push((offset, bytes.to_vec()));
        Ok(())
    }
}

#[test]
fn a_scatter_writes_enabled_elements_at_negative_offsets_too() {
    if !has_avx512() {
        return;
    }
    let mut cpu = cpu();
    cpu.vector.zmm[1] = [1, 2, 3, 4, 5, 6, 7, 8];
    cpu.vector.zmm[2] = [u64::MAX, 0, 5, 0, 0, 0, 0, 0];
    cpu.vector.k[1] = 0b101;
    let mut stubs = stubs();
    // vpscatterqq [rbx+zmm2*8]{k1}, zmm1
    let stub = try_compile(&mut stubs, 64, &[0x62, 0xf2, 0xfd, 0x49, 0xa1, 0x0c, 0xd3]).unwrap();
    let mut log = Log(Vec::new());
    stubs.run_with_memory(&stub, &mut cpu, &mut log).unwrap();
    let word = |value: u64| value.to_le_bytes().to_vec();
    assert_eq!(log.0, [(-8_i64 as u64, word(1)), (40, word(3))]);
    assert_eq!(cpu.vector.k[1], 0);
}

#[test]
fn maskmovdqu_stores_the_chosen_bytes() {
    let mut cpu = cpu();
    cpu.vector.zmm[1][0] = u64::from_le_bytes(*b"abcdefgh");
    cpu.vector.zmm[2][0] = 0x8000_0000_0080_0000;
    // All 16 bytes must be writable, whatever the mask says.
    let mut memory = Bytes(b"----------------".to_vec());
    run_on(&mut cpu, &[0x66, 0x0f, 0xf7, 0xca], &mut memory).unwrap();
    assert_eq!(memory.0, b"--c----h--------");
}

#[test]
fn a_masked_store_is_done_as_a_whole_or_not_at_all() {
    if !std::arch::is_x86_feature_detected!("avx") {
        return;
    }
    let mut cpu = cpu();
    cpu.vector.zmm[1] = [u64::MAX; 8];
    cpu.vector.zmm[0] = [1 << 63 | 1 << 31, 1 << 63, 0, 0, 0, 0, 0, 0];
    // Elements 0, 1 and 3 are stored, of which the last has no memory.
    let mut memory = Bytes(vec![0; 12]);
    let store = [0xc4, 0xe2, 0x79, 0x2e, 0x0b]; // vmaskmovps [rbx], xmm0, xmm1
    assert_eq!(run_on(&mut cpu, &store, &mut memory), Err(MISSING));
    assert_eq!(memory.0, [0; 12]);
}

#[test]
fn a_masked_broadcast_of_128_bits_needs_no_memory_for_higher_mask_bits() {
    if !has_avx512() {
        return;
    }
    let mut cpu = cpu();
    cpu.vector.k[1] = 0xfff0;
    // vpaddd xmm0{k1}, xmm0, [rbx]{1to4}
    let broadcast = [0x62, 0xf1, 0x7d, 0x19, 0xfe, 0x03];
    assert_eq!(run_on(&mut cpu, &broadcast, &mut Bytes(Vec::new())), Ok(()));
    cpu.vector.k[1] = 8;
    let result = run_on(&mut cpu, &broadcast, &mut Bytes(Vec::new()));
    assert_eq!(result, Err(MISSING));
}

#[test]
fn an_aligned_move_without_mask_bits_may_be_misaligned() {
    if !has_avx512() {
        return;
    }
    let mut cpu = cpu();
    let mut stubs = stubs();
    // vmovapd xmm0{k1}, [rbx]
    let stub = try_compile(&mut stubs, 64, &[0x62, 0xf1, 0xfd, 0x09, 0x28, 0x03]).unwrap();
    cpu.vector.k[1] = 0xfc;
    assert_eq!(stub.check_alignment(&cpu, 0x1001), Ok(()));
    cpu.vector.k[1] = 2;
    let fault = Err(Exception::general_protection(0));
    assert_eq!(stub.check_alignment(&cpu, 0x1001), fault);
}
