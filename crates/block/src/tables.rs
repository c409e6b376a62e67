//! What is checked, and mended, of the tables of a qcow2 image before anything else reads them.
//!
//! The format: QEMU's docs/interop/qcow2.txt. An image whose tables point into each other would let
//! a guest write tables (and so name other files of the host) when it writes its disk; it is refused.
//! A power cut can leave clusters in use that are not counted, because what is written between two
//! flushes reaches the host's disk in any order. Nothing is lost then, but the next allocation would
//! use such a cluster twice; so they are counted when an image is opened for writing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// The most bytes of level-2 tables: enough for 4 TiB in clusters of 64 KiB.
const LARGEST_L2: u64 = 512 << 20;
/// The bits of an entry that are an offset in the file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// An entry of a level-2 table is a compressed cluster.
const COMPRESSED: u64 = 1 << 62;

/// Where the tables lie, from a header that was checked.
struct Tables<'a> {
    file: &'a File,
    cluster_bits: u32,
    l1_offset: u64,
    l1_entries: u64,
    refcounts_offset: u64,
    refcounts_clusters: u64,
    /// Binary logarithm of the bits of a refcount.
    refcount_order: u32,
}

/// Which clusters of the file are in use, each list in ascending order.
#[derive(Default)]
struct Used {
    /// The header and tables.
    tables: Vec<u64>,
    /// What standard entries point to.
    data: Vec<u64>,
    /// What compressed entries touch, as often as they do.
    compressed: Vec<u64>,
}

fn bad(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// Checks the tables of the image in `file`, whose header was checked. If it is open for writing,
/// clusters that are in use and not counted are counted; gives their number.
pub(crate) fn check(file: &File, write: bool) -> io::Result<u64> {
    let tables = Tables::of(file)?;
    let refcounts = tables.entries(
        tables.refcounts_offset,
        tables.refcounts_clusters << (tables.cluster_bits - 3),
    )?;
    let used = tables.used(&refcounts)?;
    used.check()?;
    if write {
        return tables.count(&used, &refcounts);
    }
    Ok(0)
}

/// Reads until `bytes` are full; what lies beyond the end of the file is zeroes, as for a table whose
/// clusters were allocated and never written.
fn read(file: &File, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(0) => {
                bytes[done..].fill(0);
                break;
            }
            Ok(now) => done += now,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

impl<'a> Tables<'a> {
    fn of(file: &'a File) -> io::Result<Self> {
        let mut header = [0; 104];
        read(file, 0, &mut header)?;
        let u32_at = |at: usize| number(&header[at..at + 4]);
        let u64_at = |at: usize| number(&header[at..at + 8]);
        let tables = Self {
            file,
            cluster_bits: u32_at(20) as u32,
            l1_offset: u64_at(40),
            l1_entries: u32_at(36),
            refcounts_offset: u64_at(48),
            refcounts_clusters: u32_at(56),
            refcount_order: if u32_at(4) == 2 { 4 } else { u32_at(96) as u32 },
        };
        if !(9..=21).contains(&tables.cluster_bits)
            || tables.l1_entries > 4 << 20
            || tables.refcounts_clusters << tables.cluster_bits > 8 << 20
            || tables.refcount_order > 6
        {
            return Err(bad("its header makes no sense"));
        }
        Ok(tables)
    }

    /// The cluster at `offset`.
    fn cluster(&self, offset: u64) -> io::Result<u64> {
        if offset.trailing_zeros() < self.cluster_bits || offset > OFFSET {
            return Err(bad("a table or cluster of it does not begin at a cluster"));
        }
        Ok(offset >> self.cluster_bits)
    }

    /// `count` entries of 64 bits at `offset`.
    fn entries(&self, offset: u64, count: u64) -> io::Result<Vec<u64>> {
        let mut bytes = vec![0; 8 * count as usize];
        read(self.file, offset, &mut bytes)?;
        Ok(bytes.chunks_exact(8).map(number).collect())
    }

    fn used(&self, refcounts: &[u64]) -> io::Result<Used> {
        let mut used = Used::default();
        used.tables.push(0);
        let l1 = self.cluster(self.l1_offset)?;
        let l1_clusters = (8 * self.l1_entries).div_ceil(1 << self.cluster_bits);
        used.tables.extend(l1..l1 + l1_clusters);
        let counts = self.cluster(self.refcounts_offset)?;
        used.tables.extend(counts..counts + self.refcounts_clusters);
        for &entry in refcounts {
            if entry != 0 {
                used.tables.push(self.cluster(entry)?);
            }
        }
        let mut l2_bytes = 0;
        for entry in self.entries(self.l1_offset, self.l1_entries)? {
            let offset = entry & OFFSET;
            if offset == 0 {
                continue;
            }
            used.tables.push(self.cluster(offset)?);
            l2_bytes += 1 << self.cluster_bits;
            if l2_bytes > LARGEST_L2 {
                return Err(bad("its level-2 tables are too large"));
            }
            for entry in self.entries(offset, 1 << (self.cluster_bits - 3))? {
                self.use_entry(entry, &mut used)?;
            }
        }
        used.tables.sort_unstable();
        used.data.sort_unstable();
        used.compressed.sort_unstable();
        Ok(used)
    }

    /// Notes what an entry of a level-2 table points to.
    fn use_entry(&self, entry: u64, used: &mut Used) -> io::Result<()> {
        if entry & COMPRESSED == 0 {
            let offset = entry & OFFSET;
            if offset != 0 {
                used.data.push(self.cluster(offset)?);
            }
            return Ok(());
        }
        // The lower bits are the offset, the others the number of further sectors.
        let bits = 62 - (self.cluster_bits - 8);
        let offset = entry & ((1 << bits) - 1);
        let sectors = (entry & (COMPRESSED - 1)) >> bits;
        if offset > OFFSET {
            return Err(bad("a compressed cluster of it lies beyond any file"));
        }
        let last = (offset & !511) + (sectors + 1) * 512 - 1;
        used.compressed
            .extend(offset >> self.cluster_bits..=last >> self.cluster_bits);
        Ok(())
    }

    /// Counts what is in use and not counted.
    fn count(&self, used: &Used, refcounts: &[u64]) -> io::Result<u64> {
        let mut all = Vec::with_capacity(used.tables.len() + used.data.len());
        all.extend_from_slice(&used.tables);
        all.extend_from_slice(&used.data);
        all.extend_from_slice(&used.compressed);
        all.sort_unstable();
        // Refcounts in a block, which is one cluster.
        let per_block = 8 << self.cluster_bits >> self.refcount_order;
        let mut mended = 0;
        for group in all.chunk_by(|a, b| a / per_block == b / per_block) {
            let index = (group[0] / per_block) as usize;
            let offset = refcounts.get(index).copied().unwrap_or(0);
            if offset == 0 {
                return Err(bad(
                    "clusters of it are in use and not counted; qemu-img check -r all may repair it",
                ));
            }
            let mut block = vec![0; 1 << self.cluster_bits];
            read(self.file, offset, &mut block)?;
            let mut changed = 0;
            for clusters in group.chunk_by(|a, b| a == b) {
                let (at, count) = (clusters[0] % per_block, clusters.len() as u64);
                if self.refcount(&block, at) < count {
                    self.set_refcount(&mut block, at, count)?;
                    changed += 1;
                }
            }
            if changed != 0 {
                self.file.write_all_at(&block, offset)?;
                mended += changed;
            }
        }
        if mended != 0 {
            self.file.sync_data()?;
        }
        Ok(mended)
    }

    /// Refcount `at` of a block.
    fn refcount(&self, block: &[u8], at: u64) -> u64 {
        let bits = 1 << self.refcount_order;
        if bits >= 8 {
            let (at, len) = (at as usize * bits / 8, bits / 8);
            return number(&block[at..at + len]);
        }
        // Those smaller than a byte begin at its lowest bit.
        let at = at as usize * bits;
        u64::from(block[at / 8]) >> (at % 8) & ((1 << bits) - 1)
    }

    fn set_refcount(&self, block: &mut [u8], at: u64, count: u64) -> io::Result<()> {
        let bits = 1 << self.refcount_order;
        if bits < 64 && count >> bits != 0 {
            return Err(bad(
                "a cluster of it is in use more often than can be counted",
            ));
        }
        if bits >= 8 {
            let (at, len) = (at as usize * bits / 8, bits / 8);
            block[at..at + len].copy_from_slice(&count.to_be_bytes()[8 - len..]);
        } else {
            let at = at as usize * bits;
            let mask = ((1_u8 << bits) - 1) << (at % 8);
            block[at / 8] = block[at / 8] & !mask | (count as u8) << (at % 8);
        }
        Ok(())
    }
}

impl Used {
    /// Each cluster has one use; only compressed clusters share.
    fn check(&self) -> io::Result<()> {
        let twice = |list: &[u64]| list.windows(2).any(|pair| pair[0] == pair[1]);
        if twice(&self.tables) {
            return Err(bad("its tables overlap"));
        }
        if twice(&self.data) {
            return Err(bad("a cluster of it is used twice"));
        }
        if meet(&self.tables, &self.data) || meet(&self.tables, &self.compressed) {
            return Err(bad("its data and tables overlap"));
        }
        if meet(&self.data, &self.compressed) {
            return Err(bad("its data and compressed clusters overlap"));
        }
        Ok(())
    }
}

/// Whether two ascending lists have a number in common.
fn meet(a: &[u64], b: &[u64]) -> bool {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
        match x.cmp(y) {
            std::cmp::Ordering::Less => a.next(),
            std::cmp::Ordering::Greater => b.next(),
            std::cmp::Ordering::Equal => return true,
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLUSTER: u64 = 4096;

    /// An image of 8 MiB: header, refcounts, one block of them, level 1, one level-2 table, and two
    /// clusters of data, the second of which is of guest cluster 3.
    fn image(refcount_order: u32) -> File {
        let file = tempfile::tempfile().unwrap();
        let put32 = |at: u64, value: u32| file.write_all_at(&value.to_be_bytes(), at).unwrap();
        let put64 = |at: u64, value: u64| file.write_all_at(&value.to_be_bytes(), at).unwrap();
        file.write_all_at(b"QFI\xfb", 0).unwrap();
        for (at, value) in [(4, 3), (20, 12), (36, 4), (56, 1), (100, 104)] {
            put32(at, value);
        }
        put32(96, refcount_order);
        put64(24, 8 << 20);
        put64(40, 3 * CLUSTER);
        put64(48, CLUSTER);
        put64(CLUSTER, 2 * CLUSTER);
        put64(3 * CLUSTER, (1 << 63) | (4 * CLUSTER));
        put64(4 * CLUSTER, (1 << 63) | (5 * CLUSTER));
        put64(4 * CLUSTER + 24, (1 << 63) | (6 * CLUSTER));
        file.set_len(7 * CLUSTER).unwrap();
        file
    }

    fn put(file: &File, at: u64, value: u64) {
        file.write_all_at(&value.to_be_bytes(), at).unwrap();
    }

    #[test]
    fn what_is_not_counted_is_counted_once() {
        for order in 0..=6 {
            let file = image(order);
            assert_eq!(check(&file, false).unwrap(), 0);
            assert_eq!(check(&file, true).unwrap(), 7, "{order}");
            assert_eq!(check(&file, true).unwrap(), 0, "{order}");
            let mut bytes = [0; 14];
            file.read_exact_at(&mut bytes, 2 * CLUSTER).unwrap();
            match order {
                0 => assert_eq!(bytes[..2], [0x7f, 0]),
                4 => assert_eq!(bytes, [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1]),
                _ => {}
            }
        }
    }

    #[test]
    fn tables_that_point_into_each_other_are_refused() {
        let cluster = |n: u64| (1 << 63) | (n * CLUSTER);
        for (at, value) in [
            (3 * CLUSTER + 8, cluster(3)),
            (3 * CLUSTER + 8, cluster(4)),
            (3 * CLUSTER + 8, cluster(1)),
            (3 * CLUSTER + 8, cluster(5)),
            (3 * CLUSTER + 8, cluster(7) + 512),
            (4 * CLUSTER + 8, cluster(5)),
            (4 * CLUSTER + 8, cluster(1)),
            (4 * CLUSTER + 8, cluster(4)),
            (4 * CLUSTER + 8, 512),
            (4 * CLUSTER + 8, COMPRESSED | 0x64),
            (4 * CLUSTER + 8, COMPRESSED | (6 * CLUSTER)),
            (4 * CLUSTER + 8, COMPRESSED | ((1 << 58) - 1)),
            (CLUSTER + 8, CLUSTER),
            (CLUSTER + 8, 1),
        ] {
            let file = image(4);
            put(&file, at, value);
            assert!(check(&file, false).is_err(), "{at:#x} {value:#x}");
        }
    }

    #[test]
    fn compressed_clusters_may_share_what_they_lie_in() {
        let file = image(4);
        put(&file, 4 * CLUSTER + 8, COMPRESSED | (7 * CLUSTER));
        put(&file, 4 * CLUSTER + 16, COMPRESSED | (7 * CLUSTER + 0x2bc));
        assert_eq!(check(&file, true).unwrap(), 8);
        let mut count = [0; 2];
        file.read_exact_at(&mut count, 2 * CLUSTER + 14).unwrap();
        assert_eq!(count, [0, 2]);
    }

    proptest! {
        #[test]
        fn any_tables_are_judged(
            changes in prop::collection::vec((0..7 * CLUSTER / 8, any::<u64>(), 0..4_u8), 1..8)
        ) {
            let file = image(4);
            for (at, value, kind) in changes {
                let value = match kind {
                    0 => value,
                    1 => value % 16 * CLUSTER,
                    2 => COMPRESSED | (value % (16 * CLUSTER)),
                    _ => value % 1024,
                };
                put(&file, at * 8, value);
            }
            let _ = check(&file, true);
        }
    }
}
