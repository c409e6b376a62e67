//! The program under test, which finds its machines apart from the user's own.

#![allow(dead_code, reason = "each test program uses a part")]

use std::path::Path;
use std::process::{Command, Stdio};

/// Where the machines are that need no directory of their own.
const MACHINES: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/machines");

/// `belljar`, without input.
pub fn belljar() -> Command {
    belljar_in(Path::new(MACHINES))
}

/// `belljar`, without input, whose machines are in a directory of their own.
pub fn belljar_in(machines: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_belljar"));
    command
        .env("BELLJAR_RUNTIME_DIR", machines)
        .stdin(Stdio::null());
    command
}
