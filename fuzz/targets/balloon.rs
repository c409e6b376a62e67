//! The balloon with a driver that keeps no rules: page numbers, reports and statistics of any content.

#![no_main]

use belljar_devices::virtio::balloon::Balloon;
use belljar_fuzz::Input;
use belljar_fuzz::rings::{MEMORY, Rings};
use libfuzzer_sys::fuzz_target;
use std::time::Duration;

/// Numbers of pages, most of which are RAM that nothing else here needs.
fn numbers(input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..input.u8() % 32 {
        let number = match input.u8() {
            0xff => input.u32(),
            0xfe => 0xa0,
            page => 0x300 + u32::from(page),
        };
        bytes.extend(number.to_le_bytes());
    }
    bytes
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let balloon = Balloon::new(MEMORY.clone()).expect("the host has descriptors");
    let mut rings = Rings::new(balloon);
    while !input.is_empty() {
        let host = rings.device().host();
        match input.u8() % 8 {
            0 => {
                let numbers = numbers(&mut input);
                rings.put(0, &numbers);
            }
            1 => host.set_target(u64::from(input.u32())),
            2 => {
                let _ = host.statistics(Duration::ZERO);
                assert!(host.size().target <= host.size().most);
            }
            _ => rings.step(&mut input, |state| {
                Balloon::restore(state, MEMORY.clone()).expect("the host has descriptors")
            }),
        }
    }
    rings.end();
});
