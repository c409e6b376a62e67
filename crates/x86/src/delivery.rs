//! Delivery of exceptions and interrupts in every mode. SDM 3A, chapter 6.
//!
//! INT n in virtual-8086 mode with IOPL below 3 is #GP(0) before it becomes an event: only the
//! instruction knows whether it is INT n, INT3 or INTO.

mod long;
mod protected;
mod real;

use crate::bits::{debug, rflags};
use crate::state::{Activity, Shadow};
use crate::task::Fault;
use crate::{CpuState, Event, Exception, LinearMemory, Vector};

/// How many events in a row may fault on their way. Benign exceptions do not add up to a double
/// fault, so without a bound a guest could keep the processor busy with delivery for ever.
const ATTEMPTS: u32 = 16;

/// A fault while a double fault was being delivered: the processor shuts down. SDM 3A, 6.15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TripleFault;

/// What is pushed and checked on the way of an event.
#[derive(Clone, Copy, Debug)]
struct Passage {
    vector: u8,
    /// The error code to push.
    error: Option<u32>,
    /// Whether the gate's DPL counts.
    software: bool,
    /// The flags to push.
    flags: u64,
}

impl Passage {
    /// The error code that names the IDT's entry. SDM 3A, 6.13.
    fn gate_error(&self) -> u32 {
        u32::from(self.vector) << 3 | 2
    }
}

/// Delivers `event`; faults on the way become the next event or a double fault, as table 6-5 says.
///
/// Whether an interrupt or NMI may be delivered now is for the caller to decide. `cpu.shadow` is
/// cleared, a halted processor runs again; NMIs are blocked after an NMI.
///
/// # Errors
/// [`TripleFault`]: the registers are those before the last event and `cpu.activity` is `Shutdown`.
pub fn deliver(
    cpu: &mut CpuState,
    mem: &mut impl LinearMemory,
    event: Event,
) -> Result<(), TripleFault> {
    cpu.shadow = Shadow::None;
    cpu.activity = Activity::Running;
    let mut event = event;
    for _ in 0..ATTEMPTS {
        let Err(fault) = attempt(cpu, mem, event) else {
            if event == Event::Nmi {
                cpu.nmi_blocked = true;
            }
            return Ok(());
        };
        if let Event::Software { length, .. } = event
            && !fault.in_new_task
        {
            let start = cpu.rip.wrapping_sub(u64::from(length));
            cpu.rip = if cpu.code64() {
                start
            } else {
                start & 0xffff_ffff
            };
        }
        let exception = with_origin(fault.exception, event);
        let Some(next) = after(event, exception) else {
            break;
        };
        if exception.vector == Vector::PageFault {
            // A page fault leaves its address even if it becomes a double fault.
            cpu.cr2 = exception.payload;
        }
        event = Event::Exception(next);
    }
    cpu.activity = Activity::Shutdown;
    Err(TripleFault)
}

/// Delivers one event, or changes nothing but CR2 and the debug registers.
fn attempt(cpu: &mut CpuState, mem: &mut impl LinearMemory, event: Event) -> Result<(), Fault> {
    let passage = passage(cpu, event);
    prepare(cpu, event);
    if !cpu.protected() {
        real::deliver(cpu, mem, &passage)
    } else if cpu.long_mode() {
        long::deliver(cpu, mem, &passage)
    } else {
        protected::deliver(cpu, mem, &passage)
    }
}

/// How `event` passes through the IDT.
fn passage(cpu: &CpuState, event: Event) -> Passage {
    let (vector, error, software) = match event {
        Event::Exception(exception) => (exception.vector as u8, exception.error, false),
        Event::Software { vector, .. } => (vector, None, true),
        Event::Icebp => (Vector::Debug as u8, None, false),
        Event::Interrupt(vector) => (vector, None, false),
        Event::Nmi => (Vector::Nmi as u8, None, false),
    };
    let flags = if is_fault(event) {
        cpu.rflags | rflags::RF
    } else {
        cpu.rflags
    };
    Passage {
        vector,
        error,
        software,
        flags,
    }
}

/// Whether the instruction is to be executed again after the handler, so that its code breakpoints
/// must not trap a second time. SDM 3B, 18.3.1.1.
fn is_fault(event: Event) -> bool {
    match event {
        Event::Exception(exception) => match exception.vector {
            Vector::Debug => exception.payload & debug::DR6_BD != 0,
            Vector::Nmi
            | Vector::Breakpoint
            | Vector::Overflow
            | Vector::DoubleFault
            | Vector::MachineCheck => false,
            _ => true,
        },
        _ => false,
    }
}

/// Puts into CR2 and the debug registers what belongs to an exception.
fn prepare(cpu: &mut CpuState, event: Event) {
    /// IA32_DEBUGCTL: LBR and BTF.
    const TRACING: u64 = 3;
    let (vector, payload) = match event {
        Event::Exception(exception) => (exception.vector, exception.payload),
        // With the traps that MOV SS held back it is one exception. SDM 3A, 6.8.3.
        Event::Icebp => (Vector::Debug, std::mem::take(&mut cpu.pending_debug)),
        _ => return,
    };
    match vector {
        Vector::PageFault => cpu.cr2 = payload,
        Vector::Debug => {
            // The breakpoints' bits tell of this exception alone, the others stay until they are
            // cleared by software. SDM 3B, 18.2.3.
            cpu.dr6 = cpu.dr6 & !debug::DR6_BREAKPOINTS | payload;
            // So that the handler may use the debug registers and is not traced. SDM 3B, 18.2.4 and
            // 18.4.
            cpu.dr7 &= !debug::DR7_GD;
            cpu.msr.debugctl &= !TRACING;
        }
        _ => {}
    }
}

/// `fault` with the EXT bit in its error code if `event` does not come from the program. SDM 3A,
/// 6.13.
fn with_origin(fault: Exception, event: Event) -> Exception {
    const EXT: u32 = 1;
    let selects = matches!(
        fault.vector,
        Vector::InvalidTss
            | Vector::SegmentNotPresent
            | Vector::StackFault
            | Vector::GeneralProtection
    );
    if !selects || matches!(event, Event::Software { .. }) {
        return fault;
    }
    Exception {
        error: fault.error.map(|error| error | EXT),
        ..fault
    }
}

/// How an event counts when another follows. SDM 3A, table 6-4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

fn class(event: Event) -> Class {
    match event {
        Event::Exception(exception) => match exception.vector {
            Vector::DivideError
            | Vector::InvalidTss
            | Vector::SegmentNotPresent
            | Vector::StackFault
            | Vector::GeneralProtection => Class::Contributory,
            Vector::PageFault => Class::PageFault,
            Vector::DoubleFault => Class::DoubleFault,
            _ => Class::Benign,
        },
        _ => Class::Benign,
    }
}

/// What is delivered when `second` happens on the way of `first`; `None` is a shutdown. SDM 3A,
/// table 6-5.
fn after(first: Event, second: Exception) -> Option<Exception> {
    match (class(first), class(Event::Exception(second))) {
        (_, Class::Benign) => Some(second),
        (Class::DoubleFault, _) => None,
        (Class::Contributory, Class::Contributory)
        | (Class::PageFault, Class::Contributory | Class::PageFault) => {
            Some(Exception::double_fault())
        }
        _ => Some(second),
    }
}

/// The flags with which a handler begins. SDM 3A, 6.12.1.3 and 6.8.1.
fn handler_flags(flags: u64, trap_gate: bool) -> u64 {
    let cleared = rflags::TF | rflags::NT | rflags::RF | rflags::VM;
    if trap_gate {
        flags & !cleared
    } else {
        flags & !(cleared | rflags::IF)
    }
}

#[cfg(test)]
mod tests;
