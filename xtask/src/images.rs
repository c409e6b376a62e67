//! Builds images of Debian and boots them.

use crate::{cargo, run as run_command};
use anyhow::Result;
use clap::Args;

#[derive(Debug, Args)]
pub struct Options {
    /// Only the tests whose names contain this, for example debian_13
    #[arg(default_value = "boots")]
    only: String,
}

pub fn run(options: &Options) -> Result<()> {
    run_command(
        cargo()
            .args(["test", "--profile", "quick", "--locked"])
            .args(["--package", "belljar", "--test", "images", "--"])
            .arg(&options.only)
            .args(["--ignored", "--nocapture", "--test-threads=1"]),
    )
}
