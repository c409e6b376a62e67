//! The command line: flags fill a [`MachineConfig`], over what a configuration file says.

use belljar_machine::{ConfigError, ConsoleChoice, EngineChoice, MachineConfig, Size};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Runs unmodified operating systems in virtual machines, with or without hardware virtualization.
#[derive(Debug, Parser)]
#[command(name = "belljar", version, max_term_width = 90)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a virtual machine with its console on the terminal
    ///
    /// Without --kernel, Belljar makes a small Debian guest itself: its kernel and a shell, fetched
    /// once with the host's apt. In the terminal, Ctrl-A x ends the machine and Ctrl-A h shows the
    /// keys; all others, Ctrl-C too, are the guest's.
    #[command(after_help = RUN_AFTER_HELP)]
    Run(RunOptions),
}

const RUN_AFTER_HELP: &str = "\
Exit status:
  0  the guest powered off, or was ended with Ctrl-A x
  1  Belljar failed
  2  wrong usage
  3  the guest crashed (triple fault); its registers are on standard error
  With --debug-exit, (VALUE << 1) | 1 for the VALUE that the guest wrote.

Signals:
  SIGUSR1 prints on standard error what the vCPUs have counted; the guest goes on. SIGINT, SIGTERM
  and others end the machine, and the terminal is as it was before.

Environment:
  BELLJAR_LOG  what to log on standard error: warn, info, belljar_machine=debug… [default: warn]";

/// The flags of `belljar run`. What is not given is as the configuration file says, or the default.
#[derive(Debug, Default, Args)]
pub struct RunOptions {
    /// What runs the guest's code: auto (the best that this host has), translator, interpreter, kvm
    /// [default: auto]
    #[arg(long, value_name = "NAME")]
    engine: Option<EngineChoice>,
    /// Kernel to boot: a Linux bzImage, an ELF vmlinux with a PVH note, or a multiboot 1 image
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Initial RAM filesystem of the kernel
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Command line of the kernel [default: console=ttyS0]
    #[arg(long, value_name = "STRING", allow_hyphen_values = true)]
    cmdline: Option<String>,
    /// Debian suite of the guest that Belljar makes itself, for example trixie [default: the host's
    /// own]
    #[arg(long, value_name = "NAME")]
    suite: Option<String>,
    /// Size of the RAM in bytes, or with K, M, G or T [default: 1G]
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// Number of virtual CPUs, 1 to 255 [default: 1]
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// Where the serial console goes: stdio, pty (its path is told on standard error), file=PATH
    /// (output only), unix=PATH (a socket that one client at a time connects to) [default: stdio]
    #[arg(long, value_name = "WHERE")]
    console: Option<ConsoleChoice>,
    /// Let a guest end the machine by writing VALUE to port 0xf4, with exit status (VALUE << 1) | 1
    #[arg(long)]
    debug_exit: bool,
    /// End the machine, with exit status 0, when the guest resets it
    #[arg(long)]
    no_reboot: bool,
    /// Configuration file in TOML whose keys are the names of these flags; flags go before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name of the machine in its log [default: belljar]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
}

impl RunOptions {
    /// The configuration that the file and the flags make together.
    ///
    /// # Errors
    /// A file that cannot be read or says what does not exist; settings that do not go together.
    pub fn into_config(self) -> Result<MachineConfig, ConfigError> {
        let mut config = match &self.config {
            Some(path) => MachineConfig::from_file(path)?,
            None => MachineConfig::default(),
        };
        config.engine = self.engine.unwrap_or(config.engine);
        config.kernel = self.kernel.or(config.kernel);
        config.initrd = self.initrd.or(config.initrd);
        config.cmdline = self.cmdline.or(config.cmdline);
        config.suite = self.suite.or(config.suite);
        config.memory = self.memory.unwrap_or(config.memory);
        config.cpus = self.cpus.unwrap_or(config.cpus);
        config.console = self.console.unwrap_or(config.console);
        config.debug_exit |= self.debug_exit;
        config.no_reboot |= self.no_reboot;
        config.name = self.name.unwrap_or(config.name);
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::io::Write;

    fn config(arguments: &[&str]) -> Result<MachineConfig, ConfigError> {
        let line = ["belljar", "run"].iter().chain(arguments);
        let Command::Run(options) = Cli::try_parse_from(line).unwrap().command;
        options.into_config()
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_flags_are_the_default_machine() {
        assert_eq!(config(&[]).unwrap(), MachineConfig::default());
    }

    #[test]
    fn flags_go_before_the_file() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, "memory = \"2G\"\ncpus = 2\nkernel = \"k\"").unwrap();
        let path = file.path().to_str().unwrap();
        let config = config(&["--config", path, "--cpus", "3"]).unwrap();
        assert_eq!((config.cpus, config.memory.bytes()), (3, 2 << 30));
        assert_eq!(config.kernel, Some("k".into()));
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for arguments in [
            &["--cpus", "0"][..],
            &["--initrd", "i"],
            &["--kernel", "k", "--suite", "trixie"],
        ] {
            assert!(config(arguments).is_err(), "{arguments:?}");
        }
    }
}
