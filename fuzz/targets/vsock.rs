//! The socket device with a driver that keeps no rules, and processes of the host that connect, write,
//! read and leave.

#![no_main]

use belljar_devices::virtio::vsock::{Greetings, Vsock};
use belljar_fuzz::Input;
use belljar_fuzz::rings::Rings;
use libfuzzer_sys::fuzz_target;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

const GUEST: u64 = 3;
const HOST: u64 = 2;
/// The first of the ports that streams of the host get.
const HOST_PORTS: u32 = 1 << 30;

/// A packet's header, in order for the most part.
fn header(input: &mut Input<'_>) -> Vec<u8> {
    let near = |input: &mut Input<'_>| match input.u8() {
        0xff => input.u32(),
        small => u32::from(small) << 8,
    };
    let (source, destination) = match input.u8() {
        0xff => (input.u64(), input.u64()),
        _ => (GUEST, HOST),
    };
    let mut bytes = source.to_le_bytes().to_vec();
    bytes.extend(destination.to_le_bytes());
    bytes.extend(u32::from(input.u8() % 4).to_le_bytes());
    bytes.extend((HOST_PORTS + u32::from(input.u8() % 8)).to_le_bytes());
    bytes.extend(near(input).to_le_bytes());
    bytes.extend([1 + (input.u8() >> 7), 0, input.u8() % 9, 0]);
    bytes.extend(u32::from(input.u8() & 7).to_le_bytes());
    bytes.extend(near(input).to_le_bytes());
    bytes.extend(near(input).to_le_bytes());
    bytes
}

fn process(streams: &mut Vec<UnixStream>, input: &mut Input<'_>) {
    let what = input.u8();
    if streams.is_empty() {
        return;
    }
    let index = usize::from(input.u8()) % streams.len();
    let stream = &mut streams[index];
    match what % 5 {
        0 => drop(stream.read(&mut [0; 4096])),
        1 => drop(stream.write(&[1; 4096])),
        2 => drop(stream.shutdown(Shutdown::Write)),
        3 => drop(stream.shutdown(Shutdown::Read)),
        _ => drop(streams.remove(index)),
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let mut rings = Rings::new(Vsock::new(GUEST).expect("the host has descriptors"));
    let mut streams: Vec<UnixStream> = Vec::new();
    while !input.is_empty() {
        match input.u8() % 8 {
            0 if streams.len() < 16 => {
                let (ours, theirs) = UnixStream::pair().expect("the host has sockets");
                ours.set_nonblocking(true).expect("it is a socket");
                let greetings = Greetings {
                    accepted: b"yes\n".to_vec(),
                    refused: b"no\n".to_vec(),
                };
                let port = u32::from(input.u8() % 4);
                let host = rings.device().host();
                host.connect(port, theirs, greetings)
                    .expect("it is a socket");
                streams.push(ours);
            }
            1 => {
                let header = header(&mut input);
                rings.put(0, &header);
            }
            2 => process(&mut streams, &mut input),
            _ => rings.step(&mut input, |state| {
                Vsock::restore(state).expect("the host has descriptors")
            }),
        }
    }
    rings.end();
});
