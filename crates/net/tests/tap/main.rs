//! A tap device in a network namespace of the test's own: a guest whose TCP/IP is smoltcp speaks with
//! the host's network stack.

#[allow(dead_code, reason = "the harness is shared with other tests")]
#[path = "../user/guest.rs"]
mod guest;

use belljar_clock::HostClock;
use belljar_net::tap::TapPort;
use belljar_net::{GuestOffloads, Mac};
use guest::World;
use smoltcp::wire::Ipv4Address;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::sync::Arc;
use std::thread;

/// Tells the test that it runs in the namespace.
const INSIDE: &str = "BELLJAR_TEST_NAMESPACE";
const HOST: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status().unwrap();
    assert!(status.success(), "ip {arguments:?}: {status}");
}

/// Runs the test of this name in a network namespace where `vm0` is a tap device; false if the host
/// does not allow that.
fn in_namespace(test: &str) -> bool {
    let enter = |program: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", program]);
        command
    };
    let set_up = "ip tuntap add dev vm0 mode tap && ip link show vm0";
    let possible = enter("sh").args(["-c", set_up]).output();
    if !possible
        .as_ref()
        .is_ok_and(|output| output.status.success())
    {
        println!("skipped: no tap device in a network namespace: {possible:?}");
        return false;
    }
    let exe = std::env::current_exe().unwrap();
    let status = enter(exe.to_str().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    true
}

fn transfer(offloads: GuestOffloads) {
    ip(&["tuntap", "add", "dev", "vm0", "mode", "tap"]);
    ip(&["address", "add", "10.9.0.2/24", "dev", "vm0"]);
    ip(&["link", "set", "vm0", "up"]);
    let tap = TapPort::attach("vm0").unwrap();
    let again = TapPort::attach("vm0").unwrap_err();
    assert!(again.to_string().contains("vm0"));
    let listener = TcpListener::bind((HOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let data: Vec<u8> = (0..2_000_000u32).map(|n| (n / 251) as u8).collect();
    let server = thread::spawn({
        let data = data.clone();
        move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(&data).unwrap();
            let mut got = Vec::new();
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            stream.read_to_end(&mut got).unwrap();
            got
        }
    });
    let mut world = World::on(
        Box::new(tap),
        Mac([2, 0, 0, 0, 0, 1]),
        Ipv4Address::new(10, 9, 0, 1),
        offloads,
        Arc::new(HostClock::new()),
    );
    let handle = world.connect((HOST, port), 256 << 10);
    assert!(world.connected(handle));
    let got = world.receive_all(handle);
    assert!(got == data, "the bytes differ");
    world.send_all(handle, &data);
    world.tcp(handle).close();
    world.until("the host's end", |_| server.is_finished().then_some(()));
    assert!(server.join().unwrap() == data, "the bytes differ");
}

#[test]
fn a_guest_speaks_with_the_host() {
    if std::env::var_os(INSIDE).is_some() {
        transfer(GuestOffloads::default());
    } else {
        in_namespace("a_guest_speaks_with_the_host");
    }
}

#[test]
fn a_guest_that_takes_large_frames_gets_them() {
    if std::env::var_os(INSIDE).is_some() {
        transfer(GuestOffloads {
            checksum: true,
            tcp4: true,
            tcp6: true,
        });
    } else {
        in_namespace("a_guest_that_takes_large_frames_gets_them");
    }
}
