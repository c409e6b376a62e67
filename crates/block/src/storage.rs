//! What a disk's content is kept in.

use belljar_memory::Segments;
use std::fmt::Debug;
use std::fs::File;
use std::io;

/// Bytes of a sector: sizes of disks are multiples of it.
pub const SECTOR: u64 = 512;

/// The content of a disk. Calls come from several threads at once; what overlapping writes leave is
/// one of them or a mixture, as on a real disk.
///
/// A range that reaches beyond [`size`](Self::size) is an error of kind
/// [`InvalidInput`](io::ErrorKind::InvalidInput), a change of what is read-only one of kind
/// [`ReadOnlyFilesystem`](io::ErrorKind::ReadOnlyFilesystem).
pub trait Storage: Send + Sync + Debug {
    /// Bytes of the disk, a multiple of [`SECTOR`].
    fn size(&self) -> u64;

    /// Whether nothing can be changed.
    fn is_read_only(&self) -> bool;

    /// The file whose bytes are those of the disk, if reads and writes within [`size`](Self::size) may
    /// go straight to it, past [`read`](Self::read) and [`write`](Self::write).
    fn file(&self) -> Option<&File>;

    /// Fills `segments` with what lies at `offset`.
    ///
    /// # Errors
    /// A range beyond the end; what the host says.
    fn read(&self, offset: u64, segments: &Segments) -> io::Result<()>;

    /// Writes `segments` to `offset`.
    ///
    /// # Errors
    /// A range beyond the end, a read-only disk; what the host says. Some may have been written.
    fn write(&self, offset: u64, segments: &Segments) -> io::Result<()>;

    /// Makes everything last that was written before.
    ///
    /// # Errors
    /// What the host says. What was written since the last flush may be lost then, and every later
    /// flush fails too.
    fn flush(&self) -> io::Result<()>;

    /// Says that the content of a range is of no use any more. What it reads as afterwards is the old
    /// content or zeroes.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes a range read as zeroes; the host may free its room if `may_unmap`.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    fn write_zeroes(&self, offset: u64, len: u64, may_unmap: bool) -> io::Result<()>;
}

/// Checks that a range lies within `size` bytes.
pub(crate) fn check_range(offset: u64, len: u64, size: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "the range reaches beyond the end of the disk",
        )),
    }
}

/// Checks that a range of something may be changed.
pub(crate) fn check_change(storage: &dyn Storage, offset: u64, len: u64) -> io::Result<()> {
    if storage.is_read_only() {
        return Err(io::ErrorKind::ReadOnlyFilesystem.into());
    }
    check_range(offset, len, storage.size())
}
