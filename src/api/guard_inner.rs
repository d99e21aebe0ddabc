//! What all guards are, from here on to the one end of a lock that is held.

use std::sync::Arc;
use std::time::{Duration, Instant};

use log::warn;

use crate::api::lock_token::LockToken;
use crate::api::watch::LossWatch;
use crate::config::on_drop::OnDrop;
use crate::config::settings::Terms;
use crate::engine::core::Engine;
use crate::error::Error;
use crate::local::guard::Pass;
use crate::protocol::key_set::Keys;
use crate::protocol::kind::Claim;
use crate::protocol::lease::{FOR_EVER, Lease, Look};
use crate::protocol::mode::Mode;
use crate::protocol::token::Token;
use crate::sync::threads;
use crate::time::clock;

/// A lock that is held.
pub(crate) struct Hold {
    pass: Pass,
    lease: Arc<Lease>,
    /// Who knows the nodes. Without it the lock is held in this process alone.
    engine: Option<Arc<Engine>>,
    terms: Terms,
    taken: Instant,
    ended: bool,
}

impl Hold {
    pub(crate) fn quorum(engine: Arc<Engine>, lease: Arc<Lease>, pass: Pass) -> Hold {
        Hold {
            pass,
            lease,
            terms: engine.settings().terms(),
            engine: Some(engine),
            taken: clock::now(),
            ended: false,
        }
    }

    /// # Errors
    /// `Closed` where a shutdown has come before it.
    pub(crate) fn local(
        pass: Pass,
        claim: Claim,
        terms: Terms,
        fence: Option<u64>,
    ) -> Result<Hold, Error> {
        let lease = Arc::new(Lease::new(pass.keys().clone(), Token::local(), claim));
        fence.into_iter().for_each(|fence| lease.number(fence));
        lease.hold(clock::now() + FOR_EVER, clock::lead());
        if !pass.bind(&lease) {
            return Err(Error::Closed);
        }
        Ok(Hold {
            pass,
            lease,
            engine: None,
            terms,
            taken: clock::now(),
            ended: false,
        })
    }

    #[cfg(feature = "testing")]
    pub(crate) fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    pub(crate) fn keys(&self) -> &Keys {
        self.pass.keys()
    }

    /// Without touching anything, for `Debug`.
    pub(crate) fn peek(&self) -> Look {
        self.lease.peek(clock::now())
    }

    pub(crate) fn watch(&self) -> LossWatch {
        let losses = self.engine.as_ref().map(|engine| engine.losses().clone());
        LossWatch::new(Arc::clone(&self.lease), losses)
    }

    /// A local lock does not expire, but ends with a shutdown of the nodes that it stands in for.
    fn look(&self) -> Look {
        match &self.engine {
            Some(engine) => engine.losses().look(&self.lease),
            None => self.lease.peek(clock::now()),
        }
    }

    pub(crate) fn is_held(&self) -> bool {
        !self.remaining().is_zero()
    }

    pub(crate) fn remaining(&self) -> Duration {
        match (&self.engine, self.look()) {
            (None, Look::Held(_)) => Duration::MAX,
            (Some(_), Look::Held(expiry)) if !self.lease.is_doubtful() => {
                expiry.saturating_duration_since(clock::now())
            }
            _ => Duration::ZERO,
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        match (&self.engine, self.look()) {
            (Some(engine), Look::Held(_)) if self.lease.is_doubtful() => {
                engine.make_sure(&self.lease)
            }
            (_, Look::Held(_)) => Ok(()),
            _ => Err(self.lease.lost()),
        }
    }

    pub(crate) fn extend(&self, ttl: Duration) -> Result<(), Error> {
        let ttl = self.terms.ttl(ttl)?;
        match &self.engine {
            Some(engine) => engine.extend(&self.lease, ttl),
            None => Ok(()),
        }
    }

    pub(crate) fn stop_renewing(&self) {
        if let Some(engine) = &self.engine {
            engine.stop_renewing(&self.lease);
        }
    }

    pub(crate) fn mode(&self) -> Mode {
        match self.engine {
            Some(_) => Mode::Quorum,
            None => Mode::Local,
        }
    }

    pub(crate) fn fencing_token(&self) -> Option<u64> {
        self.lease.fence()
    }

    /// Turns a write lock into a read lock. Where that fails the lock is lost, which the error tells; its `Drop` is silent.
    pub(crate) fn downgrade(mut self) -> Result<Hold, Error> {
        if self.pass.is_forked() {
            return Err(Error::Closed);
        }
        if let Some(engine) = &self.engine
            && let Err(error) = engine.downgrade(&self.lease)
        {
            self.ended = true;
            return Err(error);
        }
        self.pass.share();
        Ok(self)
    }

    pub(crate) fn release(mut self) -> Result<(), Error> {
        self.end(OnDrop::Wait)
    }

    /// Leaves the lock on the nodes for another process, and ends here.
    pub(crate) fn hand_over(mut self) -> Result<LockToken, Error> {
        let Some(engine) = &self.engine else {
            return Err(Error::HeldLocally); // dropped here, and so released
        };
        self.ended = true;
        if self.pass.is_forked() {
            return Err(Error::Closed);
        }
        let held = clock::now().saturating_duration_since(self.taken);
        let handed = engine.hand_over(&self.lease, &self.pass);
        engine.note_end(&self.lease, held, handed.is_err());
        handed.map(|()| LockToken::of(&self.lease))
    }

    /// What `Drop` does.
    fn end_by_drop(&mut self) {
        let engine = self.engine.clone();
        let on_drop = engine
            .as_ref()
            .map_or(OnDrop::HandOff, |engine| engine.settings().on_drop);
        if let (Err(error), Some(engine)) = (self.end(on_drop), engine)
            && error != Error::Closed
        {
            engine.note_failed_drop(&self.lease, &error);
        }
    }

    /// The one end, with two doors: `release` and `Drop`.
    fn end(&mut self, on_drop: OnDrop) -> Result<(), Error> {
        self.ended = true;
        if self.pass.is_forked() {
            warn!(
                "{}: released in a forked child, which is ignored",
                self.pass.keys()
            );
            return Err(Error::Closed);
        }
        match &self.engine {
            Some(engine) => {
                let held = clock::now().saturating_duration_since(self.taken);
                let released = engine.release(&self.lease, &self.pass, on_drop);
                let late = released.as_ref().is_err_and(Error::is_lost);
                engine.note_end(&self.lease, held, late);
                released
            }
            None => match self.lease.begin_release(clock::now()) {
                Look::Held(_) => {
                    self.lease.end();
                    Ok(())
                }
                _ => Err(self.lease.lost()),
            },
        }
    }
}

impl Drop for Hold {
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
