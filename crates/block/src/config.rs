//! What is said of a disk: `FILE,format=qcow2,overlay=tmp,bps=100M,iops=1000`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use thiserror::Error;

/// The most bytes of a serial number, as virtio and NVMe have it.
const LONGEST_SERIAL: usize = 20;
/// The units of a number of bytes, as sizes of memory have them.
const BYTE_UNITS: [(char, u64); 4] = [
    ('K', 1 << 10),
    ('M', 1 << 20),
    ('G', 1 << 30),
    ('T', 1 << 40),
];
/// The units of a number of operations.
const COUNT_UNITS: [(char, u64); 2] = [('K', 1_000), ('M', 1_000_000)];

/// A disk, as a user describes it. A comma in a file's name is written twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DiskConfig {
    /// The image.
    pub file: PathBuf,
    /// Its format, if said; see [`format`](Self::format).
    pub format: Option<Format>,
    /// Whether the guest can only read.
    pub read_only: bool,
    /// Where changes go instead of the image.
    pub overlay: Option<Overlay>,
    /// What serves it.
    pub aio: Aio,
    /// The most bytes a second.
    pub bps: Option<u64>,
    /// The most operations a second.
    pub iops: Option<u64>,
    /// How the guest sees the disk.
    pub interface: Interface,
    /// The serial number that the guest sees: up to 20 printable ASCII characters.
    pub serial: Option<String>,
}

/// How an image file holds a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The bytes of the file are those of the disk.
    Raw,
    /// QEMU's format with allocation on demand and backing files.
    Qcow2,
}

/// Where changes go if not into the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Overlay {
    /// Into a temporary file without a name, which ends with the machine.
    Temporary,
    /// Into this qcow2 file, made if there is none.
    File(PathBuf),
}

/// What serves a disk's reads and writes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aio {
    /// What is faster: for a raw image, io_uring for reads of up to 128 KiB if the host has it; threads for
    /// all else.
    #[default]
    Auto,
    /// io_uring for all reads and writes, or there is no disk.
    IoUring,
    /// Threads.
    Threads,
}

impl FromStr for Aio {
    type Err = BadDisk;

    fn from_str(text: &str) -> Result<Self, BadDisk> {
        match text {
            "auto" => Ok(Self::Auto),
            "io_uring" => Ok(Self::IoUring),
            "threads" => Ok(Self::Threads),
            _ => bad("aio", text, "auto, io_uring or threads"),
        }
    }
}

/// How a guest sees a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interface {
    /// A virtio block device.
    #[default]
    Virtio,
    /// A namespace of an NVMe controller.
    Nvme,
}

impl FromStr for Interface {
    type Err = BadDisk;

    fn from_str(text: &str) -> Result<Self, BadDisk> {
        match text {
            "virtio" => Ok(Self::Virtio),
            "nvme" => Ok(Self::Nvme),
            _ => bad("interface", text, "virtio or nvme"),
        }
    }
}

/// A text that describes no disk.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BadDisk {
    /// There is no file.
    #[error("a disk needs a file: FILE[,OPTION...]")]
    NoFile,
    /// An option that there is not.
    #[error(
        "{0:?} is no option of a disk (format=, readonly, overlay=, aio=, bps=, iops=, interface=, \
         serial=; a comma in a file's name is written twice)"
    )]
    Option(String),
    /// An option that was given before.
    #[error("the option {0} of a disk is given twice")]
    Twice(String),
    /// A value that an option cannot have.
    #[error("{value:?} is no value for {option} ({expected})")]
    Value {
        /// The option.
        option: &'static str,
        /// Its value.
        value: String,
        /// What it could be.
        expected: &'static str,
    },
    /// Options that exclude each other.
    #[error("readonly and overlay= exclude each other: an overlay is there to be written")]
    ReadOnlyOverlay,
}

impl DiskConfig {
    /// The disk in `file`, with nothing else said.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self {
            file: file.into(),
            format: None,
            read_only: false,
            overlay: None,
            aio: Aio::default(),
            bps: None,
            iops: None,
            interface: Interface::default(),
            serial: None,
        }
    }

    /// The format: as said, or else qcow2 if the file's name ends with `.qcow2`, or else raw. The
    /// content does not decide, because a guest can write it.
    pub fn format(&self) -> Format {
        self.format.unwrap_or_else(|| Format::of_name(&self.file))
    }

    fn set(&mut self, option: &str) -> Result<(), BadDisk> {
        let unknown = || BadDisk::Option(option.to_owned());
        if option == "readonly" {
            self.read_only = true;
            return Ok(());
        }
        let (key, value) = option.split_once('=').ok_or_else(unknown)?;
        match key {
            "format" => self.format = Some(format(value)?),
            "overlay" => self.overlay = Some(overlay(value)?),
            "aio" => self.aio = value.parse()?,
            "bps" => {
                let expected = "bytes a second, at least 1, or with K, M, G or T";
                self.bps = Some(number("bps", value, &BYTE_UNITS, expected)?);
            }
            "iops" => {
                let expected = "operations a second, at least 1, or with K or M for thousands or \
                                millions";
                self.iops = Some(number("iops", value, &COUNT_UNITS, expected)?);
            }
            "interface" => self.interface = value.parse()?,
            "serial" => self.serial = Some(serial(value)?),
            _ => return Err(unknown()),
        }
        Ok(())
    }
}

impl Format {
    /// What the name of a file says of its format.
    pub(crate) fn of_name(file: &Path) -> Self {
        match file.extension() {
            Some(extension) if extension.eq_ignore_ascii_case("qcow2") => Self::Qcow2,
            _ => Self::Raw,
        }
    }
}

/// Splits at commas; a double comma stands for one.
fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let current = parts.last_mut().expect("there is always one part");
        if c != ',' {
            current.push(c);
        } else if chars.next_if_eq(&',').is_some() {
            current.push(',');
        } else {
            parts.push(String::new());
        }
    }
    parts
}

impl FromStr for DiskConfig {
    type Err = BadDisk;

    fn from_str(text: &str) -> Result<Self, BadDisk> {
        let mut parts = split(text).into_iter();
        let file = parts
            .next()
            .filter(|file| !file.is_empty())
            .ok_or(BadDisk::NoFile)?;
        let mut disk = Self::new(file);
        let mut seen = Vec::new();
        for option in parts {
            let key = option.split('=').next().unwrap_or_default().to_owned();
            if seen.contains(&key) {
                return Err(BadDisk::Twice(key));
            }
            disk.set(&option)?;
            seen.push(key);
        }
        if disk.read_only && disk.overlay.is_some() {
            return Err(BadDisk::ReadOnlyOverlay);
        }
        Ok(disk)
    }
}

fn bad<T>(option: &'static str, value: &str, expected: &'static str) -> Result<T, BadDisk> {
    Err(BadDisk::Value {
        option,
        value: value.to_owned(),
        expected,
    })
}

fn format(value: &str) -> Result<Format, BadDisk> {
    match value {
        "raw" => Ok(Format::Raw),
        "qcow2" => Ok(Format::Qcow2),
        _ => bad("format", value, "raw or qcow2"),
    }
}

fn overlay(value: &str) -> Result<Overlay, BadDisk> {
    match value {
        "" => bad("overlay", value, "tmp or a file"),
        "tmp" => Ok(Overlay::Temporary),
        file => Ok(Overlay::File(file.into())),
    }
}

fn serial(value: &str) -> Result<String, BadDisk> {
    if (1..=LONGEST_SERIAL).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(value.to_owned());
    }
    bad("serial", value, "1 to 20 printable ASCII characters")
}

fn number(
    option: &'static str,
    value: &str,
    units: &[(char, u64)],
    expected: &'static str,
) -> Result<u64, BadDisk> {
    let unit = units
        .iter()
        .find(|(letter, _)| value.ends_with([*letter, letter.to_ascii_lowercase()]));
    let (digits, scale) = unit.map_or((value, 1), |(_, scale)| (&value[..value.len() - 1], *scale));
    let count = digits
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| digits.parse::<u64>().ok())
        .flatten();
    match count.and_then(|count| count.checked_mul(scale)) {
        Some(count) if count > 0 => Ok(count),
        _ => bad(option, value, expected),
    }
}

/// A file's name as it is written among options.
fn escaped(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

impl fmt::Display for DiskConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escaped(&self.file))?;
        match self.format {
            Some(Format::Raw) => f.write_str(",format=raw")?,
            Some(Format::Qcow2) => f.write_str(",format=qcow2")?,
            None => {}
        }
        if self.read_only {
            f.write_str(",readonly")?;
        }
        match &self.overlay {
            Some(Overlay::Temporary) => f.write_str(",overlay=tmp")?,
            Some(Overlay::File(file)) => write!(f, ",overlay={}", escaped(file))?,
            None => {}
        }
        match self.aio {
            Aio::Auto => {}
            Aio::IoUring => f.write_str(",aio=io_uring")?,
            Aio::Threads => f.write_str(",aio=threads")?,
        }
        if let Some(bps) = self.bps {
            write!(f, ",bps={bps}")?;
        }
        if let Some(iops) = self.iops {
            write!(f, ",iops={iops}")?;
        }
        if self.interface == Interface::Nvme {
            f.write_str(",interface=nvme")?;
        }
        if let Some(serial) = &self.serial {
            write!(f, ",serial={}", serial.replace(',', ",,"))?;
        }
        Ok(())
    }
}

impl TryFrom<String> for DiskConfig {
    type Error = BadDisk;

    fn try_from(text: String) -> Result<Self, BadDisk> {
        text.parse()
    }
}

impl From<DiskConfig> for String {
    fn from(disk: DiskConfig) -> Self {
        disk.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn options_are_understood() {
        let text = "a,,b.img,format=qcow2,overlay=c,,d,aio=threads,bps=10M,iops=2k,interface=nvme,serial=X-1";
        let disk: DiskConfig = text.parse().unwrap();
        let want = DiskConfig {
            file: "a,b.img".into(),
            format: Some(Format::Qcow2),
            read_only: false,
            overlay: Some(Overlay::File("c,d".into())),
            aio: Aio::Threads,
            bps: Some(10 << 20),
            iops: Some(2000),
            interface: Interface::Nvme,
            serial: Some("X-1".to_owned()),
        };
        assert_eq!(disk, want);
        let disk: DiskConfig = "d.qcow2,readonly".parse().unwrap();
        assert!(disk.read_only && disk.format() == Format::Qcow2);
        assert_eq!(DiskConfig::new("d.img").format(), Format::Raw);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            "",
            ",format=raw",
            "d,",
            "d,colour=red",
            "d,readonly=on",
            "d,format=vmdk",
            "d,format=raw,format=raw",
            "d,overlay=",
            "d,overlay=tmp,readonly",
            "d,aio=native",
            "d,bps=0",
            "d,bps=+1",
            "d,bps=K",
            "d,bps=99999999999T",
            "d,iops=1G",
            "d,interface=ide",
            "d,serial=",
            "d,serial=123456789012345678901",
            "d,serial=a b",
        ] {
            assert!(text.parse::<DiskConfig>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_disk_survives_being_written(
            text in "[a-z,]{1,8}(,format=(raw|qcow2))?(,overlay=(tmp|[a-z,]{1,6}))?(,aio=(auto|io_uring|threads))?(,bps=[1-9][0-9]{0,5}[KMGT]?)?",
        ) {
            if let Ok(disk) = text.parse::<DiskConfig>() {
                prop_assert_eq!(disk.to_string().parse(), Ok(disk));
            }
        }

        #[test]
        fn any_text_is_a_disk_or_an_error(text: String) {
            let _ = text.parse::<DiskConfig>();
        }
    }
}
