//! Little-endian fields: checked reading from a file, writing to a structure.

use crate::BootError;

/// A file of kernel whose fields are read with bounds checks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fields<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl<'a> Fields<'a> {
    /// The fields of `bytes`, which errors call `what`.
    pub(crate) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { bytes, what }
    }

    /// The kind of file, for errors.
    pub(crate) fn what(&self) -> &'static str {
        self.what
    }

    /// `len` bytes at `offset`.
    pub(crate) fn slice(&self, offset: u64, len: u64) -> Result<&'a [u8], BootError> {
        let truncated = || BootError::Truncated {
            what: self.what,
            needed: offset.saturating_add(len),
            has: self.bytes.len() as u64,
        };
        let end = offset.checked_add(len).ok_or_else(truncated)?;
        if end > self.bytes.len() as u64 {
            return Err(truncated());
        }
        Ok(&self.bytes[offset as usize..end as usize])
    }

    fn array<const N: usize>(&self, offset: u64) -> Result<[u8; N], BootError> {
        let mut out = [0; N];
        out.copy_from_slice(self.slice(offset, N as u64)?);
        Ok(out)
    }

    /// The byte at `offset`.
    pub(crate) fn u8(&self, offset: u64) -> Result<u8, BootError> {
        self.array(offset).map(u8::from_le_bytes)
    }

    /// The 16-bit field at `offset`.
    pub(crate) fn u16(&self, offset: u64) -> Result<u16, BootError> {
        self.array(offset).map(u16::from_le_bytes)
    }

    /// The 32-bit field at `offset`.
    pub(crate) fn u32(&self, offset: u64) -> Result<u32, BootError> {
        self.array(offset).map(u32::from_le_bytes)
    }

    /// The 64-bit field at `offset`.
    pub(crate) fn u64(&self, offset: u64) -> Result<u64, BootError> {
        self.array(offset).map(u64::from_le_bytes)
    }

    /// The error that `field` of this file holds `value`.
    pub(crate) fn bad(&self, field: &'static str, value: u64) -> BootError {
        BootError::BadField {
            what: self.what,
            field,
            value,
        }
    }
}

/// Puts the bytes of a field at `offset` of a structure; both are constants of a format, so the
/// field lies within.
pub(crate) fn put(structure: &mut [u8], offset: usize, field: &[u8]) {
    structure[offset..offset + field.len()].copy_from_slice(field);
}
