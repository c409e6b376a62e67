//! The header that travels with a frame between a card and its network: what is left undone in the
//! frame. virtio 1.2, 5.1.6; the tap device of Linux speaks the same.

/// Bytes of the header with the number of buffers, as virtio 1 has it.
pub const HEADER_LEN: usize = 12;

/// Flag: the checksum of the transport is partial.
const NEEDS_CSUM: u8 = 1;
/// Kinds of `gso_type`.
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
/// Flag of `gso_type`: the segments have ECN bits. Nothing depends on it here.
const GSO_ECN: u8 = 0x80;

/// A checksum that only covers the pseudo header yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// Where summing begins, from the frame's first byte.
    pub start: u16,
    /// Where the checksum lies, from `start`.
    pub offset: u16,
}

/// The protocol that a large frame is to be segmented by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GsoKind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
}

/// A frame that stands for several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// How to segment it.
    pub kind: GsoKind,
    /// Bytes of all headers together; a hint.
    pub header_len: u16,
    /// Payload of each segment but the last, in bytes.
    pub size: u16,
}

/// What is left undone in a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    /// The transport's checksum is to be completed.
    pub checksum: Option<PartialChecksum>,
    /// The frame is to be segmented.
    pub gso: Option<Gso>,
}

impl VnetHeader {
    /// Reads the header from its wire form; the number of buffers is not looked at.
    ///
    /// Nothing if the bytes are too few, or name a kind of segmentation that nobody offered.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; HEADER_LEN] = bytes.get(..HEADER_LEN)?.try_into().ok()?;
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let checksum = (bytes[0] & NEEDS_CSUM != 0).then(|| PartialChecksum {
            start: word(6),
            offset: word(8),
        });
        let kind = match bytes[1] & !GSO_ECN {
            GSO_NONE => None,
            GSO_TCPV4 => Some(GsoKind::Tcp4),
            GSO_TCPV6 => Some(GsoKind::Tcp6),
            _ => return None,
        };
        let gso = match kind {
            None => None,
            // A segment without payload would never end, and virtio wants its checksum partial.
            Some(_) if word(4) == 0 || checksum.is_none() => return None,
            Some(kind) => Some(Gso {
                kind,
                header_len: word(2),
                size: word(4),
            }),
        };
        Some(Self { checksum, gso })
    }

    /// The header's wire form, for a frame in `buffers` receive buffers.
    pub fn encode(&self, buffers: u16) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let mut put = |at: usize, word: u16| {
            bytes[at..at + 2].copy_from_slice(&word.to_le_bytes());
        };
        put(10, buffers);
        if let Some(gso) = self.gso {
            put(2, gso.header_len);
            put(4, gso.size);
        }
        if let Some(checksum) = self.checksum {
            put(6, checksum.start);
            put(8, checksum.offset);
            bytes[0] = NEEDS_CSUM;
        }
        bytes[1] = match self.gso.map(|gso| gso.kind) {
            None => GSO_NONE,
            Some(GsoKind::Tcp4) => GSO_TCPV4,
            Some(GsoKind::Tcp6) => GSO_TCPV6,
        };
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_header_reads_back_as_it_was_written() {
        let header = VnetHeader {
            checksum: Some(PartialChecksum {
                start: 34,
                offset: 16,
            }),
            gso: Some(Gso {
                kind: GsoKind::Tcp4,
                header_len: 54,
                size: 1460,
            }),
        };
        assert_eq!(VnetHeader::parse(&header.encode(3)), Some(header));
        assert_eq!(
            VnetHeader::parse(&VnetHeader::default().encode(1)),
            Some(VnetHeader::default())
        );
    }

    #[test]
    fn segmentation_without_size_or_checksum_is_refused() {
        let mut bytes = [0; HEADER_LEN];
        bytes[1] = GSO_TCPV4;
        bytes[4] = 100;
        assert_eq!(VnetHeader::parse(&bytes), None);
        bytes[0] = NEEDS_CSUM;
        assert!(VnetHeader::parse(&bytes).is_some());
        bytes[4] = 0;
        assert_eq!(VnetHeader::parse(&bytes), None);
        bytes[1] = 3;
        assert_eq!(VnetHeader::parse(&bytes), None);
    }

    proptest! {
        #[test]
        fn what_parses_survives_another_turn(bytes in proptest::collection::vec(any::<u8>(), 0..16)) {
            if let Some(header) = VnetHeader::parse(&bytes) {
                prop_assert_eq!(VnetHeader::parse(&header.encode(1)), Some(header));
            }
        }
    }
}
