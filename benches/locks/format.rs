//! How rows are printed.

/// Returns the word for a goal that is reached or missed.
pub(crate) fn word(ok: bool) -> &'static str {
    if ok { "ok" } else { "short" }
}
