//! The seam between a card and the network that it is attached to.

use crate::VnetHeader;
use belljar_clock::Nanos;
use rustix::fd::BorrowedFd;
use std::fmt::Debug;

/// What the guest's driver takes without that it is done for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GuestOffloads {
    /// Frames with partial checksums.
    pub checksum: bool,
    /// Large frames of TCP over IPv4.
    pub tcp4: bool,
    /// Large frames of TCP over IPv6.
    pub tcp6: bool,
}

/// The guest's side of a card: where a network delivers frames.
pub trait Guest {
    /// What the driver takes.
    fn offloads(&self) -> GuestOffloads;

    /// Whether a frame of `len` bytes can be delivered now.
    fn room(&mut self, len: usize) -> bool;

    /// Delivers a frame that is made of `parts`, or answers false because there is no room: then
    /// nothing was delivered.
    fn deliver(&mut self, header: VnetHeader, parts: &[&[u8]]) -> bool;
}

/// What became of a frame that the guest sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transmit {
    /// The network has taken it, or thrown it away.
    Taken,
    /// The network cannot take it now: it is to be offered again after the next
    /// [`poll`](Backend::poll).
    Busy,
}

/// How far a network has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is nothing to do until [`Backend::fd`] is readable or [`Backend::deadline`] has come.
    Idle,
    /// There is more to do at once.
    More,
    /// There is more to do, when the guest has room for it.
    Starved,
}

/// A network, as the thread of a card sees it. No call waits.
pub trait Backend: Send + Debug {
    /// A file descriptor that is readable when [`poll`](Self::poll) has something to do.
    fn fd(&self) -> BorrowedFd<'_>;

    /// When [`poll`](Self::poll) has something to do even if nothing happens.
    fn deadline(&self) -> Option<Nanos>;

    /// Takes a frame that the guest sends. Frames that it is answered with may be delivered at once.
    fn transmit(&mut self, header: VnetHeader, frame: &[u8], guest: &mut dyn Guest) -> Transmit;

    /// Does what is to be done: answers to what was transmitted, what the host's sockets have, what
    /// the time has come for. Does a bounded amount of work.
    fn poll(&mut self, guest: &mut dyn Guest) -> Progress;

    /// Forgets what the guest had open: its driver was reset.
    fn reset(&mut self);
}
