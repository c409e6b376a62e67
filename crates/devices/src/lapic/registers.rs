//! The local APIC's registers, by number: the MMIO offset shifted right by 4, which is also the
//! x2APIC's MSR less 800h. SDM 3A, tables 11-1 and 11-6.

use super::timer::Mode;
use super::{Effect, Lapic, Lvt, SOFTWARE_ENABLE, Shorthand, error, lvt};
use crate::message::{DeliveryMode, Message};

/// There is no such register, it cannot be accessed this way, or it cannot hold the value: #GP in
/// x2APIC mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterRefused;

/// The number of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register(pub u8);

impl Register {
    const ID: u8 = 0x02;
    const VERSION: u8 = 0x03;
    const TPR: u8 = 0x08;
    const APR: u8 = 0x09;
    const PPR: u8 = 0x0a;
    const EOI: u8 = 0x0b;
    const REMOTE_READ: u8 = 0x0c;
    const LDR: u8 = 0x0d;
    const DFR: u8 = 0x0e;
    const SVR: u8 = 0x0f;
    const ISR: u8 = 0x10;
    const TMR: u8 = 0x18;
    const IRR: u8 = 0x20;
    const ESR: u8 = 0x28;
    const ICR: u8 = 0x30;
    const ICR_HIGH: u8 = 0x31;
    const LVT: u8 = 0x32;
    const LVT_LAST: u8 = 0x37;
    const INITIAL_COUNT: u8 = 0x38;
    const CURRENT_COUNT: u8 = 0x39;
    const DIVIDE: u8 = 0x3e;
    const SELF_IPI: u8 = 0x3f;
}

/// Version 14h (integrated), with six LVT entries.
const VERSION: u32 = 0x14 | 5 << 16;
/// The bits of the ICR's low half that software can set. Bit 12, the delivery status, is always
/// "idle" here.
const ICR_WRITABLE: u32 = 0x000c_cfff;

impl Lapic {
    /// Reads a register in x2APIC mode.
    ///
    /// # Errors
    /// [`RegisterRefused`] if there is none to read.
    pub fn read_x2apic(&mut self, register: Register) -> Result<u64, RegisterRefused> {
        match register.0 {
            Register::ID => Ok(u64::from(self.state.id)),
            Register::LDR => Ok(u64::from(self.state.ldr)),
            Register::ICR => Ok(self.state.icr),
            Register::APR | Register::DFR | Register::REMOTE_READ | Register::ICR_HIGH => {
                Err(RegisterRefused)
            }
            _ => self.read(register).map(u64::from),
        }
    }

    /// Reads a register of the page. Registers that are not there read as 0 and are an error of the
    /// ESR.
    pub fn read_xapic(&mut self, register: Register) -> u32 {
        match register.0 {
            Register::ID => self.state.id << 24,
            // Write-only or never in use, but there.
            Register::EOI | Register::REMOTE_READ => 0,
            _ => self.read(register).unwrap_or_else(|RegisterRefused| {
                self.raise_error(error::ILLEGAL_REGISTER);
                0
            }),
        }
    }

    /// What both modes read alike.
    fn read(&mut self, register: Register) -> Result<u32, RegisterRefused> {
        let state = &self.state;
        Ok(match register.0 {
            Register::VERSION => VERSION,
            Register::TPR => u32::from(state.tpr),
            Register::APR => u32::from(self.arbitration_priority()),
            Register::PPR => u32::from(self.processor_priority()),
            Register::LDR => state.ldr,
            Register::DFR => state.dfr,
            Register::SVR => state.svr,
            n @ Register::ISR..Register::TMR => state.isr.0[usize::from(n & 7)],
            n @ Register::TMR..Register::IRR => state.tmr.0[usize::from(n & 7)],
            n @ Register::IRR..Register::ESR => state.irr.0[usize::from(n & 7)],
            Register::ESR => state.esr,
            Register::ICR => state.icr as u32,
            Register::ICR_HIGH => (state.icr >> 32) as u32,
            n @ Register::LVT..=Register::LVT_LAST => state.lvt[usize::from(n - Register::LVT)],
            Register::INITIAL_COUNT => state.timer.initial(),
            Register::CURRENT_COUNT => {
                // Whoever polls the count sees the interrupt of a timer that has run out.
                let now = self.clock.now();
                self.expire(now);
                self.state.timer.count(now)
            }
            Register::DIVIDE => state.timer.divide(),
            _ => return Err(RegisterRefused),
        })
    }

    /// Writes a register in x2APIC mode.
    ///
    /// # Errors
    /// [`RegisterRefused`] if there is none to write, or a reserved bit is set.
    pub fn write_x2apic(
        &mut self,
        register: Register,
        value: u64,
    ) -> Result<Effect, RegisterRefused> {
        let valid: u64 = match register.0 {
            Register::TPR | Register::SELF_IPI => 0xff,
            Register::EOI | Register::ESR => 0,
            Register::SVR => u64::from(SOFTWARE_ENABLE | 0xff),
            Register::ICR => 0xffff_ffff_0000_0000 | u64::from(ICR_WRITABLE),
            Register::INITIAL_COUNT => u64::from(u32::MAX),
            Register::DIVIDE => 0xb,
            n @ Register::LVT..=Register::LVT_LAST => {
                // The read-only bits may be written as they were read.
                u64::from(Lvt::ALL[usize::from(n - Register::LVT)].writable() | 0x5000)
            }
            _ => return Err(RegisterRefused),
        };
        if value & !valid != 0 {
            return Err(RegisterRefused);
        }
        match register.0 {
            Register::ICR => {
                self.state.icr = value;
                Ok(self.send(value as u32, (value >> 32) as u32))
            }
            Register::SELF_IPI => Ok(self.send(1 << 18 | value as u32, 0)),
            _ => self.write(register, value as u32),
        }
    }

    /// Writes a register of the page. Writes to registers that are not there are an error of the
    /// ESR.
    pub fn write_xapic(&mut self, register: Register, value: u32) -> Effect {
        match register.0 {
            // Read only, as on processors that know x2APIC.
            Register::ID
            | Register::VERSION
            | Register::APR
            | Register::PPR
            | Register::REMOTE_READ
            | Register::CURRENT_COUNT
            | Register::ISR..Register::ESR => Effect::None,
            Register::LDR => {
                self.state.ldr = value & 0xff00_0000;
                Effect::None
            }
            Register::DFR => {
                self.state.dfr = value | 0x0fff_ffff;
                Effect::None
            }
            Register::ICR_HIGH => {
                let low = self.state.icr & 0xffff_ffff;
                self.state.icr = u64::from(value & 0xff00_0000) << 32 | low;
                Effect::None
            }
            Register::ICR => {
                let value = value & ICR_WRITABLE;
                let high = self.state.icr & !0xffff_ffff;
                self.state.icr = high | u64::from(value);
                let logical = value & 1 << 11 != 0;
                let destination = (high >> 56) as u8;
                self.send(value, Message::destination8(destination, logical))
            }
            _ => self
                .write(register, value)
                .unwrap_or_else(|RegisterRefused| {
                    self.raise_error(error::ILLEGAL_REGISTER);
                    Effect::None
                }),
        }
    }

    /// What both modes write alike.
    fn write(&mut self, register: Register, value: u32) -> Result<Effect, RegisterRefused> {
        match register.0 {
            Register::TPR => self.state.tpr = value as u8,
            Register::EOI => return Ok(self.end_of_interrupt()),
            Register::SVR => self.write_spurious(value),
            Register::ESR => self.state.esr = std::mem::take(&mut self.state.errors),
            n @ Register::LVT..=Register::LVT_LAST => {
                self.write_lvt(Lvt::ALL[usize::from(n - Register::LVT)], value);
            }
            Register::INITIAL_COUNT => {
                self.state.timer.set_initial(value, self.clock.now());
            }
            Register::DIVIDE => {
                let now = self.clock.now();
                self.expire(now);
                self.state.timer.set_divide(value, now);
            }
            _ => return Err(RegisterRefused),
        }
        Ok(Effect::None)
    }

    /// Software disable masks every LVT entry. SDM 3A, 11.4.7.2.
    fn write_spurious(&mut self, value: u32) {
        self.state.svr = value & (SOFTWARE_ENABLE | 0xff);
        if !self.software_enabled() {
            for entry in &mut self.state.lvt {
                *entry |= lvt::MASKED;
            }
        }
    }

    fn write_lvt(&mut self, entry: Lvt, value: u32) {
        let mut value = value & entry.writable();
        if !self.software_enabled() {
            value |= lvt::MASKED;
        }
        if entry == Lvt::Timer {
            let now = self.clock.now();
            // What was due before the change happened before it.
            self.expire(now);
            self.state.timer.set_mode(Mode::from_entry(value), now);
        }
        let old = &mut self.state.lvt[entry as usize];
        if value & lvt::LEVEL != 0 {
            value |= *old & lvt::REMOTE_IRR;
        }
        *old = value;
    }

    /// Carries out a write to the ICR. SDM 3A, 11.6.1.
    fn send(&mut self, command: u32, destination: u32) -> Effect {
        let Some(mode) = DeliveryMode::from_bits(command >> 8) else {
            return Effect::None;
        };
        let vector = command as u8;
        let level_triggered = command & 1 << 15 != 0;
        let deasserted = command & 1 << 14 == 0;
        if mode == DeliveryMode::Init && level_triggered && deasserted {
            // INIT level de-assert: without function on these processors.
            return Effect::None;
        }
        let interrupt = matches!(mode, DeliveryMode::Fixed | DeliveryMode::LowestPriority);
        if interrupt && vector < 16 {
            self.raise_error(error::SEND_ILLEGAL_VECTOR);
            return Effect::None;
        }
        let shorthand = match command >> 18 & 3 {
            0 => Shorthand::None,
            1 => Shorthand::Myself,
            2 => Shorthand::All,
            _ => Shorthand::Others,
        };
        let message = Message {
            destination,
            logical: command & 1 << 11 != 0,
            mode,
            vector,
            // Interprocessor interrupts are edge triggered whatever the command says. SDM 3A,
            // 11.6.1.
            level: false,
        };
        Effect::Send(shorthand, message)
    }

    /// IA32_TSC_DEADLINE.
    pub fn tsc_deadline(&mut self) -> u64 {
        let now = self.clock.now();
        self.expire(now);
        self.state.timer.tsc_deadline()
    }

    /// Writes IA32_TSC_DEADLINE. A deadline that has passed fires at once. `tsc_adjust` is what the
    /// vCPU's counter is ahead of the machine's.
    pub fn set_tsc_deadline(&mut self, value: u64, tsc_adjust: u64) {
        let timer = &mut self.state.timer;
        timer.set_tsc_deadline(value, tsc_adjust, &*self.clock);
        if self.deadline() == Some(belljar_clock::Nanos(0)) {
            self.expire(self.clock.now());
        }
    }
}
