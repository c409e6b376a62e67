//! The side that answers: in the machine's process, one thread for each connection.
//!
//! Clients are processes of the same user (or root), which the kernel tells and not the client.
//! Still none can hang the machine or make it use memory without bound: a request has a greatest
//! length and a time in which it must have come, an answer one in which it must be taken, and
//! connections are limited in number. Those that have become streams are counted apart, so that
//! attached consoles leave room for a `stop`.

use crate::wire::{Connection, LONGEST_REQUEST};
use crate::{Action, Answer, ApiError, Request, VERSION};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_peercred;
use rustix::process::getuid;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// Connections that wait for a request or an answer.
const MOST_REQUESTS: usize = 16;
/// Connections that have become streams, or wait for the machine's end.
const MOST_STREAMS: usize = 64;
/// In which a request must have come.
const REQUEST: Duration = Duration::from_secs(5);
/// In which an answer must have been taken.
const ANSWER: Duration = Duration::from_secs(5);
/// How long the end of the server waits for the last answers and streams.
const GRACE: Duration = Duration::from_secs(1);

/// What goes on with a connection after its answer. It must come back soon once the file descriptor
/// that it is handed is readable: the server is ending.
pub type Stream = Box<dyn FnOnce(Connection, BorrowedFd<'_>) + Send>;

/// The result of an action.
pub enum Performed {
    /// This is the answer, and the connection ends.
    Answer(Answer),
    /// This is the answer if there is one yet, and the connection goes on as a stream.
    Stream(Option<Answer>, Stream),
}

impl fmt::Debug for Performed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(answer) => f.debug_tuple("Answer").field(answer).finish(),
            Self::Stream(answer, _) => f.debug_tuple("Stream").field(answer).finish(),
        }
    }
}

impl Performed {
    /// An action that was not done, and why.
    pub fn refused(reason: impl Into<String>) -> Self {
        Self::Answer(Answer::Refused {
            reason: reason.into(),
        })
    }
}

/// What a server lets clients control.
pub trait Controlled: Send + Sync {
    /// Performs `action`. It may take some seconds; it is called on the connection's own thread.
    fn perform(&self, action: Action) -> Performed;
}

#[derive(Debug, Default)]
struct Counts {
    requests: usize,
    streams: usize,
}

/// How many connections there are.
#[derive(Debug, Default)]
struct Places {
    counts: Mutex<Counts>,
    changed: Condvar,
}

/// A connection's place among the others.
struct Held<'a> {
    places: &'a Places,
    streams: bool,
}

impl Places {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_enter(&self) -> bool {
        let mut counts = self.lock();
        let free = counts.requests < MOST_REQUESTS;
        counts.requests += usize::from(free);
        free
    }
}

impl Held<'_> {
    /// Moves from the requests to the streams, if there is room.
    fn become_stream(&mut self) -> bool {
        let mut counts = self.places.lock();
        if counts.streams >= MOST_STREAMS {
            return false;
        }
        counts.streams += 1;
        counts.requests -= 1;
        self.streams = true;
        true
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut counts = self.places.lock();
        if self.streams {
            counts.streams -= 1;
        } else {
            counts.requests -= 1;
        }
        drop(counts);
        self.places.changed.notify_all();
    }
}

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    ending: Arc<OwnedFd>,
    places: Arc<Places>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts to serve the clients of `listener`.
    ///
    /// # Errors
    /// What the host refuses.
    pub fn start(listener: UnixListener, controlled: Arc<dyn Controlled>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let ending = Arc::new(eventfd(0, flags)?);
        let places = Arc::<Places>::default();
        let thread = Builder::new().name("control".to_owned()).spawn({
            let (ending, places) = (Arc::clone(&ending), Arc::clone(&places));
            move || accept(&listener, &controlled, &ending, &places)
        })?;
        Ok(Self {
            ending,
            places,
            thread: Some(thread),
        })
    }

    /// Takes no more clients, tells the streams to end, and waits a moment for them.
    pub fn finish(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // The counter of an eventfd overflows only after 2^64 signals.
        let _ = rustix::io::write(&*self.ending, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic there was printed.
            let _ = thread.join();
        }
        let busy = |counts: &mut Counts| counts.requests + counts.streams > 0;
        let counts = self.places.lock();
        drop(self.places.changed.wait_timeout_while(counts, GRACE, busy));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// Takes clients until the server ends.
fn accept(
    listener: &UnixListener,
    controlled: &Arc<dyn Controlled>,
    ending: &Arc<OwnedFd>,
    places: &Arc<Places>,
) {
    loop {
        let mut both = [
            PollFd::new(&**ending, PollFlags::IN),
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
        ];
        match poll(&mut both, None) {
            Err(Errno::INTR) => continue,
            Err(error) => {
                tracing::error!(%error, "the control socket takes no more clients");
                return;
            }
            Ok(_) if !both[0].revents().is_empty() => return,
            Ok(_) => {}
        }
        match listener.accept() {
            Ok((stream, _)) => {
                if let Err(error) = receive(stream, controlled, ending, places) {
                    tracing::debug!(%error, "a client of the control socket was turned away");
                }
            }
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "the control socket cannot take a client");
                // Most likely there are no file descriptors left; that takes a while.
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// The client was quicker to leave, or there was none.
fn is_the_clients(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
    )
}

/// Starts the thread of a client, if it may be one.
fn receive(
    stream: UnixStream,
    controlled: &Arc<dyn Controlled>,
    ending: &Arc<OwnedFd>,
    places: &Arc<Places>,
) -> io::Result<()> {
    let peer = socket_peercred(&stream)?;
    if peer.uid != getuid() && !peer.uid.is_root() {
        return Err(io::Error::other(format!("user {}", peer.uid.as_raw())));
    }
    if !places.try_enter() {
        return Err(io::Error::other("too many requests at once"));
    }
    let body = {
        let (controlled, places) = (Arc::clone(controlled), Arc::clone(places));
        let ending = Arc::clone(ending);
        move || {
            let held = Held {
                places: &places,
                streams: false,
            };
            if let Err(error) = serve(stream, &*controlled, &ending, held) {
                tracing::debug!(%error, "a client of the control socket was not served");
            }
        }
    };
    let spawned = Builder::new().name("control client".to_owned()).spawn(body);
    if let Err(error) = spawned {
        // The closure was dropped without running, and with it no place was given back.
        drop(Held {
            places,
            streams: false,
        });
        return Err(error);
    }
    Ok(())
}

/// Serves one client.
fn serve(
    stream: UnixStream,
    controlled: &dyn Controlled,
    ending: &OwnedFd,
    mut held: Held<'_>,
) -> Result<(), ApiError> {
    let mut connection = Connection::new(stream)?;
    let performed = match connection.receive::<Request>(LONGEST_REQUEST, Some(REQUEST)) {
        Ok(Request { version, .. }) if version != VERSION => Performed::refused(format!(
            "the machine speaks version {VERSION} of the protocol and not {version}: \
             it was started by another version of Belljar"
        )),
        Ok(Request { action, .. }) => controlled.perform(action),
        Err(error @ (ApiError::Syntax(_) | ApiError::TooLong(_))) => {
            Performed::refused(error.to_string())
        }
        Err(error) => return Err(error),
    };
    match performed {
        Performed::Answer(answer) => connection.send(&answer, ANSWER),
        Performed::Stream(..) if !held.become_stream() => {
            let reason = "too many clients are attached".to_owned();
            connection.send(&Answer::Refused { reason }, ANSWER)
        }
        Performed::Stream(answer, stream) => {
            if let Some(answer) = answer {
                connection.send(&answer, ANSWER)?;
            }
            stream(connection, ending.as_fd());
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Client;
    use std::io::{Read, Write};
    use std::path::Path;

    struct Echo;

    impl Controlled for Echo {
        fn perform(&self, action: Action) -> Performed {
            match action {
                Action::Stop => Performed::Answer(Answer::Done),
                Action::Wait => Performed::Stream(
                    None,
                    Box::new(|connection, ending| {
                        let mut files = [PollFd::from_borrowed_fd(ending, PollFlags::IN)];
                        poll(&mut files, None).unwrap();
                        connection.send(&Answer::Done, ANSWER).unwrap();
                    }),
                ),
                _ => Performed::refused("not now"),
            }
        }
    }

    fn served() -> (tempfile::TempDir, Server) {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        let server = Server::start(listener, Arc::new(Echo)).unwrap();
        (directory, server)
    }

    fn client(directory: &Path) -> Client {
        Client::connect(&directory.join("s")).unwrap().unwrap()
    }

    #[test]
    fn an_action_is_answered_and_a_refusal_is_an_error() {
        let (directory, _server) = served();
        let answer = client(directory.path()).call(Action::Stop).unwrap();
        assert_eq!(answer, Answer::Done);
        let refused = client(directory.path()).call(Action::Pause).unwrap_err();
        assert_eq!(refused.to_string(), "not now");
    }

    #[test]
    fn another_version_is_refused_with_the_reason() {
        let (directory, _server) = served();
        let mut stream = UnixStream::connect(directory.path().join("s")).unwrap();
        stream
            .write_all(b"{\"version\":99,\"action\":{\"type\":\"stop\"}}\n")
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("version 1"), "{answer}");
    }

    #[test]
    fn silent_clients_do_not_keep_others_out_for_long() {
        let (directory, _server) = served();
        let connect = || UnixStream::connect(directory.path().join("s")).unwrap();
        let silent: Vec<_> = (0..2 * MOST_REQUESTS).map(|_| connect()).collect();
        let mut last = silent.last().unwrap();
        let mut bytes = [0];
        // The last ones were turned away at once.
        assert_eq!(last.read(&mut bytes).unwrap(), 0);
        drop(silent);
        let limit = std::time::Instant::now() + REQUEST;
        while client(directory.path()).call(Action::Stop).is_err() {
            assert!(std::time::Instant::now() < limit);
        }
    }

    #[test]
    fn streams_end_with_the_server() {
        let (directory, server) = served();
        let mut waiting = client(directory.path());
        waiting.ask(Action::Wait).unwrap();
        // So that the request is being served when the server ends.
        while server.places.lock().streams == 0 {
            std::thread::yield_now();
        }
        server.finish();
        assert_eq!(waiting.answer(None).unwrap(), Answer::Done);
    }
}
