//! `belljar stats`.

use super::print;
use crate::{statistics, terminal};
use anyhow::{Context, Result};
use belljar_api::{Action, Answer, ApiError, Place, Runtime, Statistics};
use clap::Args;
use std::time::Duration;

/// The flags of `belljar stats`.
#[derive(Debug, Args)]
pub struct StatsOptions {
    /// Name of the machine
    #[arg(value_name = "NAME")]
    name: String,
    /// Print JSON, one line each time
    #[arg(long)]
    json: bool,
    /// Go on every so many seconds until the machine ends [default when given without: 2]
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2")]
    watch: Option<u32>,
}

/// `belljar stats`.
pub fn stats(options: &StatsOptions) -> Result<()> {
    let place = Runtime::of_user()?.place(&options.name)?;
    show(&ask(&place)?, options)?;
    let Some(seconds) = options.watch else {
        return Ok(());
    };
    loop {
        std::thread::sleep(Duration::from_secs(u64::from(seconds.max(1))));
        match ask(&place) {
            Ok(statistics) => show(&statistics, options)?,
            Err(ApiError::NotRunning(_) | ApiError::NoMachine(_) | ApiError::Closed) => {
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn ask(place: &Place) -> Result<Statistics, ApiError> {
    match place.connect()?.call(Action::Statistics)? {
        Answer::Statistics(statistics) => Ok(statistics),
        _ => Err(ApiError::WrongAnswer),
    }
}

fn show(statistics: &Statistics, options: &StatsOptions) -> Result<()> {
    if options.json {
        let text = serde_json::to_string(statistics).context("cannot write JSON")?;
        return print(&format!("{text}\n"));
    }
    let width = terminal::output_width().unwrap_or(usize::MAX);
    let table = statistics::render(statistics, width);
    // A terminal shows the newest table in the place of the one before.
    let clear = match (options.watch, terminal::output_width()) {
        (Some(_), Some(_)) => "\x1b[H\x1b[2J",
        _ => "",
    };
    print(&format!("{clear}{table}"))
}
