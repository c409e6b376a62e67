//! The network card with a driver that keeps no rules, on a network that sends frames back, is busy,
//! or has frames of its own.

#![no_main]

use belljar_clock::{ManualClock, Nanos};
use belljar_devices::virtio::net::Net;
use belljar_fuzz::Input;
use belljar_fuzz::rings::Rings;
use belljar_net::{Backend, Guest, Mac, Progress, Transmit, VnetHeader};
use libfuzzer_sys::fuzz_target;
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, LazyLock};

/// What is never readable: nobody writes to the other end.
static SILENT: LazyLock<(UnixStream, UnixStream)> =
    LazyLock::new(|| UnixStream::pair().expect("the host has sockets"));

/// A network that sends every frame back.
#[derive(Debug, Default)]
struct Mirror {
    frames: VecDeque<(VnetHeader, Vec<u8>)>,
}

impl Backend for Mirror {
    fn fd(&self) -> BorrowedFd<'_> {
        SILENT.0.as_fd()
    }

    fn deadline(&self) -> Option<Nanos> {
        None
    }

    fn transmit(&mut self, header: VnetHeader, frame: &[u8], guest: &mut dyn Guest) -> Transmit {
        if self.frames.len() >= 16 {
            return Transmit::Busy;
        }
        if guest.room(frame.len()) && frame.first() == Some(&1) {
            guest.deliver(header, &[frame, &[7; 100]]);
        }
        self.frames.push_back((header, frame.to_vec()));
        Transmit::Taken
    }

    fn poll(&mut self, guest: &mut dyn Guest) -> Progress {
        while let Some((header, frame)) = self.frames.front() {
            let (first, rest) = frame.split_at(frame.len() / 2);
            if !guest.deliver(*header, &[first, &[], rest]) {
                return Progress::Starved;
            }
            self.frames.pop_front();
        }
        Progress::Idle
    }

    fn reset(&mut self) {
        self.frames.clear();
    }
}

fn network() -> Box<dyn Backend> {
    Box::new(Mirror::default())
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let clock = Arc::new(ManualClock::new(0));
    let rate = (input.u8() & 1 != 0).then(|| u64::from(input.u32()) + 1);
    let mac = Mac([2, 0, 0, 0, 0, 1]);
    let card = Net::new(mac, rate, network(), clock.clone());
    let mut rings = Rings::new(card.expect("the host has descriptors"));
    while !input.is_empty() {
        match input.u8() % 8 {
            0 => clock.advance(u64::from(input.u32())),
            1 => {
                // A header that is in order, for the most part, before a frame.
                let header = [
                    input.u8() & 1,
                    input.u8() & 0x83,
                    54,
                    0,
                    100,
                    0,
                    34,
                    0,
                    16,
                    0,
                    0,
                    0,
                ];
                rings.put(0, &header);
            }
            _ => rings.step(&mut input, |state| {
                Net::restore(state, network(), clock.clone()).expect("the host has descriptors")
            }),
        }
    }
    rings.end();
});
