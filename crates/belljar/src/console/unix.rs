//! A Unix socket as the guest's console: one client at a time, others wait for their turn.

use super::stop::{Ready, Stop};
use super::{descriptor, lock};
use anyhow::{Context, Result, bail};
use belljar_machine::ConsoleInput;
use rustix::event::PollFlags;
use rustix::fs::Mode;
use rustix::process::umask;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// A listening socket, which only its owner can connect to and which is removed at the end.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    listener: Arc<UnixListener>,
    clients: Arc<Clients>,
}

impl Socket {
    /// Listens at `path`. A socket that nobody listens at any more is replaced.
    pub fn bind(path: &Path) -> Result<Self> {
        remove_stale(path)?;
        // The mode must be right from the first moment; no other thread of Belljar makes files at
        // this time.
        let mask = umask(Mode::from_raw_mode(0o177));
        let bound = UnixListener::bind(path);
        umask(mask);
        let listener =
            bound.with_context(|| format!("cannot listen at the socket {}", path.display()))?;
        listener
            .set_nonblocking(true)
            .with_context(|| format!("cannot set up the socket {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            listener: Arc::new(listener),
            clients: Arc::default(),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What clients connect to.
    pub fn listener(&self) -> Arc<UnixListener> {
        Arc::clone(&self.listener)
    }

    /// The client that is connected.
    pub fn clients(&self) -> Arc<Clients> {
        Arc::clone(&self.clients)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // If it is gone already, that is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Removes a socket that was left behind; anything else at `path` is not ours to remove.
fn remove_stale(path: &Path) -> Result<()> {
    let is_socket = match std::fs::symlink_metadata(path) {
        Ok(found) => found.file_type().is_socket(),
        Err(_) => return Ok(()),
    };
    let abandoned = is_socket
        && UnixStream::connect(path).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused);
    if !abandoned {
        bail!(
            "{} exists and is not an abandoned socket; choose another path or remove it",
            path.display()
        );
    }
    std::fs::remove_file(path)
        .with_context(|| format!("cannot remove the abandoned socket {}", path.display()))
}

/// The client that is connected, if any.
#[derive(Debug, Default)]
pub struct Clients {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    client: Option<Arc<OwnedFd>>,
    closed: bool,
}

impl Clients {
    /// The client; waits until there is one other than `failed`. `None` after
    /// [`close`](Self::close).
    pub fn wait_for_one(&self, failed: Option<&Arc<OwnedFd>>) -> Option<Arc<OwnedFd>> {
        let mut state = lock(&self.state);
        loop {
            if let Some(client) = &state.client
                && failed.is_none_or(|failed| !Arc::ptr_eq(failed, client))
            {
                return Some(Arc::clone(client));
            }
            if state.closed {
                return None;
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// No client will come any more.
    pub fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        state.client = None;
        self.changed.notify_all();
    }

    fn set(&self, client: Option<Arc<OwnedFd>>) {
        let mut state = lock(&self.state);
        state.client = client.filter(|_| !state.closed);
        self.changed.notify_all();
    }
}

/// Accepts clients, one after the other, and hands what they send to the guest.
pub fn serve(listener: &UnixListener, clients: &Clients, stop: &Stop, input: &ConsoleInput) {
    while let Ok(Ready::File) = stop.wait_for(listener, PollFlags::IN) {
        let accepted = listener
            .accept()
            .and_then(|(stream, _)| stream.set_nonblocking(true).map(|()| stream));
        let client = match accepted {
            Ok(stream) => Arc::new(OwnedFd::from(stream)),
            // The client was quicker to leave.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::ConnectionAborted | ErrorKind::Interrupted
                ) =>
            {
                continue;
            }
            Err(error) => {
                tracing::error!(%error, "the console's socket takes no more clients");
                return;
            }
        };
        clients.set(Some(Arc::clone(&client)));
        descriptor::read(stop, &*client, input);
        clients.set(None);
    }
}
