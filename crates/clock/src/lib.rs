//! The machine's time.
//!
//! Floor 0 of the house, and one of its two named doors (the other is entropy): no device and no
//! engine reads the host's clock itself, each asks the machine's [`Clock`]. That is what later lets
//! a machine be paused, recorded and replayed.

mod bucket;
mod entropy;
mod host;
mod manual;
mod seeded;

pub use bucket::TokenBucket;
pub use entropy::{Entropy, HostEntropy};
pub use host::HostClock;
pub use manual::ManualClock;
pub use seeded::SeededEntropy;

/// Nanoseconds of machine time since the machine was made; it stands still while the machine is
/// paused.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(transparent)]
pub struct Nanos(pub u64);

impl Nanos {
    /// Nanoseconds of one second.
    pub const SECOND: u64 = 1_000_000_000;

    /// `self + nanos`, at most the end of time.
    #[must_use]
    pub const fn after(self, nanos: u64) -> Self {
        Self(self.0.saturating_add(nanos))
    }

    /// Nanoseconds from `earlier` to `self`, or 0 if `earlier` is later.
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Where a machine's time comes from. All readings are monotonic and agree on all threads.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Machine time.
    fn now(&self) -> Nanos;

    /// The time-stamp counter that every vCPU sees (before its own TSC_ADJUST): it runs at
    /// [`tsc_hz`](Self::tsc_hz) and is 0 at machine time 0.
    fn tsc(&self) -> u64;

    /// What the host's time-stamp counter is ahead of [`tsc`](Self::tsc), until the clock is paused.
    /// `None` if it is paused, or does not follow the host's: then each reading is asked for.
    fn behind_host(&self) -> Option<u64>;

    /// Ticks of [`tsc`](Self::tsc) in a second.
    fn tsc_hz(&self) -> u64;

    /// Wall-clock time (UTC) in nanoseconds since 1970-01-01, as the real-time clock shows it.
    fn wall(&self) -> u64;

    /// The machine time at which [`tsc`](Self::tsc) reaches `tsc`.
    fn when_tsc(&self, tsc: u64) -> Nanos {
        Nanos(
            (u128::from(tsc) * u128::from(Nanos::SECOND)).div_ceil(u128::from(self.tsc_hz()))
                as u64,
        )
    }

    /// Stops machine time.
    fn pause(&self);

    /// Lets machine time go on from where it was stopped.
    fn resume(&self);
}
