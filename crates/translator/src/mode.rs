//! What the translation of an instruction depends on besides its bytes.

use belljar_interpreter::mmu::{alignment_checked, set_of};
use belljar_interpreter::tlb::Set;
use belljar_x86::bits::{cr0, cr4};
use belljar_x86::{Access, CpuState, Gpr, Seg, Segment};
use iced_x86::Register;

/// Which jump cache code uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// 64-bit code of the supervisor.
    Supervisor,
    /// The same while AC is set.
    SupervisorAc,
    /// 64-bit code of programs.
    User,
    /// 32-bit code of the supervisor.
    Supervisor32,
    /// The same while AC is set.
    SupervisorAc32,
    /// 32-bit code of programs.
    User32,
}

impl Space {
    /// The spaces between which generated code changes by itself, of which this is one.
    pub const fn family(self) -> &'static [Self] {
        match self {
            Self::Supervisor | Self::SupervisorAc | Self::User => {
                &[Self::Supervisor, Self::SupervisorAc, Self::User]
            }
            Self::Supervisor32 | Self::SupervisorAc32 => {
                &[Self::Supervisor32, Self::SupervisorAc32]
            }
            Self::User32 => &[Self::User32],
        }
    }
}

/// A mode in which code is translated. Others are the interpreter's.
///
/// 32-bit code is translated if CS and SS are flat (base 0, limit 4 GiB) and the stack pointer has 32
/// bits, so that neither fetches nor the stack need a check of their segment. Which of the other
/// segments can be used without one is part of the mode; instructions that use others are the
/// interpreter's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mode(u16);

impl Mode {
    const SET: u16 = 3;
    const SSE: u16 = 1 << 2;
    const AVX: u16 = 1 << 3;
    const COUNTING: u16 = 1 << 4;
    const NARROW: u16 = 1 << 5;
    const CODE32: u16 = 1 << 6;
    /// DS and ES are flat.
    const DS: u16 = 1 << 7;
    const ES: u16 = 1 << 8;
    /// FS and GS have a limit of 4 GiB.
    const FS: u16 = 1 << 9;
    const GS: u16 = 1 << 10;
    /// Of 64-bit code, for which segments do not count: its accesses go through windows.
    const WINDOWS: u16 = Self::DS;

    /// The mode of `cpu`; `None` if its code is not translated. AVX is enabled if XCR0 has all bits
    /// of `avx`. `counting` code counts its instructions.
    pub fn of(cpu: &CpuState, avx: u64, counting: bool) -> Option<Self> {
        if alignment_checked(cpu) {
            return None;
        }
        let mut mode = set_of(cpu, Access::Read) as u16;
        if !cpu.code64() {
            mode |= segments(cpu)?;
        }
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
            0 => Set::User,
            1 => Set::Supervisor,
            _ => Set::SupervisorAc,
        }
    }

    /// Which jump cache the code uses.
    pub const fn space(self) -> Space {
        match (self.set(), self.is_code32()) {
            (Set::SupervisorAc, false) => Space::SupervisorAc,
            (Set::User, false) => Space::User,
            (_, false) => Space::Supervisor,
            (Set::SupervisorAc, true) => Space::SupervisorAc32,
            (Set::User, true) => Space::User32,
            (_, true) => Space::Supervisor32,
        }
    }

    /// Whether it is code of programs.
    pub const fn is_user(self) -> bool {
        matches!(self.set(), Set::User)
    }

    /// Whether it is 32-bit code; else it is 64-bit code.
    pub const fn is_code32(self) -> bool {
        self.0 & Self::CODE32 != 0
    }

    /// Whether accesses through `segment` need no check of it: all of 64-bit code, and in 32-bit code
    /// those of flat segments, and of FS and GS if all that matters of them is the base.
    pub fn is_free(self, segment: Register) -> bool {
        let bit = match segment {
            _ if !self.is_code32() => return true,
            Register::SS => return true,
            Register::DS => Self::DS,
            Register::ES => Self::ES,
            Register::FS => Self::FS,
            Register::GS => Self::GS,
            // Reads alone, if at all: rare.
            _ => return false,
        };
        self.0 & bit != 0
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

    /// The mode without its privilege, and what goes with that.
    #[must_use]
    pub const fn habits(self) -> Self {
        Self(self.with_windows(false).0 & !(Self::SET | Self::NARROW))
    }

    /// Whether the code's accesses go through windows.
    pub const fn has_windows(self) -> bool {
        !self.is_code32() && self.0 & Self::WINDOWS != 0
    }

    /// The same mode of 64-bit code with windows or without; 32-bit code never has any.
    #[must_use]
    pub const fn with_windows(self, windows: bool) -> Self {
        match (self.is_code32(), windows) {
            (true, _) => self,
            (false, true) => Self(self.0 | Self::WINDOWS),
            (false, false) => Self(self.0 & !Self::WINDOWS),
        }
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
        self.is_user()
    }

    /// The supervisor's mode with AC set or clear.
    #[must_use]
    pub const fn with_access(self, set: bool) -> Self {
        self.with_set(if set {
            Set::SupervisorAc
        } else {
            Set::Supervisor
        })
    }

    /// The mode of programs, without windows.
    #[must_use]
    pub const fn of_programs(self) -> Self {
        self.with_set(Set::User)
    }

    const fn with_set(self, set: Set) -> Self {
        Self(self.with_windows(false).0 & !Self::SET | set as u16)
    }

    /// The mode as a small number.
    pub const fn number(self) -> u16 {
        self.0
    }
}

/// The mode's bits for 32-bit code and its segments; `None` if the code is not translated.
fn segments(cpu: &CpuState) -> Option<u16> {
    let (cs, ss) = (cpu.seg(Seg::Cs), cpu.seg(Seg::Ss));
    let protected = cpu.protected() && !cpu.virtual_8086() && cpu.code_bits() == 32;
    let flat_code = cs.usable && cs.base == 0 && cs.limit == u32::MAX;
    let flat_stack = is_whole(ss) && ss.base == 0 && ss.has(Segment::BIG);
    // CLI, STI and POPF are translated for CPL 0 and 3. The upper half of RSP, which stays as it is
    // while ESP is the stack pointer, is one of programs that 64-bit code has left there.
    let usual = matches!(cpu.cpl, 0 | 3) && cpu.gpr[Gpr::Rsp as usize] >> 32 == 0;
    if !(protected && flat_code && flat_stack && usual) {
        return None;
    }
    let bit = |seg: Seg, based: bool, bit: u16| {
        let segment = cpu.seg(seg);
        if is_whole(segment) && (based || segment.base == 0) {
            bit
        } else {
            0
        }
    };
    Some(
        Mode::CODE32
            | bit(Seg::Ds, false, Mode::DS)
            | bit(Seg::Es, false, Mode::ES)
            | bit(Seg::Fs, true, Mode::FS)
            | bit(Seg::Gs, true, Mode::GS),
    )
}

/// Whether `segment` is one of data that can be read and written up to 4 GiB.
const fn is_whole(segment: &Segment) -> bool {
    segment.usable
        && segment.limit == u32::MAX
        && segment.has(Segment::WRITABLE)
        && !segment.has(Segment::CODE)
        && !segment.has(Segment::EXPAND_DOWN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use belljar_x86::bits::rflags;

    fn segment(rights: u16) -> Segment {
        Segment {
            selector: 8,
            rights: rights | Segment::PRESENT | Segment::S | Segment::BIG,
            limit: u32::MAX,
            base: 0,
            usable: true,
        }
    }

    /// A processor that runs 32-bit code with flat segments.
    fn flat() -> CpuState {
        let mut cpu = CpuState::reset(0);
        cpu.cr0 |= cr0::PE;
        cpu.segments = [segment(Segment::WRITABLE); 6];
        cpu.segments[Seg::Cs as usize] = segment(Segment::CODE | Segment::WRITABLE);
        cpu.gpr[Gpr::Rsp as usize] = 0x1000;
        cpu
    }

    fn mode(change: impl FnOnce(&mut CpuState)) -> Option<Mode> {
        let mut cpu = flat();
        change(&mut cpu);
        Mode::of(&cpu, 0, false)
    }

    #[test]
    fn flat_32_bit_code_is_translated() {
        let mode = mode(|_| ()).unwrap();
        assert!(mode.is_code32() && !mode.is_user());
        for free in [Register::DS, Register::ES, Register::SS, Register::GS] {
            assert!(mode.is_free(free), "{free:?}");
        }
        assert!(!mode.is_free(Register::CS));
    }

    #[test]
    fn other_code_and_stack_segments_are_the_interpreters() {
        let set = |seg: Seg, change: fn(&mut Segment)| {
            mode(|cpu| change(&mut cpu.segments[seg as usize])).is_none()
        };
        for seg in [Seg::Cs, Seg::Ss] {
            assert!(set(seg, |s| s.base = 0x1000));
            assert!(set(seg, |s| s.limit = 0xf_ffff));
            assert!(set(seg, |s| s.rights &= !Segment::BIG));
            assert!(set(seg, |s| s.usable = false));
        }
        assert!(set(Seg::Ss, |s| s.rights |= Segment::EXPAND_DOWN));
        assert!(mode(|cpu| cpu.cr0 &= !cr0::PE).is_none());
        assert!(mode(|cpu| cpu.rflags |= rflags::VM).is_none());
        assert!(mode(|cpu| cpu.gpr[Gpr::Rsp as usize] |= 1 << 32).is_none());
        assert!(mode(|cpu| cpu.cpl = 1).is_none());
    }

    #[test]
    fn data_segments_that_are_not_flat_are_not_free() {
        let free = |seg: Seg, register, change: fn(&mut Segment)| {
            mode(|cpu| change(&mut cpu.segments[seg as usize]))
                .unwrap()
                .is_free(register)
        };
        let pairs = [(Seg::Ds, Register::DS), (Seg::Es, Register::ES)];
        let based = [(Seg::Fs, Register::FS), (Seg::Gs, Register::GS)];
        for (seg, register) in pairs.into_iter().chain(based) {
            assert!(!free(seg, register, |s| s.limit = 0xffff));
            assert!(!free(seg, register, |s| s.rights &= !Segment::WRITABLE));
            assert!(!free(seg, register, |s| s.rights |= Segment::CODE));
            assert!(!free(seg, register, |s| s.usable = false));
        }
        for (seg, register) in pairs {
            assert!(!free(seg, register, |s| s.base = 16));
        }
        for (seg, register) in based {
            assert!(free(seg, register, |s| s.base = 16));
        }
    }
}
