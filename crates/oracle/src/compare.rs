//! What differs between two outcomes of a case.

use crate::case::{Case, Outcome};
use crate::encode::decode;
use crate::layout::{DATA, Data, PAGE, data_offset};
use belljar_x86::bits::rflags;
use iced_x86::{MemorySize, Mnemonic, RflagsBits};
use std::ops::Range;

/// Whether an operand of this size is more of x87 than one access reaches.
pub(crate) fn is_x87_image(size: MemorySize) -> bool {
    matches!(
        size,
        MemorySize::Bcd
            | MemorySize::Float80
            | MemorySize::Fxsave_512Byte
            | MemorySize::Fxsave64_512Byte
            | MemorySize::FpuEnv14
            | MemorySize::FpuEnv28
            | MemorySize::FpuState94
            | MemorySize::FpuState108
    )
}

/// What to do with flags that the manual calls undefined after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undefined {
    /// They may differ.
    Ignore,
    /// They must be the host's all the same.
    Compare,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Of what: a register, a flag word, a place in memory, the exception.
    pub what: String,
    /// The host's value.
    pub host: String,
    /// The engine's value.
    pub engine: String,
}

/// The flags that are compared: all but RF, of which a signal frame does not always tell the truth.
const FLAGS: u64 = rflags::STATUS
    | rflags::DF
    | rflags::TF
    | rflags::IF
    | rflags::IOPL
    | rflags::NT
    | rflags::AC
    | rflags::ID;

/// MXCSR.MM: AMD's processors have the bit, the model of CPUID does not offer it. APM 1, 4.2.2.
const MISALIGNED_MODE: u32 = 1 << 17;

/// Where Linux lets user mode's half of the addresses end: a page below the canonical border.
const USER_END: u64 = 0x7fff_ffff_f000;

const REGISTER_NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

/// Collects differences.
#[derive(Default)]
struct Differences(Vec<Difference>);

impl Differences {
    fn number(&mut self, what: impl FnOnce() -> String, host: u64, engine: u64) {
        if host != engine {
            self.0.push(Difference {
                what: what(),
                host: format!("{host:#x}"),
                engine: format!("{engine:#x}"),
            });
        }
    }

    fn words(&mut self, what: impl FnOnce() -> String, host: &[u64], engine: &[u64]) {
        if host != engine {
            self.0.push(Difference {
                what: what(),
                host: hex(host),
                engine: hex(engine),
            });
        }
    }
}

/// A register of several words, the most significant one first.
pub fn hex(words: &[u64]) -> String {
    let digits: Vec<String> = words.iter().rev().map(|w| format!("{w:016x}")).collect();
    digits.join("_")
}

/// All differences between the `host`'s and the `engine`'s outcome of `case`.
pub fn differences(
    case: &Case,
    host: &Outcome,
    engine: &Outcome,
    undefined: Undefined,
) -> Vec<Difference> {
    let mut found = Differences::default();
    if host.vector.x87.mxcsr & MISALIGNED_MODE != 0 {
        return found.0;
    }
    let ignored = match undefined {
        Undefined::Ignore => undefined_flags(case),
        Undefined::Compare => Ignored::default(),
    };
    compare_faults(case, host, engine, &mut found);
    compare_registers(host, engine, &ignored, &mut found);
    let mut ignored = ignored;
    ignored.x87 = is_turning(case, host);
    compare_vectors(host, engine, &ignored, &mut found);
    compare_data(case, host, engine, &mut found);
    found.0
}

fn compare_faults(case: &Case, host: &Outcome, engine: &Outcome, found: &mut Differences) {
    let (h, e) = (&host.fault, &engine.fault);
    // Microcode goes through the large operands of x87 in an order of its own.
    let last = case.instructions.last().and_then(|bytes| decode(bytes));
    let large = last.is_some_and(|e| is_x87_image(e.instruction.memory_size()));
    let page = if large { !(PAGE as u64 - 1) } else { u64::MAX };
    found.number(|| "exception".into(), h.vector, e.vector);
    // Linux reports every fault beyond user mode's half as one at a present page.
    let hidden = u64::from(h.vector == 14 && h.address >= USER_END);
    found.number(|| "error code".into(), h.error & !hidden, e.error & !hidden);
    found.number(|| "cr2".into(), h.address & page, e.address & page);
}

fn compare_registers(host: &Outcome, engine: &Outcome, ignored: &Ignored, found: &mut Differences) {
    let (h, e) = (&host.registers, &engine.registers);
    for (n, name) in REGISTER_NAMES.iter().enumerate() {
        found.number(|| (*name).into(), h.gpr[n], e.gpr[n]);
    }
    let mask = FLAGS & !ignored.rflags;
    found.number(|| "rip".into(), h.rip, e.rip);
    found.number(|| "rflags".into(), h.rflags & mask, e.rflags & mask);
    found.number(|| "fs base".into(), h.fs_base, e.fs_base);
    found.number(|| "gs base".into(), h.gs_base, e.gs_base);
}

/// FIP, FDP and FOP are left out: AMD's processors save them only while an x87 exception is pending.
fn compare_vectors(host: &Outcome, engine: &Outcome, ignored: &Ignored, found: &mut Differences) {
    let (h, e) = (&host.vector, &engine.vector);
    for n in 0..32 {
        found.words(|| format!("zmm{n}"), &h.zmm[n], &e.zmm[n]);
    }
    for n in 0..8 {
        found.number(|| format!("k{n}"), h.k[n], e.k[n]);
    }
    let (h, e) = (&h.x87, &e.x87);
    if ignored.x87 {
        found.number(|| "mxcsr".into(), h.mxcsr.into(), e.mxcsr.into());
        return;
    }
    let fsw = !ignored.fsw;
    found.number(|| "mxcsr".into(), h.mxcsr.into(), e.mxcsr.into());
    found.number(|| "fcw".into(), h.fcw.into(), e.fcw.into());
    found.number(|| "fsw".into(), (h.fsw & fsw).into(), (e.fsw & fsw).into());
    found.number(|| "ftw".into(), h.ftw.into(), e.ftw.into());
    for n in 0..8 {
        found.words(|| format!("st{n}"), &h.st[n], &e.st[n]);
    }
}

fn compare_data(case: &Case, host: &Outcome, engine: &Outcome, found: &mut Differences) {
    if host.data == engine.data {
        return;
    }
    let (mut h, mut e) = (host.data.clone(), engine.data.clone());
    for range in x87_pointers(case) {
        h[range.clone()].fill(0);
        e[range].fill(0);
    }
    let differs = |at: &usize| h[*at] != e[*at];
    let all = 0..h.len();
    if let (Some(first), Some(last)) = (all.clone().find(differs), all.rev().find(differs)) {
        let end = (last + 1).min(first + 64);
        let text = |data: &Data| {
            let bytes: Vec<String> = data[first..end]
                .iter()
                .map(|b| format!("{b:02x}"))
                .collect();
            bytes.join(" ")
        };
        found.0.push(Difference {
            what: format!(
                "memory at {:#x} to {:#x}",
                DATA + first as u64,
                DATA + last as u64
            ),
            host: text(&h),
            engine: text(&e),
        });
    }
}

/// Flags that may differ.
#[derive(Clone, Copy, Debug, Default)]
struct Ignored {
    rflags: u64,
    fsw: u16,
    /// All of x87 but MXCSR.
    x87: bool,
}

/// Flags that some instruction of `case` leaves undefined.
fn undefined_flags(case: &Case) -> Ignored {
    const RFLAGS: [(u32, u64); 6] = [
        (RflagsBits::OF, rflags::OF),
        (RflagsBits::SF, rflags::SF),
        (RflagsBits::ZF, rflags::ZF),
        (RflagsBits::AF, rflags::AF),
        (RflagsBits::CF, rflags::CF),
        (RflagsBits::PF, rflags::PF),
    ];
    const FSW: [(u32, u16); 4] = [
        (RflagsBits::C0, 1 << 8),
        (RflagsBits::C1, 1 << 9),
        (RflagsBits::C2, 1 << 10),
        (RflagsBits::C3, 1 << 14),
    ];
    let bits = case
        .instructions
        .iter()
        .filter_map(|bytes| decode(bytes))
        .fold(0, |bits, e| bits | e.instruction.rflags_undefined());
    let chosen = |name: u32| bits & name != 0;
    Ignored {
        rflags: RFLAGS
            .iter()
            .filter(|f| chosen(f.0))
            .fold(0, |m, f| m | f.1),
        fsw: FSW.iter().filter(|f| chosen(f.0)).fold(0, |m, f| m | f.1),
        x87: false,
    }
}

/// Whether the case ended with #AC at a MASKMOVQ: the manual does not say whether x87's registers have become MMX's by
/// then.
fn is_turning(case: &Case, host: &Outcome) -> bool {
    let turns = |bytes: &Vec<u8>| {
        decode(bytes).is_some_and(|e| e.instruction.mnemonic() == Mnemonic::Maskmovq)
    };
    host.fault.vector == 17 && case.instructions.iter().any(turns)
}

/// Where the last instruction's FNSTENV, FNSAVE or FXSAVE puts what is not compared: the last x87 instruction's opcode and
/// pointers, and the mask of MXCSR. SDM 1, 8.1.10 and 10.5.1.
fn x87_pointers(case: &Case) -> Vec<Range<usize>> {
    let found = || {
        let (last, before) = case.instructions.split_last()?;
        let mut instruction = decode(last)?.instruction;
        let before: usize = before.iter().map(Vec::len).sum();
        crate::report::relocate(&mut instruction, case.registers.rip + before as u64);
        let address = crate::report::effective_address(&instruction, &case.registers)?;
        Some((instruction, address))
    };
    let Some((instruction, address)) = found() else {
        return Vec::new();
    };
    let places: &[(u64, usize)] = match (instruction.mnemonic(), instruction.memory_size().size()) {
        (Mnemonic::Fnstenv | Mnemonic::Fnsave, 28 | 108) => &[(12, 16)],
        (Mnemonic::Fnstenv | Mnemonic::Fnsave, _) => &[(6, 8)],
        (Mnemonic::Fxsave | Mnemonic::Fxsave64, _) => &[(6, 18), (28, 4)],
        _ => &[],
    };
    let range = |&(first, len): &(u64, usize)| {
        let start = data_offset(address.wrapping_add(first), len)?;
        Some(start..start + len)
    };
    places.iter().filter_map(range).collect()
}
