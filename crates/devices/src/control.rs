//! What devices ask of the machine as a whole.

/// A device's request to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerEvent {
    /// Turn the power off.
    PowerOff,
    /// Reset every vCPU and device.
    Reset,
    /// End the VMM's process with this exit status.
    DebugExit(u8),
}

/// The machine, as devices see it.
pub trait MachineControl: Send + Sync + std::fmt::Debug {
    /// Notes `event`, to be done soon after. It is called on a vCPU's thread with a device's lock
    /// held, so it must not wait, and not call into devices.
    fn request(&self, event: PowerEvent);
}

#[cfg(test)]
pub(crate) mod testing {
    use super::{MachineControl, PowerEvent};
    use std::sync::{Arc, Mutex};

    /// Remembers what was requested.
    #[derive(Debug, Default)]
    pub struct Requests(Mutex<Vec<PowerEvent>>);

    impl Requests {
        pub fn new() -> Arc<Self> {
            Arc::default()
        }

        /// What was requested since the last call.
        pub fn take(&self) -> Vec<PowerEvent> {
            std::mem::take(&mut *self.0.lock().unwrap())
        }
    }

    impl MachineControl for Requests {
        fn request(&self, event: PowerEvent) {
            self.0.lock().unwrap().push(event);
        }
    }
}
