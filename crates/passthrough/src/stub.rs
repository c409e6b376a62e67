//! One compiled instruction.

use crate::Memory;
use crate::elements::Elements;
use crate::host;
use crate::masked::Masking;
use belljar_x86::bits::{cr0, cr4, rflags, xstate};
use belljar_x86::paging::is_canonical;
use belljar_x86::{CpuState, Exception};

/// Flags of x87's status word, and masks of its control word, for its exceptions.
const X87_EXCEPTIONS: u16 = 0x3f;

/// Which part of the processor an instruction belongs to: it decides what must be enabled for it.
/// SDM 3A, 13.1; SDM 2A, 2.4 and 2.8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// General-purpose registers and flags only: always enabled.
    Integer,
    /// The same with VEX's encoding: #UD in real mode and virtual-8086 mode.
    IntegerVex,
    /// x87: #NM if CR0.EM or CR0.TS.
    X87,
    /// WAIT: #NM only if both CR0.MP and CR0.TS.
    Wait,
    /// MMX registers: #UD if CR0.EM, #NM if CR0.TS.
    Mmx,
    /// Legacy SSE: #UD if CR0.EM or not CR4.OSFXSR, #NM if CR0.TS.
    Sse,
    /// VEX: #UD in real and virtual-8086 mode and unless CR4.OSXSAVE and XCR0 has SSE and AVX, #NM
    /// if CR0.TS.
    Avx,
    /// EVEX or opmask registers: #UD in real and virtual-8086 mode and unless CR4.OSXSAVE and XCR0
    /// has SSE, AVX and all of AVX-512, #NM if CR0.TS.
    Avx512,
}

/// What runs an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// The host, from the entry.
    Host,
    /// LDMXCSR, which must check against the guest's mask.
    LoadMxcsr,
    /// VZEROUPPER and VZEROALL: the first `registers` vector registers keep their first `keep`
    /// words of 64 bits.
    ZeroUpper { registers: u8, keep: u8 },
    /// MASKMOVDQU and MASKMOVQ: bytes of the vector or MMX register `data` where those of `mask`
    /// have their signs set. MASKMOVQ has an entry, which makes x87's registers MMX registers.
    MaskMove { data: u8, mask: u8, mmx: bool },
    /// A gather.
    Gather(Elements),
    /// A scatter.
    Scatter(Elements),
}

/// A compiled instruction. It stays valid until its [`Stubs`](crate::Stubs) is reset; running it
/// later is refused.
#[derive(Clone, Copy, Debug)]
pub struct Stub {
    /// Offset in code memory.
    pub(crate) entry: u32,
    /// What [`Stubs`](crate::Stubs) it belongs to, and since which reset.
    pub(crate) generation: u32,
    pub(crate) work: Work,
    pub(crate) memory: Memory,
    pub(crate) masking: Option<Masking>,
    pub(crate) unit: Unit,
    /// What the operand's address must be a multiple of when alignment is checked.
    pub(crate) natural_alignment: u8,
    /// Whether the instruction changes anything but memory.
    pub(crate) has_effects: bool,
    /// Whether memory stays as it is if x87 finds an unmasked exception.
    pub(crate) x87_store: bool,
    /// Whether a pending exception of x87 comes first.
    pub(crate) waits: bool,
    /// Whether the instruction makes x87's registers MMX registers.
    pub(crate) mmx: bool,
    /// Whether x87's pointers become this instruction's.
    pub(crate) records_pointers: bool,
    /// What FOP becomes: the low 3 bits of the opcode and the ModR/M byte.
    pub(crate) x87_opcode: u16,
}

impl Stub {
    /// What memory the instruction touches.
    #[inline]
    pub const fn memory(&self) -> Memory {
        self.memory
    }

    /// Whether each element of the memory operand has an address of its own, which wraps at the
    /// address size: those of gathers and scatters, and of masked moves on some hosts.
    #[inline]
    pub fn wraps_elements(&self) -> bool {
        match self.memory {
            Memory::Elements { .. } => true,
            Memory::Masked { .. } => {
                self.masking.is_some_and(Masking::is_of_signs) && host::wraps_elements()
            }
            Memory::None | Memory::Whole { .. } => false,
        }
    }

    /// Which part of the processor the instruction belongs to.
    #[inline]
    pub const fn unit(&self) -> Unit {
        self.unit
    }

    /// Checks that the guest's system software has enabled the instruction's unit, and that no
    /// exception of x87 is pending that the instruction waits for: it comes before all faults of
    /// the memory operand. SDM 1, 8.6.
    ///
    /// # Errors
    /// #UD, #NM or #MF.
    #[inline]
    pub fn check_enabled(&self, cpu: &CpuState) -> Result<(), Exception> {
        let task_switched = cpu.cr0 & cr0::TS != 0;
        let (exists, available) = match self.unit {
            Unit::Integer => return Ok(()),
            Unit::IntegerVex => (vex_exists(cpu), true),
            Unit::X87 => (true, cpu.cr0 & (cr0::EM | cr0::TS) == 0),
            Unit::Wait => (true, !(task_switched && cpu.cr0 & cr0::MP != 0)),
            Unit::Mmx => (cpu.cr0 & cr0::EM == 0, !task_switched),
            Unit::Sse => {
                let enabled = cpu.cr0 & cr0::EM == 0 && cpu.cr4 & cr4::OSFXSR != 0;
                (enabled, !task_switched)
            }
            Unit::Avx => (
                vex_exists(cpu) && has_xstate(cpu, xstate::SSE | xstate::AVX),
                !task_switched,
            ),
            Unit::Avx512 => (
                vex_exists(cpu) && has_xstate(cpu, xstate::SSE | xstate::AVX | xstate::AVX512),
                !task_switched,
            ),
        };
        if !exists {
            return Err(Exception::invalid_opcode());
        }
        if !available {
            return Err(Exception::device_not_available());
        }
        let x87 = &cpu.vector.x87;
        if self.waits && x87.fsw & !x87.fcw & X87_EXCEPTIONS != 0 {
            return Err(Exception::x87());
        }
        Ok(())
    }

    /// Checks the operand's linear address for instructions that demand alignment. This comes
    /// before any page fault.
    ///
    /// # Errors
    /// #GP(0) if `address` is not aligned as the instruction demands, #AC if the program wants its
    /// accesses aligned and this one is not; neither if a mask keeps it from touching any memory.
    #[inline]
    pub fn check_alignment(&self, cpu: &CpuState, address: u64) -> Result<(), Exception> {
        let alignment = match self.memory {
            Memory::Whole { alignment, .. } | Memory::Masked { alignment, .. } => alignment,
            Memory::None | Memory::Elements { .. } => 1,
        };
        let misaligned = |to: u8| address & u64::from(to).wrapping_sub(1) != 0;
        if misaligned(alignment) && self.touches_memory(cpu) {
            return Err(Exception::general_protection(0));
        }
        // SDM 3A, 6.15, interrupt 17.
        let checked = cpu.cpl == 3 && cpu.rflags & rflags::AC != 0 && cpu.cr0 & cr0::AM != 0;
        if checked
            && misaligned(self.natural_alignment)
            && (!cpu.long_mode() || self.lies_canonical(address))
            && self.touches_memory(cpu)
        {
            return Err(Exception::alignment_check());
        }
        Ok(())
    }

    #[cold]
    fn lies_canonical(&self, address: u64) -> bool {
        let size = match self.memory {
            Memory::Whole { size, .. } | Memory::Masked { size, .. } => u64::from(size),
            Memory::None | Memory::Elements { .. } => 1,
        };
        is_canonical(address) && is_canonical(address.wrapping_add(size - 1))
    }

    #[cold]
    fn touches_memory(&self, cpu: &CpuState) -> bool {
        match (self.memory, self.masking) {
            (Memory::Masked { size, .. }, Some(masking)) => {
                masking.checks_all || masking.touched(cpu, usize::from(size)) != 0
            }
            _ => true,
        }
    }

    /// Records the pointers that x87 keeps of its last non-control instruction, for [`Unit::X87`]
    /// after a run without exception: `rip` is the instruction's address within CS, `data` its
    /// memory operand's effective address within its segment (ignored if it has none). It does
    /// nothing for instructions that leave the pointers alone. SDM 1, 8.1.8.
    #[inline]
    pub fn record_x87_pointers(&self, cpu: &mut CpuState, rip: u64, data: u64) {
        if !self.records_pointers {
            return;
        }
        let x87 = &mut cpu.vector.x87;
        x87.fip = rip;
        x87.fop = self.x87_opcode;
        if self.memory != Memory::None {
            x87.fdp = data;
        }
    }
}

/// Whether VEX and EVEX prefixes mean what they mean in protected mode.
fn vex_exists(cpu: &CpuState) -> bool {
    cpu.protected() && !cpu.virtual_8086()
}

fn has_xstate(cpu: &CpuState, components: u64) -> bool {
    cpu.cr4 & cr4::OSXSAVE != 0 && cpu.xcr0 & components == components
}

/// What FOP becomes after the instruction `encoding`: 0 unless it is x87's. SDM 1, 8.1.9.
pub(crate) fn x87_opcode(encoding: &[u8]) -> u16 {
    let is_prefix = |byte: &u8| {
        matches!(
            byte,
            0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3
        ) || matches!(byte, 0x40..=0x4f)
    };
    let mut bytes = encoding.iter().skip_while(|byte| is_prefix(byte));
    match (bytes.next(), bytes.next()) {
        (Some(&opcode @ 0xd8..=0xdf), Some(&modrm)) => {
            u16::from(opcode & 7) << 8 | u16::from(modrm)
        }
        _ => 0,
    }
}
