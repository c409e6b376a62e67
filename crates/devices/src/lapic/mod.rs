//! The local APIC of each vCPU, in xAPIC and x2APIC mode. SDM 3A, chapter 11.
//!
//! A [`Lapic`] knows only its own processor: what it sends to others it returns as an [`Effect`],
//! for the fabric ([`Interrupts`](crate::interrupts::Interrupts)) to carry out.

mod registers;
mod timer;

#[cfg(test)]
mod tests;

pub use registers::{Register, RegisterRefused};
pub use timer::TIMER_HZ;

use crate::layout;
use crate::message::{DeliveryMode, Message};
use belljar_clock::{Clock, Nanos};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use timer::Timer;

/// Bits of the IA32_APIC_BASE MSR. SDM 3A, 11.12.1.
pub mod apic_base {
    /// This is the bootstrap processor.
    pub const BSP: u64 = 1 << 8;
    /// x2APIC mode.
    pub const X2APIC: u64 = 1 << 10;
    /// The local APIC is enabled.
    pub const ENABLE: u64 = 1 << 11;
    /// The physical address of the registers' page, of 46 bits as everywhere in the machine.
    pub const ADDRESS: u64 = 0x3fff_ffff_f000;
}

/// Errors of the error status register. SDM 3A, 11.5.3.
mod error {
    pub const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// Bits of the local vector table's entries. SDM 3A, 11.5.1.
mod lvt {
    pub const REMOTE_IRR: u32 = 1 << 14;
    pub const LEVEL: u32 = 1 << 15;
    pub const MASKED: u32 = 1 << 16;
}

/// The spurious-interrupt vector register's software enable bit. SDM 3A, 11.9.
const SOFTWARE_ENABLE: u32 = 1 << 8;

/// Entries of the local vector table, in the order of their registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lvt {
    Timer,
    Thermal,
    Performance,
    Lint0,
    Lint1,
    Error,
}

impl Lvt {
    const ALL: [Self; 6] = [
        Self::Timer,
        Self::Thermal,
        Self::Performance,
        Self::Lint0,
        Self::Lint1,
        Self::Error,
    ];

    /// The bits that software can set.
    const fn writable(self) -> u32 {
        match self {
            Self::Timer => 0x7_00ff,
            Self::Thermal | Self::Performance => 0x1_07ff,
            Self::Lint0 | Self::Lint1 => 0x1_a7ff,
            Self::Error => 0x1_00ff,
        }
    }
}

/// One of the processor's two local interrupt inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lint {
    /// Wired to the 8259A's output.
    Lint0,
    /// Wired to the board's NMI.
    Lint1,
}

/// Which processors an interprocessor interrupt is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shorthand {
    /// Those that the message's destination names.
    None,
    /// The sender.
    Myself,
    /// All, with the sender.
    All,
    /// All but the sender.
    Others,
}

/// What a register write makes happen outside the local APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// An interprocessor interrupt.
    Send(Shorthand, Message),
    /// The end of the level-triggered interrupt of this vector, which the I/O APICs must hear.
    EndOfInterrupt(u8),
}

/// What a message or an input asks of the processor core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Nothing but what [`Lapic::interrupt_pending`] tells.
    None,
    /// A non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up at this page.
    StartUp(u8),
}

/// A set of vectors: IRR, ISR or TMR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Vectors([u32; 8]);

impl Vectors {
    fn has(&self, vector: u8) -> bool {
        self.0[usize::from(vector >> 5)] & 1 << (vector & 31) != 0
    }

    fn put(&mut self, vector: u8, set: bool) {
        let bit = 1 << (vector & 31);
        let word = &mut self.0[usize::from(vector >> 5)];
        *word = if set { *word | bit } else { *word & !bit };
    }

    fn highest(&self) -> Option<u8> {
        let (index, word) = self.0.iter().enumerate().rev().find(|(_, w)| **w != 0)?;
        Some((index as u32 * 32 + word.ilog2()) as u8)
    }
}

/// The state of a [`Lapic`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LapicState {
    id: u32,
    base: u64,
    tpr: u8,
    ldr: u32,
    dfr: u32,
    svr: u32,
    isr: Vectors,
    irr: Vectors,
    tmr: Vectors,
    esr: u32,
    /// Errors since the ESR was last written.
    errors: u32,
    icr: u64,
    /// Entries by [`Lvt`].
    lvt: [u32; 6],
    timer: Timer,
    /// Levels of the inputs LINT0 and LINT1.
    lint: [bool; 2],
    /// Whether a message of mode ExtINT waits.
    ext_int: bool,
}

impl LapicState {
    fn new(id: u32) -> Self {
        let bsp = if id == 0 { apic_base::BSP } else { 0 };
        Self {
            id,
            base: layout::LAPIC_BASE | apic_base::ENABLE | bsp,
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xff,
            isr: Vectors::default(),
            irr: Vectors::default(),
            tmr: Vectors::default(),
            esr: 0,
            errors: 0,
            icr: 0,
            lvt: [lvt::MASKED; 6],
            timer: Timer::default(),
            lint: [false; 2],
            ext_int: false,
        }
    }
}

/// One local APIC.
#[derive(Debug)]
pub struct Lapic {
    state: LapicState,
    clock: Arc<dyn Clock>,
}

impl Lapic {
    /// The local APIC of vCPU `id` after power-on. vCPU 0 is the bootstrap processor.
    pub fn new(id: u32, clock: Arc<dyn Clock>) -> Self {
        Self::restore(LapicState::new(id), clock)
    }

    /// A local APIC as it was saved.
    pub fn restore(state: LapicState, clock: Arc<dyn Clock>) -> Self {
        Self { state, clock }
    }

    /// The whole state.
    pub fn save(&self) -> LapicState {
        self.state.clone()
    }

    /// Power-on reset. The inputs' levels are their drivers'.
    pub fn reset(&mut self) {
        self.state = LapicState {
            lint: self.state.lint,
            ..LapicState::new(self.state.id)
        };
    }

    /// What INIT does: everything is reset but the base and the mode. SDM 3A, 11.4.7.3 and
    /// 11.12.5.1.
    pub fn init(&mut self) {
        let base = self.state.base;
        self.reset();
        self.state.base = base;
        self.derive_logical_id();
    }

    /// Sets up what PC firmware leaves on the bootstrap processor: the virtual wire, by which the
    /// 8259A's interrupts reach it. MultiProcessor Specification 1.4, 3.6.2.2.
    pub fn set_virtual_wire(&mut self) {
        self.state.svr = SOFTWARE_ENABLE | 0xf;
        self.state.lvt[Lvt::Lint0 as usize] = 7 << 8;
        self.state.lvt[Lvt::Lint1 as usize] = 4 << 8;
    }

    /// Whether IA32_APIC_BASE enables the local APIC.
    pub fn enabled(&self) -> bool {
        self.state.base & apic_base::ENABLE != 0
    }

    /// Whether it is in x2APIC mode.
    pub fn x2apic(&self) -> bool {
        self.state.base & apic_base::X2APIC != 0
    }

    fn software_enabled(&self) -> bool {
        self.enabled() && self.state.svr & SOFTWARE_ENABLE != 0
    }

    /// Address of the registers' page; `None` if they are not in memory (disabled, or x2APIC mode).
    pub fn page(&self) -> Option<u64> {
        (self.enabled() && !self.x2apic()).then_some(self.state.base & apic_base::ADDRESS)
    }

    /// IA32_APIC_BASE.
    pub fn base(&self) -> u64 {
        self.state.base
    }

    /// Writes IA32_APIC_BASE.
    ///
    /// # Errors
    /// [`RegisterRefused`] for reserved bits and changes of mode that do not exist. SDM 3A,
    /// figure 11-27.
    pub fn set_base(&mut self, value: u64) -> Result<(), RegisterRefused> {
        use apic_base::{ADDRESS, BSP, ENABLE, X2APIC};
        if value & !(ADDRESS | BSP | ENABLE | X2APIC) != 0 {
            return Err(RegisterRefused);
        }
        let mode = |base: u64| (base & ENABLE != 0, base & X2APIC != 0);
        match (mode(self.state.base), mode(value)) {
            ((_, _), (false, true)) | ((false, _), (true, true)) | ((_, true), (true, false)) => {
                return Err(RegisterRefused);
            }
            ((true, _), (false, false)) => self.reset(),
            _ => {}
        }
        self.state.base = value;
        self.derive_logical_id();
        Ok(())
    }

    /// In x2APIC mode the logical ID follows from the ID. SDM 3A, 11.12.10.2.
    fn derive_logical_id(&mut self) {
        if self.x2apic() {
            self.state.ldr = (self.state.id >> 4) << 16 | 1 << (self.state.id & 0xf);
        }
    }

    /// Whether `message` is for this local APIC, by its destination alone. SDM 3A, 11.6.2.
    pub fn matches(&self, message: &Message) -> bool {
        if !self.enabled() {
            return false;
        }
        let destination = message.destination;
        if !message.logical {
            let id = if self.x2apic() {
                self.state.id
            } else {
                self.state.id & 0xff
            };
            return destination == Message::BROADCAST || destination == id;
        }
        let ldr = self.state.ldr;
        if self.x2apic() {
            return destination == Message::BROADCAST
                || (destination >> 16 == ldr >> 16 && destination & ldr & 0xffff != 0);
        }
        if destination == Message::BROADCAST || destination & 0xff == 0xff {
            return true;
        }
        let (to, own) = (destination as u8, (ldr >> 24) as u8);
        if self.state.dfr >> 28 == 0xf {
            to & own != 0
        } else {
            (to >> 4 == own >> 4 || to >> 4 == 0xf) && to & own & 0xf != 0
        }
    }

    /// Whether it takes part in the choice of a receiver by lowest priority.
    pub fn arbitrates(&self) -> bool {
        self.software_enabled()
    }

    /// Arbitration priority: the highest of TPR, ISR and IRR. SDM 3A, 11.6.2.4.
    pub fn arbitration_priority(&self) -> u8 {
        let requested = self.state.irr.highest().unwrap_or(0) & 0xf0;
        self.processor_priority().max(requested)
    }

    /// Processor priority. SDM 3A, 11.8.3.1.
    pub fn processor_priority(&self) -> u8 {
        let serving = self.state.isr.highest().unwrap_or(0) & 0xf0;
        if self.state.tpr & 0xf0 >= serving {
            self.state.tpr
        } else {
            serving
        }
    }

    /// The task priority as CR8 shows it.
    pub fn task_priority(&self) -> u8 {
        self.state.tpr >> 4
    }

    /// Sets the task priority by CR8.
    pub fn set_task_priority(&mut self, priority: u8) {
        self.state.tpr = priority << 4;
    }

    /// Takes a message that [`matches`](Self::matches).
    pub fn accept(&mut self, message: &Message) -> Signal {
        match message.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                if self.software_enabled() {
                    self.request(message.vector, message.level);
                }
                Signal::None
            }
            DeliveryMode::ExtInt => {
                self.state.ext_int |= self.software_enabled();
                Signal::None
            }
            DeliveryMode::Smi => Signal::None,
            DeliveryMode::Nmi => Signal::Nmi,
            DeliveryMode::Init => {
                self.init();
                Signal::Init
            }
            DeliveryMode::StartUp => Signal::StartUp(message.vector),
        }
    }

    /// Requests the interrupt `vector`.
    fn request(&mut self, vector: u8, level: bool) {
        if vector < 16 {
            self.raise_error(error::RECEIVE_ILLEGAL_VECTOR);
            return;
        }
        self.state.irr.put(vector, true);
        self.state.tmr.put(vector, level);
    }

    fn raise_error(&mut self, error: u32) {
        let new = error & !self.state.errors != 0;
        self.state.errors |= error;
        let entry = self.state.lvt[Lvt::Error as usize];
        // An error entry with an illegal vector of its own cannot report it again.
        if new && entry & lvt::MASKED == 0 && entry as u8 >= 16 {
            self.request(entry as u8, false);
        }
    }

    /// Sets the level of a local interrupt input.
    pub fn set_lint(&mut self, input: Lint, high: bool) -> Signal {
        let index = input as usize;
        let rises = high && !self.state.lint[index];
        self.state.lint[index] = high;
        if !self.enabled() {
            // The inputs are INTR and NMI of the core. SDM 3A, 11.4.3.
            let nmi = rises && input == Lint::Lint1;
            return if nmi { Signal::Nmi } else { Signal::None };
        }
        self.check_lint(input, rises)
    }

    fn check_lint(&mut self, input: Lint, rises: bool) -> Signal {
        let index = match input {
            Lint::Lint0 => Lvt::Lint0,
            Lint::Lint1 => Lvt::Lint1,
        } as usize;
        let entry = self.state.lvt[index];
        if entry & lvt::MASKED != 0 {
            return Signal::None;
        }
        match DeliveryMode::from_bits(entry >> 8) {
            Some(DeliveryMode::Fixed) => {
                let level = entry & lvt::LEVEL != 0;
                let high = self.state.lint[input as usize];
                if level && high && entry & lvt::REMOTE_IRR == 0 {
                    self.state.lvt[index] |= lvt::REMOTE_IRR;
                    self.request(entry as u8, true);
                } else if !level && rises {
                    self.request(entry as u8, false);
                }
                Signal::None
            }
            Some(DeliveryMode::Nmi) if rises => Signal::Nmi,
            Some(DeliveryMode::Init) if rises => {
                self.init();
                Signal::Init
            }
            _ => Signal::None,
        }
    }

    /// Whether the 8259A's interrupt waits for this processor: through LINT0 or by a message.
    pub fn ext_int_pending(&self) -> bool {
        if !self.enabled() {
            return self.state.lint[0];
        }
        let entry = self.state.lvt[Lvt::Lint0 as usize];
        let wired = entry & lvt::MASKED == 0 && entry >> 8 & 7 == 7;
        self.state.ext_int || (wired && self.state.lint[0])
    }

    /// The 8259A's interrupt was acknowledged by this processor.
    pub fn ext_int_acknowledged(&mut self) {
        self.state.ext_int = false;
    }

    /// The interrupt that the processor's priority lets through. SDM 3A, 11.8.4.
    fn deliverable(&self) -> Option<u8> {
        if !self.enabled() {
            return None;
        }
        let vector = self.state.irr.highest()?;
        (vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// Whether an interrupt could be acknowledged now.
    pub fn interrupt_pending(&self) -> bool {
        self.ext_int_pending() || self.deliverable().is_some()
    }

    /// Takes the interrupt to deliver into service; not the 8259A's.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.deliverable()?;
        self.state.irr.put(vector, false);
        self.state.isr.put(vector, true);
        Some(vector)
    }

    /// EOI: ends the interrupt of the highest priority in service.
    fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = self.state.isr.highest() else {
            return Effect::None;
        };
        self.state.isr.put(vector, false);
        if !self.state.tmr.has(vector) {
            return Effect::None;
        }
        for (input, entry) in [(Lint::Lint0, Lvt::Lint0), (Lint::Lint1, Lvt::Lint1)] {
            let entry = &mut self.state.lvt[entry as usize];
            if *entry as u8 == vector && *entry & lvt::REMOTE_IRR != 0 {
                *entry &= !lvt::REMOTE_IRR;
                // A level-triggered fixed interrupt is no signal to the core.
                let _ = self.check_lint(input, false);
            }
        }
        Effect::EndOfInterrupt(vector)
    }

    /// When the timer is due.
    pub fn deadline(&self) -> Option<Nanos> {
        self.state.timer.deadline()
    }

    /// Fires the timer if it is due at `now`.
    pub fn expire(&mut self, now: Nanos) {
        let entry = self.state.lvt[Lvt::Timer as usize];
        if self.state.timer.expire(now) && entry & lvt::MASKED == 0 {
            self.request(entry as u8, false);
        }
    }
}
