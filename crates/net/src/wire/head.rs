//! The headers of a frame on their way to the guest.

/// Room for Ethernet, IPv4 or IPv6, and TCP with options.
const ROOM: usize = 128;

/// Bytes of headers, in an array of fixed size.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    bytes: [u8; ROOM],
    len: usize,
}

impl Default for Head {
    fn default() -> Self {
        Self {
            bytes: [0; ROOM],
            len: 0,
        }
    }
}

impl Head {
    /// Appends bytes. What is beyond the room is left away: no header of ours comes near it.
    pub fn put(&mut self, bytes: &[u8]) {
        let count = bytes.len().min(ROOM - self.len);
        debug_assert_eq!(count, bytes.len(), "headers fit");
        self.bytes[self.len..self.len + count].copy_from_slice(&bytes[..count]);
        self.len += count;
    }

    /// Appends a 16-bit number.
    pub fn put16(&mut self, number: u16) {
        self.put(&number.to_be_bytes());
    }

    /// Appends a 32-bit number.
    pub fn put32(&mut self, number: u32) {
        self.put(&number.to_be_bytes());
    }

    /// Overwrites a 16-bit number that was put before.
    pub fn set16(&mut self, at: usize, number: u16) {
        if let Some(bytes) = self.bytes[..self.len].get_mut(at..at + 2) {
            bytes.copy_from_slice(&number.to_be_bytes());
        }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}
