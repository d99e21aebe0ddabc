//! Checks held leases at once when a notice names their lock, so that a holder is not told only at
//! its next renewal (S11).
//!
//! A notice is a message in the notice channel; its text names a lock. `force_release`
//! publishes one, and a renewal that finds the token of another holder on a node. It is a hint and
//! never a verdict: the leases of that name are checked as a renewal checks them, and only the
//! nodes' replies or the clock make one lost. So a notice that is late, repeated or foreign does no
//! harm, and a missed one leaves the loss to the next renewal or check.
//!
//! Nothing here blocks. Tests: `src/tests/engine/notice.rs`.

use std::sync::Arc;

use log::debug;

use crate::background::renewal::service::RenewalService;
use crate::local::lock_table::LockTable;
use crate::protocol::key::{Channel, Key, notice_channel};
use crate::protocol::kind::LockKind;
use crate::sync::atomic::{AtomicUsize, Ordering};

/// Finds the leases that a notice is about, and has them checked.
pub(crate) struct HolderCheck {
    prefix: Box<str>,
    channel: Channel,
    lock_table: Arc<LockTable>,
    renewal: Arc<RenewalService>,
    /// The number of leases with callbacks, whose holders want notices.
    watched: Arc<AtomicUsize>,
}

impl HolderCheck {
    pub(crate) fn new(
        prefix: &str,
        lock_table: &Arc<LockTable>,
        renewal: &Arc<RenewalService>,
        watched: &Arc<AtomicUsize>,
    ) -> HolderCheck {
        HolderCheck {
            prefix: prefix.into(),
            channel: notice_channel(prefix),
            lock_table: Arc::clone(lock_table),
            renewal: Arc::clone(renewal),
            watched: Arc::clone(watched),
        }
    }

    /// Returns the channel of the notices.
    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Returns whether a lease has callbacks.
    pub(super) fn is_wanted(&self) -> bool {
        self.watched.load(Ordering::Acquire) > 0
    }

    /// Checks all leases of this process on locks with this key, which has the key prefix.
    pub(super) fn check(&self, lock: &str) {
        let Some(name) = lock.strip_prefix(&*self.prefix) else {
            return; // a foreign message
        };
        for kind in LockKind::ALL {
            let Ok(key) = Key::parse(&self.prefix, name, kind) else {
                continue; // no lock of this kind has the name
            };
            for lease in self.lock_table.leases(&key) {
                if let Err(error) = self.renewal.check(&lease) {
                    debug!("{}: not checked after a notice: {error}", lease.keys());
                }
            }
        }
    }
}
