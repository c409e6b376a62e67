//! `belljar-oracle`: compares an engine with the host's own processor, instruction by instruction.

use anyhow::{Context, bail};
use belljar_machine::{EngineChoice, choose_engine};
use belljar_oracle::{
    Campaign, CampaignError, Catalogue, Flags, Generator, Host, MOST_INSTRUCTIONS, Machine, Rules,
    Runner, Shape, host_cpuid,
};
use belljar_translator::{Translator, Tuning};
use belljar_x86::cpuid::{CpuidConfig, CpuidModel};
use clap::{Parser, ValueEnum};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// What to compare with the host.
#[derive(Clone, Copy, Debug)]
enum Compared {
    /// The host itself: shows what does not repeat.
    Host,
    /// An engine.
    Engine(EngineChoice),
}

impl FromStr for Compared {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "host" => Ok(Self::Host),
            _ => name
                .parse()
                .map(Self::Engine)
                .map_err(|error| format!("{error}, host")),
        }
    }
}

/// What cases are made of.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// One instruction.
    Single,
    /// Instructions one after another, with branches forward.
    Sequence,
    /// Instructions with loops, jumps and calls, which store into one another.
    Block,
}

impl Kind {
    /// The length that cases have where none is given.
    const fn usual_length(self) -> usize {
        match self {
            Self::Single => 1,
            Self::Sequence => 16,
            Self::Block => MOST_INSTRUCTIONS,
        }
    }
}

/// Runs random instructions on the host's own processor and in an engine, and tells every difference.
#[derive(Debug, Parser)]
struct Options {
    /// What to compare with the host: an engine, or "host" for the host itself.
    #[arg(long)]
    engine: Compared,
    /// What cases are made of.
    #[arg(long, value_enum, default_value = "single")]
    kind: Kind,
    /// How many cases to run.
    #[arg(long, default_value_t = 1_000_000)]
    cases: u64,
    /// The seed; by default another one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Only cases about this instruction: a mnemonic, or the decoder's name of an encoding. May be repeated.
    #[arg(long)]
    only: Vec<String>,
    /// The most instructions in a sequence or block.
    #[arg(long, value_parser = clap::value_parser!(u64).range(2..=MOST_INSTRUCTIONS as u64))]
    length: Option<u64>,
    /// Run this one case and tell everything about it.
    #[arg(long)]
    case: Option<u64>,
    /// Compare the flags that the manual calls undefined as well.
    #[arg(long)]
    compare_undefined: bool,
    /// Do not compare the status flags at faults that an instruction's operands raise.
    #[arg(long)]
    ignore_flags_at_faults: bool,
    /// Run the engine without a budget of instructions, as machines do.
    #[arg(long)]
    without_budget: bool,
    /// Set the translator up as a stress test does: the tuning's name.
    #[arg(long)]
    tuning: Option<String>,
    /// Offer AVX-512 to the engine if the host has it.
    #[arg(long)]
    avx512: bool,
    /// How many differing cases to print for each instruction.
    #[arg(long, default_value_t = 1)]
    examples: usize,
    /// Threads; by default one for each processor.
    #[arg(long)]
    jobs: Option<usize>,
}

impl Options {
    fn shape(&self) -> Shape {
        let length = self.length.map_or(self.kind.usual_length(), |n| n as usize);
        match self.kind {
            Kind::Single => Shape::Single,
            Kind::Sequence => Shape::Sequence(length),
            Kind::Block => Shape::Block(length),
        }
    }

    fn rules(&self) -> Rules {
        let mut rules = Rules::default();
        if self.compare_undefined {
            rules.undefined = Flags::Compare;
        }
        if self.ignore_flags_at_faults {
            rules.at_fault = Flags::Ignore;
        }
        rules
    }

    /// Makes what runs the cases that the host runs, too.
    fn runner(&self, model: &Arc<CpuidModel>, xcr0: u64) -> Result<Box<dyn Runner>, CampaignError> {
        let Compared::Engine(choice) = self.engine else {
            return Ok(Box::new(Host::new()?));
        };
        let engine = match &self.tuning {
            Some(name) => Arc::new(Translator::with_tuning(
                Tuning::stressed(name).ok_or(CampaignError::NoTuning)?,
            )),
            None => choose_engine(choice)?,
        };
        let mut machine = Machine::new(engine, Arc::clone(model), xcr0)?;
        if self.without_budget {
            machine = machine.without_budget()?;
        }
        Ok(Box::new(machine))
    }
}

fn main() -> anyhow::Result<ExitCode> {
    let options = Options::parse();
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let seed = options
        .seed
        .unwrap_or(since.map_or(0, |d| d.as_nanos() as u64 >> 10));
    let model = Arc::new(CpuidModel::new(&CpuidConfig {
        cpus: 1,
        tsc_hz: 1_000_000_000,
        avx512: options.avx512,
    }));
    let mut catalogue = Catalogue::new(&host_cpuid, &|features| model.allows(features));
    if !options.only.is_empty() {
        catalogue.retain(&options.only);
    }
    if catalogue.chosen() == 0 {
        bail!("no instruction of this host is called that");
    }
    let xcr0 = Host::new()?.xcr0() & model.xcr0_mask();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let campaign = Campaign {
        generator: Generator::new(seed, options.shape(), xcr0, catalogue),
        cases: options.cases,
        rules: options.rules(),
        examples: options.examples,
        jobs: options.jobs.unwrap_or(threads),
    };
    let engine = || options.runner(&model, xcr0);
    if let Some(index) = options.case {
        let again = campaign.again(index, engine()?)?;
        let mismatch = again.context("this case has no encoding")?;
        print!("{mismatch}");
        return Ok(status(mismatch.differences.is_empty()));
    }
    eprintln!("seed {seed:#x}");
    let start = Instant::now();
    let summary = campaign.run(&engine)?;
    println!("{summary}; {:.1} s", start.elapsed().as_secs_f64());
    Ok(status(summary.failed() == 0))
}

fn status(good: bool) -> ExitCode {
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
