//! `belljar balloon`.

use anyhow::Result;
use belljar_api::{Action, Answer, ApiError, Runtime};
use belljar_machine::Size;
use clap::Args;

/// The arguments of `belljar balloon`.
#[derive(Debug, Args)]
pub struct BalloonOptions {
    /// Name of the machine
    #[arg(value_name = "NAME")]
    name: String,
    /// How much of the machine's memory the guest is to do without, in bytes, or with K, M or G; 0
    /// gives it all back
    #[arg(value_name = "SIZE")]
    size: Size,
}

/// `belljar balloon`.
pub fn balloon(options: &BalloonOptions) -> Result<()> {
    let place = Runtime::of_user()?.place(&options.name)?;
    let size = options.size.bytes();
    match place.connect()?.call(Action::Balloon { size })? {
        Answer::Done => Ok(()),
        _ => Err(ApiError::WrongAnswer.into()),
    }
}
