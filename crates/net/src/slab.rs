//! A table of bounded size whose keys are never mistaken for those of former entries.

/// A key of a [`Slab`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    index: u32,
    /// Which of the entries that have been at `index`; 24 bits.
    generation: u32,
}

impl Key {
    /// The key in the lower 56 bits of a number.
    pub fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The key that [`to_bits`](Self::to_bits) made `bits` of.
    pub fn from_bits(bits: u64) -> Self {
        Self {
            index: bits as u32,
            generation: (bits >> 32) as u32 & 0xff_ffff,
        }
    }
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// A table of at most a given number of entries.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    most: usize,
}

impl<T> Slab<T> {
    pub fn new(most: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            most,
        }
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn is_full(&self) -> bool {
        self.len() >= self.most
    }

    /// Puts the entry that `make` makes for its key; nothing if the table is full or `make` fails.
    pub fn insert_with(&mut self, make: impl FnOnce(Key) -> Option<T>) -> Option<Key> {
        if self.is_full() {
            return None;
        }
        let index = if let Some(index) = self.free.pop() {
            index
        } else {
            self.slots.push(Slot {
                generation: 0,
                value: None,
            });
            self.slots.len() as u32 - 1
        };
        let slot = &mut self.slots[index as usize];
        let key = Key {
            index,
            generation: slot.generation,
        };
        slot.value = make(key);
        if slot.value.is_none() {
            self.free.push(index);
            return None;
        }
        Some(key)
    }

    pub fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.slots
            .get_mut(key.index as usize)
            .filter(|slot| slot.generation == key.generation)
            .and_then(|slot| slot.value.as_mut())
    }

    pub fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self
            .slots
            .get_mut(key.index as usize)
            .filter(|slot| slot.generation == key.generation)?;
        let value = slot.value.take()?;
        slot.generation = (slot.generation + 1) & 0xff_ffff;
        self.free.push(key.index);
        Some(value)
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Key, &mut T)> {
        self.slots.iter_mut().enumerate().filter_map(|(at, slot)| {
            let key = Key {
                index: at as u32,
                generation: slot.generation,
            };
            slot.value.as_mut().map(|value| (key, value))
        })
    }

    pub fn keys(&mut self) -> Vec<Key> {
        self.iter_mut().map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_former_entries_find_nothing() {
        let mut slab = Slab::new(1);
        let first = slab.insert_with(|_| Some('a')).unwrap();
        assert!(slab.is_full());
        assert_eq!(slab.insert_with(|_| Some('b')), None);
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert_with(|_| Some('c')).unwrap();
        assert_eq!(slab.get_mut(first), None);
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get_mut(second), Some(&mut 'c'));
        assert_eq!(Key::from_bits(second.to_bits()), second);
    }

    #[test]
    fn an_entry_that_cannot_be_made_takes_no_place() {
        let mut slab: Slab<u8> = Slab::new(1);
        assert_eq!(slab.insert_with(|_| None), None);
        assert_eq!(slab.len(), 0);
        assert!(slab.insert_with(|_| Some(1)).is_some());
    }
}
