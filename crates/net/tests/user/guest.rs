//! A guest with an independent TCP/IP (smoltcp) on a user-mode network, in one thread.

use belljar_clock::{Clock, HostClock, HostEntropy};
use belljar_net::user::{Resolvers, UserNetwork};
use belljar_net::{
    Attachment, Backend, CardConfig, Guest, GuestOffloads, Mac, Progress, Transmit, UserOptions,
    VnetHeader,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, IpEndpoint, IpListenEndpoint, Ipv4Address};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The guest's card.
pub const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
/// How long anything in these tests may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Frames between the guest and its network.
pub struct Link {
    /// Frames for the guest.
    pub received: VecDeque<(VnetHeader, Vec<u8>)>,
    /// Frames of the guest.
    pub sent: VecDeque<Vec<u8>>,
    /// What the guest's driver takes.
    pub offloads: GuestOffloads,
    /// The most frames that wait for the guest.
    pub room: usize,
}

impl Guest for Link {
    fn offloads(&self) -> GuestOffloads {
        self.offloads
    }

    fn room(&mut self, _: usize) -> bool {
        self.received.len() < self.room
    }

    fn deliver(&mut self, header: VnetHeader, parts: &[&[u8]]) -> bool {
        if self.received.len() >= self.room {
            return false;
        }
        let frame = parts.concat();
        assert!(self.offloads.checksum || header.checksum.is_none());
        assert!(
            header.gso.is_some() || frame.len() <= 1514,
            "{} bytes",
            frame.len()
        );
        assert!(header.gso.is_none() || self.offloads.tcp4);
        self.received.push_back((header, frame));
        true
    }
}

impl Device for Link {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        let (_, frame) = self.received.pop_front()?;
        Some((Received(frame), Sending(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        (self.sent.len() < 256).then_some(Sending(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        if self.offloads.checksum {
            // What comes may have partial checksums; what goes has whole ones.
            capabilities.checksum.tcp = smoltcp::phy::Checksum::Tx;
        } else {
            capabilities.checksum = ChecksumCapabilities::default();
        }
        capabilities
    }
}

pub struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

pub struct Sending<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}

/// A guest and its network.
pub struct World {
    pub network: Box<dyn Backend>,
    pub link: Link,
    pub interface: Interface,
    pub sockets: SocketSet<'static>,
    clock: Arc<dyn Clock>,
    next_port: u16,
}

/// Options as the command line has them.
pub fn options(text: &str) -> UserOptions {
    let card: CardConfig = text.parse().unwrap();
    match card.attachment {
        Attachment::User(options) => options,
        other => panic!("{other:?} is not of this test"),
    }
}

impl World {
    /// A guest on a network with these options.
    pub fn new(text: &str) -> Self {
        Self::with(text, Vec::new(), GuestOffloads::default())
    }

    /// A guest that reaches loopback services of the host by the gateway's address.
    pub fn open() -> Self {
        Self::new("user,loopback=on")
    }

    pub fn with(text: &str, resolvers: Vec<SocketAddr>, offloads: GuestOffloads) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(HostClock::new());
        let network = UserNetwork::new(
            &options(text),
            Resolvers::Fixed(resolvers),
            MAC,
            Arc::clone(&clock),
            Arc::new(HostEntropy::new().unwrap()),
        )
        .unwrap();
        let address = Ipv4Address::new(10, 0, 2, 15);
        Self::on(Box::new(network), MAC, address, offloads, clock)
    }

    /// A guest on any network; its router is number 2 of its own network.
    pub fn on(
        network: Box<dyn Backend>,
        mac: Mac,
        address: Ipv4Address,
        offloads: GuestOffloads,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let mut link = Link {
            received: VecDeque::new(),
            sent: VecDeque::new(),
            offloads,
            room: 256,
        };
        let mut config = Config::new(EthernetAddress(mac.0).into());
        config.random_seed = 7;
        let mut interface = Interface::new(config, &mut link, Instant::from_micros(0));
        interface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(address.into(), 24)).unwrap();
        });
        interface
            .routes_mut()
            .add_default_ipv4_route({
                let [a, b, c, _] = address.octets();
                Ipv4Address::new(a, b, c, 2)
            })
            .unwrap();
        Self {
            network,
            link,
            interface,
            sockets: SocketSet::new(Vec::new()),
            clock,
            next_port: 40_000,
        }
    }

    pub fn port(&mut self) -> u16 {
        self.next_port += 1;
        self.next_port
    }

    fn now(&self) -> Instant {
        Instant::from_micros((self.clock.now().0 / 1000) as i64)
    }

    /// Lets guest and network do what they can; whether anything was done.
    pub fn step(&mut self) -> bool {
        self.interface
            .poll(self.now(), &mut self.link, &mut self.sockets);
        let mut moved = self.pass();
        moved |= self.network.poll(&mut self.link) == Progress::More;
        moved || !self.link.received.is_empty()
    }

    /// Hands what the guest has sent to the network.
    pub fn pass(&mut self) -> bool {
        let mut moved = false;
        while let Some(frame) = self.link.sent.pop_front() {
            let header = VnetHeader::default();
            if self.network.transmit(header, &frame, &mut self.link) == Transmit::Busy {
                self.link.sent.push_front(frame);
                break;
            }
            moved = true;
        }
        moved
    }

    /// Goes on until `done` has a result.
    pub fn until<R>(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> Option<R>) -> R {
        let begun = std::time::Instant::now();
        loop {
            let moved = self.step();
            if let Some(result) = done(self) {
                return result;
            }
            assert!(begun.elapsed() < PATIENCE, "{what} takes too long");
            if !moved {
                self.wait();
            }
        }
    }

    /// Lets `time` go by.
    pub fn idle(&mut self, time: Duration) {
        let begun = std::time::Instant::now();
        while begun.elapsed() < time {
            if !self.step() {
                self.wait();
            }
        }
    }

    /// Waits a little for the host's sockets.
    fn wait(&mut self) {
        let fd = self.network.fd();
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: 1_000_000,
        };
        let _ = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout));
    }

    pub fn add_tcp(&mut self, buffer: usize) -> SocketHandle {
        let socket = tcp::Socket::new(
            tcp::SocketBuffer::new(vec![0; buffer]),
            tcp::SocketBuffer::new(vec![0; buffer]),
        );
        self.sockets.add(socket)
    }

    pub fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Takes what has arrived.
    pub fn receive(&mut self, handle: SocketHandle, got: &mut Vec<u8>) {
        let socket = self.tcp(handle);
        while socket.can_recv() {
            socket
                .recv(|data| {
                    got.extend_from_slice(data);
                    (data.len(), ())
                })
                .unwrap();
        }
    }

    /// Receives to the end of the stream.
    pub fn receive_all(&mut self, handle: SocketHandle) -> Vec<u8> {
        let mut got = Vec::new();
        self.until("receiving", |world| {
            world.receive(handle, &mut got);
            (!world.tcp(handle).may_recv()).then_some(())
        });
        got
    }

    /// Sends everything.
    pub fn send_all(&mut self, handle: SocketHandle, data: &[u8]) {
        let mut sent = 0;
        self.until("sending", |world| {
            let socket = world.tcp(handle);
            assert!(socket.may_send(), "the connection broke at {sent}");
            sent += socket.send_slice(&data[sent..]).unwrap();
            (sent == data.len()).then_some(())
        });
    }

    /// Begins to connect to an address.
    pub fn connect(&mut self, to: (Ipv4Address, u16), buffer: usize) -> SocketHandle {
        let handle = self.add_tcp(buffer);
        let port = self.port();
        let socket: &mut tcp::Socket = self.sockets.get_mut(handle);
        socket
            .connect(
                self.interface.context(),
                IpEndpoint::new(to.0.into(), to.1),
                port,
            )
            .unwrap();
        handle
    }

    /// Waits until a connection is made or has failed; whether it was made.
    pub fn connected(&mut self, handle: SocketHandle) -> bool {
        self.until("connecting", |world| match world.tcp(handle).state() {
            tcp::State::SynSent | tcp::State::SynReceived | tcp::State::Listen => None,
            tcp::State::Closed => Some(false),
            _ => Some(true),
        })
    }

    pub fn listen(&mut self, port: u16) -> SocketHandle {
        let handle = self.add_tcp(64 << 10);
        self.tcp(handle).listen(port).unwrap();
        handle
    }

    pub fn add_udp(&mut self, port: u16) -> SocketHandle {
        let buffer =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 256 << 10]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(IpListenEndpoint { addr: None, port }).unwrap();
        self.sockets.add(socket)
    }

    pub fn udp(&mut self, handle: SocketHandle) -> &mut udp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// Receives a datagram: what it says, and from where it came.
    pub fn datagram(&mut self, handle: SocketHandle) -> (Vec<u8>, IpEndpoint) {
        self.until("a datagram", |world| {
            let (data, meta) = world.udp(handle).recv().ok()?;
            Some((data.to_vec(), meta.endpoint))
        })
    }
}
