//! Doing in software what a guest's driver does not take undone: checksums, and the segmentation of
//! large frames of TCP. virtio 1.2, 5.1.6.4; a frame may come from another machine whose driver can
//! more.

use crate::backend::Guest;
use crate::vnet::{GsoKind, VnetHeader};
use crate::wire::checksum::Checksum;
use crate::wire::tcp::flags;
use crate::wire::{be16, be32, checksum, ethernet, protocol};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Bytes of IPv6's header.
const IPV6_LEN: usize = 40;

/// Delivers a frame after whatever the guest does not take undone has been done. False if there was
/// no room for (the first frame of) it.
pub(crate) fn deliver(guest: &mut dyn Guest, header: VnetHeader, frame: &[u8]) -> bool {
    let offloads = guest.offloads();
    let takes_large = header.gso.is_none_or(|gso| match gso.kind {
        GsoKind::Tcp4 => offloads.checksum && offloads.tcp4,
        GsoKind::Tcp6 => offloads.checksum && offloads.tcp6,
    });
    if takes_large && (offloads.checksum || header.checksum.is_none()) {
        return guest.deliver(header, &[frame]);
    }
    match header.gso {
        None => match completed(&header, frame) {
            Some(frame) => guest.deliver(VnetHeader::default(), &[&frame]),
            // The checksum would lie outside the frame: nobody can take it.
            None => true,
        },
        Some(gso) => match Layers::of(gso.kind, frame) {
            Some(layers) => layers.deliver(guest, frame, usize::from(gso.size)),
            None => true,
        },
    }
}

/// The frame with its checksum completed.
fn completed(header: &VnetHeader, frame: &[u8]) -> Option<Vec<u8>> {
    let mut frame = frame.to_vec();
    if let Some(partial) = header.checksum {
        let start = usize::from(partial.start);
        let at = start + usize::from(partial.offset);
        let mut sum = Checksum::default();
        sum.add(frame.get(start..)?);
        frame
            .get_mut(at..at + 2)?
            .copy_from_slice(&sum.finish().to_be_bytes());
    }
    Some(frame)
}

/// Where the layers of a large frame of TCP begin.
struct Layers {
    kind: GsoKind,
    ip: usize,
    tcp: usize,
    payload: usize,
}

impl Layers {
    fn of(kind: GsoKind, frame: &[u8]) -> Option<Self> {
        let ip = ethernet::HEADER_LEN;
        let packet = frame.get(ip..)?;
        let (header_len, protocol) = match kind {
            GsoKind::Tcp4 => (usize::from(packet.first()? & 0xf) * 4, *packet.get(9)?),
            GsoKind::Tcp6 => (IPV6_LEN, *packet.get(6)?),
        };
        let version = packet.first()? >> 4;
        let sound = match kind {
            GsoKind::Tcp4 => version == 4 && header_len >= 20,
            GsoKind::Tcp6 => version == 6,
        };
        let tcp = ip + header_len;
        let offset = usize::from(*frame.get(tcp + 12)? >> 4) * 4;
        let payload = tcp + offset;
        (sound && protocol == protocol::TCP && offset >= 20 && payload <= frame.len()).then_some(
            Self {
                kind,
                ip,
                tcp,
                payload,
            },
        )
    }

    /// Delivers the segments, of `size` bytes each; what finds no room after the first is lost.
    fn deliver(&self, guest: &mut dyn Guest, frame: &[u8], size: usize) -> bool {
        let (head, payload) = frame.split_at(self.payload);
        let pieces = payload.len().div_ceil(size).max(1);
        for n in 0..pieces {
            let data = &payload[n * size..payload.len().min((n + 1) * size)];
            let Some(head) = self.head(head, data, n, n + 1 == pieces, size) else {
                return true;
            };
            if !guest.deliver(VnetHeader::default(), &[&head, data]) {
                return n > 0;
            }
        }
        true
    }

    /// The headers of the segment number `n`.
    fn head(&self, head: &[u8], data: &[u8], n: usize, last: bool, size: usize) -> Option<Vec<u8>> {
        let mut head = head.to_vec();
        let set16 = |head: &mut [u8], at: usize, number: u16| {
            head[at..at + 2].copy_from_slice(&number.to_be_bytes());
        };
        let (ip, tcp) = (self.ip, self.tcp);
        let segment_len = head.len() - tcp + data.len();
        let (source, destination) = match self.kind {
            GsoKind::Tcp4 => {
                let total = head.len() - ip + data.len();
                let identification = be16(&head, ip + 4)?.wrapping_add(n as u16);
                set16(&mut head, ip + 2, u16::try_from(total).ok()?);
                set16(&mut head, ip + 4, identification);
                set16(&mut head, ip + 10, 0);
                let sum = checksum::of(&head[ip..tcp]);
                set16(&mut head, ip + 10, sum);
                let address = |at: usize| Some(IpAddr::V4(Ipv4Addr::from(be32(&head, at)?)));
                (address(ip + 12)?, address(ip + 16)?)
            }
            GsoKind::Tcp6 => {
                set16(&mut head, ip + 4, u16::try_from(segment_len).ok()?);
                let address = |at: usize| {
                    let bytes: [u8; 16] = head.get(at..at + 16)?.try_into().ok()?;
                    Some(IpAddr::V6(Ipv6Addr::from(bytes)))
                };
                (address(ip + 8)?, address(ip + 24)?)
            }
        };
        let sequence = be32(&head, tcp + 4)?.wrapping_add((n * size) as u32);
        head[tcp + 4..tcp + 8].copy_from_slice(&sequence.to_be_bytes());
        if !last {
            head[tcp + 13] &= !(flags::FIN | flags::PSH);
        }
        set16(&mut head, tcp + 16, 0);
        let mut sum = Checksum::pseudo(source, destination, protocol::TCP, segment_len);
        sum.add(&head[tcp..]);
        sum.add(data);
        set16(&mut head, tcp + 16, sum.finish());
        Some(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::GuestOffloads;
    use crate::vnet::{Gso, PartialChecksum};
    use crate::wire::{Head, Mac, ip, tcp};
    use proptest::prelude::*;

    /// A guest whose driver takes nothing undone.
    #[derive(Default)]
    struct Plain {
        frames: Vec<Vec<u8>>,
        room: usize,
    }

    impl Guest for Plain {
        fn offloads(&self) -> GuestOffloads {
            GuestOffloads::default()
        }

        fn room(&mut self, _: usize) -> bool {
            self.frames.len() < self.room
        }

        fn deliver(&mut self, header: VnetHeader, parts: &[&[u8]]) -> bool {
            assert_eq!(header, VnetHeader::default());
            if self.frames.len() >= self.room {
                return false;
            }
            self.frames.push(parts.concat());
            true
        }
    }

    const FROM: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
    const TO: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 16);

    fn large(payload: &[u8], size: u16) -> (VnetHeader, Vec<u8>) {
        let header = tcp::Header {
            sequence: u32::MAX - 5000,
            flags: flags::ACK | flags::PSH | flags::FIN,
            ..tcp::Header::default()
        };
        let len = tcp::HEADER_LEN + payload.len();
        let mut head = Head::default();
        ethernet::write(&mut head, Mac([2; 6]), Mac([4; 6]), ethernet::IPV4);
        ip::write(&mut head, FROM, TO, protocol::TCP, len, None);
        tcp::write(&mut head, &header);
        let vnet = VnetHeader {
            checksum: Some(PartialChecksum {
                start: 34,
                offset: 16,
            }),
            gso: (size > 0).then_some(Gso {
                kind: GsoKind::Tcp4,
                header_len: 54,
                size,
            }),
        };
        let partial = Checksum::pseudo(FROM.into(), TO.into(), protocol::TCP, len).partial();
        head.set16(50, partial);
        (vnet, [head.as_slice(), payload].concat())
    }

    proptest! {
        #[test]
        fn segments_make_up_the_large_frame(len in 0usize..20_000, size in 500u16..1461) {
            let payload: Vec<u8> = (0..len).map(|n| (n / 7) as u8).collect();
            let (header, frame) = large(&payload, size);
            let mut guest = Plain { room: 1000, ..Plain::default() };
            prop_assert!(deliver(&mut guest, header, &frame));
            let (mut got, mut next) = (Vec::new(), u32::MAX - 5000);
            let count = guest.frames.len();
            for (n, frame) in guest.frames.iter().enumerate() {
                let frame = ethernet::Frame::parse(frame).unwrap();
                let packet = ip::Packet::parse(frame.payload).unwrap();
                // Reading checks the checksum.
                let (tcp, data) =
                    tcp::parse(packet.payload, FROM.into(), TO.into(), false).unwrap();
                prop_assert_eq!(tcp.sequence, next);
                prop_assert_eq!(tcp.has(flags::FIN | flags::PSH), n + 1 == count);
                prop_assert!(data.len() <= usize::from(size));
                next = next.wrapping_add(data.len() as u32);
                got.extend_from_slice(data);
            }
            prop_assert_eq!(got, payload);
        }

        #[test]
        fn any_frame_is_survived(
            frame in proptest::collection::vec(any::<u8>(), 0..200),
            header in proptest::collection::vec(any::<u8>(), 12),
            version in any::<bool>(),
        ) {
            let mut frame = frame;
            if frame.len() > 24 {
                frame[14] = if version { 0x45 } else { 0x60 };
                frame[if version { 23 } else { 20 }] = 6;
            }
            if let Some(header) = VnetHeader::parse(&header) {
                let mut guest = Plain { room: 1000, ..Plain::default() };
                prop_assert!(deliver(&mut guest, header, &frame));
            }
        }
    }

    #[test]
    fn a_partial_checksum_is_completed() {
        let (header, frame) = large(b"abc", 0);
        let mut guest = Plain {
            room: 1,
            ..Plain::default()
        };
        assert!(deliver(&mut guest, header, &frame));
        let frame = ethernet::Frame::parse(&guest.frames[0]).unwrap();
        let packet = ip::Packet::parse(frame.payload).unwrap();
        assert!(tcp::parse(packet.payload, FROM.into(), TO.into(), false).is_some());
    }

    #[test]
    fn a_frame_without_room_is_not_delivered() {
        let (header, frame) = large(&[1; 4000], 1000);
        assert!(!deliver(&mut Plain::default(), header, &frame));
    }
}
