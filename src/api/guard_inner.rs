//! What all guards are, from here on to the one end of a lock that is held.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::warn;

use crate::api::lock_token::LockToken;
use crate::api::watch::LockWatch;
use crate::config::on_drop::OnDrop;
use crate::config::settings::TtlLimits;
use crate::engine::core::Engine;
use crate::error::Error;
use crate::local::guard::LocalGuard;
use crate::protocol::key_set::KeySet;
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::{Lease, LeaseState, NEVER_EXPIRES_AFTER};
use crate::protocol::mode::Mode;
use crate::protocol::token::Token;
use crate::sync::threads;
use crate::time::clock;

/// A lock that is held.
pub(crate) struct GuardInner {
    local: LocalGuard,
    lease: Arc<Lease>,
    /// Who knows the nodes. Without it the lock is held in this process alone.
    engine: Option<Arc<Engine>>,
    ttl_limits: TtlLimits,
    acquired_at: Instant,
    ended: bool,
}

impl GuardInner {
    pub(crate) fn on_nodes(
        engine: Arc<Engine>,
        lease: Arc<Lease>,
        local: LocalGuard,
    ) -> GuardInner {
        GuardInner {
            local,
            lease,
            ttl_limits: engine.settings().terms(),
            engine: Some(engine),
            acquired_at: clock::now(),
            ended: false,
        }
    }

    /// # Errors
    /// `Closed` where a shutdown has come before it.
    pub(crate) fn local(
        pass: LocalGuard,
        claim: LeaseKind,
        terms: TtlLimits,
        fence: Option<u64>,
    ) -> Result<GuardInner, Error> {
        let lease = Arc::new(Lease::new(pass.keys().clone(), Token::empty(), claim));
        fence
            .into_iter()
            .for_each(|fence| lease.set_fencing_token(fence));
        lease.activate(clock::now() + NEVER_EXPIRES_AFTER, clock::wall_offset());
        if !pass.attach_lease(&lease) {
            return Err(Error::Closed);
        }
        Ok(GuardInner {
            local: pass,
            lease,
            engine: None,
            ttl_limits: terms,
            acquired_at: clock::now(),
            ended: false,
        })
    }

    #[cfg(feature = "testing")]
    pub(crate) fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    pub(crate) fn keys(&self) -> &KeySet {
        self.local.keys()
    }

    /// Without touching anything, for `Debug`.
    pub(crate) fn peek(&self) -> LeaseState {
        self.lease.peek(clock::now())
    }

    pub(crate) fn watch(&self) -> LockWatch {
        let losses = self.engine.as_ref().map(|engine| engine.losses().clone());
        LockWatch::new(Arc::clone(&self.lease), losses)
    }

    /// A local lock does not expire, but ends with a shutdown of the nodes that it stands in for.
    fn lease_state(&self) -> LeaseState {
        match &self.engine {
            Some(engine) => engine.losses().expire_if_due(&self.lease),
            None => self.lease.peek(clock::now()),
        }
    }

    pub(crate) fn is_held(&self) -> bool {
        !self.remaining().is_zero()
    }

    pub(crate) fn remaining(&self) -> Duration {
        match (&self.engine, self.lease_state()) {
            (None, LeaseState::Held(_)) => Duration::MAX,
            (Some(_), LeaseState::Held(expiry)) if !self.lease.is_in_doubt() => {
                expiry.saturating_duration_since(clock::now())
            }
            _ => Duration::ZERO,
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        match (&self.engine, self.lease_state()) {
            (Some(engine), LeaseState::Held(_)) if self.lease.is_in_doubt() => {
                engine.confirm(&self.lease)
            }
            (_, LeaseState::Held(_)) => Ok(()),
            _ => Err(self.lease.lost_error()),
        }
    }

    pub(crate) fn extend(&self, ttl: Duration) -> Result<(), Error> {
        let ttl = self.ttl_limits.validate(ttl)?;
        match &self.engine {
            Some(engine) => engine.extend(&self.lease, ttl),
            None => Ok(()),
        }
    }

    pub(crate) fn stop_renewal(&self) {
        if let Some(engine) = &self.engine {
            engine.stop_renewal(&self.lease);
        }
    }

    pub(crate) fn mode(&self) -> Mode {
        match self.engine {
            Some(_) => Mode::Quorum,
            None => Mode::Local,
        }
    }

    pub(crate) fn fencing_token(&self) -> Option<u64> {
        self.lease.fencing_token()
    }

    /// Turns a write lock into a read lock. Where that fails the lock is lost, which the error tells; its `Drop` is silent.
    pub(crate) fn downgrade(mut self) -> Result<GuardInner, Error> {
        if self.local.is_forked() {
            return Err(Error::Closed);
        }
        if let Some(engine) = &self.engine
            && let Err(error) = engine.downgrade(&self.lease)
        {
            self.ended = true;
            return Err(error);
        }
        self.local.downgrade();
        Ok(self)
    }

    pub(crate) fn release(mut self) -> Result<(), Error> {
        self.release_inner(OnDrop::Wait)
    }

    /// Leaves the lock on the nodes for another process, and ends here.
    pub(crate) fn detach(mut self) -> Result<LockToken, Error> {
        let Some(engine) = &self.engine else {
            return Err(Error::NotOnNodes); // dropped here, and so released
        };
        self.ended = true;
        if self.local.is_forked() {
            return Err(Error::Closed);
        }
        let held = clock::now().saturating_duration_since(self.acquired_at);
        let handed = engine.detach(&self.lease, &self.local);
        engine.record_end(&self.lease, held, handed.is_err());
        handed.map(|()| LockToken::from_lease(&self.lease))
    }

    /// What `Drop` does.
    fn end_by_drop(&mut self) {
        let engine = self.engine.clone();
        let on_drop = engine
            .as_ref()
            .map_or(OnDrop::Background, |engine| engine.settings().on_drop);
        if let (Err(error), Some(engine)) = (self.release_inner(on_drop), engine)
            && error != Error::Closed
        {
            engine.record_failed_drop(&self.lease, &error);
        }
    }

    /// The one end, with two doors: `release` and `Drop`.
    fn release_inner(&mut self, on_drop: OnDrop) -> Result<(), Error> {
        self.ended = true;
        if self.local.is_forked() {
            warn!(
                "{}: released in a forked child, which is ignored",
                self.local.keys()
            );
            return Err(Error::Closed);
        }
        match &self.engine {
            Some(engine) => {
                let held = clock::now().saturating_duration_since(self.acquired_at);
                let released = engine.release(&self.lease, &self.local, on_drop);
                let late = released.as_ref().is_err_and(Error::is_lost);
                engine.record_end(&self.lease, held, late);
                released
            }
            None => match self.lease.begin_release(clock::now()) {
                LeaseState::Held(_) => {
                    self.lease.finish_release();
                    Ok(())
                }
                _ => Err(self.lease.lost_error()),
            },
        }
    }
}

impl Drop for GuardInner {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // A panic that leaves a destructor, of a logger say, would end the process where it comes during another, or when a
        // thread's locals are dropped.
        if threads::catch("drop of a guard", || self.end_by_drop()).is_none()
            && let Some(engine) = &self.engine
        {
            engine.count_failed_drop();
        }
    }
}
