//! What differs between two outcomes of a case.

use crate::case::{Case, Outcome};
use crate::encode::decode;
use crate::flags::{in_rflags, undefined};
use crate::layout::{BLOCK, DATA, PAGE, data_offset, is_readable};
use crate::report::operand_address;
use belljar_x86::bits::rflags;
use iced_x86::{Instruction, MemorySize, Mnemonic, OpKind, RflagsBits};
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

/// What to do with flags of some kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flags {
    /// They may differ.
    Ignore,
    /// They must be the host's.
    Compare,
}

/// How outcomes are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Flags that the manual calls undefined after an instruction.
    pub undefined: Flags,
    /// The status flags at a fault that an instruction's operands raised: #SS, #GP, #PF and #AC by an access to memory, #DE,
    /// #MF and #XM by values.
    pub at_fault: Flags,
}

impl Default for Rules {
    /// All that the manual defines is compared.
    fn default() -> Self {
        Self {
            undefined: Flags::Ignore,
            at_fault: Flags::Compare,
        }
    }
}

/// The vector of an encoding that is no instruction.
const INVALID_OPCODE: u64 = 6;
/// Vectors of the faults that accesses to memory raise.
const MEMORY_FAULTS: [u64; 4] = [12, 13, 14, 17];
/// Vectors of those that an operand raises as a whole, wherever it lies.
const WHOLE_FAULTS: [u64; 3] = [12, 13, 17];
/// Vectors of those that other operands raise.
const VALUE_FAULTS: [u64; 3] = [0, 16, 19];

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

    /// Memory that begins at `start`.
    fn bytes(&mut self, start: u64, host: &[u8], engine: &[u8]) {
        let differs = |at: &usize| host[*at] != engine[*at];
        let all = 0..host.len();
        if let (Some(first), Some(last)) = (all.clone().find(differs), all.rev().find(differs)) {
            let (from, to) = (start + first as u64, start + last as u64);
            let end = (last + 1).min(first + 64);
            self.0.push(Difference {
                what: format!("memory at {from:#x} to {to:#x}"),
                host: hex_bytes(&host[first..end]),
                engine: hex_bytes(&engine[first..end]),
            });
        }
    }
}

/// Bytes in the order of their addresses.
pub fn hex_bytes(bytes: &[u8]) -> String {
    let digits: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    digits.join(" ")
}

/// A register of several words, the most significant one first.
pub fn hex(words: &[u64]) -> String {
    let digits: Vec<String> = words.iter().rev().map(|w| format!("{w:016x}")).collect();
    digits.join("_")
}

/// Whether the host executed a VEX or EVEX encoding that the manual reserves, and the engine refused it. Zen 4 looks at few
/// of the bits of EVEX that an instruction has no use for, and AMD's processors execute VPERMQ and VPERMPD with VEX.W0; others
/// refuse them.
fn takes_reserved(case: &Case, host: &Outcome, engine: &Outcome) -> bool {
    const PREFIXES: [u8; 7] = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x67];
    case.instructions.last().is_some_and(|bytes| {
        let first = bytes.iter().find(|byte| !PREFIXES.contains(byte));
        matches!(first, Some(0xc4 | 0xc5 | 0x62)) && decode(bytes).is_none()
    }) && host.fault.vector != INVALID_OPCODE
        && engine.fault.vector == INVALID_OPCODE
}

/// Whether the engine refused a store of compressed elements as a whole, for its alignment or because it does not lie in the
/// canonical addresses, and the host did not: Zen 4 stores one element after the other.
fn stores_by_element(case: &Case, host: &Outcome, engine: &Outcome) -> bool {
    let compresses = |instruction: Instruction| {
        let stores = instruction.op0_kind() == OpKind::Memory;
        stores
            && matches!(
                instruction.mnemonic(),
                Mnemonic::Vpcompressb
                    | Mnemonic::Vpcompressw
                    | Mnemonic::Vpcompressd
                    | Mnemonic::Vpcompressq
                    | Mnemonic::Vcompressps
                    | Mnemonic::Vcompresspd
            )
    };
    let end = |outcome: &Outcome| (outcome.fault.vector, outcome.registers.rip);
    WHOLE_FAULTS.contains(&engine.fault.vector)
        && end(host) != end(engine)
        && case.instruction_at(engine).is_some_and(compresses)
}

/// All differences between the `host`'s and the `engine`'s outcome of `case`.
pub fn differences(case: &Case, host: &Outcome, engine: &Outcome, rules: Rules) -> Vec<Difference> {
    let mut found = Differences::default();
    let no_oracle = host.vector.x87.mxcsr & MISALIGNED_MODE != 0
        || takes_reserved(case, host, engine)
        || stores_by_element(case, host, engine);
    if no_oracle {
        return found.0;
    }
    let mut ignored = match rules.undefined {
        Flags::Ignore => undefined_flags(case),
        Flags::Compare => Ignored::default(),
    };
    let vector = &host.fault.vector;
    let at_fault = MEMORY_FAULTS.contains(vector) || VALUE_FAULTS.contains(vector);
    if rules.at_fault == Flags::Ignore && at_fault {
        ignored.rflags |= rflags::STATUS;
    }
    compare_faults(case, host, engine, &mut found);
    compare_registers(host, engine, &ignored, &mut found);
    ignored.x87 = is_turning(case, host);
    compare_vectors(host, engine, &ignored, &mut found);
    compare_data(case, host, engine, &mut found);
    if let (Some(host), Some(engine)) = (&host.block, &engine.block) {
        found.bytes(BLOCK, &**host, &**engine);
    }
    found.0
}

fn compare_faults(case: &Case, host: &Outcome, engine: &Outcome, found: &mut Differences) {
    let (h, e) = (&host.fault, &engine.fault);
    // Microcode goes through the large operands of x87 in an order of its own.
    let last = case.instructions.last().and_then(|bytes| decode(bytes));
    let large = last.is_some_and(|e| is_x87_image(e.instruction.memory_size()));
    let page = if large { !(PAGE as u64 - 1) } else { u64::MAX };
    if is_open_order(case, host, engine) {
        return;
    }
    found.number(|| "exception".into(), h.vector, e.vector);
    // Linux reports every fault beyond user mode's half as one at a present page.
    let hidden = u64::from(h.vector == 14 && h.address >= USER_END);
    found.number(|| "error code".into(), h.error & !hidden, e.error & !hidden);
    found.number(|| "cr2".into(), h.address & page, e.address & page);
}

/// Whether both outcomes ended at the same CMPS with a fault of one operand each, and neither operand can be had: the manual
/// does not say which one is looked at first.
fn is_open_order(case: &Case, host: &Outcome, engine: &Outcome) -> bool {
    let faults = [host, engine].map(|o| MEMORY_FAULTS.contains(&o.fault.vector));
    if faults != [true; 2] || host.registers.rip != engine.registers.rip {
        return false;
    }
    let Some(instruction) = case.instruction_at(host) else {
        return false;
    };
    let compares = matches!(
        instruction.mnemonic(),
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq
    );
    let size = instruction.memory_size().size();
    let aligned =
        |at: u64| at.is_multiple_of(size as u64) || host.registers.rflags & rflags::AC == 0;
    let lost = |operand| {
        let address = operand_address(&instruction, operand, &host.registers);
        address.is_some_and(|at| !is_readable(at, size) || !aligned(at))
    };
    compares && lost(0) && lost(1)
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
    found.bytes(DATA, &*h, &*e);
}

/// Flags that may differ.
#[derive(Clone, Copy, Debug, Default)]
struct Ignored {
    rflags: u64,
    fsw: u16,
    /// All of x87 but MXCSR.
    x87: bool,
}

/// Flags that some instruction of `case` leaves undefined, or of a block may.
fn undefined_flags(case: &Case) -> Ignored {
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
        .fold(0, |bits, e| bits | undefined(&e.instruction));
    let chosen = |name: u32| bits & name != 0;
    Ignored {
        rflags: in_rflags(bits) | case.defined_flags.others(),
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
