//! The paravirtual clock that stock kernels know from KVM: the guest names a structure in its
//! memory, and the board keeps in it what turns a reading of the time-stamp counter into time.
//! Linux documentation: virt/kvm/x86/msr.rst and virt/kvm/x86/cpuid.rst.

use crate::timers::lock;
use belljar_clock::{Clock, Nanos};
use belljar_engine::{MsrRefused, VcpuId};
use belljar_memory::{GuestMemory, GuestPhysAddr};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};

/// First CPUID leaf of the paravirtual interface: its EAX is [`CPUID_FEATURES`], the last leaf.
pub const CPUID_BASE: u32 = 0x4000_0000;
/// CPUID leaf of the features.
pub const CPUID_FEATURES: u32 = 0x4000_0001;
/// What the first leaf's EBX, ECX and EDX spell.
pub const SIGNATURE: [u8; 12] = *b"KVMKVMKVM\0\0\0";
/// EAX of the leaf of features: clock by the old and the new MSRs, no delay needed after port
/// accesses, and clocks that agree on all vCPUs.
pub const FEATURES: u32 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 24;

/// MSRs: wall clock and system time, by their new and their old numbers.
const MSR_WALL_CLOCK: [u32; 2] = [0x4b56_4d00, 0x11];
const MSR_SYSTEM_TIME: [u32; 2] = [0x4b56_4d01, 0x12];
/// Bit of the system time's MSR: the structure is in use.
const ENABLED: u64 = 1;
/// Flag in the structure: no vCPU's clock is behind another's.
const STABLE: u8 = 1;

/// The state of [`Paravirtual`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParavirtualState {
    wall_clock: u64,
    wall_version: u32,
    /// By vCPU.
    clocks: Vec<VcpuClock>,
}

/// One vCPU's structure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct VcpuClock {
    msr: u64,
    version: u32,
    tsc_adjust: u64,
}

/// The paravirtual clocks of all vCPUs. Each structure says that the counter stood at the vCPU's
/// TSC adjustment at machine time 0: so all vCPUs compute the same time from the same counter.
#[derive(Debug)]
pub struct Paravirtual {
    state: Mutex<ParavirtualState>,
    memory: GuestMemory,
    clock: Arc<dyn Clock>,
}

/// Multiplier and shift of the structure: `(ticks << shift) * multiplier >> 32` is nanoseconds for
/// a counter of `hz`.
fn scale(hz: u64) -> (u32, i8) {
    let hz = u128::from(hz.max(1));
    let mut shift = 0i8;
    // The multiplier of shift s is (10^9 << 32) / (hz << s), and is most precise with its highest
    // bit set.
    let at = |shift: i8| {
        let nanos = u128::from(Nanos::SECOND) << 32;
        if shift >= 0 {
            nanos / (hz << shift)
        } else {
            (nanos << -shift) / hz
        }
    };
    while at(shift) > u128::from(u32::MAX) {
        shift += 1;
    }
    while at(shift) <= u128::from(u32::MAX >> 1) && shift > -31 {
        shift -= 1;
    }
    (at(shift) as u32, shift)
}

impl Paravirtual {
    /// The clocks of a machine of `cpus` vCPUs, none in use.
    pub fn new(cpus: u32, memory: GuestMemory, clock: Arc<dyn Clock>) -> Self {
        let state = ParavirtualState {
            wall_clock: 0,
            wall_version: 0,
            clocks: vec![VcpuClock::default(); cpus as usize],
        };
        Self {
            state: Mutex::new(state),
            memory,
            clock,
        }
    }

    /// The clocks as they were saved. The structures are written anew: the host's counter may run
    /// at another frequency.
    pub fn restore(state: ParavirtualState, memory: GuestMemory, clock: Arc<dyn Clock>) -> Self {
        let this = Self {
            state: Mutex::new(state),
            memory,
            clock,
        };
        for clock in &mut lock(&this.state).clocks {
            this.write_system_time(clock);
        }
        this
    }

    /// The whole state.
    pub fn save(&self) -> ParavirtualState {
        lock(&self.state).clone()
    }

    /// Power-on reset: no structure is in use.
    pub fn reset(&self) {
        let mut state = lock(&self.state);
        state.wall_clock = 0;
        state.clocks.fill(VcpuClock::default());
    }

    /// Reads an MSR; `None` if `index` is not one of these.
    pub fn msr_read(&self, vcpu: VcpuId, index: u32) -> Option<u64> {
        let state = lock(&self.state);
        if MSR_WALL_CLOCK.contains(&index) {
            Some(state.wall_clock)
        } else if MSR_SYSTEM_TIME.contains(&index) {
            Some(state.clocks.get(vcpu as usize).map_or(0, |c| c.msr))
        } else {
            None
        }
    }

    /// Writes an MSR; `None` if `index` is not one of these. `tsc_adjust` is what the vCPU's
    /// time-stamp counter is ahead of the machine's. A structure that does not lie in RAM is not
    /// written.
    pub fn msr_write(
        &self,
        vcpu: VcpuId,
        index: u32,
        value: u64,
        tsc_adjust: u64,
    ) -> Option<Result<(), MsrRefused>> {
        let mut state = lock(&self.state);
        if MSR_WALL_CLOCK.contains(&index) {
            state.wall_clock = value;
            self.write_wall_clock(&mut state);
            return Some(Ok(()));
        }
        if !MSR_SYSTEM_TIME.contains(&index) {
            return None;
        }
        let Some(clock) = state.clocks.get_mut(vcpu as usize) else {
            return Some(Err(MsrRefused));
        };
        clock.msr = value;
        clock.tsc_adjust = tsc_adjust;
        self.write_system_time(clock);
        Some(Ok(()))
    }

    /// Tells that the guest changed a vCPU's time-stamp counter.
    pub fn tsc_adjusted(&self, vcpu: VcpuId, tsc_adjust: u64) {
        if let Some(clock) = lock(&self.state).clocks.get_mut(vcpu as usize) {
            clock.tsc_adjust = tsc_adjust;
            self.write_system_time(clock);
        }
    }

    /// The structure: version, padding, counter and time that belong together, multiplier, shift,
    /// flags, padding. Its version is odd while it changes.
    fn write_system_time(&self, clock: &mut VcpuClock) {
        if clock.msr & ENABLED == 0 {
            return;
        }
        let (multiplier, shift) = scale(self.clock.tsc_hz());
        let mut rest = [0; 28];
        rest[4..12].copy_from_slice(&clock.tsc_adjust.to_le_bytes());
        // rest[12..20]: the time, 0.
        rest[20..24].copy_from_slice(&multiplier.to_le_bytes());
        rest[24] = shift as u8;
        rest[25] = STABLE;
        self.write_versioned(clock.msr & !ENABLED, &mut clock.version, &rest);
    }

    /// The structure: version, and the wall-clock time (seconds, nanoseconds) of machine time 0.
    fn write_wall_clock(&self, state: &mut ParavirtualState) {
        if state.wall_clock == 0 {
            return;
        }
        let start = self.clock.wall().saturating_sub(self.clock.now().0);
        let mut rest = [0; 8];
        rest[..4].copy_from_slice(&((start / Nanos::SECOND) as u32).to_le_bytes());
        rest[4..].copy_from_slice(&((start % Nanos::SECOND) as u32).to_le_bytes());
        self.write_versioned(state.wall_clock, &mut state.wall_version, &rest);
    }

    fn write_versioned(&self, address: u64, version: &mut u32, rest: &[u8]) {
        let odd = version.wrapping_add(1) | 1;
        *version = odd.wrapping_add(1);
        let write = |offset: u64, data: &[u8]| {
            self.memory
                .write(GuestPhysAddr(address.wrapping_add(offset)), data)
        };
        let written = write(0, &odd.to_le_bytes())
            .and_then(|()| write(4, rest))
            .and_then(|()| write(0, &version.to_le_bytes()));
        if let Err(error) = written {
            tracing::debug!(%error, "a paravirtual clock that is not in RAM");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use belljar_clock::ManualClock;
    use proptest::prelude::*;

    fn bench() -> (Paravirtual, GuestMemory, Arc<ManualClock>) {
        let memory = GuestMemory::new(1 << 20).unwrap();
        let clock = Arc::new(ManualClock::new(1_700_000_000 * Nanos::SECOND + 5));
        let device = Paravirtual::new(2, memory.clone(), Arc::<ManualClock>::clone(&clock));
        (device, memory, clock)
    }

    fn word(memory: &GuestMemory, at: u64) -> u32 {
        memory.load_u32(GuestPhysAddr(at)).unwrap()
    }

    #[test]
    fn the_structure_turns_the_counter_into_machine_time() {
        let (device, memory, clock) = bench();
        clock.advance(12_345);
        assert_eq!(device.msr_write(1, 0x4b56_4d01, 0x2001, 77), Some(Ok(())));
        let version = word(&memory, 0x2000);
        assert!(version != 0 && version & 1 == 0);
        let stamp = memory.load_u64(GuestPhysAddr(0x2008)).unwrap();
        let base = memory.load_u64(GuestPhysAddr(0x2010)).unwrap();
        let multiplier = word(&memory, 0x2018);
        let shift = memory.load_u8(GuestPhysAddr(0x201c)).unwrap() as i8;
        let guest_tsc = clock.tsc() + 77;
        let scaled = if shift >= 0 {
            (guest_tsc - stamp) << shift
        } else {
            (guest_tsc - stamp) >> -shift
        };
        let time = base + ((u128::from(scaled) * u128::from(multiplier)) >> 32) as u64;
        assert!(time.abs_diff(12_345) <= 1, "{time}");
        assert_eq!(memory.load_u8(GuestPhysAddr(0x201d)), Some(STABLE));
        assert_eq!(device.msr_read(1, 0x12), Some(0x2001));
    }

    #[test]
    fn the_wall_clock_is_that_of_machine_time_0() {
        let (device, memory, clock) = bench();
        clock.advance(3 * Nanos::SECOND);
        device.msr_write(0, 0x11, 0x3000, 0);
        assert_eq!(word(&memory, 0x3004), 1_700_000_000);
        assert_eq!(word(&memory, 0x3008), 5);
    }

    #[test]
    fn a_structure_outside_ram_and_other_msrs_do_no_harm() {
        let (device, ..) = bench();
        assert_eq!(device.msr_write(0, 0x4b56_4d01, u64::MAX, 0), Some(Ok(())));
        assert_eq!(
            device.msr_write(9, 0x4b56_4d01, 1, 0),
            Some(Err(MsrRefused))
        );
        assert_eq!(device.msr_write(0, 0x4b56_4d02, 1, 0), None);
        assert_eq!(device.msr_read(0, 0x1b), None);
    }

    proptest! {
        #[test]
        fn scaling_is_exact_to_a_part_in_two_thousand_million(hz in 1_000_000u64..20_000_000_000) {
            let (multiplier, shift) = scale(hz);
            prop_assert!(multiplier >> 31 == 1);
            let ticks = 100 * hz;
            let ticks = u128::from(ticks);
            let scaled = if shift >= 0 { ticks << shift } else { ticks >> -shift };
            let nanos = ((scaled * u128::from(multiplier)) >> 32) as u64;
            prop_assert!(nanos.abs_diff(100 * Nanos::SECOND) <= 60);
        }
    }
}
