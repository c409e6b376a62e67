//! The lines on the control socket: one JSON text each, of bounded length, in bounded time.

use crate::ApiError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The most bytes that a request may have.
pub const LONGEST_REQUEST: usize = 64 << 10;
/// The most bytes that an answer may have: statistics of 255 vCPUs are the longest.
pub const LONGEST_ANSWER: usize = 4 << 20;
/// Bytes that are read at once.
const CHUNK: usize = 4 << 10;

/// Which of the two directions of a connection is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the other side.
    Incoming,
    /// To the other side.
    Outgoing,
}

/// One side of a connection: lines first, then perhaps a stream of bytes.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    /// Bytes that came behind the last line.
    ahead: Vec<u8>,
}

impl Connection {
    /// The connection on `stream`.
    ///
    /// # Errors
    /// [`ApiError::Connection`].
    pub fn new(stream: UnixStream) -> Result<Self, ApiError> {
        stream.set_nonblocking(true).map_err(ApiError::Connection)?;
        Ok(Self {
            stream,
            ahead: Vec::new(),
        })
    }

    /// Sends `message` as a line, in the time until `limit` has passed.
    ///
    /// # Errors
    /// [`ApiError::Timeout`], [`ApiError::Connection`].
    pub fn send(&self, message: &impl Serialize, limit: Duration) -> Result<(), ApiError> {
        let deadline = Deadline::after(limit);
        let mut line = serde_json::to_vec(message).map_err(ApiError::Syntax)?;
        line.push(b'\n');
        let mut rest = line.as_slice();
        while !rest.is_empty() {
            match send(&self.stream, rest, SendFlags::NOSIGNAL) {
                Ok(count) => rest = rest.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => deadline.wait_for(&self.stream, PollFlags::OUT)?,
                Err(error) => return Err(ApiError::Connection(error.into())),
            }
        }
        Ok(())
    }

    /// Receives a line of at most `longest` bytes, whole before `limit` has passed; without a limit
    /// it waits for ever.
    ///
    /// # Errors
    /// [`ApiError::Timeout`], [`ApiError::Closed`], [`ApiError::TooLong`], [`ApiError::Syntax`],
    /// [`ApiError::Connection`].
    pub fn receive<T: DeserializeOwned>(
        &mut self,
        longest: usize,
        limit: Option<Duration>,
    ) -> Result<T, ApiError> {
        let deadline = Deadline::of(limit);
        let mut looked_at = 0;
        loop {
            let unseen = self.ahead.get(looked_at..).unwrap_or_default();
            if let Some(at) = unseen.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.ahead.drain(..=looked_at + at).collect();
                line.pop();
                if line.len() > longest {
                    return Err(ApiError::TooLong(longest));
                }
                return serde_json::from_slice(&line).map_err(ApiError::Syntax);
            }
            looked_at = self.ahead.len();
            if looked_at > longest {
                return Err(ApiError::TooLong(longest));
            }
            self.receive_some(&deadline)?;
        }
    }

    fn receive_some(&mut self, deadline: &Deadline) -> Result<(), ApiError> {
        let mut bytes = [0; CHUNK];
        loop {
            match recv(&self.stream, &mut bytes[..], RecvFlags::empty()) {
                Ok((_, 0)) => return Err(ApiError::Closed),
                Ok((_, count)) => {
                    self.ahead.extend(bytes.iter().take(count));
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => deadline.wait_for(&self.stream, PollFlags::IN)?,
                Err(error) => return Err(ApiError::Connection(error.into())),
            }
        }
    }

    /// The socket, which does not block, and what came behind the last line.
    pub fn into_stream(self) -> (UnixStream, Vec<u8>) {
        (self.stream, self.ahead)
    }

    /// The socket.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }
}

/// A moment until which something may take.
struct Deadline {
    limit: Option<(Instant, Duration)>,
}

impl Deadline {
    fn of(limit: Option<Duration>) -> Self {
        Self {
            limit: limit.map(|limit| (Instant::now() + limit, limit)),
        }
    }

    fn after(limit: Duration) -> Self {
        Self::of(Some(limit))
    }

    /// Waits until `file` is ready.
    fn wait_for(&self, file: impl AsFd, what: PollFlags) -> Result<(), ApiError> {
        loop {
            let left = match self.limit {
                None => None,
                Some((end, limit)) => {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(ApiError::Timeout(limit.as_secs()));
                    }
                    Timespec::try_from(left).ok()
                }
            };
            let mut files = [PollFd::from_borrowed_fd(file.as_fd(), what)];
            match poll(&mut files, left.as_ref()) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(ApiError::Connection(error.into())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Action, Request};
    use proptest::prelude::*;
    use std::io::Write;

    const SOON: Duration = Duration::from_millis(20);
    const LONG: Option<Duration> = Some(Duration::from_secs(20));

    fn pair() -> (UnixStream, Connection) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (ours, Connection::new(theirs).unwrap())
    }

    #[test]
    fn what_follows_a_line_is_kept() {
        let (mut sender, mut receiver) = pair();
        sender
            .write_all(b"{\"version\":1,\"action\":{\"type\":\"stop\"}}\nraw")
            .unwrap();
        let request: Request = receiver.receive(LONGEST_REQUEST, LONG).unwrap();
        assert_eq!(request.action, Action::Stop);
        assert_eq!(receiver.into_stream().1, b"raw");
    }

    #[test]
    fn a_line_that_never_ends_is_refused() {
        let (mut sender, mut receiver) = pair();
        let writer = std::thread::spawn(move || while sender.write_all(&[b'x'; 4096]).is_ok() {});
        let result = receiver.receive::<Request>(LONGEST_REQUEST, LONG);
        assert!(matches!(result, Err(ApiError::TooLong(_))), "{result:?}");
        drop(receiver);
        writer.join().unwrap();
    }

    #[test]
    fn silence_and_drops_of_bytes_run_into_the_limit() {
        let (sender, mut receiver) = pair();
        let result = receiver.receive::<Request>(LONGEST_REQUEST, Some(SOON));
        assert!(matches!(result, Err(ApiError::Timeout(_))), "{result:?}");
        let slow = std::thread::spawn(move || {
            let mut sender = sender;
            while sender.write_all(b" ").is_ok() {
                std::thread::sleep(Duration::from_millis(2));
            }
        });
        let result = receiver.receive::<Request>(LONGEST_REQUEST, Some(5 * SOON));
        assert!(matches!(result, Err(ApiError::Timeout(_))), "{result:?}");
        drop(receiver);
        slow.join().unwrap();
    }

    #[test]
    fn a_reader_that_does_not_read_runs_into_the_limit() {
        let (_receiver, sender) = pair();
        let long = "x".repeat(LONGEST_ANSWER);
        let result = sender.send(&long, SOON);
        assert!(matches!(result, Err(ApiError::Timeout(_))), "{result:?}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_request_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let (mut sender, mut receiver) = pair();
            sender.write_all(&bytes).unwrap();
            drop(sender);
            let _ = receiver.receive::<Request>(200, LONG);
        }
    }
}
