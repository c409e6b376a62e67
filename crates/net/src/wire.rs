//! The formats of packets, read and written.
//!
//! Parsers take any bytes: they answer with what the bytes say, or with nothing. Writers append to a
//! [`Head`], which has room for all headers of a frame.

pub mod arp;
pub mod checksum;
pub mod dhcp;
pub mod ethernet;
mod head;
pub mod icmp;
pub mod ip;
pub mod tcp;
pub mod udp;

pub use ethernet::Mac;
pub use head::Head;

/// Protocols within IP, by IANA's numbers.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
}

/// A 16-bit number in network order.
pub(crate) fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

/// A 32-bit number in network order.
pub(crate) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}
