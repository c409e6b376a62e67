//! The command line: flags fill a [`MachineConfig`], over what a configuration file says.

// Doc comments here are the texts of --help, whose brackets are no links.
#![allow(rustdoc::broken_intra_doc_links)]

use crate::commands::{
    AttachOptions, BalloonOptions, ExecOptions, ListOptions, LogsOptions, Names, StatsOptions,
    StopOptions,
};
use crate::images::ImageCommand;
use belljar_machine::{
    ConfigError, ConsoleChoice, ConsoleDevice, DiskConfig, EngineChoice, Interface, MachineConfig,
    NetChoice, ShareConfig, Size,
};
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
    /// Start a virtual machine that goes on without a terminal, and print its name
    ///
    /// The flags are those of run. The command comes back when the machine runs; if it does not
    /// come to that, with the message and the exit status that run would have. What the guest
    /// prints is kept for belljar logs and belljar console.
    #[command(after_help = START_AFTER_HELP)]
    Start(RunOptions),
    /// Run the machine whose configuration is on standard input (for belljar start)
    #[command(name = crate::detached::COMMAND, hide = true)]
    DetachedMachine,
    /// List machines
    #[command(after_help = PS_AFTER_HELP)]
    Ps(ListOptions),
    /// Shut machines down: press their power button, and end those that do not react
    #[command(after_help = STOP_AFTER_HELP)]
    Stop(StopOptions),
    /// Let machines stand still, their time too
    Pause(Names),
    /// Let paused machines go on
    Resume(Names),
    /// Attach the terminal to the console of a machine; Ctrl-A d detaches
    ///
    /// First comes what the guest printed lately (up to 64 KiB). Any number of terminals can be
    /// attached; the first one has the keyboard. The machine goes on when they detach.
    Console(AttachOptions),
    /// Run a command in a guest that has Belljar's agent: those that Belljar makes
    ///
    /// Standard input, output and error are the command's, and signals are passed on to it; the
    /// third one leaves it to itself.
    #[command(after_help = EXEC_AFTER_HELP)]
    Exec(ExecOptions),
    /// Show what a machine has printed on its console, up to 2 MiB
    Logs(LogsOptions),
    /// Show where a machine's time goes, by vCPU, and how its memory is used
    Stats(StatsOptions),
    /// Take memory from a machine's guest for the host, or give it back
    ///
    /// The guest does it as far as it can, if it has a driver for the balloon: virtio_balloon in
    /// Linux. belljar stats shows how far it has come. A guest that is about to run out of memory
    /// takes some back by itself.
    Balloon(BalloonOptions),
    /// Build, list and remove images: bootable disks of Debian
    #[command(subcommand)]
    Image(ImageCommand),
}

const START_AFTER_HELP: &str = "\
Exit status:
  0  the machine runs; its name is on standard output
  1  Belljar failed, or the name is taken
  2  wrong usage

Environment:
  BELLJAR_RUNTIME_DIR  where machines are found [default: belljar in XDG_RUNTIME_DIR or
                       /run/user/UID, else /tmp/belljar-UID]";

const EXEC_AFTER_HELP: &str = "\
Exit status:
  that of the command; 128 and the number of the signal that ended it
  1    Belljar failed, or the guest has no agent
  2    wrong usage
  126  the command cannot be executed
  127  there is no such command";

const PS_AFTER_HELP: &str = "\
States: running, paused, starting, unresponsive (its process does not answer), and with --all ended,
with the exit status that belljar run gives. The logs of the 16 machines that were started detached
and ended last are kept, until their name is used again.";

const STOP_AFTER_HELP: &str = "\
The command comes back when the machines' processes have ended. Exit status 0 if all have, whether
or not their guests have shut down by themselves.";

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
    /// Image to boot, for example debian:trixie; it is built at its first use. The machine has its
    /// own copy of the disk, which lasts from run to run under the machine's name [default name: the
    /// image's, as in debian-trixie]
    #[arg(value_name = "IMAGE", conflicts_with_all = ["kernel", "initrd", "suite"])]
    image: Option<String>,
    /// Begin with a new copy of the image; what the machine's disk held is lost
    #[arg(long, requires = "image")]
    fresh: bool,
    /// How the guest sees the disk of the image: virtio, nvme [default: virtio]
    #[arg(long, value_name = "NAME")]
    root_interface: Option<Interface>,
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
    /// Command line of the kernel [default: console=ttyS0, or console=hvc0 with --console-device
    /// virtio]
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
    /// Where the guest's console goes: stdio, pty (its path is told on standard error), file=PATH
    /// (output only), unix=PATH (a socket that one client at a time connects to), none [default:
    /// stdio, or none for a machine that is started detached]
    #[arg(long, value_name = "WHERE")]
    console: Option<ConsoleChoice>,
    /// Which device is the guest's console: serial (ttyS0 in Linux) or virtio (hvc0, which is faster
    /// and knows the terminal's size; what the serial port prints is lost then) [default: serial]
    #[arg(long, value_name = "NAME")]
    console_device: Option<ConsoleDevice>,
    /// Attach a network card to a network: user (TCP/IP through this host, without privileges),
    /// tap=NAME (a tap device of this host that you own), switch=NAME (other machines of yours), or
    /// none; can be given several times [default: none]
    ///
    /// Options follow after commas. For all: mac=52:54:00:12:34:56, and rate=BITS a second in each
    /// direction (K, M, G). For user: forward=[tcp:|udp:][HOSTADDR:]HOSTPORT:GUESTPORT (on
    /// 127.0.0.1 if there is no HOSTADDR; can be repeated), local=off (neither private networks nor
    /// this host's own addresses), restrict=on (nothing but forwards), loopback=on (10.0.2.2 is
    /// this host's 127.0.0.1).
    #[arg(long, value_name = "NETWORK")]
    net: Vec<NetChoice>,
    /// Disk: FILE[,format=raw|qcow2][,readonly][,overlay=tmp|FILE]
    /// [,aio=auto|io_uring|threads][,bps=N][,iops=N][,interface=virtio|nvme][,serial=TEXT]; can be
    /// given more than once, and then goes before all of the file's. A comma in a file's name is
    /// written twice
    #[arg(long, value_name = "FILE[,OPTION…]")]
    disk: Vec<DiskConfig>,
    /// Share a directory of this host with the guest: DIR[,tag=NAME][,readonly]; can be given more
    /// than once, and then goes before all of the file's. The guest mounts it with mount -t virtiofs
    /// NAME /mnt [default tag: the directory's name]. A comma in the directory's name is written
    /// twice
    #[arg(long, value_name = "DIR[,OPTION…]")]
    share: Vec<ShareConfig>,
    /// Let a guest end the machine by writing VALUE to port 0xf4, with exit status (VALUE << 1) | 1
    #[arg(long)]
    debug_exit: bool,
    /// End the machine, with exit status 0, when the guest resets it
    #[arg(long)]
    no_reboot: bool,
    /// Configuration file in TOML whose keys are the names of these flags; flags go before it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name of the machine, for belljar ps and the other commands [default: two words that no other
    /// machine has]
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
        config.image = self.image.or(config.image);
        config.fresh |= self.fresh;
        config.root_interface = self.root_interface.or(config.root_interface);
        config.kernel = self.kernel.or(config.kernel);
        config.initrd = self.initrd.or(config.initrd);
        config.cmdline = self.cmdline.or(config.cmdline);
        config.suite = self.suite.or(config.suite);
        config.memory = self.memory.unwrap_or(config.memory);
        config.cpus = self.cpus.unwrap_or(config.cpus);
        config.console = self.console.unwrap_or(config.console);
        config.console_device = self.console_device.unwrap_or(config.console_device);
        if !self.net.is_empty() {
            config.net = Some(NetChoice::cards(self.net)?);
        }
        if !self.disk.is_empty() {
            config.disk = self.disk;
        }
        if !self.share.is_empty() {
            config.share = self.share;
        }
        config.debug_exit |= self.debug_exit;
        config.no_reboot |= self.no_reboot;
        config.name = self.name.or(config.name);
        config.validate()?;
        Ok(config)
    }
}

impl RunOptions {
    /// The same for a machine without a terminal.
    ///
    /// # Errors
    /// As for [`into_config`](Self::into_config); and the terminal as console.
    pub fn into_detached_config(self) -> Result<MachineConfig, ConfigError> {
        if self.console == Some(ConsoleChoice::Stdio) {
            return Err(ConfigError::DetachedConsole);
        }
        self.into_config()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::io::Write;

    fn config(arguments: &[&str]) -> Result<MachineConfig, ConfigError> {
        let line = ["belljar", "run"].iter().chain(arguments);
        match Cli::try_parse_from(line).unwrap().command {
            Command::Run(options) => options.into_config(),
            other => panic!("{other:?}"),
        }
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
    fn the_root_of_an_image_is_where_the_user_says() {
        let nvme = config(&["debian:trixie", "--root-interface", "nvme"]).unwrap();
        assert_eq!(nvme.root_interface, Some(Interface::Nvme));
        assert!(Cli::try_parse_from(["belljar", "run", "i", "--root-interface", "ide"]).is_err());
    }

    #[test]
    fn the_kernels_messages_go_to_the_device_that_is_the_console() {
        let cmdline = |arguments: &[&str]| config(arguments).unwrap().cmdline().to_owned();
        assert_eq!(cmdline(&[]), "console=ttyS0");
        assert_eq!(cmdline(&["--console-device", "virtio"]), "console=hvc0");
        let given = ["--console-device", "virtio", "--cmdline", "quiet"];
        assert_eq!(cmdline(&given), "quiet");
        assert!(Cli::try_parse_from(["belljar", "run", "--console-device", "vga"]).is_err());
    }

    #[test]
    fn networks_add_up_and_none_is_none() {
        let cards = |arguments: &[&str]| config(arguments).unwrap().net.map(|net| net.len());
        assert_eq!(cards(&[]), None);
        assert_eq!(cards(&["--net", "none"]), Some(0));
        assert_eq!(
            cards(&["--net", "user,forward=2222:22", "--net", "switch=lab"]),
            Some(2)
        );
        assert!(Cli::try_parse_from(["belljar", "run", "--net", "wifi"]).is_err());
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for arguments in [
            &["--cpus", "0"][..],
            &["--initrd", "i"],
            &["--root-interface", "nvme"],
            &["--net", "user", "--net", "none"],
            &["--kernel", "k", "--suite", "trixie"],
        ] {
            assert!(config(arguments).is_err(), "{arguments:?}");
        }
    }
}
