//! Amounts of memory as people write them.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// The units that a size can carry, in bytes, largest first.
const UNITS: [(char, u64); 4] = [
    ('T', 1 << 40),
    ('G', 1 << 30),
    ('M', 1 << 20),
    ('K', 1 << 10),
];

/// A number of bytes, written as a whole number with an optional unit: `512M`, `1G`, `4096`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Size(u64);

/// A text that is not a [`Size`].
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0:?} is not a size: give a whole number with K, M, G or T, for example 512M")]
pub struct BadSize(String);

impl Size {
    /// A size of `count` MiB; at most 2^64 bytes.
    pub const fn mib(count: u32) -> Self {
        Self((count as u64) << 20)
    }

    /// The size in bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = BadSize;

    fn from_str(text: &str) -> Result<Self, BadSize> {
        let bad = || BadSize(text.to_owned());
        let last = text.chars().next_back().ok_or_else(bad)?;
        let unit = UNITS
            .iter()
            .find(|(letter, _)| letter.eq_ignore_ascii_case(&last));
        let (digits, scale) = match unit {
            Some((_, scale)) => (&text[..text.len() - 1], *scale),
            None => (text, 1),
        };
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let count: u64 = digits.parse().map_err(|_| bad())?;
        count.checked_mul(scale).map(Self).ok_or_else(bad)
    }
}

impl TryFrom<String> for Size {
    type Error = BadSize;

    fn try_from(text: String) -> Result<Self, BadSize> {
        text.parse()
    }
}

impl From<Size> for String {
    fn from(size: Size) -> Self {
        size.to_string()
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (letter, scale) in UNITS {
            if self.0 != 0 && self.0.is_multiple_of(scale) {
                return write!(f, "{}{letter}", self.0 / scale);
            }
        }
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn units_multiply() {
        for (text, bytes) in [
            ("4096", 4096),
            ("1K", 1024),
            ("512m", 512 << 20),
            ("2G", 2 << 30),
        ] {
            assert_eq!(text.parse::<Size>().unwrap().bytes(), bytes, "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in [
            "",
            "G",
            "-1G",
            "1.5G",
            "1GB",
            "99999999999T",
            "１G",
            "1 G",
            "+1",
        ] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_size_survives_being_written(bytes: u64) {
            prop_assert_eq!(Size(bytes).to_string().parse::<Size>(), Ok(Size(bytes)));
        }
    }
}
