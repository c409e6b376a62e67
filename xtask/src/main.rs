//! Chores of the project: `cargo xtask help` lists them.

mod bench;
mod console;
mod debian;
mod fuzz;
mod images;
mod io;
mod machines;
mod programs;
mod scratch;
mod soak;
mod stress;
mod test;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::Duration;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Chores of the project")]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Runs all tests: units, properties, machines, the host as oracle, and boots of stock kernels
    Test(test::Options),
    /// Builds images of Debian suites and boots them on virtio and NVMe, which takes minutes each
    TestImages(images::Options),
    /// Boots the default guest with the translator tuned so that rare events happen all the time
    Stress(stress::Options),
    /// Times the boot of the default guest under Belljar and under QEMU's TCG, in turn
    BenchBoot(bench::Options),
    /// Times real programs natively, under QEMU's TCG and under Belljar, in turn
    BenchPrograms(programs::Options),
    /// Measures disks and networks under QEMU's TCG and under Belljar, and Belljar's limits of them
    BenchIo(io::Options),
    /// Runs a guest under load for a while: nothing may be lost, grow, or be late
    Soak(soak::Options),
    /// Fuzzes the guest-facing parsers, each for a given time
    Fuzz(fuzz::Options),
}

/// The root of the workspace.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// Cargo as it runs this program, in the root of the workspace.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The Belljar that is to run: the one that was `given`, or the release build of this tree, made anew.
fn belljar(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(program) = given {
        return Ok(program.to_owned());
    }
    run(cargo().args(["build", "--release", "--package", "belljar"]))?;
    Ok(root().join("target/release/belljar"))
}

/// Waits until a process has ended or must not `go_on`: its status if it has ended.
fn wait_while(child: &mut Child, go_on: impl Fn() -> bool) -> Result<Option<ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if !go_on() {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Runs `command` to its end; a status other than 0 is an error that shows the command.
fn run(command: &mut Command) -> Result<()> {
    eprintln!("xtask: {command:?}");
    let status = command
        .status()
        .with_context(|| format!("{command:?} did not start"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

/// Runs the ignored tests of a package's test program whose names contain `only`, one after the other.
fn run_ignored(package: &str, test: &str, only: &str) -> Result<()> {
    run(cargo()
        .args(["test", "--profile", "quick", "--locked"])
        .args(["--package", package, "--test", test, "--"])
        .args([only, "--ignored", "--nocapture", "--test-threads=1"]))
}

fn main() -> Result<()> {
    match Arguments::parse().chore {
        Chore::Test(options) => test::run(&options),
        Chore::TestImages(options) => images::run(&options),
        Chore::Stress(options) => stress::run(&options),
        Chore::BenchBoot(options) => bench::run(&options),
        Chore::BenchPrograms(options) => programs::run(&options),
        Chore::BenchIo(options) => io::run(&options),
        Chore::Soak(options) => soak::run(&options),
        Chore::Fuzz(options) => fuzz::run(&options),
    }
}
