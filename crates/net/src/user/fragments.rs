//! Packets that the guest sends in fragments. RFC 791, 3.2; fragments that overlap make nobody's
//! packet (RFC 5722 says so for IPv6, and no sender makes such).

use crate::wire::ip;
use belljar_clock::Nanos;
use std::net::Ipv4Addr;

/// Packets that are put together at a time.
const MOST_PACKETS: usize = 16;
/// Fragments of one packet.
const MOST_PARTS: usize = 64;
/// Bytes of one packet.
const LARGEST: usize = 65_515;
/// How long the rest of a packet is waited for.
const PATIENCE: u64 = 5 * Nanos::SECOND;

#[derive(Debug)]
struct Partial {
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    identification: u16,
    since: Nanos,
    /// Offsets and bytes, in order.
    parts: Vec<(usize, Vec<u8>)>,
    /// The length of the whole, once the last part has come.
    len: Option<usize>,
}

impl Partial {
    fn is_of(&self, packet: &ip::Packet<'_>, part: &ip::Fragment) -> bool {
        (self.source, self.destination) == (packet.source, packet.destination)
            && (self.protocol, self.identification) == (packet.protocol, part.identification)
    }

    /// Adds a part; whether it makes sense together with the others.
    fn add(&mut self, data: &[u8], part: &ip::Fragment) -> bool {
        let end = part.offset + data.len();
        let ragged = part.more && !data.len().is_multiple_of(8);
        if data.is_empty() || ragged || end > LARGEST || self.parts.len() >= MOST_PARTS {
            return false;
        }
        let place = self
            .parts
            .partition_point(|(offset, _)| *offset < part.offset);
        let before = place.checked_sub(1).and_then(|at| self.parts.get(at));
        let overlaps = before.is_some_and(|(offset, bytes)| offset + bytes.len() > part.offset)
            || self
                .parts
                .get(place)
                .is_some_and(|(offset, _)| *offset < end);
        let beyond = self.len.is_some_and(|len| end > len || !part.more);
        if overlaps || beyond {
            return false;
        }
        self.parts.insert(place, (part.offset, data.to_vec()));
        if !part.more {
            self.len = Some(end);
        }
        let last = self
            .parts
            .last()
            .map_or(0, |(offset, bytes)| offset + bytes.len());
        self.len.is_none_or(|len| last <= len)
    }

    fn whole(&self) -> Option<Vec<u8>> {
        let len = self.len?;
        let have: usize = self.parts.iter().map(|(_, bytes)| bytes.len()).sum();
        (have == len).then(|| {
            self.parts
                .iter()
                .flat_map(|(_, bytes)| bytes)
                .copied()
                .collect()
        })
    }
}

/// Packets of which parts are still on their way.
#[derive(Debug, Default)]
pub(super) struct Fragments(Vec<Partial>);

impl Fragments {
    /// Adds a fragment; the payload of the packet if it is whole now.
    pub fn add(
        &mut self,
        packet: &ip::Packet<'_>,
        part: ip::Fragment,
        now: Nanos,
    ) -> Option<Vec<u8>> {
        self.0.retain(|partial| now.since(partial.since) < PATIENCE);
        let known = self.0.iter().position(|p| p.is_of(packet, &part));
        let at = known.unwrap_or_else(|| {
            if self.0.len() >= MOST_PACKETS {
                self.0.remove(0);
            }
            self.0.push(Partial {
                source: packet.source,
                destination: packet.destination,
                protocol: packet.protocol,
                identification: part.identification,
                since: now,
                parts: Vec::new(),
                len: None,
            });
            self.0.len() - 1
        });
        if !self.0[at].add(packet.payload, &part) {
            self.0.remove(at);
            return None;
        }
        let whole = self.0[at].whole()?;
        self.0.remove(at);
        Some(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn add(
        fragments: &mut Fragments,
        data: &[u8],
        offset: usize,
        more: bool,
        now: Nanos,
    ) -> Option<Vec<u8>> {
        let packet = ip::Packet {
            source: Ipv4Addr::new(10, 0, 2, 15),
            destination: Ipv4Addr::new(8, 8, 8, 8),
            protocol: 17,
            fragment: None,
            payload: data,
            bytes: data,
        };
        let part = ip::Fragment {
            identification: 1,
            offset,
            more,
        };
        fragments.add(&packet, part, now)
    }

    #[test]
    fn parts_that_overlap_make_no_packet() {
        let mut fragments = Fragments::default();
        assert_eq!(add(&mut fragments, &[1; 16], 0, true, Nanos(0)), None);
        assert_eq!(add(&mut fragments, &[2; 16], 8, false, Nanos(0)), None);
        assert!(fragments.0.is_empty());
    }

    #[test]
    fn parts_that_never_come_are_forgotten() {
        let mut fragments = Fragments::default();
        assert_eq!(add(&mut fragments, &[1; 16], 0, true, Nanos(0)), None);
        assert_eq!(
            add(&mut fragments, &[2; 8], 16, false, Nanos(PATIENCE)),
            None
        );
        assert_eq!(fragments.0.len(), 1);
    }

    proptest! {
        #[test]
        fn parts_in_any_order_make_the_packet(
            len in 9usize..5000,
            step in 1usize..100,
            seed in any::<u64>(),
        ) {
            let whole: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let step = (step * 8).max(len.div_ceil(MOST_PARTS).next_multiple_of(8));
            let mut offsets: Vec<usize> = (0..len).step_by(step).collect();
            let mut state = seed | 1;
            for at in (1..offsets.len()).rev() {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                offsets.swap(at, (state >> 33) as usize % (at + 1));
            }
            let mut fragments = Fragments::default();
            let mut got = None;
            for offset in offsets {
                prop_assert_eq!(got, None);
                let end = (offset + step).min(len);
                got = add(&mut fragments, &whole[offset..end], offset, end < len, Nanos(0));
            }
            prop_assert_eq!(got, Some(whole));
            prop_assert!(fragments.0.is_empty());
        }

        #[test]
        fn any_parts_are_survived_and_bounded(
            parts in proptest::collection::vec((0usize..9000, 0usize..70, any::<bool>(), any::<u16>()), 0..200),
        ) {
            let mut fragments = Fragments::default();
            for (offset, len, more, identification) in parts {
                let data = vec![0; len];
                let packet = ip::Packet {
                    source: Ipv4Addr::new(10, 0, 2, 15),
                    destination: Ipv4Addr::new(8, 8, 8, 8),
                    protocol: 17,
                    fragment: None,
                    payload: &data,
                    bytes: &data,
                };
                let part = ip::Fragment {
                    identification: identification % 40,
                    offset: offset * 8,
                    more,
                };
                let _ = fragments.add(&packet, part, Nanos(0));
                prop_assert!(fragments.0.len() <= MOST_PACKETS);
            }
        }
    }
}
