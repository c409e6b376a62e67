//! What is checked of a qcow2 image before anything else reads it.
//!
//! The format: QEMU's docs/interop/qcow2.txt. The bounds on tables are those that QEMU has.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// How a qcow2 image begins.
pub(crate) const MAGIC: [u8; 4] = *b"QFI\xfb";
/// Bytes of the header of version 3 that are read here.
const LENGTH: usize = 104;
/// The most bytes of a level-1 table.
const LARGEST_L1: u64 = 32 << 20;
/// The most bytes of the table of refcounts.
const LARGEST_REFCOUNTS: u64 = 8 << 20;
/// Bits of the incompatible features.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;

/// Big-endian numbers of the header.
struct Fields([u8; LENGTH]);

impl Fields {
    fn u32(&self, at: usize) -> u64 {
        self.0[at..at + 4]
            .iter()
            .fold(0, |number, &byte| number << 8 | u64::from(byte))
    }

    fn u64(&self, at: usize) -> u64 {
        self.u32(at) << 32 | self.u32(at + 4)
    }
}

/// Checks the header of the image in `file`. What is wrong is said in the error's text.
pub(crate) fn check(file: &File, write: bool) -> io::Result<()> {
    let len = file.metadata()?.len();
    let mut bytes = [0; LENGTH];
    let mut got = 0;
    while got < LENGTH {
        match file.read_at(&mut bytes[got..], got as u64) {
            Ok(0) => break,
            Ok(now) => got += now,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    check_fields(&Fields(bytes), len, write)
        .map_err(|reason| io::Error::new(io::ErrorKind::InvalidData, reason))
}

fn check_fields(fields: &Fields, file_len: u64, write: bool) -> Result<(), &'static str> {
    let ensure = |holds: bool, reason| if holds { Ok(()) } else { Err(reason) };
    ensure(fields.0[..4] == MAGIC, "it is not qcow2")?;
    let version = fields.u32(4);
    ensure(matches!(version, 2 | 3), "its version is neither 2 nor 3")?;
    let cluster_bits = fields.u32(20);
    ensure(
        (9..=21).contains(&cluster_bits),
        "its clusters are smaller than 512 bytes or larger than 2 MiB",
    )?;
    let size = fields.u64(24);
    ensure(size.is_multiple_of(512), "its size is not whole sectors")?;
    ensure(fields.u32(32) == 0, "it is encrypted")?;
    // One level-2 table of 8-byte entries fills a cluster.
    let reach = 1 << (2 * cluster_bits - 3);
    let l1_len = fields.u32(36) * 8;
    ensure(l1_len <= LARGEST_L1, "its level-1 table is too large")?;
    ensure(
        fields.u32(36) >= size.div_ceil(reach),
        "its level-1 table is too small for its size",
    )?;
    let within = |offset: u64, len: u64| offset.checked_add(len).is_some_and(|e| e <= file_len);
    ensure(
        l1_len == 0 || within(fields.u64(40), l1_len),
        "its level-1 table lies beyond the end of the file",
    )?;
    let refcounts = fields.u32(56) << cluster_bits;
    ensure(
        (1..=LARGEST_REFCOUNTS).contains(&refcounts),
        "its table of refcounts is empty or too large",
    )?;
    ensure(
        within(fields.u64(48), refcounts),
        "its table of refcounts lies beyond the end of the file",
    )?;
    ensure(
        !write || fields.u32(60) == 0,
        "it has internal snapshots, and can be used with readonly or as a backing file only",
    )?;
    if version == 3 {
        let features = fields.u64(72);
        ensure(
            features & (DIRTY | CORRUPT) == 0,
            "it is marked as dirty or corrupt; qemu-img check -r all may repair it",
        )?;
        ensure(
            features & EXTERNAL_DATA == 0,
            "its data lie in another file, which is not supported",
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The header of an image of 1 GiB with clusters of 64 KiB, in a file of 200 KiB.
    fn good() -> Fields {
        let mut fields = Fields([0; LENGTH]);
        fields.0[..4].copy_from_slice(&MAGIC);
        for (at, value) in [(4, 3), (20, 16), (36, 2), (56, 1), (96, 4), (100, 104)] {
            put(&mut fields, at, value);
        }
        fields.0[24..32].copy_from_slice(&(1u64 << 30).to_be_bytes());
        fields.0[40..48].copy_from_slice(&(3u64 << 16).to_be_bytes());
        fields.0[48..56].copy_from_slice(&(1u64 << 16).to_be_bytes());
        fields
    }

    fn put(fields: &mut Fields, at: usize, value: u32) {
        fields.0[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    #[test]
    fn a_good_header_passes_and_each_defect_is_found() {
        let len = 200 << 10;
        assert_eq!(check_fields(&good(), len, true), Ok(()));
        for (at, value) in [
            (0, 0),
            (4, 1),
            (4, 4),
            (20, 8),
            (20, 22),
            (20, u32::MAX),
            (24, u32::MAX),
            (28, 1),
            (32, 1),
            (36, 1),
            (36, u32::MAX),
            (40, u32::MAX),
            (44, 0x40000),
            (48, u32::MAX),
            (52, 0x30000),
            (56, 0),
            (56, u32::MAX),
            (60, 1),
            (76, 1),
            (76, 2),
            (76, 4),
        ] {
            let mut fields = good();
            put(&mut fields, at, value);
            assert!(
                check_fields(&fields, len, true).is_err(),
                "{at}: {value:#x}"
            );
        }
        assert!(check_fields(&good(), 0x30008, true).is_err());
    }

    proptest! {
        #[test]
        fn any_header_is_judged(bytes in proptest::array::uniform32(any::<u8>()), len: u64, good_start: bool) {
            let mut fields = good();
            let at = if good_start { 24 } else { 4 };
            fields.0[at..at + 32].copy_from_slice(&bytes);
            let _ = check_fields(&fields, len, true);
        }
    }
}
