//! A tap device of the host: frames go to and come from the host's own network stack, with virtio's
//! header, so that neither side computes checksums or cuts large frames that the other takes whole.

use crate::backend::{Backend, Guest, GuestOffloads, Progress, Transmit};
use crate::segment;
use crate::vnet::{HEADER_LEN, VnetHeader};
use crate::wire::ethernet;
use belljar_clock::Nanos;
use belljar_tap::{Offloads, Tap};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::{Errno, read, writev};
use std::io::{self, IoSlice};
use thiserror::Error;

/// The largest message: a header and a large frame.
const LARGEST: usize = HEADER_LEN + ethernet::HEADER_LEN + 65_535 + 4;
/// Frames that are received in one poll.
const BURST: usize = 64;

/// The tap device cannot be used.
#[derive(Debug, Error)]
#[error("cannot attach to the tap device {name}")]
pub struct TapError {
    name: String,
    #[source]
    source: io::Error,
}

/// A network that is a tap device of the host.
#[derive(Debug)]
pub struct TapPort {
    tap: Tap,
    /// What the host was told that the guest takes.
    told: Option<GuestOffloads>,
    incoming: Box<[u8]>,
    /// A message in `incoming` that the guest had no room for.
    waiting: Option<usize>,
}

impl TapPort {
    /// Attaches to the tap device `name`.
    ///
    /// # Errors
    /// When there is no such device, it is another user's, or in use.
    pub fn attach(name: &str) -> Result<Self, TapError> {
        let tap = Tap::attach(name).map_err(|source| TapError {
            name: name.to_owned(),
            source,
        })?;
        Ok(Self {
            tap,
            told: None,
            incoming: vec![0; LARGEST].into_boxed_slice(),
            waiting: None,
        })
    }

    fn tell(&mut self, offloads: GuestOffloads) {
        if self.told == Some(offloads) {
            return;
        }
        self.told = Some(offloads);
        // If the host does not listen, what it leaves undone is done before it is delivered.
        let _ = self.tap.set_offloads(Offloads {
            checksum: offloads.checksum,
            tcp4: offloads.tcp4,
            tcp6: offloads.tcp6,
        });
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

impl Backend for TapPort {
    fn fd(&self) -> BorrowedFd<'_> {
        self.tap.fd().as_fd()
    }

    fn deadline(&self) -> Option<Nanos> {
        None
    }

    fn transmit(&mut self, header: VnetHeader, frame: &[u8], _: &mut dyn Guest) -> Transmit {
        let header = header.encode(0);
        // What the host does not take is lost: its interface is down, or its queue is full.
        while let Err(Errno::INTR) =
            writev(self.tap.fd(), &[IoSlice::new(&header), IoSlice::new(frame)])
        {}
        Transmit::Taken
    }

    fn poll(&mut self, guest: &mut dyn Guest) -> Progress {
        self.tell(guest.offloads());
        if let Some(len) = self.waiting {
            if !self.deliver(len, guest) {
                return Progress::Starved;
            }
            self.waiting = None;
        }
        for _ in 0..BURST {
            let len = match read(self.tap.fd(), &mut *self.incoming) {
                Ok(len) => len,
                Err(Errno::INTR) => continue,
                Err(_) => return Progress::Idle,
            };
            if !self.deliver(len, guest) {
                self.waiting = Some(len);
                return Progress::Starved;
            }
        }
        Progress::More
    }

    fn reset(&mut self) {
        self.waiting = None;
        self.told = None;
    }
}
