//! Fuzzing with libFuzzer on stable Rust.

use crate::{root, run as run_command};
use anyhow::{Context, Result, ensure};
use clap::Args;
use std::process::Command;

/// What instruments the code for libFuzzer; `cargo fuzz` sets the same.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing -Ccodegen-units=1";

#[derive(Debug, Args)]
pub struct Options {
    /// The targets to run; all of `fuzz/` if none is given
    targets: Vec<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

pub fn run(options: &Options) -> Result<()> {
    let fuzz = root().join("fuzz");
    let known = targets(&fuzz)?;
    for target in &options.targets {
        ensure!(
            known.contains(target),
            "no fuzz target {target}; there are: {}",
            known.join(", ")
        );
    }
    let chosen = if options.targets.is_empty() {
        &known
    } else {
        &options.targets
    };
    for target in chosen {
        let corpus = fuzz.join("corpus").join(target);
        std::fs::create_dir_all(&corpus)
            .with_context(|| format!("cannot make {}", corpus.display()))?;
        run_command(
            Command::new("cargo")
                .current_dir(&fuzz)
                .args([
                    "run",
                    "--release",
                    "--target",
                    "x86_64-unknown-linux-gnu",
                    "--bin",
                    target,
                    "--",
                ])
                .arg(&corpus)
                .arg(format!("-max_total_time={}", options.seconds))
                .arg("-timeout=10")
                // The sanitizer-coverage flags are stable in effect and unstable in name.
                .env("RUSTC_BOOTSTRAP", "1")
                .env("RUSTFLAGS", COVERAGE),
        )?;
    }
    Ok(())
}

/// The names of the targets: the files of `fuzz/targets`.
fn targets(fuzz: &std::path::Path) -> Result<Vec<String>> {
    let folder = fuzz.join("targets");
    let mut names = Vec::new();
    for entry in
        std::fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?
    {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "rs")
            && let Some(name) = path.file_stem()
        {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}
