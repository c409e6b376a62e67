//! Signals that ask the process to end.

use crate::terminal;
use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGXCPU};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use std::io;
use std::thread::Builder;

/// The signals that somebody may send and that would end the process with the terminal left raw.
const WATCHED: [i32; 8] = [
    SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM, SIGXCPU,
];

/// Calls `on_signal` for the first signal that asks the process to end; at the second one the
/// process ends at once, with the terminal restored.
pub fn watch(on_signal: impl FnOnce(i32) + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new(WATCHED)?;
    Builder::new().name("signals".to_owned()).spawn(move || {
        let mut on_signal = Some(on_signal);
        for signal in signals.forever() {
            match on_signal.take() {
                Some(on_signal) => on_signal(signal),
                None => die_of(signal),
            }
        }
    })?;
    Ok(())
}

/// Ends the process as `signal` would have, so that whoever waits for it sees that.
pub fn die_of(signal: i32) -> ! {
    terminal::restore();
    // All these signals end a process; should that fail, the shells' status for it must do.
    let _ = emulate_default_handler(signal);
    std::process::exit(128 + signal)
}
