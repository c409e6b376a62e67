//! The two cascaded 8259A interrupt controllers of a PC, with the chipset's edge/level control
//! registers.

use serde::{Deserialize, Serialize};

/// Interrupt input of the master where the slave is connected.
const CASCADE: u8 = 2;
/// Offsets of the registers from the master's base port.
const SLAVE: u64 = 0x80;
const ELCR: u64 = 0x4b0;
/// Inputs of each chip that may be level triggered: not the timer's, keyboard's, cascade's, clock's
/// and FPU's.
const ELCR_MASKS: [u8; 2] = [0xf8, 0xde];

/// Where in its initialisation sequence a chip is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
enum Step {
    #[default]
    Ready,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Chip {
    /// Levels of the inputs.
    lines: u8,
    /// Interrupt request register.
    irr: u8,
    /// Interrupt mask register.
    imr: u8,
    /// In-service register.
    isr: u8,
    /// Inputs that are level triggered.
    level: u8,
    /// Vector of input 0.
    vector: u8,
    step: Step,
    /// ICW1: whether ICW3 is skipped, and whether ICW4 comes.
    single: bool,
    wants_icw4: bool,
    auto_eoi: bool,
    /// Special fully nested mode.
    fully_nested: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    /// Input of lowest priority is `top - 1`: input `top` has the highest.
    top: u8,
    /// Whether the command port reads the ISR instead of the IRR.
    read_isr: bool,
    /// Whether the next read is a poll.
    poll: bool,
}

impl Chip {
    fn set_line(&mut self, input: u8, high: bool) {
        let bit = 1 << (input & 7);
        if high {
            if self.lines & bit == 0 || self.level & bit != 0 {
                self.irr |= bit;
            }
            self.lines |= bit;
        } else {
            // A request must stay until it is acknowledged, or it is withdrawn: 8259A data sheet,
            // figure 9.
            self.irr &= !bit;
            self.lines &= !bit;
        }
    }

    /// The input of the highest priority in `set`.
    fn highest(&self, set: u8) -> Option<u8> {
        let turned = set.rotate_right(u32::from(self.top & 7));
        (turned != 0).then(|| (turned.trailing_zeros() as u8).wrapping_add(self.top) & 7)
    }

    /// Priority of an input: 0 is the highest.
    fn rank(&self, input: u8) -> u8 {
        input.wrapping_sub(self.top) & 7
    }

    /// The input whose interrupt is to be served now; `master` tells that the cascade is connected.
    fn request(&self, master: bool) -> Option<u8> {
        let input = self.highest(self.irr & !self.imr)?;
        let mut blocking = self.isr;
        if self.special_mask {
            blocking &= !self.imr;
        }
        if self.fully_nested && master {
            // The slave's inputs of higher priority come through even while one of its interrupts
            // is in service.
            blocking &= !(1 << CASCADE);
        }
        self.highest(blocking)
            .is_none_or(|serving| self.rank(input) < self.rank(serving))
            .then_some(input)
    }

    fn acknowledge(&mut self, input: u8) {
        let bit = 1 << input;
        if self.level & bit == 0 {
            self.irr &= !bit;
        }
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.top = (input + 1) & 7;
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.initialise(value);
        } else if value & 0x08 != 0 {
            self.ocw3(value);
        } else {
            self.ocw2(value);
        }
    }

    /// ICW1. Its bit LTIM is without function on PCs: ELCR replaces it.
    fn initialise(&mut self, value: u8) {
        *self = Self {
            lines: self.lines,
            level: self.level,
            // Inputs must rise anew, but for level-triggered ones.
            irr: self.lines & self.level,
            vector: self.vector,
            step: Step::Icw2,
            single: value & 2 != 0,
            wants_icw4: value & 1 != 0,
            ..Self::default()
        };
    }

    /// Ends interrupts and turns priorities.
    fn ocw2(&mut self, value: u8) {
        let rotate = value & 0x80 != 0;
        let specific = value & 0x40 != 0;
        let eoi = value & 0x20 != 0;
        if !eoi {
            match (rotate, specific) {
                (true, true) => self.top = value.wrapping_add(1) & 7,
                (rotate, false) => self.rotate_on_auto_eoi = rotate,
                (false, true) => {}
            }
            return;
        }
        let ended = if specific {
            Some(value & 7)
        } else if self.special_mask {
            self.highest(self.isr & !self.imr)
        } else {
            self.highest(self.isr)
        };
        if let Some(input) = ended {
            self.isr &= !(1 << input);
            if rotate {
                self.top = (input + 1) & 7;
            }
        }
    }

    fn ocw3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        self.poll = value & 0x04 != 0;
        if value & 0x02 != 0 {
            self.read_isr = value & 0x01 != 0;
        }
    }

    fn write_data(&mut self, value: u8) {
        self.step = match self.step {
            Step::Ready => {
                self.imr = value;
                Step::Ready
            }
            Step::Icw2 => {
                self.vector = value & 0xf8;
                if !self.single {
                    Step::Icw3
                } else if self.wants_icw4 {
                    Step::Icw4
                } else {
                    Step::Ready
                }
            }
            // The cascade is wired as on every PC whatever ICW3 says.
            Step::Icw3 if self.wants_icw4 => Step::Icw4,
            Step::Icw3 => Step::Ready,
            Step::Icw4 => {
                self.fully_nested = value & 0x10 != 0;
                self.auto_eoi = value & 0x02 != 0;
                Step::Ready
            }
        };
    }

    fn read(&mut self, data_port: bool, master: bool) -> u8 {
        if std::mem::take(&mut self.poll) {
            return match self.request(master) {
                Some(input) => {
                    self.acknowledge(input);
                    0x80 | input
                }
                None => 0,
            };
        }
        match (data_port, self.read_isr) {
            (true, _) => self.imr,
            (false, true) => self.isr,
            (false, false) => self.irr,
        }
    }
}

/// The pair of interrupt controllers. It has no backend, so it is its own saved state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pic {
    master: Chip,
    slave: Chip,
}

impl Pic {
    /// The pair after power-on.
    pub fn new() -> Self {
        Self::default()
    }

    /// Resets the registers; the lines' levels are their drivers'.
    pub fn reset(&mut self) {
        for chip in [&mut self.master, &mut self.slave] {
            *chip = Chip {
                lines: chip.lines,
                ..Chip::default()
            };
        }
        self.master.lines &= !(1 << CASCADE);
    }

    /// What PC firmware leaves: vectors 08h and 70h, everything masked, and the lines in `level`
    /// level triggered.
    pub fn firmware_handoff(&mut self, level: u16) {
        let [low, high] = level.to_le_bytes();
        for (base, vector, cascade, elcr, level) in [
            (0, 0x08, 1 << CASCADE, ELCR, low),
            (SLAVE, 0x70, CASCADE, ELCR + 1, high),
        ] {
            self.write(base, 0x11);
            for value in [vector, cascade, 0x01, 0xff] {
                self.write(base + 1, value);
            }
            self.write(elcr, level);
        }
    }

    /// Sets the level of ISA interrupt line `irq`. Line 2 does not exist: the cascade is there.
    pub fn set_line(&mut self, irq: u8, high: bool) {
        match irq {
            CASCADE => {}
            0..8 => self.master.set_line(irq, high),
            8..16 => self.slave.set_line(irq - 8, high),
            _ => {}
        }
        self.update_cascade();
    }

    /// The master's INT output: whether an interrupt waits for the processor.
    pub fn output(&self) -> bool {
        self.master.request(true).is_some()
    }

    /// The interrupt acknowledge cycle: gives the vector, and takes the interrupt into service.
    /// Without a request the answer is the spurious interrupt of input 7, as the chip gives it.
    pub fn acknowledge(&mut self) -> u8 {
        let Some(input) = self.master.request(true) else {
            return self.master.vector | 7;
        };
        self.master.acknowledge(input);
        if input != CASCADE {
            return self.master.vector | input;
        }
        let slave_input = self.slave.request(false);
        if let Some(input) = slave_input {
            self.slave.acknowledge(input);
        }
        self.update_cascade();
        self.slave.vector | slave_input.unwrap_or(7)
    }

    /// The slave's output is the master's input; it acts by level, since it falls between two of
    /// the slave's interrupts.
    fn update_cascade(&mut self) {
        let high = self.slave.request(false).is_some();
        self.master.set_line(CASCADE, false);
        if high {
            self.master.set_line(CASCADE, true);
        }
    }

    /// Reads the register at `offset` from port 20h.
    pub fn read(&mut self, offset: u64) -> u8 {
        let value = match offset {
            0 | 1 => self.master.read(offset == 1, true),
            SLAVE | 0x81 => self.slave.read(offset == 0x81, false),
            ELCR => self.master.level,
            0x4b1 => self.slave.level,
            _ => 0xff,
        };
        self.update_cascade();
        value
    }

    /// Writes the register at `offset` from port 20h.
    pub fn write(&mut self, offset: u64, value: u8) {
        match offset {
            0 => self.master.write_command(value),
            1 => self.master.write_data(value),
            SLAVE => self.slave.write_command(value),
            0x81 => self.slave.write_data(value),
            ELCR | 0x4b1 => self.set_level_triggered(usize::from(offset != ELCR), value),
            _ => {}
        }
        self.update_cascade();
    }

    fn set_level_triggered(&mut self, chip: usize, value: u8) {
        let (chip, mask) = if chip == 0 {
            (&mut self.master, ELCR_MASKS[0])
        } else {
            (&mut self.slave, ELCR_MASKS[1])
        };
        chip.level = value & mask;
        // A level-triggered request is the line itself.
        chip.irr = chip.irr & !chip.level | chip.lines & chip.level;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Initialised as Linux does: vectors 30h and 38h, nothing masked.
    fn initialised(icw4: u8) -> Pic {
        let mut pic = Pic::new();
        for (base, vector, cascade) in [(0, 0x30, 4), (SLAVE, 0x38, 2)] {
            pic.write(base, 0x11);
            pic.write(base + 1, vector);
            pic.write(base + 1, cascade);
            pic.write(base + 1, icw4);
            pic.write(base + 1, 0);
        }
        pic
    }

    #[test]
    fn an_interrupt_of_the_master_nests_by_priority() {
        let mut pic = initialised(1);
        pic.set_line(4, true);
        assert!(pic.output());
        assert_eq!(pic.acknowledge(), 0x34);
        pic.set_line(5, true);
        assert!(!pic.output(), "a lower priority waits");
        pic.set_line(1, true);
        assert_eq!(pic.acknowledge(), 0x31, "a higher priority nests");
        pic.write(0, 0x20);
        assert!(!pic.output());
        pic.write(0, 0x20);
        assert_eq!(pic.acknowledge(), 0x35);
    }

    #[test]
    fn an_input_in_service_waits_for_its_own_end() {
        let mut pic = initialised(1);
        pic.set_line(4, true);
        assert_eq!(pic.acknowledge(), 0x34);
        pic.set_line(4, false);
        pic.set_line(4, true);
        assert!(!pic.output());
        pic.write(0, 0x64);
        assert_eq!(pic.acknowledge(), 0x34);
    }

    #[test]
    fn interrupts_of_the_slave_follow_one_another() {
        let mut pic = initialised(1);
        pic.set_line(8, true);
        pic.set_line(12, true);
        assert_eq!(pic.acknowledge(), 0x38);
        assert!(!pic.output());
        pic.write(SLAVE, 0x20);
        pic.write(0, 0x20);
        assert!(pic.output());
        assert_eq!(pic.acknowledge(), 0x3c);
    }

    #[test]
    fn a_withdrawn_request_is_spurious() {
        let mut pic = initialised(1);
        pic.set_line(3, true);
        pic.set_line(3, false);
        assert!(!pic.output());
        assert_eq!(pic.acknowledge(), 0x37);
        pic.write(0, 0x0b);
        assert_eq!(pic.read(0), 0, "a spurious interrupt is not in service");
    }

    #[test]
    fn an_edge_counts_once_and_a_level_until_it_falls() {
        let mut pic = initialised(3);
        pic.write(ELCR + 1, 0x02);
        pic.set_line(4, true);
        assert_eq!(pic.acknowledge(), 0x34);
        assert!(!pic.output());
        pic.set_line(9, true);
        assert_eq!(pic.acknowledge(), 0x39);
        assert!(pic.output());
        pic.set_line(9, false);
        assert!(!pic.output());
    }

    #[test]
    fn automatic_rotation_makes_the_served_input_the_lowest() {
        let mut pic = initialised(1);
        pic.set_line(0, true);
        pic.set_line(1, true);
        assert_eq!(pic.acknowledge(), 0x30);
        pic.write(0, 0xa0);
        pic.set_line(0, false);
        pic.set_line(0, true);
        assert_eq!(pic.acknowledge(), 0x31);
    }

    #[test]
    fn special_mask_mode_lets_lower_priorities_pass() {
        let mut pic = initialised(1);
        pic.set_line(1, true);
        assert_eq!(pic.acknowledge(), 0x31);
        pic.set_line(4, true);
        assert!(!pic.output());
        pic.write(1, 0x02);
        pic.write(0, 0x68);
        assert!(pic.output());
        assert_eq!(pic.acknowledge(), 0x34);
    }

    #[test]
    fn a_poll_takes_the_interrupt_into_service() {
        let mut pic = initialised(1);
        pic.set_line(5, true);
        pic.write(0, 0x0c);
        assert_eq!(pic.read(0), 0x85);
        pic.write(0, 0x0b);
        assert_eq!(pic.read(0), 0x20);
        pic.write(0, 0x0c);
        assert_eq!(pic.read(0), 0);
    }

    #[test]
    fn masks_read_back_and_hold_interrupts() {
        let mut pic = initialised(1);
        pic.write(1, 0xfb);
        assert_eq!(pic.read(1), 0xfb);
        pic.set_line(6, true);
        assert!(!pic.output());
        pic.write(1, 0);
        assert!(pic.output());
    }

    #[test]
    fn level_registers_hold_only_what_a_pc_allows() {
        let mut pic = Pic::new();
        pic.write(ELCR, 0xff);
        pic.write(ELCR + 1, 0xff);
        assert_eq!((pic.read(ELCR), pic.read(ELCR + 1)), (0xf8, 0xde));
    }

    proptest! {
        #[test]
        fn random_use_never_panics_and_serves_by_priority(
            steps in proptest::collection::vec((0u8..4, 0u64..0x4b2, any::<u8>()), 0..200)
        ) {
            let mut pic = initialised(1);
            for (what, offset, value) in steps {
                match what {
                    0 => pic.write([0, 1, SLAVE, 0x81, ELCR, ELCR + 1][offset as usize % 6], value),
                    1 => { pic.read(offset); }
                    2 => pic.set_line(value & 31, value & 32 != 0),
                    _ => {
                        let expected = pic.master.request(true);
                        let before = pic.master.isr;
                        pic.acknowledge();
                        if let Some(input) = expected {
                            prop_assert!(pic.master.auto_eoi || pic.master.isr & 1 << input != 0);
                        } else {
                            prop_assert_eq!(before, pic.master.isr);
                        }
                    }
                }
                prop_assert_eq!(pic.output(), pic.master.request(true).is_some());
            }
        }
    }
}
