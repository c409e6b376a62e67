//! Telling threads that wait for a file descriptor to end.

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// A signal that, once given, stays.
#[derive(Debug)]
pub struct Stop(OwnedFd);

/// What a wait ended with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// The file descriptor is ready, or has an error to tell.
    File,
    /// The signal was given.
    Stop,
}

impl Stop {
    /// A signal not given yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(
            0,
            EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK,
        )?))
    }

    /// Gives the signal.
    pub fn give(&self) {
        // The counter of an eventfd overflows only after 2^64 signals.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Waits until `file` is ready for `what`, or the signal is given.
    pub fn wait_for(&self, file: impl AsFd, what: PollFlags) -> io::Result<Ready> {
        loop {
            let mut both = [
                PollFd::new(&self.0, PollFlags::IN),
                PollFd::from_borrowed_fd(file.as_fd(), what),
            ];
            match poll(&mut both, None) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
                Ok(_) if !both[0].revents().is_empty() => return Ok(Ready::Stop),
                Ok(_) if !both[1].revents().is_empty() => return Ok(Ready::File),
                Ok(_) => {}
            }
        }
    }
}
