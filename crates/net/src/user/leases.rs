//! The DHCP server: every card of the network gets an address, always the same.

use super::MTU;
use super::output::DhcpAnswer;
use crate::policy;
use crate::wire::dhcp::{self, Message, Parameters, Reply, Request};
use crate::wire::{Mac, ip, protocol, udp};
use std::net::{IpAddr, Ipv4Addr};

/// Ports of the server and of clients.
const SERVER_PORT: u16 = 67;
const CLIENT_PORT: u16 = 68;
/// How long an address is a client's, in seconds: a day.
const LEASE: u32 = 86_400;
/// The most addresses that are given.
const MOST: usize = 200;

/// Who has which address.
#[derive(Debug)]
pub(super) struct Leases {
    /// The card at each place has the address so many after [`policy::GUEST`].
    cards: Vec<Mac>,
    parameters: Parameters,
}

impl Leases {
    pub fn new(dns: Option<Ipv4Addr>) -> Self {
        Self {
            cards: Vec::new(),
            parameters: Parameters {
                server: policy::GATEWAY,
                mask: policy::MASK,
                dns,
                mtu: MTU,
                lease: LEASE,
            },
        }
    }

    /// Whether a packet is a client's message to the server alone.
    pub fn is_for_server(&self, packet: &ip::Packet<'_>) -> bool {
        packet.protocol == protocol::UDP
            && packet.destination == self.parameters.server
            && packet.payload.get(2..4) == Some(&SERVER_PORT.to_be_bytes())
    }

    fn address(&mut self, card: Mac) -> Option<Ipv4Addr> {
        let place = match self.cards.iter().position(|&known| known == card) {
            Some(place) => place,
            None if self.cards.len() < MOST && !card.is_group() => {
                self.cards.push(card);
                self.cards.len() - 1
            }
            None => return None,
        };
        let first = u32::from(policy::GUEST);
        Some(Ipv4Addr::from(first + place as u32))
    }

    /// The answer to a packet, if it is a client's message that has one.
    pub fn answer(&mut self, packet: &ip::Packet<'_>, partial: bool) -> Option<DhcpAnswer> {
        let (from, to) = (IpAddr::V4(packet.source), IpAddr::V4(packet.destination));
        let datagram = udp::Datagram::parse(packet.payload, from, to, partial)?;
        if (datagram.source, datagram.destination) != (CLIENT_PORT, SERVER_PORT) {
            return None;
        }
        let message = Message::parse(datagram.payload)?;
        if message
            .server
            .is_some_and(|server| server != self.parameters.server)
        {
            return None;
        }
        let address = self.address(message.client)?;
        let reply = match message.request {
            Request::Discover => Reply::Offer,
            Request::Inform => Reply::Ack,
            Request::Request => {
                let wanted = message.requested.unwrap_or(message.client_address);
                if wanted == address {
                    Reply::Ack
                } else {
                    Reply::Nak
                }
            }
            Request::Release | Request::Decline => return None,
        };
        let given = if message.request == Request::Inform {
            Ipv4Addr::UNSPECIFIED
        } else {
            address
        };
        let to = if reply == Reply::Nak || message.broadcast {
            (Mac::BROADCAST, Ipv4Addr::BROADCAST)
        } else if message.client_address.is_unspecified() {
            (message.client, address)
        } else {
            (message.client, message.client_address)
        };
        Some(DhcpAnswer {
            mac: to.0,
            address: to.1,
            payload: dhcp::reply(&message, reply, given, &self.parameters),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_keep_their_addresses_and_their_number_is_bounded() {
        let mut leases = Leases::new(None);
        assert_eq!(leases.address(Mac([2; 6])), Some(policy::GUEST));
        assert_eq!(
            leases.address(Mac([4; 6])),
            Some(Ipv4Addr::new(10, 0, 2, 16))
        );
        assert_eq!(leases.address(Mac([2; 6])), Some(policy::GUEST));
        assert_eq!(leases.address(Mac::BROADCAST), None);
        for n in 0..300u16 {
            let [a, b] = n.to_be_bytes();
            if let Some(address) = leases.address(Mac([6, 0, 0, 0, a, b])) {
                assert!(policy::is_guest(address), "{address}");
            }
        }
        assert_eq!(leases.cards.len(), MOST);
    }
}
