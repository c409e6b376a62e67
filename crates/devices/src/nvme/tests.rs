//! The controller, used by its registers and queues as a driver does.

use super::*;
use crate::disk::testing::MemoryDisk;
use crate::pci::line::testing::Arrivals;
use belljar_memory::{GuestMemory, GuestPhysAddr};
use proptest::prelude::*;
use std::time::{Duration, Instant};

const ADMIN_SQ: u64 = 0x10_0000;
const ADMIN_CQ: u64 = 0x10_2000;
const IO_SQ: u64 = 0x10_4000;
const IO_CQ: u64 = 0x10_6000;
const DATA: u64 = 0x20_0000;
const ENTRIES: u32 = 8;
const SIZE: usize = 256 << 10;
/// The command register, and its bit that makes a function a bus master.
const COMMAND: usize = 4;
const BUS_MASTER: u8 = 1 << 2;

struct Driver {
    memory: GuestMemory,
    disk: Arc<MemoryDisk>,
    nvme: Nvme,
    arrivals: Arc<Arrivals>,
    tails: [u32; 2],
    heads: [u32; 2],
    phases: [bool; 2],
}

/// A command's double words by number; the others are 0.
type Words<'a> = &'a [(usize, u32)];

fn wait(mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_mins(1);
    while !condition() {
        assert!(Instant::now() < end, "the controller does not answer");
        std::thread::yield_now();
    }
}

/// Looks for a while whether `condition` stays true.
fn stays(mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_millis(50);
    while Instant::now() < end {
        assert!(condition(), "the controller does what it must not");
        std::thread::yield_now();
    }
}

impl Driver {
    fn new(change: impl FnOnce(&mut MemoryDisk)) -> Self {
        let memory = GuestMemory::new(4 << 20).unwrap();
        let arrivals = Arrivals::new();
        let mut disk = MemoryDisk::new(memory.dma().unwrap(), SIZE);
        change(&mut disk);
        let disk = Arc::new(disk);
        let second = MemoryDisk::new(memory.dma().unwrap(), SIZE);
        let parts = NvmeParts {
            disks: vec![Arc::clone(&disk) as _, Arc::new(second)],
            memory: memory.dma().unwrap(),
            messages: Arc::clone(&arrivals) as _,
            line: SharedLine::new(16, Arc::clone(&arrivals) as _),
        };
        let nvme = Nvme::new("test", 2, parts).unwrap();
        nvme.write_configuration(COMMAND, &[BUS_MASTER]);
        nvme.resume();
        Self {
            memory,
            disk,
            nvme,
            arrivals,
            tails: [0; 2],
            heads: [0; 2],
            phases: [true; 2],
        }
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.nvme.read_memory(0, offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: u64, value: u32) {
        self.nvme.write_memory(0, offset, &value.to_le_bytes());
    }

    fn enable(&mut self) {
        self.write(0x24, (ENTRIES - 1) << 16 | (ENTRIES - 1));
        self.nvme.write_memory(0, 0x28, &ADMIN_SQ.to_le_bytes());
        self.nvme.write_memory(0, 0x30, &ADMIN_CQ.to_le_bytes());
        self.write(0x14, 0x0046_0001);
        wait(|| self.read(0x1c) & 1 == 1);
        (self.tails, self.heads, self.phases) = ([0; 2], [0; 2], [true; 2]);
    }

    fn disable(&self) {
        self.write(0x14, 0);
        wait(|| self.read(0x1c) == 0);
        for queue in [ADMIN_CQ, IO_CQ] {
            self.memory.zero(GuestPhysAddr(queue), 0x1000).unwrap();
        }
    }

    /// Enables the controller with a pair of I/O queues.
    fn start(&mut self) {
        self.enable();
        let size = (ENTRIES - 1) << 16 | 1;
        let cq = [(0, 5), (6, IO_CQ as u32), (10, size), (11, 3)];
        assert_eq!(self.command(0, &cq).0, 0);
        let sq = [(0, 1), (6, IO_SQ as u32), (10, size), (11, 1 << 16 | 1)];
        assert_eq!(self.command(0, &sq).0, 0);
    }

    fn submit(&mut self, queue: usize, words: Words) {
        let mut bytes = [0; 64];
        for (number, word) in words {
            bytes[4 * number..4 * number + 4].copy_from_slice(&word.to_le_bytes());
        }
        let base = [ADMIN_SQ, IO_SQ][queue];
        let at = base + 64 * u64::from(self.tails[queue]);
        self.memory.write(GuestPhysAddr(at), &bytes).unwrap();
        self.tails[queue] = (self.tails[queue] + 1) % ENTRIES;
        self.write(0x1000 + 8 * queue as u64, self.tails[queue]);
    }

    /// The next completion, if there is one: status, result, command.
    fn poll(&mut self, queue: usize) -> Option<(u16, u32, u16)> {
        let base = [ADMIN_CQ, IO_CQ][queue];
        let at = GuestPhysAddr(base + 16 * u64::from(self.heads[queue]));
        let last = self.memory.load_u32(at.wrapping_add(12)).unwrap();
        if (last >> 16 & 1 == 1) != self.phases[queue] {
            return None;
        }
        let result = self.memory.load_u32(at).unwrap();
        self.heads[queue] += 1;
        if self.heads[queue] == ENTRIES {
            (self.heads[queue], self.phases[queue]) = (0, !self.phases[queue]);
        }
        self.write(0x1004 + 8 * queue as u64, self.heads[queue]);
        Some(((last >> 17) as u16, result, last as u16))
    }

    fn command(&mut self, queue: usize, words: Words) -> (u16, u32) {
        self.submit(queue, words);
        let mut found = None;
        wait(|| {
            found = self.poll(queue);
            found.is_some()
        });
        let (status, result, _) = found.unwrap();
        (status, result)
    }

    fn transfer(&mut self, opcode: u32, block: u32, blocks: u32) -> u16 {
        let words = [
            (0, opcode),
            (1, 1),
            (6, DATA as u32),
            (8, DATA as u32 + 0x1000),
            (10, block),
            (12, blocks - 1),
        ];
        self.command(1, &words).0
    }

    fn identify(&mut self, kind: u32, namespace: u32) -> (u16, Vec<u8>) {
        let words = [(0, 6), (1, namespace), (6, DATA as u32), (10, kind)];
        let (status, _) = self.command(0, &words);
        (status, self.bytes(DATA, 4096))
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(GuestPhysAddr(at), &mut bytes).unwrap();
        bytes
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.nvme.pause();
    }
}

#[test]
fn what_is_written_is_read_back() {
    let mut driver = Driver::new(|_| ());
    driver.start();
    let text: Vec<u8> = (0..8192_u32).map(|i| (i / 11) as u8).collect();
    driver.memory.write(GuestPhysAddr(DATA), &text).unwrap();
    assert_eq!(driver.transfer(1, 5, 16), 0);
    assert_eq!(lock(&driver.disk.bytes)[5 * 512..21 * 512], text);
    driver.memory.zero(GuestPhysAddr(DATA), 8192).unwrap();
    assert_eq!(driver.transfer(2, 5, 16), 0);
    assert_eq!(driver.bytes(DATA, 8192), text);
}

#[test]
fn queues_go_round() {
    let mut driver = Driver::new(|_| ());
    driver.start();
    for block in 0..3 * ENTRIES {
        assert_eq!(driver.transfer(2, block, 1), 0);
    }
}

#[test]
fn completions_come_by_message_and_by_line() {
    let mut driver = Driver::new(|_| ());
    driver.enable();
    driver.identify(1, 0);
    wait(|| driver.arrivals.lines.lock().unwrap().len() == 2);
    assert_eq!(driver.arrivals.take_lines(), [(16, true), (16, false)]);
    driver
        .nvme
        .write_memory(0, TABLE, &0xfee0_0000_u64.to_le_bytes());
    driver
        .nvme
        .write_memory(0, TABLE + 8, &0x51_u64.to_le_bytes());
    let at = driver.nvme.inner.msix_at;
    driver.nvme.write_configuration(at + 3, &[0x80]);
    driver.identify(1, 0);
    wait(|| !driver.arrivals.messages.lock().unwrap().is_empty());
    assert_eq!(driver.arrivals.take_messages(), [(0xfee0_0000, 0x51)]);
    assert_eq!(driver.arrivals.take_lines(), []);
}

#[test]
fn completions_come_by_plain_messages_that_registers_mask() {
    let mut driver = Driver::new(|_| ());
    driver.enable();
    let at = driver.nvme.inner.msi_at;
    let write = |driver: &Driver, at, data: &[u8]| driver.nvme.write_configuration(at, data);
    write(&driver, at + 4, &0xfee0_1000_u64.to_le_bytes());
    write(&driver, at + 12, &[0x60, 0]);
    // Enabled, with two vectors.
    write(&driver, at + 2, &[0x11]);
    driver.identify(1, 0);
    wait(|| driver.arrivals.take_messages() == [(0xfee0_1000, 0x60)]);
    let size = (ENTRIES - 1) << 16 | 1;
    let queue = |vector: u32| {
        [
            (0, 5),
            (6, IO_CQ as u32),
            (10, size),
            (11, vector << 16 | 3),
        ]
    };
    assert_eq!(driver.command(0, &queue(2)).0, 0x4108, "was not granted");
    assert_eq!(driver.command(0, &queue(1)).0, 0);
    let sq = [(0, 1), (6, IO_SQ as u32), (10, size), (11, 1 << 16 | 1)];
    assert_eq!(driver.command(0, &sq).0, 0);
    wait(|| driver.arrivals.messages.lock().unwrap().len() == 3);
    driver.arrivals.take_messages();
    driver.write(0x0c, 2);
    driver.submit(1, &[(0, 2), (1, 1), (6, DATA as u32)]);
    let posted = GuestPhysAddr(IO_CQ + 12);
    wait(|| driver.memory.load_u32(posted).unwrap() >> 16 & 1 == 1);
    stays(|| driver.arrivals.messages.lock().unwrap().is_empty());
    driver.write(0x10, 2);
    wait(|| driver.arrivals.take_messages() == [(0xfee0_1000, 0x61)]);
    // Masked in configuration space, it shows as pending.
    write(&driver, at + 16, &[1]);
    driver.identify(1, 0);
    let mut pending = [0; 4];
    wait(|| {
        driver.nvme.read_configuration(at + 20, &mut pending);
        pending == [1, 0, 0, 0]
    });
    write(&driver, at + 16, &[0]);
    wait(|| driver.arrivals.take_messages() == [(0xfee0_1000, 0x60)]);
    // The line was of no use once messages were enabled.
    driver.arrivals.take_lines();
    driver.identify(1, 0);
    stays(|| driver.arrivals.lines.lock().unwrap().is_empty());
}

/// The bit of PCI Express's device status, whose capability is the first.
fn has_pending_transactions(driver: &Driver) -> bool {
    let mut status = [0];
    driver.nvme.read_configuration(0x40 + 0x0a, &mut status);
    status[0] & 1 << 5 != 0
}

#[test]
fn commands_are_taken_only_while_the_controller_is_a_bus_master() {
    let mut driver = Driver::new(|disk| disk.delay = Duration::from_millis(30));
    driver.start();
    let read = [(0, 2), (1, 1), (6, DATA as u32)];
    driver.submit(1, &read);
    wait(|| driver.nvme.inner.in_flight.count() == 1);
    driver.nvme.write_configuration(COMMAND, &[0]);
    assert!(has_pending_transactions(&driver));
    wait(|| !has_pending_transactions(&driver));
    assert!(driver.poll(1).is_some(), "what was begun has ended");
    driver.submit(1, &read);
    stays(|| driver.nvme.inner.in_flight.count() == 0 && driver.poll(1).is_none());
    driver.nvme.write_configuration(COMMAND, &[BUS_MASTER]);
    wait(|| driver.poll(1).is_some());
    assert!(!has_pending_transactions(&driver));
}

#[test]
fn the_controller_tells_of_itself_and_its_namespaces() {
    let mut driver = Driver::new(|_| ());
    driver.enable();
    let (status, data) = driver.identify(1, 0);
    assert_eq!((status, &data[4..9], data[516]), (0, &b"test "[..], 2));
    assert!(data[768..].starts_with(b"nqn.2026-11.belljar:test\0"));
    let (status, data) = driver.identify(0, 2);
    assert_eq!((status, &data[..3]), (0, &[0, 2, 0][..]));
    assert_eq!(driver.identify(0, 3).0, 0x400b);
    let (status, data) = driver.identify(2, 1);
    assert_eq!((status, &data[..8]), (0, &[2, 0, 0, 0, 0, 0, 0, 0][..]));
    assert_eq!(driver.identify(3, 1).1[..2], [1, 8]);
    assert_eq!(driver.identify(0x77, 1).0, 0x4002);
}

#[test]
fn features_and_log_pages_are_told() {
    let mut driver = Driver::new(|_| ());
    driver.enable();
    assert_eq!(
        driver.command(0, &[(0, 9), (10, 7), (11, 0x1f_001f)]),
        (0, 0x1_0001)
    );
    assert_eq!(driver.command(0, &[(0, 9), (10, 6), (11, 0)]).0, 0);
    assert_eq!(driver.command(0, &[(0, 10), (10, 6)]), (0, 0));
    assert_eq!(driver.command(0, &[(0, 10), (10, 0x55)]).0, 0x4002);
    let log = [(0, 2), (6, DATA as u32), (10, 127 << 16 | 2)];
    assert_eq!(driver.command(0, &log).0, 0);
    assert_eq!(driver.bytes(DATA + 1, 2), 300_u16.to_le_bytes());
    assert_eq!(
        driver.command(0, &[(0, 2), (6, DATA as u32), (10, 99)]).0,
        0x4109
    );
}

#[test]
fn flush_zero_and_deallocate_reach_the_disk() {
    let mut driver = Driver::new(|disk| lock(&disk.bytes).fill(7));
    driver.start();
    assert_eq!(driver.command(1, &[(0, 0), (1, u32::MAX)]).0, 0);
    assert_eq!(*lock(&driver.disk.flushes), 1);
    assert_eq!(driver.transfer(8, 1, 2), 0);
    let mut range = [0; 16];
    (range[4], range[8]) = (4, 8);
    driver.memory.write(GuestPhysAddr(DATA), &range).unwrap();
    let words = [(0, 9), (1, 1), (6, DATA as u32), (10, 0), (11, 4)];
    assert_eq!(driver.command(1, &words).0, 0);
    let bytes = lock(&driver.disk.bytes).clone();
    let zero = |block: usize| bytes[block * 512..][..512].iter().all(|b| *b == 0);
    let zeros: Vec<usize> = (0..16).filter(|block| zero(*block)).collect();
    assert_eq!(zeros, [1, 2, 8, 9, 10, 11]);
}

#[test]
fn a_write_with_forced_access_is_flushed() {
    let mut driver = Driver::new(|_| ());
    driver.start();
    let words = [(0, 1), (1, 1), (6, DATA as u32), (12, 1 << 30)];
    assert_eq!(driver.command(1, &words).0, 0);
    assert_eq!(*lock(&driver.disk.flushes), 1);
}

#[test]
fn what_cannot_be_done_is_refused() {
    let mut driver = Driver::new(|disk| disk.broken = Some(512));
    driver.start();
    assert_eq!(driver.transfer(2, 512, 1), 0x4080, "beyond the end");
    assert_eq!(driver.transfer(2, u32::MAX, 1), 0x4080);
    assert_eq!(driver.transfer(2, 1, 1), 0x281, "a broken sector");
    assert_eq!(driver.transfer(1, 1, 1), 0x280);
    assert_eq!(driver.transfer(0x44, 0, 1), 0x4001);
    assert_eq!(driver.command(1, &[(0, 2), (1, 9)]).0, 0x400b);
    let outside = [(0, 2), (1, 1), (6, 0xa_0000)];
    assert_eq!(driver.command(1, &outside).0, 0x4004);
    let mut driver = Driver::new(|disk| disk.read_only = true);
    driver.start();
    assert_eq!(driver.transfer(1, 0, 1), 0x4020);
}

#[test]
fn queues_that_cannot_be_are_refused() {
    let mut driver = Driver::new(|_| ());
    driver.start();
    let size = (ENTRIES - 1) << 16;
    let at = IO_CQ as u32;
    let mut make = |opcode, number, place, more| {
        let words = [(0, opcode), (6, place), (10, size | number), (11, more)];
        driver.command(0, &words).0
    };
    assert_eq!(make(5, 1, at, 3), 0x4101, "exists");
    assert_eq!(make(5, 0, at, 3), 0x4101);
    assert_eq!(make(5, 3, at, 3), 0x4101);
    assert_eq!(make(5, 2, at + 16, 3), 0x4002);
    assert_eq!(make(5, 2, at, 2), 0x4002, "not contiguous");
    assert_eq!(make(5, 2, at, 9 << 16 | 3), 0x4108);
    assert_eq!(make(1, 2, at, 2 << 16 | 1), 0x4100);
    assert_eq!(make(4, 1, 0, 0), 0x410c, "has a submission queue");
    assert_eq!(make(0, 1, 0, 0), 0);
    assert_eq!(make(4, 1, 0, 0), 0);
    assert_eq!(make(4, 1, 0, 0), 0x4101);
}

#[test]
fn event_requests_are_held_and_limited() {
    let mut driver = Driver::new(|_| ());
    driver.enable();
    for _ in 0..4 {
        driver.submit(0, &[(0, 0x0c)]);
    }
    assert_eq!(driver.command(0, &[(0, 0x0c)]).0, 0x4105);
}

#[test]
fn a_full_completion_queue_holds_commands_back() {
    let mut driver = Driver::new(|_| ());
    driver.start();
    let read = |block: u32| [(0, 2 | block << 16), (1, 1), (6, DATA as u32), (10, block)];
    for block in 0..ENTRIES - 1 {
        driver.submit(1, &read(block));
    }
    let full = GuestPhysAddr(IO_CQ + 16 * u64::from(ENTRIES - 2) + 12);
    wait(|| driver.memory.load_u32(full).unwrap() >> 16 & 1 == 1);
    driver.submit(1, &read(20));
    driver.submit(1, &read(21));
    let mut ids = Vec::new();
    wait(|| {
        ids.extend(driver.poll(1).map(|(_, _, id)| u32::from(id)));
        ids.len() == ENTRIES as usize + 1
    });
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2, 3, 4, 5, 6, 20, 21]);
}

#[test]
fn a_reset_waits_for_commands_and_the_controller_can_be_used_again() {
    let mut driver = Driver::new(|disk| disk.delay = Duration::from_millis(30));
    driver.start();
    driver.memory.write(GuestPhysAddr(DATA), &[9; 512]).unwrap();
    driver.submit(1, &[(0, 1), (1, 1), (6, DATA as u32)]);
    wait(|| driver.nvme.inner.in_flight.count() == 1);
    driver.disable();
    assert_eq!(lock(&driver.disk.bytes)[0], 9);
    driver.start();
    assert_eq!(driver.transfer(2, 0, 1), 0);
}

#[test]
fn a_shutdown_flushes() {
    let mut driver = Driver::new(|_| ());
    driver.start();
    driver.write(0x14, 0x0046_4001);
    wait(|| driver.read(0x1c) >> 2 & 3 == 2);
    assert_eq!(*lock(&driver.disk.flushes), 1);
}

#[test]
fn a_saved_controller_goes_on_where_it_was() {
    let mut driver = Driver::new(|_| ());
    driver.start();
    driver.transfer(2, 0, 1);
    driver.nvme.pause();
    let state = driver.nvme.save();
    let parts = NvmeParts {
        disks: driver.nvme.inner.disks.clone(),
        memory: driver.memory.dma().unwrap(),
        messages: Arc::clone(&driver.arrivals) as _,
        line: SharedLine::new(16, Arc::clone(&driver.arrivals) as _),
    };
    driver.nvme = Nvme::restore(state.clone(), parts).unwrap();
    assert_eq!(driver.nvme.save(), state);
    driver.nvme.resume();
    assert_eq!(driver.transfer(2, 3, 1), 0);
}

/// The notification alone decides, whether the controller is enabled or not.
#[test]
fn a_shutdown_that_is_withdrawn_leaves_no_status() {
    let mut driver = Driver::new(|_| ());
    driver.write(0x14, 1 << 14);
    wait(|| driver.read(0x1c) == 2 << 2);
    driver.write(0x14, 0);
    wait(|| driver.read(0x1c) == 0);
    driver.enable();
    // Disabled and shut down at once: first the one, then the other.
    driver.write(0x14, 1 << 14);
    wait(|| driver.read(0x1c) == 2 << 2);
    driver.disable();
    driver.start();
    assert_eq!(driver.transfer(2, 0, 1), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any commands, doorbells and registers: no panic, no hang, and the controller works after a
    /// reset.
    #[test]
    fn a_hostile_driver_harms_nobody(
        commands in proptest::collection::vec(proptest::collection::vec(
            prop_oneof![0_u32..16, Just(DATA as u32), Just(IO_CQ as u32), any::<u32>()], 16), 12),
        writes in proptest::collection::vec((prop_oneof![0_u64..0x40, 0x1000_u64..0x1020],
            prop_oneof![0_u32..16, any::<u32>()]), 0..30),
        at_once: bool,
    ) {
        let mut driver = Driver::new(|disk| disk.at_once = at_once);
        driver.start();
        for (number, words) in commands.iter().enumerate() {
            let words: Vec<_> = words.iter().copied().enumerate().collect();
            driver.submit(number % 2, &words);
        }
        for (offset, value) in writes {
            driver.write(offset & !3, value);
            driver.read(offset);
        }
        driver.disable();
        driver.start();
        prop_assert_eq!(driver.transfer(2, 0, 1), 0);
    }
}
