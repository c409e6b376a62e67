//! Ports of the host that lead to the guest.

use super::{Env, Source, UserError, Watch};
use crate::config::{Forward, Transport};

use rustix::fd::OwnedFd;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, acceptfrom_with, bind, listen,
    recvfrom, sendto, socket_with, sockopt,
};
use std::net::SocketAddr;

/// Connections that the host's kernel keeps until they are taken.
const BACKLOG: i32 = 128;

#[derive(Debug)]
struct Listener {
    forward: Forward,
    socket: OwnedFd,
    queued: bool,
}

/// Something that came to a forwarded port.
pub(super) enum Accepted {
    /// A connection from an address, for a port of the guest.
    Stream(OwnedFd, SocketAddr, u16),
    /// A datagram of so many bytes (in the scratch buffer) from an address, for a port of the guest.
    Datagram(usize, SocketAddr, u16),
    /// No more.
    Nothing,
}

/// All forwarded ports.
#[derive(Debug)]
pub(super) struct Listeners(Vec<Listener>);

impl Listeners {
    pub fn new(forwards: &[Forward], watch: &Watch) -> Result<Self, UserError> {
        let open = |(index, forward): (usize, &Forward)| {
            let socket = open(forward)?;
            watch.add(&socket, Source::Listener(index))?;
            Ok(Listener {
                forward: *forward,
                socket,
                queued: false,
            })
        };
        forwards
            .iter()
            .enumerate()
            .map(|(index, forward)| {
                open((index, forward)).map_err(|error: rustix::io::Errno| UserError::Listen {
                    forward: *forward,
                    source: error.into(),
                })
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    pub fn note(&mut self, index: usize) -> bool {
        self.0
            .get_mut(index)
            .is_some_and(|listener| !std::mem::replace(&mut listener.queued, true))
    }

    /// Takes what came to a port, if anything did.
    pub fn turn(&mut self, index: usize, env: &mut Env<'_>) -> Accepted {
        let Some(listener) = self.0.get_mut(index) else {
            return Accepted::Nothing;
        };
        let port = listener.forward.guest_port;
        let accepted = match listener.forward.transport {
            Transport::Tcp => {
                accept(&listener.socket).map(|(socket, peer)| Accepted::Stream(socket, peer, port))
            }
            Transport::Udp => receive(&listener.socket, env.scratch)
                .map(|(len, peer)| Accepted::Datagram(len, peer, port)),
        };
        accepted.unwrap_or_else(|| {
            listener.queued = false;
            Accepted::Nothing
        })
    }

    /// Sends a datagram from a forwarded port back to who sent one there.
    pub fn send(&self, index: usize, peer: &SocketAddr, payload: &[u8]) {
        if let Some(listener) = self.0.get(index) {
            // A datagram that cannot be sent is lost, as datagrams are.
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let _ = sendto(&listener.socket, payload, flags, peer);
        }
    }
}

fn open(forward: &Forward) -> rustix::io::Result<OwnedFd> {
    let family = match forward.host {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let (kind, stream) = match forward.transport {
        Transport::Tcp => (SocketType::STREAM, true),
        Transport::Udp => (SocketType::DGRAM, false),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, kind, flags, None)?;
    if forward.host.is_ipv6() {
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if stream {
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &forward.host)?;
    if stream {
        listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

fn accept(socket: &OwnedFd) -> Option<(OwnedFd, SocketAddr)> {
    // A connection that ended before it was taken is an error of that connection alone.
    for _ in 0..BACKLOG {
        match acceptfrom_with(socket, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
            Ok((stream, Some(peer))) => {
                if let Ok(peer) = SocketAddr::try_from(peer) {
                    return Some((stream, peer));
                }
            }
            Ok((_, None)) | Err(rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return None,
            Err(error) => {
                tracing::warn!("cannot take a connection to a forwarded port: {error}");
                return None;
            }
        }
    }
    None
}

fn receive(socket: &OwnedFd, scratch: &mut [u8]) -> Option<(usize, SocketAddr)> {
    for _ in 0..BACKLOG {
        match recvfrom(socket, &mut *scratch, RecvFlags::DONTWAIT) {
            Ok((len, _, Some(peer))) => {
                if let Ok(peer) = SocketAddr::try_from(peer) {
                    return Some((len, peer));
                }
            }
            // The error of an earlier answer that nobody wanted.
            Ok((_, _, None)) | Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
    None
}
