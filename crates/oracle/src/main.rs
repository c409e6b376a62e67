//! `belljar-oracle`: compares an engine with the host's own processor, instruction by instruction.

use anyhow::{Context, bail};
use belljar_interpreter::Interpreter;
use belljar_oracle::{
    Campaign, CampaignError, Catalogue, Generator, Host, MOST_INSTRUCTIONS, Machine, Runner,
    Undefined, host_cpuid,
};
use belljar_x86::cpuid::{CpuidConfig, CpuidModel};
use clap::{Parser, ValueEnum};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// What to compare with the host.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum EngineName {
    /// The reference engine.
    Interpreter,
    /// The fast engine
    Translator,
    /// The host itself: shows what does not repeat.
    Host,
}

/// Runs random instructions on the host's own processor and in an engine, and tells every difference.
#[derive(Debug, Parser)]
struct Options {
    /// What to compare with the host.
    #[arg(long, value_enum)]
    engine: EngineName,
    /// How many cases to run.
    #[arg(long, default_value_t = 1_000_000)]
    cases: u64,
    /// The seed; by default another one each time.
    #[arg(long)]
    seed: Option<u64>,
    /// Only cases about this instruction: a mnemonic, or the decoder's name of an encoding. May be repeated.
    #[arg(long)]
    only: Vec<String>,
    /// Run sequences of up to this many instructions.
    #[arg(long, default_value_t = 1, value_parser = 1..=MOST_INSTRUCTIONS as i64)]
    length: i64,
    /// Run this one case and tell everything about it.
    #[arg(long)]
    case: Option<u64>,
    /// Compare the flags that the manual calls undefined as well.
    #[arg(long)]
    compare_undefined: bool,
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
        generator: Generator::new(seed, options.length as usize, xcr0, catalogue),
        cases: options.cases,
        undefined: if options.compare_undefined {
            Undefined::Compare
        } else {
            Undefined::Ignore
        },
        examples: options.examples,
        jobs: options.jobs.unwrap_or(threads),
    };
    let engine = || -> Result<Box<dyn Runner>, CampaignError> {
        match options.engine {
            EngineName::Host => Ok(Box::new(Host::new()?)),
            EngineName::Interpreter => {
                let engine = Arc::new(Interpreter::new());
                let machine = Machine::new(engine, Arc::clone(&model), xcr0)?;
                Ok(Box::new(machine))
            }
            EngineName::Translator => {
                let engine = Arc::new(belljar_translator::Translator::new());
                let machine = Machine::new(engine, Arc::clone(&model), xcr0)?;
                Ok(Box::new(machine))
            }
        }
    };
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
