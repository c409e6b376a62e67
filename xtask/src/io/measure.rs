//! What is measured in a guest, with fio and iperf3.

use super::machines::{Limits, Machine, SERIAL};
use crate::console::Console;
use anyhow::{Context, Result, bail};
use std::process::Command;
use std::time::Duration;

/// The longest time that a command may take beside the seconds that it measures.
const LIMIT: Duration = Duration::from_mins(5);
/// How often a connection to iperf3 in the guest is tried.
const ATTEMPTS: u32 = 10;
/// Where the guest has the disks.
const VIRTIO: &str = "virtio";
const NVME: &str = "nvme";

/// A result.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    pub what: &'static str,
    /// `s`: less is better; of others, more is.
    pub unit: &'static str,
    pub value: f64,
    /// How many times better than TCG it is to be.
    pub least_ratio: Option<f64>,
}

/// A job of fio: its name, the disk, the pattern, the block size and the queue depth.
type Job = (&'static str, &'static str, &'static str, &'static str, u32);

const JOBS: [Job; 8] = [
    ("virtio 4 KiB random read", VIRTIO, "randread", "4k", 32),
    ("virtio 4 KiB random write", VIRTIO, "randwrite", "4k", 32),
    ("virtio 1 MiB read", VIRTIO, "read", "1M", 8),
    ("virtio 1 MiB write", VIRTIO, "write", "1M", 8),
    ("NVMe 4 KiB random read", NVME, "randread", "4k", 32),
    ("NVMe 4 KiB random write", NVME, "randwrite", "4k", 32),
    ("NVMe 1 MiB read", NVME, "read", "1M", 8),
    ("NVMe 1 MiB write", NVME, "write", "1M", 8),
];

/// What fio has found: bytes and operations a second.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Found {
    bytes: f64,
    operations: f64,
}

/// A guest with a shell at its console.
#[derive(Debug)]
pub struct Session<'a> {
    console: Console,
    machine: &'a Machine,
    seconds: u32,
}

impl<'a> Session<'a> {
    /// Logs in at the prompt, and finds the disks.
    pub fn log_in(mut console: Console, machine: &'a Machine, seconds: u32) -> Result<Self> {
        console.type_line("root")?;
        console.wait_for(":~# ", LIMIT)?;
        // A shell that edits no lines, so that only output is on the console.
        console.type_line("exec dash")?;
        console.wait_for("# ", LIMIT)?;
        // Whatever is still starting would be measured, too.
        console.run("systemctl is-system-running --wait || true", LIMIT)?;
        for disk in [VIRTIO, NVME] {
            // The first of a controller's names that end with the serial number.
            let link = format!(
                "set -- /dev/disk/by-id/{disk}-*{SERIAL}; [ -b \"$1\" ] && ln -s \"$1\" /run/{disk}"
            );
            console.run(&link, LIMIT)?;
        }
        Ok(Self {
            console,
            machine,
            seconds,
        })
    }

    /// The figures of both disks; what is written is read again and compared.
    pub fn disks(&mut self) -> Result<Vec<Figure>> {
        let mut figures = Vec::new();
        for job in JOBS {
            let (what, disk, _, block, _) = job;
            let found = self.fio(job)?;
            let (unit, value) = match block {
                "4k" => ("IOPS", found.operations),
                _ => ("MiB/s", found.bytes / f64::from(1 << 20)),
            };
            eprintln!("xtask: {what}: {value:.1} {unit}");
            figures.push(Figure {
                what,
                unit,
                value,
                least_ratio: (disk == VIRTIO).then_some(2.0),
            });
        }
        for disk in [VIRTIO, NVME] {
            self.run(&format!(
                "fio --name=verify --filename=/run/{disk} --direct=1 --ioengine=libaio --iodepth=32 \
                 --rw=randwrite --bs=4k --size=32M --verify=crc32c --verify_fatal=1 --minimal \
                 > /run/verify 2>&1 || {{ cat /run/verify; false; }}"
            ))?;
        }
        Ok(figures)
    }

    fn fio(&mut self, (what, disk, pattern, block, depth): Job) -> Result<Found> {
        let seconds = self.seconds;
        let printed = self.run(&format!(
            "fio --name=job --filename=/run/{disk} --direct=1 --ioengine=libaio --rw={pattern} \
             --bs={block} --iodepth={depth} --runtime={seconds} --time_based --minimal"
        ))?;
        found(&printed).with_context(|| format!("{what}: fio said {printed:?}"))
    }

    /// The figures of the network, through a forwarded port.
    pub fn network(&mut self) -> Result<Vec<Figure>> {
        self.run("iperf3 --server --daemon")?;
        let mut figures = Vec::new();
        for (what, is_reverse) in [
            ("network, host to guest", false),
            ("network, guest to host", true),
        ] {
            let value = self.iperf3(is_reverse)? / 1e6;
            eprintln!("xtask: {what}: {value:.1} Mbit/s");
            figures.push(Figure {
                what,
                unit: "Mbit/s",
                value,
                least_ratio: Some(3.0),
            });
        }
        Ok(figures)
    }

    /// Bits a second of a TCP connection from the host to the guest, or the other way.
    fn iperf3(&mut self, is_reverse: bool) -> Result<f64> {
        let mut command = Command::new("iperf3");
        command
            .args(["--client", "127.0.0.1", "--json"])
            .args(["--port", &self.machine.port.to_string()])
            .args(["--time", &self.seconds.to_string()]);
        if is_reverse {
            command.arg("--reverse");
        }
        let mut printed = String::new();
        for _ in 0..ATTEMPTS {
            let output = command
                .output()
                .context("iperf3 cannot be run on this host")?;
            printed = String::from_utf8_lossy(&output.stdout).into_owned();
            let said: serde_json::Value = serde_json::from_str(&printed)?;
            if let Some(rate) = said["end"]["sum_received"]["bits_per_second"].as_f64() {
                return Ok(rate);
            }
            // Between two tests the server closes its port for a moment.
            std::thread::sleep(Duration::from_secs(1));
        }
        bail!("iperf3 told no rate: {printed}")
    }

    /// What goes through in a machine with limits: what is limited, the limit, and what was found.
    pub fn limited(&mut self, limits: Limits) -> Result<Vec<(&'static str, f64, f64)>> {
        let mut all = Vec::new();
        if let Some(limit) = limits.bps {
            for job in [JOBS[2], JOBS[3]] {
                all.push((job.0, limit as f64, self.fio(job)?.bytes));
            }
        }
        if let Some(limit) = limits.iops {
            for job in [JOBS[4], JOBS[5]] {
                all.push((job.0, limit as f64, self.fio(job)?.operations));
            }
        }
        if let Some(limit) = limits.rate {
            for figure in self.network()? {
                all.push((figure.what, limit as f64, figure.value * 1e6));
            }
        }
        Ok(all)
    }

    fn run(&mut self, command: &str) -> Result<String> {
        let limit = LIMIT + Duration::from_secs(self.seconds.into());
        self.console.run(command, limit)
    }
}

/// The sums of reading and writing in fio's terse output, version 3: from field 6 on for reading
/// and from field 47 on for writing, KiB, KiB a second and operations a second.
fn found(printed: &str) -> Option<Found> {
    let line = printed.lines().find(|line| line.starts_with("3;"))?;
    let fields: Vec<&str> = line.split(';').collect();
    let number = |index: usize| fields.get(index)?.parse::<f64>().ok();
    (number(4)? == 0.0).then_some(())?;
    Some(Found {
        bytes: (number(6)? + number(47)?) * 1024.0,
        operations: number(7)? + number(48)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_and_writing_are_added_up_and_errors_are_none() {
        let line = |error: u32| {
            let mut fields = vec!["0".to_owned(); 130];
            for (index, value) in [(0, 3), (4, error), (6, 100), (7, 25), (47, 20), (48, 5)] {
                fields[index] = value.to_string();
            }
            fields.join(";")
        };
        let sums = found(&format!("a warning\n{}\n", line(0))).unwrap();
        assert_eq!(
            sums,
            Found {
                bytes: 120.0 * 1024.0,
                operations: 30.0
            }
        );
        assert_eq!(found(&line(5)), None);
        assert_eq!(found("3;fio"), None);
    }
}
