//! What a machine is to be: the one source of truth behind the command line's flags and the file
//! format.

use crate::Size;
use belljar_block::{DiskConfig, Interface};
use belljar_net::{BadNet, CardConfig};
use belljar_share::ShareConfig;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use thiserror::Error;

/// The most vCPUs that a machine can have: local APIC identifiers of 8 bits, less the one that
/// means all.
pub const MOST_CPUS: u32 = 255;
/// The longest name, in bytes.
const LONGEST_NAME: usize = 64;
/// The most disks of each interface.
pub const MOST_DISKS: usize = 16;
/// The most shared directories: as many as there are slots for them.
pub const MOST_SHARES: usize = 3;
/// The longest command line, in bytes. Linux itself takes 2047.
const LONGEST_CMDLINE: usize = 65535;
/// The most network cards.
pub const MOST_CARDS: usize = 8;

/// Everything that is to be said about a machine before it is made.
///
/// In TOML the keys are those of the command line's flags (`debug-exit = true`). A key that does
/// not exist is an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct MachineConfig {
    /// The machine's name; if there is none, whoever runs the machine chooses one.
    pub name: Option<String>,
    /// The image that the machine boots from its own copy of; whoever runs the machine provides it.
    pub image: Option<String>,
    /// Whether the machine begins with a new copy of the image.
    pub fresh: bool,
    /// How the guest sees the disk of the image; as a virtio block device if nothing is said.
    pub root_interface: Option<Interface>,
    /// The kernel: a Linux bzImage, an ELF vmlinux, or a multiboot 1 image.
    pub kernel: Option<PathBuf>,
    /// The initial RAM filesystem.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: Option<String>,
    /// The Debian suite of the guest that Belljar makes itself where there is no kernel.
    pub suite: Option<String>,
    /// The size of the RAM.
    pub memory: Size,
    /// The number of vCPUs.
    pub cpus: u32,
    /// What runs the guest's code.
    pub engine: EngineChoice,
    /// Where the guest's console goes.
    pub console: ConsoleChoice,
    /// Which of the guest's devices is its console.
    pub console_device: ConsoleDevice,
    /// The network cards; if nothing is said of them, what the guest's kind needs: none for a kernel.
    pub net: Option<Vec<CardConfig>>,
    /// The disks.
    pub disk: Vec<DiskConfig>,
    /// The directories that the guest can mount.
    pub share: Vec<ShareConfig>,
    /// Whether a write to port 0xf4 ends the machine.
    pub debug_exit: bool,
    /// Whether a reset ends the machine instead of starting it anew.
    pub no_reboot: bool,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            name: None,
            image: None,
            fresh: false,
            root_interface: None,
            kernel: None,
            initrd: None,
            cmdline: None,
            suite: None,
            memory: Size::mib(1024),
            cpus: 1,
            engine: EngineChoice::Auto,
            console: ConsoleChoice::Stdio,
            console_device: ConsoleDevice::Serial,
            net: None,
            disk: Vec::new(),
            share: Vec::new(),
            debug_exit: false,
            no_reboot: false,
        }
    }
}

impl MachineConfig {
    /// Reads a configuration from a TOML file; what it does not say is as in
    /// [`MachineConfig::default`].
    ///
    /// # Errors
    /// [`ConfigError::Read`] and [`ConfigError::Syntax`].
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        toml::from_str(&text).map_err(|source| ConfigError::Syntax {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// Checks what no single field can tell.
    ///
    /// # Errors
    /// What is wrong, as a [`ConfigError`].
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(1..=MOST_CPUS).contains(&self.cpus) {
            return Err(ConfigError::Cpus(self.cpus));
        }
        if let Some(name) = self.name.as_ref().filter(|name| !is_name(name)) {
            return Err(ConfigError::Name(name.clone()));
        }
        if self.image.is_some() && (self.kernel.is_some() || self.suite.is_some()) {
            return Err(ConfigError::ImageWithKernel);
        }
        if self.image.is_none() && self.root_interface.is_some() {
            return Err(ConfigError::RootWithoutImage);
        }
        if self.kernel.is_none() && self.initrd.is_some() {
            return Err(ConfigError::InitrdWithoutKernel);
        }
        if self.kernel.is_some() && self.suite.is_some() {
            return Err(ConfigError::SuiteWithKernel);
        }
        if self.cards().len() > MOST_CARDS {
            return Err(ConfigError::Cards(self.cards().len()));
        }
        self.validate_disks()?;
        self.validate_shares()?;
        match &self.cmdline {
            Some(line) if line.len() > LONGEST_CMDLINE || line.contains('\0') => {
                Err(ConfigError::Cmdline(line.len()))
            }
            _ => Ok(()),
        }
    }

    /// The network cards, none if nothing was said of them.
    pub fn cards(&self) -> &[CardConfig] {
        self.net.as_deref().unwrap_or_default()
    }

    /// Checks the disks' number, and that those that share a controller agree.
    fn validate_disks(&self) -> Result<(), ConfigError> {
        let of = |interface| {
            let disks = self.disk.iter();
            disks.filter(move |disk| disk.interface == interface)
        };
        for interface in [Interface::Virtio, Interface::Nvme] {
            let count = of(interface).count();
            if count > MOST_DISKS {
                return Err(ConfigError::Disks(count));
            }
        }
        let mut serials = of(Interface::Nvme).filter_map(|disk| disk.serial.as_ref());
        let first = serials.next();
        if serials.any(|serial| Some(serial) != first) {
            return Err(ConfigError::NvmeSerials);
        }
        Ok(())
    }

    /// Checks the shares' number, and that each has a tag of its own.
    fn validate_shares(&self) -> Result<(), ConfigError> {
        if self.share.len() > MOST_SHARES {
            return Err(ConfigError::Shares(self.share.len()));
        }
        for (index, share) in self.share.iter().enumerate() {
            let mut before = self.share[..index].iter();
            if before.any(|other| other.tag() == share.tag()) {
                return Err(ConfigError::ShareTags(share.tag().to_owned()));
            }
        }
        Ok(())
    }

    /// The kernel's command line; if none was given, one by which its messages go to the console.
    pub fn cmdline(&self) -> &str {
        let default = self.console_device.parameter();
        self.cmdline.as_deref().unwrap_or(default)
    }
}

/// Whether a machine can have the name: it must do as the name of a directory.
fn is_name(name: &str) -> bool {
    name.len() <= LONGEST_NAME
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// Why a configuration is not one of a machine.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The host's error.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML, or says something that does not exist.
    #[error("the configuration {} is not valid", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A number of vCPUs that no machine has.
    #[error("a machine cannot have {0} vCPUs (1 to {MOST_CPUS})")]
    Cpus(u32),
    /// A name that would not do as a file name.
    #[error(
        "{0:?} is no name for a machine (letters, digits, '_', '.' and '-', at most \
         {LONGEST_NAME}, the first a letter or digit)"
    )]
    Name(String),
    /// An initial RAM filesystem for a kernel that Belljar chooses.
    #[error("an initrd needs its kernel: give --kernel too")]
    InitrdWithoutKernel,
    /// Something to boot besides an image, which has a kernel of its own.
    #[error("an image has its own kernel; it cannot go with --kernel, --initrd or --suite")]
    ImageWithKernel,
    /// An interface for the disk of an image that there is not.
    #[error("--root-interface is for the disk of an image: give an image too")]
    RootWithoutImage,
    /// A suite to take a kernel from although one was given.
    #[error("--suite chooses the guest that Belljar makes itself; it cannot go with --kernel")]
    SuiteWithKernel,
    /// The terminal as the console of a machine that has none.
    #[error("a machine that is started detached has no terminal: attach with `belljar console`")]
    DetachedConsole,
    /// No card, and cards.
    #[error("--net none cannot go with other network cards")]
    NoneAmongCards,
    /// More network cards than a machine has slots for.
    #[error("a machine cannot have {0} network cards ({MOST_CARDS} at most)")]
    Cards(usize),
    /// More disks than fit.
    #[error("a machine cannot have {0} disks of one interface ({MOST_DISKS} at most)")]
    Disks(usize),
    /// NVMe disks that are to have different serial numbers.
    #[error("NVMe disks belong to one controller, which has one serial number: give it once")]
    NvmeSerials,
    /// More shared directories than a machine has slots for.
    #[error("a machine cannot share {0} directories ({MOST_SHARES} at most)")]
    Shares(usize),
    /// Shared directories that a guest could not tell from each other.
    #[error("two shared directories have the tag {0:?}: give one of them another with tag=")]
    ShareTags(String),
    /// A command line that cannot be handed to a kernel.
    #[error("the command line of {0} bytes is too long or contains a zero byte")]
    Cmdline(usize),
}

/// A text that is none of the values that a setting can have.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{given:?} is not one of {possible}")]
pub struct BadChoice {
    given: String,
    possible: &'static str,
}

/// The engine to run a machine with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// The best one that this host and this version have.
    #[default]
    Auto,
    /// The binary translator.
    Translator,
    /// The reference interpreter.
    Interpreter,
    /// The host's hardware virtualization.
    Kvm,
}

impl EngineChoice {
    /// The name as the command line and the file give it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Translator => "translator",
            Self::Interpreter => "interpreter",
            Self::Kvm => "kvm",
        }
    }
}

impl FromStr for EngineChoice {
    type Err = BadChoice;

    fn from_str(text: &str) -> Result<Self, BadChoice> {
        [Self::Auto, Self::Translator, Self::Interpreter, Self::Kvm]
            .into_iter()
            .find(|choice| choice.name() == text)
            .ok_or_else(|| BadChoice {
                given: text.to_owned(),
                possible: "auto, translator, interpreter, kvm",
            })
    }
}

impl fmt::Display for EngineChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What one `--net` says: a card, or that there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetChoice {
    /// No card.
    None,
    /// A card.
    Card(CardConfig),
}

impl NetChoice {
    /// The cards that several choices make together.
    ///
    /// # Errors
    /// [`ConfigError::NoneAmongCards`].
    pub fn cards(choices: Vec<Self>) -> Result<Vec<CardConfig>, ConfigError> {
        let count = choices.len();
        let cards: Vec<CardConfig> = choices
            .into_iter()
            .filter_map(|choice| match choice {
                Self::None => None,
                Self::Card(card) => Some(card),
            })
            .collect();
        if cards.len() == count || count == 1 {
            Ok(cards)
        } else {
            Err(ConfigError::NoneAmongCards)
        }
    }
}

impl FromStr for NetChoice {
    type Err = BadNet;

    fn from_str(text: &str) -> Result<Self, BadNet> {
        if text == "none" {
            return Ok(Self::None);
        }
        text.parse().map(Self::Card)
    }
}

/// Which of a guest's devices is its console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConsoleDevice {
    /// The serial port: from the first instruction on, one character at a time.
    #[default]
    Serial,
    /// Virtio's console, which is fast and knows the terminal's size. What the serial port prints is
    /// lost then.
    Virtio,
}

impl ConsoleDevice {
    /// The name as the command line and the file give it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Serial => "serial",
            Self::Virtio => "virtio",
        }
    }

    /// What a Linux kernel is told to have its messages there.
    pub const fn parameter(self) -> &'static str {
        match self {
            Self::Serial => "console=ttyS0",
            Self::Virtio => "console=hvc0",
        }
    }
}

impl FromStr for ConsoleDevice {
    type Err = BadChoice;

    fn from_str(text: &str) -> Result<Self, BadChoice> {
        [Self::Serial, Self::Virtio]
            .into_iter()
            .find(|choice| choice.name() == text)
            .ok_or_else(|| BadChoice {
                given: text.to_owned(),
                possible: "serial, virtio",
            })
    }
}

impl fmt::Display for ConsoleDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a guest's console goes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ConsoleChoice {
    /// Standard input and output.
    #[default]
    Stdio,
    /// A new pseudo-terminal.
    Pty,
    /// Output to a file; no input.
    File(PathBuf),
    /// A Unix socket that clients connect to.
    Unix(PathBuf),
    /// Nowhere.
    None,
}

impl FromStr for ConsoleChoice {
    type Err = BadChoice;

    fn from_str(text: &str) -> Result<Self, BadChoice> {
        match text.split_once('=') {
            None if text == "stdio" => Ok(Self::Stdio),
            None if text == "pty" => Ok(Self::Pty),
            None if text == "none" => Ok(Self::None),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("unix", path)) if !path.is_empty() => Ok(Self::Unix(path.into())),
            _ => Err(BadChoice {
                given: text.to_owned(),
                possible: "stdio, pty, file=PATH, unix=PATH, none",
            }),
        }
    }
}

impl TryFrom<String> for ConsoleChoice {
    type Error = BadChoice;

    fn try_from(text: String) -> Result<Self, BadChoice> {
        text.parse()
    }
}

impl From<ConsoleChoice> for String {
    fn from(choice: ConsoleChoice) -> Self {
        choice.to_string()
    }
}

impl fmt::Display for ConsoleChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdio => f.write_str("stdio"),
            Self::Pty => f.write_str("pty"),
            Self::File(path) => write!(f, "file={}", path.display()),
            Self::Unix(path) => write!(f, "unix={}", path.display()),
            Self::None => f.write_str("none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_is_the_default_machine() {
        assert_eq!(
            toml::from_str::<MachineConfig>("").unwrap(),
            MachineConfig::default()
        );
    }

    #[test]
    fn a_file_says_what_the_flags_say() {
        let config: MachineConfig = toml::from_str(
            "kernel = \"/boot/vmlinuz\"\nmemory = \"512M\"\ncpus = 2\nengine = \"interpreter\"\n\
             console = \"file=/tmp/log\"\nconsole-device = \"virtio\"\ndebug-exit = true\nno-reboot = true\n\
             net = [\"user,forward=2222:22\", \"tap=vm0\"]\nshare = [\"/srv,tag=data,readonly\"]\n",
        )
        .unwrap();
        assert_eq!(config.memory.bytes(), 512 << 20);
        assert_eq!(config.engine, EngineChoice::Interpreter);
        assert_eq!(config.console, ConsoleChoice::File("/tmp/log".into()));
        assert_eq!(config.cmdline(), "console=hvc0");
        assert!(config.debug_exit && config.no_reboot);
        assert_eq!(config.share[0].to_string(), "/srv,tag=data,readonly");
        let cards: Vec<String> = config.cards().iter().map(CardConfig::to_string).collect();
        assert_eq!(cards, ["user,forward=tcp:127.0.0.1:2222:22", "tap=vm0"]);
        config.validate().unwrap();
    }

    #[test]
    fn a_configuration_survives_being_written() {
        let config = MachineConfig {
            console: ConsoleChoice::Unix("/run/c.sock".into()),
            cmdline: Some("quiet".to_owned()),
            image: Some("debian:trixie".to_owned()),
            root_interface: Some(Interface::Nvme),
            ..MachineConfig::default()
        };
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<MachineConfig>(&text).unwrap(), config);
    }

    #[test]
    fn unknown_keys_and_values_are_errors() {
        for text in [
            "colour = \"red\"",
            "debug_exit = true",
            "engine = \"warp\"",
            "memory = \"much\"",
            "console = \"file=\"",
            "console = \"vga\"",
            "console-device = \"vga\"",
            "net = \"user\"",
            "net = [\"none\"]",
        ] {
            assert!(toml::from_str::<MachineConfig>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn machines_that_cannot_be_are_refused() {
        let with = |change: fn(&mut MachineConfig)| {
            let mut config = MachineConfig::default();
            change(&mut config);
            config.validate()
        };
        assert!(with(|c| c.cpus = 0).is_err());
        assert!(with(|c| c.cpus = 256).is_err());
        for name in ["a b", "", ".", "..", "a/b", "-a"] {
            let config = MachineConfig {
                name: Some(name.to_owned()),
                ..MachineConfig::default()
            };
            assert!(config.validate().is_err(), "{name:?}");
        }
        assert!(with(|c| c.initrd = Some("x".into())).is_err());
        assert!(with(|c| c.root_interface = Some(Interface::Nvme)).is_err());
        assert!(with(|c| c.cmdline = Some("a\0b".to_owned())).is_err());
        assert!(with(|c| c.net = Some(vec![CardConfig::user(); 9])).is_err());
        assert!(
            with(|c| c.share = vec![ShareConfig::new("/a/x"), ShareConfig::new("/b/x")]).is_err()
        );
        assert!(
            with(|c| c.share = vec![ShareConfig::new("/a/x"), ShareConfig::new("/b/y")]).is_ok()
        );
        assert!(with(|_| ()).is_ok());
    }
}
