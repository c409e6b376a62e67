//! Physical region pages: how commands say where their data is. NVM Express 1.4, 4.3.

use super::command::Status;
use crate::buffers::{Buffer, Buffers};
use belljar_memory::{DmaMemory, GuestPhysAddr};
use vm_memory::{Bytes, GuestAddress};

/// The one memory page size that the controller takes.
pub(super) const PAGE: u64 = 4096;
/// The most bytes that a command transfers: 2^8 pages (MDTS).
pub(super) const MOST: u64 = PAGE << MDTS;
/// The maximum data transfer size as a power of two of pages.
pub(super) const MDTS: u8 = 8;
/// Bytes of an entry.
const ENTRY: u64 = 8;

/// The buffers of `len` bytes that `first` and `second` describe.
///
/// # Errors
/// [`Status::INVALID_FIELD`] for more than [`MOST`] bytes, [`Status::INVALID_PRP`] for entries
/// that are misaligned, and [`Status::DATA_TRANSFER`] for memory that is not RAM.
pub(super) fn buffers(
    memory: &DmaMemory,
    (first, second): (u64, u64),
    len: u64,
) -> Result<Buffers, Status> {
    if len > MOST {
        return Err(Status::INVALID_FIELD);
    }
    let mut buffers = Buffers::default();
    // Lengths are whole sectors or structures, and entries are aligned to 4 bytes.
    if !first.is_multiple_of(4) {
        return Err(Status::INVALID_PRP);
    }
    let here = (PAGE - first % PAGE).min(len);
    add(&mut buffers, memory, first, here)?;
    let mut left = len - here;
    if left == 0 {
        return Ok(buffers);
    }
    if left <= PAGE {
        page(&mut buffers, memory, second, left)?;
        return Ok(buffers);
    }
    if !second.is_multiple_of(ENTRY) {
        return Err(Status::INVALID_PRP);
    }
    let mut at = second;
    while left > 0 {
        let mut entry = read_entry(memory, at)?;
        if at % PAGE == PAGE - ENTRY && left > PAGE {
            // The last entry of a page leads to the next page of the list. The list is no longer
            // than the data, because each page of it has an entry for a page of data.
            if !entry.is_multiple_of(PAGE) {
                return Err(Status::INVALID_PRP);
            }
            at = entry;
            entry = read_entry(memory, at)?;
        }
        let here = left.min(PAGE);
        page(&mut buffers, memory, entry, here)?;
        left -= here;
        at = at.wrapping_add(ENTRY);
    }
    Ok(buffers)
}

fn read_entry(memory: &DmaMemory, at: u64) -> Result<u64, Status> {
    memory
        .read_obj::<u64>(GuestAddress(at))
        .map(u64::from_le)
        .map_err(|_| Status::DATA_TRANSFER)
}

/// Adds `len` bytes from the beginning of a page.
fn page(buffers: &mut Buffers, memory: &DmaMemory, entry: u64, len: u64) -> Result<(), Status> {
    if !entry.is_multiple_of(PAGE) {
        return Err(Status::INVALID_PRP);
    }
    add(buffers, memory, entry, len)
}

fn add(buffers: &mut Buffers, memory: &DmaMemory, start: u64, len: u64) -> Result<(), Status> {
    let buffer = Buffer {
        start: GuestPhysAddr(start),
        len: len as u32,
    };
    buffer.check(memory).map_err(|_| Status::DATA_TRANSFER)?;
    buffers.push(buffer);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use belljar_memory::GuestMemory;
    use proptest::prelude::*;

    fn memory() -> (GuestMemory, std::sync::Arc<DmaMemory>) {
        let memory = GuestMemory::new(4 << 20).unwrap();
        let dma = memory.dma().unwrap();
        (memory, dma)
    }

    fn list(memory: &GuestMemory, at: u64, entries: &[u64]) {
        for (at, entry) in (at..).step_by(8).zip(entries) {
            memory
                .write(GuestPhysAddr(at), &entry.to_le_bytes())
                .unwrap();
        }
    }

    fn starts(buffers: &Buffers) -> Vec<(u64, u32)> {
        buffers.list().iter().map(|b| (b.start.0, b.len)).collect()
    }

    #[test]
    fn two_entries_are_two_pages() {
        let (_, dma) = memory();
        let found = buffers(&dma, (0x1e00, 0x4000), 1024).unwrap();
        assert_eq!(starts(&found), [(0x1e00, 512), (0x4000, 512)]);
    }

    #[test]
    fn a_list_goes_on_in_another_page() {
        let (memory, dma) = memory();
        list(&memory, 0x2ff0, &[0x5000, 0x3000]);
        list(&memory, 0x3000, &[0x6000, 0x7000]);
        let found = buffers(&dma, (0x1000, 0x2ff0), 4 * PAGE).unwrap();
        let pages = [0x1000, 0x5000, 0x6000, 0x7000].map(|at| (at, 4096));
        assert_eq!(starts(&found), pages);
    }

    #[test]
    fn the_last_entry_of_a_page_can_be_the_last_page() {
        let (memory, dma) = memory();
        list(&memory, 0x2ff0, &[0x5000, 0x6000]);
        let found = buffers(&dma, (0x1000, 0x2ff0), 3 * PAGE).unwrap();
        assert_eq!(starts(&found)[2], (0x6000, 4096));
    }

    #[test]
    fn what_is_misaligned_or_no_ram_is_refused() {
        let (memory, dma) = memory();
        list(&memory, 0x2000, &[0x5000, 0x6001]);
        let of = |prps, len| buffers(&dma, prps, len).unwrap_err();
        assert_eq!(of((0x1001, 0), 512), Status::INVALID_PRP);
        assert_eq!(of((0x1000, 0x2010), 2 * PAGE), Status::INVALID_PRP);
        assert_eq!(of((0x1000, 0x2004), 3 * PAGE), Status::INVALID_PRP);
        assert_eq!(of((0x1000, 0x2000), 3 * PAGE), Status::INVALID_PRP);
        assert_eq!(of((0xa_0000, 0), 512), Status::DATA_TRANSFER);
        assert_eq!(of((u64::MAX - 3, 0), 4), Status::DATA_TRANSFER);
        assert_eq!(of((0x1000, 0x2000), MOST + 512), Status::INVALID_FIELD);
    }

    proptest! {
        #[test]
        fn any_list_is_refused_or_has_the_length(
            first: u32, second in 0_u64..0x3000, len in 0_u64..MOST * 2,
            entries in proptest::collection::vec((0_u64..0x500).prop_map(|p| p << 12), 512)
        ) {
            let (memory, dma) = memory();
            list(&memory, 0, &entries);
            list(&memory, 0x2000, &entries);
            let first = u64::from(first) & 0x3f_fffc;
            if let Ok(found) = buffers(&dma, (first, second & !7), len) {
                prop_assert_eq!(found.len(), len);
                prop_assert!(found.list().len() <= 257);
            }
        }
    }
}
