//! The machine that an image is configured in, as far as this crate knows it.

use std::path::PathBuf;

/// A machine to run once: its disk is the first one, its console the serial port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The kernel.
    pub kernel: PathBuf,
    /// The initial RAM filesystem.
    pub initrd: PathBuf,
    /// The kernel's command line.
    pub cmdline: String,
    /// The disk, a raw file that the machine writes to.
    pub disk: PathBuf,
    /// Bytes of RAM.
    pub memory: u64,
    /// The number of vCPUs.
    pub cpus: u32,
}

/// What can run a machine.
pub trait Runner {
    /// Runs the machine of `job` until it powers off, and gives what it prints to `console`. It is
    /// stopped, without an error, when `console` returns false.
    ///
    /// # Errors
    /// What kept the machine from running to its end.
    fn run(
        &self,
        job: &Job,
        console: &mut (dyn FnMut(&[u8]) -> bool + Send),
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}
