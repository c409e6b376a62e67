//! One counter of the 8254. Intel 8254 data sheet, "Mode definitions".
//!
//! Nothing ticks here: a counter holds the tick at which its count was loaded, and what the guest
//! sees is computed from the present tick.

use serde::{Deserialize, Serialize};

/// What counts do after the terminal count, and how the output moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Mode {
    /// Mode 0: the output rises at the terminal count.
    #[default]
    TerminalCount,
    /// Mode 1: a one-shot pulse, begun by the gate.
    OneShot,
    /// Mode 2: a low pulse of one tick each period.
    RateGenerator,
    /// Mode 3: a square wave.
    SquareWave,
    /// Mode 4: a low pulse of one tick at the terminal count.
    SoftwareStrobe,
    /// Mode 5: as mode 4, begun by the gate.
    HardwareStrobe,
}

/// Which bytes of a count the port takes and gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Bytes {
    Low,
    High,
    #[default]
    LowThenHigh,
}

/// A span of counting: in mode 3 one half of the wave, else from the load of a count to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    /// The tick at which `count` was loaded into the counting element.
    start: u64,
    /// The count, 1 to 65536.
    count: u32,
    /// Mode 3: whether this is the half in which the output is high.
    high: bool,
    /// The tick at which the gate stopped the counting, if it did.
    stopped: Option<u64>,
}

/// One counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counter {
    mode: Mode,
    bytes: Bytes,
    bcd: bool,
    /// Control word, as the status byte shows it.
    control: u8,
    gate: bool,
    /// The count register as written.
    register: u16,
    /// The count register holds a count that the counting element has not taken yet.
    fresh: bool,
    /// The first of two bytes written.
    low_written: Option<u8>,
    /// The second of two bytes is read next.
    high_next: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
    run: Option<Run>,
}

impl Default for Counter {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            bytes: Bytes::default(),
            bcd: false,
            control: 0x30,
            gate: true,
            register: 0,
            fresh: false,
            low_written: None,
            high_next: false,
            latched_count: None,
            latched_status: None,
            run: None,
        }
    }
}

impl Counter {
    fn triggered_by_gate(&self) -> bool {
        matches!(self.mode, Mode::OneShot | Mode::HardwareStrobe)
    }

    fn periodic(&self) -> bool {
        matches!(self.mode, Mode::RateGenerator | Mode::SquareWave)
    }

    /// Size of the range that the counting element wraps in.
    fn modulus(&self) -> u32 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    /// The count that the count register stands for: 0 is the largest.
    fn register_count(&self) -> u32 {
        let raw = u32::from(self.register);
        let value = if self.bcd {
            // Digits beyond 9 count as they stand: no more than the largest count in the end.
            (0..4).fold(0, |sum, i| sum + (raw >> (4 * i) & 0xf) * 10u32.pow(i))
        } else {
            raw
        };
        let value = if value == 0 {
            self.modulus()
        } else {
            value.min(self.modulus())
        };
        // A period of 1 is illegal in the periodic modes.
        if self.periodic() { value.max(2) } else { value }
    }

    /// Control word for this counter.
    pub(super) fn set_control(&mut self, value: u8) {
        self.control = value & 0x3f;
        self.bytes = match value >> 4 & 3 {
            1 => Bytes::Low,
            2 => Bytes::High,
            _ => Bytes::LowThenHigh,
        };
        self.mode = match value >> 1 & 7 {
            0 => Mode::TerminalCount,
            1 => Mode::OneShot,
            2 | 6 => Mode::RateGenerator,
            3 | 7 => Mode::SquareWave,
            4 => Mode::SoftwareStrobe,
            _ => Mode::HardwareStrobe,
        };
        self.bcd = value & 1 != 0;
        self.fresh = true;
        self.low_written = None;
        self.high_next = false;
        self.latched_count = None;
        self.latched_status = None;
        self.run = None;
    }

    /// Brings the counter to tick `now`: ends the runs that are over.
    pub(super) fn sync(&mut self, now: u64) {
        if !self.periodic() {
            return;
        }
        while let Some(run) = self.run {
            let length = self.length(&run);
            if run.stopped.is_some() || now.saturating_sub(run.start) < length {
                return;
            }
            if !self.fresh {
                // Whole periods change nothing.
                let periods = (now - run.start) / u64::from(run.count.max(1));
                if periods > 0 {
                    self.run = Some(Run {
                        start: run.start + periods * u64::from(run.count),
                        ..run
                    });
                    continue;
                }
            }
            let count = if self.fresh {
                self.register_count()
            } else {
                run.count
            };
            self.fresh = false;
            self.run = Some(Run {
                start: run.start + length,
                count,
                high: !run.high,
                stopped: None,
            });
        }
    }

    /// Ticks that a run of a periodic mode takes.
    fn length(&self, run: &Run) -> u64 {
        let count = u64::from(run.count);
        match (self.mode, run.high) {
            // An odd count is high for one tick longer.
            (Mode::SquareWave, true) => count.div_ceil(2),
            (Mode::SquareWave, false) => count / 2,
            _ => count,
        }
        .max(1)
    }

    fn load(&mut self, now: u64) {
        self.fresh = false;
        self.run = Some(Run {
            start: now,
            count: self.register_count(),
            high: true,
            stopped: None,
        });
        if !self.gate && !self.triggered_by_gate() {
            self.stop(now);
        }
    }

    fn stop(&mut self, now: u64) {
        if let Some(run) = &mut self.run {
            run.stopped.get_or_insert(now);
        }
    }

    /// Writes the counter's port.
    pub(super) fn write(&mut self, value: u8, now: u64) {
        self.sync(now);
        let register = match (self.bytes, self.low_written.take()) {
            (Bytes::Low, _) => u16::from(value),
            (Bytes::High, _) => u16::from(value) << 8,
            (Bytes::LowThenHigh, Some(low)) => u16::from_le_bytes([low, value]),
            (Bytes::LowThenHigh, None) => {
                self.low_written = Some(value);
                if self.mode == Mode::TerminalCount {
                    // The first byte stops the counting, and the output falls.
                    self.run = None;
                    self.fresh = true;
                }
                return;
            }
        };
        self.register = register;
        self.fresh = true;
        let waits = self.triggered_by_gate() || (self.periodic() && self.run.is_some());
        if !waits {
            self.load(now);
        }
    }

    /// Sets the gate's level.
    pub(super) fn set_gate(&mut self, gate: bool, now: u64) {
        self.sync(now);
        let rises = gate && !self.gate;
        let falls = !gate && self.gate;
        self.gate = gate;
        match self.mode {
            Mode::OneShot | Mode::HardwareStrobe if rises => self.load(now),
            Mode::RateGenerator | Mode::SquareWave if rises && self.run.is_some() => self.load(now),
            Mode::OneShot | Mode::HardwareStrobe => {}
            _ if falls => self.stop(now),
            _ if rises => self.go_on(now),
            _ => {}
        }
    }

    /// Counting goes on where the gate stopped it.
    fn go_on(&mut self, now: u64) {
        if let Some(run) = &mut self.run
            && let Some(stopped) = run.stopped.take()
        {
            run.start += now.saturating_sub(stopped);
        }
    }

    /// Ticks counted in the present run.
    fn elapsed(run: &Run, now: u64) -> u64 {
        run.stopped.unwrap_or(now).saturating_sub(run.start)
    }

    /// The output. [`sync`](Self::sync) must have been called.
    pub(super) fn output(&self, now: u64) -> bool {
        let Some(run) = &self.run else {
            return self.mode != Mode::TerminalCount;
        };
        let (elapsed, count) = (Self::elapsed(run, now), u64::from(run.count));
        match self.mode {
            Mode::TerminalCount | Mode::OneShot => elapsed >= count,
            Mode::SoftwareStrobe | Mode::HardwareStrobe => elapsed != count,
            // A gate that is low holds the output high.
            Mode::RateGenerator => run.stopped.is_some() || elapsed + 1 != count,
            Mode::SquareWave => run.stopped.is_some() || run.high,
        }
    }

    /// The counting element as a number.
    fn count(&self, now: u64) -> u32 {
        let Some(run) = &self.run else {
            return self.register_count() % self.modulus();
        };
        let modulus = u64::from(self.modulus());
        let (elapsed, count) = (Self::elapsed(run, now), u64::from(run.count));
        let left = match self.mode {
            Mode::RateGenerator => count.saturating_sub(elapsed),
            // It counts by two, from the even number.
            Mode::SquareWave => (count & !1).saturating_sub(2 * elapsed),
            _ => (count + modulus - elapsed % modulus) % modulus,
        };
        (left % modulus) as u32
    }

    /// The counting element as it is read.
    fn count_read(&self, now: u64) -> u16 {
        let count = self.count(now);
        if self.bcd {
            (0..4).fold(0, |raw, i| raw | (count / 10u32.pow(i) % 10) << (4 * i)) as u16
        } else {
            count as u16
        }
    }

    /// Counter latch command.
    pub(super) fn latch_count(&mut self, now: u64) {
        self.sync(now);
        if self.latched_count.is_none() {
            self.latched_count = Some(self.count_read(now));
        }
    }

    /// Status latch of the read-back command.
    pub(super) fn latch_status(&mut self, now: u64) {
        self.sync(now);
        if self.latched_status.is_none() {
            let output = u8::from(self.output(now)) << 7;
            let null_count = u8::from(self.fresh) << 6;
            self.latched_status = Some(output | null_count | self.control);
        }
    }

    /// Reads the counter's port: a latched status, then a latched count, then the count as it is.
    pub(super) fn read(&mut self, now: u64) -> u8 {
        self.sync(now);
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let count = self.latched_count.unwrap_or_else(|| self.count_read(now));
        let [low, high] = count.to_le_bytes();
        let (value, last) = match self.bytes {
            Bytes::Low => (low, true),
            Bytes::High => (high, true),
            Bytes::LowThenHigh if self.high_next => (high, true),
            Bytes::LowThenHigh => (low, false),
        };
        self.high_next = !last;
        if last {
            self.latched_count = None;
        }
        value
    }

    /// The next tick after `now` at which the output rises, if it will by itself.
    pub(super) fn next_rise(&self, now: u64) -> Option<u64> {
        let run = self.run.as_ref().filter(|run| run.stopped.is_none())?;
        let count = u64::from(run.count);
        let at = match self.mode {
            Mode::TerminalCount | Mode::OneShot | Mode::RateGenerator => run.start + count,
            Mode::SoftwareStrobe | Mode::HardwareStrobe => run.start + count + 1,
            // A high half is followed by a low one before it rises.
            Mode::SquareWave if run.high => run.start + count,
            Mode::SquareWave => run.start + self.length(run),
        };
        let later = at > now || self.periodic();
        later.then(|| at.max(now + 1))
    }

    /// How often the output rose after tick `since` and until `now`, if at all.
    /// [`sync`](Self::sync) has not been called.
    pub(super) fn rose(&self, since: u64, now: u64) -> bool {
        self.next_rise(since).is_some_and(|at| at <= now)
    }
}
