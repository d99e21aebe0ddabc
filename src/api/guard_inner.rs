//! The part that all guards share: a lease with its local guard, and the release at its end.
//!
//! A drop never panics, is bounded in time, and only warns in a forked child (S13). A lost lock is
//! never reported as released.
//!
//! Tests: `src/tests/engine/leftovers.rs` (drops), `min_hold.rs`, `loss.rs`;
//! `tests/it/locks/at_the_end.rs`, `processes.rs`.

use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;
use std::time::Duration;

use log::warn;

use crate::api::lock_token::LockToken;
use crate::api::options::LockOptions;
use crate::api::watch::LockWatch;
use crate::config::on_drop::OnDrop;
use crate::engine::core::Engine;
use crate::error::error::Error;
use crate::local::guard::LocalGuard;
use crate::protocol::key_set::KeySet;
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::{Lease, LeaseState};
use crate::protocol::mode::Mode;
use crate::sync::threads;
use crate::time::clock;

/// A held lock: the lease on the nodes, or in this process alone, and the local guard.
pub(crate) struct GuardInner {
    local: LocalGuard<Arc<Lease>>,
    /// `None` if the lock is held in this process alone.
    engine: Option<Arc<Engine>>,
    /// When the lock was acquired, in µs of [`clock::to_micros`].
    acquired_at: u64,
    ended: bool,
}

impl GuardInner {
    pub(crate) fn on_nodes(
        engine: Arc<Engine>,
        lease: Arc<Lease>,
        local: LocalGuard,
    ) -> GuardInner {
        GuardInner {
            local: local.with_keys_of(&lease),
            engine: Some(engine),
            acquired_at: clock::to_micros(clock::now()),
            ended: false,
        }
    }

    /// Creates the guard of a lock in this process alone, whose lease does not expire.
    ///
    /// # Errors
    /// `Closed` if the lock table was closed meanwhile.
    pub(crate) fn local(local: LocalGuard, lease: Lease) -> Result<GuardInner, Error> {
        let lease = Arc::new(lease);
        if !local.attach_lease(&lease) {
            return Err(Error::Closed);
        }
        Ok(GuardInner {
            local: local.with_keys_of(&lease),
            engine: None,
            acquired_at: clock::to_micros(clock::now()),
            ended: false,
        })
    }

    /// Applies the options that a local lock has, too: the minimum time.
    pub(crate) fn with_options(self, options: &LockOptions) -> GuardInner {
        let min_hold = options.lease_options().min_hold;
        if !min_hold.is_zero() {
            self.lease().keep_until(clock::now() + min_hold);
        }
        self
    }

    pub(crate) fn lease(&self) -> &Arc<Lease> {
        self.local.lease()
    }

    /// Returns for how long the guard has existed.
    fn held_for(&self) -> Duration {
        let now = clock::to_micros(clock::now());
        Duration::from_micros(now.saturating_sub(self.acquired_at))
    }

    pub(crate) fn keys(&self) -> &KeySet {
        self.local.keys()
    }

    /// Returns the state of the lease without an effect on it, for `Debug`.
    pub(crate) fn peek(&self) -> LeaseState {
        self.lease().peek(clock::now())
    }

    /// Returns the number of a permit; 0 for another kind of lock.
    pub(crate) fn permit_number(&self) -> u32 {
        match self.lease().kind() {
            LeaseKind::Permit { index, .. } => index.into(),
            _ => 0,
        }
    }

    pub(crate) fn watch(&self) -> LockWatch {
        let engine = self.engine.as_ref();
        let loss_handler = engine.map(|engine| engine.losses().clone());
        LockWatch::new(Arc::clone(self.lease()), loss_handler)
    }

    /// Returns the state of the lease, which becomes lost if it has expired. The lease of a local
    /// lock is lost only by a shutdown of the nodes that it replaces, or `FlakyLocker::lose`.
    fn lease_state(&self) -> LeaseState {
        match &self.engine {
            Some(engine) => engine.losses().expire_if_due(self.lease()),
            None => self.lease().peek(clock::now()),
        }
    }

    pub(crate) fn is_held(&self) -> bool {
        !self.remaining().is_zero()
    }

    pub(crate) fn remaining(&self) -> Duration {
        match (&self.engine, self.lease_state()) {
            (None, LeaseState::Held(_)) => Duration::MAX,
            (Some(_), LeaseState::Held(expiry)) if !self.lease().is_in_doubt() => {
                expiry.saturating_duration_since(clock::now())
            }
            _ => Duration::ZERO,
        }
    }

    pub(crate) fn is_endangered(&self) -> bool {
        self.remaining() <= self.lease().danger_margin()
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        match (&self.engine, self.lease_state()) {
            (Some(engine), LeaseState::Held(_)) if self.lease().is_in_doubt() => {
                engine.confirm(self.lease())
            }
            (_, LeaseState::Held(_)) => Ok(()),
            _ => Err(self.lease().lost_error()),
        }
    }

    pub(crate) fn extend(&self, ttl: Duration) -> Result<(), Error> {
        match &self.engine {
            Some(engine) => {
                let ttl = engine.settings().ttl_limits().validate(ttl)?;
                engine.extend(self.lease(), ttl)
            }
            None => {
                self.local.ttl_limits().validate(ttl)?;
                self.require_held_locally()
            }
        }
    }

    /// Returns an error if a lock in this process alone is not held, as `Engine::extend` does for a
    /// lock on the nodes.
    ///
    /// # Errors
    /// - `LockLost`: the lease was lost.
    /// - `Closed`: this process is a forked child.
    fn require_held_locally(&self) -> Result<(), Error> {
        if self.local.is_forked() {
            return Err(Error::Closed);
        }
        match self.lease_state() {
            LeaseState::Held(_) => Ok(()),
            _ => Err(self.lease().lost_error()),
        }
    }

    pub(crate) fn stop_renewal(&self) {
        if let Some(engine) = &self.engine {
            engine.stop_renewal(self.lease());
        }
    }

    pub(crate) fn mode(&self) -> Mode {
        match self.engine {
            Some(_) => Mode::Quorum,
            None => Mode::Local,
        }
    }

    pub(crate) fn fencing_token(&self) -> Option<u64> {
        self.lease().fencing_token()
    }

    /// Turns a write lock into a read lock. A failure means that the lock is lost: the error
    /// reports it, and `Drop` does not.
    pub(crate) fn downgrade(mut self) -> Result<GuardInner, Error> {
        if self.local.is_forked() {
            return Err(Error::Closed);
        }
        let downgraded = match &self.engine {
            Some(engine) => engine.downgrade(self.lease()),
            None => self.require_held_locally(),
        };
        if let Err(error) = downgraded {
            self.ended = true;
            return Err(error);
        }
        self.local.downgrade();
        Ok(self)
    }

    pub(crate) fn release(mut self) -> Result<(), Error> {
        self.release_inner(OnDrop::Wait)
    }

    /// Ends this guard and leaves the lock on the nodes, for another process to adopt.
    pub(crate) fn detach(mut self) -> Result<LockToken, Error> {
        let Some(engine) = self.engine.clone() else {
            return Err(Error::NotOnNodes); // the drop of `self` releases the lock
        };
        self.ended = true;
        if self.local.is_forked() {
            return Err(Error::Closed);
        }
        let held = self.held_for();
        let detached = engine.detach(self.lease(), &self.local);
        engine.record_end(self.lease(), held, detached.is_err());
        detached.map(|()| LockToken::from_lease(self.lease()))
    }

    /// Releases the lock as the configuration says, and records a failure.
    fn release_on_drop(&mut self) {
        let engine = self.engine.clone();
        let on_drop = engine
            .as_ref()
            .map_or(OnDrop::Background, |engine| engine.settings().on_drop);
        if let (Err(error), Some(engine)) = (self.release_inner(on_drop), engine)
            && error != Error::Closed
        {
            engine.record_failed_drop(self.lease(), &error);
        }
    }

    /// Releases the lock, for `release` and `Drop`.
    fn release_inner(&mut self, on_drop: OnDrop) -> Result<(), Error> {
        self.ended = true;
        if self.local.is_forked() {
            warn!(
                "{}: release ignored: the process is a forked child",
                self.local.keys()
            );
            return Err(Error::Closed);
        }
        match &self.engine {
            Some(engine) => {
                let held = self.held_for();
                let released = engine.release(self.lease(), &self.local, on_drop);
                let is_lost = released.as_ref().is_err_and(Error::is_lost);
                engine.record_end(self.lease(), held, is_lost);
                released
            }
            None => match self.lease().begin_release(clock::now()) {
                LeaseState::Held(_) => {
                    self.lease().finish_release();
                    self.local.release_at(self.lease().kept_until(clock::now()));
                    Ok(())
                }
                _ => Err(self.lease().lost_error()),
            },
        }
    }
}

/// A panic cannot leave it inconsistent: no lock inside it is held across a callback or code of the
/// caller.
impl UnwindSafe for GuardInner {}
impl RefUnwindSafe for GuardInner {}

impl Drop for GuardInner {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // A panic here, of a logger for example, would abort the process during another panic or
        // the drop of thread-locals.
        if threads::catch("drop of a guard", || self.release_on_drop()).is_none()
            && let Some(engine) = &self.engine
        {
            engine.count_failed_drop();
        }
    }
}
