//! Builds images of Debian and boots them.

use crate::run_ignored;
use anyhow::Result;
use clap::Args;

#[derive(Debug, Args)]
pub struct Options {
    /// Only the tests whose names contain this, for example debian_13
    #[arg(default_value = "boots")]
    only: String,
}

pub fn run(options: &Options) -> Result<()> {
    run_ignored("belljar", "images", &options.only)
}
