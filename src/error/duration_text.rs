//! Texts of durations for people.
//!
//! Tests: beside `error.rs` (waits), `details.rs` (limits).

use std::time::Duration;

/// Formats a wait for people: `200 ms`, `2.0 s`, `29 s`.
pub(crate) fn format_wait(duration: Duration) -> String {
    match duration.as_millis() {
        ms @ ..1_000 => format!("{ms} ms"),
        ..10_000 => {
            let tenths = duration.as_millis() / 100;
            format!("{}.{} s", tenths / 10, tenths % 10)
        }
        _ => format!("{} s", duration.as_secs()),
    }
}

/// Formats a duration for people: `200 ms`, `12.5 s`.
pub(crate) fn format_duration(duration: Duration) -> String {
    match duration.as_millis() {
        ms @ ..10_000 => format!("{ms} ms"),
        _ => format!("{:.1} s", duration.as_secs_f64()),
    }
}
