//! Signals: those that ask the process to end, the one that asks for statistics, and the one that tells
//! of another size of the terminal.

use crate::terminal;
use signal_hook::consts::{
    SIGALRM, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGWINCH, SIGXCPU,
};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;
use std::io;
use std::thread::Builder;

/// The signal that asks for statistics.
const STATISTICS: i32 = SIGUSR1;
/// The signals that somebody may send and that would end the process with the terminal left raw.
const ENDING: [i32; 7] = [SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR2, SIGALRM, SIGXCPU];

/// Signals that are caught and wait for somebody to attend to them.
#[derive(Debug)]
pub struct Caught(Signals);

/// Catches, from now on, the signal that asks for statistics, so that it does not end a process
/// that has no machine yet. Those that ask the process to end still do.
pub fn catch() -> io::Result<Caught> {
    Ok(Caught(Signals::new([STATISTICS])?))
}

impl Caught {
    /// Calls `on_end` for the first signal that asks the process to end; at the second one the
    /// process ends at once, with the terminal restored. Calls `on_statistics` for each signal that
    /// asks for these, also for one that has come before, and `on_resize` when the terminal has another
    /// size. None may wait.
    pub fn watch(
        mut self,
        on_end: impl FnOnce(i32) + Send + 'static,
        on_statistics: impl Fn() + Send + 'static,
        on_resize: impl Fn() + Send + 'static,
    ) -> io::Result<()> {
        for signal in ENDING.into_iter().chain([SIGWINCH]) {
            self.0.add_signal(signal)?;
        }
        Builder::new().name("signals".to_owned()).spawn(move || {
            let mut on_end = Some(on_end);
            for signal in self.0.forever() {
                if signal == STATISTICS {
                    on_statistics();
                    continue;
                }
                if signal == SIGWINCH {
                    on_resize();
                    continue;
                }
                match on_end.take() {
                    Some(on_end) => on_end(signal),
                    None => die_of(signal),
                }
            }
        })?;
        Ok(())
    }
}

/// Ends the process as `signal` would have, so that whoever waits for it sees that.
pub fn die_of(signal: i32) -> ! {
    terminal::restore();
    // All these signals end a process; should that fail, the shells' status for it must do.
    let _ = emulate_default_handler(signal);
    std::process::exit(128 + signal)
}
