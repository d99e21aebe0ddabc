//! Durations as people write them: `30s`, `1m 30s`, `1.5`. A bare number is seconds.

use std::time::Duration;

/// The longest duration: 100 years. Several of them may be added to any point in time.
const MAX: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Parses a duration of at most 100 years.
///
/// # Errors
/// Returns a reason for people.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let parsed = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds)
            .map_err(|_| format!("{text:?} is not a number of seconds"))?,
        Err(_) => humantime::parse_duration(text).map_err(|error| error.to_string())?,
    };
    match parsed <= MAX {
        true => Ok(parsed),
        false => Err(format!("{text:?} is more than 100 years")),
    }
}

/// Formats whole seconds only, which suffice for people.
pub(crate) fn whole_seconds(time: Duration) -> String {
    humantime::format_duration(Duration::from_secs(time.as_secs())).to_string()
}

/// Formats a short time with one digit behind the point, a longer one in whole seconds.
pub(crate) fn rounded(time: Duration) -> String {
    match time.as_secs() {
        0..=9 => format!("{:.1} s", time.as_secs_f64()),
        _ => whole_seconds(time),
    }
}

pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Formats a number of seconds that `parse` and the arithmetic of a shell understand.
pub(crate) fn in_seconds(time: Duration) -> String {
    if time.subsec_nanos() == 0 {
        time.as_secs().to_string()
    } else {
        time.as_secs_f64().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_number_is_seconds() {
        for (text, millis) in [
            ("30", 30_000),
            (" 1.5 ", 1_500),
            ("0", 0),
            ("30s", 30_000),
            ("250ms", 250),
            ("1m 30s", 90_000),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in [
            "",
            "-1",
            "x",
            "NaN",
            "inf",
            "1e300",
            "1e19",
            "101 years",
            "30 parsecs",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_formatted_for_people_and_for_shells() {
        assert_eq!(whole_seconds(Duration::from_millis(61_900)), "1m 1s");
        assert_eq!(rounded(Duration::from_millis(1_234)), "1.2 s");
        assert_eq!(rounded(Duration::from_millis(61_900)), "1m 1s");
        assert_eq!(in_seconds(Duration::from_secs(30)), "30");
        assert_eq!(in_seconds(Duration::from_millis(1_500)), "1.5");
        assert_eq!(millis(Duration::MAX), u64::MAX);
    }
}
