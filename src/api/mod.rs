//! The public handles: lockers, guards, options, watches.

pub(crate) mod acquire;
pub(crate) mod ext;
#[cfg(feature = "testing")]
pub(crate) mod flaky;
pub(crate) mod guard;
pub(crate) mod guard_inner;
pub(crate) mod local_locker;
pub(crate) mod lock_token;
pub(crate) mod locker;
pub(crate) mod nodes;
pub(crate) mod options;
#[cfg(feature = "serde")]
mod plain_options;
pub(crate) mod pointers;
pub(crate) mod redis_locker;
pub(crate) mod rw_locker;
pub(crate) mod semaphore;
pub(crate) mod watch;
