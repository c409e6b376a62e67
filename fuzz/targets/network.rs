//! Frames of any content on user-mode networks: one that reaches nothing, where anything is sent, and
//! one that leads to a listener of this process, where segments belong to one connection.

#![no_main]

use belljar_clock::{Clock, ManualClock, Nanos, SeededEntropy};
use belljar_fuzz::Input;
use belljar_net::user::{GATEWAY_MAC, Resolvers, UserNetwork};
use belljar_net::wire::tcp::{self, flags};
use belljar_net::wire::{Head, checksum, ethernet, ip, protocol};
use belljar_net::{Backend, Guest, GuestOffloads, Mac, PartialChecksum, UserOptions, VnetHeader};
use libfuzzer_sys::fuzz_target;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::Arc;

const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// A guest that has room for so many frames.
struct Sink {
    offloads: bool,
    room: u8,
    /// The sequence number of the last SYN that came.
    answer: u32,
}

impl Guest for Sink {
    fn offloads(&self) -> GuestOffloads {
        GuestOffloads {
            checksum: self.offloads,
            tcp4: self.offloads,
            tcp6: self.offloads,
        }
    }

    fn room(&mut self, _: usize) -> bool {
        self.room > 0
    }

    fn deliver(&mut self, _: VnetHeader, parts: &[&[u8]]) -> bool {
        if self.room == 0 {
            return false;
        }
        self.room -= 1;
        let frame = parts.concat();
        let segment = ethernet::Frame::parse(&frame).and_then(|frame| {
            let packet = ip::Packet::parse(frame.payload)?;
            tcp::parse(packet.payload, GATEWAY.into(), GUEST.into(), true).map(|(header, _)| header)
        });
        if let Some(header) = segment.filter(|header| header.has(flags::SYN)) {
            self.answer = header.sequence;
        }
        true
    }
}

fn network(options: &UserOptions, clock: &Arc<ManualClock>) -> UserNetwork {
    UserNetwork::new(
        options,
        Resolvers::Fixed(Vec::new()),
        MAC,
        Arc::clone(clock) as Arc<dyn Clock>,
        Arc::new(SeededEntropy::new(1)),
    )
    .expect("the host has descriptors")
}

/// Any bytes, which more or less look like a packet.
fn anything(input: &mut Input<'_>) -> Vec<u8> {
    let (shape, len) = (input.u8(), usize::from(input.u16() % 1600));
    let mut frame = input.take(len).to_vec();
    if shape & 1 != 0 && frame.len() >= 34 {
        frame[..6].copy_from_slice(&GATEWAY_MAC.0);
        frame[6] &= 0xfe;
        frame[12..14].copy_from_slice(if shape & 2 != 0 { &[8, 6] } else { &[8, 0] });
        if shape & 6 == 4 {
            let len = (frame.len() - 14) as u16;
            frame[14] = 0x45;
            frame[16..18].copy_from_slice(&len.to_be_bytes());
            frame[26..30].copy_from_slice(&GUEST.octets());
            frame[30..33].copy_from_slice(&[10, 0, 2]);
            frame[24..26].fill(0);
            let sum = checksum::of(&frame[14..34]);
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
    }
    frame
}

/// A segment of the one connection.
fn segment(input: &mut Input<'_>, port: u16, answer: u32) -> Vec<u8> {
    let near = |input: &mut Input<'_>| i32::from(input.u16() as i16) as u32;
    let header = tcp::Header {
        source: 1000 + u16::from(input.u8() & 1),
        destination: port,
        sequence: 100u32.wrapping_add(near(input)),
        acknowledgment: answer.wrapping_add(1).wrapping_add(near(input)),
        flags: input.u8(),
        window: input.u16(),
        mss: (input.u8() & 1 != 0).then(|| input.u16()),
        shift: (input.u8() & 1 != 0).then(|| input.u8()),
    };
    let len = usize::from(input.u16());
    let payload = vec![7; len.min(60_000)];
    let mut head = Head::default();
    let len = tcp::header_len(&header) + payload.len();
    ethernet::write(&mut head, GATEWAY_MAC, MAC, ethernet::IPV4);
    ip::write(&mut head, GUEST, GATEWAY, protocol::TCP, len, None);
    tcp::write(&mut head, &header);
    [head.as_slice(), &payload].concat()
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let clock = Arc::new(ManualClock::new(0));
    let restrict = UserOptions {
        restrict: true,
        ..UserOptions::default()
    };
    let loopback = UserOptions {
        loopback: true,
        ..UserOptions::default()
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the host has ports");
    listener.set_nonblocking(true).expect("a socket");
    let port = listener.local_addr().expect("a socket").port();
    let mut closed = network(&restrict, &clock);
    let mut open = network(&loopback, &clock);
    let mut sink = Sink {
        offloads: input.u8() & 1 != 0,
        room: 255,
        answer: 0,
    };
    let mut streams: Vec<TcpStream> = Vec::new();
    let partial = VnetHeader {
        checksum: Some(PartialChecksum {
            start: 34,
            offset: 16,
        }),
        gso: None,
    };
    for _ in 0..200 {
        if input.is_empty() {
            break;
        }
        sink.room = input.u8();
        match input.u8() % 6 {
            0 | 1 => {
                let frame = anything(&mut input);
                closed.transmit(VnetHeader::default(), &frame, &mut sink);
            }
            2 | 3 => {
                let frame = segment(&mut input, port, sink.answer);
                open.transmit(partial, &frame, &mut sink);
            }
            4 => clock.advance(u64::from(input.u16()) * Nanos::SECOND / 1000),
            _ => {
                if let Ok((stream, _)) = listener.accept()
                    && stream.set_nonblocking(true).is_ok()
                {
                    streams.push(stream);
                }
                let what = input.u8();
                for stream in &mut streams {
                    let _ = match what % 4 {
                        0 => stream.read(&mut [0; 4096]).map(|_| ()),
                        1 => stream.write(&[1; 4096]).map(|_| ()),
                        2 => stream.shutdown(std::net::Shutdown::Write),
                        _ => Ok(()),
                    };
                }
                if what == 0xff {
                    streams.clear();
                }
            }
        }
        closed.poll(&mut sink);
        open.poll(&mut sink);
        let _ = (closed.deadline(), open.deadline());
    }
    open.reset();
    closed.reset();
});
