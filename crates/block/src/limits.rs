//! Token buckets: how much a disk may do in a second.

use std::time::{Duration, Instant};

/// How long an idle disk may save up what it does not use.
const BURST: Duration = Duration::from_millis(100);

/// A bucket that fills at a steady rate. What is taken may exceed what is there: the debt has to be
/// paid before anything more is taken, so the rate holds over time whatever the sizes.
#[derive(Debug)]
pub struct Bucket {
    /// Tokens a second.
    rate: f64,
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket that gets `rate` tokens a second, at least one.
    pub fn new(rate: u64, now: Instant) -> Self {
        let rate = rate.max(1) as f64;
        Self {
            rate,
            tokens: rate * BURST.as_secs_f64(),
            filled: now,
        }
    }

    fn fill(&mut self, now: Instant) {
        let gained = now.saturating_duration_since(self.filled).as_secs_f64() * self.rate;
        self.tokens = (self.tokens + gained).min(self.rate * BURST.as_secs_f64());
        self.filled = self.filled.max(now);
    }

    /// How long until something may be taken.
    pub fn wait(&mut self, now: Instant) -> Duration {
        self.fill(now);
        Duration::from_secs_f64((-self.tokens / self.rate).max(0.0))
    }

    /// Takes `count` tokens.
    pub fn take(&mut self, count: u64) {
        self.tokens -= count as f64;
    }
}

/// The limits of a disk.
#[derive(Debug)]
pub struct Limits {
    bytes: Option<Bucket>,
    operations: Option<Bucket>,
}

impl Limits {
    /// Bytes and operations a second; `None` is no limit.
    pub fn new(bytes: Option<u64>, operations: Option<u64>, now: Instant) -> Self {
        Self {
            bytes: bytes.map(|rate| Bucket::new(rate, now)),
            operations: operations.map(|rate| Bucket::new(rate, now)),
        }
    }

    /// Whether there is none.
    pub const fn is_none(&self) -> bool {
        self.bytes.is_none() && self.operations.is_none()
    }

    /// Takes an operation of `bytes`, or tells how long it must wait.
    pub fn admit(&mut self, bytes: u64, now: Instant) -> Result<(), Duration> {
        let buckets = || self.bytes.iter_mut().chain(self.operations.iter_mut());
        let mut buckets = buckets();
        let wait = buckets.by_ref().map(|bucket| bucket.wait(now)).max();
        match wait {
            Some(wait) if !wait.is_zero() => Err(wait),
            _ => {
                if let Some(bucket) = &mut self.bytes {
                    bucket.take(bytes);
                }
                if let Some(bucket) = &mut self.operations {
                    bucket.take(1);
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that pass in 10 seconds, of operations of `size` that are always there.
    fn passed(limits: &mut Limits, size: u64, start: Instant) -> u64 {
        let (mut now, mut bytes) = (start, 0);
        while now < start + Duration::from_secs(10) {
            match limits.admit(size, now) {
                Ok(()) => bytes += size,
                Err(wait) => now += wait.max(Duration::from_nanos(1)),
            }
        }
        bytes
    }

    #[test]
    fn rates_hold_within_two_percent_over_ten_seconds() {
        let start = Instant::now();
        for (rate, size) in [(1 << 20, 4096), (100 << 20, 1 << 20), (50 << 20, 512)] {
            let mut limits = Limits::new(Some(rate), None, start);
            let ratio = passed(&mut limits, size, start) as f64 / (10 * rate) as f64;
            assert!((0.98..=1.02).contains(&ratio), "{rate} {size}: {ratio}");
        }
        let mut limits = Limits::new(None, Some(500), start);
        let operations = passed(&mut limits, 4096, start) / 4096;
        assert!((4900..=5100).contains(&operations), "{operations}");
    }

    #[test]
    fn an_idle_disk_saves_up_a_tenth_of_a_second() {
        let start = Instant::now();
        let mut limits = Limits::new(None, Some(100), start);
        let later = start + Duration::from_secs(60);
        let burst = (0..1000).take_while(|_| limits.admit(1, later).is_ok());
        assert_eq!(burst.count(), 11);
    }
}
