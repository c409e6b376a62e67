//! UDP: a socket of the host for each pair of a guest's port and a peer.

use super::listen::Listeners;
use super::streams::most_sockets;
use super::{Env, Source, Turn, free_port, resolver, seen_address, unreachable_because};
use crate::policy;
use crate::slab::{Key, Slab};
use crate::wire::icmp::Unreachable;
use crate::wire::{ip, protocol, udp};
use belljar_clock::Nanos;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};

/// Pairs at a time, if the host's limit of descriptors allows; the one that was idle longest gives
/// way to a new one.
const MOST: usize = 512;
/// How long a pair may be idle.
const IDLE: u64 = 120 * Nanos::SECOND;
/// The same for DNS, where each query has its own port.
const IDLE_DNS: u64 = 15 * Nanos::SECOND;
/// How often idle pairs are looked for.
const LOOK: u64 = 5 * Nanos::SECOND;
/// Datagrams that are received in one turn.
const TURN: usize = 32;

/// By which socket a pair speaks.
#[derive(Debug)]
enum Via {
    /// Its own, connected to this address.
    Own(OwnedFd, SocketAddr),
    /// That of a forwarded port, to this address.
    Forward(usize, SocketAddr),
}

#[derive(Debug)]
struct Pair {
    guest: SocketAddrV4,
    /// The peer as the guest sees it.
    peer: SocketAddrV4,
    via: Via,
    dns: bool,
    active: Nanos,
    queued: bool,
    /// Bytes of the last datagram that the guest sent, for errors about it.
    last_len: usize,
}

impl Pair {
    /// Tells the guest that the last datagram did not arrive.
    fn refuse(&self, why: Unreachable, env: &mut Env<'_>) {
        let len = udp::HEADER_LEN + self.last_len;
        let [a, b] = self.guest.port().to_be_bytes();
        let [c, d] = self.peer.port().to_be_bytes();
        let [e, f] = (len as u16).to_be_bytes();
        let transport = [a, b, c, d, e, f, 0, 0];
        env.out
            .unreachable_later(why, self.guest, self.peer, protocol::UDP, transport, len);
    }

    /// The next datagram, into the scratch buffer.
    fn receive(&mut self, env: &mut Env<'_>) -> Option<usize> {
        let Via::Own(socket, _) = &self.via else {
            return None;
        };
        loop {
            match recv(socket, &mut *env.scratch, RecvFlags::DONTWAIT) {
                Ok((len, _)) => return Some(len),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return None,
                Err(error) => {
                    if self.dns {
                        env.forwarder.refused();
                    } else {
                        self.refuse(unreachable_because(error), env);
                    }
                    return None;
                }
            }
        }
    }

    fn turn(&mut self, identification: &mut u16, env: &mut Env<'_>) -> Turn {
        for _ in 0..TURN {
            if !env.out.has_room() {
                return Turn::Starved;
            }
            let Some(len) = self.receive(env) else {
                return Turn::Done;
            };
            self.active = env.now;
            if self.dns {
                env.forwarder.answered();
            }
            *identification = identification.wrapping_add(1);
            // What finds no room after all is lost, as datagrams are.
            env.out
                .datagram(self.peer, self.guest, &env.scratch[..len], *identification);
        }
        Turn::Again
    }

    fn idle(&self) -> u64 {
        if self.dns { IDLE_DNS } else { IDLE }
    }
}

/// All pairs.
#[derive(Debug)]
pub(super) struct Datagrams {
    pairs: Slab<Pair>,
    by_ends: HashMap<(SocketAddrV4, SocketAddrV4), Key>,
    by_peer: HashMap<(usize, SocketAddr), Key>,
    identification: u16,
    look_at: Option<Nanos>,
}

impl Datagrams {
    pub fn new() -> Self {
        Self {
            pairs: Slab::new(most_sockets(8).min(MOST)),
            by_ends: HashMap::new(),
            by_peer: HashMap::new(),
            identification: 0,
            look_at: None,
        }
    }

    pub fn deadline(&self) -> Option<Nanos> {
        self.look_at
    }

    pub fn note(&mut self, key: Key) -> bool {
        self.pairs
            .get_mut(key)
            .is_some_and(|pair| !std::mem::replace(&mut pair.queued, true))
    }

    pub fn reset(&mut self) {
        *self = Self::new();
    }

    fn remove(&mut self, key: Key) {
        if let Some(pair) = self.pairs.remove(key) {
            self.by_ends.remove(&(pair.guest, pair.peer));
            if let Via::Forward(index, peer) = pair.via {
                self.by_peer.remove(&(index, peer));
            }
        }
    }

    /// Forgets pairs that have been idle for long.
    pub fn tick(&mut self, now: Nanos) {
        if self.look_at.is_none_or(|at| at > now) {
            return;
        }
        let idle = |pair: &Pair| now.since(pair.active) >= pair.idle();
        let old: Vec<Key> = self
            .pairs
            .iter_mut()
            .filter_map(|(key, pair)| idle(pair).then_some(key))
            .collect();
        for key in old {
            self.remove(key);
        }
        self.look_at = (self.pairs.len() > 0).then(|| now.after(LOOK));
    }

    fn insert(&mut self, make: impl FnOnce(Key) -> Option<Pair>, now: Nanos) -> Option<Key> {
        if self.pairs.is_full() {
            let oldest = self.pairs.iter_mut().min_by_key(|(_, pair)| pair.active);
            if let Some((key, _)) = oldest {
                self.remove(key);
            }
        }
        let key = self.pairs.insert_with(make)?;
        let pair = self.pairs.get_mut(key)?;
        self.by_ends.insert((pair.guest, pair.peer), key);
        if let Via::Forward(index, peer) = pair.via {
            self.by_peer.insert((index, peer), key);
        }
        self.look_at.get_or_insert(now.after(LOOK));
        Some(key)
    }

    /// A datagram that the guest sends.
    pub fn send(
        &mut self,
        packet: &ip::Packet<'_>,
        partial: bool,
        listeners: &Listeners,
        env: &mut Env<'_>,
    ) {
        let (from, to) = (IpAddr::V4(packet.source), IpAddr::V4(packet.destination));
        let Some(datagram) = udp::Datagram::parse(packet.payload, from, to, partial) else {
            return;
        };
        let guest = SocketAddrV4::new(packet.source, datagram.source);
        let peer = SocketAddrV4::new(packet.destination, datagram.destination);
        let known = self.by_ends.get(&(guest, peer)).copied();
        let key = match known {
            Some(key) => key,
            None => match self.open(guest, peer, env) {
                Ok(key) => key,
                Err(Some(why)) => {
                    env.out
                        .unreachable(why, packet.destination, packet.source, packet.bytes);
                    return;
                }
                Err(None) => return,
            },
        };
        let Some(pair) = self.pairs.get_mut(key) else {
            return;
        };
        pair.active = env.now;
        pair.last_len = datagram.payload.len();
        match &mut pair.via {
            Via::Forward(index, peer) => listeners.send(*index, peer, datagram.payload),
            Via::Own(socket, target) => {
                if pair.dns
                    && let Some(resolver) = env.forwarder.choose(env.now)
                    && resolver != *target
                    && connect(&*socket, &resolver).is_ok()
                {
                    *target = resolver;
                }
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                match send(&*socket, datagram.payload, flags) {
                    Err(Errno::CONNREFUSED) if pair.dns => env.forwarder.refused(),
                    Err(error @ (Errno::CONNREFUSED | Errno::HOSTUNREACH | Errno::NETUNREACH)) => {
                        pair.refuse(unreachable_because(error), env);
                    }
                    // What cannot be sent now is lost, as datagrams are.
                    Ok(_) | Err(_) => {}
                }
            }
        }
    }

    /// Opens a pair for what the guest sends.
    ///
    /// # Errors
    /// What the guest is told, if anything.
    fn open(
        &mut self,
        guest: SocketAddrV4,
        peer: SocketAddrV4,
        env: &mut Env<'_>,
    ) -> Result<Key, Option<Unreachable>> {
        let dns = *peer.ip() == policy::DNS;
        let target = if !dns {
            env.policy.admit(SocketAddr::V4(peer))?
        } else if peer.port() == resolver::PORT && env.policy.has_dns() {
            env.forwarder.choose(env.now).ok_or(Unreachable::Host)?
        } else {
            return Err(Some(Unreachable::Port));
        };
        let family = match target {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(family, SocketType::DGRAM, flags, None).map_err(|_| None)?;
        connect(&socket, &target).map_err(|error| Some(unreachable_because(error)))?;
        let (now, watch) = (env.now, env.watch);
        self.insert(
            |key| {
                watch.add(&socket, Source::Datagram(key)).ok()?;
                Some(Pair {
                    guest,
                    peer,
                    via: Via::Own(socket, target),
                    dns,
                    active: now,
                    queued: false,
                    last_len: 0,
                })
            },
            now,
        )
        .ok_or(None)
    }

    /// A datagram (in the scratch buffer) that came to a forwarded port.
    pub fn receive(
        &mut self,
        index: usize,
        len: usize,
        peer: SocketAddr,
        port: u16,
        env: &mut Env<'_>,
    ) {
        let guest = SocketAddrV4::new(policy::GUEST, port);
        let known = self.by_peer.get(&(index, peer)).copied();
        let Some(key) = known.or_else(|| self.open_forward(index, guest, peer, env.now)) else {
            return;
        };
        let Some(pair) = self.pairs.get_mut(key) else {
            return;
        };
        pair.active = env.now;
        self.identification = self.identification.wrapping_add(1);
        env.out
            .datagram(pair.peer, guest, &env.scratch[..len], self.identification);
    }

    fn open_forward(
        &mut self,
        index: usize,
        guest: SocketAddrV4,
        peer: SocketAddr,
        now: Nanos,
    ) -> Option<Key> {
        let address = seen_address(peer.ip());
        let seen_port = free_port(peer.port(), |port| {
            self.by_ends
                .contains_key(&(guest, SocketAddrV4::new(address, port)))
        })?;
        let pair = Pair {
            guest,
            peer: SocketAddrV4::new(address, seen_port),
            via: Via::Forward(index, peer),
            dns: false,
            active: now,
            queued: false,
            last_len: 0,
        };
        self.insert(|_| Some(pair), now)
    }

    /// What a pair's socket has.
    pub fn turn(&mut self, key: Key, env: &mut Env<'_>) -> Turn {
        let Some(pair) = self.pairs.get_mut(key) else {
            return Turn::Done;
        };
        let turn = pair.turn(&mut self.identification, env);
        pair.queued = turn != Turn::Done;
        turn
    }
}
