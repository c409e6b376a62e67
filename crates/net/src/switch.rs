//! A switch between the machines of one user on one host, without anybody who runs it.
//!
//! A switch is a directory that only the user can enter. Each machine's port is a datagram socket
//! bound in it, and a machine sends its frames to the other ports itself: to the port where the
//! destination was last seen as a source, or to all ports while that is not known. So each machine
//! learns for itself, and the end of any machine ends nothing but its own port; the file that is left
//! of it is removed by the next machine that sends there.
//!
//! A port whose machine does not take frames holds a sender up for a moment at most
//! (20 ms), then loses frames, as a real switch does.

use crate::backend::{Backend, Guest, Progress, Transmit};
use crate::segment;
use crate::vnet::{HEADER_LEN, VnetHeader};
use crate::wire::{Mac, ethernet};
use belljar_clock::{Clock, Entropy, Nanos};
use rustix::fd::{AsFd, BorrowedFd};
use std::collections::HashMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use thiserror::Error;

/// How the names of ports end.
const SUFFIX: &str = "port";
/// The longest path of a socket, without its zero. unix(7).
const LONGEST_PATH: usize = 107;
/// The most ports of a switch.
const MOST_PORTS: usize = 256;
/// Addresses that are remembered.
const MOST_ADDRESSES: usize = 1024;
/// How long an address is remembered that is not heard of.
const MEMORY: u64 = 300 * Nanos::SECOND;
/// How long a port that takes nothing is waited for.
const PATIENCE: u64 = 20_000_000;
/// How often it is tried meanwhile.
const RETRY: u64 = 200_000;
/// How often the directory is looked at, at most.
const LOOK: u64 = 100_000_000;
/// Bytes of buffers that are asked for on each side.
const BUFFERS: usize = 4 << 20;
/// The largest message: a header and a large frame.
const LARGEST: usize = HEADER_LEN + ethernet::HEADER_LEN + 65_535 + 4;
/// Frames that are received in one poll.
const BURST: usize = 64;

/// Why a machine cannot be attached to a switch.
#[derive(Debug, Error)]
pub enum SwitchError {
    /// The directory cannot be made or read.
    #[error("cannot use the switch {}", path.display())]
    Directory {
        /// The switch's directory.
        path: PathBuf,
        /// The host's error.
        #[source]
        source: io::Error,
    },
    /// Others can enter the directory.
    #[error("the switch {} is not this user's alone", .0.display())]
    NotPrivate(PathBuf),
    /// The path does not fit into a socket's address.
    #[error("the path of the switch {} is too long", .0.display())]
    Path(PathBuf),
    /// The port's socket cannot be made.
    #[error("cannot make a port of the switch at {}", path.display())]
    Port {
        /// The port's path.
        path: PathBuf,
        /// The host's error.
        #[source]
        source: io::Error,
    },
}

/// The state of another machine's port.
#[derive(Debug)]
struct Peer {
    path: PathBuf,
    /// Since when it has taken nothing.
    stuck: Option<Nanos>,
}

/// What became of a frame that was sent to a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Done,
    /// The port takes nothing for the moment.
    Full,
    /// There is no such port any more.
    Gone,
}

/// A machine's port of a switch.
#[derive(Debug)]
pub struct SwitchPort {
    clock: Arc<dyn Clock>,
    directory: PathBuf,
    path: PathBuf,
    socket: UnixDatagram,
    peers: Vec<Peer>,
    /// Where addresses were last seen, and when.
    addresses: HashMap<Mac, (PathBuf, Nanos)>,
    /// When the directory was last looked at, and when it had changed.
    looked_at: Option<Nanos>,
    changed: Option<SystemTime>,
    outgoing: Vec<u8>,
    incoming: Box<[u8]>,
    /// A message in `incoming` that the guest had no room for.
    waiting: Option<usize>,
    /// When a frame that was refused is to be tried again.
    retry_at: Option<Nanos>,
}

impl SwitchPort {
    /// Attaches to the switch whose directory is `directory`, which is made if it is not there.
    ///
    /// # Errors
    /// [`SwitchError`].
    pub fn join(
        directory: &Path,
        clock: Arc<dyn Clock>,
        entropy: &dyn Entropy,
    ) -> Result<Self, SwitchError> {
        prepare(directory)?;
        let name = format!("{:016x}.{SUFFIX}", entropy.next_u64());
        let path = directory.join(name);
        if path.as_os_str().len() > LONGEST_PATH {
            return Err(SwitchError::Path(directory.to_owned()));
        }
        let bind = || {
            let socket = UnixDatagram::bind(&path)?;
            fs::set_permissions(&path, Permissions::from_mode(0o600))?;
            socket.set_nonblocking(true)?;
            rustix::net::sockopt::set_socket_send_buffer_size(&socket, BUFFERS)?;
            Ok(socket)
        };
        let socket = bind().map_err(|source| SwitchError::Port {
            path: path.clone(),
            source,
        })?;
        Ok(Self {
            clock,
            directory: directory.to_owned(),
            path,
            socket,
            peers: Vec::new(),
            addresses: HashMap::new(),
            looked_at: None,
            changed: None,
            outgoing: Vec::with_capacity(LARGEST),
            incoming: vec![0; LARGEST].into_boxed_slice(),
            waiting: None,
            retry_at: None,
        })
    }

    /// Looks for ports that have come, if the directory has changed.
    fn refresh(&mut self, now: Nanos) {
        if self.looked_at.is_some_and(|at| now.since(at) < LOOK) {
            return;
        }
        self.looked_at = Some(now);
        let changed = fs::metadata(&self.directory)
            .and_then(|data| data.modified())
            .ok();
        // A change within the clock's grain of the last look would not show: look once more.
        let settled = changed
            .and_then(|at| SystemTime::now().duration_since(at).ok())
            .is_some_and(|age| age.as_millis() > 1000);
        if settled && changed == self.changed {
            return;
        }
        self.changed = changed;
        let Ok(entries) = fs::read_dir(&self.directory) else {
            return;
        };
        let paths: Vec<PathBuf> = entries
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| path.extension().is_some_and(|end| end == SUFFIX) && *path != self.path)
            .take(MOST_PORTS)
            .collect();
        self.peers.retain(|peer| paths.contains(&peer.path));
        for path in paths {
            if !self.peers.iter().any(|peer| peer.path == path) {
                self.peers.push(Peer { path, stuck: None });
            }
        }
    }

    fn send_to(&mut self, index: usize, now: Nanos) -> Sent {
        let Some(peer) = self.peers.get_mut(index) else {
            return Sent::Gone;
        };
        match self.socket.send_to(&self.outgoing, &peer.path) {
            Ok(_) => {
                peer.stuck = None;
                Sent::Done
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                let since = *peer.stuck.get_or_insert(now);
                if now.since(since) < PATIENCE {
                    Sent::Full
                } else {
                    Sent::Done
                }
            }
            Err(error) => {
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionRefused | ErrorKind::NotFound
                ) {
                    // The names of ports are never used again, so nobody else's can be removed.
                    let _ = fs::remove_file(&peer.path);
                    self.peers.swap_remove(index);
                    return Sent::Gone;
                }
                Sent::Done
            }
        }
    }

    /// Sends what is in `outgoing` to every port.
    fn flood(&mut self, now: Nanos) {
        self.refresh(now);
        for index in (0..self.peers.len()).rev() {
            // Who takes nothing loses it: a flood waits for nobody.
            self.send_to(index, now);
        }
    }

    /// The port where an address was last seen.
    fn find(&mut self, address: Mac, now: Nanos) -> Option<usize> {
        let (path, seen) = self.addresses.get(&address)?;
        if now.since(*seen) > MEMORY {
            self.addresses.remove(&address);
            return None;
        }
        self.peers.iter().position(|peer| peer.path == *path)
    }

    fn learn(&mut self, address: Mac, path: &Path, now: Nanos) {
        if address.is_group() {
            return;
        }
        if let Some((known, seen)) = self.addresses.get_mut(&address) {
            if known != path {
                path.clone_into(known);
            }
            *seen = now;
            return;
        }
        if self.addresses.len() >= MOST_ADDRESSES {
            self.addresses
                .retain(|_, (_, seen)| now.since(*seen) < MEMORY);
        }
        if self.addresses.len() < MOST_ADDRESSES {
            self.addresses.insert(address, (path.to_owned(), now));
        }
        if !self.peers.iter().any(|peer| peer.path == path) && self.peers.len() < MOST_PORTS {
            self.peers.push(Peer {
                path: path.to_owned(),
                stuck: None,
            });
        }
    }

    /// The path of a port of this switch.
    fn port_of(&self, from: &SocketAddr) -> Option<PathBuf> {
        let path = from.as_pathname()?;
        (path.parent() == Some(&self.directory)).then(|| path.to_owned())
    }

    /// Delivers the message of `len` bytes in `incoming`.
    fn deliver(&self, len: usize, guest: &mut dyn Guest) -> bool {
        let message = &self.incoming[..len];
        match (VnetHeader::parse(message), message.get(HEADER_LEN..)) {
            (Some(header), Some(frame)) => segment::deliver(guest, header, frame),
            _ => true,
        }
    }
}

/// The directory of the user's switch `name`, in the folder where Belljar keeps what lives no longer
/// than its machines: `BELLJAR_RUNTIME_DIR` if that is set, else `belljar` in `XDG_RUNTIME_DIR` or
/// `/run/user/UID`, else `/tmp/belljar-UID`.
///
/// # Errors
/// [`SwitchError::Directory`] and [`SwitchError::NotPrivate`], of the folders in which it lies.
pub fn directory(name: &str) -> Result<PathBuf, SwitchError> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let user = rustix::process::getuid().as_raw();
    let home = set("BELLJAR_RUNTIME_DIR").map_or_else(
        || {
            let candidates = [
                set("XDG_RUNTIME_DIR").map(PathBuf::from),
                Some(PathBuf::from(format!("/run/user/{user}"))),
            ];
            let session = candidates.into_iter().flatten().find(|path| path.is_dir());
            session.map_or_else(
                || PathBuf::from(format!("/tmp/belljar-{user}")),
                |session| session.join("belljar"),
            )
        },
        PathBuf::from,
    );
    let switches = home.join(".switch");
    prepare(&home)?;
    prepare(&switches)?;
    Ok(switches.join(name))
}

/// Makes the directory of a switch, and looks whether it is the user's alone.
fn prepare(directory: &Path) -> Result<(), SwitchError> {
    let failed = |source| SwitchError::Directory {
        path: directory.to_owned(),
        source,
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(failed)?;
    let data = fs::symlink_metadata(directory).map_err(failed)?;
    let own = data.uid() == rustix::process::geteuid().as_raw();
    if !data.is_dir() || !own || data.mode() & 0o077 != 0 {
        return Err(SwitchError::NotPrivate(directory.to_owned()));
    }
    Ok(())
}

impl Backend for SwitchPort {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn deadline(&self) -> Option<Nanos> {
        self.retry_at
    }

    fn transmit(&mut self, header: VnetHeader, frame: &[u8], _: &mut dyn Guest) -> Transmit {
        let Some(parsed) = ethernet::Frame::parse(frame) else {
            return Transmit::Taken;
        };
        let now = self.clock.now();
        self.outgoing.clear();
        self.outgoing.extend_from_slice(&header.encode(1));
        self.outgoing.extend_from_slice(frame);
        let target = if parsed.destination.is_group() {
            None
        } else {
            self.find(parsed.destination, now)
        };
        match target.map(|index| self.send_to(index, now)) {
            None => self.flood(now),
            Some(Sent::Done | Sent::Gone) => {}
            Some(Sent::Full) => {
                self.retry_at = Some(now.after(RETRY));
                return Transmit::Busy;
            }
        }
        Transmit::Taken
    }

    fn poll(&mut self, guest: &mut dyn Guest) -> Progress {
        self.retry_at = None;
        if let Some(len) = self.waiting {
            if !self.deliver(len, guest) {
                return Progress::Starved;
            }
            self.waiting = None;
        }
        for _ in 0..BURST {
            let Ok((len, from)) = self.socket.recv_from(&mut self.incoming) else {
                return Progress::Idle;
            };
            let source = self
                .incoming
                .get(HEADER_LEN..len)
                .and_then(ethernet::Frame::parse);
            let (Some(path), Some(source)) = (self.port_of(&from), source.map(|f| f.source)) else {
                continue;
            };
            let now = self.clock.now();
            self.learn(source, &path, now);
            if !self.deliver(len, guest) {
                self.waiting = Some(len);
                return Progress::Starved;
            }
        }
        Progress::More
    }

    fn reset(&mut self) {
        self.waiting = None;
        self.retry_at = None;
    }
}

impl Drop for SwitchPort {
    fn drop(&mut self) {
        // If it cannot be removed, the next machine that sends there will.
        let _ = fs::remove_file(&self.path);
    }
}
