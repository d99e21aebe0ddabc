//! The locks of a history, by number. Small numbers are locks that all processes share.

/// The lock for which processes contest.
pub(crate) const CONTEST_LOCK: usize = 20;
/// The lock of the scenarios.
pub(crate) const SCENARIO_LOCK: usize = 22;
/// The lock under whose key each server stores a value of another type.
pub(crate) const FOREIGN_LOCK: usize = 30;
/// The lock that `force_release` deletes.
pub(crate) const FORCED_LOCK: usize = 31;
/// The lock whose requests servers answer with errors, while all others are served.
pub(crate) const TROUBLED_LOCK: usize = 32;
/// The lock that another client holds without an end.
pub(crate) const STRANGERS_LOCK: usize = 33;
/// The lock that another client overwrites.
pub(crate) const STOLEN_LOCK: usize = 34;
/// The semaphore of whose number of permits the processes have different ideas.
pub(crate) const DISPUTED_SEMAPHORE: usize = 35;
/// The locks that each process has for itself alone, with a `LocalLocker`.
pub(crate) const PROCESS_LOCKS: [usize; 2] = [36, 37];

/// Returns the lock that one thread alone acquires.
pub(crate) const fn own_lock(process: usize, thread: usize) -> usize {
    100 + 10 * process + thread
}
