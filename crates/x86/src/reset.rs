//! INIT and the start-up IPI. SDM 3A, 9.1 and 9.4.
//!
//! Reset itself is [`CpuState::reset`].

use crate::bits::cr0;
use crate::state::{Activity, Segment};
use crate::{CpuState, Seg};

/// INIT: the processor as after reset, but for what SDM 3A table 9-1 lets live: the caches' bits of
/// CR0, x87 and vector state, XCR0 and the MSRs. `signature` is what EDX then holds: CPUID leaf 1's
/// EAX. The bootstrap processor begins at the reset vector; the others wait for a start-up IPI.
pub fn init(cpu: &mut CpuState, signature: u32, bootstrap: bool) {
    let fresh = CpuState::reset(signature);
    let old = std::mem::replace(cpu, fresh);
    cpu.cr0 |= cr0::ET;
    cpu.cr0 &= !(cr0::CD | cr0::NW);
    cpu.cr0 |= old.cr0 & (cr0::CD | cr0::NW);
    cpu.vector = old.vector;
    cpu.xcr0 = old.xcr0;
    cpu.xss = old.xss;
    cpu.msr = old.msr;
    cpu.activity = if bootstrap {
        Activity::Running
    } else {
        Activity::WaitForSipi
    };
}

/// A start-up IPI: a processor that waits for one begins in real mode at physical address `vector`
/// << 12. One that does not wait ignores it; tells whether it waited.
pub fn start_up(cpu: &mut CpuState, vector: u8) -> bool {
    if cpu.activity != Activity::WaitForSipi {
        return false;
    }
    cpu.segments[Seg::Cs as usize] =
        Segment::real_mode(u16::from(vector) << 8, cpu.seg(Seg::Cs).rights);
    cpu.rip = 0;
    cpu.activity = Activity::Running;
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bits::{cr4, efer};

    #[test]
    fn init_keeps_vector_state_and_msrs_and_clears_the_rest() {
        let mut cpu = CpuState::reset(0x123);
        cpu.cr0 = cr0::PG | cr0::PE | cr0::ET | cr0::CD;
        cpu.cr4 = cr4::PAE;
        cpu.efer = efer::LMA | efer::LME;
        cpu.xcr0 = 7;
        cpu.vector.zmm[3][1] = 5;
        cpu.msr.lstar = 77;
        cpu.gpr = [9; 16];
        cpu.nmi_blocked = true;
        init(&mut cpu, 0x456, false);
        assert_eq!(cpu.cr0, cr0::CD | cr0::ET);
        assert_eq!(
            (cpu.cr4, cpu.efer, cpu.gpr[0], cpu.gpr[2]),
            (0, 0, 0, 0x456)
        );
        assert_eq!((cpu.xcr0, cpu.vector.zmm[3][1], cpu.msr.lstar), (7, 5, 77));
        assert_eq!(cpu.activity, Activity::WaitForSipi);
        assert!(!cpu.nmi_blocked);
    }

    #[test]
    fn a_start_up_ipi_begins_at_its_page() {
        let mut cpu = CpuState::reset(0);
        init(&mut cpu, 0, false);
        assert!(start_up(&mut cpu, 0x9a));
        let cs = cpu.seg(Seg::Cs);
        assert_eq!((cs.selector, cs.base, cs.limit), (0x9a00, 0x9a000, 0xffff));
        assert!(cs.has(Segment::CODE));
        assert_eq!((cpu.rip, cpu.activity), (0, Activity::Running));
    }

    #[test]
    fn a_processor_that_runs_ignores_start_up_ipis() {
        let mut cpu = CpuState::reset(0);
        init(&mut cpu, 0, true);
        let before = cpu.clone();
        assert!(!start_up(&mut cpu, 0x10));
        assert_eq!(cpu, before);
    }
}
