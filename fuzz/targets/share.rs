//! Messages of any content to a shared directory that has a link out, a socket, and a neighbour that is
//! nobody's business.

#![no_main]

use belljar_fuzz::Input;
use belljar_share::{FileServer, ShareConfig};
use libfuzzer_sys::fuzz_target;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;

const SECRET: &[u8] = b"nobody's business";

/// Names that are there, names that are not, and what must be none.
const NAMES: [&[u8]; 12] = [
    b"a\0",
    b"d\0",
    b"l\0",
    b"s\0",
    b"x\0",
    b"y\0",
    b"secret\0",
    b"..\0",
    b".\0",
    b"\0",
    b"../private\0",
    b"../private/secret\0",
];

const INIT: u32 = 26;
const FALLOCATE: u32 = 43;

/// The header, with a length that is as it should be but for `lie`.
fn message(opcode: u32, node: u64, body: &[u8], lie: u32) -> Vec<u8> {
    let len = (40 + body.len() as u32).wrapping_add(lie);
    let mut message = len.to_le_bytes().to_vec();
    message.extend(opcode.to_le_bytes());
    message.extend(7_u64.to_le_bytes());
    message.extend(node.to_le_bytes());
    message.extend([0; 16]);
    message.extend(body);
    message
}

/// A number that is often one of a node or a handle.
fn number(input: &mut Input<'_>) -> u64 {
    match input.u8() {
        0xff => input.u64(),
        small => u64::from(small % 12),
    }
}

fn body(input: &mut Input<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    for _ in 0..input.u8() % 10 {
        match input.u8() % 8 {
            0..=2 => body.extend(number(input).to_le_bytes()),
            3 | 4 => body.extend((number(input) as u32).to_le_bytes()),
            5 | 6 => body.extend(NAMES[usize::from(input.u8()) % NAMES.len()]),
            _ => {
                let len = usize::from(input.u8());
                body.extend(input.take(len));
            }
        }
    }
    body
}

/// One message of the guest.
fn wild(input: &mut Input<'_>) -> Vec<u8> {
    let opcode = match input.u8() {
        0xff => input.u32(),
        known => u32::from(known % 54),
    };
    let node = number(input);
    let mut body = body(input);
    // The host's disk is not to be filled.
    if opcode == FALLOCATE
        && let Some(len) = body.get_mut(18..24)
    {
        len.fill(0);
    }
    let lie = if input.u8() == 0xff { input.u32() } else { 0 };
    let mut message = message(opcode, node, &body, lie);
    if input.u8() == 0xff {
        message.truncate(usize::from(input.u8()));
    }
    message
}

/// The shared directory, with a neighbour.
fn furnish(house: &Path) {
    let (shared, private) = (house.join("shared"), house.join("private"));
    fs::create_dir_all(shared.join("d")).expect("a directory");
    fs::create_dir(&private).expect("a directory");
    fs::write(private.join("secret"), SECRET).expect("a file");
    fs::write(shared.join("a"), "inside").expect("a file");
    symlink("../private", shared.join("l")).expect("a link");
    UnixListener::bind(shared.join("s")).expect("a socket");
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let house = tempfile::tempdir().expect("a directory");
    furnish(house.path());
    let config = ShareConfig {
        read_only: input.u8() & 1 != 0,
        ..ShareConfig::new(house.path().join("shared"))
    };
    let mut server = FileServer::open(&config).expect("the directory is there");
    let mut reply = Vec::new();
    let terms: Vec<u8> = [7_u32, 31, 0, u32::MAX]
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect();
    server.handle(&message(INIT, 0, &terms, 0), 4096, &mut reply);
    for _ in 0..100 {
        if input.is_empty() {
            break;
        }
        let message = wild(&mut input);
        let room = match input.u8() {
            0xff => usize::from(input.u8()),
            _ => 1 << 16,
        };
        server.handle(&message, room, &mut reply);
        assert!(reply.len() <= room);
        assert!(!reply.windows(SECRET.len()).any(|part| part == SECRET));
        if let Some(len) = reply.first_chunk() {
            assert_eq!(u32::from_le_bytes(*len) as usize, reply.len());
        }
        if input.u8() == 0xff {
            server = FileServer::restore(&config, server.save()).expect("it is still there");
        }
    }
    let private = house.path().join("private");
    let secret = fs::read(private.join("secret")).expect("it is still there");
    assert_eq!(secret, SECRET);
    assert_eq!(fs::read_dir(private).expect("a directory").count(), 1);
    assert_eq!(fs::read_dir(house.path()).expect("a directory").count(), 2);
});
