//! The command line of Belljar.
//!
//! Floor 6 of the house: flags, the terminal and the other consoles, messages and exit statuses.
//! How a machine works is the business of the floors below. Standard output carries nothing but the
//! guest's console.

#![forbid(unsafe_code)]

mod cli;
mod commands;
mod console;
mod control;
mod detached;
mod escape;
mod guest;
mod images;
mod limits;
mod log;
mod registration;
mod run;
mod signals;
mod statistics;
mod terminal;

use belljar_machine::ConfigError;
use clap::Parser;
use cli::{Cli, Command};
use run::{Ending, Mode};
use std::process::ExitCode;
use terminal::message;
use tracing_subscriber::EnvFilter;

/// Exit status when Belljar failed.
const FAILED: u8 = 1;
/// Exit status of wrong usage; clap's own too.
const WRONG_USAGE: u8 = 2;

fn main() -> ExitCode {
    let command = Cli::parse().command;
    terminal::restore_on_panic();
    log_to_standard_error();
    match command {
        Command::Run(options) => match options.into_config() {
            Ok(config) => end(run::run(config, Mode::Foreground)),
            Err(error) => refuse(error),
        },
        Command::Start(options) => match options.into_detached_config() {
            Ok(config) => detached::start(config).unwrap_or_else(|error| fail(&error, FAILED)),
            Err(error) => refuse(error),
        },
        Command::DetachedMachine => end(detached::run()),
        Command::Ps(options) => done(commands::list(&options)),
        Command::Stop(options) => done(commands::stop(&options)),
        Command::Pause(names) => done(commands::pause(&names)),
        Command::Resume(names) => done(commands::resume(&names)),
        Command::Console(options) => done(commands::attach(&options)),
        Command::Exec(options) => match commands::exec(options) {
            Ok(status) => ExitCode::from(status),
            Err(error) => done(Err(error)),
        },
        Command::Logs(options) => done(commands::logs(&options)),
        Command::Stats(options) => done(commands::stats(&options)),
        Command::Balloon(options) => done(commands::balloon(&options)),
        Command::Image(command) => done(images::run(command)),
    }
}

/// The exit status of a machine's process.
fn end(result: anyhow::Result<Ending>) -> ExitCode {
    match result {
        Ok(Ending::Status(status)) => ExitCode::from(status),
        Ok(Ending::Signal(signal)) => signals::die_of(signal),
        Err(error) => fail(&error, FAILED),
    }
}

/// The exit status of a command about a machine.
fn done(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::from(FAILED),
        Err(error) => fail(&error, FAILED),
    }
}

/// Whether whoever reads standard output has had enough.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let source = error.root_cause().downcast_ref::<std::io::Error>();
    source.is_some_and(|source| source.kind() == std::io::ErrorKind::BrokenPipe)
}

/// The exit status for a configuration that is not one.
fn refuse(error: ConfigError) -> ExitCode {
    let status = match &error {
        ConfigError::Read { .. } => FAILED,
        _ => WRONG_USAGE,
    };
    fail(&error.into(), status)
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
