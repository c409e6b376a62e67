//! The real-time clock with its CMOS RAM (Motorola MC146818) of a PC.
//!
//! The clock shows the machine's wall clock, moved by what the guest sets. Nothing ticks: registers
//! are computed when they are looked at, and deadlines exist only while an interrupt is enabled.

mod calendar;
#[cfg(test)]
mod tests;

use crate::bus::{Device, read_bytes, write_bytes};
use crate::irq::IrqLine;
use crate::layout;
use crate::timers::{Timed, TimerWake};
use belljar_clock::{Clock, Nanos};
use calendar::DateTime;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Number of bytes of registers and RAM.
const SIZE: usize = 128;
/// How long before an update bit UIP tells of it: 244 microseconds. MC146818 data sheet, "Update
/// cycle".
const UPDATE_WARNING: i64 = 244_000;
/// One second in nanoseconds.
const SECOND: i64 = Nanos::SECOND as i64;

/// Indices of registers.
mod index {
    pub const SECONDS: usize = 0x00;
    pub const SECONDS_ALARM: usize = 0x01;
    pub const MINUTES: usize = 0x02;
    pub const MINUTES_ALARM: usize = 0x03;
    pub const HOURS: usize = 0x04;
    pub const HOURS_ALARM: usize = 0x05;
    pub const WEEKDAY: usize = 0x06;
    pub const DAY: usize = 0x07;
    pub const MONTH: usize = 0x08;
    pub const YEAR: usize = 0x09;
    pub const A: usize = 0x0a;
    pub const B: usize = 0x0b;
    pub const C: usize = 0x0c;
    pub const D: usize = 0x0d;
    pub const CENTURY: usize = crate::layout::RTC_CENTURY as usize;
}

/// Register A.
mod reg_a {
    pub const UPDATE_IN_PROGRESS: u8 = 1 << 7;
    /// Both set: the divider chain is held in reset.
    pub const DIVIDER_RESET: u8 = 0x60;
    pub const RATE: u8 = 0x0f;
}

/// Register B. Bits 4 to 6 enable the interrupts of the flags in register C.
mod reg_b {
    pub const SET: u8 = 1 << 7;
    pub const PERIODIC: u8 = 1 << 6;
    pub const ALARM: u8 = 1 << 5;
    pub const UPDATE: u8 = 1 << 4;
    pub const SQUARE_WAVE: u8 = 1 << 3;
    pub const BINARY: u8 = 1 << 2;
    pub const HOURS_24: u8 = 1 << 1;
    pub const INTERRUPTS: u8 = PERIODIC | ALARM | UPDATE;
}

/// Register C: an enabled flag is set.
const IRQ_FLAG: u8 = 1 << 7;
/// Register D: RAM and time are valid.
const VALID: u8 = 1 << 7;
/// Hours in 12-hour mode: afternoon.
const PM: u8 = 1 << 7;

/// The state of an [`Rtc`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    /// Registers and RAM. While the clock runs, its time registers here are old.
    ram: Vec<u8>,
    index: u8,
    nmi_masked: bool,
    /// What the clock is ahead of the machine's wall clock, in nanoseconds.
    ahead: i64,
    /// The second that was last seen.
    second: i64,
    /// Ticks of the periodic interrupt that were last seen.
    ticks: u64,
    due: Option<Nanos>,
}

/// The real-time clock.
#[derive(Debug)]
pub struct Rtc {
    state: RtcState,
    irq: IrqLine,
    clock: Arc<dyn Clock>,
    wake: Arc<dyn TimerWake>,
}

impl Rtc {
    /// The clock of a machine with `memory_size` bytes of RAM, set to the machine's wall clock.
    pub fn new(
        irq: IrqLine,
        clock: Arc<dyn Clock>,
        wake: Arc<dyn TimerWake>,
        memory_size: u64,
    ) -> Self {
        let state = RtcState {
            ram: initial_ram(memory_size),
            index: 0,
            nmi_masked: false,
            ahead: 0,
            second: 0,
            ticks: 0,
            due: None,
        };
        let mut rtc = Self::restore(state, irq, clock, wake);
        rtc.state.second = rtc.time().div_euclid(SECOND);
        rtc
    }

    /// The clock as it was saved. The time goes on with the machine's wall clock.
    pub fn restore(
        mut state: RtcState,
        irq: IrqLine,
        clock: Arc<dyn Clock>,
        wake: Arc<dyn TimerWake>,
    ) -> Self {
        state.ram.resize(SIZE, 0);
        let mut rtc = Self {
            state,
            irq,
            clock,
            wake,
        };
        rtc.update_irq();
        rtc
    }

    /// The whole state.
    pub fn save(&self) -> RtcState {
        self.state.clone()
    }

    /// What the chip's reset input does: interrupts are off; time and RAM stay, they have a
    /// battery.
    pub fn reset(&mut self) {
        let b = self.ram(index::B);
        self.set_ram(index::B, b & !(reg_b::INTERRUPTS | reg_b::SQUARE_WAVE));
        self.set_ram(index::C, 0);
        self.state.index = 0;
        self.state.nmi_masked = false;
        self.update_irq();
    }

    /// Whether bit 7 of port 70h keeps NMIs from the processor.
    pub fn nmi_masked(&self) -> bool {
        self.state.nmi_masked
    }

    fn ram(&self, index: usize) -> u8 {
        self.state.ram.get(index).copied().unwrap_or(0)
    }

    fn set_ram(&mut self, index: usize, value: u8) {
        if let Some(byte) = self.state.ram.get_mut(index) {
            *byte = value;
        }
    }

    /// The clock's time in nanoseconds since 1970.
    fn time(&self) -> i64 {
        (self.clock.wall() as i64).saturating_add(self.state.ahead)
    }

    /// Whether the time registers stand still: they are being set, or the divider chain is held in
    /// reset.
    fn halted(&self) -> bool {
        self.ram(index::B) & reg_b::SET != 0 || self.divider_reset()
    }

    fn divider_reset(&self) -> bool {
        self.ram(index::A) & reg_a::DIVIDER_RESET == reg_a::DIVIDER_RESET
    }

    /// A number as the registers hold it in the present mode.
    fn encode(&self, value: u8) -> u8 {
        if self.ram(index::B) & reg_b::BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    fn decode(&self, raw: u8) -> u8 {
        if self.ram(index::B) & reg_b::BINARY != 0 {
            raw
        } else {
            (raw >> 4) * 10 + (raw & 0xf)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.ram(index::B) & reg_b::HOURS_24 != 0 {
            return self.encode(hour);
        }
        let twelve = (hour + 11) % 12 + 1;
        self.encode(twelve) | if hour >= 12 { PM } else { 0 }
    }

    fn decode_hour(&self, raw: u8) -> u8 {
        if self.ram(index::B) & reg_b::HOURS_24 != 0 {
            return self.decode(raw);
        }
        let twelve = self.decode(raw & !PM) % 12;
        twelve + if raw & PM != 0 { 12 } else { 0 }
    }

    /// Brings the time registers to the clock's time.
    fn show_time(&mut self) {
        let date = DateTime::from_seconds(self.time().div_euclid(SECOND));
        let year = date.year.rem_euclid(100) as u8;
        let century = date.year.div_euclid(100).clamp(0, 99) as u8;
        for (index, value) in [
            (index::SECONDS, self.encode(date.second)),
            (index::MINUTES, self.encode(date.minute)),
            (index::HOURS, self.encode_hour(date.hour)),
            (index::WEEKDAY, self.encode(date.weekday)),
            (index::DAY, self.encode(date.day)),
            (index::MONTH, self.encode(date.month)),
            (index::YEAR, self.encode(year)),
            // Firmware keeps the century, in BCD whatever the mode.
            (index::CENTURY, ((century / 10) << 4) | (century % 10)),
        ] {
            self.set_ram(index, value);
        }
    }

    /// Sets the clock to what the time registers hold, `nanos` into that second.
    fn take_time(&mut self, nanos: i64) {
        let century = self.ram(index::CENTURY);
        let century = i64::from(century >> 4) * 10 + i64::from(century & 0xf);
        let date = DateTime {
            year: century * 100 + i64::from(self.decode(self.ram(index::YEAR))),
            month: self.decode(self.ram(index::MONTH)),
            day: self.decode(self.ram(index::DAY)),
            weekday: 1,
            hour: self.decode_hour(self.ram(index::HOURS)),
            minute: self.decode(self.ram(index::MINUTES)),
            second: self.decode(self.ram(index::SECONDS)),
        };
        let second = date.to_seconds();
        let time = second.saturating_mul(SECOND).saturating_add(nanos);
        self.state.ahead = time.saturating_sub(self.clock.wall() as i64);
        self.state.second = self.time().div_euclid(SECOND);
    }

    /// Frequency of the periodic interrupt in hertz: 0 is off. Data sheet, table 5, for a crystal
    /// of 32,768 Hz.
    fn rate(&self) -> u64 {
        match self.ram(index::A) & reg_a::RATE {
            0 => 0,
            rate @ 1..=2 => 512 >> rate,
            rate => 65_536 >> rate,
        }
    }

    fn ticks_at(&self, now: Nanos) -> u64 {
        (u128::from(now.0) * u128::from(self.rate()) / u128::from(Nanos::SECOND)) as u64
    }

    /// Sets the flags of what happened since the last call.
    fn sync(&mut self) {
        let mut flags = 0;
        let ticks = self.ticks_at(self.clock.now());
        if ticks != self.state.ticks && !self.divider_reset() {
            flags |= reg_b::PERIODIC;
        }
        self.state.ticks = ticks;
        if !self.halted() {
            let second = self.time().div_euclid(SECOND);
            if second != self.state.second {
                flags |= reg_b::UPDATE;
                if self.alarm_between(self.state.second, second) {
                    flags |= reg_b::ALARM;
                }
            }
            self.state.second = second;
        }
        let old = self.ram(index::C);
        self.set_ram(index::C, old | flags);
        self.update_irq();
    }

    /// Whether the alarm's time came after second `from` and until second `to`.
    fn alarm_between(&self, from: i64, to: i64) -> bool {
        // The alarm knows no date: a day has all its times.
        let from = from.max(to.saturating_sub(86_400));
        let matches = |raw: u8, value: u8, decoded: u8| raw >= 0xc0 || decoded == value;
        let (s, m, h) = (
            self.ram(index::SECONDS_ALARM),
            self.ram(index::MINUTES_ALARM),
            self.ram(index::HOURS_ALARM),
        );
        let (ds, dm, dh) = (self.decode(s), self.decode(m), self.decode_hour(h));
        (from.saturating_add(1)..=to).any(|second| {
            let of_day = second.rem_euclid(86_400);
            matches(s, (of_day % 60) as u8, ds)
                && matches(m, (of_day / 60 % 60) as u8, dm)
                && matches(h, (of_day / 3_600) as u8, dh)
        })
    }

    /// Shows the flags to the interrupt line, and sets the next deadline.
    fn update_irq(&mut self) {
        let flags = self.ram(index::C) & !IRQ_FLAG;
        let wanted = flags & self.ram(index::B) & reg_b::INTERRUPTS != 0;
        self.set_ram(index::C, flags | if wanted { IRQ_FLAG } else { 0 });
        self.irq.set(wanted);
        let due = if wanted { None } else { self.next_event() };
        if due != self.state.due {
            self.state.due = due;
            if let Some(at) = due {
                self.wake.deadline_changed(at);
            }
        }
    }

    /// When an enabled interrupt may be next.
    fn next_event(&self) -> Option<Nanos> {
        let (b, rate, now) = (self.ram(index::B), self.rate(), self.clock.now());
        let periodic =
            (b & reg_b::PERIODIC != 0 && rate != 0 && !self.divider_reset()).then(|| {
                let next = u128::from(self.state.ticks) + 1;
                let nanos = (next * u128::from(Nanos::SECOND)).div_ceil(u128::from(rate));
                Nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
            });
        let update = (b & (reg_b::UPDATE | reg_b::ALARM) != 0 && !self.halted())
            .then(|| now.after((SECOND - self.time().rem_euclid(SECOND)) as u64));
        periodic.into_iter().chain(update).min()
    }

    fn read_data(&mut self) -> u8 {
        self.sync();
        let index = usize::from(self.state.index);
        match index {
            index::A => self.ram(index::A) | self.update_in_progress(),
            index::C => {
                let flags = self.ram(index::C);
                self.set_ram(index::C, 0);
                self.update_irq();
                flags
            }
            index::D => VALID,
            _ => {
                if is_time(index) && !self.halted() {
                    self.show_time();
                }
                self.ram(index)
            }
        }
    }

    fn update_in_progress(&self) -> u8 {
        let left = SECOND - self.time().rem_euclid(SECOND);
        if !self.halted() && left <= UPDATE_WARNING {
            reg_a::UPDATE_IN_PROGRESS
        } else {
            0
        }
    }

    fn write_data(&mut self, value: u8) {
        self.sync();
        let index = usize::from(self.state.index);
        match index {
            index::A => {
                self.write_control(index::A, value & !reg_a::UPDATE_IN_PROGRESS);
                self.state.ticks = self.ticks_at(self.clock.now());
            }
            index::B => {
                let mut value = value;
                if value & reg_b::SET != 0 {
                    // Data sheet, "Register B": setting SET clears UIE.
                    value &= !reg_b::UPDATE;
                }
                self.write_control(index::B, value);
            }
            index::C | index::D => {}
            _ if is_time(index) && !self.halted() => {
                let nanos = self.time().rem_euclid(SECOND);
                self.show_time();
                self.set_ram(index, value);
                self.take_time(nanos);
            }
            _ => self.set_ram(index, value),
        }
        self.update_irq();
    }

    /// Writes register A or B, which may halt the clock or let it go.
    fn write_control(&mut self, index: usize, value: u8) {
        let (was_halted, was_reset) = (self.halted(), self.divider_reset());
        if !was_halted {
            // In the present mode: what follows may change it.
            self.show_time();
        }
        let nanos = self.time().rem_euclid(SECOND);
        self.set_ram(index, value);
        if was_halted && !self.halted() {
            // The first update comes half a second after the divider chain is let go. Data sheet,
            // "Divider control".
            self.take_time(if was_reset { SECOND / 2 } else { nanos });
        }
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        if offset == 0 {
            self.state.index = value & 0x7f;
            self.state.nmi_masked = value & 0x80 != 0;
        } else {
            self.write_data(value);
        }
    }
}

/// Whether `index` is one of the registers that show the time.
fn is_time(index: usize) -> bool {
    matches!(
        index,
        index::SECONDS | index::MINUTES | index::HOURS | index::WEEKDAY
            ..=index::YEAR | index::CENTURY
    )
}

/// The RAM as firmware sets it up: 24-hour BCD time, and the sizes of memory where PC firmware
/// keeps them.
fn initial_ram(memory_size: u64) -> Vec<u8> {
    const MIB: u64 = 1 << 20;
    const HOLE: u64 = 3 << 30;
    let mut ram = vec![0; SIZE];
    ram[index::A] = 0x26;
    ram[index::B] = reg_b::HOURS_24;
    // Equipment: a floating point unit.
    ram[0x14] = 0x02;
    let low = memory_size.min(HOLE);
    let kib_above_1m = (low.saturating_sub(MIB) >> 10).min(0xffff) as u16;
    let blocks_above_16m = (low.saturating_sub(16 * MIB) >> 16).min(0xffff) as u16;
    for (index, value) in [
        (0x15, 640),
        (0x17, kib_above_1m),
        (0x30, kib_above_1m),
        (0x34, blocks_above_16m),
    ] {
        ram[index..index + 2].copy_from_slice(&value.to_le_bytes());
    }
    // Blocks of 64 KiB above 4 GiB: 24 bits.
    let high = (memory_size - low) >> 16;
    ram[0x5b..0x5e].copy_from_slice(&high.to_le_bytes()[..3]);
    let sum: u16 = ram[0x10..0x2e].iter().map(|b| u16::from(*b)).sum();
    ram[0x2e..0x30].copy_from_slice(&sum.to_be_bytes());
    debug_assert_eq!(layout::RTC.base, 0x70);
    ram
}

impl Device for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // The index cannot be read.
        read_bytes(
            offset,
            data,
            |at| {
                if at == 1 { self.read_data() } else { 0xff }
            },
        );
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        write_bytes(offset, data, |at, value| self.write_register(at, value));
    }
}

impl Timed for Rtc {
    fn deadline(&self) -> Option<Nanos> {
        self.state.due
    }

    fn expire(&mut self, _: Nanos) {
        self.sync();
    }
}
