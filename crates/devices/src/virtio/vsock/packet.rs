//! Packets: a header, and data behind it. Virtio 1.2, 5.10.6.

/// Bytes of a header.
pub const HEADER: usize = 44;
/// The number of the host among those that talk to each other. 5.10.4.
pub const HOST: u64 = 2;
/// The kind of a stream's packets; seqpacket sockets, which are another, are not offered.
pub const STREAM: u16 = 1;

/// The guest or the host will receive no more.
pub const NO_RECEIVE: u32 = 1;
/// The guest or the host will send no more.
pub const NO_SEND: u32 = 2;

/// What a packet is for. 5.10.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Operation {
    /// Asks for a connection.
    Request = 1,
    /// Accepts one.
    Response = 2,
    /// Ends or refuses one.
    Reset = 3,
    /// Tells that no more is received, or sent, or both.
    Shutdown = 4,
    /// Carries data.
    Data = 5,
    /// Tells of room for data.
    CreditUpdate = 6,
    /// Asks for a [`CreditUpdate`](Self::CreditUpdate).
    CreditRequest = 7,
}

impl Operation {
    fn from_number(number: u16) -> Option<Self> {
        [
            Self::Request,
            Self::Response,
            Self::Reset,
            Self::Shutdown,
            Self::Data,
            Self::CreditUpdate,
            Self::CreditRequest,
        ]
        .into_iter()
        .find(|operation| *operation as u16 == number)
    }
}

/// A packet's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Who sends it.
    pub source: u64,
    /// Whom it is for.
    pub destination: u64,
    /// The sender's port.
    pub source_port: u32,
    /// The receiver's port.
    pub destination_port: u32,
    /// Bytes of data behind the header.
    pub length: u32,
    /// [`STREAM`], or a kind that does not exist here.
    pub kind: u16,
    /// What it is for; `None` for what does not exist.
    pub operation: Option<Operation>,
    /// [`NO_RECEIVE`] and [`NO_SEND`] of a shutdown.
    pub flags: u32,
    /// Bytes that the sender has room for altogether.
    pub room: u32,
    /// Bytes that the sender has received and passed on, modulo 2^32.
    pub passed_on: u32,
}

impl Header {
    /// The header of these bytes.
    pub fn from_bytes(bytes: &[u8; HEADER]) -> Self {
        let word = |at: usize| {
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        let short = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            source: long(0),
            destination: long(8),
            source_port: word(16),
            destination_port: word(20),
            length: word(24),
            kind: short(28),
            operation: Operation::from_number(short(30)),
            flags: word(32),
            room: word(36),
            passed_on: word(40),
        }
    }

    /// The bytes of this header.
    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let operation = self.operation.map_or(0, |operation| operation as u16);
        bytes[0..8].copy_from_slice(&self.source.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.destination.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.source_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.destination_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.length.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&operation.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.room.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.passed_on.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn headers_survive_being_bytes(bytes in proptest::array::uniform32(any::<u8>())) {
            let mut header = [0; HEADER];
            header[..32].copy_from_slice(&bytes);
            header[12..].copy_from_slice(&bytes);
            header[30..32].copy_from_slice(&5_u16.to_le_bytes());
            prop_assert_eq!(Header::from_bytes(&header).to_bytes(), header);
        }
    }

    #[test]
    fn operations_that_do_not_exist_are_told() {
        let mut bytes = [0; HEADER];
        for (number, exists) in [
            (0, false),
            (1, true),
            (7, true),
            (8, false),
            (0xffff, false),
        ] {
            bytes[30..32].copy_from_slice(&u16::to_le_bytes(number));
            assert_eq!(Header::from_bytes(&bytes).operation.is_some(), exists);
        }
    }
}
