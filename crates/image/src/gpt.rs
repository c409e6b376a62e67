//! A partition table with one partition. UEFI Specification 2.10, chapter 5.
//!
//! A partition has a name of its own, by which a kernel finds its root without an initial RAM
//! filesystem and whatever the disk is attached to.

use crate::ImageError;
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Bytes of a sector.
const SECTOR: u64 = 512;
/// Partitions begin and end at multiples of this.
const ALIGN: u64 = 1 << 20;
/// Room for 128 entries of 128 bytes.
const ENTRIES: usize = 128;
const ENTRY: usize = 128;
const ENTRIES_SECTORS: u64 = (ENTRIES * ENTRY) as u64 / SECTOR;
const HEADER: usize = 92;
/// The type of a root for x86-64. Discoverable Partitions Specification.
const ROOT_TYPE: Uuid = Uuid(*b"\x4f\x68\xbc\xe3\xe8\xcd\x4d\xb1\x96\xe7\xfb\xca\xf9\x84\xb7\x09");
/// The smallest disk: a mebibyte at each end and one between.
const SMALLEST: u64 = 3 * ALIGN;

/// A UUID, its bytes in the order in which it is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// A UUID that says in its bits that it is made in a way of its own. RFC 9562, version 8.
    pub fn of(mut bytes: [u8; 16]) -> Self {
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(bytes)
    }

    /// The bytes as the table has them: the first three fields have the lowest byte first.
    fn mixed(self) -> [u8; 16] {
        let mut bytes = self.0;
        bytes[0..4].reverse();
        bytes[4..6].reverse();
        bytes[6..8].reverse();
        bytes
    }
}

impl std::fmt::Display for Uuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// Where the partition lies, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its first byte.
    pub start: u64,
    /// Its bytes.
    pub len: u64,
}

/// Writes the table of a disk of `len` bytes whose one partition is a root filesystem.
///
/// # Errors
/// [`ImageError::DiskTooSmall`]; [`ImageError::Io`] if the host refuses.
pub fn write(
    file: &File,
    len: u64,
    disk: Uuid,
    partition_uuid: Uuid,
) -> Result<Partition, ImageError> {
    if len < SMALLEST {
        return Err(ImageError::DiskTooSmall { len });
    }
    let sectors = len / SECTOR;
    let partition = Partition {
        start: ALIGN,
        len: (len - 2 * ALIGN) / ALIGN * ALIGN,
    };
    let entries = entries(partition, partition_uuid);
    let (first, last) = (1, sectors - 1);
    let copy_of_entries = last - ENTRIES_SECTORS;
    for (sector, bytes) in [
        (0, protective(sectors)),
        (first, header(first, last, 2, disk, &entries)),
        (2, entries.clone()),
        (copy_of_entries, entries.clone()),
        (last, header(last, first, copy_of_entries, disk, &entries)),
    ] {
        file.write_all_at(&bytes, sector * SECTOR)
            .map_err(ImageError::io("write", "the partition table"))?;
    }
    Ok(partition)
}

/// A table for those who know no other: one partition of an unknown type.
fn protective(sectors: u64) -> Vec<u8> {
    let mut sector = vec![0; SECTOR as usize];
    let count = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    sector[446..462].copy_from_slice(&[0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0, 0, 0, 0, 0]);
    sector[458..462].copy_from_slice(&count.to_le_bytes());
    sector[510..512].copy_from_slice(&[0x55, 0xaa]);
    sector
}

fn entries(partition: Partition, uuid: Uuid) -> Vec<u8> {
    let mut entries = vec![0; ENTRIES * ENTRY];
    entries[0..16].copy_from_slice(&ROOT_TYPE.mixed());
    entries[16..32].copy_from_slice(&uuid.mixed());
    let (first, end) = (
        partition.start / SECTOR,
        (partition.start + partition.len) / SECTOR,
    );
    entries[32..40].copy_from_slice(&first.to_le_bytes());
    entries[40..48].copy_from_slice(&(end - 1).to_le_bytes());
    for (index, unit) in "root".encode_utf16().enumerate() {
        let at = 56 + 2 * index;
        entries[at..at + 2].copy_from_slice(&unit.to_le_bytes());
    }
    entries
}

/// The header in `sector`, whose copy is in `other` and whose entries begin at `entries_at`.
fn header(sector: u64, other: u64, entries_at: u64, disk: Uuid, entries: &[u8]) -> Vec<u8> {
    let last = sector.max(other);
    let mut header = Vec::with_capacity(SECTOR as usize);
    header.extend_from_slice(b"EFI PART");
    header.extend_from_slice(&0x10000_u32.to_le_bytes());
    header.extend_from_slice(&(HEADER as u32).to_le_bytes());
    // The checksum comes last; until then it counts as zero.
    header.extend_from_slice(&[0; 8]);
    for number in [
        sector,
        other,
        2 + ENTRIES_SECTORS,
        last - ENTRIES_SECTORS - 1,
    ] {
        header.extend_from_slice(&number.to_le_bytes());
    }
    header.extend_from_slice(&disk.mixed());
    header.extend_from_slice(&entries_at.to_le_bytes());
    for number in [ENTRIES as u32, ENTRY as u32, crc32fast::hash(entries)] {
        header.extend_from_slice(&number.to_le_bytes());
    }
    let checksum = crc32fast::hash(&header);
    header[16..20].copy_from_slice(&checksum.to_le_bytes());
    header.resize(SECTOR as usize, 0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_printed_as_everywhere() {
        let text = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";
        assert_eq!(ROOT_TYPE.to_string(), text);
        let uuid = Uuid::of([0xff; 16]).to_string();
        assert_eq!(uuid, "ffffffff-ffff-8fff-bfff-ffffffffffff");
    }

    #[test]
    fn both_headers_have_right_checksums_and_name_each_other() {
        let disk = tempfile::tempfile().unwrap();
        let len = 64 << 20;
        disk.set_len(len).unwrap();
        let partition = write(&disk, len, Uuid([1; 16]), Uuid([2; 16])).unwrap();
        assert_eq!(partition.start + partition.len, len - ALIGN);
        let number = |at: u64| {
            let mut bytes = [0; 8];
            disk.read_exact_at(&mut bytes, at).unwrap();
            u64::from_le_bytes(bytes)
        };
        for (at, other) in [(SECTOR, len - SECTOR), (len - SECTOR, SECTOR)] {
            let mut header = vec![0; HEADER];
            disk.read_exact_at(&mut header, at).unwrap();
            let checksum = u32::from_le_bytes(header[16..20].try_into().unwrap());
            header[16..20].fill(0);
            assert_eq!(crc32fast::hash(&header), checksum);
            assert_eq!(number(at + 24) * SECTOR, at);
            assert_eq!(number(at + 32) * SECTOR, other);
            let mut entries = vec![0; ENTRIES * ENTRY];
            disk.read_exact_at(&mut entries, number(at + 72) * SECTOR)
                .unwrap();
            let checksum = u32::from_le_bytes(header[88..92].try_into().unwrap());
            assert_eq!(crc32fast::hash(&entries), checksum);
            assert_eq!(&entries[16..32], &[2; 16]);
        }
    }

    #[test]
    fn a_disk_without_room_is_refused() {
        let disk = tempfile::tempfile().unwrap();
        let result = write(&disk, 1 << 20, Uuid([1; 16]), Uuid([2; 16]));
        assert!(matches!(result, Err(ImageError::DiskTooSmall { .. })));
    }
}
