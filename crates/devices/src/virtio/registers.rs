//! The common configuration structure's layout. Virtio 1.2, 4.1.4.3.

use std::ops::Range;

/// A field of the common configuration structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigurationVector,
    QueueCount,
    Status,
    Generation,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    QueueNotifyOffset,
    QueueDescriptors,
    QueueDriver,
    QueueDevice,
}

const FIELDS: [(Field, Range<u64>); 16] = [
    (Field::DeviceFeatureSelect, 0..4),
    (Field::DeviceFeature, 4..8),
    (Field::DriverFeatureSelect, 8..12),
    (Field::DriverFeature, 12..16),
    (Field::ConfigurationVector, 16..18),
    (Field::QueueCount, 18..20),
    (Field::Status, 20..21),
    (Field::Generation, 21..22),
    (Field::QueueSelect, 22..24),
    (Field::QueueSize, 24..26),
    (Field::QueueVector, 26..28),
    (Field::QueueEnable, 28..30),
    (Field::QueueNotifyOffset, 30..32),
    (Field::QueueDescriptors, 32..40),
    (Field::QueueDriver, 40..48),
    (Field::QueueDevice, 48..56),
];

/// The field that an access of `len` bytes at `offset` reaches, and the first byte within it.
/// Fields are accessed whole, those of 64 bits also by halves (4.1.3.1); other accesses are `None`.
pub(super) fn field(offset: u64, len: usize) -> Option<(Field, usize)> {
    let (field, range) = FIELDS.iter().find(|(_, range)| range.contains(&offset))?;
    let (size, first) = ((range.end - range.start) as usize, offset - range.start);
    let whole = first == 0 && len == size;
    let half = size == 8 && len == 4 && first.is_multiple_of(4);
    (whole || half).then_some((*field, first as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_reached_whole_or_by_halves_of_the_wide_ones() {
        assert_eq!(field(20, 1), Some((Field::Status, 0)));
        assert_eq!(field(44, 4), Some((Field::QueueDriver, 4)));
        assert_eq!(field(40, 8), Some((Field::QueueDriver, 0)));
        assert_eq!(field(20, 4), None);
        assert_eq!(field(42, 4), None);
        assert_eq!(field(56, 2), None);
        assert_eq!(field(u64::MAX, 8), None);
    }

    #[test]
    fn the_fields_follow_one_another() {
        for pair in FIELDS.windows(2) {
            assert_eq!(pair[0].1.end, pair[1].1.start);
        }
    }
}
