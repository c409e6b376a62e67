//! UDP. RFC 768.

use super::checksum::Checksum;
use super::{Head, be16, protocol};
use std::net::IpAddr;

/// Bytes of the header.
pub const HEADER_LEN: usize = 8;

/// A datagram.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// From which port.
    pub source: u16,
    /// To which port.
    pub destination: u16,
    /// What it carries.
    pub payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// Reads a datagram between two addresses; nothing if it is cut short or its checksum is wrong.
    /// `partial`: the checksum was left to us, and nothing could have changed on the way.
    pub fn parse(
        bytes: &'a [u8],
        source: IpAddr,
        destination: IpAddr,
        partial: bool,
    ) -> Option<Self> {
        let len = usize::from(be16(bytes, 4)?);
        if len < HEADER_LEN {
            return None;
        }
        let bytes = bytes.get(..len)?;
        if !partial && be16(bytes, 6)? != 0 {
            let mut sum = Checksum::pseudo(source, destination, protocol::UDP, len);
            sum.add(bytes);
            if sum.finish() != 0 {
                return None;
            }
        }
        Some(Self {
            source: be16(bytes, 0)?,
            destination: be16(bytes, 2)?,
            payload: &bytes[HEADER_LEN..],
        })
    }
}

/// Appends the header of a datagram whose payload is `payload`, with its checksum.
pub fn write(head: &mut Head, source: (IpAddr, u16), destination: (IpAddr, u16), payload: &[u8]) {
    let at = head.len();
    let len = HEADER_LEN + payload.len();
    head.put16(source.1);
    head.put16(destination.1);
    head.put16(len as u16);
    head.put16(0);
    let mut sum = Checksum::pseudo(source.0, destination.0, protocol::UDP, len);
    sum.add(&head.as_slice()[at..]);
    sum.add(payload);
    // Zero would mean that there is no checksum.
    let sum = match sum.finish() {
        0 => 0xffff,
        sum => sum,
    };
    head.set16(at + 6, sum);
}
