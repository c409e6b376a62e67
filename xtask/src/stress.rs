//! Boots of a stock kernel under each stressed tuning of the translator: in lockstep with the
//! interpreter, and on two vCPUs that run freely.

use crate::{cargo, run as run_command};
use anyhow::Result;
use clap::Args;

#[derive(Debug, Args)]
pub struct Options {
    /// Only the tests whose names contain this: `lockstep` or `freely`, or a tuning such as
    /// `tiny_tlb`
    #[arg(default_value = "boots")]
    only: String,
}

pub fn run(options: &Options) -> Result<()> {
    run_command(
        cargo()
            .args(["test", "--profile", "quick", "--locked"])
            .args(["--package", "belljar-lockstep", "--test", "stress", "--"])
            .arg(&options.only)
            .args(["--ignored", "--nocapture", "--test-threads=1"]),
    )
}
