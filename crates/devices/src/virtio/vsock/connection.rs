//! One stream between a socket of the host and one of the guest.

use super::packet::{NO_RECEIVE, NO_SEND, Operation};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::collections::VecDeque;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// Bytes from the guest that wait for the host at most: what the guest is told that there is room
/// for.
pub const ROOM: u32 = 128 << 10;

/// Where a connection is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The guest was asked.
    Requested,
    /// Bytes flow.
    Open,
    /// The guest knows it no more; what it sent is still being handed to the host.
    Gone,
}

/// What a stream of the host says first when the guest has answered.
#[derive(Clone, Debug, Default)]
pub struct Greetings {
    /// When the guest accepts: before all that the guest sends.
    pub accepted: Vec<u8>,
    /// When it refuses: before the end.
    pub refused: Vec<u8>,
}

/// What was done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The connection goes on.
    Keep,
    /// It is over, and the guest knows.
    Remove,
    /// It is over, and the guest must be told by a reset.
    Reset,
}

/// What a packet for the guest is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// What it is for.
    pub operation: Operation,
    /// Flags of a shutdown.
    pub flags: u32,
    /// Bytes of data.
    pub length: usize,
}

impl Outgoing {
    fn plain(operation: Operation) -> Self {
        Self {
            operation,
            flags: 0,
            length: 0,
        }
    }
}

/// A stream. See the [module](self).
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    greetings: Greetings,
    stage: Stage,
    /// What waits for the host's socket: greetings, and at most [`ROOM`] bytes of the guest's.
    to_host: VecDeque<u8>,
    /// Bytes of the greeting among them, which are none of the guest's.
    greeting: usize,
    /// Bytes that the host's socket has taken, modulo 2^32, and the number that the guest was told.
    passed_on: u32,
    told: u32,
    /// Bytes that were sent to the guest, modulo 2^32, and what it says about its room.
    sent: u32,
    guest_room: u32,
    guest_passed_on: u32,
    /// The guest said that it sends, or receives, no more.
    guest_sends: bool,
    guest_receives: bool,
    /// The host's socket has no more to say.
    host_sends: bool,
    /// The host's socket has something to say, or was not asked yet.
    readable: bool,
    /// Nobody has the other end of the host's socket any more.
    closed: bool,
    owes_request: bool,
    owes_credit: bool,
    owes_shutdown: bool,
}

impl Connection {
    /// The connection that `stream` of the host asks for.
    pub fn request(stream: UnixStream, greetings: Greetings) -> Self {
        Self {
            stream,
            greetings,
            stage: Stage::Requested,
            to_host: VecDeque::new(),
            greeting: 0,
            passed_on: 0,
            told: 0,
            sent: 0,
            guest_room: 0,
            guest_passed_on: 0,
            guest_sends: true,
            guest_receives: true,
            host_sends: true,
            readable: false,
            closed: false,
            owes_request: true,
            owes_credit: false,
            owes_shutdown: false,
        }
    }

    /// What the guest says about its room, in every packet.
    pub fn learn_credit(&mut self, room: u32, passed_on: u32) {
        self.guest_room = room;
        self.guest_passed_on = passed_on;
    }

    /// Bytes that may be sent to the guest. One that says nonsense gets nothing.
    fn credit(&self) -> u32 {
        let on_the_way = self.sent.wrapping_sub(self.guest_passed_on);
        self.guest_room.saturating_sub(on_the_way)
    }

    /// What is told of this side's room.
    pub fn tell_credit(&mut self) -> (u32, u32) {
        self.told = self.passed_on;
        self.owes_credit = false;
        (ROOM, self.passed_on)
    }

    /// Takes a packet other than data.
    pub fn control(&mut self, operation: Operation, flags: u32) -> Verdict {
        match (operation, self.stage) {
            (Operation::Response, Stage::Requested) => {
                self.stage = Stage::Open;
                self.readable = true;
                self.greeting = self.greetings.accepted.len();
                self.to_host.extend(self.greetings.accepted.drain(..));
                self.flush()
            }
            (Operation::Reset, Stage::Requested) => {
                // Whoever asked may have left.
                let _ = send(&self.stream, &self.greetings.refused, SendFlags::NOSIGNAL);
                Verdict::Remove
            }
            (Operation::Reset, Stage::Open) => self.finish(Verdict::Remove),
            (Operation::Shutdown, Stage::Open) => {
                self.guest_receives &= flags & NO_RECEIVE == 0;
                self.guest_sends &= flags & NO_SEND == 0;
                if !self.guest_receives && !self.guest_sends {
                    return self.finish(Verdict::Reset);
                }
                self.flush()
            }
            (Operation::CreditRequest, Stage::Open) => {
                self.owes_credit = true;
                Verdict::Keep
            }
            (Operation::CreditUpdate, Stage::Open) => Verdict::Keep,
            _ => Verdict::Reset,
        }
    }

    /// Takes data.
    pub fn data(&mut self, bytes: &[u8]) -> Verdict {
        let waiting = self.to_host.len() - self.greeting;
        let fits = waiting + bytes.len() <= ROOM as usize;
        if self.stage != Stage::Open || !self.guest_sends || !fits {
            return Verdict::Reset;
        }
        self.to_host.extend(bytes);
        self.flush()
    }

    /// Lets the connection end once the host has what the guest sent.
    fn finish(&mut self, verdict: Verdict) -> Verdict {
        if self.flush() != Verdict::Keep || self.to_host.is_empty() {
            return verdict;
        }
        self.stage = Stage::Gone;
        self.guest_sends = false;
        // The guest may use the port anew: it is told now, and this is only a remainder.
        if verdict == Verdict::Reset {
            Verdict::Reset
        } else {
            Verdict::Keep
        }
    }

    /// Whether the guest knows the connection no more, but the host still has something to get.
    pub fn is_remainder(&self) -> bool {
        self.stage == Stage::Gone && !self.to_host.is_empty()
    }

    /// Hands to the host's socket what it takes now.
    pub fn flush(&mut self) -> Verdict {
        while !self.to_host.is_empty() {
            let (bytes, _) = self.to_host.as_slices();
            match send(&self.stream, bytes, SendFlags::NOSIGNAL) {
                Ok(count) => {
                    self.to_host.drain(..count);
                    let own = count.min(self.greeting);
                    self.greeting -= own;
                    self.passed_on = self.passed_on.wrapping_add((count - own) as u32);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return self.over(),
            }
        }
        // The guest is told in time, so that it need not wait, but not of every byte.
        self.owes_credit |= self.passed_on.wrapping_sub(self.told) >= ROOM / 4;
        if self.to_host.is_empty() {
            if self.stage == Stage::Gone {
                return Verdict::Remove;
            }
            if !self.guest_sends {
                // It may have ended already.
                let _ = self.stream.shutdown(Shutdown::Write);
            }
        }
        Verdict::Keep
    }

    /// The host's socket is closed.
    fn over(&self) -> Verdict {
        match self.stage {
            Stage::Gone => Verdict::Remove,
            Stage::Requested | Stage::Open => Verdict::Reset,
        }
    }

    /// The host's socket has something to read, or has been closed in both directions.
    pub fn set_ready(&mut self, readable: bool, closed: bool) -> Verdict {
        self.readable |= readable;
        if !closed {
            return Verdict::Keep;
        }
        if self.stage != Stage::Open || !self.host_sends {
            return self.over();
        }
        // What was written before it was closed is still there; nobody gets what waits for it.
        self.closed = true;
        self.readable = true;
        self.to_host.clear();
        self.greeting = 0;
        Verdict::Keep
    }

    /// What is to be waited for at the host's socket: reading, writing. `None` if it need not be
    /// looked at.
    pub fn interest(&self) -> Option<(bool, bool)> {
        let reads = self.stage == Stage::Open
            && self.host_sends
            && self.guest_receives
            && !self.readable
            && self.credit() > 0;
        let writes = !self.to_host.is_empty();
        (reads || writes || self.stage == Stage::Requested).then_some((reads, writes))
    }

    /// Whether there is, or may be, something for the guest.
    pub fn wants_to_send(&self) -> bool {
        let reads = self.readable && self.host_sends && self.guest_receives && self.credit() > 0;
        match self.stage {
            Stage::Requested => self.owes_request,
            Stage::Open => self.owes_credit || self.owes_shutdown || reads,
            Stage::Gone => false,
        }
    }

    /// The next packet for the guest, whose data, as much as fits, is put into `data`.
    pub fn next(&mut self, data: &mut [u8]) -> Option<Outgoing> {
        if !self.wants_to_send() {
            return None;
        }
        if std::mem::take(&mut self.owes_request) {
            return Some(Outgoing::plain(Operation::Request));
        }
        if let Some(outgoing) = self.read(data) {
            return Some(outgoing);
        }
        if std::mem::take(&mut self.owes_shutdown) {
            let flags = if self.closed {
                NO_SEND | NO_RECEIVE
            } else {
                NO_SEND
            };
            return Some(Outgoing {
                flags,
                ..Outgoing::plain(Operation::Shutdown)
            });
        }
        self.owes_credit
            .then(|| Outgoing::plain(Operation::CreditUpdate))
    }

    fn read(&mut self, data: &mut [u8]) -> Option<Outgoing> {
        let most = (self.credit() as usize).min(data.len());
        if !self.readable || !self.host_sends || !self.guest_receives || most == 0 {
            return None;
        }
        loop {
            match recv(&self.stream, &mut data[..most], RecvFlags::empty()) {
                Ok((_, count)) if count > 0 => {
                    self.sent = self.sent.wrapping_add(count as u32);
                    return Some(Outgoing {
                        length: count,
                        ..Outgoing::plain(Operation::Data)
                    });
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.readable = false;
                    return None;
                }
                Ok(_) | Err(_) => {
                    self.host_sends = false;
                    self.owes_shutdown = true;
                    return None;
                }
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
