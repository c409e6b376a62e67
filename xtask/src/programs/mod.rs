//! Real programs natively, under QEMU's TCG and under Belljar: A against B in one run.
//!
//! The same files run in all three places, and each program's output must be the same. How to use
//! it, and what is compared: docs/benchmarks.md.

mod measure;
mod recipes;
mod report;
mod root;
pub mod source;

use crate::belljar;
use crate::machines::Machine;
use anyhow::{Context, Result, ensure};
use belljar_image::Guest;
use clap::Args;
use clap::builder::PossibleValuesParser;
use measure::{Run, measure};
use recipes::{PROGRAMS, Program};
use report::{Place, Report};
use root::Root;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Guest RAM in MiB: twice the initrd, and what the programs use.
const MEMORY: u32 = 2048;

#[derive(Debug, Args)]
pub struct Options {
    /// Runs in each place, of which the quickest counts
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// The programs to run; all if none is given
    #[arg(long, value_delimiter = ',', value_parser = names())]
    programs: Vec<String>,
    /// The amount of each program's work, in percent
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    scale: u32,
    /// The engine of Belljar
    #[arg(long, default_value = "auto")]
    engine: String,
    /// Virtual CPUs, and the host's processors that the programs may use natively
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    cpus: u32,
    /// Does not run QEMU
    #[arg(long)]
    no_qemu: bool,
    /// Does not run Belljar
    #[arg(long)]
    no_belljar: bool,
    /// Seconds that one run of all programs may take
    #[arg(long, default_value_t = 900)]
    limit: u64,
    /// The Belljar to run; the release build of this tree, made anew, if it is not given
    #[arg(long)]
    belljar: Option<PathBuf>,
    /// The Debian suite of the kernel and the programs; the host's own if it is not given
    #[arg(long)]
    suite: Option<String>,
    /// Also writes the results to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(PROGRAMS.map(|program| program.name))
}

impl Options {
    /// The programs to run, in their order.
    fn chosen(&self) -> Vec<Program> {
        let is_chosen =
            |p: &Program| self.programs.is_empty() || self.programs.iter().any(|n| n == p.name);
        PROGRAMS.into_iter().filter(is_chosen).collect()
    }

    fn places(&self) -> Vec<Place> {
        let mut places = vec![Place::Native];
        if !self.no_qemu {
            places.push(Place::Tcg);
        }
        if !self.no_belljar {
            places.push(Place::Belljar);
        }
        places
    }
}

pub fn run(options: &Options) -> Result<()> {
    let program = if options.no_belljar {
        PathBuf::new()
    } else {
        belljar(options.belljar.as_deref())?
    };
    let chosen = options.chosen();
    let names: Vec<&str> = chosen.iter().map(|program| program.name).collect();
    let suite = options.suite.as_deref();
    let root = root::make(suite, &chosen)?;
    let environment = [
        ("PROGRAMS", names.join(",")),
        ("SCALE", options.scale.to_string()),
    ];
    let guest = guest(suite, &root, &environment)?;
    let machine = Machine {
        guest: &guest,
        memory: MEMORY,
        cpus: options.cpus,
    };
    let report = run_rounds(options, &names, |place| match place {
        Place::Native => native(&root, options.cpus, &environment),
        Place::Tcg => machine.qemu(),
        Place::Belljar => machine.belljar(&program, &options.engine),
    });
    print!("{}", report.table(&names));
    if let Some(file) = &options.json {
        let text = format!("{:#}\n", report.json(&names));
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let wrong = report.wrong();
    ensure!(wrong.is_empty(), "wrong results:\n{}", wrong.join("\n"));
    Ok(())
}

/// All rounds, or those until a run fails: another one would hardly do better.
fn run_rounds(options: &Options, names: &[&str], command: impl Fn(Place) -> Command) -> Report {
    let limit = Duration::from_secs(options.limit);
    let mut report = Report::default();
    for round in 1..=options.rounds {
        for place in options.places() {
            eprintln!("xtask: round {round}, {}", place.name());
            let mut run = Run::default();
            let ended = measure(command(place), limit, &mut run);
            report.add(place, &run, names);
            if let Err(error) = ended {
                report.fail(place, &error);
                return report;
            }
        }
    }
    report
}

/// Debian's kernel with the programs' root. Linux hands `environment` on to the first process.
fn guest(suite: Option<&str>, root: &Root, environment: &[(&str, String)]) -> Result<Guest> {
    let mut guest = belljar_image::default_guest(suite)?;
    guest.initrd.clone_from(&root.initrd);
    "console=ttyS0 reboot=t panic=-1 quiet mitigations=off".clone_into(&mut guest.cmdline);
    for (name, value) in environment {
        // Writing to a string cannot fail.
        let _ = write!(guest.cmdline, " {name}={value}");
    }
    Ok(guest)
}

fn native(root: &Root, cpus: u32, environment: &[(&str, String)]) -> Command {
    let mut command = Command::new(&root.runner);
    command.arg(&root.directory).arg(cpus.to_string());
    command.env_clear().envs(environment.iter().cloned());
    command
}
