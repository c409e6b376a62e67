//! Disks and networks under QEMU's TCG and under Belljar: A against B in one run, with fio and iperf3
//! in the same image. What is compared, and how: docs/benchmarks.md.

mod machines;
mod measure;

use crate::console::Console;
use crate::scratch::Scratch;
use crate::{belljar, debian};
use anyhow::{Context, Result, ensure};
use belljar_image::Image;
use clap::Args;
use machines::{Limits, Machine};
use measure::{Figure, Session};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// The image's packages and its name.
const PACKAGES: &str = "fio,iperf3";
const NAME: &str = "bench-io";
/// The limits that are checked: bytes, operations and bits a second.
const LIMITS: Limits = Limits {
    bps: Some(32 << 20),
    iops: Some(1000),
    rate: Some(50_000_000),
};
/// How far a figure may be from its limit.
const TOLERANCE: f64 = 0.02;
/// The longest time to the login prompt.
const BOOT: Duration = Duration::from_mins(10);

#[derive(Debug, Args)]
pub struct Options {
    /// Seconds of each measurement
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Virtual CPUs
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    cpus: u32,
    /// The engine of Belljar
    #[arg(long, default_value = "auto")]
    engine: String,
    /// The Debian suite of the image
    #[arg(long, default_value = "trixie")]
    suite: String,
    /// Does not run QEMU
    #[arg(long)]
    no_qemu: bool,
    /// Checks the limits of disks and networks only
    #[arg(long)]
    only_limits: bool,
    /// Measures disks under Belljar only: neither QEMU, nor the network, nor limits
    #[arg(long, conflicts_with = "only_limits")]
    only_disks: bool,
    /// What serves Belljar's disks, as `--disk FILE,aio=` takes it
    #[arg(long, default_value = "auto")]
    aio: String,
    /// The Belljar to run; the release build of this tree, made anew, if it is not given
    #[arg(long)]
    belljar: Option<PathBuf>,
}

pub fn run(options: &Options) -> Result<()> {
    let program = belljar(options.belljar.as_deref())?;
    let image = debian::image(&program, &options.suite, NAME, PACKAGES)?;
    let directory = Scratch::new(NAME)?;
    run_all(options, &program, &image, directory.path())
}

fn run_all(options: &Options, program: &Path, image: &Image, directory: &Path) -> Result<()> {
    println!(
        "load of the host: {}",
        std::fs::read_to_string("/proc/loadavg")?.trim()
    );
    let unlimited = Limits::default();
    if !options.only_limits {
        let belljar = in_machine(options, image, directory, "Belljar", |machine| {
            machine.belljar(program, &options.engine, unlimited)
        })?;
        let tcg = if options.no_qemu || options.only_disks {
            Vec::new()
        } else {
            in_machine(options, image, directory, "TCG", Machine::qemu)?
        };
        print_table(&belljar, &tcg);
    }
    if options.only_disks {
        return Ok(());
    }
    check_limits(options, program, image, directory)
}

/// Boots a machine to its login prompt and measures all there is.
fn in_machine(
    options: &Options,
    image: &Image,
    directory: &Path,
    place: &str,
    command: impl Fn(&Machine) -> Command,
) -> Result<Vec<Figure>> {
    let machine = Machine::new(image, directory, options.cpus, &options.aio)?;
    let (mut session, login) =
        start(options, &machine, &mut command(&machine)).context(place.to_owned())?;
    let mut figures = vec![login];
    figures.extend(session.disks().context(place.to_owned())?);
    if !options.only_disks {
        figures.extend(session.network().context(place.to_owned())?);
    }
    Ok(figures)
}

/// Boots a machine and logs in.
fn start<'a>(
    options: &Options,
    machine: &'a Machine,
    command: &mut Command,
) -> Result<(Session<'a>, Figure)> {
    let started = Instant::now();
    let mut console = Console::start(command)?;
    console.wait_for("login: ", BOOT)?;
    let login = Figure {
        what: "login prompt",
        unit: "s",
        value: started.elapsed().as_secs_f64(),
        least_ratio: Some(1.0 / 0.6),
    };
    eprintln!("xtask: login prompt after {:.1} s", login.value);
    Ok((Session::log_in(console, machine, options.seconds)?, login))
}

/// How many times better than TCG Belljar is, with what the project wants it to be.
fn print_table(belljar: &[Figure], tcg: &[Figure]) {
    println!(
        "{:<30} {:>6} {:>12} {:>12} {:>8} {:>7}",
        "", "", "Belljar", "TCG", "ratio", "wanted"
    );
    for (index, ours) in belljar.iter().enumerate() {
        let theirs = tcg.get(index).map(|figure| figure.value);
        let ratio = theirs.map(|theirs| match ours.unit {
            "s" => theirs / ours.value,
            _ => ours.value / theirs,
        });
        let text = |number: Option<f64>, digits: usize| {
            number.map_or("-".to_owned(), |number| format!("{number:.digits$}"))
        };
        println!(
            "{:<30} {:>6} {:>12} {:>12} {:>8} {:>7}",
            ours.what,
            ours.unit,
            text(Some(ours.value), 1),
            text(theirs, 1),
            text(ratio, 2),
            text(ours.least_ratio, 2)
        );
    }
}

/// Measures a machine whose disks and card have limits; each must hold within [`TOLERANCE`].
fn check_limits(options: &Options, program: &Path, image: &Image, directory: &Path) -> Result<()> {
    let machine = Machine::new(image, directory, options.cpus, &options.aio)?;
    let mut command = machine.belljar(program, &options.engine, LIMITS);
    let (mut session, _) = start(options, &machine, &mut command)?;
    let mut wrong = Vec::new();
    for (what, limit, found) in session.limited(LIMITS)? {
        let off = found / limit - 1.0;
        println!(
            "limit of {what}: {limit:.0} a second, {found:.0} measured ({:+.2} %)",
            off * 100.0
        );
        if off.abs() > TOLERANCE {
            wrong.push(what);
        }
    }
    ensure!(
        wrong.is_empty(),
        "limits that do not hold within 2 %: {}",
        wrong.join(", ")
    );
    Ok(())
}
