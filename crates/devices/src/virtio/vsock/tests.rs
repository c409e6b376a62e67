//! The socket device: its table with a guest that is played here, and the whole device with a
//! driver.

use super::connection::{Greetings, ROOM};
use super::packet::{HEADER, HOST, Header, NO_RECEIVE, NO_SEND, Operation, STREAM};
use super::table::{MOST_CONNECTIONS, Table};
use super::*;
use crate::virtio::testing::{Driver, NEXT, SIZE, WRITE, wait};
use crate::virtio::{COMMON_FEATURES, VirtioDevice};
use belljar_memory::GuestPhysAddr;
use proptest::prelude::*;
use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;

const GUEST: u64 = 3;
const PORT: u32 = 1024;
/// What a guest of these tests says that it has room for.
const GUEST_ROOM: u32 = 4096;

fn greetings() -> Greetings {
    Greetings {
        accepted: b"yes\n".to_vec(),
        refused: b"no\n".to_vec(),
    }
}

/// A table, the other end of the one stream in it, and what the guest knows.
struct Played {
    table: Table,
    client: UnixStream,
    host_port: u32,
    passed_on: u32,
}

impl Played {
    /// A stream that was asked for.
    fn dialled() -> Self {
        let (client, ours) = UnixStream::pair().unwrap();
        for stream in [&client, &ours] {
            stream.set_nonblocking(true).unwrap();
        }
        let mut table = Table::new(GUEST);
        table.dial(PORT, ours, greetings());
        let request = table.next(&mut []).unwrap();
        assert_eq!(request.operation, Some(Operation::Request));
        assert_eq!((request.source, request.destination), (HOST, GUEST));
        assert_eq!(request.destination_port, PORT);
        Self {
            table,
            client,
            host_port: request.source_port,
            passed_on: 0,
        }
    }

    /// One that the guest has accepted.
    fn open() -> Self {
        let mut played = Self::dialled();
        played.say(Operation::Response, 0, b"");
        assert_eq!(played.client_reads(), b"yes\n");
        played
    }

    fn header(&self, operation: Operation, flags: u32, length: usize) -> Header {
        Header {
            source: GUEST,
            destination: HOST,
            source_port: PORT,
            destination_port: self.host_port,
            length: length as u32,
            kind: STREAM,
            operation: Some(operation),
            flags,
            room: GUEST_ROOM,
            passed_on: self.passed_on,
        }
    }

    fn say(&mut self, operation: Operation, flags: u32, data: &[u8]) {
        let header = self.header(operation, flags, data.len());
        self.table.receive(&header, data);
    }

    /// Looks at the host's sockets once, as the worker does.
    fn look(&mut self) {
        let ready: Vec<_> = self.table.interests().iter().map(|(i, _)| *i).collect();
        for interest in ready {
            let (reads, writes) = (interest.reads, interest.writes);
            self.table.ready(interest.ports, reads, writes, false);
        }
    }

    /// The next packet for the guest and its data.
    fn hear(&mut self) -> Option<(Operation, Header, Vec<u8>)> {
        self.look();
        let mut data = vec![0; 1 << 16];
        let header = self.table.next(&mut data)?;
        data.truncate(header.length as usize);
        Some((header.operation.unwrap(), header, data))
    }

    fn client_reads(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        let mut bytes = [0; 1 << 12];
        loop {
            match self.client.read(&mut bytes) {
                Ok(0) => return all,
                Ok(count) => all.extend(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return all,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn client_is_at_the_end(&mut self) -> bool {
        matches!(self.client.read(&mut [0]), Ok(0))
    }
}

#[test]
fn a_refusal_is_told_and_closes_the_stream() {
    let mut played = Played::dialled();
    played.say(Operation::Reset, 0, b"");
    assert_eq!(played.client_reads(), b"no\n");
    assert!(played.client_is_at_the_end());
    assert_eq!(played.table.len(), 0);
    // A reset is not answered.
    assert!(played.hear().is_none());
}

#[test]
fn bytes_go_both_ways() {
    let mut played = Played::open();
    played.say(Operation::Data, 0, b"from the guest");
    assert_eq!(played.client_reads(), b"from the guest");
    played.client.write_all(b"from the host").unwrap();
    let (operation, header, data) = played.hear().unwrap();
    assert_eq!(
        (operation, &data[..]),
        (Operation::Data, &b"from the host"[..])
    );
    assert_eq!((header.room, header.passed_on), (ROOM, 14));
    assert!(played.hear().is_none());
}

#[test]
fn no_more_is_sent_than_the_guest_has_room_for() {
    let mut played = Played::open();
    played
        .client
        .write_all(&[7; 3 * GUEST_ROOM as usize])
        .unwrap();
    let mut got = 0;
    while let Some((_, _, data)) = played.hear() {
        got += data.len();
    }
    assert_eq!(got, GUEST_ROOM as usize);
    played.passed_on = GUEST_ROOM;
    played.say(Operation::CreditUpdate, 0, b"");
    let (_, _, data) = played.hear().unwrap();
    assert_eq!(data.len(), GUEST_ROOM as usize);
    // Nonsense is no credit.
    played.passed_on = 5 * GUEST_ROOM;
    played.say(Operation::CreditUpdate, 0, b"");
    assert!(played.hear().is_none());
}

#[test]
fn a_host_that_does_not_read_holds_up_the_guest_and_one_that_reads_lets_it_go_on() {
    let mut played = Played::open();
    let chunk = [1; 1 << 12];
    let mut sent = 0_u32;
    let mut passed_on = 0;
    // The guest keeps to what it is told.
    while sent.wrapping_sub(passed_on) + chunk.len() as u32 <= ROOM {
        played.say(Operation::Data, 0, &chunk);
        sent += chunk.len() as u32;
        while let Some((operation, header, _)) = played.hear() {
            assert_eq!(operation, Operation::CreditUpdate);
            passed_on = header.passed_on;
        }
    }
    assert_eq!(played.table.len(), 1);
    let mut read = 0;
    while read < sent as usize {
        read += played.client_reads().len();
        while let Some((operation, header, _)) = played.hear() {
            assert_eq!(operation, Operation::CreditUpdate);
            passed_on = header.passed_on;
        }
    }
    assert_eq!(read, sent as usize);
    assert!(sent - passed_on < ROOM / 4);
}

#[test]
fn a_guest_that_sends_more_than_there_is_room_for_loses_the_connection() {
    let mut played = Played::open();
    let chunk = vec![1; 1 << 16];
    let mut count = 0;
    while played.table.len() > 0 {
        played.say(Operation::Data, 0, &chunk);
        count += 1;
        assert!(count < 100);
    }
    let (operation, ..) = played.hear().unwrap();
    assert_eq!(operation, Operation::Reset);
}

#[test]
fn each_side_can_end_its_direction_alone() {
    let mut played = Played::open();
    played.client.shutdown(Shutdown::Write).unwrap();
    let (operation, header, _) = played.hear().unwrap();
    assert_eq!((operation, header.flags), (Operation::Shutdown, NO_SEND));
    played.say(Operation::Data, 0, b"still");
    assert_eq!(played.client_reads(), b"still");
    played.say(Operation::Shutdown, NO_SEND, b"");
    assert!(played.client_is_at_the_end());
    assert_eq!(played.table.len(), 1);
    played.say(Operation::Shutdown, NO_SEND | NO_RECEIVE, b"");
    assert_eq!(played.hear().unwrap().0, Operation::Reset);
    assert_eq!(played.table.len(), 0);
}

#[test]
fn what_the_guest_sent_before_it_closed_reaches_a_slow_host() {
    let mut played = Played::open();
    let chunk = [5; 1 << 12];
    let mut sent = 0;
    let mut passed_on = 0;
    while sent as u32 - passed_on + chunk.len() as u32 <= ROOM {
        played.say(Operation::Data, 0, &chunk);
        sent += chunk.len();
        while let Some((_, header, _)) = played.hear() {
            passed_on = header.passed_on;
        }
    }
    played.say(Operation::Shutdown, NO_SEND | NO_RECEIVE, b"");
    assert_eq!(played.hear().unwrap().0, Operation::Reset);
    // The guest has forgotten the connection.
    played.say(Operation::Data, 0, b"late");
    assert_eq!(played.hear().unwrap().0, Operation::Reset);
    let mut read = 0;
    while played.table.len() > 0 {
        read += played.client_reads().len();
        played.look();
    }
    read += played.client_reads().len();
    assert_eq!(read, sent);
    assert!(played.client_is_at_the_end());
}

#[test]
fn a_host_that_has_left_ends_the_connection_in_the_guest() {
    let mut played = Played::open();
    played.client.write_all(b"last words").unwrap();
    let (other, _) = UnixStream::pair().unwrap();
    drop(std::mem::replace(&mut played.client, other));
    let ports = (played.host_port, PORT);
    played.table.ready(ports, true, false, true);
    let mut data = [0; 64];
    let header = played.table.next(&mut data).unwrap();
    assert_eq!(&data[..header.length as usize], b"last words");
    let header = played.table.next(&mut data).unwrap();
    assert_eq!(header.operation, Some(Operation::Shutdown));
    assert_eq!(header.flags, NO_SEND | NO_RECEIVE);
    played.say(Operation::Reset, 0, b"");
    assert_eq!(played.table.len(), 0);
}

#[test]
fn requests_of_the_guest_and_packets_of_others_find_nobody() {
    let mut table = Table::new(GUEST);
    let played = Played::dialled();
    table.receive(&played.header(Operation::Request, 0, 0), &[]);
    let answer = table.next(&mut []).unwrap();
    assert_eq!(answer.operation, Some(Operation::Reset));
    let stranger = Header {
        source: 77,
        ..played.header(Operation::Request, 0, 0)
    };
    table.receive(&stranger, &[]);
    assert!(table.next(&mut []).is_none());
}

#[test]
fn connections_and_resets_are_bounded() {
    let mut table = Table::new(GUEST);
    let mut kept = Vec::new();
    for _ in 0..2 * MOST_CONNECTIONS {
        let (client, ours) = UnixStream::pair().unwrap();
        table.dial(PORT, ours, greetings());
        kept.push(client);
    }
    assert_eq!(table.len(), MOST_CONNECTIONS);
    assert!(matches!(kept.last().unwrap().read(&mut [0]), Ok(0)));
    let played = Played::dialled();
    for port in 0..10_000 {
        let header = Header {
            destination_port: port,
            ..played.header(Operation::Request, 0, 0)
        };
        table.receive(&header, &[]);
    }
    let mut resets = 0;
    while table
        .next(&mut [])
        .is_some_and(|header| header.operation == Some(Operation::Reset))
    {
        resets += 1;
    }
    assert!(resets <= 256, "{resets}");
}

/// Where the buffers of the driver's queues lie.
const RX: u64 = 0x20_0000;
const TX: u64 = 0x30_0000;

/// Offers a receive buffer of `len` bytes from descriptor `number` on.
fn offer_receive(driver: &mut Driver<Vsock>, number: u16, len: u32) {
    let at = RX + 0x1_0000 * u64::from(number);
    let ring = Driver::<Vsock>::ring(0);
    driver.descriptor(ring, number, (at, len, WRITE), 0);
    driver.offer(0, number);
}

fn transmit(driver: &mut Driver<Vsock>, header: &Header, data: &[u8]) {
    let write = |at, bytes: &[u8]| driver.memory.write(GuestPhysAddr(at), bytes).unwrap();
    write(TX, &header.to_bytes());
    write(TX + HEADER as u64, data);
    let len = (HEADER + data.len()) as u32;
    driver.transfer(1, &[(TX, 20, 0), (TX + 20, len - 20, 0)]);
}

fn received(driver: &Driver<Vsock>, number: u16) -> (Header, Vec<u8>) {
    let at = RX + 0x1_0000 * u64::from(number);
    let bytes: [u8; HEADER] = driver.bytes(at, HEADER).try_into().unwrap();
    let header = Header::from_bytes(&bytes);
    let data = driver.bytes(at + HEADER as u64, header.length as usize);
    (header, data)
}

#[test]
fn a_driver_talks_to_a_process_of_the_host() {
    let device = Vsock::new(GUEST).unwrap();
    let host = device.host();
    let mut driver = Driver::new(device);
    // Asked for before there is a driver.
    let (mut client, ours) = UnixStream::pair().unwrap();
    host.connect(PORT, ours, greetings()).unwrap();
    driver.start(COMMON_FEATURES, 3);
    assert_eq!(driver.read::<8>(0x2000), GUEST.to_le_bytes());
    offer_receive(&mut driver, 0, 4096);
    wait(|| driver.used(0) == 1);
    let (request, _) = received(&driver, 0);
    assert_eq!(request.operation, Some(Operation::Request));
    let header = |operation, length: usize| Header {
        source: GUEST,
        destination: HOST,
        source_port: PORT,
        destination_port: request.source_port,
        length: length as u32,
        kind: STREAM,
        operation: Some(operation),
        flags: 0,
        room: GUEST_ROOM,
        passed_on: 0,
    };
    transmit(&mut driver, &header(Operation::Response, 0), b"");
    transmit(&mut driver, &header(Operation::Data, 5), b"hello");
    let mut bytes = [0; 9];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"yes\nhello");
    client.write_all(b"and back").unwrap();
    // A buffer that is too small is given back unused, and the bytes come in the next ones.
    offer_receive(&mut driver, 1, 8);
    offer_receive(&mut driver, 2, HEADER as u32 + 3);
    offer_receive(&mut driver, 3, 4096);
    wait(|| driver.used(0) == 4);
    assert_eq!(received(&driver, 2).1, b"and");
    assert_eq!(received(&driver, 3).1, b" back");
    // A reset of the guest forgets the connection.
    driver.reset();
    assert_eq!(client.read(&mut bytes).unwrap(), 0);
}

#[test]
fn a_restored_device_tells_that_its_connections_are_gone() {
    let state = Vsock::new(GUEST).unwrap().save();
    let mut driver = Driver::new(Vsock::restore(state).unwrap());
    driver.start(COMMON_FEATURES, 3);
    assert_eq!(driver.transfer(2, &[(RX, 8, WRITE)]), 4);
    assert_eq!(driver.bytes(RX, 4), [0; 4]);
}

proptest! {
    #[test]
    fn any_packets_are_survived(
        packets in proptest::collection::vec(
            (any::<[u8; HEADER]>(), 0_u16..9, any::<bool>(), 0_usize..300),
            1..60,
        ),
        writes in any::<bool>(),
    ) {
        let mut played = Played::open();
        if writes {
            played.client.write_all(&[1; 1000]).unwrap();
        }
        for (bytes, operation, known, length) in packets {
            let mut bytes = bytes;
            bytes[0..8].copy_from_slice(&GUEST.to_le_bytes());
            bytes[8..16].copy_from_slice(&HOST.to_le_bytes());
            bytes[30..32].copy_from_slice(&operation.to_le_bytes());
            if known {
                bytes[16..20].copy_from_slice(&PORT.to_le_bytes());
                bytes[20..24].copy_from_slice(&played.host_port.to_le_bytes());
                bytes[28..30].copy_from_slice(&STREAM.to_le_bytes());
            }
            let header = Header::from_bytes(&bytes);
            played.table.receive(&header, &vec![0; length]);
            prop_assert!(played.table.len() <= 1);
            let _ = played.hear();
        }
    }

    #[test]
    fn any_chains_are_survived(
        chains in proptest::collection::vec(
            (0_u16..3, any::<u64>(), any::<u32>(), 0_u16..8, any::<[u8; HEADER]>()),
            1..20,
        ),
    ) {
        let device = Vsock::new(GUEST).unwrap();
        let host = device.host();
        let mut driver = Driver::new(device);
        driver.start(COMMON_FEATURES, 3);
        let (_client, ours) = UnixStream::pair().unwrap();
        host.connect(PORT, ours, greetings()).unwrap();
        for (number, (queue, address, len, flags, header)) in (0_u16..).zip(chains) {
            let number = number % SIZE;
            let write = |at, bytes: &[u8]| driver.memory.write(GuestPhysAddr(at), bytes).unwrap();
            write(TX, &header);
            // Half of the addresses are good.
            let address = if address & 1 == 0 { TX } else { address };
            let len = if len & 1 == 0 { len & 0xfff } else { len };
            let ring = Driver::<Vsock>::ring(queue);
            driver.descriptor(ring, number, (address, len, flags & !NEXT | flags & 1), number);
            driver.offer(queue, number);
        }
        // The worker still stops.
        driver.reset();
    }
}
