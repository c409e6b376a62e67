//! A serial port: the 16550A UART. National Semiconductor PC16550D data sheet.
//!
//! What the guest sends goes to the backend at once: the transmitter is always empty. What arrives
//! waits in the receive FIFO, and whoever brings it is told when there is room again.

use crate::bus::{Device, read_bytes, write_bytes};
use crate::irq::IrqLine;
use crate::timers::{Timed, TimerWake};
use belljar_clock::{Clock, Nanos};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;

/// Capacity of the receive FIFO in bytes.
const FIFO_SIZE: usize = 16;
/// Frequency of the UART's crystal divided by 16: the baud rate of divisor 1.
const BASE_BAUD: u64 = 115_200;

/// Interrupt enable register.
mod ier {
    pub const RECEIVED: u8 = 1 << 0;
    pub const TRANSMITTER: u8 = 1 << 1;
    pub const LINE: u8 = 1 << 2;
    pub const MODEM: u8 = 1 << 3;
    pub const ALL: u8 = 0x0f;
}

/// Interrupt identification register: causes by falling priority.
mod iir {
    pub const NONE: u8 = 0x01;
    pub const LINE: u8 = 0x06;
    pub const RECEIVED: u8 = 0x04;
    pub const TIMEOUT: u8 = 0x0c;
    pub const TRANSMITTER: u8 = 0x02;
    pub const MODEM: u8 = 0x00;
    pub const FIFOS: u8 = 0xc0;
}

/// FIFO control register.
mod fcr {
    pub const ENABLE: u8 = 1 << 0;
    pub const CLEAR_RECEIVER: u8 = 1 << 1;
    /// DMA mode and trigger level, which stay; the rest acts once.
    pub const KEPT: u8 = 0xc9;
}

/// Line control register.
mod lcr {
    pub const BREAK: u8 = 1 << 6;
    pub const DIVISOR: u8 = 1 << 7;
}

/// Modem control register.
mod mcr {
    pub const OUT2: u8 = 1 << 3;
    pub const LOOPBACK: u8 = 1 << 4;
    pub const ALL: u8 = 0x1f;
}

/// Line status register.
mod lsr {
    pub const READY: u8 = 1 << 0;
    pub const OVERRUN: u8 = 1 << 1;
    pub const BREAK: u8 = 1 << 4;
    pub const ERRORS: u8 = 0x1e;
    pub const EMPTY: u8 = 0x60;
    pub const FIFO_ERROR: u8 = 1 << 7;
}

/// Modem status register: the lines in bits 4 to 7, their changes below.
mod msr {
    pub const RING_ENDED: u8 = 1 << 2;
    pub const CTS: u8 = 1 << 4;
    pub const DSR: u8 = 1 << 5;
    pub const RI: u8 = 1 << 6;
    pub const DCD: u8 = 1 << 7;
    /// A peer that is there and ready.
    pub const CONNECTED: u8 = CTS | DSR | DCD;
}

/// The other end of the line. It is called with the serial port's lock held, so it must not wait,
/// and not call into the port.
pub trait SerialBackend: Send {
    /// Takes what the guest sent. What cannot be taken at once is kept or lost by the backend.
    fn write(&mut self, data: &[u8]);

    /// The receive FIFO was full, or the receiver disconnected, and can take bytes again.
    fn room(&mut self);
}

/// The state of a [`Serial`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    divisor: u16,
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    /// Error bits of the line status register.
    errors: u8,
    msr: u8,
    scratch: u8,
    received: VecDeque<u8>,
    /// Whether the "transmitter empty" interrupt waits.
    transmitter_waits: bool,
    /// When the bytes received so far cause an interrupt though they are fewer than the trigger
    /// level.
    timeout: Option<Nanos>,
    timed_out: bool,
    /// Whether somebody was refused and waits for room.
    refused: bool,
}

impl SerialState {
    fn new() -> Self {
        Self {
            divisor: 12,
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            errors: 0,
            msr: msr::CONNECTED,
            scratch: 0,
            received: VecDeque::new(),
            transmitter_waits: false,
            timeout: None,
            timed_out: false,
            refused: false,
        }
    }
}

/// A 16550A.
pub struct Serial {
    state: SerialState,
    backend: Box<dyn SerialBackend>,
    irq: IrqLine,
    clock: Arc<dyn Clock>,
    wake: Arc<dyn TimerWake>,
}

impl std::fmt::Debug for Serial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serial")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Serial {
    /// A serial port after reset.
    pub fn new(
        backend: Box<dyn SerialBackend>,
        irq: IrqLine,
        clock: Arc<dyn Clock>,
        wake: Arc<dyn TimerWake>,
    ) -> Self {
        Self::restore(SerialState::new(), backend, irq, clock, wake)
    }

    /// A serial port as it was saved.
    pub fn restore(
        state: SerialState,
        backend: Box<dyn SerialBackend>,
        irq: IrqLine,
        clock: Arc<dyn Clock>,
        wake: Arc<dyn TimerWake>,
    ) -> Self {
        let mut serial = Self {
            state,
            backend,
            irq,
            clock,
            wake,
        };
        serial.state.received.truncate(FIFO_SIZE);
        serial.update_irq();
        serial
    }

    /// The whole state.
    pub fn save(&self) -> SerialState {
        self.state.clone()
    }

    /// Resets the registers. Bytes received are lost.
    pub fn reset(&mut self) {
        let refused = self.state.refused;
        self.state = SerialState::new();
        self.update_irq();
        if refused {
            self.backend.room();
        }
    }

    /// How many bytes [`receive`](Self::receive) would take now.
    pub fn receive_room(&self) -> usize {
        if self.loopback() {
            return 0;
        }
        self.capacity().saturating_sub(self.state.received.len())
    }

    /// Brings bytes from the other end; tells how many were taken. If not all were,
    /// [`SerialBackend::room`] is called when the next can be.
    pub fn receive(&mut self, data: &[u8]) -> usize {
        let taken = self.receive_room().min(data.len());
        self.state.received.extend(&data[..taken]);
        self.state.refused |= taken < data.len();
        if taken > 0 {
            self.restart_timeout();
            self.update_irq();
        }
        taken
    }

    /// Brings a break: the line held low, which kernels take for "the next byte is a command"
    /// (SysRq).
    pub fn receive_break(&mut self) {
        if self.loopback() || self.state.received.len() >= self.capacity() {
            return;
        }
        self.state.received.push_back(0);
        self.state.errors |= lsr::BREAK;
        self.restart_timeout();
        self.update_irq();
    }

    fn fifos(&self) -> bool {
        self.state.fcr & fcr::ENABLE != 0
    }

    fn capacity(&self) -> usize {
        if self.fifos() { FIFO_SIZE } else { 1 }
    }

    fn loopback(&self) -> bool {
        self.state.mcr & mcr::LOOPBACK != 0
    }

    /// Number of bytes that cause an interrupt.
    fn trigger(&self) -> usize {
        if !self.fifos() {
            return 1;
        }
        match self.state.fcr >> 6 {
            0 => 1,
            1 => 4,
            2 => 8,
            _ => 14,
        }
    }

    /// Four characters after the last one came or was read, what is left causes an interrupt. Data
    /// sheet, 8.4.
    fn restart_timeout(&mut self) {
        self.state.timed_out = false;
        self.state.timeout = (self.fifos() && !self.state.received.is_empty()).then(|| {
            // Start bit, 5 to 8 data bits, parity bit, one or two stop bits.
            let lcr = u64::from(self.state.lcr);
            let bits = 1 + 5 + (lcr & 3) + (lcr >> 3 & 1) + 1 + (lcr >> 2 & 1);
            let divisor = u64::from(self.state.divisor).max(1);
            let span = 4 * bits * divisor * Nanos::SECOND / BASE_BAUD;
            self.clock.now().after(span)
        });
        if let Some(at) = self.state.timeout.filter(|_| self.timeout_matters()) {
            self.wake.deadline_changed(at);
        }
    }

    /// Whether the timeout would change anything.
    fn timeout_matters(&self) -> bool {
        self.state.ier & ier::RECEIVED != 0 && self.state.received.len() < self.trigger()
    }

    /// The cause of the interrupt of the highest priority.
    fn cause(&self) -> u8 {
        let state = &self.state;
        let enabled = |bit| state.ier & bit != 0;
        if enabled(ier::LINE) && state.errors != 0 {
            iir::LINE
        } else if enabled(ier::RECEIVED) && state.received.len() >= self.trigger() {
            iir::RECEIVED
        } else if enabled(ier::RECEIVED) && state.timed_out {
            iir::TIMEOUT
        } else if enabled(ier::TRANSMITTER) && state.transmitter_waits {
            iir::TRANSMITTER
        } else if enabled(ier::MODEM) && state.msr & 0x0f != 0 {
            iir::MODEM
        } else {
            iir::NONE
        }
    }

    /// A PC gates the interrupt by the output OUT2, which loopback mode holds inactive.
    fn update_irq(&self) {
        let gate = self.state.mcr & (mcr::OUT2 | mcr::LOOPBACK) == mcr::OUT2;
        self.irq.set(gate && self.cause() != iir::NONE);
    }

    /// Tells the backend that there is room, if somebody waits for it.
    fn tell_room(&mut self) {
        if self.state.refused && self.receive_room() > 0 {
            self.state.refused = false;
            self.backend.room();
        }
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        let divisor = self.state.lcr & lcr::DIVISOR != 0;
        let value = match offset & 7 {
            0 if divisor => self.state.divisor as u8,
            1 if divisor => (self.state.divisor >> 8) as u8,
            0 => self.read_data(),
            1 => self.state.ier,
            2 => self.read_identification(),
            3 => self.state.lcr,
            4 => self.state.mcr,
            5 => self.read_line_status(),
            6 => {
                let value = self.state.msr;
                self.state.msr &= 0xf0;
                value
            }
            _ => self.state.scratch,
        };
        self.update_irq();
        value
    }

    fn read_data(&mut self) -> u8 {
        let value = self.state.received.pop_front().unwrap_or(0);
        self.restart_timeout();
        self.tell_room();
        value
    }

    /// Reading the transmitter's interrupt ends it. Data sheet, table III.
    fn read_identification(&mut self) -> u8 {
        let cause = self.cause();
        if cause == iir::TRANSMITTER {
            self.state.transmitter_waits = false;
        }
        let fifos = if self.fifos() { iir::FIFOS } else { 0 };
        cause | fifos
    }

    fn read_line_status(&mut self) -> u8 {
        let errors = std::mem::take(&mut self.state.errors);
        let ready = if self.state.received.is_empty() {
            0
        } else {
            lsr::READY
        };
        let fifo_error = if self.fifos() && errors & (lsr::ERRORS & !lsr::OVERRUN) != 0 {
            lsr::FIFO_ERROR
        } else {
            0
        };
        lsr::EMPTY | ready | errors | fifo_error
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        let divisor = self.state.lcr & lcr::DIVISOR != 0;
        match offset & 7 {
            0 if divisor => self.state.divisor = self.state.divisor & 0xff00 | u16::from(value),
            1 if divisor => {
                self.state.divisor = self.state.divisor & 0xff | u16::from(value) << 8;
            }
            0 => self.write_data(value),
            1 => self.write_enable(value),
            2 => self.write_fifo_control(value),
            3 => self.write_line_control(value),
            4 => self.write_modem_control(value),
            5 | 6 => {}
            _ => self.state.scratch = value,
        }
        self.update_irq();
    }

    fn write_data(&mut self, value: u8) {
        if !self.loopback() {
            self.backend.write(&[value]);
        } else if self.state.received.len() < self.capacity() {
            self.state.received.push_back(value);
            self.restart_timeout();
        } else {
            self.state.errors |= lsr::OVERRUN;
            if !self.fifos() {
                // Without FIFOs the new byte takes the old one's place.
                self.state.received.clear();
                self.state.received.push_back(value);
            }
        }
        // The byte has left already: the holding register is empty again.
        self.state.transmitter_waits = true;
    }

    /// Enabling the transmitter's interrupt while the transmitter is empty causes one at once.
    fn write_enable(&mut self, value: u8) {
        let enabled = value & !self.state.ier & ier::ALL;
        self.state.ier = value & ier::ALL;
        self.state.transmitter_waits |= enabled & ier::TRANSMITTER != 0;
        if let Some(at) = self.state.timeout.filter(|_| self.timeout_matters()) {
            self.wake.deadline_changed(at);
        }
    }

    fn write_fifo_control(&mut self, value: u8) {
        let switched = (value ^ self.state.fcr) & fcr::ENABLE != 0;
        // The other bits act only together with the enable bit. Data sheet, 8.3.
        self.state.fcr = if value & fcr::ENABLE == 0 {
            0
        } else {
            value & fcr::KEPT
        };
        if switched || value & (fcr::ENABLE | fcr::CLEAR_RECEIVER) == 3 {
            self.state.received.clear();
        }
        self.restart_timeout();
        self.tell_room();
    }

    fn write_line_control(&mut self, value: u8) {
        let break_begins = value & !self.state.lcr & lcr::BREAK != 0;
        self.state.lcr = value;
        if break_begins && self.loopback() && self.state.received.len() < self.capacity() {
            // The receiver sees the transmitter's break.
            self.state.received.push_back(0);
            self.state.errors |= lsr::BREAK;
            self.restart_timeout();
        }
    }

    fn write_modem_control(&mut self, value: u8) {
        let was = self.loopback();
        self.state.mcr = value & mcr::ALL;
        self.set_modem_lines(if self.loopback() {
            // DTR, RTS, OUT1 and OUT2 come back as DSR, CTS, RI and DCD. Data sheet, 8.7.
            let m = self.state.mcr;
            (m & 1) << 5 | (m & 2) << 3 | (m & 4) << 4 | (m & 8) << 4
        } else {
            msr::CONNECTED
        });
        if was {
            self.tell_room();
        }
    }

    fn set_modem_lines(&mut self, lines: u8) {
        let old = self.state.msr & 0xf0;
        let changed = (old ^ lines) >> 4;
        let ring_ended = if old & !lines & msr::RI != 0 {
            msr::RING_ENDED
        } else {
            0
        };
        self.state.msr = lines | self.state.msr & 0x0f | changed & 0x0b | ring_ended;
    }
}

impl Device for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        read_bytes(offset, data, |at| self.read_register(at));
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        write_bytes(offset, data, |at, value| self.write_register(at, value));
    }
}

impl Timed for Serial {
    fn deadline(&self) -> Option<Nanos> {
        self.state.timeout.filter(|_| self.timeout_matters())
    }

    fn expire(&mut self, now: Nanos) {
        if self.state.timeout.is_some_and(|at| at <= now) {
            self.state.timeout = None;
            self.state.timed_out = true;
            self.update_irq();
        }
    }
}

#[cfg(test)]
mod tests;
