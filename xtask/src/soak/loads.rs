//! What the guest does all the time, in rounds whose results are known.

use super::content;
use super::guest::Shell;
use super::network;
use anyhow::{Context, Result, ensure};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

/// The guest's program.
const LOAD: &str = include_str!("../../soak/load.c");
/// Files, and regions of the disk without a file system.
pub const PLACES: u64 = 16;
/// The longest content; a region's length.
pub const LONGEST: u64 = 32 << 20;
/// The least content.
const SHORTEST: u64 = 1 << 20;
/// The part of the generated source that the compiler sees, in percent.
const SCALE: u32 = 10;

/// How often a load was repeated.
#[derive(Debug, Default)]
pub struct Counter {
    pub rounds: AtomicU64,
    pub bytes: AtomicU64,
}

/// Something to do over and over.
pub trait Load: Send {
    /// What it is.
    fn name(&self) -> &'static str;

    /// Whether it rests after each round for as long as that took, so that others get on.
    fn rests(&self) -> bool {
        true
    }

    /// Does it once, as number `round`, from 0; gives the bytes that went through.
    fn round(&mut self, round: u64) -> Result<u64>;
}

/// Repeats a load until `end`, or until all is given up; what fails gives all up.
pub fn repeat(load: &mut dyn Load, shell: &Shell, end: Instant, counter: &Counter) -> Result<()> {
    for round in 0.. {
        if Instant::now() >= end || shell.given_up.load(Ordering::Acquire) {
            break;
        }
        let began = Instant::now();
        match load.round(round) {
            Ok(bytes) => {
                if load.rests() {
                    let left = end.saturating_duration_since(Instant::now());
                    thread::sleep(began.elapsed().min(left));
                }
                counter.rounds.fetch_add(1, Ordering::Relaxed);
                counter.bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            Err(error) => {
                shell.given_up.store(true, Ordering::Release);
                return Err(error.context(format!("{}, round {round}", load.name())));
            }
        }
    }
    Ok(())
}

/// Known bytes in a file or region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
    pub seed: u64,
    pub length: u64,
}

impl Content {
    fn of_round(load: u64, round: u64) -> Self {
        let seed = (load << 32) + round;
        // Disks want whole sectors.
        let length = content::between(seed, SHORTEST, LONGEST) & !4095;
        Self { seed, length }
    }
}

/// Compiles the same source, and a program whose result is known.
#[derive(Debug)]
pub struct Compiler {
    shell: Shell,
    directory: String,
    /// The checksums of what the first round made.
    made: Option<String>,
}

impl Compiler {
    /// Puts the sources into the guest, and compiles `load` there.
    pub fn new(shell: &Shell) -> Result<Self> {
        let directory = shell.path("compiler");
        let generated = crate::programs::source::generate();
        shell.put(&format!("{directory}/generated.c"), generated.as_bytes())?;
        shell.put(&format!("{directory}/load.c"), LOAD.as_bytes())?;
        let load = shell.path("load");
        shell.script(&format!("cd {directory}; gcc -O2 -Wall -o {load} load.c"))?;
        Ok(Self {
            shell: shell.clone(),
            directory,
            made: None,
        })
    }
}

impl Load for Compiler {
    fn name(&self) -> &'static str {
        "compiler"
    }

    fn rests(&self) -> bool {
        false
    }

    fn round(&mut self, round: u64) -> Result<u64> {
        const LENGTH: u64 = 1 << 20;
        let directory = &self.directory;
        let printed = self.shell.script(&format!(
            "cd {directory}; gcc -O2 -DSCALE={SCALE} -c generated.c; gcc -O2 -o made load.c; \
             ./made sum {round} {LENGTH}; sha256sum generated.o made; cat generated.o made | wc -c; \
             rm generated.o made"
        ))?;
        let mut lines = printed.lines();
        let sum = lines.next().unwrap_or_default();
        ensure!(
            sum == content::sum(round, LENGTH),
            "the program that was compiled printed {sum}"
        );
        let length = lines.next_back().unwrap_or_default();
        let length = length.parse().context("what was compiled has no length")?;
        let made: String = lines.collect();
        let first = self.made.get_or_insert_with(|| made.clone());
        ensure!(
            made == *first,
            "the compiler made {made}, and {first} at first"
        );
        Ok(length)
    }
}

/// Writes files, or regions of a disk, and reads them again together with older ones.
#[derive(Debug)]
pub struct Disk {
    shell: Shell,
    /// A disk, or a directory for files.
    place: String,
    is_files: bool,
    number: u64,
    /// What was written last, by place.
    pub kept: Vec<Option<Content>>,
}

impl Disk {
    /// One that writes files of the root, which is a disk by virtio.
    pub fn files(shell: &Shell) -> Result<Self> {
        let directory = shell.path("files");
        shell.run(&["mkdir", "-p", &directory])?;
        Ok(Self::new(shell, directory, true, 1))
    }

    /// One that writes the disk `device`, which has no file system.
    pub fn device(shell: &Shell, device: String) -> Self {
        Self::new(shell, device, false, 2)
    }

    fn new(shell: &Shell, place: String, is_files: bool, number: u64) -> Self {
        Self {
            shell: shell.clone(),
            place,
            is_files,
            number,
            kept: vec![None; PLACES as usize],
        }
    }

    /// The command that does `what` with the content at `place`.
    fn command(&self, what: &str, place: u64, content: Content) -> String {
        let Content { seed, length } = content;
        let (file, offset) = if self.is_files {
            (format!("{}/{place}", self.place), 0)
        } else {
            (self.place.clone(), place * LONGEST)
        };
        let load = self.shell.path("load");
        format!("{load} {what} {file} {offset} {seed} {length}; ")
    }
}

impl Load for Disk {
    fn name(&self) -> &'static str {
        if self.is_files {
            "files on virtio"
        } else {
            "NVMe disk"
        }
    }

    fn round(&mut self, round: u64) -> Result<u64> {
        let (place, content) = (round % PLACES, Content::of_round(self.number, round));
        let mut script = self.command("write", place, content);
        self.kept[place as usize] = Some(content);
        if self.is_files {
            script.push_str("echo 3 > /proc/sys/vm/drop_caches; ");
        }
        script.push_str(&self.command("check", place, content));
        let mut bytes = 2 * content.length;
        let older = content::between(content.seed, 0, PLACES);
        if let Some(content) = self.kept[older as usize] {
            script.push_str(&self.command("check", older, content));
            bytes += content.length;
        }
        self.shell.script(&script)?;
        Ok(bytes)
    }
}

/// Connections from the guest to the host.
#[derive(Debug)]
pub struct ToHost {
    pub shell: Shell,
    /// The host as the guest knows it.
    pub address: String,
    /// The port of the host's loopback.
    pub port: u16,
}

impl Load for ToHost {
    fn name(&self) -> &'static str {
        "network to the host"
    }

    fn round(&mut self, round: u64) -> Result<u64> {
        let Content { seed, length } = Content::of_round(3, round);
        let numbers = [u64::from(self.port), seed, length].map(|number| number.to_string());
        let [port, seed, number] = &numbers;
        let load = self.shell.path("load");
        self.shell
            .run(&[&load, "send", &self.address, port, seed, number])?;
        Ok(2 * length)
    }
}

/// Connections from the host to the guest.
#[derive(Debug)]
pub struct ToGuest {
    /// The port of the host's loopback that leads to the guest's server.
    pub port: u16,
}

impl Load for ToGuest {
    fn name(&self) -> &'static str {
        "network to the guest"
    }

    fn round(&mut self, round: u64) -> Result<u64> {
        let Content { seed, length } = Content::of_round(4, round);
        network::send(self.port, seed, length)?;
        Ok(2 * length)
    }
}

#[cfg(test)]
mod tests;
