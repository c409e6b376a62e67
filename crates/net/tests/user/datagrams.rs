//! UDP, DNS, DHCP and ICMP.

use crate::guest::World;
use belljar_net::GuestOffloads;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::socket::{dhcpv4, icmp};
use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, IpEndpoint, Ipv4Address, Ipv4Cidr};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::thread;
use std::time::Duration;

const GATEWAY: Ipv4Address = Ipv4Address::new(10, 0, 2, 2);
const DNS: Ipv4Address = Ipv4Address::new(10, 0, 2, 3);

/// A server of the host that answers each datagram with `answer` of it.
fn server(answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = socket.local_addr().unwrap();
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((len, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&answer(&buffer[..len]), peer);
        }
    });
    address
}

fn ask(world: &mut World, to: (Ipv4Address, u16), question: &[u8]) -> (Vec<u8>, IpEndpoint) {
    let port = world.port();
    let handle = world.add_udp(port);
    let to = IpEndpoint::new(to.0.into(), to.1);
    world.udp(handle).send_slice(question, to).unwrap();
    let answer = world.datagram(handle);
    world.sockets.remove(handle);
    answer
}

#[test]
fn datagrams_are_answered() {
    let echo = server(<[u8]>::to_vec);
    let mut world = World::open();
    for len in [0, 1, 1471, 1472] {
        let question: Vec<u8> = (0..len).map(|n| n as u8).collect();
        let (answer, from) = ask(&mut world, (GATEWAY, echo.port()), &question);
        assert!(answer == question, "{len} bytes");
        assert_eq!(from, IpEndpoint::new(GATEWAY.into(), echo.port()));
    }
}

#[test]
fn datagrams_larger_than_a_frame_go_in_fragments_both_ways() {
    let echo = server(<[u8]>::to_vec);
    let mut world = World::open();
    for len in [1473, 2000, 4000] {
        let question: Vec<u8> = (0..len).map(|n| n as u8).collect();
        let (answer, _) = ask(&mut world, (GATEWAY, echo.port()), &question);
        assert!(answer == question, "{len} bytes");
    }
}

#[test]
fn queries_go_to_the_hosts_resolver() {
    let resolver = server(|query| [b"answer to ", query].concat());
    let mut world = World::with("user", vec![resolver], GuestOffloads::default());
    let (answer, from) = ask(&mut world, (DNS, 53), b"query");
    assert_eq!(answer, b"answer to query");
    assert_eq!(from, IpEndpoint::new(DNS.into(), 53));
}

#[test]
fn queries_by_tcp_go_to_the_hosts_resolver() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let resolver = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut query = [0; 5];
        stream.read_exact(&mut query).unwrap();
        stream.write_all(&query).unwrap();
    });
    let mut world = World::with("user", vec![resolver], GuestOffloads::default());
    let handle = world.connect((DNS, 53), 4096);
    assert!(world.connected(handle));
    world.tcp(handle).send_slice(b"query").unwrap();
    world.until("the answer", |world| {
        let socket = world.tcp(handle);
        (socket.recv_queue() == 5).then_some(())
    });
    server.join().unwrap();
}

#[test]
fn a_resolver_that_refuses_gives_way_to_the_next() {
    let gone = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let first = gone.local_addr().unwrap();
    drop(gone);
    let second = server(<[u8]>::to_vec);
    let mut world = World::with("user", vec![first, second], GuestOffloads::default());
    let port = world.port();
    let handle = world.add_udp(port);
    let to = IpEndpoint::new(DNS.into(), 53);
    world.udp(handle).send_slice(b"query", to).unwrap();
    world.idle(Duration::from_millis(50));
    // The guest asks again, as resolvers do.
    world.udp(handle).send_slice(b"query", to).unwrap();
    assert_eq!(world.datagram(handle).0, b"query");
}

#[test]
fn a_forwarded_port_of_udp_leads_to_the_guest() {
    let port = {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.local_addr().unwrap().port()
    };
    let mut world = World::new(&format!("user,forward=udp:{port}:9"));
    let handle = world.add_udp(9);
    let clients: Vec<UdpSocket> = (0..3)
        .map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap())
        .collect();
    for (n, client) in clients.iter().enumerate() {
        client
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        client
            .send_to(&[n as u8], (Ipv4Addr::LOCALHOST, port))
            .unwrap();
    }
    for _ in &clients {
        let (question, from) = world.datagram(handle);
        assert_eq!(from.addr, GATEWAY.into());
        let answer = [question[0] + 100];
        world.udp(handle).send_slice(&answer, from).unwrap();
    }
    world.idle(Duration::from_millis(20));
    for (n, client) in clients.iter().enumerate() {
        let mut answer = [0; 8];
        let (len, from) = client.recv_from(&mut answer).unwrap();
        assert_eq!(&answer[..len], [n as u8 + 100]);
        assert_eq!(from.port(), port);
    }
}

#[test]
fn dhcp_gives_the_address_that_users_of_such_networks_expect() {
    let mut world = World::new("user");
    world.interface.update_ip_addrs(|addresses| {
        let _ = addresses.pop();
    });
    let handle = world.sockets.add(dhcpv4::Socket::new());
    let config = world.until("DHCP", |world| {
        let socket: &mut dhcpv4::Socket = world.sockets.get_mut(handle);
        match socket.poll() {
            Some(dhcpv4::Event::Configured(config)) => {
                Some((config.address, config.router, config.dns_servers.to_vec()))
            }
            _ => None,
        }
    });
    let address = Ipv4Cidr::new(Ipv4Address::new(10, 0, 2, 15), 24);
    assert_eq!(config, (address, Some(GATEWAY), vec![DNS]));
}

#[test]
fn the_gateway_answers_pings() {
    let mut world = World::new("user");
    let buffer = || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 4], vec![0; 4096]);
    let mut socket = icmp::Socket::new(buffer(), buffer());
    socket.bind(icmp::Endpoint::Ident(77)).unwrap();
    let checksums = ChecksumCapabilities::default();
    let echo = Icmpv4Repr::EchoRequest {
        ident: 77,
        seq_no: 3,
        data: b"hello",
    };
    let bytes = socket.send(echo.buffer_len(), GATEWAY.into()).unwrap();
    echo.emit(&mut Icmpv4Packet::new_unchecked(bytes), &checksums);
    let handle = world.sockets.add(socket);
    let answer = world.until("an echo", |world| {
        let socket: &mut icmp::Socket = world.sockets.get_mut(handle);
        socket
            .recv()
            .ok()
            .map(|(bytes, from)| (bytes.to_vec(), from))
    });
    assert_eq!(answer.1, GATEWAY.into());
    let packet = Icmpv4Packet::new_checked(&answer.0[..]).unwrap();
    assert_eq!(
        Icmpv4Repr::parse(&packet, &checksums).unwrap(),
        Icmpv4Repr::EchoReply {
            ident: 77,
            seq_no: 3,
            data: b"hello",
        }
    );
}
