//! TCP/IP for a guest without privileges on the host.
//!
//! The guest's card is on a network 10.0.2.0/24 of its own, with a gateway (10.0.2.2) and a DNS
//! server (10.0.2.3), neither of which is a computer: [`UserNetwork`] answers for both. It ends the
//! guest's connections itself and carries their bytes over ordinary sockets of the host. There is no
//! address translation and no packet of the guest ever leaves.
//!
//! The link to the guest is a queue in memory and loses nothing, which keeps this TCP small: no
//! congestion control, no selective acknowledgments, and what is lost in the guest after all is sent
//! again from the first byte that was not acknowledged. What crosses the real network is the host's
//! TCP.
//!
//! **Nothing is buffered without bound.** What the guest sends goes straight to the host's socket;
//! what that does not take waits in a ring whose free bytes are the window that the guest sees. What
//! the host's socket has is read only as far as the guest's window and a ring allow. All rings share
//! one budget.
//!
//! Everything runs on the thread of the card, in [`Backend::transmit`] and [`Backend::poll`]. Host
//! sockets are watched by one epoll instance, edge-triggered: an event only notes what a flow may try
//! again and queues it; all work is done when the queue is run.

mod datagrams;
mod fragments;
mod leases;
mod listen;
mod output;
mod ping;
mod resolver;
mod streams;
mod tcp;

pub use resolver::Resolvers;

use crate::VnetHeader;
use crate::backend::{Backend, Guest, Progress, Transmit};
use crate::config::{Forward, UserOptions};
use crate::policy::{self, Policy};
use crate::ring::Budget;
use crate::slab::Key;
use crate::wire::{Mac, arp, ethernet, icmp, ip, protocol};
use belljar_clock::{Clock, Entropy, Nanos};
use datagrams::Datagrams;
use fragments::Fragments;
use leases::Leases;
use listen::{Accepted, Listeners};
use output::{Neighbours, Output};
use ping::Pings;
use resolver::Forwarder;
use rustix::event::epoll;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::Timespec;
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use streams::Streams;
use thiserror::Error;

/// The gateway's address on the link; the guest never sees another one of the host's side.
pub const GATEWAY_MAC: Mac = Mac([0x52, 0x55, 10, 0, 2, 2]);
/// The largest packet on the link.
const MTU: u16 = 1500;
/// The largest datagram.
const LARGEST: usize = 1 << 16;
/// Bytes that all rings may have together.
const BUDGET: usize = 64 << 20;
/// Events taken from epoll at once.
const EVENTS: usize = 64;
/// Entries of the queue that are run by one poll.
const RUN: usize = 64;

/// Why a user-mode network could not be made.
#[derive(Debug, Error)]
pub enum UserError {
    /// The host gives no more descriptors.
    #[error("cannot watch sockets")]
    Epoll(#[source] std::io::Error),
    /// A port of the host cannot be forwarded.
    #[error("cannot listen for {forward}")]
    Listen {
        /// What was asked for.
        forward: Forward,
        /// The host's error.
        #[source]
        source: std::io::Error,
    },
}

/// What of a network is to be looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Stream(Key),
    Datagram(Key),
    Ping(Key),
    Listener(usize),
}

impl Source {
    fn to_bits(self) -> u64 {
        match self {
            Self::Stream(key) => key.to_bits(),
            Self::Datagram(key) => 1 << 56 | key.to_bits(),
            Self::Ping(key) => 2 << 56 | key.to_bits(),
            Self::Listener(index) => 3 << 56 | index as u64,
        }
    }

    fn from_bits(bits: u64) -> Self {
        let key = Key::from_bits(bits);
        match bits >> 56 {
            0 => Self::Stream(key),
            1 => Self::Datagram(key),
            2 => Self::Ping(key),
            _ => Self::Listener(bits as u32 as usize),
        }
    }
}

/// Sockets watched for what can be read and written.
#[derive(Debug)]
struct Watch(OwnedFd);

impl Watch {
    fn add(&self, socket: impl AsFd, source: Source) -> rustix::io::Result<()> {
        use epoll::EventFlags as E;
        epoll::add(
            &self.0,
            socket,
            epoll::EventData::new_u64(source.to_bits()),
            E::IN | E::OUT | E::RDHUP | E::ET,
        )
    }
}

/// The queue of what may make progress.
#[derive(Debug, Default)]
struct Ready(VecDeque<Source>);

/// What everything that makes progress needs.
struct Env<'a> {
    now: Nanos,
    out: Output<'a>,
    budget: &'a mut Budget,
    watch: &'a Watch,
    ready: &'a mut Ready,
    policy: &'a Policy,
    forwarder: &'a mut Forwarder,
    entropy: &'a dyn Entropy,
    scratch: &'a mut [u8],
}

/// What became of a turn of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// There is nothing more to do for now.
    Done,
    /// There is more to do, after the others.
    Again,
    /// The guest has no room.
    Starved,
}

/// The network: see the module.
#[derive(Debug)]
pub struct UserNetwork {
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    policy: Policy,
    neighbours: Neighbours,
    leases: Leases,
    forwarder: Forwarder,
    fragments: Fragments,
    streams: Streams,
    datagrams: Datagrams,
    pings: Pings,
    listeners: Listeners,
    budget: Budget,
    watch: Watch,
    ready: Ready,
    scratch: Box<[u8]>,
    /// The guest had no room when the queue was last run.
    starved: bool,
}

impl UserNetwork {
    /// A network for a card whose address is `mac`.
    ///
    /// # Errors
    /// [`UserError`], when a forwarded port is taken or the host gives no descriptors.
    pub fn new(
        options: &UserOptions,
        resolvers: Resolvers,
        mac: Mac,
        clock: Arc<dyn Clock>,
        entropy: Arc<dyn Entropy>,
    ) -> Result<Self, UserError> {
        let watch = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map(Watch)
            .map_err(|error| UserError::Epoll(error.into()))?;
        let listeners = Listeners::new(&options.forwards, &watch)?;
        let policy = Policy::new(options);
        Ok(Self {
            policy,
            neighbours: Neighbours::new(mac),
            leases: Leases::new(policy.has_dns().then_some(policy::DNS)),
            forwarder: Forwarder::new(resolvers),
            fragments: Fragments::default(),
            streams: Streams::new(),
            datagrams: Datagrams::new(),
            pings: Pings::new(),
            listeners,
            budget: Budget::new(BUDGET),
            watch,
            ready: Ready::default(),
            scratch: vec![0; LARGEST].into_boxed_slice(),
            starved: false,
            clock,
            entropy,
        })
    }

    /// The parts of the network, apart from each other.
    fn split<'a>(
        &'a mut self,
        guest: &'a mut dyn Guest,
    ) -> (
        Env<'a>,
        &'a mut Streams,
        &'a mut Datagrams,
        &'a mut Pings,
        &'a mut Listeners,
    ) {
        let env = Env {
            now: self.clock.now(),
            out: Output::new(guest, &self.neighbours),
            budget: &mut self.budget,
            watch: &self.watch,
            ready: &mut self.ready,
            policy: &self.policy,
            forwarder: &mut self.forwarder,
            entropy: &*self.entropy,
            scratch: &mut self.scratch,
        };
        (
            env,
            &mut self.streams,
            &mut self.datagrams,
            &mut self.pings,
            &mut self.listeners,
        )
    }

    fn arp(&mut self, frame: &ethernet::Frame<'_>, guest: &mut dyn Guest) {
        let Some(question) = arp::Arp::parse(frame.payload) else {
            return;
        };
        self.neighbours.learn(question.sender.1, question.sender.0);
        if question.is_request && matches!(question.target, policy::GATEWAY | policy::DNS) {
            Output::new(guest, &self.neighbours).arp_reply(question.target, question.sender);
        }
    }

    fn ipv4(&mut self, frame: &ethernet::Frame<'_>, partial: bool, guest: &mut dyn Guest) {
        let Some(packet) = ip::Packet::parse(frame.payload) else {
            return;
        };
        if packet.source == Ipv4Addr::UNSPECIFIED || packet.destination == Ipv4Addr::BROADCAST {
            // Of what is for everybody, DHCP alone is answered.
            if packet.protocol == protocol::UDP && packet.fragment.is_none() {
                self.dhcp(&packet, partial, guest);
            }
            return;
        }
        let for_many = packet.destination.is_multicast() || packet.destination == policy::BROADCAST;
        if for_many || !policy::is_guest(packet.source) {
            return;
        }
        self.neighbours.learn(packet.source, frame.source);
        let Some(part) = packet.fragment else {
            self.packet(&packet, partial, guest);
            return;
        };
        let now = self.clock.now();
        if let Some(whole) = self.fragments.add(&packet, part, now) {
            let packet = ip::Packet {
                fragment: None,
                payload: &whole,
                ..packet
            };
            self.packet(&packet, false, guest);
        }
    }

    fn dhcp(&mut self, packet: &ip::Packet<'_>, partial: bool, guest: &mut dyn Guest) {
        if let Some(answer) = self.leases.answer(packet, partial) {
            Output::new(guest, &self.neighbours).dhcp(&answer);
        }
    }

    /// A whole packet from one of the network's hosts.
    fn packet(&mut self, packet: &ip::Packet<'_>, partial: bool, guest: &mut dyn Guest) {
        match packet.protocol {
            protocol::TCP => {
                let (mut env, streams, ..) = self.split(guest);
                streams.segment(packet, partial, &mut env);
            }
            protocol::UDP if self.leases.is_for_server(packet) => {
                self.dhcp(packet, partial, guest);
            }
            protocol::UDP => {
                let (mut env, _, datagrams, _, listeners) = self.split(guest);
                datagrams.send(packet, partial, listeners, &mut env);
            }
            protocol::ICMP => {
                let (mut env, _, _, pings, _) = self.split(guest);
                pings.send(packet, &mut env);
            }
            _ => {
                let mut out = Output::new(guest, &self.neighbours);
                out.unreachable(
                    icmp::Unreachable::Protocol,
                    packet.destination,
                    packet.source,
                    packet.bytes,
                );
            }
        }
    }

    /// Notes what epoll has to say.
    fn collect(&mut self) {
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }; EVENTS];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let Ok(count) = epoll::wait(&self.watch.0, &mut events[..], Some(&at_once)) else {
            // Interrupted: the next poll asks again.
            return;
        };
        for event in &events[..count] {
            let flags = event.flags;
            let source = Source::from_bits(event.data.u64());
            let news = match source {
                Source::Stream(key) => self.streams.note(key, flags),
                Source::Datagram(key) => self.datagrams.note(key),
                Source::Ping(key) => self.pings.note(key),
                Source::Listener(index) => self.listeners.note(index),
            };
            if news {
                self.ready.0.push_back(source);
            }
        }
    }

    fn turn(&mut self, source: Source, guest: &mut dyn Guest) -> Turn {
        let (mut env, streams, datagrams, pings, listeners) = self.split(guest);
        match source {
            Source::Stream(key) => streams.turn(key, &mut env),
            Source::Datagram(key) => datagrams.turn(key, &mut env),
            Source::Ping(key) => pings.turn(key, &mut env),
            Source::Listener(index) => match listeners.turn(index, &mut env) {
                Accepted::Stream(socket, peer, port) => {
                    streams.accept(socket, peer, port, &mut env);
                    Turn::Again
                }
                Accepted::Datagram(len, peer, port) => {
                    datagrams.receive(index, len, peer, port, &mut env);
                    Turn::Again
                }
                Accepted::Nothing => Turn::Done,
            },
        }
    }

    /// Runs the queue for a while.
    fn run(&mut self, guest: &mut dyn Guest) -> Progress {
        for _ in 0..RUN {
            let Some(source) = self.ready.0.pop_front() else {
                return Progress::Idle;
            };
            match self.turn(source, guest) {
                Turn::Done => {}
                Turn::Again => self.ready.0.push_back(source),
                Turn::Starved => {
                    self.ready.0.push_back(source);
                    return Progress::Starved;
                }
            }
        }
        if self.ready.0.is_empty() {
            Progress::Idle
        } else {
            Progress::More
        }
    }
}

impl Backend for UserNetwork {
    fn fd(&self) -> BorrowedFd<'_> {
        self.watch.0.as_fd()
    }

    fn deadline(&self) -> Option<Nanos> {
        if !self.ready.0.is_empty() && !self.starved {
            return Some(Nanos(0));
        }
        [
            self.streams.deadline(),
            self.datagrams.deadline(),
            self.pings.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn transmit(&mut self, header: VnetHeader, bytes: &[u8], guest: &mut dyn Guest) -> Transmit {
        let Some(frame) = ethernet::Frame::parse(bytes) else {
            return Transmit::Taken;
        };
        let for_us = frame.destination == GATEWAY_MAC || frame.destination.is_group();
        if for_us && !frame.source.is_group() {
            match frame.ethertype {
                ethernet::ARP => self.arp(&frame, guest),
                ethernet::IPV4 => self.ipv4(&frame, header.checksum.is_some(), guest),
                _ => {}
            }
        }
        Transmit::Taken
    }

    fn poll(&mut self, guest: &mut dyn Guest) -> Progress {
        self.collect();
        let now = self.clock.now();
        let (mut env, streams, datagrams, pings, _) = self.split(guest);
        streams.tick(&mut env);
        datagrams.tick(now);
        pings.tick(now);
        let progress = self.run(guest);
        self.starved = progress == Progress::Starved;
        progress
    }

    fn reset(&mut self) {
        self.streams.reset(&mut self.budget);
        self.datagrams.reset();
        self.pings.reset();
        self.fragments = Fragments::default();
        self.neighbours.forget();
        self.ready
            .0
            .retain(|source| matches!(source, Source::Listener(_)));
        self.starved = false;
    }
}

/// Why the host would not do something, as the guest is told.
fn unreachable_because(error: rustix::io::Errno) -> icmp::Unreachable {
    use rustix::io::Errno;
    match error {
        Errno::CONNREFUSED => icmp::Unreachable::Port,
        Errno::NETUNREACH | Errno::NETDOWN | Errno::AFNOSUPPORT => icmp::Unreachable::Network,
        Errno::ACCESS | Errno::PERM => icmp::Unreachable::Prohibited,
        _ => icmp::Unreachable::Host,
    }
}

/// The address that the guest sees for a peer that came to a forwarded port: the peer's own, unless
/// it means something else to the guest.
fn seen_address(peer: IpAddr) -> Ipv4Addr {
    match peer {
        IpAddr::V4(v4)
            if !policy::is_in_network(v4)
                && !v4.is_loopback()
                && !v4.is_link_local()
                && !v4.is_unspecified() =>
        {
            v4
        }
        _ => policy::GATEWAY,
    }
}

/// A port near `port` that `is_taken` does not know, for a peer whose address had to be replaced.
fn free_port(port: u16, is_taken: impl Fn(u16) -> bool) -> Option<u16> {
    const FIRST: u16 = 1024;
    (0..64)
        .map(|step| FIRST.max(port.wrapping_add(step * 257)))
        .find(|&port| !is_taken(port))
}
