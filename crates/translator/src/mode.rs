//! What the translation of an instruction depends on besides its bytes.

use belljar_interpreter::mmu::{alignment_checked, set_of};
use belljar_interpreter::tlb::Set;
use belljar_x86::bits::{cr0, cr4};
use belljar_x86::{Access, CpuState};

/// Which jump cache code uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// 64-bit code of the supervisor.
    Supervisor,
    /// The same while AC is set.
    SupervisorAc,
    /// 64-bit code of programs.
    User,
}

/// A mode in which code is translated. Others are the interpreter's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mode(u8);

impl Mode {
    const SET: u8 = 3;
    const SSE: u8 = 1 << 2;
    const AVX: u8 = 1 << 3;
    const COUNTING: u8 = 1 << 4;
    const NARROW: u8 = 1 << 5;

    /// The mode of `cpu`; `None` if its code is not translated. AVX is enabled if XCR0 has all bits
    /// of `avx`. `counting` code counts its instructions.
    pub fn of(cpu: &CpuState, avx: u64, counting: bool) -> Option<Self> {
        if !cpu.code64() || alignment_checked(cpu) {
            return None;
        }
        let mut mode = set_of(cpu, Access::Read) as u8;
        let sse = cr4::OSFXSR | cr4::OSXMMEXCPT;
        if cpu.cr0 & (cr0::TS | cr0::EM) == 0 && cpu.cr4 & sse == sse {
            mode |= Self::SSE;
            if cpu.cr4 & cr4::OSXSAVE != 0 && cpu.xcr0 & avx == avx {
                mode |= Self::AVX;
            }
        }
        if counting {
            mode |= Self::COUNTING;
        }
        Some(Self(mode))
    }

    /// The TLB's set for data.
    pub const fn set(self) -> Set {
        match self.0 & Self::SET {
            0 => Set::Supervisor,
            1 => Set::SupervisorAc,
            _ => Set::User,
        }
    }

    /// Which jump cache the code uses.
    pub const fn space(self) -> Space {
        match self.set() {
            Set::SupervisorAc => Space::SupervisorAc,
            Set::User => Space::User,
            _ => Space::Supervisor,
        }
    }

    /// Whether SSE instructions are enabled.
    pub const fn sse(self) -> bool {
        self.0 & Self::SSE != 0
    }

    /// Whether AVX and AVX-512 instructions are enabled, as far as the model has them.
    pub const fn avx(self) -> bool {
        self.0 & Self::AVX != 0
    }

    /// Whether the code counts its instructions.
    pub const fn counting(self) -> bool {
        self.0 & Self::COUNTING != 0
    }

    /// The mode without its privilege.
    #[must_use]
    pub const fn habits(self) -> Self {
        Self(self.0 & !(Self::SET | Self::NARROW))
    }

    /// Whether every access checks for itself.
    pub const fn is_narrow(self) -> bool {
        self.0 & Self::NARROW != 0
    }

    /// The mode in which every access checks for itself.
    #[must_use]
    pub const fn narrow(self) -> Self {
        Self(self.0 | Self::NARROW)
    }

    /// The mode in which accesses share checks.
    #[must_use]
    pub const fn wide(self) -> Self {
        Self(self.0 & !Self::NARROW)
    }

    /// Whether code is translated so that it runs wherever its page is mapped: programs and their
    /// libraries lie at other addresses in every process.
    pub const fn is_relative(self) -> bool {
        matches!(self.space(), Space::User)
    }

    /// The supervisor's mode with AC set or clear.
    #[must_use]
    pub const fn with_access(self, set: bool) -> Self {
        let to = if set {
            Set::SupervisorAc
        } else {
            Set::Supervisor
        };
        Self(self.0 & !Self::SET | to as u8)
    }

    /// The mode as a small number.
    pub const fn number(self) -> u8 {
        self.0
    }
}
