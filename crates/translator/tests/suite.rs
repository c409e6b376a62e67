//! The engines' test suite under the translator: as users get it, and tuned so that what is rare
//! happens all the time.
//!
//! The suite's own tests run it as users get it. For the rest, tests at the end run this program
//! again with another tuning, which keeps the suite to one compilation and ends engines that hang.

#[path = "../../interpreter/tests/suite/mod.rs"]
mod suite;

use belljar_engine::Engine;
use belljar_translator::{Translator, Tuning};
use std::env;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Environment variables by which this program tells itself how to run the suite.
const TUNING: &str = "BELLJAR_SUITE_TUNING";
const COUNTED: &str = "BELLJAR_SUITE_COUNTED";
/// A run of the suite that takes longer hangs.
const LIMIT: Duration = Duration::from_mins(5);

fn engine() -> Arc<dyn Engine> {
    let Ok(name) = env::var(TUNING) else {
        return Arc::new(Translator::new());
    };
    let tuning = Tuning::stressed(&name).unwrap_or_else(|| panic!("no tuning {name}"));
    Arc::new(Translator::with_tuning(tuning))
}

/// Whether the suite's machines count their instructions.
fn counted() -> bool {
    env::var_os(COUNTED).is_some()
}

/// Runs the suite in another process, under a stressed tuning if one is named.
fn passes(tuning: Option<&str>, counted: bool) {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["suite::", "--test-threads=2"]);
    if let Some(name) = tuning {
        command.env(TUNING, name);
    }
    if counted {
        command.env(COUNTED, "1");
    }
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut output = child.stdout.take().unwrap();
    let reader = thread::spawn(move || {
        let mut text = String::new();
        output.read_to_string(&mut text).map(|_| text)
    });
    let deadline = Instant::now() + LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            break child.wait().unwrap();
        }
        thread::sleep(Duration::from_millis(20));
    };
    let text = reader.join().unwrap().unwrap();
    assert!(status.success(), "{status}\n{text}");
    assert!(text.contains("test result: ok. "), "{text}");
}

#[test]
fn passes_in_code_that_counts() {
    passes(None, true);
}

#[test]
fn passes_with_code_memory_that_is_always_full() {
    passes(Some("tiny-code"), false);
}

#[test]
fn passes_with_a_tlb_of_few_entries() {
    passes(Some("tiny-tlb"), false);
    passes(Some("tiny-tlb"), true);
}

#[test]
fn passes_with_blocks_of_one_instruction() {
    passes(Some("single"), false);
}

#[test]
fn passes_when_addresses_are_forgotten_all_the_time() {
    passes(Some("flush"), false);
}

#[test]
fn passes_when_code_is_forgotten_all_the_time() {
    passes(Some("evict"), false);
}

#[test]
fn passes_when_generated_code_is_left_all_the_time() {
    passes(Some("exit"), false);
}

#[test]
fn passes_with_everything_at_once() {
    passes(Some("everything"), false);
    passes(Some("everything"), true);
}
