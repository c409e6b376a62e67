//! The keyboard controller (Intel 8042) of a PC to which no keyboard and no mouse is connected,
//! with port 92h.
//!
//! Kernels find the controller, find its keyboard's silence in the way that real controllers report
//! it (at once, as a timeout), and go on. What is left of use are its outputs: reset and the A20
//! gate.

use crate::bus::{Device, read_bytes, write_bytes};
use crate::control::{MachineControl, PowerEvent};
use crate::irq::IrqLine;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Offsets of the registers from port 60h.
const DATA: u64 = 0x00;
const COMMAND: u64 = 0x04;
const PORT_92: u64 = 0x32;

/// Status register.
mod status {
    pub const OUTPUT_FULL: u8 = 1 << 0;
    pub const SYSTEM: u8 = 1 << 2;
    pub const COMMAND: u8 = 1 << 3;
    pub const UNLOCKED: u8 = 1 << 4;
    pub const AUX: u8 = 1 << 5;
    pub const TIMEOUT: u8 = 1 << 6;
}

/// Command byte (configuration).
mod config {
    pub const KEYBOARD_IRQ: u8 = 1 << 0;
    pub const AUX_IRQ: u8 = 1 << 1;
    pub const SYSTEM: u8 = 1 << 2;
    pub const KEYBOARD_OFF: u8 = 1 << 4;
    pub const AUX_OFF: u8 = 1 << 5;
    pub const TRANSLATE: u8 = 1 << 6;
}

/// Output port.
mod output {
    /// Low: the processor is held in reset.
    pub const NOT_RESET: u8 = 1 << 0;
    pub const A20: u8 = 1 << 1;
    pub const FULL: u8 = 1 << 4;
}

/// Port 92h.
mod port_92 {
    pub const RESET: u8 = 1 << 0;
    pub const A20: u8 = 1 << 1;
}

/// What the controller answers for a device that does not.
const RESEND: u8 = 0xfe;

/// The state of an [`I8042`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042State {
    /// The controller's RAM; byte 0 is the command byte.
    ram: Vec<u8>,
    /// The byte in the output buffer.
    output: Option<u8>,
    /// Whether that byte is the second port's (the mouse's).
    auxiliary: bool,
    /// The byte that was last in the output buffer: it reads again.
    last: u8,
    /// Whether the byte in the output buffer reports a timeout.
    timeout: bool,
    /// The command whose data byte comes next.
    command: Option<u8>,
    /// Whether the last write was a command.
    was_command: bool,
    a20: bool,
}

impl I8042State {
    fn new() -> Self {
        let mut ram = vec![0; 32];
        ram[0] = config::SYSTEM | config::TRANSLATE | config::KEYBOARD_OFF | config::AUX_OFF;
        Self {
            ram,
            output: None,
            auxiliary: false,
            last: 0,
            timeout: false,
            command: None,
            was_command: false,
            a20: true,
        }
    }
}

/// The keyboard controller.
#[derive(Debug)]
pub struct I8042 {
    state: I8042State,
    keyboard_irq: IrqLine,
    mouse_irq: IrqLine,
    control: Arc<dyn MachineControl>,
}

impl I8042 {
    /// The controller as firmware leaves it: tested, nothing connected to its two ports, A20 open.
    pub fn new(
        keyboard_irq: IrqLine,
        mouse_irq: IrqLine,
        control: Arc<dyn MachineControl>,
    ) -> Self {
        Self::restore(I8042State::new(), keyboard_irq, mouse_irq, control)
    }

    /// The controller as it was saved.
    pub fn restore(
        mut state: I8042State,
        keyboard_irq: IrqLine,
        mouse_irq: IrqLine,
        control: Arc<dyn MachineControl>,
    ) -> Self {
        state.ram.resize(32, 0);
        let device = Self {
            state,
            keyboard_irq,
            mouse_irq,
            control,
        };
        device.update_irq();
        device
    }

    /// The whole state.
    pub fn save(&self) -> I8042State {
        self.state.clone()
    }

    /// Power-on reset.
    pub fn reset(&mut self) {
        self.state = I8042State::new();
        self.update_irq();
    }

    fn config(&self) -> u8 {
        self.state.ram.first().copied().unwrap_or(0)
    }

    fn update_irq(&self) {
        let full = self.state.output.is_some();
        let enabled = |bit| full && self.config() & bit != 0;
        let mouse = self.state.auxiliary;
        self.keyboard_irq
            .set(enabled(config::KEYBOARD_IRQ) && !mouse);
        self.mouse_irq.set(enabled(config::AUX_IRQ) && mouse);
    }

    /// Puts a byte of the first port, or of the controller itself, into the output buffer.
    fn put(&mut self, value: u8) {
        self.put_from(value, false);
    }

    fn put_from(&mut self, value: u8, auxiliary: bool) {
        self.state.output = Some(value);
        self.state.auxiliary = auxiliary;
        self.state.last = value;
        self.state.timeout = false;
        self.update_irq();
    }

    /// A byte for a device that is not there: the controller reports that nobody took it.
    fn send_to_device(&mut self, auxiliary: bool) {
        self.put_from(RESEND, auxiliary);
        self.state.timeout = true;
    }

    fn read_status(&self) -> u8 {
        let mut value = status::UNLOCKED | self.config() & config::SYSTEM;
        debug_assert_eq!(config::SYSTEM, status::SYSTEM);
        if self.state.output.is_some() {
            value |= status::OUTPUT_FULL;
        }
        if self.state.auxiliary {
            value |= status::AUX;
        }
        if self.state.timeout {
            value |= status::TIMEOUT;
        }
        if self.state.was_command {
            value |= status::COMMAND;
        }
        value
    }

    fn read_data(&mut self) -> u8 {
        self.state.output = None;
        self.state.auxiliary = false;
        self.state.timeout = false;
        self.update_irq();
        self.state.last
    }

    fn output_port(&self) -> u8 {
        let a20 = if self.state.a20 { output::A20 } else { 0 };
        let full = if self.state.output.is_some() {
            output::FULL
        } else {
            0
        };
        0xc0 | output::NOT_RESET | a20 | full
    }

    fn write_command(&mut self, command: u8) {
        self.state.was_command = true;
        self.state.command = None;
        match command {
            0x20..=0x3f => {
                let value = self.state.ram.get(usize::from(command & 0x1f)).copied();
                self.put(value.unwrap_or(0));
            }
            // Those that take a byte: RAM, output port, fake input, second port.
            0x60..=0x7f | 0xd1..=0xd4 => self.state.command = Some(command),
            0xa7 => self.set_config(config::AUX_OFF, true),
            0xa8 => self.set_config(config::AUX_OFF, false),
            // Self test, interface tests of the second and the first port.
            0xaa => self.put(0x55),
            0xa9 | 0xab => self.put(0x00),
            0xad => self.set_config(config::KEYBOARD_OFF, true),
            0xae => self.set_config(config::KEYBOARD_OFF, false),
            // Input port: keyboard not locked. Output port.
            0xc0 => self.put(0x80),
            0xd0 => self.put(self.output_port()),
            // Pulses the low outputs whose bits are 0: output 0 is the reset.
            0xf0..=0xff if command & output::NOT_RESET == 0 => {
                self.control.request(PowerEvent::Reset);
            }
            _ => {}
        }
    }

    fn set_config(&mut self, bit: u8, set: bool) {
        if let Some(config) = self.state.ram.first_mut() {
            *config = if set { *config | bit } else { *config & !bit };
        }
    }

    fn write_data(&mut self, value: u8) {
        self.state.was_command = false;
        match self.state.command.take() {
            Some(command @ 0x60..=0x7f) => {
                if let Some(byte) = self.state.ram.get_mut(usize::from(command & 0x1f)) {
                    *byte = value;
                }
                self.update_irq();
            }
            Some(0xd1) => {
                self.state.a20 = value & output::A20 != 0;
                if value & output::NOT_RESET == 0 {
                    self.control.request(PowerEvent::Reset);
                }
            }
            // As if the keyboard, or the mouse, had sent it.
            Some(command @ (0xd2 | 0xd3)) => self.put_from(value, command == 0xd3),
            command => self.send_to_device(command == Some(0xd4)),
        }
    }

    fn read_register(&mut self, offset: u64) -> u8 {
        match offset {
            DATA => self.read_data(),
            COMMAND => self.read_status(),
            PORT_92 if self.state.a20 => port_92::A20,
            PORT_92 => 0,
            _ => 0xff,
        }
    }

    fn write_register(&mut self, offset: u64, value: u8) {
        match offset {
            DATA => self.write_data(value),
            COMMAND => self.write_command(value),
            PORT_92 => {
                self.state.a20 = value & port_92::A20 != 0;
                if value & port_92::RESET != 0 {
                    self.control.request(PowerEvent::Reset);
                }
            }
            _ => {}
        }
    }
}

impl Device for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        read_bytes(offset, data, |at| self.read_register(at));
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        write_bytes(offset, data, |at, value| self.write_register(at, value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing::Requests;
    use crate::irq::testing::Probe;
    use proptest::prelude::*;

    fn controller() -> (I8042, Arc<Probe>, Arc<Requests>) {
        let (irq, line) = Probe::line();
        let requests = Requests::new();
        let device = I8042::new(line, Probe::line().1, Arc::<Requests>::clone(&requests));
        (device, irq, requests)
    }

    #[test]
    fn the_self_test_passes() {
        let (mut device, ..) = controller();
        device.write(COMMAND, &[0xaa]);
        assert_eq!(device.read_register(COMMAND) & 1, 1);
        assert_eq!(device.read_register(DATA), 0x55);
        assert_eq!(device.read_register(COMMAND) & 1, 0);
    }

    #[test]
    fn the_command_byte_reads_back() {
        let (mut device, ..) = controller();
        device.write(COMMAND, &[0x60]);
        device.write(DATA, &[0x45]);
        device.write(COMMAND, &[0x20]);
        assert_eq!(device.read_register(DATA), 0x45);
    }

    #[test]
    fn a_byte_for_the_keyboard_times_out_with_an_interrupt() {
        let (mut device, irq, _) = controller();
        device.write(COMMAND, &[0x60]);
        device.write(DATA, &[config::KEYBOARD_IRQ]);
        device.write(DATA, &[0xf2]);
        assert!(irq.level());
        let status = device.read_register(COMMAND);
        assert_eq!(status & 0x61, status::OUTPUT_FULL | status::TIMEOUT);
        assert_eq!(device.read_register(DATA), RESEND);
        assert!(!irq.level());
    }

    #[test]
    fn what_is_looped_through_the_second_port_is_marked_and_raises_the_mouse_interrupt() {
        let (irq, line) = Probe::line();
        let mut device = I8042::new(Probe::line().1, line, Requests::new());
        device.write(COMMAND, &[0x60]);
        device.write(DATA, &[config::AUX_IRQ]);
        device.write(COMMAND, &[0xd3]);
        device.write(DATA, &[0x5a]);
        assert!(irq.level());
        let status = device.read_register(COMMAND);
        assert_eq!(status & 0x61, status::OUTPUT_FULL | status::AUX);
        assert_eq!(device.read_register(DATA), 0x5a);
        assert!(!irq.level());
        assert_eq!(device.read_register(COMMAND) & status::AUX, 0);
    }

    #[test]
    fn a_byte_for_the_mouse_times_out_on_the_second_port() {
        let (mut device, irq, _) = controller();
        device.write(COMMAND, &[0xd4]);
        device.write(DATA, &[0xf4]);
        let status = device.read_register(COMMAND);
        assert_eq!(
            status & 0x61,
            status::OUTPUT_FULL | status::AUX | status::TIMEOUT
        );
        assert!(!irq.level());
    }

    #[test]
    fn each_way_of_reset_asks_for_one() {
        let (mut device, _, requests) = controller();
        device.write(COMMAND, &[0xfe]);
        device.write(PORT_92, &[3]);
        device.write(COMMAND, &[0xd1]);
        device.write(DATA, &[0x02]);
        assert_eq!(requests.take(), [PowerEvent::Reset; 3]);
        device.write(COMMAND, &[0xff]);
        device.write(PORT_92, &[2]);
        assert!(requests.take().is_empty());
    }

    proptest! {
        #[test]
        fn random_use_never_panics(
            steps in proptest::collection::vec((any::<bool>(), 0usize..3, any::<u8>()), 0..200)
        ) {
            let (mut device, ..) = controller();
            for (write, port, value) in steps {
                let port = [DATA, COMMAND, PORT_92][port];
                if write {
                    device.write(port, &[value]);
                } else {
                    device.read_register(port);
                }
            }
        }
    }
}
