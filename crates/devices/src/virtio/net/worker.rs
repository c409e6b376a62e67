//! The thread of a card.

use super::super::{Activation, Doorbell, Queue};
use super::receive::Receive;
use super::{CONTROL, control, feature, offloads};
use belljar_clock::{Clock, Nanos};
use belljar_net::rate::RateLimit;
use belljar_net::vnet::HEADER_LEN;
use belljar_net::{Backend, Progress, Transmit, VnetHeader};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::AsFd;
use std::sync::Arc;

/// Frames that the guest sends which are taken before the network has its turn.
const BATCH: usize = 64;
/// The largest frame, its header included. A large segment has up to 65535 bytes beyond Ethernet's
/// header, which may carry a tag.
const LARGEST: usize = HEADER_LEN + 18 + 65_535;

/// Why no more frames are taken from the transmit queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pause {
    /// There is none.
    Empty,
    /// The network has its turn.
    Turn,
    /// The network takes none for now.
    Busy,
    /// The limit holds the next one back until then.
    Held(Nanos),
}

/// What serves a card's queues.
pub(super) struct Worker<'a> {
    receive: Receive,
    transmit: Queue,
    control: Queue,
    doorbell: &'a Doorbell,
    clock: Arc<dyn Clock>,
    limit: Option<RateLimit>,
    frame: Box<[u8]>,
}

impl<'a> Worker<'a> {
    /// A worker for the queues of `activation`, which are three.
    pub fn new(
        activation: Activation,
        doorbell: &'a Doorbell,
        clock: Arc<dyn Clock>,
        rate: Option<u64>,
    ) -> Self {
        let features = activation.features;
        let mut queues = activation.queues.into_iter();
        let mut next = || {
            queues
                .next()
                .expect("the transport gives as many queues as the device has sizes")
        };
        let (receive, transmit, control) = (next(), next(), next());
        let now = clock.now();
        Self {
            receive: Receive::new(
                receive,
                offloads(features),
                features & feature::MRG_RXBUF != 0,
                Arc::clone(&clock),
                rate,
            ),
            transmit,
            control,
            doorbell,
            limit: rate.map(|rate| RateLimit::new(rate, now)),
            clock,
            frame: vec![0; LARGEST].into_boxed_slice(),
        }
    }

    /// Serves the queues until the worker is to stop, and gives them back.
    pub fn run(mut self, network: &mut dyn Backend) -> Vec<Queue> {
        loop {
            let rung = self.doorbell.take();
            if rung & Doorbell::STOP != 0 {
                return vec![self.receive.into_queue(), self.transmit, self.control];
            }
            if rung & 1 << CONTROL != 0 {
                control::serve(&mut self.control);
            }
            self.receive.held_until = None;
            self.receive.disable_notifications();
            self.transmit.disable_notifications();
            let pause = self.send(network);
            let progress = network.poll(&mut self.receive);
            self.receive.signal();
            self.transmit.signal();
            if !self.has_more(pause, progress) {
                self.wait(network, pause, progress);
            }
        }
    }

    /// Hands frames of the guest to the network.
    fn send(&mut self, network: &mut dyn Backend) -> Pause {
        for _ in 0..BATCH {
            if let Some(limit) = &mut self.limit
                && let Err(until) = limit.admit(self.clock.now())
            {
                return Pause::Held(until);
            }
            let Some(chain) = self.transmit.pop() else {
                return Pause::Empty;
            };
            let len = usize::try_from(chain.readable.len()).unwrap_or(usize::MAX);
            let Some(message) = self.frame.get_mut(..len) else {
                // Larger than anything that the card offers to send: it is lost.
                self.transmit.complete(chain.head, 0);
                continue;
            };
            let read = chain.readable.read(self.transmit.memory(), 0, message);
            if let (Ok(()), Some(header), Some(frame)) =
                (read, VnetHeader::parse(message), message.get(HEADER_LEN..))
            {
                if network.transmit(header, frame, &mut self.receive) == Transmit::Busy {
                    self.transmit.put_back(chain);
                    return Pause::Busy;
                }
                if let Some(limit) = &mut self.limit {
                    limit.take(frame.len());
                }
            }
            self.transmit.complete(chain.head, 0);
        }
        Pause::Turn
    }

    /// Whether there is something to do at once. If not, the driver has been asked to notify of what
    /// would change that.
    fn has_more(&mut self, pause: Pause, progress: Progress) -> bool {
        if pause == Pause::Turn || progress == Progress::More {
            return true;
        }
        let sent = pause == Pause::Empty && self.transmit.enable_notifications();
        let starved = progress == Progress::Starved && self.receive.held_until.is_none();
        let refilled = starved && self.receive.enable_notifications();
        sent || refilled
    }

    /// Waits for the guest, the network, or the time at which something is to be done.
    fn wait(&self, network: &dyn Backend, pause: Pause, progress: Progress) {
        let held = match pause {
            Pause::Held(until) => Some(until),
            _ => None,
        };
        let deadline = [network.deadline(), held, self.receive.held_until]
            .into_iter()
            .flatten()
            .min();
        let timeout = deadline.map(|deadline| {
            let nanos = deadline.since(self.clock.now());
            Timespec {
                tv_sec: (nanos / Nanos::SECOND) as i64,
                tv_nsec: (nanos % Nanos::SECOND) as i64,
            }
        });
        let (doorbell, fd) = (self.doorbell.as_fd(), network.fd());
        let mut ready = [
            PollFd::from_borrowed_fd(doorbell, PollFlags::IN),
            PollFd::from_borrowed_fd(fd, PollFlags::IN),
        ];
        // A network that the guest has no room for is not asked whether it has more.
        let count = if progress == Progress::Starved { 1 } else { 2 };
        // An interrupted wait is looked after like any other wake-up.
        let _ = poll(&mut ready[..count], timeout.as_ref());
    }
}
