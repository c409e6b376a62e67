//! Dates: seconds since 1970 to the calendar and back (proleptic Gregorian).

/// Seconds of a day.
const DAY: i64 = 86_400;

/// A date and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DateTime {
    pub year: i64,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 1 (Sunday) to 7.
    pub weekday: u8,
    pub hour: u8,
    pub minute: u8,
    pub second: u8,
}

impl DateTime {
    /// The date and time `seconds` after the beginning of 1970.
    pub fn from_seconds(seconds: i64) -> Self {
        let (days, rest) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        // Years that begin in March put the leap day last; 400 of them are an era of 146,097 days.
        let from_march_0 = days + 719_468;
        let (era, day_of_era) = (
            from_march_0.div_euclid(146_097),
            from_march_0.rem_euclid(146_097),
        );
        let leap_days = day_of_era / 1_460 - day_of_era / 36_524 + day_of_era / 146_096;
        let year_of_era = (day_of_era - leap_days) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = (month_from_march + 2) % 12 + 1;
        Self {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month: month as u8,
            day: (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u8,
            // 1970 began with a Thursday.
            weekday: ((days + 4).rem_euclid(7) + 1) as u8,
            hour: (rest / 3_600) as u8,
            minute: (rest / 60 % 60) as u8,
            second: (rest % 60) as u8,
        }
    }

    /// Seconds since the beginning of 1970. Fields out of range count on into the next larger ones;
    /// the weekday is not looked at.
    pub fn to_seconds(self) -> i64 {
        let month = i64::from(self.month.clamp(1, 12));
        let year = self.year - i64::from(month <= 2);
        let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
        let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + i64::from(self.day) - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * 146_097 + day_of_era - 719_468;
        let time = i64::from(self.hour) * 3_600 + i64::from(self.minute) * 60;
        days * DAY + time + i64::from(self.second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn leap_days_and_centuries_are_right() {
        let cases = [
            (0, (1970, 1, 1, 5)),
            (951_782_400, (2000, 2, 29, 3)),
            (4_107_456_000, (2100, 2, 28, 1)),
            (4_107_542_400, (2100, 3, 1, 2)),
            (-86_400, (1969, 12, 31, 4)),
        ];
        for (seconds, expected) in cases {
            let date = DateTime::from_seconds(seconds);
            assert_eq!((date.year, date.month, date.day, date.weekday), expected);
        }
    }

    proptest! {
        #[test]
        fn seconds_survive_the_calendar(seconds in -100_000_000_000i64..1_000_000_000_000) {
            prop_assert_eq!(DateTime::from_seconds(seconds).to_seconds(), seconds);
        }
    }
}
