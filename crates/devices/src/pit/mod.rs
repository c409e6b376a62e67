//! The interval timer (Intel 8254) of a PC, with port 61h, which gates counter 2 and shows its
//! output.
//!
//! Counter 0 drives interrupt line 0, counter 1 drives nothing (it refreshed memory once), counter
//! 2 drives the speaker.

mod counter;
#[cfg(test)]
mod tests;

use crate::bus::{Device, read_bytes, write_bytes};
use crate::irq::IrqLine;
use crate::timers::{Timed, TimerWake};
use belljar_clock::{Clock, Nanos};
use counter::Counter;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Frequency of the counters in hertz.
pub const PIT_HZ: u64 = 1_193_182;
/// The shortest time between two interrupts, in nanoseconds: a guest that asks for more must not
/// keep the machine's timer thread busy.
const SHORTEST_PERIOD: u64 = 20_000;
/// Half the period of the memory refresh signal, which port 61h shows, in nanoseconds.
const REFRESH_TOGGLE: u64 = 15_085;

/// Offset of the control word register from port 40h, and of port 61h.
const CONTROL: u64 = 3;
const PORT_61: u64 = 0x21;

/// Port 61h.
mod port_61 {
    /// Gate of counter 2.
    pub const GATE: u8 = 1 << 0;
    /// What reads back as written: gate, speaker, and the enables of two error checks.
    pub const WRITABLE: u8 = 0x0f;
    pub const REFRESH: u8 = 1 << 4;
    pub const OUTPUT: u8 = 1 << 5;
}

/// The state of a [`Pit`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PitState {
    counters: [Counter; 3],
    port_61: u8,
    /// The tick up to which counter 0's output has been shown to the interrupt line.
    shown: u64,
    /// The machine time of the last interrupt.
    last_interrupt: Nanos,
}

/// The interval timer.
#[derive(Debug)]
pub struct Pit {
    state: PitState,
    irq: IrqLine,
    clock: Arc<dyn Clock>,
    wake: Arc<dyn TimerWake>,
}

/// Ticks since machine time 0.
fn ticks(now: Nanos) -> u64 {
    (u128::from(now.0) * u128::from(PIT_HZ) / u128::from(Nanos::SECOND)) as u64
}

/// The machine time at which `tick` is reached.
fn time_of(tick: u64) -> Nanos {
    let nanos = (u128::from(tick) * u128::from(Nanos::SECOND)).div_ceil(u128::from(PIT_HZ));
    Nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

impl Pit {
    /// The timer after power-on. `irq` is counter 0's line.
    pub fn new(irq: IrqLine, clock: Arc<dyn Clock>, wake: Arc<dyn TimerWake>) -> Self {
        let state = Self::initial(clock.now());
        Self::restore(state, irq, clock, wake)
    }

    /// The timer as it was saved.
    pub fn restore(
        state: PitState,
        irq: IrqLine,
        clock: Arc<dyn Clock>,
        wake: Arc<dyn TimerWake>,
    ) -> Self {
        Self {
            state,
            irq,
            clock,
            wake,
        }
    }

    /// The whole state.
    pub fn save(&self) -> PitState {
        self.state.clone()
    }

    /// Power-on reset.
    pub fn reset(&mut self) {
        let now = self.clock.now();
        self.state = Self::initial(now);
        self.irq.set(false);
    }

    fn initial(now: Nanos) -> PitState {
        let mut state = PitState {
            counters: Default::default(),
            port_61: 0,
            shown: ticks(now),
            last_interrupt: Nanos(0),
        };
        state.counters[2].set_gate(false, state.shown);
        state
    }

    /// Brings counter 0 to `now` and shows its output to the interrupt line. Rises that passed
    /// unserved are one interrupt. Between two rises of a periodic mode the line rests high: an
    /// 8259A takes a line that falls early for an interrupt withdrawn, and a vCPU may be late.
    fn sync(&mut self, now: Nanos) {
        let tick = ticks(now);
        let counter = &mut self.state.counters[0];
        let rose = counter.rose(self.state.shown, tick);
        counter.sync(tick);
        self.state.shown = tick;
        if rose {
            self.state.last_interrupt = now;
            self.irq.pulse();
        }
    }

    /// After a change of counter 0.
    fn changed(&mut self, now: Nanos) {
        if !self.state.counters[0].output(ticks(now)) {
            self.irq.set(false);
        }
        if let Some(at) = self.deadline() {
            self.wake.deadline_changed(at);
        }
    }

    fn write_control(&mut self, value: u8, tick: u64) {
        let select = value >> 6;
        if select == 3 {
            self.read_back(value, tick);
        } else if let Some(counter) = self.state.counters.get_mut(usize::from(select)) {
            if value & 0x30 == 0 {
                counter.latch_count(tick);
            } else {
                counter.set_control(value);
            }
        }
    }

    /// The read-back command: latches count and status of several counters.
    fn read_back(&mut self, value: u8, tick: u64) {
        for (i, counter) in self.state.counters.iter_mut().enumerate() {
            if value & 2 << i == 0 {
                continue;
            }
            if value & 0x20 == 0 {
                counter.latch_count(tick);
            }
            if value & 0x10 == 0 {
                counter.latch_status(tick);
            }
        }
    }

    fn read_register(&mut self, offset: u64, now: Nanos) -> u8 {
        let tick = ticks(now);
        if offset == PORT_61 {
            return self.read_port_61(now);
        }
        let counter = self.state.counters.get_mut(offset as usize);
        // The control word cannot be read.
        counter.map_or(0xff, |counter| counter.read(tick))
    }

    fn read_port_61(&mut self, now: Nanos) -> u8 {
        let tick = ticks(now);
        let counter = &mut self.state.counters[2];
        counter.sync(tick);
        let output = if counter.output(tick) {
            port_61::OUTPUT
        } else {
            0
        };
        let refresh = if (now.0 / REFRESH_TOGGLE) & 1 != 0 {
            port_61::REFRESH
        } else {
            0
        };
        self.state.port_61 | output | refresh
    }

    fn write_register(&mut self, offset: u64, value: u8, now: Nanos) {
        let tick = ticks(now);
        match offset {
            CONTROL => self.write_control(value, tick),
            PORT_61 => {
                self.state.port_61 = value & port_61::WRITABLE;
                let gate = value & port_61::GATE != 0;
                self.state.counters[2].set_gate(gate, tick);
            }
            _ => {
                if let Some(counter) = self.state.counters.get_mut(offset as usize) {
                    counter.write(value, tick);
                }
            }
        }
        if offset == 0 || offset == CONTROL {
            self.changed(now);
        }
    }
}

impl Device for Pit {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let now = self.clock.now();
        self.sync(now);
        read_bytes(offset, data, |at| self.read_register(at, now));
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let now = self.clock.now();
        self.sync(now);
        write_bytes(offset, data, |at, value| {
            self.write_register(at, value, now);
        });
    }
}

impl Timed for Pit {
    fn deadline(&self) -> Option<Nanos> {
        let rise = time_of(self.state.counters[0].next_rise(self.state.shown)?);
        Some(rise.max(self.state.last_interrupt.after(SHORTEST_PERIOD)))
    }

    fn expire(&mut self, now: Nanos) {
        self.sync(now);
    }
}
