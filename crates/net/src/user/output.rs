//! Frames to the guest.

use super::{GATEWAY_MAC, MTU};
use crate::backend::{Guest, GuestOffloads};
use crate::policy;
use crate::vnet::{Gso, GsoKind, PartialChecksum, VnetHeader};
use crate::wire::checksum::Checksum;
use crate::wire::{Head, Mac, arp, ethernet, icmp, ip, protocol, tcp, udp};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

/// Bytes of Ethernet's and IP's headers, which stand before every transport's.
pub(super) const LOWER_HEADERS: usize = ethernet::HEADER_LEN + ip::HEADER_LEN;
/// The largest payload of a TCP segment, if the guest takes segments of more than the MTU.
pub(super) const LARGEST_SEGMENT: usize = 65_535 - ip::HEADER_LEN - tcp::HEADER_LEN;
/// The largest payload of a TCP segment within the MTU.
pub(super) const MSS: u16 = MTU - (ip::HEADER_LEN + tcp::HEADER_LEN) as u16;

/// Which card has which address of the guest's network.
#[derive(Debug)]
pub(super) struct Neighbours {
    /// The guest's card, for addresses that nobody has spoken from yet.
    card: Mac,
    by_host: Box<[Option<Mac>; 256]>,
}

impl Neighbours {
    pub fn new(card: Mac) -> Self {
        Self {
            card,
            by_host: Box::new([None; 256]),
        }
    }

    pub fn learn(&mut self, address: Ipv4Addr, mac: Mac) {
        if policy::is_guest(address) && !mac.is_group() {
            self.by_host[usize::from(address.octets()[3])] = Some(mac);
        }
    }

    pub fn forget(&mut self) {
        self.by_host.fill(None);
    }

    fn mac(&self, address: Ipv4Addr) -> Mac {
        self.by_host[usize::from(address.octets()[3])].unwrap_or(self.card)
    }
}

/// An answer of the DHCP server.
#[derive(Debug)]
pub(super) struct DhcpAnswer {
    pub mac: Mac,
    pub address: Ipv4Addr,
    pub payload: Vec<u8>,
}

/// Where frames to the guest are made.
pub(super) struct Output<'a> {
    guest: &'a mut dyn Guest,
    neighbours: &'a Neighbours,
}

impl<'a> Output<'a> {
    pub fn new(guest: &'a mut dyn Guest, neighbours: &'a Neighbours) -> Self {
        Self { guest, neighbours }
    }

    pub fn offloads(&self) -> GuestOffloads {
        self.guest.offloads()
    }

    /// Whether there is room for a frame within the MTU.
    pub fn has_room(&mut self) -> bool {
        self.guest.room(ethernet::HEADER_LEN + usize::from(MTU))
    }

    fn head(
        &self,
        source: Ipv4Addr,
        destination: Ipv4Addr,
        protocol: u8,
        len: usize,
        part: Option<ip::Fragment>,
    ) -> Head {
        let mut head = Head::default();
        let mac = self.neighbours.mac(destination);
        ethernet::write(&mut head, mac, GATEWAY_MAC, ethernet::IPV4);
        ip::write(&mut head, source, destination, protocol, len, part);
        head
    }

    pub fn arp_reply(&mut self, address: Ipv4Addr, to: (Mac, Ipv4Addr)) {
        let mut head = Head::default();
        ethernet::write(&mut head, to.0, GATEWAY_MAC, ethernet::ARP);
        arp::write_reply(&mut head, (GATEWAY_MAC, address), to);
        self.guest
            .deliver(VnetHeader::default(), &[head.as_slice()]);
    }

    /// A segment of TCP whose payload is in two parts, to be cut into pieces of `mss` bytes by the
    /// guest if it is larger.
    pub fn segment(
        &mut self,
        source: SocketAddrV4,
        destination: SocketAddrV4,
        header: &tcp::Header,
        payload: (&[u8], &[u8]),
        mss: u16,
    ) -> bool {
        let offloads = self.guest.offloads();
        let len = payload.0.len() + payload.1.len();
        let header_len = tcp::header_len(header);
        let (from, to) = (*source.ip(), *destination.ip());
        let mut head = self.head(from, to, protocol::TCP, header_len + len, None);
        tcp::write(&mut head, header);
        let mut sum = Checksum::pseudo(
            IpAddr::V4(from),
            IpAddr::V4(to),
            protocol::TCP,
            header_len + len,
        );
        let checksum_at = LOWER_HEADERS + usize::from(tcp::CHECKSUM_OFFSET);
        let mut vnet = VnetHeader::default();
        if offloads.checksum {
            head.set16(checksum_at, sum.partial());
            vnet.checksum = Some(PartialChecksum {
                start: LOWER_HEADERS as u16,
                offset: tcp::CHECKSUM_OFFSET,
            });
            if len > usize::from(mss) {
                vnet.gso = Some(Gso {
                    kind: GsoKind::Tcp4,
                    header_len: (LOWER_HEADERS + header_len) as u16,
                    size: mss,
                });
            }
        } else {
            sum.add(&head.as_slice()[LOWER_HEADERS..]);
            sum.add(payload.0);
            sum.add(payload.1);
            head.set16(checksum_at, sum.finish());
        }
        self.guest
            .deliver(vnet, &[head.as_slice(), payload.0, payload.1])
    }

    /// A datagram, in fragments if it is larger than the MTU.
    pub fn datagram(
        &mut self,
        source: SocketAddrV4,
        destination: SocketAddrV4,
        payload: &[u8],
        identification: u16,
    ) -> bool {
        let (from, to) = (*source.ip(), *destination.ip());
        let mut transport = Head::default();
        udp::write(
            &mut transport,
            (IpAddr::V4(from), source.port()),
            (IpAddr::V4(to), destination.port()),
            payload,
        );
        let room = usize::from(MTU) - ip::HEADER_LEN;
        let whole = transport.len() + payload.len();
        if whole <= room {
            let head = self.head(from, to, protocol::UDP, whole, None);
            let parts = [head.as_slice(), transport.as_slice(), payload];
            return self.guest.deliver(VnetHeader::default(), &parts);
        }
        // Fragments begin at multiples of eight bytes.
        let step = room & !7;
        let mut offset = 0;
        while offset < whole {
            let len = step.min(whole - offset);
            let part = ip::Fragment {
                identification,
                offset,
                more: offset + len < whole,
            };
            let head = self.head(from, to, protocol::UDP, len, Some(part));
            let first = offset == 0;
            let data = if first {
                &payload[..len - transport.len()]
            } else {
                &payload[offset - transport.len()..offset - transport.len() + len]
            };
            let begin: &[u8] = if first { transport.as_slice() } else { &[] };
            if !self
                .guest
                .deliver(VnetHeader::default(), &[head.as_slice(), begin, data])
            {
                return false;
            }
            offset += len;
        }
        true
    }

    pub fn dhcp(&mut self, answer: &DhcpAnswer) {
        let (from, to) = (policy::GATEWAY, answer.address);
        let mut transport = Head::default();
        udp::write(
            &mut transport,
            (IpAddr::V4(from), 67),
            (IpAddr::V4(to), 68),
            &answer.payload,
        );
        let len = transport.len() + answer.payload.len();
        let mut head = Head::default();
        ethernet::write(&mut head, answer.mac, GATEWAY_MAC, ethernet::IPV4);
        ip::write(&mut head, from, to, protocol::UDP, len, None);
        let parts = [head.as_slice(), transport.as_slice(), &answer.payload];
        self.guest.deliver(VnetHeader::default(), &parts);
    }

    pub fn echo(&mut self, source: Ipv4Addr, destination: Ipv4Addr, echo: &icmp::Echo<'_>) {
        let len = icmp::HEADER_LEN + echo.payload.len();
        // An echo of more than the MTU came in fragments; ours go in none.
        if len + ip::HEADER_LEN > usize::from(MTU) {
            return;
        }
        let mut head = self.head(source, destination, protocol::ICMP, len, None);
        echo.write(&mut head);
        self.guest
            .deliver(VnetHeader::default(), &[head.as_slice(), echo.payload]);
    }

    /// Tells the guest that `source` cannot be reached, quoting `packet` that was for it.
    pub fn unreachable(
        &mut self,
        why: icmp::Unreachable,
        source: Ipv4Addr,
        destination: Ipv4Addr,
        packet: &[u8],
    ) {
        let Some(parsed) = ip::Packet::parse(packet) else {
            return;
        };
        let quoted = icmp::quote(packet, packet.len() - parsed.payload.len());
        // It is the gateway who says so, unless it is the host itself that has no such port.
        let from = if matches!(why, icmp::Unreachable::Port | icmp::Unreachable::Protocol) {
            source
        } else {
            policy::GATEWAY
        };
        let len = icmp::HEADER_LEN + quoted.len();
        let mut head = self.head(from, destination, protocol::ICMP, len, None);
        icmp::write_unreachable(&mut head, why, quoted);
        self.guest
            .deliver(VnetHeader::default(), &[head.as_slice(), quoted]);
    }

    /// The same for a packet that is not at hand any more: `transport` are its first eight bytes
    /// after the header, and `len` how long its payload was.
    pub fn unreachable_later(
        &mut self,
        why: icmp::Unreachable,
        guest: SocketAddrV4,
        peer: SocketAddrV4,
        protocol: u8,
        transport: [u8; 8],
        len: usize,
    ) {
        let mut packet = Head::default();
        ip::write(&mut packet, *guest.ip(), *peer.ip(), protocol, len, None);
        packet.put(&transport);
        let quoted = packet.as_slice();
        let from = if why == icmp::Unreachable::Port {
            *peer.ip()
        } else {
            policy::GATEWAY
        };
        let len = icmp::HEADER_LEN + quoted.len();
        let mut head = self.head(from, *guest.ip(), protocol::ICMP, len, None);
        icmp::write_unreachable(&mut head, why, quoted);
        self.guest
            .deliver(VnetHeader::default(), &[head.as_slice(), quoted]);
    }
}
