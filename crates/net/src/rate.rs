//! Rate limits.

use belljar_clock::{Nanos, TokenBucket};

/// How long a limit saves up, in nanoseconds.
const BURST: u64 = 20_000_000;

/// Bytes of Ethernet's and IP's headers.
const LOWER_HEADERS: usize = 34;
/// The least bytes that a frame counts for.
const LEAST: usize = 20;

/// A limit of bits a second.
///
/// A frame goes through whenever the limit is not in debt, and its bytes are owed then; so the size
/// of frames does not matter.
#[derive(Debug)]
pub struct RateLimit(TokenBucket);

impl RateLimit {
    /// A limit of a rate in bits a second, of which a burst is saved up.
    pub fn new(bits_per_second: u64, now: Nanos) -> Self {
        Self(TokenBucket::new(bits_per_second, BURST, now))
    }

    /// Whether a frame may go through; if not, when one may.
    ///
    /// # Errors
    /// The time from which on the limit is out of debt.
    pub fn admit(&mut self, now: Nanos) -> Result<(), Nanos> {
        match self.0.wait(now) {
            0 => Ok(()),
            wait => Err(now.after(wait)),
        }
    }

    /// A frame of so many bytes has gone through. What counts is the payload of its IP packet: the
    /// lower headers of a large frame are there once, though it stands for many packets.
    pub fn take(&mut self, bytes: usize) {
        let counted = bytes.saturating_sub(LOWER_HEADERS).max(LEAST);
        self.0.take(counted as u64 * 8);
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
            let mut bucket = RateLimit::new(rate, now);
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
