//! Numbers and names in messages. Everything is little-endian, as on every machine of this house.

use rustix::io::Errno;
use std::ffi::CStr;

/// The longest name in bytes, as Linux has it.
const LONGEST_NAME: usize = 255;

/// A message that is read from the front.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (taken, rest) = self.bytes.split_first_chunk().ok_or(Errno::INVAL)?;
        self.bytes = rest;
        Ok(*taken)
    }

    pub fn u32(&mut self) -> Result<u32, Errno> {
        self.array().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Errno> {
        self.array().map(u64::from_le_bytes)
    }

    /// Passes over `len` bytes.
    pub fn skip(&mut self, len: usize) -> Result<(), Errno> {
        self.bytes = self.bytes.get(len..).ok_or(Errno::INVAL)?;
        Ok(())
    }

    /// A text that ends with a zero byte.
    pub fn text(&mut self) -> Result<&'a CStr, Errno> {
        let text = CStr::from_bytes_until_nul(self.bytes).map_err(|_| Errno::INVAL)?;
        self.bytes = &self.bytes[text.count_bytes() + 1..];
        Ok(text)
    }

    /// The name of something in a directory.
    pub fn name(&mut self) -> Result<Name<'a>, Errno> {
        Name::new(self.text()?)
    }

    /// All that is left.
    pub fn rest(self) -> &'a [u8] {
        self.bytes
    }
}

/// The name of something in a directory: one component of a path, and neither `.` nor `..`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Name<'a>(&'a CStr);

impl<'a> Name<'a> {
    pub fn new(text: &'a CStr) -> Result<Self, Errno> {
        match text.to_bytes() {
            b"" | b"." | b".." => Err(Errno::INVAL),
            bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
            bytes if bytes.len() > LONGEST_NAME => Err(Errno::NAMETOOLONG),
            _ => Ok(Self(text)),
        }
    }

    pub fn as_c_str(self) -> &'a CStr {
        self.0
    }
}

/// An answer that grows.
pub(crate) trait Put {
    fn bytes(&mut self, bytes: &[u8]);

    fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }
}

impl Put for Vec<u8> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_single_components_are_names() {
        for bad in [
            &b"\0"[..],
            b".\0",
            b"..\0",
            b"/\0",
            b"a/b\0",
            b"../x\0",
            b"x/\0",
            b"open",
        ] {
            assert_eq!(Reader::new(bad).name(), Err(Errno::INVAL), "{bad:?}");
        }
        for good in [&b"a\0"[..], b"...\0", b"..a\0", b"\xff\n\0"] {
            assert!(Reader::new(good).name().is_ok(), "{good:?}");
        }
        let long = [vec![b'x'; 256], vec![0]].concat();
        assert_eq!(Reader::new(&long).name(), Err(Errno::NAMETOOLONG));
        assert!(Reader::new(&long[1..]).name().is_ok());
    }

    #[test]
    fn what_is_not_there_is_not_read() {
        let mut reader = Reader::new(&[1, 0, 0, 0, 2]);
        assert_eq!(reader.u32(), Ok(1));
        assert_eq!(reader.u64(), Err(Errno::INVAL));
        assert_eq!(reader.skip(2), Err(Errno::INVAL));
        assert_eq!(reader.rest(), [2]);
    }
}
