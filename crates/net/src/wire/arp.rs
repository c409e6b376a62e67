//! ARP for IPv4 over Ethernet. RFC 826.

use super::{Head, Mac, be16};
use std::net::Ipv4Addr;

/// Bytes of a packet.
const LEN: usize = 28;
/// Hardware type: Ethernet. Protocol type: IPv4. Lengths of addresses.
const FORMAT: [u8; 6] = [0, 1, 8, 0, 6, 4];
/// Operations.
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// Who asks, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// A question, not an answer.
    pub is_request: bool,
    /// The sender's addresses.
    pub sender: (Mac, Ipv4Addr),
    /// Whose Ethernet address is asked for.
    pub target: Ipv4Addr,
}

impl Arp {
    /// Reads a packet.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LEN] = bytes.get(..LEN)?.try_into().ok()?;
        if bytes[..6] != FORMAT {
            return None;
        }
        let ip = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
        let mut mac = [0; 6];
        mac.copy_from_slice(&bytes[8..14]);
        Some(Self {
            is_request: be16(bytes, 6)? == REQUEST,
            sender: (Mac(mac), ip(14)),
            target: ip(24),
        })
    }
}

/// Appends an answer: `sender` is what was asked for, `target` who asked.
pub fn write_reply(head: &mut Head, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) {
    head.put(&FORMAT);
    head.put16(REPLY);
    for (mac, ip) in [sender, target] {
        head.put(&mac.0);
        head.put(&ip.octets());
    }
}
