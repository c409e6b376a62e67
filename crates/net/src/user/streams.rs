//! All connections of TCP.

use super::tcp::{Fate, Flow};
use super::{Env, Source, Turn, free_port, resolver, seen_address, unreachable_because};
use crate::policy;
use crate::ring::Budget;
use crate::slab::{Key, Slab};
use crate::wire::icmp::Unreachable;
use crate::wire::ip;
use crate::wire::tcp::{self, Header, flags};
use belljar_clock::Nanos;
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};
use rustix::process::{Resource, getrlimit};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};

/// Sockets of one kind at a time, if the host's limit of descriptors allows.
const MOST: u64 = 1024;
/// The least of them, whatever the limit.
const LEAST: u64 = 16;
/// Connections that the host has not made yet, at a time. More SYNs are not answered.
const MOST_CONNECTING: usize = 256;
/// How long a connection must have been idle to give way to a new one, when there is no room.
const IDLE: u64 = 600 * Nanos::SECOND;

/// How many sockets there may be if they are to be one in `part` of the descriptors that the process
/// may have.
pub(super) fn most_sockets(part: u64) -> usize {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    (limit / part).clamp(LEAST, MOST) as usize
}

/// Guest and peer, as the guest sees them.
type Ends = (SocketAddrV4, SocketAddrV4);

/// All connections.
#[derive(Debug)]
pub(super) struct Streams {
    flows: Slab<Flow>,
    by_ends: HashMap<Ends, Key>,
    connecting: usize,
    /// No connection has anything to do by itself before.
    deadline: Option<Nanos>,
}

impl Streams {
    pub fn new() -> Self {
        Self {
            flows: Slab::new(most_sockets(4)),
            by_ends: HashMap::new(),
            connecting: 0,
            deadline: None,
        }
    }

    pub fn deadline(&self) -> Option<Nanos> {
        self.deadline
    }

    pub fn note(&mut self, key: Key, events: EventFlags) -> bool {
        let Some(flow) = self.flows.get_mut(key) else {
            return false;
        };
        flow.note(events);
        !std::mem::replace(&mut flow.queued, true)
    }

    /// Ends all connections.
    pub fn reset(&mut self, budget: &mut Budget) {
        for key in self.flows.keys() {
            if let Some(flow) = self.flows.get_mut(key) {
                flow.abort();
            }
            self.remove(key, budget);
        }
        self.deadline = None;
    }

    fn remove(&mut self, key: Key, budget: &mut Budget) {
        if let Some(mut flow) = self.flows.remove(key) {
            flow.discard(budget);
            self.by_ends.remove(&(flow.guest, flow.peer));
            self.connecting -= usize::from(flow.is_connecting());
        }
    }

    fn due(&mut self, at: Option<Nanos>) {
        self.deadline = [self.deadline, at].into_iter().flatten().min();
    }

    /// Makes room for a connection if that is possible without hurting anybody much.
    fn make_room(&mut self, env: &mut Env<'_>) {
        if env.budget.is_short(super::BUDGET) {
            for (_, flow) in self.flows.iter_mut() {
                flow.spare(env.budget);
            }
        }
        if self.flows.is_full() {
            let oldest = self.flows.iter_mut().min_by_key(|(_, flow)| flow.active);
            if let Some((key, flow)) = oldest
                && env.now.since(flow.active) >= IDLE
            {
                flow.abort();
                self.remove(key, env.budget);
            }
        }
    }

    fn insert(
        &mut self,
        ends: Ends,
        env: &mut Env<'_>,
        make: impl FnOnce(Key, &Env<'_>) -> Option<Flow>,
    ) -> Option<Key> {
        self.make_room(env);
        let key = self.flows.insert_with(|key| make(key, env))?;
        self.by_ends.insert(ends, key);
        let flow = self.flows.get_mut(key)?;
        self.connecting += usize::from(flow.is_connecting());
        let deadline = flow.deadline();
        self.due(deadline);
        Some(key)
    }

    fn queue(&mut self, key: Key, env: &mut Env<'_>) {
        if let Some(flow) = self.flows.get_mut(key)
            && !std::mem::replace(&mut flow.queued, true)
        {
            env.ready.0.push_back(Source::Stream(key));
        }
    }

    /// A segment that the guest sends.
    pub fn segment(&mut self, packet: &ip::Packet<'_>, partial: bool, env: &mut Env<'_>) {
        let (from, to) = (IpAddr::V4(packet.source), IpAddr::V4(packet.destination));
        let Some((header, payload)) = tcp::parse(packet.payload, from, to, partial) else {
            return;
        };
        let guest = SocketAddrV4::new(packet.source, header.source);
        let peer = SocketAddrV4::new(packet.destination, header.destination);
        if let Some(&key) = self.by_ends.get(&(guest, peer)) {
            self.pass_on(key, &header, payload, env);
        } else if header.has(flags::RST) {
            // There is nothing to reset.
        } else if header.has(flags::SYN) && !header.has(flags::ACK) {
            match self.open((guest, peer), &header, env) {
                Ok(()) => {}
                Err(Unreachable::Port) => refuse(&header, payload.len(), (guest, peer), env),
                Err(why) => {
                    env.out
                        .unreachable(why, packet.destination, packet.source, packet.bytes);
                }
            }
        } else {
            refuse(&header, payload.len(), (guest, peer), env);
        }
    }

    fn pass_on(&mut self, key: Key, header: &Header, payload: &[u8], env: &mut Env<'_>) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        match flow.segment(header, payload, env) {
            Fate::Lives => self.queue(key, env),
            Fate::Over => self.remove(key, env.budget),
        }
    }

    /// Opens a connection that the guest asks for.
    ///
    /// # Errors
    /// Why there cannot be one.
    fn open(&mut self, ends: Ends, syn: &Header, env: &mut Env<'_>) -> Result<(), Unreachable> {
        if self.connecting >= MOST_CONNECTING {
            return Ok(());
        }
        let peer = ends.1;
        let target = if *peer.ip() != policy::DNS {
            env.policy.admit(SocketAddr::V4(peer))?
        } else if peer.port() == resolver::PORT && env.policy.has_dns() {
            env.forwarder.choose(env.now).ok_or(Unreachable::Host)?
        } else {
            return Err(Unreachable::Port);
        };
        let family = match target {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // Without descriptors there is no connection for now.
        let socket =
            socket_with(family, SocketType::STREAM, flags, None).map_err(|_| Unreachable::Port)?;
        let _ = sockopt::set_tcp_nodelay(&socket, true);
        match connect(&socket, &target) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(unreachable_because(error)),
        }
        let isn = env.entropy.next_u64() as u32;
        self.insert(ends, env, |key, env| {
            env.watch.add(&socket, Source::Stream(key)).ok()?;
            Some(Flow::connecting(ends, socket, syn, isn, env.now))
        })
        .map(|_| ())
        .ok_or(Unreachable::Port)
    }

    /// A connection that came to a forwarded port.
    pub fn accept(&mut self, socket: OwnedFd, peer: SocketAddr, port: u16, env: &mut Env<'_>) {
        let guest = SocketAddrV4::new(policy::GUEST, port);
        let address = seen_address(peer.ip());
        let is_taken = |port| {
            let ends = (guest, SocketAddrV4::new(address, port));
            self.by_ends.contains_key(&ends)
        };
        let Some(seen_port) = free_port(peer.port(), is_taken) else {
            return;
        };
        let ends = (guest, SocketAddrV4::new(address, seen_port));
        let _ = sockopt::set_tcp_nodelay(&socket, true);
        let isn = env.entropy.next_u64() as u32;
        let key = self.insert(ends, env, |key, env| {
            env.watch.add(&socket, Source::Stream(key)).ok()?;
            Some(Flow::offering(ends, socket, isn, env.now))
        });
        if let Some(key) = key {
            self.queue(key, env);
        }
    }

    /// What can be done for a connection now.
    pub fn turn(&mut self, key: Key, env: &mut Env<'_>) -> Turn {
        let Some(flow) = self.flows.get_mut(key) else {
            return Turn::Done;
        };
        let was_connecting = flow.is_connecting();
        let (turn, fate) = flow.turn(env);
        if fate == Fate::Over {
            self.remove(key, env.budget);
            return Turn::Done;
        }
        flow.queued = turn != Turn::Done;
        let is_connecting = flow.is_connecting();
        let deadline = flow.deadline();
        self.connecting -= usize::from(was_connecting && !is_connecting);
        self.due(deadline);
        turn
    }

    /// Does what the time has come for.
    pub fn tick(&mut self, env: &mut Env<'_>) {
        if self.deadline.is_none_or(|at| at > env.now) {
            return;
        }
        self.deadline = None;
        for key in self.flows.keys() {
            let Some(flow) = self.flows.get_mut(key) else {
                continue;
            };
            let (queue, fate) = flow.tick(env);
            let deadline = flow.deadline();
            if fate == Fate::Over {
                self.remove(key, env.budget);
                continue;
            }
            if queue {
                self.queue(key, env);
            }
            self.due(deadline);
        }
    }
}

/// Answers a segment that belongs to no connection. RFC 9293, 3.10.7.1.
fn refuse(header: &Header, len: usize, ends: Ends, env: &mut Env<'_>) {
    let mut reset = Header {
        source: header.destination,
        destination: header.source,
        flags: flags::RST,
        ..Header::default()
    };
    if header.has(flags::ACK) {
        reset.sequence = header.acknowledgment;
    } else {
        let controls = u32::from(header.has(flags::SYN)) + u32::from(header.has(flags::FIN));
        reset.flags |= flags::ACK;
        reset.acknowledgment = header.sequence.wrapping_add(len as u32 + controls);
    }
    env.out
        .segment(ends.1, ends.0, &reset, (&[], &[]), super::output::MSS);
}
