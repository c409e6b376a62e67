//! The console with a driver and a terminal that are played here.

use super::super::COMMON_FEATURES;
use super::super::testing::{Driver, NEXT, Piece, SIZE, WRITE, stays, wait};
use super::*;
use belljar_memory::GuestPhysAddr;
use proptest::prelude::*;
use std::sync::Condvar;

const OUT: u64 = 0x40_0000;
const IN: u64 = 0x60_0000;
const RECEIVE: u16 = queue::RECEIVE as u16;
const TRANSMIT: u16 = queue::TRANSMIT as u16;
const ALL: u64 = COMMON_FEATURES | feature::SIZE | feature::EMERGENCY_WRITE;
/// The bits of the interrupt status: a queue, the configuration.
const CHANGED: u8 = 2;

/// A terminal that shows so many bytes, and then has no room until it gets some.
#[derive(Debug)]
struct Terminal {
    shown: Mutex<(Vec<u8>, usize)>,
    changed: Condvar,
    rooms: AtomicU32,
}

impl Terminal {
    fn new(room: usize) -> Arc<Self> {
        Arc::new(Self {
            shown: Mutex::new((Vec::new(), room)),
            changed: Condvar::new(),
            rooms: AtomicU32::new(0),
        })
    }

    fn shown(&self) -> Vec<u8> {
        lock(&self.shown).0.clone()
    }

    fn give_room(&self, room: usize) {
        lock(&self.shown).1 += room;
        self.changed.notify_all();
    }
}

impl ConsoleBackend for Terminal {
    fn write(&self, data: &[u8]) {
        assert!((1..=PIECE).contains(&data.len()));
        let mut shown = lock(&self.shown);
        shown.0.extend(data);
        shown.1 = shown.1.saturating_sub(data.len());
    }

    fn wait_for_room(&self, limit: Duration) -> bool {
        let full = |shown: &mut (Vec<u8>, usize)| shown.1 == 0;
        let shown = lock(&self.shown);
        let waited = self.changed.wait_timeout_while(shown, limit, full);
        !waited.unwrap().1.timed_out()
    }

    fn room(&self) {
        self.rooms.fetch_add(1, Ordering::SeqCst);
    }
}

/// A driver that has started the console, and the terminal.
fn started(room: usize) -> (Driver<Console>, Arc<Terminal>) {
    let terminal = Terminal::new(room);
    let driver = Driver::new(Console::new(Arc::<Terminal>::clone(&terminal)).unwrap());
    driver.start(ALL, 2);
    (driver, terminal)
}

/// Makes a chain of `pieces` available in the transmit queue.
fn offer(driver: &mut Driver<Console>, pieces: &[Piece]) {
    for (number, (at, len, flags)) in (0..).zip(pieces) {
        let more = if usize::from(number) + 1 < pieces.len() {
            NEXT
        } else {
            0
        };
        let piece = (*at, *len, flags | more);
        let ring = Driver::<Console>::ring(TRANSMIT);
        driver.descriptor(ring, number, piece, number + 1);
    }
    driver.offer(TRANSMIT, 0);
}

fn text(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n / 7) as u8).collect()
}

#[test]
fn what_the_guest_prints_is_shown_in_order_and_whole() {
    let (mut driver, terminal) = started(usize::MAX);
    let text = text(10_000);
    driver.memory.write(GuestPhysAddr(OUT), &text).unwrap();
    let pieces = [(OUT, 3, 0), (OUT + 3, 0, 0), (OUT + 3, 9_997, 0)];
    assert_eq!(driver.transfer(TRANSMIT, &pieces), 0);
    assert_eq!(terminal.shown(), text);
    driver.transfer(TRANSMIT, &[(OUT, 5, 0)]);
    assert_eq!(terminal.shown()[10_000..], text[..5]);
}

#[test]
fn what_is_typed_reaches_the_guest_as_it_has_room() {
    let (mut driver, _) = started(usize::MAX);
    let host = driver.device.device().host();
    assert_eq!(host.receive(b"abcde"), 5);
    assert_eq!(driver.transfer(RECEIVE, &[(IN, 3, WRITE)]), 3);
    assert_eq!(driver.transfer(RECEIVE, &[(IN + 3, 8, WRITE)]), 2);
    assert_eq!(driver.bytes(IN, 6), b"abcde\0");
    driver.descriptor(Driver::<Console>::ring(RECEIVE), 0, (IN, 8, WRITE), 0);
    driver.offer(RECEIVE, 0);
    stays(|| driver.used(RECEIVE) == 2);
    host.receive(b"f");
    wait(|| driver.used(RECEIVE) == 3);
    assert_eq!(driver.bytes(IN, 2), b"fb");
}

#[test]
fn who_types_ahead_is_refused_at_last_and_told_of_room() {
    let (mut driver, terminal) = started(usize::MAX);
    let host = driver.device.device().host();
    let typed = text(MOST_INPUT + 10);
    assert_eq!(host.receive(&typed), MOST_INPUT);
    assert_eq!(host.receive(&typed[MOST_INPUT..]), 0);
    assert_eq!(terminal.rooms.load(Ordering::SeqCst), 0);
    assert_eq!(driver.transfer(RECEIVE, &[(IN, 4, WRITE)]), 4);
    wait(|| terminal.rooms.load(Ordering::SeqCst) == 1);
    assert_eq!(host.receive(&typed[MOST_INPUT..]), 4);
    let rest = MOST_INPUT as u32;
    assert_eq!(driver.transfer(RECEIVE, &[(IN + 4, rest, WRITE)]), rest);
    assert_eq!(driver.bytes(IN, MOST_INPUT + 4), typed[..MOST_INPUT + 4]);
}

/// Drivers begin with a reset.
#[test]
fn what_was_typed_before_the_driver_came_is_kept() {
    let (mut driver, _) = started(usize::MAX);
    driver.device.device().host().receive(b"early");
    driver.reset();
    driver.start(ALL, 2);
    assert_eq!(driver.transfer(RECEIVE, &[(IN, 8, WRITE)]), 5);
}

#[test]
fn a_terminal_that_does_not_read_holds_the_guest_up_but_no_pause_or_reset() {
    let (mut driver, terminal) = started(1);
    let text = text(5 * PIECE);
    driver.memory.write(GuestPhysAddr(OUT), &text).unwrap();
    offer(&mut driver, &[(OUT, text.len() as u32, 0)]);
    wait(|| terminal.shown().len() == PIECE);
    stays(|| driver.used(TRANSMIT) == 0 && terminal.shown().len() == PIECE);
    driver.device.pause();
    let state = driver.device.save();
    let device = Console::restore(state.device_state(), Arc::<Terminal>::clone(&terminal) as _);
    driver.restore(state, device.unwrap());
    driver.device.resume();
    terminal.give_room(usize::MAX / 2);
    wait(|| driver.used(TRANSMIT) == 1);
    assert_eq!(terminal.shown(), text, "nothing twice, nothing lost");
    lock(&terminal.shown).1 = 0;
    offer(&mut driver, &[(OUT, 5, 0)]);
    driver.reset();
    driver.start(ALL, 2);
    terminal.give_room(100);
    driver.transfer(TRANSMIT, &[(OUT + 7, 1, 0)]);
    assert_eq!(terminal.shown()[text.len()..], text[7..8]);
}

#[test]
fn the_size_is_told_once_the_driver_has_printed_and_when_it_changes() {
    let (mut driver, _) = started(usize::MAX);
    let host = driver.device.device().host();
    host.set_size(80, 25);
    stays(|| driver.read::<1>(0x1000)[0] & CHANGED == 0);
    assert_eq!(driver.read::<8>(0x2000), [80, 0, 25, 0, 1, 0, 0, 0]);
    driver.transfer(TRANSMIT, &[(OUT, 1, 0)]);
    wait(|| driver.read::<1>(0x1000)[0] & CHANGED != 0);
    host.set_size(80, 25);
    stays(|| driver.read::<1>(0x1000)[0] & CHANGED == 0);
    let generation = driver.read::<1>(21);
    host.set_size(0x1234, 7);
    wait(|| driver.read::<1>(0x1000)[0] & CHANGED != 0);
    assert_eq!(driver.read::<4>(0x2000), [0x34, 0x12, 7, 0]);
    assert_ne!(driver.read::<1>(21), generation);
    // A terminal that was resized during a pause.
    driver.device.pause();
    host.set_size(90, 30);
    driver.device.resume();
    wait(|| driver.read::<1>(0x1000)[0] & CHANGED != 0);
}

#[test]
fn a_driver_that_does_not_know_sizes_is_not_told() {
    let (mut driver, _) = started(usize::MAX);
    driver.reset();
    driver.start(COMMON_FEATURES, 2);
    driver.device.device().host().set_size(80, 25);
    driver.transfer(TRANSMIT, &[(OUT, 1, 0)]);
    stays(|| driver.read::<1>(0x1000)[0] & CHANGED == 0);
}

#[test]
fn an_emergency_write_prints_at_once_and_needs_no_queues() {
    let terminal = Terminal::new(0);
    let driver = Driver::new(Console::new(Arc::<Terminal>::clone(&terminal)).unwrap());
    driver.write(0x2008, &u32::from(b'!').to_le_bytes());
    driver.write(0x2008, b"?");
    driver.write(0x2000, &[1, 1, 1, 1]);
    assert_eq!(terminal.shown(), b"!");
    assert_eq!(driver.read::<4>(0x2000), [0; 4]);
}

#[test]
fn a_saved_console_is_the_same_again() {
    let (mut driver, terminal) = started(0);
    let host = driver.device.device().host();
    host.receive(b"typed");
    host.set_size(100, 40);
    offer(&mut driver, &[(OUT, 9, 0)]);
    driver.device.pause();
    let state = driver.device.device().save();
    assert_eq!(state.input, b"typed");
    let again = Console::restore(state.clone(), terminal).unwrap();
    assert_eq!(again.save(), state);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any rings in both queues, while somebody types, and a reset in the midst of it: no panic, no
    /// hang, and the console works afterwards.
    #[test]
    fn a_hostile_driver_harms_nobody(
        rings in proptest::collection::vec(any::<u8>(), 0x40),
        descriptors in proptest::collection::vec(
            (0_u64..0x90_0000, any::<u32>(), 0_u16..8, 0_u16..20), 32),
        heads in proptest::collection::vec((0_u16..2, 0_u16..SIZE), 0..40),
        typed in proptest::collection::vec(any::<u8>(), 0..200),
        room in prop_oneof![Just(0), 0_usize..5000, Just(1 << 30)],
        features: u64,
    ) {
        let (mut driver, terminal) = started(room);
        driver.reset();
        driver.start(ALL & features | COMMON_FEATURES, 2);
        let host = driver.device.device().host();
        for (number, (at, len, flags, next)) in (0..).zip(descriptors) {
            let (queue, number) = (number / SIZE, number % SIZE);
            let piece = (at, len >> (number * 2), flags);
            driver.descriptor(Driver::<Console>::ring(queue), number, piece, next);
        }
        for (queue, head) in heads {
            driver.offer(queue, head);
            host.receive(&typed);
            host.set_size(head, queue);
        }
        let available = Driver::<Console>::ring(TRANSMIT) + 0x1000;
        driver.memory.write(GuestPhysAddr(available), &rings).unwrap();
        driver.notify(TRANSMIT);
        driver.reset();
        *lock(&terminal.shown) = (Vec::new(), 1 << 30);
        lock(&driver.device.device().shared.input).bytes.clear();
        driver.start(ALL, 2);
        driver.memory.write(GuestPhysAddr(OUT), b"well").unwrap();
        driver.transfer(TRANSMIT, &[(OUT, 4, 0)]);
        prop_assert_eq!(terminal.shown(), b"well");
        host.receive(b"ok");
        prop_assert_eq!(driver.transfer(RECEIVE, &[(IN, 4, WRITE)]), 2);
    }
}
