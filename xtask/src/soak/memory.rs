//! What the machine's process has of the host: memory, descriptors, threads; and whether that stays so.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::time::Duration;

/// The mapping of guest RAM, by its file's name.
const RAM: &str = "belljar-ram";
/// The mappings of translated code, which is bounded and grows to its bound.
const CODE: &str = "belljar-code";
/// Code memory of a vCPU (docs/translator.md).
const CODE_PER_VCPU: u64 = 96 << 20;
/// The part of a run in which the machine's memory may still grow, and the part at the end that is
/// compared with it.
const WARM_UP: f64 = 0.3;
const LATE: f64 = 0.7;
/// What the memory after that may be more than it was: a part, and bytes.
const GROWTH: (f64, u64) = (0.1, 4 << 20);

/// What the process has at a moment. Memory is in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Since the load began.
    pub at: Duration,
    /// Of guest RAM.
    pub ram: u64,
    /// Of translated code.
    pub code: u64,
    /// All else.
    pub own: u64,
    pub descriptors: usize,
    pub threads: usize,
}

impl Sample {
    pub fn take(process: u32, at: Duration) -> Result<Self> {
        let home = format!("/proc/{process}");
        let maps = fs::read_to_string(format!("{home}/smaps"))
            .context("the memory of the machine's process cannot be read")?;
        let count =
            |what: &str| -> Result<usize> { Ok(fs::read_dir(format!("{home}/{what}"))?.count()) };
        let [ram, code, own] = shares(&maps)?;
        Ok(Self {
            at,
            ram,
            code,
            own,
            descriptors: count("fd")?,
            threads: count("task")?,
        })
    }
}

/// The memory of guest RAM, of code, and of all else in `/proc/PID/smaps` (proc(5)). A page that is
/// mapped twice counts once.
fn shares(maps: &str) -> Result<[u64; 3]> {
    let mut shares = [0; 3];
    let mut current = 2;
    for line in maps.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if !first.ends_with(':') {
            current = match line {
                line if line.contains(RAM) => 0,
                line if line.contains(CODE) => 1,
                _ => 2,
            };
        } else if let Some(share) = line.strip_prefix("Pss:") {
            let kib = share.trim().trim_end_matches(" kB");
            shares[current] += kib
                .parse::<u64>()
                .context("a mapping's share is no number")?
                << 10;
        }
    }
    ensure!(shares[0] > 0, "the process has no guest RAM");
    Ok(shares)
}

/// How the memory went over a run of `length`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Course {
    /// The most in the warm-up, in bytes.
    pub warm: u64,
    /// The median at the end.
    pub late: u64,
    /// The most at any time.
    pub most: u64,
    /// The most of translated code.
    pub most_code: u64,
    /// The most threads in the warm-up: those that serve disks are started when there is work for them.
    pub warm_threads: usize,
}

impl Course {
    pub fn of(samples: &[Sample], length: Duration) -> Result<Self> {
        let part = |sample: &Sample| sample.at.as_secs_f64() / length.as_secs_f64();
        let own = |is_there: &dyn Fn(f64) -> bool| -> Vec<u64> {
            let there = samples.iter().filter(|&sample| is_there(part(sample)));
            let mut own: Vec<u64> = there.map(|sample| sample.own).collect();
            own.sort_unstable();
            own
        };
        let (warm, late) = (own(&|part| part <= WARM_UP), own(&|part| part >= LATE));
        let (Some(&warm), Some(&median)) = (warm.last(), late.get(late.len() / 2)) else {
            anyhow::bail!("the run was too short to tell how its memory went");
        };
        let most = |of: fn(&Sample) -> u64| samples.iter().map(of).max().unwrap_or_default();
        Ok(Self {
            warm,
            late: median,
            most: most(|sample| sample.own),
            most_code: most(|sample| sample.code),
            warm_threads: samples
                .iter()
                .filter(|&sample| part(sample) <= WARM_UP)
                .map(|sample| sample.threads)
                .max()
                .unwrap_or_default(),
        })
    }

    /// An error if it was not flat.
    pub fn check(&self, cpus: u32) -> Result<()> {
        let (part, bytes) = GROWTH;
        let limit = (self.warm as f64 * (1.0 + part)) as u64 + bytes;
        ensure!(
            self.late <= limit,
            "the machine's memory has grown from {} to {} MiB; {} were allowed",
            self.warm >> 20,
            self.late >> 20,
            limit >> 20
        );
        let limit = CODE_PER_VCPU * u64::from(cpus);
        ensure!(
            self.most_code <= limit,
            "code memory has grown to {} MiB",
            self.most_code >> 20
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "\
55d0c0000000-55d0c0400000 r-xp 00000000 fe:00 42    /usr/bin/belljar: not a field
Size:               4096 kB
Pss:                1000 kB
Pss_Dirty:             0 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0040000000 rw-s 00000000 00:01 7    /memfd:belljar-ram (deleted)
Pss:              500000 kB
7f0050000000-7f0056000000 rw-s 00000000 00:01 8    /memfd:belljar-code (deleted)
Pss:               20000 kB
7f0060000000-7f0066000000 r-xs 00000000 00:01 8    /memfd:belljar-code (deleted)
Pss:               20000 kB
7f0070000000-7f0070100000 rw-p 00000000 00:00 0
Pss:                 500 kB
";

    #[test]
    fn memory_is_told_apart_by_what_it_is_for() {
        assert_eq!(
            shares(MAPS).unwrap(),
            [500000 << 10, 40000 << 10, 1500 << 10]
        );
        assert!(shares("").is_err());
    }

    #[test]
    fn a_process_can_be_looked_at() {
        // This one has no guest.
        assert!(Sample::take(std::process::id(), Duration::ZERO).is_err());
    }

    fn course(own: impl Fn(u64) -> u64) -> Course {
        let samples: Vec<Sample> = (0..=100)
            .map(|second| Sample {
                at: Duration::from_secs(second),
                own: own(second) << 20,
                code: second << 20,
                ..Sample::default()
            })
            .collect();
        Course::of(&samples, Duration::from_secs(100)).unwrap()
    }

    #[test]
    fn memory_that_stays_is_flat_and_memory_that_grows_is_not() {
        let grown_at_first = course(|second| second.min(30) * 3);
        assert_eq!(
            (grown_at_first.warm, grown_at_first.late),
            (90 << 20, 90 << 20)
        );
        grown_at_first.check(2).unwrap();
        assert!(grown_at_first.check(1).is_err());
        let peaks = course(|second| 100 + if second == 90 { 50 } else { 0 });
        assert_eq!(peaks.most, 150 << 20);
        peaks.check(2).unwrap();
        // A leak of half a MiB a second.
        assert!(course(|second| 90 + second / 2).check(2).is_err());
    }

    #[test]
    fn a_run_without_an_end_cannot_be_judged() {
        let sample = Sample::default();
        assert!(Course::of(&[sample], Duration::from_secs(100)).is_err());
    }
}
