//! TCP.

use crate::guest::World;
use belljar_net::GuestOffloads;
use smoltcp::socket::tcp::State;
use smoltcp::wire::Ipv4Address;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

const GATEWAY: Ipv4Address = Ipv4Address::new(10, 0, 2, 2);
const BULK: usize = 8 << 20;

const ALL: GuestOffloads = GuestOffloads {
    checksum: true,
    tcp4: true,
    tcp6: true,
};

/// A listener on the host's loopback.
fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A host's server for one connection, in a thread.
fn serve<R: Send + 'static>(
    serve: impl FnOnce(TcpStream) -> R + Send + 'static,
) -> (u16, JoinHandle<R>) {
    let (listener, port) = listener();
    let thread = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        serve(stream)
    });
    (port, thread)
}

/// Bytes that tell where they stand.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

fn bulk_to_the_host(offloads: GuestOffloads) {
    let (port, server) = serve(|mut stream| {
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        got
    });
    let mut world = World::with("user,loopback=on", Vec::new(), offloads);
    let handle = world.connect((GATEWAY, port), 256 << 10);
    assert!(world.connected(handle));
    let data = pattern(BULK);
    world.send_all(handle, &data);
    world.tcp(handle).close();
    world.until("the host's end", |_| server.is_finished().then_some(()));
    assert!(server.join().unwrap() == data, "the bytes differ");
    world.until("the connection's end", |world| {
        matches!(world.tcp(handle).state(), State::TimeWait | State::Closed).then_some(())
    });
}

fn bulk_to_the_guest(offloads: GuestOffloads) {
    let data = pattern(BULK);
    let (port, server) = serve({
        let data = data.clone();
        move |mut stream| stream.write_all(&data).unwrap()
    });
    let mut world = World::with("user,loopback=on", Vec::new(), offloads);
    let handle = world.connect((GATEWAY, port), 256 << 10);
    assert!(world.connected(handle));
    assert!(world.receive_all(handle) == data, "the bytes differ");
    server.join().unwrap();
}

#[test]
fn bulk_arrives_at_the_host_as_it_was_sent() {
    bulk_to_the_host(GuestOffloads::default());
}

#[test]
fn bulk_arrives_at_the_guest_as_it_was_sent() {
    bulk_to_the_guest(GuestOffloads::default());
}

#[test]
fn bulk_in_large_segments_arrives_at_the_guest_as_it_was_sent() {
    bulk_to_the_guest(ALL);
}

#[test]
fn bulk_goes_both_ways_at_once() {
    let data = pattern(BULK / 2);
    let (port, server) = serve({
        let data = data.clone();
        move |mut stream| {
            let mut reader = stream.try_clone().unwrap();
            let sender = thread::spawn(move || {
                stream.write_all(&data).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
            });
            let mut got = Vec::new();
            reader.read_to_end(&mut got).unwrap();
            sender.join().unwrap();
            got
        }
    });
    let mut world = World::open();
    let handle = world.connect((GATEWAY, port), 64 << 10);
    assert!(world.connected(handle));
    let (mut sent, mut got) = (0, Vec::new());
    world.until("both ways", |world| {
        let socket = world.tcp(handle);
        if sent < data.len() {
            sent += socket.send_slice(&data[sent..]).unwrap();
            if sent == data.len() {
                socket.close();
            }
        }
        world.receive(handle, &mut got);
        (sent == data.len() && got.len() == data.len() && server.is_finished()).then_some(())
    });
    assert!(
        got == data && server.join().unwrap() == data,
        "the bytes differ"
    );
}

#[test]
fn a_closed_half_leaves_the_other_open() {
    let (port, server) = serve(|mut stream| {
        let mut question = String::new();
        stream.read_to_string(&mut question).unwrap();
        stream
            .write_all(question.to_uppercase().as_bytes())
            .unwrap();
    });
    let mut world = World::open();
    let handle = world.connect((GATEWAY, port), 4096);
    assert!(world.connected(handle));
    world.send_all(handle, b"half");
    world.tcp(handle).close();
    assert_eq!(world.receive_all(handle), b"HALF");
    server.join().unwrap();
}

#[test]
fn the_hosts_closed_half_leaves_the_guests_open() {
    let (port, server) = serve(|mut stream| {
        stream.write_all(b"first").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        answer
    });
    let mut world = World::open();
    let handle = world.connect((GATEWAY, port), 4096);
    assert!(world.connected(handle));
    assert_eq!(world.receive_all(handle), b"first");
    world.send_all(handle, b"then this");
    world.tcp(handle).close();
    world.until("the host's end", |_| server.is_finished().then_some(()));
    assert_eq!(server.join().unwrap(), b"then this");
}

#[test]
fn a_port_where_nobody_listens_is_refused_at_once() {
    let (listener, port) = listener();
    drop(listener);
    let mut world = World::open();
    let handle = world.connect((GATEWAY, port), 4096);
    assert!(!world.connected(handle));
}

#[test]
fn a_reset_of_the_guest_reaches_the_host() {
    let (port, server) = serve(|mut stream| stream.read(&mut [0; 16]).unwrap_err().kind());
    let mut world = World::open();
    let handle = world.connect((GATEWAY, port), 4096);
    assert!(world.connected(handle));
    world.tcp(handle).abort();
    world.until("the host's end", |_| server.is_finished().then_some(()));
    assert_eq!(server.join().unwrap(), ErrorKind::ConnectionReset);
}

#[test]
fn a_reset_of_the_host_reaches_the_guest() {
    let (port, server) = serve(|mut stream| {
        stream.read_exact(&mut [0; 1]).unwrap();
        // What was not read makes the end a reset.
    });
    let mut world = World::open();
    let handle = world.connect((GATEWAY, port), 4096);
    assert!(world.connected(handle));
    world.send_all(handle, b"ab");
    world.until("the reset", |world| {
        (world.tcp(handle).state() == State::Closed).then_some(())
    });
    server.join().unwrap();
}

#[test]
fn a_reader_that_stops_stops_the_guest_and_loses_nothing() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (port, server) = serve(move |mut stream| {
        wait.recv().unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        got
    });
    let mut world = World::open();
    let handle = world.connect((GATEWAY, port), 64 << 10);
    assert!(world.connected(handle));
    // More than the host's buffers and ours together can take.
    let data = pattern(24 << 20);
    let mut sent = 0;
    let fill = |world: &mut World, sent: &mut usize| {
        let socket = world.tcp(handle);
        *sent += socket.send_slice(&data[*sent..]).unwrap();
    };
    let mut before = usize::MAX;
    while before != sent {
        before = sent;
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(400) {
            world.step();
            fill(&mut world, &mut sent);
        }
    }
    assert!(sent < data.len(), "nothing stopped the guest");
    go.send(()).unwrap();
    world.until("the rest", |world| {
        fill(world, &mut sent);
        (sent == data.len()).then_some(())
    });
    world.tcp(handle).close();
    world.until("the host's end", |_| server.is_finished().then_some(()));
    assert!(server.join().unwrap() == data, "the bytes differ");
}

#[test]
fn a_guest_that_stops_reading_stops_the_host_and_loses_nothing() {
    let data = pattern(BULK);
    let (port, server) = serve({
        let data = data.clone();
        move |mut stream| stream.write_all(&data).unwrap()
    });
    let mut world = World::open();
    let handle = world.connect((GATEWAY, port), 8 << 10);
    assert!(world.connected(handle));
    // The window closes, and is probed.
    world.idle(Duration::from_millis(1500));
    assert_eq!(world.tcp(handle).recv_queue(), 8 << 10);
    assert!(world.receive_all(handle) == data, "the bytes differ");
    server.join().unwrap();
}

#[test]
fn a_guest_without_room_for_frames_loses_nothing() {
    let data = pattern(1 << 20);
    let (port, server) = serve({
        let data = data.clone();
        move |mut stream| stream.write_all(&data).unwrap()
    });
    let mut world = World::open();
    world.link.room = 2;
    let handle = world.connect((GATEWAY, port), 64 << 10);
    assert!(world.connected(handle));
    assert!(world.receive_all(handle) == data, "the bytes differ");
    server.join().unwrap();
}

#[test]
fn frames_that_are_lost_in_the_guest_are_sent_again() {
    let data = pattern(1 << 20);
    let (port, server) = serve({
        let data = data.clone();
        move |mut stream| stream.write_all(&data).unwrap()
    });
    let mut world = World::open();
    let handle = world.connect((GATEWAY, port), 64 << 10);
    assert!(world.connected(handle));
    let (mut got, mut frames) = (Vec::new(), 0);
    world.until("receiving", |world| {
        // One frame of a hundred is lost.
        world.link.received.retain(|_| {
            frames += 1;
            frames % 100 != 0
        });
        world.receive(handle, &mut got);
        (!world.tcp(handle).may_recv()).then_some(())
    });
    assert!(got == data, "the bytes differ");
    server.join().unwrap();
}

#[test]
fn many_connections_at_once_and_after_each_other() {
    let (listener, port) = listener();
    let server = thread::spawn(move || {
        let echo = |mut stream: TcpStream| {
            let mut data = Vec::new();
            stream.read_to_end(&mut data).unwrap();
            stream.write_all(&data).unwrap();
        };
        let threads: Vec<_> = (0..300)
            .map(|_| {
                let (stream, _) = listener.accept().unwrap();
                thread::spawn(move || echo(stream))
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    });
    let mut world = World::open();
    for round in 0..3 {
        let handles: Vec<_> = (0..100)
            .map(|_| world.connect((GATEWAY, port), 4096))
            .collect();
        for &handle in &handles {
            assert!(world.connected(handle));
        }
        for (n, &handle) in handles.iter().enumerate() {
            world.send_all(handle, format!("{round} {n}").as_bytes());
            world.tcp(handle).close();
        }
        for (n, &handle) in handles.iter().enumerate() {
            let got = world.receive_all(handle);
            assert_eq!(String::from_utf8(got).unwrap(), format!("{round} {n}"));
        }
        for handle in handles {
            world.sockets.remove(handle);
        }
    }
    world.until("the host's end", |_| server.is_finished().then_some(()));
    server.join().unwrap();
}

/// A port of the host that is free now.
fn free_port() -> u16 {
    listener().1
}

#[test]
fn a_forwarded_port_leads_to_the_guest() {
    let port = free_port();
    let mut world = World::new(&format!("user,forward={port}:7"));
    let handle = world.listen(7);
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        stream.write_all(b"question").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    assert!(world.connected(handle));
    // The guest sees the gateway, not its own loopback.
    let peer = world.tcp(handle).remote_endpoint().unwrap();
    assert_eq!(peer.addr, GATEWAY.into());
    assert_eq!(world.receive_all(handle), b"question");
    world.send_all(handle, b"answer");
    world.tcp(handle).close();
    world.until("the client's end", |_| client.is_finished().then_some(()));
    assert_eq!(client.join().unwrap(), "answer");
}

#[test]
fn a_forwarded_port_at_which_no_guest_listens_is_reset() {
    let port = free_port();
    let mut world = World::new(&format!("user,forward={port}:7"));
    let client = thread::spawn(move || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        stream.read(&mut [0; 1]).unwrap_err().kind()
    });
    world.until("the client's end", |_| client.is_finished().then_some(()));
    assert_eq!(client.join().unwrap(), ErrorKind::ConnectionReset);
}

#[test]
fn a_driver_that_is_reset_ends_its_connections() {
    let (port, server) = serve(|mut stream| stream.read(&mut [0; 16]).unwrap_err().kind());
    let mut world = World::open();
    let handle = world.connect((GATEWAY, port), 4096);
    assert!(world.connected(handle));
    world.network.reset();
    assert_eq!(server.join().unwrap(), ErrorKind::ConnectionReset);
    // What the guest still sends is refused.
    world.send_all(handle, b"x");
    world.until("the reset", |world| {
        (world.tcp(handle).state() == State::Closed).then_some(())
    });
}
