//! Consoles that are attached by the control socket: any number of readers, one of whom types.

use super::Scrollback;
use belljar_api::{Answer, Performed};
use belljar_machine::ConsoleInput;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Bytes that are read at once.
const CHUNK: usize = 512;
/// How long typed bytes wait for the guest before the client is looked after again.
const PATIENCE: Duration = Duration::from_millis(200);

/// What an attached console is made of.
#[derive(Debug)]
pub struct Attachable {
    scrollback: Arc<Scrollback>,
    input: ConsoleInput,
    typed: Arc<AtomicBool>,
}

/// The right to type, of which there is one.
struct Keyboard(Arc<AtomicBool>);

impl Keyboard {
    fn take(taken: &Arc<AtomicBool>) -> Option<Self> {
        let was_taken = taken.swap(true, Ordering::AcqRel);
        (!was_taken).then(|| Self(Arc::clone(taken)))
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

impl Attachable {
    /// The console that prints to `scrollback` and is typed at with `input`.
    pub fn new(scrollback: Arc<Scrollback>, input: ConsoleInput) -> Self {
        Self {
            scrollback,
            input,
            typed: Arc::default(),
        }
    }

    /// Performs [`Console`](belljar_api::Action::Console).
    pub fn attach(&self, input: bool, scrollback: bool) -> Performed {
        let keyboard = input.then(|| Keyboard::take(&self.typed)).flatten();
        let answer = Answer::Attached {
            input: keyboard.is_some(),
        };
        let (buffer, input) = (Arc::clone(&self.scrollback), self.input.clone());
        Performed::Stream(
            Some(answer),
            Box::new(move |connection, ending| {
                let (stream, ahead) = connection.into_stream();
                let left = AtomicBool::new(false);
                std::thread::scope(|scope| {
                    scope.spawn(|| print(&stream, &buffer, scrollback, &left));
                    let input = keyboard.is_some().then_some(&input);
                    receive(&stream, &ahead, input, ending, &left);
                    left.store(true, Ordering::Release);
                    buffer.wake();
                    // The printing thread may wait for a client that does not read.
                    let _ = stream.shutdown(std::net::Shutdown::Both);
                });
            }),
        )
    }
}

/// Sends to the client what is printed, until the end of the console.
fn print(stream: &UnixStream, scrollback: &Scrollback, before: bool, left: &AtomicBool) {
    let mut cursor = scrollback.cursor(before);
    let mut bytes = Vec::new();
    while scrollback.read(&mut cursor, &mut bytes, || !left.load(Ordering::Acquire)) {
        if send_all(stream, &bytes).is_err() {
            break;
        }
    }
    // The client sees the end, and the receiving thread its leaving.
    let _ = stream.shutdown(std::net::Shutdown::Write);
}

fn send_all(stream: &UnixStream, mut rest: &[u8]) -> Result<(), Errno> {
    while !rest.is_empty() {
        match send(stream, rest, SendFlags::NOSIGNAL) {
            Ok(count) => rest = rest.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let mut files = [PollFd::new(stream, PollFlags::OUT)];
                match poll(&mut files, None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Gives the client a moment to read the last of what was printed, and to leave by itself.
fn await_leaving(stream: &UnixStream) {
    let mut files = [PollFd::new(stream, PollFlags::empty())];
    let limit = Timespec {
        tv_sec: 0,
        tv_nsec: 500_000_000,
    };
    // Whatever comes of it, the connection ends now.
    let _ = poll(&mut files, Some(&limit));
}

/// Takes what the client types, to `input` if there is one, until the client leaves or the server
/// ends.
fn receive(
    stream: &UnixStream,
    ahead: &[u8],
    input: Option<&ConsoleInput>,
    ending: BorrowedFd<'_>,
    left: &AtomicBool,
) {
    let mut waiting = ahead.to_vec();
    // A client that has only closed its sending side goes on reading.
    let mut hears = true;
    while !left.load(Ordering::Acquire) {
        let has_room = hears && waiting.len() < CHUNK;
        let wanted = if has_room {
            PollFlags::IN
        } else {
            PollFlags::empty()
        };
        let patience = (!waiting.is_empty()).then_some(Timespec::default());
        let mut files = [
            PollFd::from_borrowed_fd(ending, PollFlags::IN),
            PollFd::from_borrowed_fd(stream.as_fd(), wanted),
        ];
        match poll(&mut files, patience.as_ref()) {
            Err(Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) if !files[0].revents().is_empty() => return await_leaving(stream),
            Ok(_) => {}
        }
        let ready = files[1].revents();
        if ready.intersects(PollFlags::HUP | PollFlags::ERR) {
            return;
        }
        if ready.contains(PollFlags::IN) {
            let mut bytes = [0; CHUNK];
            match recv(
                stream,
                &mut bytes[..CHUNK - waiting.len()],
                RecvFlags::empty(),
            ) {
                Ok((_, 0)) => hears = false,
                Ok((_, count)) => waiting.extend(bytes.iter().take(count)),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(_) => return,
            }
        }
        match input {
            None => waiting.clear(),
            Some(input) if !waiting.is_empty() => match input.send_within(&waiting, PATIENCE) {
                None => return,
                Some(taken) => drop(waiting.drain(..taken)),
            },
            Some(_) => {}
        }
    }
}
