//! Rate limits.

use belljar_clock::Nanos;

/// The shortest time that a bucket can save up for, in nanoseconds.
const BURST: u64 = 20_000_000;

/// Bytes of Ethernet's and IP's headers.
const LOWER_HEADERS: usize = 34;
/// The least bytes that a frame counts for.
const LEAST: usize = 20;

/// A token bucket: over any long time at most the rate goes through, plus one burst.
///
/// A frame goes through whenever the bucket is not in debt, and its bytes are owed then; so the size
/// of frames does not matter.
#[derive(Debug)]
pub struct TokenBucket {
    bits_per_second: u64,
    /// What is saved up, in units of a bit a second for a nanosecond; negative while in debt.
    saved: i128,
    filled_at: Nanos,
}

impl TokenBucket {
    /// A full bucket of a rate in bits a second.
    pub fn new(bits_per_second: u64, now: Nanos) -> Self {
        let mut bucket = Self {
            bits_per_second: bits_per_second.max(1),
            saved: 0,
            filled_at: now,
        };
        bucket.saved = bucket.most();
        bucket
    }

    fn most(&self) -> i128 {
        i128::from(self.bits_per_second) * i128::from(BURST)
    }

    fn cost(bytes: usize) -> i128 {
        bytes as i128 * 8 * i128::from(Nanos::SECOND)
    }

    fn fill(&mut self, now: Nanos) {
        let earned = i128::from(self.bits_per_second) * i128::from(now.since(self.filled_at));
        self.saved = (self.saved + earned).min(self.most());
        self.filled_at = now;
    }

    /// Whether a frame may go through; if not, when one may.
    ///
    /// # Errors
    /// The time from which on the bucket is out of debt.
    pub fn admit(&mut self, now: Nanos) -> Result<(), Nanos> {
        self.fill(now);
        if self.saved >= 0 {
            return Ok(());
        }
        let wait = self
            .saved
            .unsigned_abs()
            .div_ceil(u128::from(self.bits_per_second));
        Err(now.after(u64::try_from(wait).unwrap_or(u64::MAX)))
    }

    /// A frame of so many bytes has gone through. What counts is the payload of its IP packet: the
    /// lower headers of a large frame are there once, though it stands for many packets.
    pub fn take(&mut self, bytes: usize) {
        self.saved -= Self::cost(bytes.saturating_sub(LOWER_HEADERS).max(LEAST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_goes_through_in_ten_seconds_is_the_rate_within_two_percent(
            rate in 1_000_000u64..200_000_000,
            sizes in proptest::collection::vec(500usize..66_000, 1..50),
        ) {
            let mut now = Nanos(0);
            let mut bucket = TokenBucket::new(rate, now);
            let mut bytes = 0u64;
            let mut sizes = sizes.iter().cycle();
            loop {
                match bucket.admit(now) {
                    Ok(()) => {
                        let size = *sizes.next().unwrap();
                        bucket.take(size);
                        bytes += (size - LOWER_HEADERS) as u64;
                        // A little time for each frame.
                        now = now.after(200);
                    }
                    Err(when) => {
                        prop_assert!(when > now);
                        now = when;
                    }
                }
                if now.0 >= 10 * Nanos::SECOND {
                    break;
                }
            }
            let limit = rate as f64 * 10.0;
            prop_assert!(bytes as f64 * 8.0 <= limit * 1.02 + 66_000.0 * 8.0);
            prop_assert!(bytes as f64 * 8.0 >= limit * 0.98 - 66_000.0 * 8.0);
        }
    }
}
