//! Debug registers: who may touch them, and what their breakpoints match. SDM 3B, 18.2.

use crate::bits::{cr4, debug};
use crate::{CpuState, Exception};

/// Bits of DR6 that software may change.
const DR6_WRITABLE: u64 = 0xe00f;
/// Bits of DR7 that software may change: enables, LE, GE, GD, conditions and lengths.
const DR7_WRITABLE: u64 = 0xffff_23ff;
/// The local and global enable bits of the four breakpoints.
const DR7_ENABLES: u64 = 0xff;

/// What a breakpoint waits for: the R/W field of DR7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Execution,
    Write,
    /// Only with CR4.DE; without it the encoding is undefined and matches nothing.
    Io,
    ReadOrWrite,
}

/// One enabled breakpoint.
#[derive(Clone, Copy, Debug)]
struct Breakpoint {
    /// Its bit in DR6.
    bit: u64,
    condition: Condition,
    /// First address, aligned to the length.
    first: u64,
    length: u64,
}

impl Breakpoint {
    /// Whether any of `size` bytes from `address` lies in the breakpoint's range. Addresses wrap
    /// around.
    const fn overlaps(&self, address: u64, size: u64) -> bool {
        address.wrapping_sub(self.first) < self.length || self.first.wrapping_sub(address) < size
    }
}

/// The enabled breakpoints.
fn breakpoints(cpu: &CpuState) -> impl Iterator<Item = Breakpoint> {
    let (dr, dr7, extensions) = (cpu.dr, cpu.dr7, cpu.cr4 & cr4::DE != 0);
    (0..4_u32).filter_map(move |n| {
        if dr7 >> (2 * n) & 3 == 0 {
            return None;
        }
        let condition = match dr7 >> (16 + 4 * n) & 3 {
            0 => Condition::Execution,
            1 => Condition::Write,
            2 if extensions => Condition::Io,
            2 => return None,
            _ => Condition::ReadOrWrite,
        };
        // SDM 3B 18.2.4: 00 is one byte, 01 two, 10 eight, 11 four.
        let length = match dr7 >> (18 + 4 * n) & 3 {
            0 => 1,
            1 => 2,
            2 => 8,
            _ => 4,
        };
        Some(Breakpoint {
            bit: 1 << n,
            condition,
            first: dr[n as usize] & !(length - 1),
            length,
        })
    })
}

/// The union of the DR6 bits of the breakpoints that `matches` accepts, or `None` if there are
/// none.
fn matching(cpu: &CpuState, matches: impl Fn(&Breakpoint) -> bool) -> Option<u64> {
    let bits = breakpoints(cpu)
        .filter(matches)
        .fold(0, |bits, breakpoint| bits | breakpoint.bit);
    (bits != 0).then_some(bits)
}

/// Whether any breakpoint is enabled: if not, the functions that look for one need not be called.
#[inline]
pub const fn any_active(cpu: &CpuState) -> bool {
    cpu.dr7 & DR7_ENABLES != 0
}

/// The DR6 bits of the code breakpoints at `linear`, the address of an instruction's first byte.
/// RFLAGS.RF and the shadow of MOV SS, which hold the fault back, are the caller's business.
pub fn instruction_breakpoint(cpu: &CpuState, linear: u64) -> Option<u64> {
    // Only a length of one byte is defined for execution; the others match as that.
    let address = |b: &Breakpoint| cpu.dr[b.bit.trailing_zeros() as usize];
    matching(cpu, |b| {
        b.condition == Condition::Execution && address(b) == linear
    })
}

/// The DR6 bits of the data breakpoints that an access to `size` bytes at `linear` meets. The trap
/// is delivered after the instruction: the bits belong into [`CpuState::pending_debug`].
pub fn data_breakpoint(cpu: &CpuState, linear: u64, size: u64, write: bool) -> Option<u64> {
    matching(cpu, |b| match b.condition {
        Condition::ReadOrWrite => b.overlaps(linear, size),
        Condition::Write => write && b.overlaps(linear, size),
        Condition::Execution | Condition::Io => false,
    })
}

/// The DR6 bits of the I/O breakpoints that an access to `size` bytes at `port` meets; a trap like
/// that of data.
pub fn io_breakpoint(cpu: &CpuState, port: u16, size: u8) -> Option<u64> {
    matching(cpu, |b| {
        b.condition == Condition::Io && b.overlaps(u64::from(port), u64::from(size))
    })
}

/// The register that encoding `index` names, after the checks that MOV to and from debug registers
/// share. Privilege is the caller's business.
fn select(cpu: &CpuState, index: u8) -> Result<u8, Exception> {
    let index = match index {
        // SDM 3B 18.2.2: aliases of DR6 and DR7, unless debug extensions are on.
        4 | 5 if cpu.cr4 & cr4::DE != 0 => return Err(Exception::invalid_opcode()),
        4 | 5 => index + 2,
        0..8 => index,
        _ => return Err(Exception::invalid_opcode()),
    };
    if cpu.dr7 & debug::DR7_GD != 0 {
        return Err(Exception::debug(debug::DR6_BD));
    }
    Ok(index)
}

/// MOV from debug register `index` (0 to 15, as encoded). The privilege level is the caller's to
/// check.
///
/// # Errors
/// #UD for a register that does not exist, #DB for general detect.
pub fn read(cpu: &CpuState, index: u8) -> Result<u64, Exception> {
    Ok(match select(cpu, index)? {
        6 => cpu.dr6,
        7 => cpu.dr7,
        n => cpu.dr[usize::from(n & 3)],
    })
}

/// MOV to debug register `index` (0 to 15, as encoded). The privilege level is the caller's to
/// check; outside 64-bit mode `value` is zero-extended.
///
/// # Errors
/// #UD for a register that does not exist, #DB for general detect, #GP for high bits in DR6 and
/// DR7.
pub fn write(cpu: &mut CpuState, index: u8, value: u64) -> Result<(), Exception> {
    let index = select(cpu, index)?;
    if index >= 6 && value >> 32 != 0 {
        return Err(Exception::general_protection(0));
    }
    match index {
        6 => cpu.dr6 = value & DR6_WRITABLE | debug::DR6_FIXED,
        7 => cpu.dr7 = value & DR7_WRITABLE | debug::DR7_FIXED,
        n => cpu.dr[usize::from(n & 3)] = value,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A processor with breakpoint `n` at `address`, with its R/W and LEN fields.
    fn with_breakpoint(n: u32, address: u64, condition: u64, length: u64) -> CpuState {
        let mut cpu = CpuState::reset(0);
        cpu.dr[n as usize] = address;
        cpu.dr7 |= 1 << (2 * n) | condition << (16 + 4 * n) | length << (18 + 4 * n);
        cpu
    }

    #[test]
    fn a_code_breakpoint_matches_only_its_address() {
        let cpu = with_breakpoint(2, 0x1001, 0, 0);
        assert!(any_active(&cpu));
        assert_eq!(instruction_breakpoint(&cpu, 0x1001), Some(1 << 2));
        assert_eq!(instruction_breakpoint(&cpu, 0x1000), None);
        assert_eq!(data_breakpoint(&cpu, 0x1001, 1, true), None);
    }

    #[test]
    fn a_write_breakpoint_matches_any_byte_of_its_range_but_no_read() {
        let cpu = with_breakpoint(0, 0x2000, 1, 3);
        assert_eq!(data_breakpoint(&cpu, 0x2003, 1, true), Some(1));
        assert_eq!(data_breakpoint(&cpu, 0x1ffc, 8, true), Some(1));
        assert_eq!(data_breakpoint(&cpu, 0x2004, 4, true), None);
        assert_eq!(data_breakpoint(&cpu, 0x1fff, 1, true), None);
        assert_eq!(data_breakpoint(&cpu, 0x2000, 4, false), None);
    }

    #[test]
    fn an_unaligned_data_breakpoint_is_aligned_to_its_length() {
        let cpu = with_breakpoint(1, 0x2006, 3, 2);
        assert_eq!(data_breakpoint(&cpu, 0x2000, 1, false), Some(2));
        assert_eq!(data_breakpoint(&cpu, 0x2008, 1, false), None);
    }

    #[test]
    fn two_breakpoints_on_one_access_are_both_reported() {
        let mut cpu = with_breakpoint(0, 0x2000, 3, 0);
        cpu.dr[3] = 0x2001;
        cpu.dr7 |= 2 << 6 | 1 << 28;
        assert_eq!(data_breakpoint(&cpu, 0x2000, 2, true), Some(0b1001));
        assert_eq!(data_breakpoint(&cpu, 0x2000, 2, false), Some(0b0001));
    }

    #[test]
    fn an_io_breakpoint_needs_debug_extensions() {
        let mut cpu = with_breakpoint(0, 0x60, 2, 0);
        assert_eq!(io_breakpoint(&cpu, 0x60, 1), None);
        cpu.cr4 |= cr4::DE;
        assert_eq!(io_breakpoint(&cpu, 0x60, 1), Some(1));
        assert_eq!(io_breakpoint(&cpu, 0x5f, 2), Some(1));
        assert_eq!(io_breakpoint(&cpu, 0x61, 1), None);
    }

    #[test]
    fn dr4_and_dr5_alias_until_debug_extensions_are_on() {
        let mut cpu = CpuState::reset(0);
        write(&mut cpu, 5, 0x3).unwrap();
        assert_eq!(read(&cpu, 7), Ok(0x403));
        assert_eq!(read(&cpu, 4), Ok(debug::DR6_FIXED));
        cpu.cr4 |= cr4::DE;
        assert_eq!(read(&cpu, 4), Err(Exception::invalid_opcode()));
        assert_eq!(write(&mut cpu, 8, 0), Err(Exception::invalid_opcode()));
    }

    #[test]
    fn general_detect_traps_every_access() {
        let mut cpu = CpuState::reset(0);
        write(&mut cpu, 7, debug::DR7_GD).unwrap();
        assert_eq!(read(&cpu, 0), Err(Exception::debug(debug::DR6_BD)));
        assert_eq!(write(&mut cpu, 7, 0), Err(Exception::debug(debug::DR6_BD)));
    }

    #[test]
    fn reserved_bits_keep_their_fixed_values() {
        let mut cpu = CpuState::reset(0);
        write(&mut cpu, 6, 0).unwrap();
        assert_eq!(cpu.dr6, 0xffff_0ff0);
        write(&mut cpu, 6, 0xffff_ffff).unwrap();
        assert_eq!(cpu.dr6, 0xffff_efff);
        write(&mut cpu, 7, 0xffff_dfff).unwrap();
        assert_eq!(cpu.dr7, 0xffff_07ff);
        assert_eq!(
            write(&mut cpu, 7, 1 << 32),
            Err(Exception::general_protection(0))
        );
        write(&mut cpu, 0, u64::MAX).unwrap();
        assert_eq!(cpu.dr[0], u64::MAX);
    }
}
