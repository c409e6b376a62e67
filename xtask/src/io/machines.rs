//! The machines of the comparison: the same image with the same disks and card, under both.

use crate::debian::{copy_disk, file, free_port};
use anyhow::{Context, Result};
use belljar_image::Image;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The length of a disk to be measured. It stays in the host's page cache.
const DISK_LEN: usize = 512 << 20;
/// The serial numbers by which the guest finds the disks.
pub const SERIAL: &str = "measured";
/// The port at which iperf3 listens in the guest.
const GUEST_PORT: u16 = 5201;

/// The limits that a machine of Belljar has.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Bytes a second of the virtio disk.
    pub bps: Option<u64>,
    /// Operations a second of the NVMe disk.
    pub iops: Option<u64>,
    /// Bits a second of the card, in each direction.
    pub rate: Option<u64>,
}

/// The files of a machine, and its port on the host.
#[derive(Debug)]
pub struct Machine {
    image: Image,
    root: PathBuf,
    virtio: PathBuf,
    nvme: PathBuf,
    cpus: u32,
    aio: String,
    /// The port of the host's loopback that leads to iperf3 in the guest.
    pub port: u16,
}

impl Machine {
    /// Makes the files in `directory`: a copy of the image's disk, and disks full of data, which
    /// Belljar serves by `aio`.
    pub fn new(image: &Image, directory: &Path, cpus: u32, aio: &str) -> Result<Self> {
        let root = directory.join("root.raw");
        copy_disk(image, &root)?;
        let (virtio, nvme) = (directory.join("virtio.raw"), directory.join("nvme.raw"));
        for disk in [&virtio, &nvme] {
            fill(disk).with_context(|| format!("cannot write {}", disk.display()))?;
        }
        Ok(Self {
            image: image.clone(),
            root,
            virtio,
            nvme,
            cpus,
            aio: aio.to_owned(),
            port: free_port()?,
        })
    }

    /// The command that runs it under `program`, a Belljar.
    pub fn belljar(&self, program: &Path, engine: &str, limits: Limits) -> Command {
        let option = |name: &str, limit: Option<u64>| {
            limit.map_or(String::new(), |limit| format!(",{name}={limit}"))
        };
        let mut command = Command::new(program);
        command
            .args(["run", "--engine", engine, "--memory", "1G", "--no-reboot"])
            .args(["--cpus", &self.cpus.to_string()])
            .args(["--cmdline", &self.image.metadata.cmdline])
            .arg("--kernel")
            .arg(self.image.kernel())
            .arg("--initrd")
            .arg(self.image.initrd())
            .args(["--disk", &format!("{},format=raw", file(&self.root))])
            .arg("--disk")
            .arg(format!(
                "{},format=raw,aio={},serial={SERIAL}{}",
                file(&self.virtio),
                self.aio,
                option("bps", limits.bps)
            ))
            .arg("--disk")
            .arg(format!(
                "{},format=raw,aio={},interface=nvme,serial={SERIAL}{}",
                file(&self.nvme),
                self.aio,
                option("iops", limits.iops)
            ))
            .arg("--net")
            .arg(format!(
                "user,forward={}:{GUEST_PORT}{}",
                self.port,
                option("rate", limits.rate)
            ));
        command
    }

    /// The command that runs it under QEMU's TCG.
    pub fn qemu(&self) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "1024"])
            .args(["-smp", &self.cpus.to_string()])
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args([
                "-serial",
                "stdio",
                "-no-reboot",
                "-device",
                "virtio-rng-pci",
            ])
            .args(["-append", &self.image.metadata.cmdline])
            .arg("-kernel")
            .arg(self.image.kernel())
            .arg("-initrd")
            .arg(self.image.initrd());
        for (id, path, device) in [
            ("root", &self.root, "virtio-blk-pci".to_owned()),
            (
                "virtio",
                &self.virtio,
                format!("virtio-blk-pci,serial={SERIAL}"),
            ),
            ("nvme", &self.nvme, format!("nvme,serial={SERIAL}")),
        ] {
            let drive = format!("file={},if=none,format=raw,id={id}", file(path));
            command.args(["-drive", &drive]);
            command.args(["-device", &format!("{device},drive={id}")]);
        }
        let net = format!(
            "user,id=net,hostfwd=tcp:127.0.0.1:{}-:{GUEST_PORT}",
            self.port
        );
        command.args(["-netdev", &net, "-device", "virtio-net-pci,netdev=net"]);
        command
    }
}

/// Fills a file with data that has no holes.
fn fill(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    let piece: Vec<u8> = (0..1 << 20)
        .map(|at: u32| at.wrapping_mul(0x9e37_79b9).to_be_bytes()[0])
        .collect();
    for _ in 0..DISK_LEN / piece.len() {
        file.write_all(&piece)?;
    }
    Ok(())
}
