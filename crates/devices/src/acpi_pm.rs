//! ACPI's fixed hardware: power-management events, the sleep control, the power-management timer
//! and a block of general-purpose events. ACPI specification 6.5, 4.8.3 and 4.8.4. And the
//! two other fixed ports of a chipset: the reset control register, and the port of firmware's
//! progress codes.

use crate::bus::{Device, read_bytes, write_bytes};
use crate::control::{MachineControl, PowerEvent};
use crate::irq::IrqLine;
use crate::layout;
use crate::timers::{Timed, TimerWake};
use belljar_clock::{Clock, Nanos};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Frequency of the power-management timer in hertz.
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// The timer's status bit is set when its highest bit changes: TMR_VAL_EXT makes it 32 bits wide.
const TIMER_HALF: u64 = 1 << 31;

/// PM1 status and enable bits.
mod event {
    pub const TIMER: u16 = 1 << 0;
    pub const GLOBAL: u16 = 1 << 5;
    pub const POWER_BUTTON: u16 = 1 << 8;
    pub const RTC: u16 = 1 << 10;
    pub const WAKE: u16 = 1 << 15;
    pub const STATUS: u16 = TIMER | GLOBAL | POWER_BUTTON | RTC | WAKE;
    pub const ENABLE: u16 = TIMER | GLOBAL | POWER_BUTTON | RTC;
}

/// PM1 control bits.
mod control {
    pub const SCI_ENABLE: u16 = 1 << 0;
    pub const SLEEP_TYPE_SHIFT: u16 = 10;
    pub const SLEEP_ENABLE: u16 = 1 << 13;
    /// What reads back: SCI_EN, BM_RLD, SLP_TYP.
    pub const KEPT: u16 = 0x1c03;
}

/// Offsets of the blocks.
const EVENT: u64 = 0;
const CONTROL: u64 = (layout::PM1A_CONTROL - layout::PM_BASE) as u64;
const TIMER: u64 = (layout::PM_TIMER - layout::PM_BASE) as u64;
const TIMER_END: u64 = TIMER + layout::PM_TIMER_LEN as u64;
const GPE: u64 = (layout::GPE0 - layout::PM_BASE) as u64;
/// The first half is status, the second enables.
const GPE_ENABLE: u64 = GPE + layout::GPE0_LEN as u64 / 2;
const GPE_END: u64 = GPE + layout::GPE0_LEN as u64;

/// The state of an [`AcpiPm`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcpiPmState {
    status: u16,
    enable: u16,
    control: u16,
    general_status: u16,
    general_enable: u16,
    /// Changes of the timer's highest bit that have been seen.
    halves: u64,
}

/// ACPI's fixed hardware.
#[derive(Debug)]
pub struct AcpiPm {
    state: AcpiPmState,
    sci: IrqLine,
    machine: Arc<dyn MachineControl>,
    clock: Arc<dyn Clock>,
    wake: Arc<dyn TimerWake>,
}

impl AcpiPm {
    /// The hardware after reset. It is in ACPI mode from the start: there is no firmware to switch
    /// it (a FADT without an SMI command port says so).
    pub fn new(
        sci: IrqLine,
        machine: Arc<dyn MachineControl>,
        clock: Arc<dyn Clock>,
        wake: Arc<dyn TimerWake>,
    ) -> Self {
        let halves = ticks(clock.now()) / TIMER_HALF;
        Self::restore(Self::initial(halves), sci, machine, clock, wake)
    }

    /// The hardware as it was saved.
    pub fn restore(
        state: AcpiPmState,
        sci: IrqLine,
        machine: Arc<dyn MachineControl>,
        clock: Arc<dyn Clock>,
        wake: Arc<dyn TimerWake>,
    ) -> Self {
        let device = Self {
            state,
            sci,
            machine,
            clock,
            wake,
        };
        device.update_sci();
        device
    }

    /// The whole state.
    pub fn save(&self) -> AcpiPmState {
        self.state.clone()
    }

    /// Power-on reset. The timer, which nothing can set, runs on.
    pub fn reset(&mut self) {
        self.state = Self::initial(self.state.halves);
        self.update_sci();
    }

    fn initial(halves: u64) -> AcpiPmState {
        AcpiPmState {
            status: 0,
            enable: 0,
            control: control::SCI_ENABLE,
            general_status: 0,
            general_enable: 0,
            halves,
        }
    }

    /// Somebody presses the power button: a polite request to shut down.
    pub fn press_power_button(&mut self) {
        self.state.status |= event::POWER_BUTTON;
        self.update_sci();
    }

    /// Raises general-purpose event `number`, 0 to 15. What it means, the DSDT says.
    pub fn raise_general_event(&mut self, number: u8) {
        self.state.general_status |= 1 << (number & 15);
        self.update_sci();
    }

    fn update_sci(&self) {
        let fixed = self.state.status & self.state.enable & event::ENABLE;
        let general = self.state.general_status & self.state.general_enable;
        let wanted = fixed | general != 0;
        self.sci
            .set(wanted && self.state.control & control::SCI_ENABLE != 0);
    }

    /// Notes changes of the timer's highest bit.
    fn sync(&mut self, now: Nanos) {
        let halves = ticks(now) / TIMER_HALF;
        if halves != self.state.halves {
            self.state.halves = halves;
            self.state.status |= event::TIMER;
            self.update_sci();
        }
    }

    fn read_register(&self, offset: u64) -> u8 {
        let byte = |value: u32, first: u64| (value >> ((offset - first) * 8)) as u8;
        match offset {
            EVENT..2 => byte(u32::from(self.state.status), EVENT),
            2..4 => byte(u32::from(self.state.enable), 2),
            CONTROL..6 => byte(u32::from(self.state.control), CONTROL),
            GPE..GPE_ENABLE => byte(u32::from(self.state.general_status), GPE),
            GPE_ENABLE..GPE_END => byte(u32::from(self.state.general_enable), GPE_ENABLE),
            _ => 0xff,
        }
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        let shift = (offset & 1) * 8;
        let (wide, mask) = (u16::from(value) << shift, 0xff << shift);
        let merge = |old: u16| old & !mask | wide;
        match offset {
            // Written ones clear.
            EVENT..2 => self.state.status &= !(wide & event::STATUS),
            2..4 => {
                self.state.enable = merge(self.state.enable) & event::ENABLE;
                if let Some(at) = self.deadline() {
                    self.wake.deadline_changed(at);
                }
            }
            CONTROL..6 => self.write_control(merge(self.state.control)),
            GPE..GPE_ENABLE => self.state.general_status &= !wide,
            GPE_ENABLE..GPE_END => {
                self.state.general_enable = merge(self.state.general_enable);
            }
            _ => {}
        }
        self.update_sci();
    }

    fn write_control(&mut self, value: u16) {
        // There is no other mode than ACPI's to leave for.
        self.state.control = value & control::KEPT | control::SCI_ENABLE;
        if value & control::SLEEP_ENABLE != 0 {
            let kind = value >> control::SLEEP_TYPE_SHIFT & 7;
            if kind == u16::from(layout::SLEEP_TYPE_OFF) {
                self.machine.request(PowerEvent::PowerOff);
            } else {
                tracing::debug!(kind, "a sleeping state that the board does not have");
            }
        }
    }
}

/// Ticks of the power-management timer since machine time 0.
fn ticks(now: Nanos) -> u64 {
    (u128::from(now.0) * u128::from(PM_TIMER_HZ) / u128::from(Nanos::SECOND)) as u64
}

impl Device for AcpiPm {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let now = self.clock.now();
        self.sync(now);
        // One reading for all bytes, or they would not fit together.
        let timer = (ticks(now) as u32).to_le_bytes();
        read_bytes(offset, data, |at| match at {
            TIMER..TIMER_END => timer[(at - TIMER) as usize],
            _ => self.read_register(at),
        });
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.sync(self.clock.now());
        write_bytes(offset, data, |at, value| self.write_register(at, value));
    }
}

impl Timed for AcpiPm {
    fn deadline(&self) -> Option<Nanos> {
        let waits = self.state.enable & event::TIMER != 0 && self.state.status & event::TIMER == 0;
        waits.then(|| {
            let next = u128::from(self.state.halves.saturating_add(1)) * u128::from(TIMER_HALF);
            let nanos = (next * u128::from(Nanos::SECOND)).div_ceil(u128::from(PM_TIMER_HZ));
            Nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
        })
    }

    fn expire(&mut self, now: Nanos) {
        self.sync(now);
    }
}

/// The reset control register, port CF9h.
#[derive(Debug)]
pub struct ResetControl {
    state: ResetControlState,
    machine: Arc<dyn MachineControl>,
}

/// The state of a [`ResetControl`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetControlState {
    value: u8,
}

impl ResetControl {
    /// Kind of reset (bits 1 and 3), which read back.
    const KIND: u8 = 0x0a;
    /// The reset itself.
    const RESET: u8 = 0x04;

    /// The register after reset.
    pub fn new(machine: Arc<dyn MachineControl>) -> Self {
        Self::restore(ResetControlState::default(), machine)
    }

    /// The register as it was saved.
    pub fn restore(state: ResetControlState, machine: Arc<dyn MachineControl>) -> Self {
        Self { state, machine }
    }

    /// The whole state.
    pub fn save(&self) -> ResetControlState {
        self.state.clone()
    }

    /// Power-on reset.
    pub fn reset(&mut self) {
        self.state = ResetControlState::default();
    }
}

impl Device for ResetControl {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(self.state.value);
    }

    fn write(&mut self, _: u64, data: &[u8]) {
        let value = data.first().copied().unwrap_or(0);
        self.state.value = value & Self::KIND;
        if value & Self::RESET != 0 {
            self.machine.request(PowerEvent::Reset);
        }
    }
}

/// The port of firmware's progress codes, 80h, which kernels write to for a short delay. It
/// swallows what is written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Post;

impl Device for Post {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&mut self, _: u64, data: &[u8]) {
        tracing::trace!(?data, "progress code");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing::Requests;
    use crate::irq::testing::Probe;
    use crate::timers::testing::NoWake;
    use belljar_clock::ManualClock;
    use proptest::prelude::*;

    struct Bench {
        pm: AcpiPm,
        sci: Arc<Probe>,
        requests: Arc<Requests>,
        clock: Arc<ManualClock>,
    }

    fn bench() -> Bench {
        let (sci, line) = Probe::line();
        let (requests, clock) = (Requests::new(), Arc::new(ManualClock::new(0)));
        let pm = AcpiPm::new(
            line,
            Arc::<Requests>::clone(&requests),
            Arc::<ManualClock>::clone(&clock),
            NoWake::shared(),
        );
        Bench {
            pm,
            sci,
            requests,
            clock,
        }
    }

    fn read16(pm: &mut AcpiPm, offset: u64) -> u16 {
        let mut data = [0; 2];
        pm.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    fn timer(pm: &mut AcpiPm) -> u32 {
        let mut data = [0; 4];
        pm.read(TIMER, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_timer_counts_3_58_million_ticks_a_second() {
        let mut b = bench();
        b.clock.advance(Nanos::SECOND);
        assert_eq!(timer(&mut b.pm), 3_579_545);
        b.clock.advance(1_200 * Nanos::SECOND);
        assert_eq!(timer(&mut b.pm), (1_201u64 * 3_579_545) as u32);
    }

    #[test]
    fn the_timer_interrupts_when_its_highest_bit_changes() {
        let mut b = bench();
        b.pm.write(2, &event::TIMER.to_le_bytes());
        let at = b.pm.deadline().unwrap();
        b.clock.advance(at.0 - 1);
        b.pm.expire(b.clock.now());
        assert!(!b.sci.level());
        b.clock.advance(1);
        b.pm.expire(b.clock.now());
        assert!(b.sci.level());
        assert_eq!(timer(&mut b.pm), 1 << 31);
        b.pm.write(EVENT, &event::TIMER.to_le_bytes());
        assert!(!b.sci.level());
        assert!(b.pm.deadline().unwrap() > at);
    }

    #[test]
    fn the_power_button_raises_the_sci_until_its_status_is_cleared() {
        let mut b = bench();
        b.pm.press_power_button();
        assert!(!b.sci.level());
        b.pm.write(2, &event::POWER_BUTTON.to_le_bytes());
        assert!(b.sci.level());
        b.pm.write(EVENT, &event::POWER_BUTTON.to_le_bytes());
        assert!(!b.sci.level());
        assert_eq!(read16(&mut b.pm, EVENT), 0);
    }

    #[test]
    fn a_general_event_raises_the_sci_if_it_is_enabled() {
        let mut b = bench();
        b.pm.raise_general_event(9);
        assert_eq!(read16(&mut b.pm, GPE), 1 << 9);
        assert!(!b.sci.level());
        b.pm.write(GPE_ENABLE, &[0xff, 0]);
        assert!(!b.sci.level(), "the other half is enabled");
        b.pm.write(GPE_ENABLE + 1, &[2]);
        assert!(b.sci.level());
        b.pm.write(GPE, &[0xff]);
        assert!(b.sci.level(), "the other half is cleared");
        b.pm.write(GPE + 1, &[2]);
        assert!(!b.sci.level());
        assert_eq!(read16(&mut b.pm, GPE), 0);
        b.pm.raise_general_event(9);
        b.pm.reset();
        assert!(!b.sci.level());
    }

    #[test]
    fn sleeping_in_s5_turns_the_power_off() {
        let mut b = bench();
        b.pm.write(CONTROL, &0x2401u16.to_le_bytes());
        assert!(b.requests.take().is_empty(), "S1 does not exist here");
        b.pm.write(CONTROL, &0x1401u16.to_le_bytes());
        assert!(b.requests.take().is_empty(), "type without enable");
        b.pm.write(CONTROL, &0x3401u16.to_le_bytes());
        assert_eq!(b.requests.take(), [PowerEvent::PowerOff]);
        assert_eq!(read16(&mut b.pm, CONTROL) & control::SCI_ENABLE, 1);
    }

    #[test]
    fn the_reset_register_resets_on_its_bit() {
        let requests = Requests::new();
        let mut reset = ResetControl::new(Arc::<Requests>::clone(&requests));
        reset.write(0, &[0x02]);
        assert!(requests.take().is_empty());
        let mut data = [0];
        reset.read(0, &mut data);
        assert_eq!(data, [0x02]);
        reset.write(0, &[layout::RESET_VALUE]);
        assert_eq!(requests.take(), [PowerEvent::Reset]);
    }

    proptest! {
        #[test]
        fn random_use_never_panics_and_the_sci_follows_the_events(
            steps in proptest::collection::vec((0u8..5, 0u64..0x24, any::<u32>()), 0..200)
        ) {
            let mut b = bench();
            for (what, offset, value) in steps {
                match what {
                    0 => b.pm.write(offset, &value.to_le_bytes()[..=offset as usize % 4]),
                    1 => b.pm.read(offset, &mut [0; 4]),
                    2 => b.pm.press_power_button(),
                    3 => b.pm.raise_general_event(value as u8),
                    _ => b.clock.advance(u64::from(value) * 1000),
                }
                b.pm.expire(b.clock.now());
                let fixed = b.pm.state.status & b.pm.state.enable & event::ENABLE;
                let general = b.pm.state.general_status & b.pm.state.general_enable;
                let wanted = fixed | general != 0;
                prop_assert_eq!(b.sci.level(), wanted);
                prop_assert!(b.pm.deadline().is_none_or(|at| at > b.clock.now()));
            }
        }
    }
}
