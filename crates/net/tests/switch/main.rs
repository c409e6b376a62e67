//! Machines on a switch.

#[allow(dead_code, reason = "the harness is shared with other tests")]
#[path = "../user/guest.rs"]
mod guest;

use belljar_clock::{Clock, HostClock, HostEntropy, ManualClock, Nanos};
use belljar_net::switch::{SwitchError, SwitchPort};
use belljar_net::{
    Backend, Guest, GuestOffloads, Mac, PartialChecksum, Progress, Transmit, VnetHeader,
};
use guest::World;
use smoltcp::wire::Ipv4Address;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A guest that only keeps what it gets.
#[derive(Default)]
struct Keeper(Vec<Vec<u8>>);

impl Guest for Keeper {
    fn offloads(&self) -> GuestOffloads {
        GuestOffloads::default()
    }

    fn room(&mut self, _: usize) -> bool {
        true
    }

    fn deliver(&mut self, header: VnetHeader, parts: &[&[u8]]) -> bool {
        assert_eq!(header, VnetHeader::default());
        self.0.push(parts.concat());
        true
    }
}

struct Machine {
    port: SwitchPort,
    guest: Keeper,
    mac: Mac,
}

impl Machine {
    fn new(directory: &Path, clock: &Arc<ManualClock>, number: u8) -> Self {
        let entropy = HostEntropy::new().unwrap();
        let clock = Arc::clone(clock) as Arc<dyn Clock>;
        Self {
            port: SwitchPort::join(directory, clock, &entropy).unwrap(),
            guest: Keeper::default(),
            mac: Mac([2, 0, 0, 0, 0, number]),
        }
    }

    fn send(&mut self, to: Mac, text: &str) -> Transmit {
        let frame = [&to.0[..], &self.mac.0, &[0x88, 0xb5], text.as_bytes()].concat();
        self.port
            .transmit(VnetHeader::default(), &frame, &mut self.guest)
    }

    /// What has come since.
    fn got(&mut self) -> Vec<String> {
        while self.port.poll(&mut self.guest) == Progress::More {}
        let frames = std::mem::take(&mut self.guest.0);
        frames
            .iter()
            .map(|frame| String::from_utf8_lossy(&frame[14..]).into_owned())
            .collect()
    }
}

fn three(directory: &Path) -> (Arc<ManualClock>, [Machine; 3]) {
    let clock = Arc::new(ManualClock::new(0));
    let machines = [1, 2, 3].map(|number| Machine::new(directory, &clock, number));
    (clock, machines)
}

fn ports(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn frames_go_to_everybody_until_it_is_known_who_they_are_for() {
    let folder = tempfile::tempdir().unwrap();
    let (_, [mut a, mut b, mut c]) = three(&folder.path().join("s"));
    a.send(b.mac, "who?");
    assert_eq!((b.got().len(), c.got().len()), (1, 1));
    b.send(a.mac, "me");
    assert_eq!((a.got(), c.got()), (vec!["me".to_owned()], vec![]));
    a.send(b.mac, "good");
    assert_eq!((b.got(), c.got()), (vec!["good".to_owned()], vec![]));
    a.send(Mac::BROADCAST, "all");
    assert_eq!((b.got().len(), c.got().len(), a.got().len()), (1, 1, 0));
}

#[test]
fn a_machine_that_ends_without_notice_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let directory = folder.path().join("s");
    let (clock, [mut a, mut b, c]) = three(&directory);
    a.send(Mac::BROADCAST, "hello");
    b.send(a.mac, "hello");
    a.got();
    // As if its process were killed: the file stays, nobody listens.
    let path = ports(&directory);
    let kept = folder.path().join("kept");
    std::fs::create_dir(&kept).unwrap();
    for path in &path {
        std::fs::hard_link(path, kept.join(path.file_name().unwrap())).unwrap();
    }
    drop(b);
    for entry in ports(&kept) {
        let back = directory.join(entry.file_name().unwrap());
        if !back.exists() {
            std::fs::rename(entry, back).unwrap();
        }
    }
    assert_eq!(ports(&directory).len(), 3);
    clock.advance(Nanos::SECOND);
    assert_eq!(
        a.send(Mac([2, 0, 0, 0, 0, 2]), "are you there?"),
        Transmit::Taken
    );
    assert_eq!(ports(&directory).len(), 2);
    let mut c = c;
    c.got();
    a.send(Mac::BROADCAST, "the others go on");
    assert_eq!(c.got(), ["the others go on"]);
    let mut d = Machine::new(&directory, &clock, 4);
    clock.advance(Nanos::SECOND);
    a.send(Mac::BROADCAST, "welcome");
    assert_eq!(d.got(), ["welcome"]);
    drop((a, c, d));
    assert_eq!(ports(&directory).len(), 0);
}

#[test]
fn a_machine_that_takes_nothing_does_not_hold_others_up() {
    let folder = tempfile::tempdir().unwrap();
    let (clock, [mut a, mut b, mut c]) = three(&folder.path().join("s"));
    for machine in [&mut b, &mut c] {
        machine.send(a.mac, "hello");
    }
    for machine in [&mut a, &mut b, &mut c] {
        machine.got();
    }
    let mut sent = 0;
    while a.send(b.mac, "x") == Transmit::Taken {
        sent += 1;
        assert!(sent < 100_000, "nothing stops the sender");
    }
    // The sender waits for a while, and then loses frames.
    assert!(a.port.deadline().is_some());
    clock.advance(Nanos::SECOND);
    assert_eq!(a.send(b.mac, "lost"), Transmit::Taken);
    assert_eq!(a.send(c.mac, "for c"), Transmit::Taken);
    assert!(c.got().contains(&"for c".to_owned()));
    assert_eq!(b.got().len(), sent);
    assert_eq!(a.send(b.mac, "again"), Transmit::Taken);
    assert_eq!(b.got(), ["again"]);
}

#[test]
fn a_guest_that_takes_no_partial_checksums_gets_whole_ones() {
    let folder = tempfile::tempdir().unwrap();
    let (_, [mut a, mut b, _c]) = three(&folder.path().join("s"));
    let header = VnetHeader {
        checksum: Some(PartialChecksum {
            start: 14,
            offset: 0,
        }),
        gso: None,
    };
    let frame = [&[0xff; 6][..], &a.mac.0, &[0x88, 0xb5, 0, 0, 0x12, 0x34]].concat();
    a.port.transmit(header, &frame, &mut a.guest);
    while b.port.poll(&mut b.guest) == Progress::More {}
    assert_eq!(b.guest.0[0][14..], [0xed, 0xcb, 0x12, 0x34]);
}

#[test]
fn a_directory_that_others_can_enter_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(0));
    let entropy = HostEntropy::new().unwrap();
    let open = folder.path().join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o755)).unwrap();
    let error = SwitchPort::join(&open, Arc::clone(&clock), &entropy).unwrap_err();
    assert!(matches!(error, SwitchError::NotPrivate(_)), "{error}");
    let long = folder.path().join("x".repeat(120));
    let error = SwitchPort::join(&long, clock, &entropy).unwrap_err();
    assert!(matches!(error, SwitchError::Path(_)), "{error}");
}

#[test]
fn guests_on_a_switch_speak_tcp_with_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let clock: Arc<dyn Clock> = Arc::new(HostClock::new());
    let world = |number: u8| {
        let entropy = HostEntropy::new().unwrap();
        let directory = folder.path().join("s");
        let port = SwitchPort::join(&directory, Arc::clone(&clock), &entropy).unwrap();
        World::on(
            Box::new(port),
            Mac([2, 0, 0, 0, 0, number]),
            Ipv4Address::new(10, 7, 0, number),
            GuestOffloads::default(),
            Arc::clone(&clock),
        )
    };
    let (mut a, mut b) = (world(5), world(6));
    let listening = b.listen(80);
    let handle = a.connect((Ipv4Address::new(10, 7, 0, 6), 80), 64 << 10);
    let data: Vec<u8> = (0..1_000_000u32).map(|n| (n / 251) as u8).collect();
    let (mut sent, mut got) = (0, Vec::new());
    a.until("the transfer", |a| {
        b.step();
        let socket = a.tcp(handle);
        if socket.can_send() {
            sent += socket.send_slice(&data[sent..]).unwrap();
        }
        b.receive(listening, &mut got);
        (got.len() == data.len()).then_some(())
    });
    assert!(got == data, "the bytes differ");
}
