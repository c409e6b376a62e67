//! Where code and data of a case lie: the same linear addresses on the host and in the engine's machine.

use std::ops::Range;

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// First address of the two pages of code, which user mode may read and execute.
pub const CODE: u64 = 0x1000_1000;
/// Bytes of code.
pub const CODE_LEN: usize = 2 * PAGE;
/// A case begins in the first page at this offset at the earliest; what lies before is a field of INT3 to jump to.
pub const CODE_FIRST: usize = 2048;

/// First address of the three pages of blocks, which user mode may read, write and execute.
pub const BLOCK: u64 = 0x1000_8000;
/// Bytes of the pages of blocks.
pub const BLOCK_LEN: usize = 3 * PAGE;
/// A block's instructions lie within this many bytes from [`BLOCK`]; the cells that it uses lie there, too, or in the last
/// page.
pub const BLOCK_CODE_LEN: usize = 2 * PAGE;

/// Content of the pages of blocks.
pub type BlockPages = [u8; BLOCK_LEN];

/// First address of the data: four pages, not executable, with unmapped pages on both sides.
pub const DATA: u64 = 0x1001_1000;
/// Bytes of data.
pub const DATA_LEN: usize = 4 * PAGE;
/// The page of the data that is read-only; the others are writable.
pub const READ_ONLY_PAGE: usize = 2;

/// Start and end of everything that belongs to a case, with the unmapped pages around it.
pub const ARENA: Range<u64> = CODE - PAGE as u64..DATA + (DATA_LEN + PAGE) as u64;

/// Content of the data pages.
pub type Data = [u8; DATA_LEN];

/// What unused code is filled with: INT3.
pub const FILL: u8 = 0xcc;

/// Whether all of `len` bytes at `address` can be read.
pub fn is_readable(address: u64, len: usize) -> bool {
    let parts = [(CODE, CODE_LEN), (BLOCK, BLOCK_LEN), (DATA, DATA_LEN)];
    parts.iter().any(|&(start, size)| {
        let offset = address.wrapping_sub(start);
        offset < size as u64 && offset + len as u64 <= size as u64
    })
}

/// Offset of `address` in the data, if `len` bytes from there lie in it.
pub fn data_offset(address: u64, len: usize) -> Option<usize> {
    let offset = usize::try_from(address.checked_sub(DATA)?).ok()?;
    (offset.checked_add(len)? <= DATA_LEN).then_some(offset)
}
