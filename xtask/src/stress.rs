//! Boots of a stock kernel under each stressed tuning of the translator: in lockstep with the
//! interpreter, and on two vCPUs that run freely.

use crate::run_ignored;
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
    run_ignored("belljar-lockstep", "stress", &options.only)
}
