//! A thread that holds an entry of the lock table, or waits for it.
//!
//! - A holder never has a lease and a kept time at once.
//! - A handoff is never taken twice.
//!
//! Tests: beside `entry.rs`; `src/tests/local/`.

use std::sync::Arc;
use std::time::Instant;

use crate::local::handoff::{Handoff, HandoffOffer};
use crate::local::request::AccessMode;
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::Lease;
use crate::transport::inbox::Inbox;

/// A thread that holds an entry: pending, with its lease, or kept.
pub(super) struct LocalHolder {
    pub(super) ticket: u64,
    pub(super) mode: AccessMode,
    /// `None` while the holder is pending, and again while it is kept.
    pub(super) lease: Option<Arc<Lease>>,
    /// Wakes the holder while it is pending; `None` when it has its lease.
    pub(super) inbox: Option<Arc<Inbox>>,
    /// The thread sleeps while an earlier pending holder asks the nodes.
    pub(super) following: bool,
    /// The nodes refused this holder's last attempt. Permit holders that are admitted later follow
    /// it.
    pub(super) refused_by_nodes: bool,
    /// Allocated when the first of them is set, and kept.
    rare: Option<Box<RareParts>>,
}

/// The parts that few holders have. Each other holder takes less memory without them.
#[derive(Default)]
struct RareParts {
    /// The number of a permit that is held in this process alone.
    permit_number: Option<u16>,
    /// The handoff that came with the entry, until the thread takes it.
    handoff: Option<Handoff>,
    /// When the lease of the handoff ends, if the nodes grant it.
    handoff_expiry: Option<Instant>,
    /// The guard was released, and keeps other threads out until this time.
    kept_until: Option<Instant>,
    /// The owner label of the lease that was released before that time.
    kept_label: Option<Box<str>>,
}

/// A thread in the wait queue of an entry.
pub(crate) struct LocalWaiter {
    pub(crate) ticket: u64,
    pub(crate) mode: AccessMode,
    pub(crate) inbox: Arc<Inbox>,
    /// Present if the former holder may hand the lock off to this thread.
    pub(crate) offer: Option<HandoffOffer>,
    /// When the thread wakes without a signal, to check the holders' leases.
    pub(crate) rechecks_at: Option<Instant>,
}

impl LocalHolder {
    /// Creates a pending holder, without a lease.
    pub(super) fn pending(ticket: u64, mode: AccessMode, inbox: Arc<Inbox>) -> LocalHolder {
        LocalHolder {
            ticket,
            mode,
            lease: None,
            inbox: Some(inbox),
            following: false,
            refused_by_nodes: false,
            rare: None,
        }
    }

    /// Takes the handoff that came with the entry. A second call returns `None`.
    pub(super) fn take_handoff(&mut self) -> Option<Handoff> {
        self.rare.as_mut()?.handoff.take()
    }

    /// Gives the holder the handoff that comes with the entry. Its lease ends at `expiry` if the
    /// nodes grant it.
    pub(super) fn put_handoff(&mut self, handoff: Handoff, expiry: Option<Instant>) {
        let rare = self.rare.get_or_insert_default();
        (rare.handoff, rare.handoff_expiry) = (Some(handoff), expiry);
    }

    /// Makes the holder one without a guard, until `end`.
    pub(super) fn keep(&mut self, end: Instant) {
        let released = self.lease.take();
        let label = released.and_then(|lease| lease.token().owner_label().map(Box::from));
        let rare = self.rare.get_or_insert_default();
        (rare.kept_until, rare.kept_label) = (Some(end), label);
    }

    /// Returns the owner label of the lease, or of the one that was released before the kept time.
    pub(super) fn owner_label(&self) -> Option<&str> {
        let lease = self.lease.as_ref();
        let label = lease.and_then(|lease| lease.token().owner_label());
        let rare = self.rare.as_ref();
        label.or(rare.and_then(|rare| rare.kept_label.as_deref()))
    }

    /// Sets the number of a permit that is held in this process alone.
    pub(super) fn set_permit_number(&mut self, number: u16) {
        self.rare.get_or_insert_default().permit_number = Some(number);
    }

    /// Returns until when the holder is kept; `None` if it is pending or has a lease.
    pub(super) fn kept_until(&self) -> Option<Instant> {
        self.rare.as_ref()?.kept_until
    }

    /// Makes a pending holder one with a lease. Its thread does not sleep for the entry any more.
    pub(super) fn attach(&mut self, lease: &Arc<Lease>) {
        self.lease = Some(Arc::clone(lease));
        self.inbox = None;
    }

    /// Returns the number of a permit: drawn here, or granted by the nodes.
    pub(super) fn permit_number(&self) -> Option<u16> {
        let granted = || match self.lease.as_ref()?.kind() {
            LeaseKind::Permit { index, .. } => Some(index),
            _ => None,
        };
        let drawn = self.rare.as_ref().and_then(|rare| rare.permit_number);
        drawn.or_else(granted)
    }

    /// Returns when the lease or the kept time ends; `None` if it is unknown, never comes or has
    /// passed.
    pub(super) fn expiry(&self, now: Instant) -> Option<Instant> {
        match &self.lease {
            Some(lease) => lease.expiry(now),
            None => self.kept_until().filter(|end| *end > now),
        }
    }

    /// Returns [`expiry`](LocalHolder::expiry), or else when the lease of a handoff would end.
    pub(super) fn expected_end(&self, now: Instant) -> Option<Instant> {
        let handoff_expiry = || self.rare.as_ref()?.handoff_expiry;
        let expiry = self.expiry(now);
        expiry.or_else(|| handoff_expiry().filter(|end| *end > now))
    }
}

impl From<LocalWaiter> for LocalHolder {
    fn from(waiter: LocalWaiter) -> LocalHolder {
        LocalHolder::pending(waiter.ticket, waiter.mode, waiter.inbox)
    }
}

impl LocalWaiter {
    /// Returns whether the former holder may hand its lock off to this waiter.
    pub(super) fn accepts_handoff(&self, now: Instant) -> bool {
        let in_time = |offer: &HandoffOffer| offer.deadline.is_none_or(|end| end > now);
        self.mode == AccessMode::Exclusive
            && self.offer.as_ref().is_some_and(in_time)
            && !self.inbox.is_cancelled()
    }
}
