//! Token buckets: limits of a rate.

use crate::Nanos;

/// A token bucket: over any time at most the rate goes through, plus one burst and one taking.
///
/// Something may go through whenever the bucket is not in debt, and its cost is owed then; so costs
/// of any size go through.
#[derive(Debug)]
pub struct TokenBucket {
    /// Tokens a second.
    rate: u64,
    /// How long it saves up, in nanoseconds.
    burst: u64,
    /// What is saved up, in units of one token a second for a nanosecond; negative while in debt.
    saved: i128,
    filled_at: Nanos,
}

impl TokenBucket {
    /// A full bucket that gets `rate` tokens a second, at least one, and saves up those of `burst`
    /// nanoseconds.
    pub fn new(rate: u64, burst: u64, now: Nanos) -> Self {
        let rate = rate.max(1);
        Self {
            rate,
            burst,
            saved: Self::most(rate, burst),
            filled_at: now,
        }
    }

    fn most(rate: u64, burst: u64) -> i128 {
        i128::from(rate).saturating_mul(i128::from(burst))
    }

    /// Nanoseconds until the bucket is out of debt; 0 if it is now.
    pub fn wait(&mut self, now: Nanos) -> u64 {
        // Two numbers of 64 bits can multiply to more than an i128 holds.
        let earned = i128::from(self.rate).saturating_mul(i128::from(now.since(self.filled_at)));
        let most = Self::most(self.rate, self.burst);
        self.saved = self.saved.saturating_add(earned).min(most);
        self.filled_at = self.filled_at.max(now);
        if self.saved >= 0 {
            return 0;
        }
        let wait = self.saved.unsigned_abs().div_ceil(u128::from(self.rate));
        u64::try_from(wait).unwrap_or(u64::MAX)
    }

    /// Takes `cost` tokens, also those that are not there.
    pub fn take(&mut self, cost: u64) {
        let cost = i128::from(cost).saturating_mul(i128::from(Nanos::SECOND));
        self.saved = self.saved.saturating_sub(cost);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debt_is_paid_at_the_rate() {
        let mut bucket = TokenBucket::new(100, Nanos::SECOND / 10, Nanos(5));
        bucket.take(10);
        assert_eq!(bucket.wait(Nanos(5)), 0);
        bucket.take(50);
        assert_eq!(bucket.wait(Nanos(5)), Nanos::SECOND / 2);
        assert_eq!(bucket.wait(Nanos(5).after(Nanos::SECOND / 2)), 0);
    }

    #[test]
    fn huge_rates_and_costs_do_not_overflow() {
        let mut bucket = TokenBucket::new(u64::MAX, u64::MAX, Nanos(0));
        bucket.take(u64::MAX);
        assert_eq!(bucket.wait(Nanos(u64::MAX)), 0);
    }
}
