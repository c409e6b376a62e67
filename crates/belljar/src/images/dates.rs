//! Dates for people.

const DAY: u64 = 24 * 60 * 60;

/// The minute of a time in seconds since 1970, in UTC: `2026-11-26 01:46`.
pub fn minute(seconds: u64) -> String {
    let (year, month, day) = civil(seconds / DAY);
    let minutes = seconds % DAY / 60;
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}",
        minutes / 60,
        minutes % 60
    )
}

/// The date of a day since 1970. Years are reckoned from March, so that the day that some have more
/// is their last.
fn civil(days: u64) -> (u64, u64, u64) {
    // Days since 1 March of the year 0, and whole spans of 400 years.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let leap_days = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leap_days) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Five months from March on have 153 days.
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let (month, next_year) = if from_march < 10 {
        (from_march + 3, 0)
    } else {
        (from_march - 9, 1)
    };
    (era * 400 + year_of_era + next_year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_times_have_their_dates() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00"),
            (951_782_400, "2000-02-29 00:00"),
            (1_234_567_890, "2009-02-13 23:31"),
            (1_772_323_199, "2026-02-28 23:59"),
            (4_107_542_400, "2100-03-01 00:00"),
        ] {
            assert_eq!(minute(seconds), text);
        }
    }
}
