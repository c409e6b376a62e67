//! Echoes: the gateway's own, and those of other hosts by the host's unprivileged ping sockets, where
//! they are allowed (`net.ipv4.ping_group_range`).

use super::{Env, Source, Turn, unreachable_because};
use crate::policy;
use crate::slab::{Key, Slab};
use crate::wire::icmp::{Echo, Unreachable};
use crate::wire::{Head, ip};
use belljar_clock::Nanos;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, ipproto, recv, send,
    socket_with,
};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Pings at a time; the one that was idle longest gives way to a new one.
const MOST: usize = 64;
/// How long one may be idle.
const IDLE: u64 = 30 * Nanos::SECOND;
/// Echoes that are received in one turn.
const TURN: usize = 16;

/// Who pings whom, and by which identifier.
type Ends = (Ipv4Addr, Ipv4Addr, u16);

#[derive(Debug)]
struct Ping {
    ends: Ends,
    socket: OwnedFd,
    active: Nanos,
    queued: bool,
}

/// All pings.
#[derive(Debug)]
pub(super) struct Pings {
    all: Slab<Ping>,
    by_ends: HashMap<Ends, Key>,
    look_at: Option<Nanos>,
}

impl Pings {
    pub fn new() -> Self {
        Self {
            all: Slab::new(MOST),
            by_ends: HashMap::new(),
            look_at: None,
        }
    }

    pub fn deadline(&self) -> Option<Nanos> {
        self.look_at
    }

    pub fn note(&mut self, key: Key) -> bool {
        self.all
            .get_mut(key)
            .is_some_and(|ping| !std::mem::replace(&mut ping.queued, true))
    }

    pub fn reset(&mut self) {
        *self = Self::new();
    }

    fn remove(&mut self, key: Key) {
        if let Some(ping) = self.all.remove(key) {
            self.by_ends.remove(&ping.ends);
        }
    }

    /// Forgets pings that have been idle for long.
    pub fn tick(&mut self, now: Nanos) {
        if self.look_at.is_none_or(|at| at > now) {
            return;
        }
        for key in self.all.keys() {
            let idle = |ping: &mut Ping| now.since(ping.active) >= IDLE;
            if self.all.get_mut(key).is_some_and(idle) {
                self.remove(key);
            }
        }
        self.look_at = (self.all.len() > 0).then(|| now.after(IDLE));
    }

    /// A message of ICMP that the guest sends. Errors about what it received are not passed on.
    pub fn send(&mut self, packet: &ip::Packet<'_>, env: &mut Env<'_>) {
        let Some(echo) = Echo::parse(packet.payload).filter(|echo| echo.is_request) else {
            return;
        };
        let (guest, peer) = (packet.source, packet.destination);
        if matches!(peer, policy::GATEWAY | policy::DNS) {
            let reply = Echo {
                is_request: false,
                ..echo
            };
            env.out.echo(peer, guest, &reply);
            return;
        }
        let ends = (guest, peer, echo.identifier);
        let key = match self.by_ends.get(&ends) {
            Some(&key) => Ok(key),
            None => self.open(ends, env),
        };
        let sent = key.and_then(|key| self.pass_on(key, &echo, env));
        if let Err(why) = sent {
            env.out.unreachable(why, peer, guest, packet.bytes);
        }
    }

    fn pass_on(&mut self, key: Key, echo: &Echo<'_>, env: &mut Env<'_>) -> Result<(), Unreachable> {
        let Some(ping) = self.all.get_mut(key) else {
            return Ok(());
        };
        ping.active = env.now;
        let mut head = Head::default();
        echo.write(&mut head);
        let message = [head.as_slice(), echo.payload].concat();
        match send(
            &ping.socket,
            &message,
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        ) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR | Errno::MSGSIZE) => Ok(()),
            Err(error) => Err(unreachable_because(error)),
        }
    }

    fn open(&mut self, ends: Ends, env: &mut Env<'_>) -> Result<Key, Unreachable> {
        let peer = env.policy.admit(SocketAddr::new(IpAddr::V4(ends.1), 0))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let icmp = Some(ipproto::ICMP);
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, icmp)
            .and_then(|socket| connect(&socket, &peer).map(|()| socket))
            .map_err(unreachable_because)?;
        if self.all.is_full() {
            let oldest = self.all.iter_mut().min_by_key(|(_, ping)| ping.active);
            if let Some((key, _)) = oldest {
                self.remove(key);
            }
        }
        let key = self
            .all
            .insert_with(|key| {
                env.watch.add(&socket, Source::Ping(key)).ok()?;
                Some(Ping {
                    ends,
                    socket,
                    active: env.now,
                    queued: false,
                })
            })
            .ok_or(Unreachable::Host)?;
        self.by_ends.insert(ends, key);
        self.look_at.get_or_insert(env.now.after(IDLE));
        Ok(key)
    }

    /// What a ping's socket has.
    pub fn turn(&mut self, key: Key, env: &mut Env<'_>) -> Turn {
        let Some(ping) = self.all.get_mut(key) else {
            return Turn::Done;
        };
        let turn = ping.turn(env);
        ping.queued = turn != Turn::Done;
        turn
    }
}

impl Ping {
    fn turn(&mut self, env: &mut Env<'_>) -> Turn {
        for _ in 0..TURN {
            if !env.out.has_room() {
                return Turn::Starved;
            }
            let len = match recv(&self.socket, &mut *env.scratch, RecvFlags::DONTWAIT) {
                Ok((len, _)) => len,
                Err(Errno::INTR) => continue,
                Err(_) => return Turn::Done,
            };
            // The socket's identifier is the host's; the guest is answered with its own.
            if let Some(echo) = Echo::parse(&env.scratch[..len]).filter(|echo| !echo.is_request) {
                let reply = Echo {
                    identifier: self.ends.2,
                    ..echo
                };
                env.out.echo(self.ends.1, self.ends.0, &reply);
            }
        }
        Turn::Again
    }
}
