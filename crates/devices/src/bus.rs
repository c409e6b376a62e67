//! The buses: which device answers at a port or a physical address.

use crate::layout::Place;
use std::sync::{Arc, Mutex, PoisonError};
use thiserror::Error;

/// A device's registers. Accesses are 1 to 64 bytes, lie whole within one of the device's ranges,
/// and may be anything: the guest makes them.
pub trait Device: Send {
    /// Reads the registers from `offset` on.
    fn read(&mut self, offset: u64, data: &mut [u8]);

    /// Writes the registers from `offset` on.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A [`Device`] that does its own locking. Every `Mutex` of a [`Device`] is one.
pub trait SharedDevice: Send + Sync {
    /// As [`Device::read`].
    fn read(&self, offset: u64, data: &mut [u8]);

    /// As [`Device::write`].
    fn write(&self, offset: u64, data: &[u8]);
}

impl<D: Device + ?Sized> SharedDevice for Mutex<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(offset, data);
    }
}

/// Why a device could not be put on a [`Bus`].
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BusError {
    /// Another device answers there.
    #[error(
        "the {len} bytes at {start:#x} overlap another device's {other_len} bytes at {other:#x}"
    )]
    Overlap {
        /// First address wanted.
        start: u64,
        /// Number of bytes wanted.
        len: u64,
        /// First address of the other device's range.
        other: u64,
        /// Its length.
        other_len: u64,
    },
    /// The range is empty, begins below the device's base, or passes the end of the address space.
    #[error("{len} bytes at {start:#x} are not a range of a device based at {base:#x}")]
    Range {
        /// First address wanted.
        start: u64,
        /// Number of bytes wanted.
        len: u64,
        /// The device's base.
        base: u64,
    },
}

#[derive(Clone)]
struct Entry {
    start: u64,
    /// Last address.
    last: u64,
    base: u64,
    device: Arc<dyn SharedDevice>,
}

/// An address space of devices: one for ports, one for physical memory. It is built once and then
/// only read, so accesses take no lock but the device's own.
#[derive(Clone, Default)]
pub struct Bus {
    /// Sorted by address; no two overlap.
    entries: Vec<Entry>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ranges = self.entries.iter().map(|e| (e.start, e.last));
        f.debug_list().entries(ranges).finish()
    }
}

impl Bus {
    /// A bus without devices.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at `place`.
    ///
    /// # Errors
    /// [`BusError`] if the place is taken or impossible; then the bus is unchanged.
    pub fn attach(&mut self, place: Place, device: Arc<dyn SharedDevice>) -> Result<(), BusError> {
        let mut entries = self.entries.clone();
        for &(start, len) in place.ranges {
            let last = len
                .checked_sub(1)
                .and_then(|n| start.checked_add(n))
                .filter(|_| start >= place.base)
                .ok_or(BusError::Range {
                    start,
                    len,
                    base: place.base,
                })?;
            let at = entries.partition_point(|e| e.last < start);
            if let Some(other) = entries.get(at).filter(|e| e.start <= last) {
                return Err(BusError::Overlap {
                    start,
                    len,
                    other: other.start,
                    other_len: (other.last - other.start).saturating_add(1),
                });
            }
            entries.insert(
                at,
                Entry {
                    start,
                    last,
                    base: place.base,
                    device: Arc::clone(&device),
                },
            );
        }
        self.entries = entries;
        Ok(())
    }

    fn find(&self, address: u64) -> Option<&Entry> {
        let at = self.entries.partition_point(|e| e.last < address);
        self.entries.get(at).filter(|e| e.start <= address)
    }

    /// The entry that holds all `len` bytes at `address`.
    fn find_whole(&self, address: u64, len: usize) -> Option<&Entry> {
        let last = address.checked_add((len as u64).checked_sub(1)?)?;
        self.find(address).filter(|e| last <= e.last)
    }

    /// Reads `data.len()` bytes at `address`. An access that does not lie whole within one range is
    /// split into bytes, as a PC splits accesses wider than a device; bytes where no device is read
    /// as all ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        if let Some(entry) = self.find_whole(address, data.len()) {
            entry.device.read(address - entry.base, data);
            return;
        }
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = 0xff;
            let address = address.wrapping_add(i as u64);
            if let Some(entry) = self.find(address) {
                let offset = address - entry.base;
                entry.device.read(offset, std::slice::from_mut(byte));
            }
        }
    }

    /// Writes `data` at `address`, split as in [`read`](Self::read); bytes where no device is are
    /// lost.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some(entry) = self.find_whole(address, data.len()) {
            entry.device.write(address - entry.base, data);
            return;
        }
        for (i, byte) in data.iter().enumerate() {
            let address = address.wrapping_add(i as u64);
            if let Some(entry) = self.find(address) {
                let offset = address - entry.base;
                entry.device.write(offset, std::slice::from_ref(byte));
            }
        }
    }
}

/// Reads a device whose registers are bytes: a wider access is one access per byte.
pub(crate) fn read_bytes(offset: u64, data: &mut [u8], mut read: impl FnMut(u64) -> u8) {
    for (i, byte) in data.iter_mut().enumerate() {
        *byte = read(offset.wrapping_add(i as u64));
    }
}

/// Writes a device whose registers are bytes: a wider access is one access per byte.
pub(crate) fn write_bytes(offset: u64, data: &[u8], mut write: impl FnMut(u64, u8)) {
    for (i, byte) in data.iter().enumerate() {
        write(offset.wrapping_add(i as u64), *byte);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads as the low bytes of the offset; remembers writes.
    #[derive(Default)]
    struct Echo {
        written: Vec<(u64, Vec<u8>)>,
    }

    impl Device for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            read_bytes(offset, data, |o| o as u8);
        }

        fn write(&mut self, offset: u64, data: &[u8]) {
            self.written.push((offset, data.to_vec()));
        }
    }

    const A: Place = Place {
        base: 0x10,
        ranges: &[(0x10, 2), (0x20, 4)],
    };
    const B: Place = Place {
        base: 0x12,
        ranges: &[(0x12, 2)],
    };

    fn two() -> (Bus, Arc<Mutex<Echo>>, Arc<Mutex<Echo>>) {
        let (a, b) = (Arc::default(), Arc::default());
        let mut bus = Bus::new();
        bus.attach(A, Arc::<Mutex<Echo>>::clone(&a)).unwrap();
        bus.attach(B, Arc::<Mutex<Echo>>::clone(&b)).unwrap();
        (bus, a, b)
    }

    #[test]
    fn an_access_within_a_range_reaches_the_device_whole() {
        let (bus, a, _) = two();
        bus.write(0x20, &[1, 2, 3, 4]);
        assert_eq!(a.lock().unwrap().written, [(0x10, vec![1, 2, 3, 4])]);
    }

    #[test]
    fn an_access_across_ranges_is_split_and_the_hole_reads_ones() {
        let (bus, a, b) = two();
        let mut data = [0; 4];
        bus.read(0x11, &mut data);
        assert_eq!(data, [1, 0, 1, 0xff]);
        bus.write(0x11, &[7, 8, 9, 10]);
        assert_eq!(a.lock().unwrap().written, [(1, vec![7])]);
        assert_eq!(b.lock().unwrap().written, [(0, vec![8]), (1, vec![9])]);
    }

    #[test]
    fn overlapping_devices_are_refused_and_change_nothing() {
        let (mut bus, a, _) = two();
        let place = Place {
            base: 0x0,
            ranges: &[(0x0, 4), (0x1f, 2)],
        };
        assert_eq!(
            bus.attach(place, a),
            Err(BusError::Overlap {
                start: 0x1f,
                len: 2,
                other: 0x20,
                other_len: 4
            })
        );
        let mut data = [0];
        bus.read(0, &mut data);
        assert_eq!(data, [0xff]);
    }

    #[test]
    fn impossible_ranges_are_refused() {
        let (mut bus, a, _) = two();
        for ranges in [&[(0x40, 0)], &[(u64::MAX, 2)], &[(1, 1)]] {
            let place = Place { base: 0x40, ranges };
            assert!(matches!(
                bus.attach(place, Arc::<Mutex<Echo>>::clone(&a)),
                Err(BusError::Range { .. })
            ));
        }
    }

    #[test]
    fn an_access_at_the_end_of_the_address_space_wraps_without_harm() {
        let (bus, ..) = two();
        let mut data = [0; 8];
        bus.read(u64::MAX - 2, &mut data);
        assert_eq!(data, [0xff; 8]);
    }
}
