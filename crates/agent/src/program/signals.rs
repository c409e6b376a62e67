//! The signals that commands begin with: each does what it does by default, and none is held back.
//!
//! A program inherits what its parent ignores. Whoever starts the agent may ignore signals: `nohup`
//! does, and so do shells for what they start in the background. What a program *catches* has its
//! default effect again in those that it starts (`signal(7)`), so the agent catches what it was
//! started with ignored, and does nothing then: it ignores them as before, its commands do not. The
//! standard library empties the mask of blocked signals for every command, and gives SIGPIPE its
//! default effect.

use signal_hook::consts::{SIGFPE, SIGILL, SIGKILL, SIGSEGV, SIGSTOP};
use std::io::{Error, ErrorKind};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

/// Where Linux tells a process what it ignores.
const STATUS: &str = "/proc/self/status";
/// The line's name there. It has a hexadecimal number whose bit n is signal n + 1.
const IGNORED: &str = "SigIgn:";
/// The standard library's: ignored in all Rust programs, and not in those that they start.
const SIGPIPE: i32 = 13;
/// Signals that stay as they are: those that code without `unsafe` may not catch, those that nobody can,
/// and the two that the C library keeps for itself.
pub const STAY: [i32; 7] = [SIGILL, SIGFPE, SIGKILL, SIGSEGV, SIGSTOP, 32, 33];

/// Makes sure that the commands that are started from now on begin with the default effects, but for
/// [`STAY`]. Only the first call has something to do.
pub fn hand_down_defaults() -> Result<(), Error> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    let done = DONE.get_or_init(|| catch_ignored().map_err(|error| error.to_string()));
    done.clone().map_err(Error::other)
}

fn catch_ignored() -> Result<(), Error> {
    let status = std::fs::read_to_string(STATUS)?;
    let ignored = ignored(&status)
        .ok_or_else(|| Error::new(ErrorKind::InvalidData, "no list of ignored signals"))?;
    let nothing = Arc::new(AtomicBool::new(false));
    for signal in ignored {
        signal_hook::flag::register(signal, Arc::clone(&nothing))?;
    }
    Ok(())
}

/// The signals that are ignored according to `status` and can be caught.
fn ignored(status: &str) -> Option<Vec<i32>> {
    let digits = status.lines().find_map(|line| line.strip_prefix(IGNORED))?;
    let mask = u64::from_str_radix(digits.trim(), 16).ok()?;
    let can_be_caught = |signal: &i32| !STAY.contains(signal) && *signal != SIGPIPE;
    let is_ignored = |signal: &i32| mask >> (signal - 1) & 1 == 1;
    Some((1..=64).filter(is_ignored).filter(can_be_caught).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_and_can_be_caught_is_found() {
        let status = "Name:\tsleep\nSigBlk:\tffffffffffffffff\nSigIgn:\t8000000180001001\n";
        // SIGHUP, SIGPIPE, 32, 33 and 64.
        assert_eq!(ignored(status), Some(vec![1, 64]));
        let all = "SigIgn:\tffffffffffffffff\n";
        let found = ignored(all).unwrap();
        assert!(found.contains(&15) && !found.contains(&9) && !found.contains(&11));
        assert_eq!(ignored("Name:\tsleep\n"), None);
        assert_eq!(ignored("SigIgn:\tmany\n"), None);
    }
}
