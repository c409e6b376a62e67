//! Limits of a disk's bandwidth and operations.

use belljar_clock::{Nanos, TokenBucket};

/// How long a bucket saves up, in nanoseconds: the burst that an idle disk may have.
const BURST: u64 = 100_000_000;

/// The limits of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes a second, read and written.
    pub bps: Option<u64>,
    /// The most operations a second; flushes do not count.
    pub iops: Option<u64>,
}

/// The buckets of a disk. Times are nanoseconds since any moment that stays the same, at which the
/// buckets are full.
#[derive(Debug)]
pub(crate) struct Buckets {
    bytes: Option<TokenBucket>,
    operations: Option<TokenBucket>,
}

impl Buckets {
    pub(crate) fn new(limits: Limits) -> Self {
        let bucket = |rate| TokenBucket::new(rate, BURST, Nanos(0));
        Self {
            bytes: limits.bps.map(bucket),
            operations: limits.iops.map(bucket),
        }
    }

    /// Nanoseconds until the next request may go; 0 if it may now.
    pub(crate) fn wait(&mut self, now: u64) -> u64 {
        let wait = |bucket: &mut Option<TokenBucket>| {
            bucket.as_mut().map_or(0, |bucket| bucket.wait(Nanos(now)))
        };
        wait(&mut self.bytes).max(wait(&mut self.operations))
    }

    /// A request of so many bytes goes.
    pub(crate) fn take(&mut self, bytes: u64) {
        if let Some(bucket) = &mut self.bytes {
            bucket.take(bytes);
        }
        if let Some(bucket) = &mut self.operations {
            bucket.take(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn ten_seconds_see_the_rate_within_two_percent(
            bps in 1_000_000u64..1_000_000_000,
            iops in 500u64..20_000,
            sizes in proptest::collection::vec(1u64..64, 1..20),
        ) {
            let mut buckets = Buckets::new(Limits { bps: Some(bps), iops: Some(iops) });
            let (mut now, mut bytes, mut operations) = (0u64, 0u64, 0u64);
            let mut sizes = sizes.iter().cycle();
            while now < 10 * Nanos::SECOND {
                let wait = buckets.wait(now);
                if wait == 0 {
                    let size = sizes.next().unwrap() * 512;
                    buckets.take(size);
                    bytes += size;
                    operations += 1;
                } else {
                    now += wait;
                }
            }
            // One burst of a tenth of a second is one percent of ten seconds.
            let most = |rate: u64, one: u64| rate as f64 * 10.0 * 1.02 + one as f64;
            let least = |rate: u64, one: u64| rate as f64 * 10.0 * 0.98 - one as f64;
            prop_assert!(bytes as f64 <= most(bps, 32768));
            prop_assert!(operations as f64 <= most(iops, 1));
            // One of the two is what held it back.
            prop_assert!(bytes as f64 >= least(bps, 32768) || operations as f64 >= least(iops, 1));
        }
    }

    #[test]
    fn no_limit_never_waits() {
        let mut buckets = Buckets::new(Limits::default());
        buckets.take(u64::MAX);
        assert_eq!(buckets.wait(0), 0);
    }

    #[test]
    fn a_huge_request_is_owed_for_ever_without_overflow() {
        let mut buckets = Buckets::new(Limits {
            bps: Some(1),
            iops: Some(u64::MAX),
        });
        for _ in 0..1000 {
            buckets.take(u64::MAX);
        }
        assert_eq!(buckets.wait(u64::MAX), u64::MAX);
    }
}
