//! What kind of instruction an instruction is.

use crate::Unit;
use iced_x86::{Code, EncodingKind, Instruction, Mnemonic, Mnemonic as M, OpKind, Register};

/// Innocuous instructions of the integer unit, in all their forms.
#[rustfmt::skip]
const INTEGER: &[Mnemonic] = &[
    M::Adc, M::Adcx, M::Add, M::Adox, M::And, M::Andn, M::Bextr, M::Blcfill, M::Blci, M::Blcic,
    M::Blcmsk, M::Blcs, M::Blsfill, M::Blsi, M::Blsic, M::Blsmsk, M::Blsr, M::Bsf, M::Bsr, M::Bswap,
    M::Bzhi, M::Cbw, M::Cdq, M::Cdqe, M::Clc, M::Cmc, M::Cmp, M::Cqo, M::Crc32, M::Cwd, M::Cwde,
    M::Dec, M::Div, M::Idiv, M::Imul, M::Inc, M::Lahf, M::Lzcnt, M::Movbe, M::Movnti, M::Movsx,
    M::Movsxd, M::Movzx, M::Mul, M::Mulx, M::Neg, M::Not, M::Or, M::Pdep, M::Pext, M::Popcnt,
    M::Rcl, M::Rcr, M::Rol, M::Ror, M::Rorx, M::Sahf, M::Sar, M::Sarx, M::Sbb, M::Shl, M::Shld, M::Shlx,
    M::Shr, M::Shrd, M::Shrx, M::Stc, M::Sub, M::T1mskc, M::Test, M::Tzcnt, M::Tzmsk, M::Xor,
    M::Cmova, M::Cmovae, M::Cmovb, M::Cmovbe, M::Cmove, M::Cmovg, M::Cmovge, M::Cmovl, M::Cmovle,
    M::Cmovne, M::Cmovno, M::Cmovnp, M::Cmovns, M::Cmovo, M::Cmovp, M::Cmovs,
    M::Seta, M::Setae, M::Setb, M::Setbe, M::Sete, M::Setg, M::Setge, M::Setl, M::Setle, M::Setne,
    M::Setno, M::Setnp, M::Setns, M::Seto, M::Setp, M::Sets,
];

/// Whether the instruction is an innocuous one of the integer unit.
fn integer(instruction: &Instruction) -> bool {
    match instruction.mnemonic() {
        // In memory, a register's index reaches beyond the operand.
        M::Bt | M::Btc | M::Btr | M::Bts => {
            !has_memory(instruction) || instruction.op1_kind() == OpKind::Immediate8
        }
        // In memory, XCHG is atomic, and the others nearly always have LOCK.
        M::Cmpxchg | M::Xadd | M::Xchg => !has_memory(instruction),
        mnemonic => INTEGER.contains(&mnemonic),
    }
}

/// Instructions that belong to a vector extension or x87 but not to this crate.
fn excluded(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        M::Prefetchnta
            | M::Prefetcht0
            | M::Prefetcht1
            | M::Prefetcht2
            | M::Lfence
            | M::Mfence
            | M::Sfence
    )
}

/// Whether the instruction has a memory operand, named or implied.
pub(crate) fn has_memory(instruction: &Instruction) -> bool {
    memory_operand(instruction).is_some()
}

/// The number of the operand that is in memory.
pub(crate) fn memory_operand(instruction: &Instruction) -> Option<u32> {
    (0..instruction.op_count()).find(|&operand| {
        !matches!(
            instruction.op_kind(operand),
            OpKind::Register
                | OpKind::Immediate8
                | OpKind::Immediate8_2nd
                | OpKind::Immediate16
                | OpKind::Immediate32
                | OpKind::Immediate64
                | OpKind::Immediate8to16
                | OpKind::Immediate8to32
                | OpKind::Immediate8to64
                | OpKind::Immediate32to64
        )
    })
}

fn any_register(instruction: &Instruction, test: fn(Register) -> bool) -> bool {
    (0..instruction.op_count()).any(|operand| {
        instruction.op_kind(operand) == OpKind::Register && test(instruction.op_register(operand))
    })
}

fn is_x87(instruction: &Instruction) -> bool {
    use iced_x86::CpuidFeature as F;
    instruction
        .cpuid_features()
        .iter()
        .any(|feature| matches!(feature, F::FPU | F::FPU287 | F::FPU387))
}

/// Whether the instruction works on MMX registers (and so on x87's).
pub(crate) fn uses_mmx(instruction: &Instruction) -> bool {
    instruction.code() == Code::Emms || any_register(instruction, Register::is_mm)
}

/// The unit of an instruction that is innocuous and that the host has, or nothing.
pub fn innocuous(instruction: &Instruction) -> Option<Unit> {
    match unit(instruction)? {
        _ if crate::host::supports(instruction) != Some(true) => None,
        Unit::Integer if instruction.encoding() == EncodingKind::VEX => Some(Unit::IntegerVex),
        unit => Some(unit),
    }
}

/// The unit of an innocuous instruction, or nothing.
pub(crate) fn unit(instruction: &Instruction) -> Option<Unit> {
    if instruction.has_lock_prefix() || excluded(instruction.mnemonic()) {
        return None;
    }
    if integer(instruction) {
        return Some(Unit::Integer);
    }
    if instruction.mnemonic() == Mnemonic::Wait {
        return Some(Unit::Wait);
    }
    if is_x87(instruction) {
        return Some(Unit::X87);
    }
    // What is left must be a vector instruction: `host::supports` lets only the vector extensions
    // and the base architecture through, and the base architecture's innocuous instructions are
    // listed above.
    match instruction.encoding() {
        EncodingKind::VEX if any_register(instruction, Register::is_k) => Some(Unit::Avx512),
        EncodingKind::VEX if is_vector_extension(instruction) => Some(Unit::Avx),
        EncodingKind::EVEX => Some(Unit::Avx512),
        EncodingKind::Legacy if any_register(instruction, Register::is_xmm) => Some(Unit::Sse),
        EncodingKind::Legacy if uses_mmx(instruction) => Some(Unit::Mmx),
        EncodingKind::Legacy if is_mxcsr_move(instruction) || is_scalar_to_integer(instruction) => {
            Some(Unit::Sse)
        }
        _ => None,
    }
}

fn is_mxcsr_move(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        M::Ldmxcsr | M::Stmxcsr | M::Vldmxcsr | M::Vstmxcsr
    )
}

/// Conversions to a general-purpose register, which name no vector register if their operand is in
/// memory.
fn is_scalar_to_integer(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        M::Cvtsd2si
            | M::Cvtss2si
            | M::Cvttsd2si
            | M::Cvttss2si
            | M::Vcvtsd2si
            | M::Vcvtss2si
            | M::Vcvttsd2si
            | M::Vcvttss2si
    )
}

/// Conversions to an MMX register.
fn is_packed_to_mmx(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        M::Cvtpd2pi | M::Cvtps2pi | M::Cvttpd2pi | M::Cvttps2pi
    )
}

fn is_vector_extension(instruction: &Instruction) -> bool {
    any_register(instruction, Register::is_vector_register)
        || is_mxcsr_move(instruction)
        || is_scalar_to_integer(instruction)
        || matches!(instruction.mnemonic(), M::Vzeroall | M::Vzeroupper)
}

/// Families of vector instructions, without the V of VEX, that neither read nor write MXCSR. They
/// are the moves, the bitwise and integer operations and the approximations that SDM 1 lists as
/// insensitive to it.
const WITHOUT_MXCSR: &[&str] = &[
    "P",
    "Mov",
    "And",
    "Or",
    "Xor",
    "Shuf",
    "Unpck",
    "Blend",
    "Broadcast",
    "Extract",
    "Insert",
    "Test",
    "Aes",
    "Sha",
    "Gf2p8",
    "Maskmov",
    "Lddqu",
    "Compress",
    "Expand",
    "Align",
    "Dbpsadbw",
    "Mpsadbw",
    "Rcpps",
    "Rcpss",
    "Rsqrtps",
    "Rsqrtss",
    "Sm3",
    "Sm4",
    "Extrq",
];

/// Whether MXCSR must be the guest's while the instruction runs. Yes for whatever is not known to
/// ignore it.
pub(crate) fn uses_mxcsr(instruction: &Instruction) -> bool {
    let vector = any_register(instruction, Register::is_vector_register);
    let mnemonic = instruction.mnemonic();
    if !vector {
        return is_mxcsr_move(instruction)
            || is_scalar_to_integer(instruction)
            || is_packed_to_mmx(instruction)
            || instruction.encoding() == EncodingKind::EVEX;
    }
    let name = format!("{mnemonic:?}");
    let name = match instruction.encoding() {
        EncodingKind::Legacy => name.as_str(),
        _ => name.strip_prefix('V').unwrap_or(&name),
    };
    let is_of = |family: &&str| {
        name.get(..family.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(family))
    };
    !WITHOUT_MXCSR.iter().any(is_of)
}

/// What an x87 instruction does to the pointers of the last instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pointers {
    /// They become this instruction's.
    Record,
    /// They stay.
    Keep,
    /// They become 0.
    Clear,
    /// The instruction loads them.
    Load,
}

/// What the instruction does to the x87 pointers. SDM 1, 8.1.8.
pub(crate) fn pointers(instruction: &Instruction) -> Pointers {
    match instruction.mnemonic() {
        M::Fninit | M::Finit | M::Fnsave | M::Fsave => Pointers::Clear,
        M::Fldenv | M::Frstor => Pointers::Load,
        M::Fnclex | M::Fclex | M::Fldcw | M::Fnstcw | M::Fstcw | M::Fnstsw | M::Fstsw => {
            Pointers::Keep
        }
        M::Fnstenv | M::Fstenv | M::Wait | M::Fndisi | M::Fneni | M::Fnsetpm => Pointers::Keep,
        _ if is_x87(instruction) => Pointers::Record,
        _ => Pointers::Keep,
    }
}

/// What FOP becomes after an instruction of x87 with these bytes, if it records itself as the last
/// one. SDM 1, 8.1.8 and 8.1.9.
pub fn recorded_opcode(instruction: &Instruction, bytes: &[u8]) -> Option<u16> {
    (pointers(instruction) == Pointers::Record).then(|| crate::stub::x87_opcode(bytes))
}

/// Whether the instruction stores a result of x87: an unmasked exception then leaves memory alone.
pub(crate) fn is_x87_store(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        M::Fst | M::Fstp | M::Fist | M::Fistp | M::Fisttp | M::Fbstp
    ) && has_memory(instruction)
}

/// Whether the flags that the instruction changes depend on its data (a count of zero changes
/// none).
pub(crate) fn may_keep_flags(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        M::Rcl | M::Rcr | M::Rol | M::Ror | M::Sal | M::Sar | M::Shl | M::Shld | M::Shr | M::Shrd
    )
}

/// Whether the instruction raises a pending exception of x87 before it does anything.
pub(crate) fn waits(instruction: &Instruction) -> bool {
    match instruction.mnemonic() {
        M::Wait => true,
        M::Fninit
        | M::Fnclex
        | M::Fnsave
        | M::Fnstenv
        | M::Fnstcw
        | M::Fnstsw
        | M::Fndisi
        | M::Fneni
        | M::Fnsetpm => false,
        _ => is_x87(instruction) || uses_mmx(instruction),
    }
}

/// SHA extensions, which AMD's processors do not hold to alignment.
fn is_sha(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        M::Sha1msg1
            | M::Sha1msg2
            | M::Sha1nexte
            | M::Sha1rnds4
            | M::Sha256msg1
            | M::Sha256msg2
            | M::Sha256rnds2
    )
}

/// What the address of the memory operand of `size` bytes must be a multiple of. SDM 2A, 2.4 and
/// 2.8.
pub(crate) fn alignment(instruction: &Instruction, unit: Unit, size: usize) -> u8 {
    let mnemonic = instruction.mnemonic();
    let demanded = match unit {
        Unit::Sse if size == 16 && is_sha(mnemonic) => !crate::host::is_amd(),
        Unit::Sse | Unit::Mmx if size == 16 => !matches!(
            mnemonic,
            M::Movupd
                | M::Movups
                | M::Movdqu
                | M::Lddqu
                | M::Maskmovdqu
                | M::Pcmpestri
                | M::Pcmpestri64
                | M::Pcmpestrm
                | M::Pcmpestrm64
                | M::Pcmpistri
                | M::Pcmpistrm
        ),
        Unit::Avx | Unit::Avx512 => matches!(
            mnemonic,
            M::Vmovapd
                | M::Vmovaps
                | M::Vmovdqa
                | M::Vmovdqa32
                | M::Vmovdqa64
                | M::Vmovntdq
                | M::Vmovntdqa
                | M::Vmovntpd
                | M::Vmovntps
        ),
        _ => false,
    };
    if demanded { size as u8 } else { 1 }
}
