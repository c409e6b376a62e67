//! All streams of a socket device, and the packets that go to and come from them.
//!
//! Memory is bounded whatever the guest sends: connections are counted, each holds at most
//! [`ROOM`](super::connection::ROOM) bytes of the guest's, and a reset that finds no place among
//! those that wait is dropped, which the guest's own time limits make good.

use super::connection::{Connection, Greetings, Verdict};
use super::packet::{HOST, Header, Operation, STREAM};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;

/// Connections at a time.
pub const MOST_CONNECTIONS: usize = 256;
/// Resets that wait for a buffer of the guest.
const MOST_RESETS: usize = 256;
/// The first port that streams of the host get; the lower ones are for those who listen.
const FIRST_PORT: u32 = 1 << 30;

/// The ports of a connection: the host's and the guest's.
pub type Ports = (u32, u32);

/// What is to be waited for at a host's socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// The connection.
    pub ports: Ports,
    /// That it can be read.
    pub reads: bool,
    /// That it can be written.
    pub writes: bool,
}

/// The table. See the [module](self).
#[derive(Debug)]
pub struct Table {
    /// The guest's number.
    guest: u64,
    connections: BTreeMap<Ports, Connection>,
    resets: VecDeque<Ports>,
    next_port: u32,
    /// The connection that was served last: the next one's turn is now.
    served: Ports,
}

impl Table {
    /// No connections with the guest whose number is `guest`.
    pub fn new(guest: u64) -> Self {
        Self {
            guest,
            connections: BTreeMap::new(),
            resets: VecDeque::new(),
            next_port: FIRST_PORT,
            served: (0, 0),
        }
    }

    /// Closes all connections without a word to the guest, which has forgotten them.
    pub fn clear(&mut self) {
        self.connections.clear();
        self.resets.clear();
    }

    /// Asks the guest for a connection of `stream`, which does not block, to its port `port`. If
    /// there are too many, the stream is closed.
    pub fn dial(&mut self, port: u32, stream: UnixStream, greetings: Greetings) {
        if self.connections.len() >= MOST_CONNECTIONS {
            return;
        }
        while self.connections.contains_key(&(self.next_port, port)) {
            self.advance_port();
        }
        let ports = (self.next_port, port);
        self.advance_port();
        self.connections
            .insert(ports, Connection::request(stream, greetings));
    }

    fn advance_port(&mut self) {
        self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
    }

    /// Takes a packet of the guest.
    pub fn receive(&mut self, header: &Header, data: &[u8]) {
        if header.source != self.guest || header.destination != HOST {
            return;
        }
        let ports = (header.destination_port, header.source_port);
        let known = self
            .connections
            .get_mut(&ports)
            .filter(|connection| header.kind == STREAM && !connection.is_remainder());
        let Some(connection) = known else {
            // Nobody listens on the host; and a reset is not answered, or there would be no end.
            if header.operation != Some(Operation::Reset) {
                self.reset(ports);
            }
            return;
        };
        connection.learn_credit(header.room, header.passed_on);
        let verdict = match header.operation {
            Some(Operation::Data) => connection.data(data),
            Some(operation) => connection.control(operation, header.flags),
            None => Verdict::Reset,
        };
        self.judge(ports, verdict);
    }

    fn judge(&mut self, ports: Ports, verdict: Verdict) {
        if verdict == Verdict::Keep {
            return;
        }
        if verdict == Verdict::Reset {
            self.reset(ports);
        }
        let over = |connection: &Connection| !connection.is_remainder();
        if self.connections.get(&ports).is_some_and(over) {
            self.connections.remove(&ports);
        }
    }

    fn reset(&mut self, ports: Ports) {
        if self.resets.len() < MOST_RESETS {
            self.resets.push_back(ports);
        }
    }

    /// Whether there is, or may be, a packet for the guest.
    pub fn wants_to_send(&self) -> bool {
        !self.resets.is_empty() || self.connections.values().any(Connection::wants_to_send)
    }

    /// The next packet for the guest, whose data, as much as fits, is put into `data`. The
    /// connections take turns.
    pub fn next(&mut self, data: &mut [u8]) -> Option<Header> {
        if let Some(ports) = self.resets.pop_front() {
            return Some(self.header(ports, Operation::Reset));
        }
        let after = (Bound::Excluded(self.served), Bound::Unbounded);
        let turns: Vec<Ports> = self
            .connections
            .range(after)
            .chain(self.connections.range(..=self.served))
            .filter(|(_, connection)| connection.wants_to_send())
            .map(|(ports, _)| *ports)
            .collect();
        for ports in turns {
            let Some(connection) = self.connections.get_mut(&ports) else {
                continue;
            };
            if let Some(outgoing) = connection.next(data) {
                let (room, passed_on) = connection.tell_credit();
                self.served = ports;
                return Some(Header {
                    length: outgoing.length as u32,
                    flags: outgoing.flags,
                    room,
                    passed_on,
                    ..self.header(ports, outgoing.operation)
                });
            }
        }
        None
    }

    fn header(&self, ports: Ports, operation: Operation) -> Header {
        Header {
            source: HOST,
            destination: self.guest,
            source_port: ports.0,
            destination_port: ports.1,
            length: 0,
            kind: STREAM,
            operation: Some(operation),
            flags: 0,
            room: 0,
            passed_on: 0,
        }
    }

    /// What is to be waited for.
    pub fn interests(&self) -> Vec<(Interest, BorrowedFd<'_>)> {
        use std::os::fd::AsFd;
        self.connections
            .iter()
            .filter_map(|(ports, connection)| {
                let (reads, writes) = connection.interest()?;
                let interest = Interest {
                    ports: *ports,
                    reads,
                    writes,
                };
                Some((interest, connection.as_fd()))
            })
            .collect()
    }

    /// A host's socket can be read, can be written, or was closed in both directions.
    pub fn ready(&mut self, ports: Ports, readable: bool, writable: bool, closed: bool) {
        let Some(connection) = self.connections.get_mut(&ports) else {
            return;
        };
        let mut verdict = Verdict::Keep;
        if writable && !closed {
            verdict = connection.flush();
        }
        if verdict == Verdict::Keep {
            verdict = connection.set_ready(readable, closed);
        }
        self.judge(ports, verdict);
    }

    /// How many connections there are.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.connections.len()
    }
}
