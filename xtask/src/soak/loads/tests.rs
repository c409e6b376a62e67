//! The loads on this host: a program that stands for Belljar runs the guest's commands here.

use super::*;
use crate::soak::clock::{Clock, Drift};
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// Drops all words up to `--`, and runs the others. It is not written by a test: a file that any other
/// thread's new child has open for writing still cannot be executed.
const STAND_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/soak/here");

struct Here {
    directory: TempDir,
    shell: Shell,
}

impl Here {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let home = directory.path().join("home").display().to_string();
        let shell = Shell::new(Path::new(STAND_IN), "here", &home);
        Self { directory, shell }
    }

    /// With `load`, which the compiler's first step makes.
    fn with_load() -> (Self, Compiler) {
        let here = Self::new();
        let compiler = Compiler::new(&here.shell).unwrap();
        (here, compiler)
    }
}

#[test]
fn what_is_compiled_is_always_the_same_and_another_result_is_told() {
    let (here, mut compiler) = Here::with_load();
    assert!(compiler.round(0).unwrap() > 10_000);
    compiler.round(1).unwrap();
    let source = here.shell.path("compiler/generated.c");
    let text = fs::read_to_string(&source).unwrap();
    fs::write(&source, text + "int one_more = 1;\n").unwrap();
    let error = compiler.round(2).unwrap_err().to_string();
    assert!(error.contains("at first"), "{error}");
}

#[test]
fn a_disk_that_loses_a_bit_is_told() {
    let (here, _) = Here::with_load();
    let path = here.directory.path().join("disk");
    let mut disk = Disk::device(&here.shell, path.display().to_string());
    for round in 0..3 {
        assert!(disk.round(round).unwrap() >= 2 * SHORTEST);
    }
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    let mut last = disk.kept[2].unwrap();
    let at = 2 * LONGEST + last.length - 1;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    let error = here
        .shell
        .script(&disk.command("check", 2, last))
        .unwrap_err();
    let word = (last.length - 1) & !7;
    assert!(
        error.to_string().contains(&format!("from byte {word} on")),
        "{error}"
    );
    last.length -= 8;
    here.shell.script(&disk.command("check", 2, last)).unwrap();
}

#[test]
fn both_ends_of_a_connection_agree() {
    let (here, _) = Here::with_load();
    let server = network::Server::start().unwrap();
    let mut to_host = ToHost {
        shell: here.shell.clone(),
        address: "127.0.0.1".to_owned(),
        port: server.port(),
    };
    assert!(to_host.round(0).unwrap() >= 2 * SHORTEST);
    server.finish().unwrap();
    assert!(to_host.round(1).is_err());

    let mut child = here
        .shell
        .talk(&[&here.shell.path("load"), "serve", "0"])
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let mut to_guest = ToGuest {
        port: line.trim().parse().unwrap(),
    };
    let rounds = (0..2)
        .map(|round| to_guest.round(round))
        .collect::<Result<Vec<_>>>();
    child.kill().unwrap();
    child.wait().unwrap();
    rounds.unwrap();
}

#[test]
fn clocks_of_one_host_agree() {
    let (here, _) = Here::with_load();
    let mut clock = Clock::start(&here.shell).unwrap();
    let start = clock.read().unwrap();
    Drift::between(start, clock.read().unwrap())
        .check()
        .unwrap();
}

#[test]
fn wrong_usage_of_load_is_refused() {
    let (here, _) = Here::with_load();
    let status = |words: &[&str]| {
        let load = Command::new(here.shell.path("load")).args(words).output();
        load.unwrap().status.code()
    };
    assert_eq!(status(&[]), Some(2));
    assert_eq!(status(&["sum", "1", "many"]), Some(2));
    assert_eq!(status(&["check", "/nowhere", "0", "1", "8"]), Some(1));
}

/// Fails in its third round.
struct Failing;

impl Load for Failing {
    fn name(&self) -> &'static str {
        "failing"
    }

    fn round(&mut self, round: u64) -> Result<u64> {
        ensure!(round < 2, "no more");
        Ok(10)
    }
}

#[test]
fn a_load_that_fails_gives_all_up() {
    let shell = Here::new().shell;
    let counter = Counter::default();
    let end = Instant::now() + std::time::Duration::from_mins(1);
    let error = repeat(&mut Failing, &shell, end, &counter).unwrap_err();
    assert_eq!(error.to_string(), "failing, round 2");
    assert!(shell.given_up.load(Ordering::Acquire));
    assert_eq!(counter.rounds.load(Ordering::Relaxed), 2);
    assert_eq!(counter.bytes.load(Ordering::Relaxed), 20);
    // The others end then.
    repeat(&mut Failing, &shell, end, &counter).unwrap();
    assert_eq!(counter.rounds.load(Ordering::Relaxed), 2);
}
