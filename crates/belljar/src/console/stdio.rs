//! Standard input as the guest's console.

use super::Requests;
use super::stop::{Ready, Stop};
use crate::escape::{Escape, Key};
use crate::terminal::message;
use belljar_machine::ConsoleInput;
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::io::{IsTerminal, stdin};
use std::sync::mpsc;

/// Bytes that are read at once.
const CHUNK: usize = 512;
/// Chunks that wait for the guest while what is typed is still looked through for commands.
const WAITING: usize = 64;

/// What Ctrl-A h shows.
const KEYS: &str = "Ctrl-A x ends the machine, Ctrl-A h shows this, Ctrl-A a sends Ctrl-A";

/// Hands standard input to the guest until it ends, or the machine does. From a terminal the
/// commands of [`Escape`] are taken out; they work whether or not the guest reads, so another
/// thread waits for the guest.
pub fn read(stop: &Stop, input: &ConsoleInput, requests: &dyn Requests) {
    let mut escape = stdin().is_terminal().then(Escape::default);
    std::thread::scope(|scope| {
        let (typed, for_guest) = mpsc::sync_channel::<Vec<u8>>(WAITING);
        scope.spawn(move || {
            for bytes in for_guest {
                if !input.send(&bytes) {
                    return;
                }
            }
        });
        let mut bytes = [0; CHUNK];
        while let Ok(Ready::File) = stop.wait_for(stdin(), PollFlags::IN) {
            let count = match rustix::io::read(stdin(), &mut bytes) {
                Ok(0) => return,
                Ok(count) => count,
                Err(Errno::INTR | Errno::AGAIN) => continue,
                Err(_) => return,
            };
            match &mut escape {
                None => {
                    // Input from a pipe is never lost: the pipe fills until the guest reads.
                    if typed.send(bytes[..count].to_vec()).is_err() {
                        return;
                    }
                }
                Some(escape) => {
                    // Like a real serial line, a terminal's drops what nobody takes.
                    let _ = typed.try_send(pick_out(escape, &bytes[..count], requests));
                }
            }
        }
    });
}

/// Carries out the commands among what was typed; gives the rest.
fn pick_out(escape: &mut Escape, typed: &[u8], requests: &dyn Requests) -> Vec<u8> {
    let mut rest = Vec::with_capacity(typed.len());
    for byte in typed {
        match escape.feed(*byte) {
            Key::Wait => {}
            Key::Byte(byte) => rest.push(byte),
            Key::Both(byte) => rest.extend([Escape::PREFIX, byte]),
            // There is nothing to detach from: the machine lives and dies with this process.
            Key::Detach => rest.extend([Escape::PREFIX, b'd']),
            Key::Quit => requests.quit(),
            Key::Help => message(KEYS),
        }
    }
    rest
}
