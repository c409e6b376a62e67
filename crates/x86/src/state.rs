//! The state of one logical processor.

use crate::Event;
use crate::bits::{cr0, debug, efer, rflags};
use serde::{Deserialize, Serialize};

/// General-purpose registers by their encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Gpr {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

/// Segment registers by their encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Seg {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

/// A segment register with its hidden part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// The visible part.
    pub selector: u16,
    /// Rights as in a descriptor's second word shifted right by 8 (SDM 3A, 3.4.5): type in bits 0
    /// to 3, S 4, DPL 5 and 6, P 7, AVL 12, L 13, D/B 14, G 15. Bits 8 to 11 are 0.
    pub rights: u16,
    /// Limit in bytes: the last valid offset (the granularity is already applied).
    pub limit: u32,
    /// Linear base address.
    pub base: u64,
    /// Whether the register may be used; loading a null selector clears it.
    pub usable: bool,
}

impl Segment {
    /// Bit of [`rights`](Self::rights): the accessed bit of a code or data segment.
    pub const ACCESSED: u16 = 1;
    /// Bit: writable data, or readable code.
    pub const WRITABLE: u16 = 1 << 1;
    /// Bit: expand-down data, or conforming code.
    pub const EXPAND_DOWN: u16 = 1 << 2;
    /// Bit: code.
    pub const CODE: u16 = 1 << 3;
    /// Bit: code or data, not a system segment.
    pub const S: u16 = 1 << 4;
    /// Bit: present.
    pub const PRESENT: u16 = 1 << 7;
    /// Bit: 64-bit code.
    pub const LONG: u16 = 1 << 13;
    /// Bit: default operand size is 32 bits; big stack.
    pub const BIG: u16 = 1 << 14;
    /// Bit: the limit counts pages.
    pub const GRANULARITY: u16 = 1 << 15;

    /// A segment as real mode holds it.
    pub const fn real_mode(selector: u16, rights: u16) -> Self {
        Self {
            selector,
            rights,
            limit: 0xffff,
            base: (selector as u64) << 4,
            usable: true,
        }
    }

    /// Descriptor privilege level.
    pub const fn dpl(&self) -> u8 {
        (self.rights >> 5) as u8 & 3
    }

    /// Requested privilege level of the selector.
    pub const fn rpl(&self) -> u8 {
        self.selector as u8 & 3
    }

    /// Whether `bit` of the rights is set.
    pub const fn has(&self, bit: u16) -> bool {
        self.rights & bit != 0
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableRegister {
    /// Linear base address.
    pub base: u64,
    /// Last valid offset.
    pub limit: u16,
}

/// The first 160 bytes of the FXSAVE image (64-bit form), in its layout: x87 control and registers.
/// SDM 1, 10.5.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C, align(16))]
pub struct X87 {
    /// Control word.
    pub fcw: u16,
    /// Status word.
    pub fsw: u16,
    /// Abridged tag word: a bit per *physical* register, set if it is not empty.
    pub ftw: u8,
    /// Zero.
    pub reserved: u8,
    /// Last opcode, 11 bits.
    pub fop: u16,
    /// Last instruction pointer.
    pub fip: u64,
    /// Last data pointer.
    pub fdp: u64,
    /// MXCSR, which belongs to SSE but lies here in the image.
    pub mxcsr: u32,
    /// The mask of valid MXCSR bits, as the image holds it.
    pub mxcsr_mask: u32,
    /// ST0 to ST7 in stack order, 80 bits each in 16 bytes.
    pub st: [[u64; 2]; 8],
}

impl Default for X87 {
    /// As after power-up and FNINIT.
    fn default() -> Self {
        Self {
            fcw: 0x37f,
            fsw: 0,
            ftw: 0,
            reserved: 0,
            fop: 0,
            fip: 0,
            fdp: 0,
            mxcsr: 0x1f80,
            mxcsr_mask: 0xffff,
            st: [[0; 2]; 8],
        }
    }
}

/// x87, SSE, AVX and AVX-512 state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C, align(64))]
pub struct VectorState {
    /// ZMM0 to ZMM31; XMM and YMM are their low parts.
    pub zmm: [[u64; 8]; 32],
    /// Opmask registers.
    pub k: [u64; 8],
    /// x87 and MXCSR.
    pub x87: X87,
}

/// Model-specific registers that belong to the core. Those of the local APIC, the TSC deadline and
/// the paravirtual ones belong to the board.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub tsc_aux: u64,
    /// What WRMSR of TSC and TSC_ADJUST add to the machine's counter.
    pub tsc_adjust: u64,
    pub pat: u64,
    pub misc_enable: u64,
    pub mtrr_def_type: u64,
    pub mtrr_fixed: [u64; 11],
    /// Base and mask of each variable range.
    pub mtrr_variable: [[u64; 2]; 8],
    pub spec_ctrl: u64,
    pub debugctl: u64,
    pub mcg_status: u64,
    /// AMD: HWCR.
    pub hwcr: u64,
    /// AMD: SYSCFG.
    pub syscfg: u64,
    /// AMD: DE_CFG.
    pub de_cfg: u64,
}

/// What blocks events after the previous instruction. SDM 3A, 6.8.3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Shadow {
    /// Nothing.
    #[default]
    None,
    /// STI that set IF: external interrupts wait for one instruction.
    Sti,
    /// MOV SS or POP SS: interrupts, NMIs and debug traps wait for one instruction.
    MovSs,
}

/// What the processor is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    /// Executing instructions.
    #[default]
    Running,
    /// Stopped by HLT until an interrupt.
    Halted,
    /// After INIT: waiting for a start-up IPI.
    WaitForSipi,
    /// After a triple fault.
    Shutdown,
}

/// Everything that one logical processor holds, apart from its local APIC, which is a device of the
/// board.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C, align(64))]
pub struct CpuState {
    /// General-purpose registers, indexed by [`Gpr`].
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
    /// x87 and vector registers.
    pub vector: VectorState,
    /// Segment registers, indexed by [`Seg`].
    pub segments: [Segment; 6],
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table register.
    pub gdtr: TableRegister,
    /// Interrupt descriptor table register.
    pub idtr: TableRegister,
    /// Control register 0.
    pub cr0: u64,
    /// Control register 2: the page fault's address.
    pub cr2: u64,
    /// Control register 3.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended feature enable register.
    pub efer: u64,
    /// Extended control register 0.
    pub xcr0: u64,
    /// IA32_XSS.
    pub xss: u64,
    /// The page-directory-pointer entries that PAE paging caches at MOV CR3.
    pub pdpte: [u64; 4],
    /// DR0 to DR3.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// Model-specific registers.
    pub msr: Msrs,
    /// Current privilege level.
    pub cpl: u8,
    /// What blocks events after the previous instruction.
    pub shadow: Shadow,
    /// Whether NMIs wait for IRET.
    pub nmi_blocked: bool,
    /// DR6 bits of debug traps that wait for the end of the present instruction.
    pub pending_debug: u64,
    /// An event whose delivery has begun but must be redone (for engines that stop within a
    /// delivery).
    pub pending_event: Option<Event>,
    /// What the processor is doing.
    pub activity: Activity,
}

impl CpuState {
    /// The state after reset, as on power-up. SDM 3A, table 9-1. `signature` is what EDX holds:
    /// CPUID leaf 1's EAX.
    pub fn reset(signature: u32) -> Self {
        let data = Segment::PRESENT | Segment::S | Segment::WRITABLE | Segment::ACCESSED;
        let mut cpu = Self {
            gpr: [0; 16],
            rip: 0xfff0,
            rflags: rflags::FIXED,
            vector: VectorState {
                x87: X87 {
                    fcw: 0x40,
                    ..X87::default()
                },
                ..VectorState::default()
            },
            segments: [Segment::real_mode(0, data); 6],
            ldtr: Segment::real_mode(0, Segment::PRESENT | 2),
            tr: Segment::real_mode(0, Segment::PRESENT | 0xb),
            gdtr: TableRegister {
                base: 0,
                limit: 0xffff,
            },
            idtr: TableRegister {
                base: 0,
                limit: 0xffff,
            },
            cr0: cr0::CD | cr0::NW | cr0::ET,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            efer: 0,
            xcr0: 1,
            xss: 0,
            pdpte: [0; 4],
            dr: [0; 4],
            dr6: debug::DR6_FIXED,
            dr7: debug::DR7_FIXED,
            msr: Msrs {
                pat: 0x0007_0406_0007_0406,
                misc_enable: 1,
                ..Msrs::default()
            },
            cpl: 0,
            shadow: Shadow::None,
            nmi_blocked: false,
            pending_debug: 0,
            pending_event: None,
            activity: Activity::Running,
        };
        cpu.gpr[Gpr::Rdx as usize] = u64::from(signature);
        cpu.segments[Seg::Cs as usize] = Segment {
            base: 0xffff_0000,
            ..Segment::real_mode(0xf000, data | Segment::CODE)
        };
        cpu
    }

    /// The segment register `seg`.
    #[inline]
    pub const fn seg(&self, seg: Seg) -> &Segment {
        &self.segments[seg as usize]
    }

    /// Whether protected mode is on.
    #[inline]
    pub const fn protected(&self) -> bool {
        self.cr0 & cr0::PE != 0
    }

    /// Whether long mode is active (64-bit or compatibility mode).
    #[inline]
    pub const fn long_mode(&self) -> bool {
        self.efer & efer::LMA != 0
    }

    /// Whether the processor runs in virtual-8086 mode.
    #[inline]
    pub const fn virtual_8086(&self) -> bool {
        self.rflags & rflags::VM != 0
    }

    /// Whether the processor runs 64-bit code.
    #[inline]
    pub const fn code64(&self) -> bool {
        self.long_mode() && self.seg(Seg::Cs).has(Segment::LONG)
    }

    /// Width of the code segment's default addresses and operands as decoders name it: 16, 32 or
    /// 64.
    #[inline]
    pub const fn code_bits(&self) -> u32 {
        if self.code64() {
            64
        } else if self.seg(Seg::Cs).has(Segment::BIG) {
            32
        } else {
            16
        }
    }

    /// Width of the stack pointer in bits: 16, 32 or 64.
    #[inline]
    pub const fn stack_bits(&self) -> u32 {
        if self.code64() {
            64
        } else if self.seg(Seg::Ss).has(Segment::BIG) {
            32
        } else {
            16
        }
    }
}
