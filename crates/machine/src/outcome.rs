//! How a machine ends.

use crate::MachineError;
use belljar_engine::VcpuId;
use belljar_x86::{CpuState, Seg, Segment};
use std::fmt;

/// Why a machine has ended.
#[derive(Debug)]
pub enum Outcome {
    /// The guest turned the power off.
    PoweredOff,
    /// The guest reset a machine that is not to be started anew (`no-reboot`).
    Reset,
    /// A vCPU shut down on a triple fault.
    Crashed(Box<Crash>),
    /// The guest wrote to the debug-exit port; the status that it chose.
    DebugExit(u8),
    /// It was stopped from outside.
    Stopped,
    /// Belljar itself could not go on.
    Failed(MachineError),
}

/// The vCPU that crashed a machine, as it stood. [`Display`](fmt::Display) is the register dump.
#[derive(Debug)]
pub struct Crash {
    /// The vCPU.
    pub vcpu: VcpuId,
    /// Its state at the instruction that caused the last fault.
    pub state: CpuState,
}

const SEGMENTS: [(&str, Seg); 6] = [
    ("cs", Seg::Cs),
    ("ss", Seg::Ss),
    ("ds", Seg::Ds),
    ("es", Seg::Es),
    ("fs", Seg::Fs),
    ("gs", Seg::Gs),
];
/// Names of the general-purpose registers, indexed by [`Gpr`](belljar_x86::Gpr).
const GPRS: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13",
    "r14", "r15",
];

fn write_segment(f: &mut fmt::Formatter<'_>, name: &str, segment: &Segment) -> fmt::Result {
    writeln!(
        f,
        "{name:<4} {:04x}  base {:016x}  limit {:08x}  rights {:04x}{}",
        segment.selector,
        segment.base,
        segment.limit,
        segment.rights,
        if segment.usable { "" } else { "  unusable" }
    )
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpu = &self.state;
        let mode = match (cpu.long_mode(), cpu.protected(), cpu.virtual_8086()) {
            (true, ..) if cpu.code64() => "64-bit",
            (true, ..) => "compatibility",
            (_, true, true) => "virtual-8086",
            (_, true, false) => "protected",
            _ => "real",
        };
        writeln!(
            f,
            "triple fault on vCPU {} in {mode} mode at privilege level {}",
            self.vcpu, cpu.cpl
        )?;
        writeln!(f, "rip  {:016x}  rflags {:016x}", cpu.rip, cpu.rflags)?;
        for (index, (name, value)) in GPRS.iter().zip(cpu.gpr).enumerate() {
            let end = if index % 4 == 3 { "\n" } else { "  " };
            write!(f, "{name:<4} {value:016x}{end}")?;
        }
        for (name, seg) in SEGMENTS {
            write_segment(f, name, cpu.seg(seg))?;
        }
        write_segment(f, "ldtr", &cpu.ldtr)?;
        write_segment(f, "tr", &cpu.tr)?;
        writeln!(
            f,
            "gdtr base {:016x}  limit {:04x}",
            cpu.gdtr.base, cpu.gdtr.limit
        )?;
        writeln!(
            f,
            "idtr base {:016x}  limit {:04x}",
            cpu.idtr.base, cpu.idtr.limit
        )?;
        writeln!(
            f,
            "cr0  {:016x}  cr2  {:016x}  cr3  {:016x}  cr4  {:016x}",
            cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4
        )?;
        write!(
            f,
            "efer {:016x}  dr6  {:016x}  dr7  {:016x}  xcr0 {:016x}",
            cpu.efer, cpu.dr6, cpu.dr7, cpu.xcr0
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dump_shows_every_register_once() {
        let mut state = CpuState::reset(0);
        for (index, value) in state.gpr.iter_mut().enumerate() {
            *value = 0xabc0_0000 + index as u64;
        }
        let dump = Crash { vcpu: 3, state }.to_string();
        assert!(
            dump.starts_with("triple fault on vCPU 3 in real mode"),
            "{dump}"
        );
        for index in 0..16 {
            let value = format!("{:016x}", 0xabc0_0000_u64 + index);
            assert_eq!(dump.matches(&value).count(), 1, "{dump}");
        }
        assert!(dump.contains("base 00000000ffff0000"), "{dump}");
    }
}
