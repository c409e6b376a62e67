//! The terminal: raw while a guest has it, and as it was found when the process ends by itself, by a
//! panic, or by a signal that [`signals`](crate::signals) watches for.
//!
//! Any other signal that ends the process, such as SIGKILL, leaves it raw, and so do SIGABRT and
//! SIGSEGV, which only a defect of Belljar itself raises; `reset` or `stty sane` helps.

use crate::log::make_room_on_standard_error;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{self, IsTerminal, Write, stderr, stdin, stdout};
use std::sync::{Mutex, PoisonError};

/// The settings to restore, while the terminal is raw.
static FOUND: Mutex<Option<Termios>> = Mutex::new(None);

/// Keeps the terminal raw while it lives.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Makes the terminal on standard input raw; `None` if there is none.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let found = tcgetattr(&stdin)?;
        let mut raw = found.clone();
        raw.make_raw();
        *FOUND.lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
        tcsetattr(&stdin, OptionalActions::Now, &raw)?;
        Ok(Some(Self(())))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the terminal if it is raw. It may be called from any thread, any number of times.
pub fn restore() {
    let found = FOUND.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(found) = found {
        // There is nobody to tell if the terminal has gone away.
        let _ = tcsetattr(stdin(), OptionalActions::Now, &found);
    }
}

/// Restores the terminal before a panic's message is printed.
pub fn restore_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        print(info);
    }));
}

/// Whether standard error shows on a terminal that is raw.
fn is_raw() -> bool {
    let raw = FOUND
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .is_some();
    raw && stderr().is_terminal()
}

/// Columns of the terminal that standard error shows on; `None` if there is none, or it does not
/// know.
pub fn width() -> Option<usize> {
    let size = tcgetwinsize(stderr()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// The same of standard output.
pub fn output_width() -> Option<usize> {
    let size = tcgetwinsize(stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// Lines and columns of the terminal on standard input; `None` if there is none.
pub fn input_size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(stdin()).ok()?;
    Some((size.ws_row, size.ws_col))
}

/// Standard error, with the line ends that a raw terminal needs. If it is a log, it is bounded.
#[derive(Clone, Copy, Debug, Default)]
pub struct Messages;

impl Write for Messages {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        make_room_on_standard_error();
        if !is_raw() {
            return stderr().write(bytes);
        }
        let mut text = Vec::with_capacity(bytes.len() + 8);
        for byte in bytes {
            if *byte == b'\n' {
                text.push(b'\r');
            }
            text.push(*byte);
        }
        stderr().write_all(&text)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        stderr().flush()
    }
}

/// Prints a message for the user. A standard error that is closed loses it.
pub fn message(text: &str) {
    print(&format!("belljar: {text}\n"));
}

/// Prints lines for the user, which begin on a line of their own where the guest may have left the
/// cursor anywhere.
pub fn passage(lines: &str) {
    if is_raw() {
        print(&format!("\n{lines}"));
    } else {
        print(lines);
    }
}

/// Writes all at once, so that nothing that the guest prints comes between.
fn print(text: &str) {
    let _ = Messages.write_all(text.as_bytes());
}
