//! What a guest reaches and what it does not.

use crate::guest::World;
use belljar_net::GuestOffloads;
use smoltcp::wire::Ipv4Address;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

const GATEWAY: Ipv4Address = Ipv4Address::new(10, 0, 2, 2);

/// A service of the host on all its addresses.
fn service() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn reaches(options: &str, address: Ipv4Address, port: u16) -> bool {
    let mut world = World::new(options);
    let handle = world.connect((address, port), 4096);
    let begun = std::time::Instant::now();
    loop {
        world.step();
        let state = world.tcp(handle).state();
        if state == smoltcp::socket::tcp::State::Established {
            return true;
        }
        if state == smoltcp::socket::tcp::State::Closed
            || begun.elapsed() > Duration::from_millis(150)
        {
            return false;
        }
    }
}

#[test]
fn the_hosts_loopback_is_out_of_reach() {
    let (listener, port) = service();
    for address in [
        GATEWAY,
        Ipv4Address::LOCALHOST,
        Ipv4Address::new(127, 1, 2, 3),
    ] {
        assert!(!reaches("user", address, port), "{address}");
    }
    for address in [Ipv4Address::LOCALHOST, Ipv4Address::new(0, 0, 0, 1)] {
        assert!(!reaches("user,loopback=on", address, port), "{address}");
    }
    assert!(listener.accept().is_err(), "somebody came");
    assert!(reaches("user,loopback=on", GATEWAY, port));
    assert!(!reaches("user,loopback=on,restrict=on", GATEWAY, port));
}

#[test]
fn datagrams_to_the_hosts_loopback_do_not_arrive() {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let port = socket.local_addr().unwrap().port();
    let mut world = World::new("user");
    let handle = world.add_udp(4000);
    for address in [GATEWAY, Ipv4Address::LOCALHOST] {
        world.udp(handle).send_slice(b"x", (address, port)).unwrap();
    }
    world.idle(Duration::from_millis(50));
    assert!(socket.recv(&mut [0; 8]).is_err());
}

#[test]
fn the_hosts_own_addresses_are_reached_unless_local_is_off() {
    // The address that the host would use for the world, if it has one.
    let probe = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let Ok(SocketAddr::V4(own)) = probe
        .connect((Ipv4Addr::new(198, 51, 100, 1), 9))
        .and_then(|()| probe.local_addr())
    else {
        println!("skipped: the host has no way to the world");
        return;
    };
    let (_listener, port) = service();
    let own = Ipv4Address::from(own.ip().octets());
    assert!(reaches("user", own, port));
    assert!(!reaches("user,local=off", own, port));
}

#[test]
fn a_restricted_guest_is_not_told_names() {
    let resolver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    resolver
        .set_read_timeout(Some(Duration::from_millis(100)))
        .unwrap();
    let address = resolver.local_addr().unwrap();
    let mut world = World::with("user,restrict=on", vec![address], GuestOffloads::default());
    let handle = world.add_udp(4000);
    let dns = Ipv4Address::new(10, 0, 2, 3);
    world.udp(handle).send_slice(b"query", (dns, 53)).unwrap();
    world.idle(Duration::from_millis(50));
    assert!(resolver.recv(&mut [0; 8]).is_err());
}
