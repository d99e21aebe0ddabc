//! The median of times.

use std::time::Duration;

use crate::stats::spread;

/// Returns the median of at least one time.
pub(crate) fn median(times: &[Duration]) -> Duration {
    let [_, median, _] = spread(times.iter().map(Duration::as_secs_f64));
    Duration::from_secs_f64(median)
}
