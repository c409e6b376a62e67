//! The user-mode network in a guest whose kernel and DHCP client are Debian's.

mod command;
mod started;

use started::Guest;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// A free TCP port of the host.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// What the guest's network must come to by itself.
fn configured(guest: &Guest) {
    let script = "i=0; until ip route | grep -q default || [ $i = 300 ]; do \
                  i=$((i + 1)); sleep 0.1; done; ip -4 addr show eth0; ip route; cat /etc/resolv.conf";
    let (status, output, _) = guest.shell(script);
    assert_eq!(status, Some(0));
    for part in [
        "inet 10.0.2.15/24",
        "default via 10.0.2.2",
        "nameserver 10.0.2.3",
    ] {
        assert!(output.contains(part), "{output}");
    }
}

#[test]
fn a_guest_gets_an_address_and_reaches_what_it_may() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let forwarded = free_port();
    let network = format!("user,loopback=on,forward={forwarded}:7");
    let guest = Guest::start("bookworm", &["--net", &network]);
    configured(&guest);

    // A megabyte from the guest to the host and back, which the guest sums.
    let echo = thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        let mut all = vec![0; 1 << 20];
        stream.read_exact(&mut all).unwrap();
        stream.write_all(&all).unwrap();
    });
    let script = format!(
        "dd if=/dev/urandom of=/tmp/sent bs=1M count=1 2>/dev/null; \
         nc 10.0.2.2 {port} < /tmp/sent > /tmp/got; cmp /tmp/sent /tmp/got && echo same"
    );
    assert_eq!(guest.shell(&script).1, "same\n");
    echo.join().unwrap();

    // A forward from the host to a server in the guest.
    guest.shell("nc -ll -p 7 -e cat </dev/null >/dev/null 2>&1 &");
    let end = Instant::now() + Duration::from_secs(30);
    let mut answer = [0; 5];
    loop {
        let mut stream = TcpStream::connect(("127.0.0.1", forwarded)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        // The server may not listen yet.
        if stream.write_all(b"hello").is_ok() && stream.read_exact(&mut answer).is_ok() {
            break;
        }
        assert!(Instant::now() < end, "the forward leads nowhere");
        thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(&answer, b"hello");
}

#[test]
fn a_guest_does_not_reach_the_hosts_loopback_unless_it_may() {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let guest = Guest::start("trixie", &["--net", "user"]);
    configured(&guest);
    let (status, output, _) = guest.shell(&format!("nc -w 5 10.0.2.2 {port} </dev/null"));
    assert_ne!(status, Some(0));
    assert_eq!(output, "");
    server.set_nonblocking(true).unwrap();
    assert!(
        server.accept().is_err(),
        "the guest reached a loopback service"
    );
    let (_, said, _) = guest.shell("ping -c 1 -W 5 10.0.2.2");
    assert!(said.contains("1 packets received"), "{said}");
}
