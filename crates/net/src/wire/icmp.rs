//! ICMP for IPv4. RFC 792.

use super::checksum::{self, Checksum};
use super::{Head, be16};

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;
/// Types.
const ECHO_REPLY: u8 = 0;
const UNREACHABLE: u8 = 3;
const ECHO_REQUEST: u8 = 8;
/// How much of a packet's payload an error quotes.
const QUOTED: usize = 8;

/// Why something cannot be reached: the code of the message. RFC 1122, 3.2.2.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// There is no way to the network.
    Network = 0,
    /// The host does not answer.
    Host = 1,
    /// The protocol is not spoken.
    Protocol = 2,
    /// Nobody listens at the port.
    Port = 3,
    /// It is forbidden.
    Prohibited = 13,
}

/// A request for an echo, or an answer to one.
#[derive(Clone, Copy, Debug)]
pub struct Echo<'a> {
    /// A request, not an answer.
    pub is_request: bool,
    /// Whose it is.
    pub identifier: u16,
    /// Which of them.
    pub sequence: u16,
    /// What is to be sent back.
    pub payload: &'a [u8],
}

impl<'a> Echo<'a> {
    /// Reads an echo; nothing if it is something else or its checksum is wrong.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let kind = *bytes.first()?;
        if !matches!(kind, ECHO_REQUEST | ECHO_REPLY) || *bytes.get(1)? != 0 {
            return None;
        }
        let identifier = be16(bytes, 4)?;
        let sequence = be16(bytes, 6)?;
        (checksum::of(bytes) == 0).then_some(Self {
            is_request: kind == ECHO_REQUEST,
            identifier,
            sequence,
            payload: bytes.get(HEADER_LEN..)?,
        })
    }

    /// Appends the header, with the checksum over `payload` too.
    pub fn write(&self, head: &mut Head) {
        let at = head.len();
        let kind = if self.is_request {
            ECHO_REQUEST
        } else {
            ECHO_REPLY
        };
        head.put(&[kind, 0, 0, 0]);
        head.put16(self.identifier);
        head.put16(self.sequence);
        finish(head, at, self.payload);
    }
}

/// What an error quotes of the packet that it is about, whose header is `header_len` bytes long.
pub fn quote(packet: &[u8], header_len: usize) -> &[u8] {
    &packet[..packet.len().min(header_len + QUOTED)]
}

/// Appends the header of an error about a packet of which it quotes `quoted`.
pub fn write_unreachable(head: &mut Head, why: Unreachable, quoted: &[u8]) {
    let at = head.len();
    head.put(&[UNREACHABLE, why as u8, 0, 0, 0, 0, 0, 0]);
    finish(head, at, quoted);
}

fn finish(head: &mut Head, at: usize, payload: &[u8]) {
    let mut sum = Checksum::default();
    sum.add(&head.as_slice()[at..]);
    sum.add(payload);
    head.set16(at + 2, sum.finish());
}
