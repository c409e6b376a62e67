//! The worker: moves packets between the queues and the table, and waits for the host's sockets.

use super::packet::{HEADER, Header};
use super::table::{Interest, Table};
use super::{Shared, lock, queue};
use crate::virtio::{Chain, Doorbell, Queue};
use belljar_memory::DmaMemory;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The most data of one packet, in either direction. 64 KiB is what drivers send at most.
const MOST_DATA: usize = 64 << 10;
/// Packets of the guest, and for it, before the worker looks after anything else.
const ROUND: usize = 256;
/// The event that tells that connections are gone. 5.10.6.9.
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// The worker of a socket device.
#[derive(Debug)]
pub(super) struct Worker {
    shared: Arc<Shared>,
    queues: Vec<Queue>,
    data: Vec<u8>,
}

impl Worker {
    pub fn new(shared: Arc<Shared>, queues: Vec<Queue>) -> Self {
        Self {
            shared,
            queues,
            data: vec![0; MOST_DATA],
        }
    }

    pub fn into_queues(self) -> Vec<Queue> {
        self.queues
    }

    /// Works until it is told to stop.
    pub fn run(&mut self) {
        let shared = Arc::clone(&self.shared);
        // Only a reset takes the table otherwise, and that comes when the worker has stopped.
        let mut table = lock(&shared.table);
        loop {
            if shared.doorbell.take() & Doorbell::STOP != 0 {
                return;
            }
            for dial in lock(&shared.dials).drain(..) {
                table.dial(dial.port, dial.stream, dial.greetings);
            }
            let more = self.work(&mut table);
            wait(&shared.doorbell, &mut table, more);
        }
    }

    /// Does what can be done now; tells whether there is more.
    pub(super) fn work(&mut self, table: &mut Table) -> bool {
        self.tell_event();
        let received = self.receive(table);
        let sent = self.send(table);
        received || sent
    }

    /// Takes the guest's packets; tells whether there are more.
    fn receive(&mut self, table: &mut Table) -> bool {
        let Some(queue) = self.queues.get_mut(queue::TRANSMIT) else {
            return false;
        };
        let mut left = ROUND;
        loop {
            while left > 0
                && let Some(chain) = queue.pop()
            {
                let memory = Arc::clone(queue.memory());
                if let Some((header, count)) = parse(&chain, &memory, &mut self.data) {
                    table.receive(&header, &self.data[..count]);
                }
                queue.complete(chain.head, 0);
                left -= 1;
            }
            if left == 0 || !queue.enable_notifications() {
                break;
            }
        }
        queue.signal();
        left == 0
    }

    /// Sends what the table has for the guest; tells whether there is more that there is room for.
    fn send(&mut self, table: &mut Table) -> bool {
        let Some(queue) = self.queues.get_mut(queue::RECEIVE) else {
            return false;
        };
        let mut left = ROUND;
        while left > 0 && table.wants_to_send() {
            let Some(chain) = queue.pop() else {
                if queue.enable_notifications() {
                    continue;
                }
                break;
            };
            let room = usize::try_from(chain.writable.len()).unwrap_or(usize::MAX);
            let Some(room) = room.checked_sub(HEADER) else {
                // A buffer that not even a header fits into is of no use.
                queue.complete(chain.head, 0);
                left -= 1;
                continue;
            };
            let most = room.min(MOST_DATA);
            let Some(header) = table.next(&mut self.data[..most]) else {
                queue.put_back(chain);
                break;
            };
            let memory = Arc::clone(queue.memory());
            let data = &self.data[..header.length as usize];
            let written = chain
                .writable
                .write(&memory, 0, &header.to_bytes())
                .and_then(|()| chain.writable.write(&memory, HEADER as u64, data));
            let count = if written.is_ok() {
                HEADER + data.len()
            } else {
                0
            };
            queue.complete(chain.head, count as u32);
            left -= 1;
        }
        queue.signal();
        left == 0
    }

    /// Tells the guest that its connections are gone, if they are.
    fn tell_event(&mut self) {
        let Some(queue) = self.queues.get_mut(queue::EVENT) else {
            return;
        };
        if !self.shared.forgotten.load(Ordering::SeqCst) {
            return;
        }
        if let Some(chain) = queue.pop() {
            let memory = Arc::clone(queue.memory());
            let written = chain.writable.write(&memory, 0, &TRANSPORT_RESET);
            let count = if written.is_ok() {
                TRANSPORT_RESET.len()
            } else {
                0
            };
            queue.complete(chain.head, count as u32);
            queue.signal();
            self.shared.forgotten.store(false, Ordering::SeqCst);
        } else {
            queue.enable_notifications();
        }
    }
}

/// The packet of a chain, whose data is put into `data`; `None` for what is none.
fn parse(chain: &Chain, memory: &DmaMemory, data: &mut [u8]) -> Option<(Header, usize)> {
    let mut bytes = [0; HEADER];
    chain.readable.read(memory, 0, &mut bytes).ok()?;
    let header = Header::from_bytes(&bytes);
    let count = header.length as usize;
    let data = data.get_mut(..count)?;
    chain.readable.read(memory, HEADER as u64, data).ok()?;
    Some((header, count))
}

/// Waits until the doorbell rings or a socket of the host is ready; not at all if there is `more`
/// to do.
fn wait(doorbell: &Doorbell, table: &mut Table, more: bool) {
    let interests = table.interests();
    let mut files = vec![PollFd::new(doorbell, PollFlags::IN)];
    files.extend(interests.iter().map(|(interest, file)| {
        let mut wanted = PollFlags::empty();
        wanted.set(PollFlags::IN, interest.reads);
        wanted.set(PollFlags::OUT, interest.writes);
        PollFd::from_borrowed_fd(*file, wanted)
    }));
    let limit = more.then(Timespec::default);
    // An interrupted wait is like one that nothing came of.
    let _ = poll(&mut files, limit.as_ref());
    let ready: Vec<(Interest, PollFlags)> = interests
        .iter()
        .zip(files.iter().skip(1))
        .filter(|(_, file)| !file.revents().is_empty())
        .map(|((interest, _), file)| (*interest, file.revents()))
        .collect();
    drop(files);
    drop(interests);
    for (interest, events) in ready {
        let closed = events.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL);
        table.ready(
            interest.ports,
            interest.reads && events.intersects(PollFlags::IN | PollFlags::HUP),
            interest.writes && events.intersects(PollFlags::OUT | PollFlags::HUP | PollFlags::ERR),
            closed,
        );
    }
}
