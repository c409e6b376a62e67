//! Guests that send anything.

use crate::guest::{MAC, World};
use belljar_net::user::GATEWAY_MAC;
use belljar_net::wire::tcp::{self, flags};
use belljar_net::wire::{Head, checksum, ethernet, ip, protocol};
use belljar_net::{PartialChecksum, VnetHeader};
use proptest::prelude::*;
use rustix::fd::OwnedFd;
use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, SocketAddrV4, TcpListener};

const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// A frame of the guest with a segment.
fn segment(to: Ipv4Addr, header: &tcp::Header, payload: &[u8]) -> Vec<u8> {
    let len = tcp::header_len(header) + payload.len();
    let mut head = Head::default();
    ethernet::write(&mut head, GATEWAY_MAC, MAC, ethernet::IPV4);
    ip::write(&mut head, GUEST, to, protocol::TCP, len, None);
    let at = head.len();
    tcp::write(&mut head, header);
    let (from, to) = (IpAddr::V4(GUEST), IpAddr::V4(to));
    let mut sum = checksum::Checksum::pseudo(from, to, protocol::TCP, len);
    sum.add(&head.as_slice()[at..]);
    sum.add(payload);
    head.set16(at + 16, sum.finish());
    [head.as_slice(), payload].concat()
}

fn transmit(world: &mut World, frame: &[u8]) {
    world
        .network
        .transmit(VnetHeader::default(), frame, &mut world.link);
}

/// A port of the host that has connections waiting, and takes no more.
fn full_port() -> (OwnedFd, u16) {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
    listen(&socket, 1).unwrap();
    let address = SocketAddr::try_from(getsockname(&socket).unwrap()).unwrap();
    (socket, address.port())
}

#[test]
fn a_flood_of_connections_is_bounded_and_others_go_on() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (_full, flooded) = full_port();
    let mut world = World::open();
    let before = std::fs::read_dir("/proc/self/fd").unwrap().count();
    for n in 0..20_000u32 {
        let header = tcp::Header {
            source: (n % 60_000) as u16,
            destination: flooded,
            sequence: n,
            flags: flags::SYN,
            window: 1000,
            ..tcp::Header::default()
        };
        transmit(&mut world, &segment(GATEWAY, &header, &[]));
        if n % 100 == 0 {
            world.network.poll(&mut world.link);
            world.link.received.clear();
        }
    }
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count() - before;
    // Other tests open some meanwhile.
    assert!(descriptors < 700, "{descriptors} descriptors were opened");
    world.network.reset();
    let handle = world.connect((GATEWAY, port), 4096);
    assert!(world.connected(handle));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_frames_are_survived(
        frames in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), 0..200), any::<bool>(), any::<bool>(), 0u8..20),
            0..50,
        ),
    ) {
        let mut world = World::new("user,restrict=on");
        for (mut frame, arp, partial, protocol) in frames {
            // Most of them get past Ethernet and IP.
            if frame.len() >= 34 {
                frame[..6].copy_from_slice(&GATEWAY_MAC.0);
                frame[6] &= 0xfe;
                frame[12..14].copy_from_slice(&if arp { [8, 6] } else { [8, 0] });
                if !arp {
                    let len = (frame.len() - 14) as u16;
                    frame[14] = 0x45;
                    frame[16..18].copy_from_slice(&len.to_be_bytes());
                    frame[23] = protocol;
                    frame[26..30].copy_from_slice(&GUEST.octets());
                    frame[30..33].copy_from_slice(&[10, 0, 2]);
                    frame[24..26].fill(0);
                    let sum = checksum::of(&frame[14..34]);
                    frame[24..26].copy_from_slice(&sum.to_be_bytes());
                }
            }
            let header = VnetHeader {
                checksum: partial.then_some(PartialChecksum { start: 34, offset: 16 }),
                gso: None,
            };
            world.network.transmit(header, &frame, &mut world.link);
            world.network.poll(&mut world.link);
            world.link.received.clear();
        }
    }

    /// Segments with any numbers, to a service that reads, writes and closes.
    #[test]
    fn any_segments_are_survived(
        segments in proptest::collection::vec(
            (any::<u8>(), -70_000i64..70_000, -70_000i64..70_000, any::<u16>(), 0usize..1400),
            0..60,
        ),
    ) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut world = World::open();
        let mut header = tcp::Header {
            source: 1000,
            destination: port,
            sequence: 99,
            flags: flags::SYN,
            window: 1000,
            shift: Some(14),
            mss: Some(1),
            ..tcp::Header::default()
        };
        transmit(&mut world, &segment(GATEWAY, &header, &[]));
        let (stream, _) = listener.accept().unwrap();
        stream.set_nonblocking(true).unwrap();
        header.shift = None;
        header.mss = None;
        let answer = world.until("the answer", |world| {
            world.link.received.drain(..).find_map(|(_, frame)| {
                let frame = ethernet::Frame::parse(&frame)?;
                let packet = ip::Packet::parse(frame.payload)?;
                let (from, to) = (IpAddr::V4(packet.source), IpAddr::V4(packet.destination));
                Some(tcp::parse(packet.payload, from, to, true)?.0)
            })
        });
        prop_assert!(answer.has(flags::SYN | flags::ACK));
        for (n, (bits, sequence, acknowledgment, window, len)) in segments.into_iter().enumerate() {
            header.flags = if n == 0 { flags::ACK } else { bits };
            // Near what would be right, half of the time.
            let near = |offset: i64| if n % 2 == 0 { offset % 3 } else { offset } as u32;
            header.sequence = 100u32.wrapping_add(near(sequence));
            header.acknowledgment = answer.sequence.wrapping_add(1).wrapping_add(near(acknowledgment));
            header.window = window;
            transmit(&mut world, &segment(GATEWAY, &header, &vec![7; len]));
            let _ = (&stream).write(&[1; 5000]);
            let _ = (&stream).read(&mut [0; 3000]);
            if n == 40 {
                let _ = stream.shutdown(Shutdown::Write);
            }
            world.network.poll(&mut world.link);
            world.link.received.clear();
        }
    }
}
