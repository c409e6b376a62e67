//! Delivery of exceptions and interrupts in every mode. SDM 3A, chapter 6.

use crate::{CpuState, Event, LinearMemory};

/// A fault while a double fault was being delivered: the processor shuts down. SDM 3A, 6.15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TripleFault;

/// Delivers `event`; faults on the way become the next event or a double fault, as table 6-5 says.
///
/// Whether an interrupt or NMI may be delivered now is for the caller to decide. `cpu.shadow` is cleared, a halted
/// processor runs again; NMIs are blocked after an NMI.
///
/// # Errors
/// [`TripleFault`]: the registers are those before the event and `cpu.activity` is `Shutdown`.
pub fn deliver(
    cpu: &mut CpuState,
    mem: &mut impl LinearMemory,
    event: Event,
) -> Result<(), TripleFault> {
    let _ = (cpu, mem, event);
    todo!()
}
