//! The console with a driver that keeps no rules, at a terminal that is typed at, resized, and read
//! from now and then.

#![no_main]

use belljar_devices::virtio::console::{Console, ConsoleBackend, PIECE};
use belljar_fuzz::Input;
use belljar_fuzz::rings::Rings;
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A terminal with room for so many bytes.
#[derive(Debug, Default)]
struct Terminal {
    room: AtomicUsize,
}

impl ConsoleBackend for Terminal {
    fn write(&self, data: &[u8]) {
        assert!((1..=PIECE).contains(&data.len()));
        let less = |room: usize| Some(room.saturating_sub(data.len()));
        let _ = self
            .room
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
    }

    fn wait_for_room(&self, limit: Duration) -> bool {
        let has_room = self.room.load(Ordering::SeqCst) > 0;
        if !has_room {
            // Not as long as it could: that would be most of a run's time.
            std::thread::sleep(limit / 100);
        }
        has_room
    }

    fn room(&self) {}
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let terminal = Arc::new(Terminal::default());
    let console = Console::new(terminal.clone()).expect("the host has descriptors");
    let mut rings = Rings::new(console);
    while !input.is_empty() {
        match input.u8() % 8 {
            0 => {
                let count = usize::from(input.u8());
                let bytes = input.take(count);
                assert!(rings.device().host().receive(bytes) <= bytes.len());
            }
            1 => rings.device().host().set_size(input.u16(), input.u16()),
            2 => terminal.room.store(input.u16().into(), Ordering::SeqCst),
            _ => rings.step(&mut input, |state| {
                Console::restore(state, terminal.clone()).expect("the host has descriptors")
            }),
        }
    }
    rings.end();
});
