//! A lock that others hold, and the texts of contention.
//!
//! Tests: beside `error.rs` (messages), and the example of the type.

use std::fmt;
use std::time::Duration;

use crate::error::duration_text::format_wait;

/// A lock that others hold, in [`Error::Contended`](crate::Error::Contended) and its like.
/// `Display` says who holds it.
///
/// ```
/// use redguard::{LocalLocker, LockOptions, Locker};
/// use std::time::Duration;
///
/// # fn main() -> Result<(), redguard::Error> {
/// let locker = LocalLocker::new();
/// let options = LockOptions::new(Duration::from_secs(30)).wait_for(Duration::ZERO);
/// let _guard = locker.acquire("backup", &options.clone().owner_label("web-7:1234"))?;
/// let error = locker.acquire("backup", &options).unwrap_err();
/// let lock = error.contended_lock().unwrap();
/// assert_eq!((lock.key.as_str(), lock.owner_label.as_deref()), ("backup", Some("web-7:1234")));
/// assert_eq!(lock.to_string(), r#""backup" is held by web-7:1234"#);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ContendedLock {
    /// The lock's name as it was given; of several the name of a held one.
    pub key: String,
    /// The owner label of the holder, if a node reported it at the last attempt, or a thread of
    /// this process is the holder. `None` for readers and permits.
    pub owner_label: Option<String>,
    /// The number of permits of a semaphore, all of which are held.
    pub permits: Option<u32>,
}

impl fmt::Display for ContendedLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        match (self.permits, &self.owner_label) {
            (Some(1), _) => write!(f, "the only permit of {key:?} is held"),
            (Some(permits), _) => write!(f, "all {permits} permits of {key:?} are held"),
            (None, Some(label)) => write!(f, "{key:?} is held by {label}"),
            (None, None) => write!(f, "{key:?} is held by another"),
        }
    }
}

/// A writer in a message: by its owner label, or else as the text says.
pub(super) struct Writer<'a>(pub(super) &'a ContendedLock, pub(super) &'static str);

impl fmt::Display for Writer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.owner_label {
            Some(label) => write!(f, "the writer {label}"),
            None => f.write_str(self.1),
        }
    }
}

/// The end of a contention message: when the lock is free, and what the caller has done.
pub(super) struct WaitText<'a> {
    pub(super) remaining: &'a Option<Duration>,
    pub(super) waited: &'a Duration,
    pub(super) attempts: &'a u32,
}

impl fmt::Display for WaitText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(remaining) = self.remaining.filter(|remaining| !remaining.is_zero()) {
            // Rounded up, because the lock is free at the latest then.
            let up = match remaining.as_secs() {
                0 => Duration::from_micros(999),
                1..10 => Duration::from_millis(99),
                _ => Duration::from_millis(999),
            };
            let remaining = format_wait(remaining.saturating_add(up));
            write!(f, ", free in {remaining} at the latest unless renewed")?;
        }
        let waited = format_wait(*self.waited);
        let plural = if *self.attempts == 1 { "" } else { "s" };
        write!(f, " (waited {waited}, {} attempt{plural})", self.attempts)
    }
}
