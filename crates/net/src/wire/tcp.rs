//! TCP's segments. RFC 9293, 3.1; options of RFC 7323.

use super::checksum::Checksum;
use super::{Head, be16, be32, protocol};
use std::net::IpAddr;

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;
/// Where the checksum lies in the header.
pub const CHECKSUM_OFFSET: u16 = 16;
/// The largest shift of the window. RFC 7323, 2.3.
const MOST_SHIFT: u8 = 14;

/// Control bits.
pub mod flags {
    /// No more data from the sender.
    pub const FIN: u8 = 1;
    /// Synchronize sequence numbers.
    pub const SYN: u8 = 2;
    /// Reset the connection.
    pub const RST: u8 = 4;
    /// Push.
    pub const PSH: u8 = 8;
    /// The acknowledgment is significant.
    pub const ACK: u8 = 16;
}

/// A number in the circle of sequence numbers.
pub type Seq = u32;

/// How far `to` is after `from`, negative if it is before.
pub fn distance(from: Seq, to: Seq) -> i64 {
    i64::from(to.wrapping_sub(from) as i32)
}

/// A header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// From which port.
    pub source: u16,
    /// To which port.
    pub destination: u16,
    /// Sequence number of the first byte.
    pub sequence: Seq,
    /// The next sequence number expected.
    pub acknowledgment: Seq,
    /// Control bits.
    pub flags: u8,
    /// The window, not scaled.
    pub window: u16,
    /// Option: the largest segment that the sender takes.
    pub mss: Option<u16>,
    /// Option: by how many bits windows are to be shifted.
    pub shift: Option<u8>,
}

impl Header {
    /// Whether all of `bits` are set.
    pub fn has(&self, bits: u8) -> bool {
        self.flags & bits == bits
    }
}

/// Reads a segment between two addresses: its header and its payload. Nothing if it is cut short or
/// its checksum is wrong; `partial`: the checksum was left to us.
pub fn parse(
    bytes: &[u8],
    source: IpAddr,
    destination: IpAddr,
    partial: bool,
) -> Option<(Header, &[u8])> {
    let header_len = usize::from(*bytes.get(12)? >> 4) * 4;
    if header_len < HEADER_LEN || header_len > bytes.len() {
        return None;
    }
    if !partial {
        let mut sum = Checksum::pseudo(source, destination, protocol::TCP, bytes.len());
        sum.add(bytes);
        if sum.finish() != 0 {
            return None;
        }
    }
    let mut header = Header {
        source: be16(bytes, 0)?,
        destination: be16(bytes, 2)?,
        sequence: be32(bytes, 4)?,
        acknowledgment: be32(bytes, 8)?,
        flags: bytes[13],
        window: be16(bytes, 14)?,
        mss: None,
        shift: None,
    };
    parse_options(&bytes[HEADER_LEN..header_len], &mut header);
    Some((header, &bytes[header_len..]))
}

/// Reads options as far as they make sense.
fn parse_options(mut options: &[u8], header: &mut Header) {
    while let Some((&kind, rest)) = options.split_first() {
        match kind {
            0 => return,
            1 => {
                options = rest;
                continue;
            }
            _ => {}
        }
        let Some(&len) = rest.first() else { return };
        let len = usize::from(len);
        let Some(value) = options.get(2..len) else {
            return;
        };
        match (kind, value) {
            (2, &[high, low]) => header.mss = Some(u16::from_be_bytes([high, low])),
            (3, &[shift]) => header.shift = Some(shift.min(MOST_SHIFT)),
            _ => {}
        }
        options = &options[len..];
    }
}

/// Bytes of the header that [`write()`] makes of `header`.
pub fn header_len(header: &Header) -> usize {
    let mss = if header.mss.is_some() { 4 } else { 0 };
    let shift = if header.shift.is_some() { 4 } else { 0 };
    HEADER_LEN + mss + shift
}

/// Appends a header whose checksum is still zero.
pub fn write(head: &mut Head, header: &Header) {
    head.put16(header.source);
    head.put16(header.destination);
    head.put32(header.sequence);
    head.put32(header.acknowledgment);
    head.put(&[(header_len(header) as u8 / 4) << 4, header.flags]);
    head.put16(header.window);
    head.put32(0);
    if let Some(mss) = header.mss {
        head.put(&[2, 4]);
        head.put16(mss);
    }
    if let Some(shift) = header.shift {
        head.put(&[1, 3, 3, shift]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2));
    const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 15));

    #[test]
    fn a_segment_reads_back_as_it_was_written() {
        let header = Header {
            source: 80,
            destination: 4000,
            sequence: u32::MAX,
            acknowledgment: 9,
            flags: flags::SYN | flags::ACK,
            window: 512,
            mss: Some(1460),
            shift: Some(7),
        };
        let mut head = Head::default();
        write(&mut head, &header);
        assert_eq!(head.len(), header_len(&header));
        let mut sum = Checksum::pseudo(HERE, THERE, protocol::TCP, head.len() + 3);
        sum.add(head.as_slice());
        sum.add(b"abc");
        head.set16(16, sum.finish());
        let bytes = [head.as_slice(), b"abc"].concat();
        assert_eq!(
            parse(&bytes, HERE, THERE, false),
            Some((header, &b"abc"[..]))
        );
        assert_eq!(parse(&bytes, HERE, HERE, false), None);
    }

    #[test]
    fn sequence_numbers_go_around() {
        assert_eq!(distance(u32::MAX, 2), 3);
        assert_eq!(distance(2, u32::MAX), -3);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some((_, payload)) = parse(&bytes, HERE, THERE, true) {
                prop_assert!(payload.len() + HEADER_LEN <= bytes.len());
            }
        }
    }
}
