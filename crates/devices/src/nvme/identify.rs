//! What the controller and its namespaces tell of themselves. NVM Express 1.4, 5.15.

use super::prp::MDTS;
use super::{MOST_NAMESPACES, VERSION};
use crate::disk::{Disk, SECTOR};

/// Bytes of each structure.
pub(super) const STRUCTURE: usize = 4096;
/// Asynchronous event requests that may wait, less one.
pub(super) const EVENTS: u8 = 3;
/// Composite temperature and the thresholds of warnings, in kelvins.
pub(super) const TEMPERATURE: u16 = 300;
const WARNING: u16 = 343;
const CRITICAL: u16 = 353;

fn text(to: &mut [u8], text: &str) {
    to.fill(b' ');
    for (to, from) in to.iter_mut().zip(text.bytes()) {
        *to = if from.is_ascii_graphic() { from } else { b'_' };
    }
}

/// The controller. `serial` is cut off after 20 bytes.
pub(super) fn controller(serial: &str, namespaces: u32) -> [u8; STRUCTURE] {
    let mut data = [0; STRUCTURE];
    let mut put = |at: usize, value: &[u8]| data[at..at + value.len()].copy_from_slice(value);
    put(0, &super::VENDOR.to_le_bytes());
    put(2, &super::VENDOR.to_le_bytes());
    put(77, &[MDTS]);
    put(80, &VERSION.to_le_bytes());
    // Four aborts at once, four events, one read-only firmware slot.
    put(258, &[3, EVENTS, 0x03]);
    put(266, &WARNING.to_le_bytes());
    put(268, &CRITICAL.to_le_bytes());
    // Entry sizes: 2^6 and 2^4 bytes, neither more nor less.
    put(512, &[0x66, 0x44]);
    put(516, &namespaces.to_le_bytes());
    // Optional commands: dataset management, write zeroes.
    put(520, &[0x0c, 0]);
    // There is a volatile write cache, and a flush can be for all namespaces.
    put(525, &[0x07]);
    let name = format!("nqn.2026-11.belljar:{serial}");
    put(768, &name.as_bytes()[..name.len().min(255)]);
    // Power state 0: 25 W at most.
    put(2048, &2500_u16.to_le_bytes());
    text(&mut data[4..24], serial);
    text(&mut data[24..64], "Belljar NVMe disk");
    text(&mut data[64..72], "1");
    data
}

/// A namespace of `disk`.
pub(super) fn namespace(disk: &dyn Disk) -> [u8; STRUCTURE] {
    let mut data = [0; STRUCTURE];
    let sectors = (disk.size() / SECTOR).to_le_bytes();
    for at in [0, 8, 16] {
        data[at..at + 8].copy_from_slice(&sectors);
    }
    // Blocks can be deallocated, and then read as zeros or as before.
    data[24] = 0x04;
    // Namespace attributes: write protected.
    data[99] = u8::from(disk.is_read_only());
    // The one format: no metadata, blocks of 2^9 bytes.
    data[130] = 9;
    data
}

/// The list of active namespaces above `after`.
pub(super) fn active(after: u32, namespaces: u32) -> [u8; STRUCTURE] {
    let mut data = [0; STRUCTURE];
    let ids = after.saturating_add(1)..=namespaces.min(MOST_NAMESPACES);
    for (slot, id) in data.chunks_exact_mut(4).zip(ids) {
        slot.copy_from_slice(&id.to_le_bytes());
    }
    data
}

/// The identifiers of namespace `id`: an EUI-64 that is the same each time.
pub(super) fn descriptors(serial: &str, id: u32) -> [u8; STRUCTURE] {
    let mut data = [0; STRUCTURE];
    data[..2].copy_from_slice(&[1, 8]);
    data[4..12].copy_from_slice(&eui64(serial, id).to_be_bytes());
    data
}

/// FNV-1a over serial number and namespace, marked as given out locally.
fn eui64(serial: &str, id: u32) -> u64 {
    let bytes = serial.bytes().chain(id.to_le_bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash & !(0x03 << 56) | 0x02 << 56
}

/// The log page of health. NVMe 1.4, 5.14.1.2.
pub(super) fn health() -> [u8; 512] {
    let mut data = [0; 512];
    data[1..3].copy_from_slice(&TEMPERATURE.to_le_bytes());
    // Spare capacity in percent, and where it would be too little.
    data[3..5].copy_from_slice(&[100, 10]);
    data
}

/// The log page of firmware slots: slot 1, and what is in it.
pub(super) fn firmware() -> [u8; 512] {
    let mut data = [0; 512];
    data[0] = 1;
    text(&mut data[8..16], "1");
    data
}
