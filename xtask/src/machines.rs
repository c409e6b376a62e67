//! The commands that start one guest under Belljar and under its rival, QEMU's TCG.

use belljar_image::Guest;
use std::path::Path;
use std::process::Command;

/// A machine to start.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// The kernel, the initrd and the command line.
    pub guest: &'a Guest,
    /// Guest RAM in MiB.
    pub memory: u32,
    /// Virtual CPUs.
    pub cpus: u32,
}

impl Machine<'_> {
    /// The command that starts it under `program`, a Belljar, with the given engine.
    pub fn belljar(&self, program: &Path, engine: &str) -> Command {
        let mut command = Command::new(program);
        command
            .args(["run", "--engine", engine])
            .args(["--memory", &format!("{}M", self.memory)])
            .args(["--cpus", &self.cpus.to_string()])
            .args(["--cmdline", &self.guest.cmdline])
            .arg("--kernel")
            .arg(&self.guest.kernel)
            .arg("--initrd")
            .arg(&self.guest.initrd);
        command
    }

    /// The command that starts it under QEMU's TCG.
    pub fn qemu(&self) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-M", "q35", "-accel", "tcg", "-cpu", "max"])
            .args(["-m", &self.memory.to_string()])
            .args(["-smp", &self.cpus.to_string()])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-serial", "stdio", "-no-reboot"])
            .args(["-append", &self.guest.cmdline])
            .arg("-kernel")
            .arg(&self.guest.kernel)
            .arg("-initrd")
            .arg(&self.guest.initrd);
        command
    }
}
