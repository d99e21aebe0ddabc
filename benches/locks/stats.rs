//! Statistics over turns.

/// Returns minimum, median and maximum.
pub(crate) fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    let Some(last) = values.len().checked_sub(1) else {
        return [f64::NAN; 3];
    };
    let (middle, upper) = (values[last / 2], values[last.div_ceil(2)]);
    // The mean of infinities would not be a number.
    let median = if middle == upper {
        middle
    } else {
        (middle + upper) / 2.0
    };
    [values[0], median, values[last]]
}
