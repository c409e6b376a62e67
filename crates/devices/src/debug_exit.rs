//! The test device by which a guest ends the machine with an exit status of its choice.

use crate::bus::Device;
use crate::control::{MachineControl, PowerEvent};
use std::sync::Arc;

/// A port that ends the VMM's process with status `(value << 1) | 1` when `value` is written to it.
/// It holds no state.
#[derive(Clone, Debug)]
pub struct DebugExit {
    control: Arc<dyn MachineControl>,
}

impl DebugExit {
    /// A port that ends the machine behind `control`.
    pub fn new(control: Arc<dyn MachineControl>) -> Self {
        Self { control }
    }
}

impl Device for DebugExit {
    fn read(&mut self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, _: u64, data: &[u8]) {
        let value = data.first().copied().unwrap_or(0);
        self.control.request(PowerEvent::DebugExit(value << 1 | 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing::Requests;

    #[test]
    fn the_status_is_twice_the_value_and_one() {
        let requests = Requests::new();
        let mut device = DebugExit::new(Arc::<Requests>::clone(&requests));
        device.write(0, &[0x10, 0, 0, 0]);
        device.write(0, &[0xff]);
        assert_eq!(
            requests.take(),
            [PowerEvent::DebugExit(0x21), PowerEvent::DebugExit(0xff)]
        );
    }
}
