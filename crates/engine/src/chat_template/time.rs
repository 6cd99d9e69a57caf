//! Python's `strftime`, for templates that name the day. In UTC.

use std::time::SystemTime;

use jiff::{Timestamp, fmt::strtime, tz::TimeZone};

/// The time in a format such as `%d %b %Y`. A directive that is not known stays as it is.
///
/// # Errors
/// Where the system's clock is beyond all calendars.
pub(super) fn strftime(now: SystemTime, format: &str) -> Result<String, jiff::Error> {
    let config = strtime::Config::new().lenient(true);
    let time = strtime::BrokenDownTime::from(&Timestamp::try_from(now)?.to_zoned(TimeZone::UTC));
    time.to_string_with_config(&config, format)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn known_days() {
        let format = "%Y-%m-%d %H:%M:%S %A %a %d %b %y %B %j %I%p %q 100%% %F %T";
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 Thursday Thu 01 Jan 70 January 001 12AM 1 100% 1970-01-01 00:00:00"),
            (951_782_400, "2000-02-29 00:00:00 Tuesday Tue 29 Feb 00 February 060 12AM 1 100% 2000-02-29 00:00:00"),
            (1_735_689_599, "2024-12-31 23:59:59 Tuesday Tue 31 Dec 24 December 366 11PM 4 100% 2024-12-31 23:59:59"),
        ] {
            assert_eq!(strftime(UNIX_EPOCH + Duration::from_secs(seconds), format).unwrap(), expected);
        }
        assert_eq!(strftime(UNIX_EPOCH, "%E!").unwrap(), "%E!");
    }
}
