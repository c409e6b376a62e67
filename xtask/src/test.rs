//! All tests, in one optimised profile so that nothing is built twice.

use crate::{cargo, run as run_command};
use anyhow::Result;
use clap::Args;

/// Cases of the host-as-oracle test in a normal run.
const ORACLE_CASES: &str = "1000000";

#[derive(Debug, Args)]
pub struct Options {
    /// Cases of the host-as-oracle test
    #[arg(long, default_value = ORACLE_CASES)]
    oracle_cases: u64,
}

pub fn run(options: &Options) -> Result<()> {
    let test = ["test", "--profile", "quick", "--locked"];
    run_command(cargo().args(test).arg("--workspace"))?;
    // Again with all cases, and with the seed on the terminal.
    run_command(
        cargo()
            .args(test)
            .args([
                "--package",
                "belljar-oracle",
                "--test",
                "host",
                "--",
                "--nocapture",
            ])
            .env("BELLJAR_ORACLE_CASES", options.oracle_cases.to_string()),
    )
}
