//! The entropy device. Virtio 1.2, 5.4.

use super::{Activation, DeviceKind, Doorbell, Queue, Running, VirtioDevice, WorkerThread};
use belljar_clock::Entropy;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Entries of the one queue.
const QUEUE_SIZE: u16 = 64;
/// The most bytes given at once. Drivers ask for less; who asks for more gets this, which the
/// device may do.
const MOST: usize = 4096;

/// The state of [`Rng`]: nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RngState {}

/// A source of random bytes.
#[derive(Debug)]
pub struct Rng {
    entropy: Arc<dyn Entropy>,
    doorbell: Arc<Doorbell>,
}

impl Rng {
    /// A device that gives what `entropy` gives.
    ///
    /// # Errors
    /// If the host gives no file descriptor.
    pub fn new(entropy: Arc<dyn Entropy>) -> std::io::Result<Self> {
        Ok(Self {
            entropy,
            doorbell: Doorbell::new()?,
        })
    }

    /// The device as it was saved.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn restore(RngState {}: RngState, entropy: Arc<dyn Entropy>) -> std::io::Result<Self> {
        Self::new(entropy)
    }
}

/// Fills the buffers of every chain.
fn fill(queue: &mut Queue, entropy: &dyn Entropy) {
    let mut bytes = [0; MOST];
    while let Some(chain) = queue.pop() {
        let len = (chain.writable.len() as usize).min(MOST);
        entropy.fill(&mut bytes[..len]);
        let written = chain.writable.write(queue.memory(), 0, &bytes[..len]);
        queue.complete(chain.head, if written.is_ok() { len as u32 } else { 0 });
    }
    bytes.fill(0);
    queue.signal();
}

impl VirtioDevice for Rng {
    type State = RngState;

    fn kind(&self) -> DeviceKind {
        DeviceKind::Entropy
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn doorbell(&self) -> &Arc<Doorbell> {
        &self.doorbell
    }

    fn read_configuration(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_configuration(&self, _: u64, _: &[u8]) {}

    fn start(&self, activation: Activation) -> std::io::Result<Box<dyn Running>> {
        let entropy = Arc::clone(&self.entropy);
        WorkerThread::serve(
            "rng",
            &self.doorbell,
            activation.queues,
            move |queues, _| {
                for queue in queues {
                    loop {
                        fill(queue, &*entropy);
                        if !queue.enable_notifications() {
                            break;
                        }
                    }
                }
            },
        )
    }

    fn reset(&self) {}

    fn save(&self) -> RngState {
        RngState {}
    }
}
