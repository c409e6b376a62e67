//! The root of PCI: which function answers at a configuration address and at a memory address.

use super::{CONFIGURATION_SPACE, FUNCTIONS, Function, SLOTS};
use crate::bus::SharedDevice;
use crate::layout;
use crate::timers::lock;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};
use thiserror::Error;

/// Registers whose change may move what functions decode: command and base addresses.
const DECODING: Range<usize> = 0x04..0x28;

/// Why functions do not fit on the bus.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RootError {
    /// A place that there is not, that is taken, or that is found only by a first function which there
    /// is not.
    #[error(
        "there is no place for a PCI function at {0} (slots 0 to 31, functions 0 to 7, each once)"
    )]
    Place(Location),
    /// The devices' ranges are larger than the memory window.
    #[error("the PCI devices' memory does not fit into the window of {size:#x} bytes")]
    WindowFull {
        /// Length of the window.
        size: u64,
    },
}

/// A place on the bus: a device's slot, and which of its functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Location {
    /// The slot, from 0 to 31.
    pub slot: usize,
    /// The function's number, from 0 to 7.
    pub function: usize,
}

impl From<usize> for Location {
    /// The first function in a slot, mostly the only one.
    fn from(slot: usize) -> Self {
        Self { slot, function: 0 }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{}", self.slot, self.function)
    }
}

impl Location {
    /// The number that configuration addresses have, if there is one.
    fn number(self) -> Option<usize> {
        let exists = self.slot < SLOTS && self.function < FUNCTIONS;
        exists.then_some(self.slot * FUNCTIONS + self.function)
    }
}

#[derive(Clone, Debug)]
struct Mapped {
    start: u64,
    /// Last address.
    last: u64,
    bar: u8,
    function: Arc<dyn Function>,
}

/// Bus 0 with its functions. It is built once; what moves is where the functions answer.
#[derive(Debug)]
pub struct PciRoot {
    /// By the numbers that configuration addresses have: slots in turn, and their functions.
    places: Vec<Option<Arc<dyn Function>>>,
    /// Sorted by address; no two overlap.
    mapped: RwLock<Vec<Mapped>>,
}

impl PciRoot {
    /// A bus with `functions` in their places.
    ///
    /// # Errors
    /// [`RootError::Place`].
    pub fn new<P: Into<Location>>(
        functions: impl IntoIterator<Item = (P, Arc<dyn Function>)>,
    ) -> Result<Arc<Self>, RootError> {
        let mut places = vec![None; SLOTS * FUNCTIONS];
        for (location, function) in functions {
            let location = location.into();
            match location.number().and_then(|number| places.get_mut(number)) {
                Some(place @ None) => *place = Some(function),
                _ => return Err(RootError::Place(location)),
            }
        }
        for (slot, device) in places.chunks(FUNCTIONS).enumerate() {
            if let Some(function) = (1..FUNCTIONS).find(|number| device[*number].is_some()) {
                let Some(first) = &device[0] else {
                    return Err(RootError::Place(Location { slot, function }));
                };
                lock(first.configuration()).set_multifunction();
            }
        }
        let root = Self {
            places,
            mapped: RwLock::default(),
        };
        root.map();
        Ok(Arc::new(root))
    }

    /// The functions and their places.
    pub fn functions(&self) -> impl Iterator<Item = (Location, &Arc<dyn Function>)> {
        let places = self.places.iter().enumerate();
        places.filter_map(|(number, place)| {
            let (slot, function) = (number / FUNCTIONS, number % FUNCTIONS);
            Some((Location { slot, function }, place.as_ref()?))
        })
    }

    /// Resets every function.
    pub fn reset(&self) {
        for (_, function) in self.functions() {
            function.reset();
        }
        self.map();
    }

    /// Does what a PC's firmware does before it starts a kernel: gives every function its place in
    /// the memory window and tells it its interrupt.
    ///
    /// # Errors
    /// [`RootError::WindowFull`].
    pub fn firmware_handoff(&self) -> Result<(), RootError> {
        let (base, size) = layout::PCI_MEMORY.ranges[0];
        let mut wanted: Vec<_> = self
            .functions()
            .flat_map(|(location, function)| {
                let bars = function.bars().into_iter();
                bars.map(move |(bar, len)| (len, location, bar, function))
            })
            .collect();
        // The largest first: so all are aligned and nothing is lost between them.
        wanted.sort_by_key(|(len, location, bar, _)| (std::cmp::Reverse(*len), *location, *bar));
        let mut next = base;
        for (len, _, bar, function) in wanted {
            let at = next.next_multiple_of(len);
            next = at.saturating_add(len);
            if next > base + size {
                return Err(RootError::WindowFull { size });
            }
            function.assign(bar, at);
        }
        for (location, function) in self.functions() {
            function.set_interrupt_line(layout::pci_gsi(location.slot));
        }
        self.map();
        Ok(())
    }

    /// Finds out anew where functions answer. Of ranges that overlap the first counts; one that
    /// does not lie within the memory window counts nowhere.
    fn map(&self) {
        let (base, size) = layout::PCI_MEMORY.ranges[0];
        let window = base..=base + (size - 1);
        let mut mapped = self.mapped.write().unwrap_or_else(PoisonError::into_inner);
        mapped.clear();
        for (_, function) in self.functions() {
            for decoded in function.decoded() {
                let Some(last) = decoded.start.checked_add(decoded.len - 1) else {
                    continue;
                };
                let at = mapped.partition_point(|m| m.last < decoded.start);
                let free = mapped.get(at).is_none_or(|m| m.start > last);
                if free && window.contains(&decoded.start) && window.contains(&last) {
                    let entry = Mapped {
                        start: decoded.start,
                        last,
                        bar: decoded.bar,
                        function: Arc::clone(function),
                    };
                    mapped.insert(at, entry);
                }
            }
        }
    }

    /// The function at a configuration address, numbered as bus, device, function in bits 15:0.
    fn function(&self, address: usize) -> Option<&Arc<dyn Function>> {
        self.places.get(address)?.as_ref()
    }

    /// Reads configuration space; where no function is, all ones.
    pub fn read_configuration(&self, address: usize, register: usize, data: &mut [u8]) {
        data.fill(0xff);
        let len = data.len().min(CONFIGURATION_SPACE.saturating_sub(register));
        if let Some(function) = self.function(address) {
            function.read_configuration(register, &mut data[..len]);
        }
    }

    /// Writes configuration space; where no function is, nothing happens.
    pub fn write_configuration(&self, address: usize, register: usize, data: &[u8]) {
        let len = data.len().min(CONFIGURATION_SPACE.saturating_sub(register));
        if let Some(function) = self.function(address) {
            function.write_configuration(register, &data[..len]);
            if register < DECODING.end && register + len > DECODING.start {
                self.map();
            }
        }
    }

    /// Calls `act` with the function that answers at all of `len` bytes at `address`, its base
    /// address register and the offset.
    fn at(&self, address: u64, len: usize, act: impl FnOnce(&dyn Function, u8, u64)) -> bool {
        let mapped = self.mapped.read().unwrap_or_else(PoisonError::into_inner);
        let last = address.saturating_add((len as u64).saturating_sub(1));
        let entry = mapped.get(mapped.partition_point(|m| m.last < address));
        let Some(entry) = entry.filter(|m| m.start <= address && last <= m.last) else {
            return false;
        };
        act(&*entry.function, entry.bar, address - entry.start);
        true
    }
}

/// The memory window of PCI, at [`layout::PCI_MEMORY`].
#[derive(Clone, Debug)]
pub struct MemoryWindow(pub Arc<PciRoot>);

impl SharedDevice for MemoryWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let address = layout::PCI_MEMORY.base.wrapping_add(offset);
        let len = data.len();
        let found = self.0.at(address, len, |function, bar, offset| {
            function.read_memory(bar, offset, data);
        });
        if !found {
            data.fill(0xff);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let address = layout::PCI_MEMORY.base.wrapping_add(offset);
        self.0.at(address, data.len(), |function, bar, offset| {
            function.write_memory(bar, offset, data);
        });
    }
}

/// Configuration space in memory, at [`layout::PCI_ECAM`].
#[derive(Clone, Debug)]
pub struct Ecam(pub Arc<PciRoot>);

impl SharedDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let (address, register) = ((offset >> 12) as usize, (offset & 0xfff) as usize);
        self.0.read_configuration(address, register, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (address, register) = ((offset >> 12) as usize, (offset & 0xfff) as usize);
        self.0.write_configuration(address, register, data);
    }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::super::{BarKind, Class, Configuration, Identity};
    use super::*;
    use crate::timers::lock;
    use std::sync::Mutex;

    /// A function with one range, whose bytes are the low bytes of their offsets.
    #[derive(Debug)]
    pub struct Plain {
        space: Mutex<Configuration>,
        pub written: Mutex<Vec<(u64, Vec<u8>)>>,
    }

    impl Plain {
        pub fn new(size: u64) -> Arc<Self> {
            let identity = Identity {
                vendor: 0x1234,
                device: 0x5678,
                revision: 0,
                class: Class(0xff, 0, 0),
                subsystem: (0, 0),
            };
            let space = Configuration::new(&identity).with_bar(0, BarKind::Memory64, size);
            Arc::new(Self {
                space: Mutex::new(space.with_interrupt_pin(1)),
                written: Mutex::default(),
            })
        }
    }

    impl Function for Plain {
        fn read_configuration(&self, register: usize, data: &mut [u8]) {
            lock(&self.space).read(register, data);
        }

        fn write_configuration(&self, register: usize, data: &[u8]) {
            lock(&self.space).write(register, data);
        }

        fn configuration(&self) -> &Mutex<Configuration> {
            &self.space
        }

        fn read_memory(&self, _: u8, offset: u64, data: &mut [u8]) {
            for (at, byte) in (offset..).zip(data) {
                *byte = at as u8;
            }
        }

        fn write_memory(&self, _: u8, offset: u64, data: &[u8]) {
            lock(&self.written).push((offset, data.to_vec()));
        }

        fn reset(&self) {
            lock(&self.space).reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::HostBridge;
    use super::testing::Plain;
    use super::*;
    use proptest::prelude::*;

    fn root() -> (Arc<PciRoot>, Arc<Plain>, Arc<Plain>) {
        let (a, b) = (Plain::new(0x1000), Plain::new(0x8000));
        let functions: [(usize, Arc<dyn Function>); 3] = [
            (0, Arc::new(HostBridge::new())),
            (1, Arc::<Plain>::clone(&a)),
            (5, Arc::<Plain>::clone(&b)),
        ];
        let root = PciRoot::new(functions).unwrap();
        root.firmware_handoff().unwrap();
        (root, a, b)
    }

    fn word(root: &PciRoot, slot: usize, register: usize) -> u32 {
        let mut data = [0; 4];
        root.read_configuration(slot << 3, register, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn firmware_gives_every_function_its_own_place() {
        let (root, a, b) = root();
        let (a, b) = (a.decoded()[0], b.decoded()[0]);
        assert_eq!((b.start, a.start), (0xc000_0000, 0xc000_8000));
        let window = MemoryWindow(Arc::clone(&root));
        let mut data = [0; 2];
        window.read(a.start + 0x12 - 0xc000_0000, &mut data);
        assert_eq!(data, [0x12, 0x13]);
        assert_eq!(word(&root, 1, 0x3c) & 0xffff, 0x0111);
    }

    #[test]
    fn a_function_answers_where_its_register_says_and_only_there() {
        let (root, a, _) = root();
        root.write_configuration(1 << 3, 0x10, &0xd000_0000_u32.to_le_bytes());
        let window = MemoryWindow(Arc::clone(&root));
        window.write(0x1000_0004, &[1, 2]);
        window.write(0x8004, &[3]);
        assert_eq!(*a.written.lock().unwrap(), [(4, vec![1, 2])]);
        let mut data = [0];
        window.read(0x8004, &mut data);
        assert_eq!(data, [0xff]);
    }

    #[test]
    fn functions_that_overlap_or_leave_the_window_do_no_harm() {
        let (root, a, b) = root();
        root.write_configuration(1 << 3, 0x10, &0xc000_0000_u32.to_le_bytes());
        let window = MemoryWindow(Arc::clone(&root));
        window.write(0, &[7]);
        assert_eq!(a.written.lock().unwrap().len(), 1);
        assert!(b.written.lock().unwrap().is_empty());
        root.write_configuration(1 << 3, 0x10, &[0xff; 8]);
        window.write(0, &[8]);
        assert_eq!(b.written.lock().unwrap().len(), 1);
    }

    #[test]
    fn memory_shows_the_same_configuration_as_the_ports() {
        let (root, ..) = root();
        let ecam = Ecam(Arc::clone(&root));
        let mut data = [0; 8];
        ecam.read(5 << 15, &mut data);
        assert_eq!(data[..4], [0x34, 0x12, 0x78, 0x56]);
        ecam.read(2 << 15, &mut data);
        assert_eq!(data, [0xff; 8]);
        ecam.read(5 << 15 | 1 << 12, &mut data);
        assert_eq!(data, [0xff; 8], "function 1");
        ecam.read(0xffc, &mut data);
        assert_eq!(data, [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    }

    #[test]
    fn a_slot_is_taken_once() {
        let function = || Arc::new(HostBridge::new()) as Arc<dyn Function>;
        let twice = PciRoot::new([(3, function()), (3, function())]);
        assert_eq!(twice.unwrap_err(), RootError::Place(3.into()));
        assert_eq!(
            PciRoot::new([(32, function())]).unwrap_err(),
            RootError::Place(32.into())
        );
    }

    #[test]
    fn functions_of_one_device_are_found_by_its_first() {
        let second = Location {
            slot: 5,
            function: 1,
        };
        let plain = || -> Arc<dyn Function> { Plain::new(0x1000) };
        let alone = PciRoot::new([(second, plain())]);
        assert_eq!(alone.unwrap_err(), RootError::Place(second));
        let functions = [(5.into(), plain()), (second, plain()), (6.into(), plain())];
        let root = PciRoot::new(functions).unwrap();
        root.reset();
        root.firmware_handoff().unwrap();
        let header = |slot| word(&root, slot, 0x0c) >> 16;
        assert_eq!((header(5), header(6)), (0x80, 0));
        let mut data = [0; 1];
        root.read_configuration(5 << 3 | 1, 0x3c, &mut data);
        assert_eq!(data, [21], "the line is the device's");
        root.read_configuration(5 << 3 | 2, 0, &mut data);
        assert_eq!(data, [0xff]);
    }

    #[test]
    fn ranges_beyond_the_window_are_an_error() {
        let function: Arc<dyn Function> = Plain::new(1 << 30);
        let root = PciRoot::new([(1, function)]).unwrap();
        assert!(matches!(
            root.firmware_handoff(),
            Err(RootError::WindowFull { .. })
        ));
    }

    proptest! {
        #[test]
        fn any_access_is_harmless(
            accesses in proptest::collection::vec((any::<u64>(), 1_usize..65, any::<u8>()), 0..40)
        ) {
            let (root, ..) = root();
            let (ecam, window) = (Ecam(Arc::clone(&root)), MemoryWindow(root));
            for (offset, len, value) in accesses {
                let mut data = vec![value; len];
                ecam.write(offset % 0x10_0000, &data);
                ecam.read(offset % 0x10_0000, &mut data);
                window.write(offset % 0x2000_0000, &data);
                window.read(offset % 0x2000_0000, &mut data);
            }
        }
    }
}
