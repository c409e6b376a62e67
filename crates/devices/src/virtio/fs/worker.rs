//! The worker: takes messages from the queues and puts the answers into them.

use crate::virtio::{Chain, Doorbell, Queue};
use belljar_share::{FileServer, MOST_REQUEST};
use std::sync::Arc;

/// Messages of a queue before the worker looks after anything else.
const ROUND: usize = 32;

/// The worker of a file system device.
#[derive(Debug)]
pub(super) struct Worker {
    queues: Vec<Queue>,
    message: Vec<u8>,
    reply: Vec<u8>,
}

impl Worker {
    pub fn new(queues: Vec<Queue>) -> Self {
        Self {
            queues,
            message: vec![0; MOST_REQUEST],
            reply: Vec::new(),
        }
    }

    pub fn into_queues(self) -> Vec<Queue> {
        self.queues
    }

    /// Works until it is told to stop.
    pub fn run(&mut self, server: &mut FileServer, doorbell: &Doorbell) {
        let mut more = true;
        loop {
            let rung = doorbell.take_between(more);
            if rung & Doorbell::STOP != 0 {
                return;
            }
            more = false;
            for index in 0..self.queues.len() {
                more |= self.serve(index, server);
            }
        }
    }

    /// Serves a queue for a while; tells whether there is more.
    fn serve(&mut self, index: usize, server: &mut FileServer) -> bool {
        let mut left = ROUND;
        loop {
            self.queues[index].disable_notifications();
            while left > 0
                && let Some(chain) = self.queues[index].pop()
            {
                self.answer(index, &chain, server);
                left -= 1;
            }
            if left == 0 || !self.queues[index].enable_notifications() {
                return left == 0;
            }
        }
    }

    /// Answers the message in a chain, at once: whoever waits for it need not wait for others.
    fn answer(&mut self, index: usize, chain: &Chain, server: &mut FileServer) {
        let queue = &mut self.queues[index];
        let memory = Arc::clone(queue.memory());
        let given = usize::try_from(chain.readable.len()).unwrap_or(usize::MAX);
        // Of a message that is too long the server sees that it is not whole.
        let message = &mut self.message[..given.min(MOST_REQUEST)];
        let room = usize::try_from(chain.writable.len()).unwrap_or(usize::MAX);
        self.reply.clear();
        if chain.readable.read(&memory, 0, message).is_ok() {
            server.handle(message, room, &mut self.reply);
        }
        let written = chain.writable.write(&memory, 0, &self.reply);
        let count = written.map_or(0, |()| self.reply.len());
        queue.complete(chain.head, count as u32);
        queue.signal();
    }
}
