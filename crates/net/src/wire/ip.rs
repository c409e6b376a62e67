//! IPv4. RFC 791.

use super::{Head, be16, checksum};
use std::net::Ipv4Addr;

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;
/// Time to live of packets to the guest.
const TTL: u8 = 64;
/// Flags within the field of the fragment's offset.
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;

/// Which part of a packet this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// What the fragments of one packet have in common.
    pub identification: u16,
    /// Where the part lies in the packet's payload, in bytes.
    pub offset: usize,
    /// Further parts follow this one.
    pub more: bool,
}

/// A packet.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// From whom.
    pub source: Ipv4Addr,
    /// To whom.
    pub destination: Ipv4Addr,
    /// What the payload is.
    pub protocol: u8,
    /// Only a part of a packet.
    pub fragment: Option<Fragment>,
    /// The payload.
    pub payload: &'a [u8],
    /// All of the packet, without what padded the frame.
    pub bytes: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads a packet; nothing if it is cut short or its checksum is wrong.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let first = *bytes.first()?;
        let header_len = usize::from(first & 0xf) * 4;
        let len = usize::from(be16(bytes, 2)?);
        if first >> 4 != 4 || header_len < HEADER_LEN || len < header_len {
            return None;
        }
        let bytes = bytes.get(..len)?;
        let (header, payload) = bytes.split_at(header_len);
        if checksum::of(header) != 0 {
            return None;
        }
        let part = be16(header, 6)?;
        let offset = usize::from(part & 0x1fff) * 8;
        let more = part & MORE_FRAGMENTS != 0;
        let address =
            |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
        Some(Self {
            source: address(12),
            destination: address(16),
            protocol: header[9],
            fragment: if more || offset != 0 {
                Some(Fragment {
                    identification: be16(header, 4)?,
                    offset,
                    more,
                })
            } else {
                None
            },
            payload,
            bytes,
        })
    }
}

/// Appends the header of a packet with a payload of `len` bytes.
pub fn write(
    head: &mut Head,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    len: usize,
    fragment: Option<Fragment>,
) {
    let at = head.len();
    head.put(&[0x45, 0]);
    head.put16((HEADER_LEN + len) as u16);
    if let Some(part) = fragment {
        head.put16(part.identification);
        let more = if part.more { MORE_FRAGMENTS } else { 0 };
        head.put16((part.offset / 8) as u16 | more);
    } else {
        head.put16(0);
        head.put16(DONT_FRAGMENT);
    }
    head.put(&[TTL, protocol, 0, 0]);
    head.put(&source.octets());
    head.put(&destination.octets());
    let sum = checksum::of(&head.as_slice()[at..]);
    head.set16(at + 10, sum);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_packet_reads_back_as_it_was_written() {
        let (source, destination) = (Ipv4Addr::new(10, 0, 2, 2), Ipv4Addr::new(10, 0, 2, 15));
        let part = Fragment {
            identification: 77,
            offset: 1480,
            more: true,
        };
        let mut head = Head::default();
        write(&mut head, source, destination, 17, 3, Some(part));
        let mut bytes = head.as_slice().to_vec();
        bytes.extend(b"abc, and padding");
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!((packet.source, packet.destination), (source, destination));
        assert_eq!((packet.protocol, packet.payload), (17, &b"abc"[..]));
        assert_eq!(packet.fragment, Some(part));
        bytes[8] ^= 1;
        assert!(Packet::parse(&bytes).is_none(), "the checksum is wrong");
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some(packet) = Packet::parse(&bytes) {
                prop_assert!(packet.payload.len() + HEADER_LEN <= bytes.len());
            }
        }
    }
}
