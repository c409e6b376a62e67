//! The worker: moves what is printed and what is typed.

use super::{PIECE, RESIZED, Shared, feature, queue};
use crate::timers::lock;
use crate::virtio::{Activation, Doorbell, Queue, Signals};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long the worker waits for a reader before it looks after anything else.
const PATIENCE: Duration = Duration::from_millis(20);
/// Pieces that are printed, and buffers that are filled, before anything else has its turn.
const ROUND: usize = 64;

/// The worker of a console.
#[derive(Debug)]
pub(super) struct Worker {
    shared: Arc<Shared>,
    receive: Queue,
    transmit: Queue,
    features: u64,
    signals: Arc<Signals>,
    piece: [u8; PIECE],
}

impl Worker {
    pub fn new(shared: Arc<Shared>, activation: Activation) -> Self {
        let mut queues = activation.queues;
        // The transport gives as many queues as the device has sizes.
        let transmit = queues.remove(queue::TRANSMIT);
        let receive = queues.remove(queue::RECEIVE);
        Self {
            shared,
            receive,
            transmit,
            features: activation.features,
            signals: activation.signals,
            piece: [0; PIECE],
        }
    }

    /// Serves the queues until it is told to stop, and gives them back.
    pub fn run(mut self) -> Vec<Queue> {
        let doorbell = Arc::clone(&self.shared.doorbell);
        // The terminal may have another size than before a pause.
        self.tell_size();
        let mut more = false;
        loop {
            let rung = doorbell.take_between(more);
            if rung & Doorbell::STOP != 0 {
                return vec![self.receive, self.transmit];
            }
            if rung & 1 << RESIZED != 0 {
                self.tell_size();
            }
            let printed = self.print();
            let typed = self.hand_over();
            more = printed || typed;
        }
    }

    /// Tells the driver that the size has changed, if there is one that listens.
    fn tell_size(&self) {
        let known = self.shared.size.load(Ordering::SeqCst) != 0;
        let listens = self.features & feature::SIZE != 0;
        if known && listens && self.shared.heard.load(Ordering::SeqCst) {
            self.signals.configuration_changed();
        }
    }

    /// Prints what the guest has for the backend; tells whether there is more.
    fn print(&mut self) -> bool {
        let mut left = ROUND;
        while let Some(chain) = self.transmit.pop() {
            let len = chain.readable.len();
            let mut printed = self.shared.printed.load(Ordering::SeqCst);
            while printed < len {
                if left == 0 || !self.shared.backend.wait_for_room(PATIENCE) {
                    // It goes on there, also after a pause.
                    self.shared.printed.store(printed, Ordering::SeqCst);
                    self.transmit.put_back(chain);
                    self.transmit.signal();
                    return true;
                }
                let count = (len - printed).min(PIECE as u64);
                let piece = &mut self.piece[..count as usize];
                let memory = self.transmit.memory();
                // The buffers were RAM when the chain was taken, and RAM stays RAM.
                if chain.readable.read(memory, printed, piece).is_ok() {
                    self.shared.backend.write(piece);
                }
                printed += count;
                left -= 1;
            }
            self.shared.printed.store(0, Ordering::SeqCst);
            self.transmit.complete(chain.head, 0);
            if !self.shared.heard.swap(true, Ordering::SeqCst) {
                self.tell_size();
            }
            // A chain without bytes counts too.
            left = left.saturating_sub(1);
            if left == 0 {
                self.transmit.signal();
                return true;
            }
        }
        self.transmit.signal();
        self.transmit.enable_notifications()
    }

    /// Hands the guest what was typed; tells whether there is more that there is room for.
    fn hand_over(&mut self) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut left = ROUND;
        while left > 0 && !lock(&shared.input).bytes.is_empty() {
            left -= 1;
            let Some(chain) = self.receive.pop() else {
                if self.receive.enable_notifications() {
                    continue;
                }
                break;
            };
            let room = usize::try_from(chain.writable.len()).unwrap_or(usize::MAX);
            let (bytes, refused) = {
                let mut input = lock(&shared.input);
                let count = room.min(input.bytes.len());
                let bytes: Vec<u8> = input.bytes.drain(..count).collect();
                (bytes, count > 0 && std::mem::take(&mut input.refused))
            };
            let memory = self.receive.memory();
            let written = chain.writable.write(memory, 0, &bytes);
            let count = if written.is_ok() { bytes.len() } else { 0 };
            self.receive.complete(chain.head, count as u32);
            if refused {
                shared.backend.room();
            }
        }
        self.receive.signal();
        left == 0
    }
}
