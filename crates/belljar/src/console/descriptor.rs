//! Reading from and writing to file descriptors that do not block.

use super::outlet::Outlet;
use super::stop::{Ready, Stop};
use belljar_machine::ConsoleInput;
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Bytes that are read at once.
const CHUNK: usize = 512;

/// Hands what comes from `file` to the guest until there is no more, or the machine has ended.
pub fn read(stop: &Stop, file: impl AsFd, input: &ConsoleInput) {
    let mut bytes = [0; CHUNK];
    while let Ok(Ready::File) = stop.wait_for(&file, PollFlags::IN) {
        match rustix::io::read(&file, &mut bytes) {
            Ok(0) => return,
            Ok(count) if input.send(&bytes[..count]) => {}
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// Writes everything from `outlet` to the file that `current` gives, which is told the file that
/// failed before it; `None` ends it. Output that a broken file does not take goes to the next one.
pub fn write(
    outlet: &Outlet,
    stop: &Stop,
    mut current: impl FnMut(Option<&Arc<OwnedFd>>) -> Option<Arc<OwnedFd>>,
) {
    let mut bytes = Vec::new();
    // Output stays in the outlet, where the oldest makes room for the newest, until there is
    // somebody to read it.
    while let Some(mut file) = current(None) {
        if !outlet.take(&mut bytes) {
            return;
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            match rustix::io::write(&file, rest) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => match stop.wait_for(&file, PollFlags::OUT) {
                    Ok(Ready::File) => {}
                    Ok(Ready::Stop) | Err(_) => return,
                },
                Err(_) => match current(Some(&file)) {
                    Some(next) => file = next,
                    None => return,
                },
            }
        }
    }
}
