//! What the guest prints goes to several: where the user wants the console, the log, and those who
//! attach.

use super::outlet::Outlet;
use super::scrollback::Scrollback;
use belljar_machine::ConsoleOutput;
use std::sync::Arc;
use std::time::Duration;

/// The guest's end of its console. See the [module](self).
#[derive(Debug)]
pub struct Hub {
    outlets: Vec<Arc<Outlet>>,
    scrollback: Arc<Scrollback>,
}

impl Hub {
    /// One that prints to `outlets` and to a scroll-back buffer of its own.
    pub fn new(outlets: Vec<Arc<Outlet>>) -> Self {
        Self {
            outlets,
            scrollback: Arc::default(),
        }
    }

    /// What was printed lately.
    pub fn scrollback(&self) -> Arc<Scrollback> {
        Arc::clone(&self.scrollback)
    }

    /// Lets no vCPU wait for a reader from now on, nor the end of the process for long.
    pub fn hurry(&self) {
        for outlet in &self.outlets {
            outlet.close();
            outlet.hurry();
        }
    }

    /// Nothing will be printed any more.
    pub fn close(&self) {
        for outlet in &self.outlets {
            outlet.close();
        }
        self.scrollback.close();
    }
}

impl ConsoleOutput for Hub {
    fn write(&self, bytes: &[u8]) {
        for outlet in &self.outlets {
            outlet.push(bytes);
        }
        self.scrollback.push(bytes);
    }

    fn pace(&self, limit: Option<Duration>) -> bool {
        self.outlets.iter().all(|outlet| outlet.pace(limit))
    }
}
