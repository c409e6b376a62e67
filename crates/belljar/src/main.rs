//! The command line of Belljar.
//!
//! Floor 6 of the house: flags, the terminal and the other consoles, messages and exit statuses.
//! How a machine works is the business of the floors below. Standard output carries nothing but the
//! guest's console.

#![forbid(unsafe_code)]

mod cli;
mod console;
mod escape;
mod guest;
mod run;
mod signals;
mod statistics;
mod terminal;

use belljar_machine::ConfigError;
use clap::Parser;
use cli::{Cli, Command};
use run::Ending;
use std::process::ExitCode;
use terminal::message;
use tracing_subscriber::EnvFilter;

/// Exit status when Belljar failed.
const FAILED: u8 = 1;
/// Exit status of wrong usage; clap's own too.
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    let Command::Run(options) = Cli::parse().command;
    terminal::restore_on_panic();
    log_to_standard_error();
    let config = match options.into_config() {
        Ok(config) => config,
        Err(error) => {
            let status = match &error {
                ConfigError::Read { .. } => FAILED,
                _ => WRONG_USAGE,
            };
            return fail(&error.into(), status);
        }
    };
    match run::run(config) {
        Ok(Ending::Status(status)) => ExitCode::from(status),
        Ok(Ending::Signal(signal)) => signals::die_of(signal),
        Err(error) => fail(&error, FAILED),
    }
}

/// Prints an error with its causes.
fn fail(error: &anyhow::Error, status: u8) -> ExitCode {
    terminal::restore();
    message(&format!("{error:#}"));
    ExitCode::from(status)
}

fn log_to_standard_error() {
    let filter = EnvFilter::try_from_env("BELLJAR_LOG").unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| terminal::Messages)
        .with_ansi(false)
        .without_time()
        .init();
}
