//! The RAM of both sides.

use belljar_memory::{GuestMemory, GuestPhysAddr, MemoryError};
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// Bytes compared at once.
const CHUNK: usize = 64 << 10;
/// Words that differ of which the addresses are kept.
const MOST: usize = 256;
/// Bytes of a word.
pub(crate) const WORD: usize = 8;

/// The addresses of the words that differ, in ascending order, but no more than [`MOST`].
pub(crate) fn differing(
    left: &GuestMemory,
    right: &GuestMemory,
) -> Result<Vec<GuestPhysAddr>, MemoryError> {
    let mut found = Vec::new();
    let (mut l, mut r) = (vec![0; CHUNK], vec![0; CHUNK]);
    for region in left.regions() {
        let mut at = 0;
        while at < region.len && found.len() < MOST {
            // What neither side has written is not looked at: reading would make it take memory.
            let next =
                next_data(left, region.offset + at).min(next_data(right, region.offset + at));
            at = at.max(next.saturating_sub(region.offset) / CHUNK as u64 * CHUNK as u64);
            if at >= region.len {
                break;
            }
            let len = CHUNK.min((region.len - at) as usize);
            let start = region.start.wrapping_add(at);
            left.read(start, &mut l[..len])?;
            right.read(start, &mut r[..len])?;
            if l[..len] != r[..len] {
                let words = l[..len].chunks(WORD).zip(r[..len].chunks(WORD));
                let differing = words.enumerate().filter(|(_, (l, r))| l != r);
                found.extend(differing.map(|(n, _)| start.wrapping_add((n * WORD) as u64)));
            }
            at += len as u64;
        }
    }
    found.truncate(MOST);
    Ok(found)
}

/// Where in the memfd the next bytes that were ever written begin.
fn next_data(memory: &GuestMemory, from: u64) -> u64 {
    match seek(memory.fd(), SeekFrom::Data(from)) {
        Ok(at) => at,
        Err(Errno::NXIO) => u64::MAX,
        // The host cannot tell: everything may be data.
        Err(_) => from,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_differing_word_is_found_and_no_other() {
        let [left, right] = [(); 2].map(|()| GuestMemory::new(4 << 20).unwrap());
        assert_eq!(differing(&left, &right).unwrap(), []);
        let places = [0, 0x9_fff8, 0xc_0008, 0x30_0000, 0x3f_fff8];
        for place in places {
            right.write(GuestPhysAddr(place + 3), &[1]).unwrap();
        }
        left.write(GuestPhysAddr(0x20_0000), &[5; 100]).unwrap();
        right.write(GuestPhysAddr(0x20_0000), &[5; 100]).unwrap();
        assert_eq!(differing(&left, &right).unwrap(), places.map(GuestPhysAddr));
    }
}
