//! The network card. Virtio 1.2, 5.1.
//!
//! The card has one pair of queues and the control queue. One thread serves them and the network
//! that the card is attached to ([`belljar_net::Backend`]): it waits for the guest's notifications and
//! for the network at once. What the driver can do itself it does itself: frames go both ways with
//! partial checksums and in large segments, where it accepted that.

mod control;
mod receive;
#[cfg(test)]
mod tests;
mod worker;

use super::{Activation, DeviceKind, Doorbell, Running, VirtioDevice, WorkerThread};
use belljar_clock::Clock;
use belljar_net::{Backend, GuestOffloads, Mac};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};
use worker::Worker;

/// Feature bits. Virtio 1.2, 5.1.3.
mod feature {
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const CTRL_VQ: u64 = 1 << 17;
    pub const CTRL_RX: u64 = 1 << 18;
}

/// The control queue, after those to receive and to transmit, and the bell that it rings.
const CONTROL: usize = 2;
/// Entries of the queues.
const SIZES: [u16; 3] = [1024, 1024, 64];
/// The status of a card whose cable is plugged in.
const LINK_UP: u16 = 1;
/// The largest packet.
const MTU: u16 = 1500;

/// The state of [`Net`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    mac: Mac,
    rate: Option<u64>,
}

/// A network card.
#[derive(Debug)]
pub struct Net {
    mac: Mac,
    rate: Option<u64>,
    network: Arc<Mutex<Box<dyn Backend>>>,
    clock: Arc<dyn Clock>,
    doorbell: Arc<Doorbell>,
}

impl Net {
    /// A card with the address `mac`, attached to `network`, through which at most `rate` bits a
    /// second go in each direction.
    ///
    /// # Errors
    /// If the host gives no file descriptor.
    pub fn new(
        mac: Mac,
        rate: Option<u64>,
        network: Box<dyn Backend>,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<Self> {
        Ok(Self {
            mac,
            rate,
            network: Arc::new(Mutex::new(network)),
            clock,
            doorbell: Doorbell::new()?,
        })
    }

    /// The card as it was saved, attached to `network`.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn restore(
        state: NetState,
        network: Box<dyn Backend>,
        clock: Arc<dyn Clock>,
    ) -> std::io::Result<Self> {
        Self::new(state.mac, state.rate, network, clock)
    }

    /// The device's part of the configuration. Virtio 1.2, 5.1.4.
    fn configuration(&self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..6].copy_from_slice(&self.mac.0);
        bytes[6..8].copy_from_slice(&LINK_UP.to_le_bytes());
        bytes[8..10].copy_from_slice(&1_u16.to_le_bytes());
        bytes[10..12].copy_from_slice(&MTU.to_le_bytes());
        bytes
    }
}

/// What a driver takes that accepted `features`.
fn offloads(features: u64) -> GuestOffloads {
    let has = |bit: u64| features & bit != 0;
    GuestOffloads {
        checksum: has(feature::GUEST_CSUM),
        tcp4: has(feature::GUEST_CSUM) && has(feature::GUEST_TSO4),
        tcp6: has(feature::GUEST_CSUM) && has(feature::GUEST_TSO6),
    }
}

impl VirtioDevice for Net {
    type State = NetState;

    fn kind(&self) -> DeviceKind {
        DeviceKind::Network
    }

    fn features(&self) -> u64 {
        feature::CSUM
            | feature::GUEST_CSUM
            | feature::MTU
            | feature::MAC
            | feature::GUEST_TSO4
            | feature::GUEST_TSO6
            | feature::HOST_TSO4
            | feature::HOST_TSO6
            | feature::MRG_RXBUF
            | feature::STATUS
            | feature::CTRL_VQ
            | feature::CTRL_RX
    }

    fn queue_sizes(&self) -> Vec<u16> {
        SIZES.to_vec()
    }

    fn doorbell(&self) -> &Arc<Doorbell> {
        &self.doorbell
    }

    fn read_configuration(&self, offset: u64, data: &mut [u8]) {
        super::read_bytes(&self.configuration(), offset, data);
    }

    fn write_configuration(&self, _: u64, _: &[u8]) {}

    fn start(&self, activation: Activation) -> std::io::Result<Box<dyn Running>> {
        let network = Arc::clone(&self.network);
        let clock = Arc::clone(&self.clock);
        let doorbell = Arc::clone(&self.doorbell);
        let rate = self.rate;
        WorkerThread::spawn("net", &self.doorbell, move || {
            let mut network = network.lock().unwrap_or_else(PoisonError::into_inner);
            Worker::new(activation, &doorbell, clock, rate).run(&mut **network)
        })
    }

    fn reset(&self) {
        self.network
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .reset();
    }

    fn save(&self) -> NetState {
        NetState {
            mac: self.mac,
            rate: self.rate,
        }
    }
}
