use super::*;
use proptest::prelude::*;

/// Bytes that begin like the instructions of the vector extensions, x87 and the two-byte map.
fn encodings() -> impl Strategy<Value = Vec<u8>> {
    let prefix = prop_oneof![
        Just(vec![]),
        Just(vec![0x66]),
        Just(vec![0xf2]),
        Just(vec![0xf3]),
        Just(vec![0x66, 0x48]),
        Just(vec![0xf3, 0x4d]),
    ];
    let map = prop_oneof![
        Just(vec![0x0f]),
        Just(vec![0x0f, 0x38]),
        Just(vec![0x0f, 0x3a]),
        (0xd8..=0xdf_u8).prop_map(|opcode| vec![opcode]),
        any::<u8>().prop_map(|opcode| vec![opcode]),
    ];
    let legacy = (prefix, map).prop_map(|(prefix, map)| [prefix, map].concat());
    let vex = (0..3_u8, any::<u8>(), any::<u8>())
        .prop_map(|(map, first, second)| vec![0xc4, first & 0xe0 | (map + 1), second]);
    let evex = (0..3_u8, any::<[u8; 3]>()).prop_map(|(map, [first, second, third])| {
        vec![0x62, first & 0xf0 | (map + 1), second | 4, third]
    });
    (prop_oneof![legacy, vex, evex], any::<[u8; 10]>())
        .prop_map(|(head, tail)| [&head[..], &tail[..]].concat())
}

fn state(words: &[u64]) -> CpuState {
    let mut cpu = cpu();
    let mut words = words.iter().copied().cycle();
    let mut next = || words.next().unwrap_or(0).rotate_left(7);
    cpu.gpr.fill_with(&mut next);
    cpu.vector.k.fill_with(&mut next);
    cpu.vector.zmm.as_flattened_mut().fill_with(&mut next);
    for register in &mut cpu.vector.x87.st {
        *register = [next(), next() & 0xffff];
    }
    cpu.vector.x87.fsw = next() as u16 & 0x7f00;
    cpu.vector.x87.ftw = next() as u8;
    cpu.vector.x87.mxcsr = next() as u32 & 0xffff;
    cpu.rflags |= next() & belljar_x86::bits::rflags::STATUS;
    cpu
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100_000, ..ProptestConfig::default() })]

    /// Whatever compiles runs to its end or to an exception, touches no state but registers, flags
    /// and the vector state, and does the same each time.
    #[test]
    fn any_instruction_is_contained(
        bytes in encodings(),
        words in any::<[u64; 13]>(),
        bits in prop_oneof![Just(16_u32), Just(32), Just(64)],
    ) {
        let instruction = Decoder::new(bits, &bytes, DecoderOptions::NONE).decode();
        if instruction.is_invalid() {
            return Ok(());
        }
        thread_local! {
            static STUBS: std::cell::RefCell<Stubs> = std::cell::RefCell::new(stubs());
        }
        STUBS.with_borrow_mut(|stubs| {
            let stub = match stubs.compile(&instruction, &bytes) {
                Ok(stub) => stub,
                Err(CompileError::Full) => {
                    stubs.reset();
                    return Ok(());
                }
                Err(_) => return Ok(()),
            };
            let before = state(&words);
            let run = |stubs: &mut Stubs| {
                let mut cpu = before.clone();
                let mut memory = Bytes((0..128).collect());
                let result = stubs.run_with_memory(&stub, &mut cpu, &mut memory);
                (cpu, memory.0, result)
            };
            let (cpu, memory, result) = run(stubs);
            let again = run(stubs);
            prop_assert_eq!(&again.0, &cpu, "{:x?}", instruction.mnemonic());
            prop_assert_eq!(&again.1, &memory);
            prop_assert_eq!(again.2, result);
            let mut rest = cpu.clone();
            rest.gpr = before.gpr;
            rest.vector = before.vector.clone();
            rest.rflags = before.rflags;
            prop_assert_eq!(&rest, &before);
            let status = belljar_x86::bits::rflags::STATUS;
            prop_assert_eq!(cpu.rflags & !status, before.rflags & !status);
            Ok(())
        })?;
    }
}
