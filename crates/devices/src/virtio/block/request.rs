//! Requests as drivers write them. Virtio 1.2, 5.2.6.

use super::{MOST_SECTORS, SERIAL};
use crate::buffers::{BufferError, Buffers};
use crate::disk::{Disk, Operation, Request, SECTOR, is_within};
use crate::virtio::Chain;
use belljar_memory::DmaMemory;

/// Bytes of a request's header: type, reserved, sector.
const HEADER: usize = 16;
/// Bytes of a range to discard or zero: sector, number of sectors, flags.
const RANGE: usize = 16;

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

/// Flag of a range: its space may be given up.
const UNMAP: u32 = 1;

/// How a request ended: its status byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    Ok = 0,
    IoError = 1,
    Unsupported = 2,
}

/// What a chain asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// Work of the disk, which writes so many bytes to guest memory.
    Disk(Request, u32),
    /// The serial number.
    Serial,
    /// Nothing: it ends at once with this status.
    Nothing(Status),
}

/// Where the status byte of `chain` goes.
///
/// # Errors
/// If there is no room for it: the driver broke the rules.
pub(super) fn status_byte(chain: &Chain) -> Result<Buffers, BufferError> {
    let len = chain.writable.len();
    if len == 0 {
        return Err(BufferError::TooShort { has: 0, needed: 1 });
    }
    Ok(chain.writable.part(len - 1, 1))
}

/// Reads the request in `chain`, which has a [status byte](status_byte).
///
/// # Errors
/// If there is no whole header: the driver broke the rules.
pub(super) fn parse(
    chain: &Chain,
    memory: &DmaMemory,
    disk: &dyn Disk,
) -> Result<Wanted, BufferError> {
    let mut header = [0; HEADER];
    chain.readable.read(memory, 0, &mut header)?;
    let kind = u32_at(&header, 0);
    let sector = u64::from_le_bytes([
        header[8], header[9], header[10], header[11], header[12], header[13], header[14],
        header[15],
    ]);
    let given = chain.readable.part(HEADER as u64, u64::MAX);
    let space = chain.writable.part(0, chain.writable.len() - 1);
    let writes = matches!(kind, WRITE | DISCARD | WRITE_ZEROES);
    if writes && disk.is_read_only() {
        return Ok(Wanted::Nothing(Status::IoError));
    }
    Ok(match kind {
        READ => {
            let len = space.len();
            transfer(disk, sector, len, Operation::Read(space), len as u32)
        }
        WRITE => transfer(disk, sector, given.len(), Operation::Write(given), 0),
        FLUSH => Wanted::Disk(
            Request {
                operation: Operation::Flush,
                offset: 0,
            },
            0,
        ),
        GET_ID if space.len() >= SERIAL as u64 => Wanted::Serial,
        GET_ID => Wanted::Nothing(Status::IoError),
        DISCARD | WRITE_ZEROES => range(kind, &given, memory, disk)?,
        _ => Wanted::Nothing(Status::Unsupported),
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// A request for `len` bytes from `sector` on, if they are whole sectors of the disk.
fn transfer(disk: &dyn Disk, sector: u64, len: u64, operation: Operation, writes: u32) -> Wanted {
    match sector.checked_mul(SECTOR) {
        Some(offset) if is_within(offset, len, disk.size()) => {
            Wanted::Disk(Request { operation, offset }, writes)
        }
        _ => Wanted::Nothing(Status::IoError),
    }
}

/// A request to discard or zero the one range that `given` describes.
fn range(
    kind: u32,
    given: &Buffers,
    memory: &DmaMemory,
    disk: &dyn Disk,
) -> Result<Wanted, BufferError> {
    let mut range = [0; RANGE];
    if given.len() != RANGE as u64 {
        return Ok(Wanted::Nothing(Status::Unsupported));
    }
    given.read(memory, 0, &mut range)?;
    let sector = u64::from(u32_at(&range, 0)) | u64::from(u32_at(&range, 4)) << 32;
    let (sectors, flags) = (u32_at(&range, 8), u32_at(&range, 12));
    let allowed = if kind == DISCARD { 0 } else { UNMAP };
    if flags & !allowed != 0 {
        return Ok(Wanted::Nothing(Status::Unsupported));
    }
    if sectors > MOST_SECTORS {
        return Ok(Wanted::Nothing(Status::IoError));
    }
    let len = u64::from(sectors) * SECTOR;
    let operation = if kind == DISCARD {
        Operation::Discard(len)
    } else {
        let unmap = flags & UNMAP != 0;
        Operation::WriteZeroes { len, unmap }
    };
    Ok(transfer(disk, sector, len, operation, 0))
}
