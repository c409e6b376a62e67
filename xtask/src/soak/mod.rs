//! A guest under load for a while: it compiles, writes and reads disks, and talks over the network in both
//! directions, all at once, and everything is checked. What is looked at, and how: docs/soak.md.

mod clock;
mod content;
mod disks;
mod guest;
mod loads;
mod memory;
mod network;
mod report;

use crate::scratch::Scratch;
use crate::{belljar, debian};
use anyhow::{Context, Result, ensure};
use clap::Args;
use clock::{Clock, Drift};
use disks::Disks;
use guest::{Guest, Machine};
use loads::{Compiler, Counter, Disk, Load, ToGuest, ToHost, repeat};
use memory::{Course, Sample};
use report::Report;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

/// The image's packages and its name.
const PACKAGES: &str = "gcc,libc6-dev";
const NAME: &str = "soak";
/// The host, as user-mode networking shows its loopback.
const GATEWAY: &str = "10.0.2.2";
/// The pause between two looks at the machine's process.
const EVERY: Duration = Duration::from_secs(5);
/// How often the user is told how it goes.
const TOLD_EVERY: Duration = Duration::from_mins(1);
/// How long after the load descriptors and threads may take to go.
const CALM: Duration = Duration::from_secs(30);
/// Programs that set clocks; none may run.
const SETS_CLOCKS: &str = "pgrep -lx 'systemd-timesyn|chronyd|ntpd|openntpd' || true";
/// What the kernel has said of the levels from "warning" up.
const WARNINGS: &str = "dmesg --level=emerg,alert,crit,err,warn --notime";
const CLOCK_SOURCE: &str = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource";

#[derive(Debug, Args)]
pub struct Options {
    /// Minutes of load
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    minutes: u32,
    /// Virtual CPUs
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    cpus: u32,
    /// The engine of Belljar
    #[arg(long, default_value = "auto")]
    engine: String,
    /// The Debian suite of the image
    #[arg(long, default_value = "trixie")]
    suite: String,
    /// The Belljar to run; the release build of this tree, made anew, if it is not given
    #[arg(long)]
    belljar: Option<PathBuf>,
}

pub fn run(options: &Options) -> Result<()> {
    let program = belljar(options.belljar.as_deref())?;
    let image = debian::image(&program, &options.suite, NAME, PACKAGES)?;
    let scratch = Scratch::new(NAME)?;
    let disks = Disks::new(&image, scratch.path())?;
    let machine = Machine {
        program: &program,
        engine: &options.engine,
        cpus: options.cpus,
        image: &image,
        root: &disks.root,
        disk: &disks.raw,
        messages: scratch.path().join("messages"),
    };
    let mut report = Report::default();
    let mut guest = Guest::boot(&machine)?;
    let kept = soak(options, &guest, &mut report).map_err(|error| guest.explain(error))?;
    report.result("power-off", guest.power_off());
    report.result("disks", disks.check(&kept, scratch.path()));
    print!("{report}");
    report.verdict()
}

/// What the guest has written and not overwritten: files, and regions of the disk.
#[derive(Debug)]
struct Kept {
    files: Vec<Option<loads::Content>>,
    regions: Vec<Option<loads::Content>>,
}

/// The state that is to be the same before and after.
#[derive(Debug)]
struct Before {
    warnings: String,
    clock_source: String,
    descriptors: usize,
}

fn soak(options: &Options, guest: &Guest, report: &mut Report) -> Result<Kept> {
    let shell = guest.shell();
    let length = Duration::from_mins(options.minutes.into());
    let mut compiler = Compiler::new(shell)?;
    let mut files = Disk::files(shell)?;
    let mut device = Disk::device(shell, guest.disk()?);
    let before = before(guest, report)?;
    let host = network::Server::start()?;
    let server = guest.serve()?;
    let mut clock = Clock::start(shell)?;
    report.reading("clock after the boot", &clock.set()?);
    let start = clock.read()?;
    report.reading("clock, set to the host's", &start);

    let mut to_host = ToHost {
        shell: shell.clone(),
        address: GATEWAY.to_owned(),
        port: host.port(),
    };
    let mut to_guest = ToGuest { port: guest.port };
    let loads: [&mut dyn Load; 5] = [
        &mut compiler,
        &mut files,
        &mut device,
        &mut to_host,
        &mut to_guest,
    ];
    let samples = under_load(guest, loads, length, &mut clock, report)?;
    report.clock(&Drift::between(start, clock.read()?));
    drop((clock, server));
    host.finish()?;
    let course = Course::of(&samples, length)?;
    report.memory(&course, options.cpus);
    after(guest, &before, &course, report)?;
    Ok(Kept {
        files: files.kept,
        regions: device.kept,
    })
}

/// Repeats all loads at once for `length`, and looks at the machine's process meanwhile.
fn under_load(
    guest: &Guest,
    loads: [&mut dyn Load; 5],
    length: Duration,
    clock: &mut Clock,
    report: &mut Report,
) -> Result<Vec<Sample>> {
    let (shell, began) = (guest.shell(), Instant::now());
    let names = loads.each_ref().map(|load| load.name());
    let counters: [Counter; 5] = Default::default();
    let samples = thread::scope(|scope| -> Result<Vec<Sample>> {
        let mut running = Vec::new();
        for (load, counter) in loads.into_iter().zip(&counters) {
            running.push(scope.spawn(move || repeat(load, shell, began + length, counter)));
        }
        let watched = watch(guest, began, length, &counters, clock);
        if watched.is_err() {
            shell.given_up.store(true, Ordering::Release);
        }
        for load in running {
            load.join().ok().context("a load panicked")??;
        }
        watched
    })?;
    let took = began.elapsed();
    for (name, counter) in names.into_iter().zip(&counters) {
        report.load(name, counter, took);
    }
    Ok(samples)
}

/// Takes samples until the load ends or fails.
fn watch(
    guest: &Guest,
    began: Instant,
    length: Duration,
    counters: &[Counter],
    clock: &mut Clock,
) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    let (mut next, mut told) = (Duration::ZERO, Duration::ZERO);
    while began.elapsed() < length && !guest.shell().given_up.load(Ordering::Acquire) {
        if began.elapsed() < next {
            thread::sleep(Duration::from_millis(100));
            continue;
        }
        next += EVERY;
        let sample = Sample::take(guest.process(), began.elapsed())?;
        samples.push(sample);
        if sample.at >= told {
            told += TOLD_EVERY;
            let ahead = clock.read()?.ahead;
            eprintln!("xtask: {}", report::progress(&sample, counters, ahead));
        }
    }
    Ok(samples)
}

/// Looks at the guest and the process before the load.
fn before(guest: &Guest, report: &mut Report) -> Result<Before> {
    let shell = guest.shell();
    let sets_clocks = shell.script(SETS_CLOCKS)?;
    ensure!(
        sets_clocks.is_empty(),
        "the guest's clock is set by {sets_clocks}"
    );
    let before = Before {
        warnings: shell.script(WARNINGS)?,
        clock_source: shell.script(CLOCK_SOURCE)?,
        descriptors: Sample::take(guest.process(), Duration::ZERO)?.descriptors,
    };
    report.note(format!(
        "kernel {}, clock source {}; warnings of the boot: {:?}",
        shell.run(&["uname", "-r"])?,
        before.clock_source,
        before.warnings
    ));
    Ok(before)
}

/// Looks at them again, after the load.
fn after(guest: &Guest, before: &Before, course: &Course, report: &mut Report) -> Result<()> {
    let shell = guest.shell();
    report.result(
        "kernel messages",
        new_warnings(&before.warnings, &shell.script(WARNINGS)?),
    );
    report.same(
        "clock source",
        &before.clock_source,
        &shell.script(CLOCK_SOURCE)?,
    );
    let failed = shell.script("systemctl --failed --plain --no-legend")?;
    report.same("failed services", "", &failed);
    report.result(
        "descriptors and threads",
        calm(guest, before.descriptors, course.warm_threads),
    );
    Ok(())
}

/// An error if the kernel has said more than before.
fn new_warnings(before: &str, after: &str) -> Result<()> {
    let new = after.strip_prefix(before);
    let new = new.context("the kernel's messages of the boot are gone: there were very many")?;
    ensure!(new.trim().is_empty(), "{}", new.trim());
    Ok(())
}

/// Waits until the process has no more than so many descriptors and threads.
fn calm(guest: &Guest, descriptors: usize, threads: usize) -> Result<()> {
    let deadline = Instant::now() + CALM;
    loop {
        let now = Sample::take(guest.process(), Duration::ZERO)?;
        if now.descriptors <= descriptors && now.threads <= threads {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{} descriptors and {} threads; {descriptors} and {threads} were allowed",
            now.descriptors,
            now.threads
        );
        thread::sleep(Duration::from_millis(100));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_the_boot_are_none_of_the_load() {
        new_warnings("a\nb", "a\nb").unwrap();
        new_warnings("", "").unwrap();
        assert_eq!(new_warnings("a", "a\nb").unwrap_err().to_string(), "b");
        assert!(new_warnings("a\nb", "b\nc").is_err());
    }
}
