//! DHCP for IPv4. RFC 2131; options of RFC 2132.

use super::Mac;
use std::net::Ipv4Addr;

/// Bytes before the options, the magic cookie included.
const FIXED: usize = 240;
/// The smallest message that old clients take. RFC 1542, 2.1.
const LEAST: usize = 300;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// The flag by which a client asks for answers by broadcast.
const BROADCAST: u8 = 0x80;

/// Options.
mod option {
    pub const PAD: u8 = 0;
    pub const SUBNET_MASK: u8 = 1;
    pub const ROUTER: u8 = 3;
    pub const DNS: u8 = 6;
    pub const MTU: u8 = 26;
    pub const REQUESTED: u8 = 50;
    pub const LEASE_TIME: u8 = 51;
    pub const MESSAGE_TYPE: u8 = 53;
    pub const SERVER: u8 = 54;
    pub const END: u8 = 255;
}

/// What a client wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// An offer.
    Discover,
    /// An address.
    Request,
    /// Parameters alone.
    Inform,
    /// Nothing any more.
    Release,
    /// Another address: somebody has this one.
    Decline,
}

/// What a server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// An offer.
    Offer = 2,
    /// It is so.
    Ack = 5,
    /// It is not so.
    Nak = 6,
}

/// A client's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it wants.
    pub request: Request,
    /// Which exchange this belongs to.
    pub transaction: [u8; 4],
    /// The address that the client has and uses.
    pub client_address: Ipv4Addr,
    /// Who the client is.
    pub client: Mac,
    /// The address that the client asks for.
    pub requested: Option<Ipv4Addr>,
    /// The server that the client has chosen.
    pub server: Option<Ipv4Addr>,
    /// Whether the client cannot take answers to an address that it does not have yet.
    pub broadcast: bool,
}

impl Message {
    /// Reads a client's message.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (fixed, options) = bytes.split_at_checked(FIXED)?;
        // A request of Ethernet.
        if fixed[..3] != [1, 1, 6] || fixed[236..] != COOKIE {
            return None;
        }
        let address = |bytes: &[u8]| {
            let bytes: [u8; 4] = bytes.try_into().ok()?;
            Some(Ipv4Addr::from(bytes))
        };
        let mut kind = None;
        let (mut requested, mut server) = (None, None);
        for (option, value) in Options(options) {
            match option {
                option::MESSAGE_TYPE => kind = value.first().copied(),
                option::REQUESTED => requested = address(value),
                option::SERVER => server = address(value),
                _ => {}
            }
        }
        let request = match kind? {
            1 => Request::Discover,
            3 => Request::Request,
            4 => Request::Decline,
            7 => Request::Release,
            8 => Request::Inform,
            _ => return None,
        };
        let mut client = [0; 6];
        client.copy_from_slice(&fixed[28..34]);
        Some(Self {
            request,
            transaction: fixed[4..8].try_into().ok()?,
            client_address: address(&fixed[12..16])?,
            client: Mac(client),
            requested,
            server,
            broadcast: fixed[10] & BROADCAST != 0,
        })
    }
}

/// The options of a message, as far as they are whole.
struct Options<'a>(&'a [u8]);

impl<'a> Iterator for Options<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (&option, rest) = self.0.split_first()?;
            match option {
                option::END => return None,
                option::PAD => self.0 = rest,
                _ => {
                    let (&len, rest) = rest.split_first()?;
                    let (value, rest) = rest.split_at_checked(usize::from(len))?;
                    self.0 = rest;
                    return Some((option, value));
                }
            }
        }
    }
}

/// What a server tells of its network.
#[derive(Clone, Debug)]
pub struct Parameters {
    /// The server, who is the router too.
    pub server: Ipv4Addr,
    /// The network's mask.
    pub mask: Ipv4Addr,
    /// Who answers DNS queries, if anybody does.
    pub dns: Option<Ipv4Addr>,
    /// The largest packet, in bytes.
    pub mtu: u16,
    /// How long the address is the client's, in seconds.
    pub lease: u32,
}

/// The answer to `message` that gives its sender `address`.
pub fn reply(
    message: &Message,
    reply: Reply,
    address: Ipv4Addr,
    parameters: &Parameters,
) -> Vec<u8> {
    let mut bytes = vec![0; FIXED];
    bytes[..3].copy_from_slice(&[2, 1, 6]);
    bytes[4..8].copy_from_slice(&message.transaction);
    if message.broadcast {
        bytes[10] = BROADCAST;
    }
    if reply != Reply::Nak {
        bytes[12..16].copy_from_slice(&message.client_address.octets());
        bytes[16..20].copy_from_slice(&address.octets());
    }
    bytes[28..34].copy_from_slice(&message.client.0);
    bytes[236..].copy_from_slice(&COOKIE);
    let mut option = |option: u8, value: &[u8]| {
        bytes.extend([option, value.len() as u8]);
        bytes.extend(value);
    };
    option(option::MESSAGE_TYPE, &[reply as u8]);
    option(option::SERVER, &parameters.server.octets());
    if reply != Reply::Nak {
        if message.request != Request::Inform {
            option(option::LEASE_TIME, &parameters.lease.to_be_bytes());
        }
        option(option::SUBNET_MASK, &parameters.mask.octets());
        option(option::ROUTER, &parameters.server.octets());
        option(option::MTU, &parameters.mtu.to_be_bytes());
        if let Some(dns) = parameters.dns {
            option(option::DNS, &dns.octets());
        }
    }
    bytes.push(option::END);
    bytes.resize(bytes.len().max(LEAST), option::PAD);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn discover() -> Vec<u8> {
        let mut bytes = vec![0; FIXED];
        bytes[..3].copy_from_slice(&[1, 1, 6]);
        bytes[4..8].copy_from_slice(b"xact");
        bytes[28..34].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        bytes[236..].copy_from_slice(&COOKIE);
        bytes.extend([0, 53, 1, 1, 50, 4, 10, 0, 2, 15, 255]);
        bytes
    }

    #[test]
    fn a_discover_is_understood() {
        let message = Message::parse(&discover()).unwrap();
        assert_eq!(message.request, Request::Discover);
        assert_eq!(message.transaction, *b"xact");
        assert_eq!(message.client, Mac([2, 0, 0, 0, 0, 9]));
        assert_eq!(message.requested, Some(Ipv4Addr::new(10, 0, 2, 15)));
    }

    proptest! {
        #[test]
        fn any_options_are_survived(options in proptest::collection::vec(any::<u8>(), 0..80)) {
            let mut bytes = discover();
            bytes.truncate(FIXED);
            bytes.extend(options);
            let _ = Message::parse(&bytes);
        }
    }
}
