//! The host's ends of the connections with the guest. Whoever makes a connection says by a seed and a
//! length what it sends, closes its half, and is answered with as many bytes of the seed's complement.

use super::content;
use anyhow::{Context, Result, bail};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The longest time in which nothing comes or goes.
const LIMIT: Duration = Duration::from_mins(2);
/// The pause between two looks for a connection.
const PAUSE: Duration = Duration::from_millis(5);

/// Makes a connection with a server, sends, and checks the answer.
pub fn send(port: u16, seed: u64, length: u64) -> Result<()> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).context("cannot connect")?;
    limit(&stream)?;
    let head = [seed, length].map(u64::to_le_bytes).concat();
    stream.write_all(&head).context("cannot send")?;
    content::write(&mut stream, seed, length).context("sending")?;
    stream
        .shutdown(Shutdown::Write)
        .context("cannot send the end")?;
    content::check(&mut stream, !seed, length).context("in the answer")?;
    content::check_end(&mut stream).context("at the answer's end")
}

/// Answers one connection.
fn answer(mut stream: TcpStream) -> Result<()> {
    limit(&stream)?;
    let mut number = || -> Result<u64> {
        let mut bytes = [0; 8];
        stream.read_exact(&mut bytes).context("no head came")?;
        Ok(u64::from_le_bytes(bytes))
    };
    let (seed, length) = (number()?, number()?);
    content::check(&mut stream, seed, length).context("in what came")?;
    content::check_end(&mut stream).context("at the end of what came")?;
    content::write(&mut stream, !seed, length).context("answering")
}

fn limit(stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream.set_write_timeout(Some(LIMIT))?)
}

/// The server that the guest reaches at its gateway. It answers connections one after the other until it
/// is dropped.
#[derive(Debug)]
pub struct Server {
    port: u16,
    is_done: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Server {
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let is_done = Arc::new(AtomicBool::new(false));
        Ok(Self {
            port: listener.local_addr()?.port(),
            is_done: Arc::clone(&is_done),
            thread: Some(thread::spawn(move || serve(&listener, &is_done))),
        })
    }

    /// The port of the host's loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Ends it; an error if a connection was otherwise than it should be.
    pub fn finish(mut self) -> Result<()> {
        self.is_done.store(true, Ordering::Release);
        let ended = self.thread.take().map(JoinHandle::join);
        match ended {
            Some(Ok(result)) => result.context("the host's server"),
            _ => bail!("the host's server panicked"),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_done.store(true, Ordering::Release);
    }
}

fn serve(listener: &TcpListener, is_done: &AtomicBool) -> Result<()> {
    let mut result = Ok(());
    while !is_done.load(Ordering::Acquire) {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                // The first error counts; whoever made the connection finds one, too.
                result = result.and(answer(stream));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(PAUSE),
            Err(error) => return Err(error.into()),
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_answered_and_what_is_wrong_is_told() {
        let server = Server::start().unwrap();
        send(server.port(), 5, 1 << 20).unwrap();
        send(server.port(), 6, 0).unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", server.port())).unwrap();
        // No bytes are announced, and eight come.
        stream.write_all(&[0; 24]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
        // The next connection is answered when that one is done with.
        send(server.port(), 7, 64).unwrap();
        assert!(server.finish().is_err());
    }
}
