//! Binds an acquired lease to its local guard, and registers renewal and loss callbacks.
//!
//! Tests: `src/tests/engine/loss.rs`, `min_hold.rs`, `shutdown.rs`.

use std::sync::Arc;

use crate::background::loss_handler;
use crate::background::loss_notifier::LeaseCallbacks;
use crate::config::on_drop::OnDrop;
use crate::engine::core::Engine;
use crate::engine::params::AcquireParams;
use crate::error::error::Error;
use crate::local::guard::LocalGuard;
use crate::protocol::lease::Lease;
use crate::time::clock;
use crate::transport::inbox::Inbox;

impl Engine {
    /// Attaches a lease to the lock table and applies its options; releases it if that fails.
    ///
    /// # Errors
    /// - `Closed`: the `Nodes` shut down meanwhile.
    /// - `System`: a background thread could not be started.
    pub(crate) fn attach(
        &self,
        lease: &Arc<Lease>,
        local: &LocalGuard,
        params: &AcquireParams,
    ) -> Result<(), Error> {
        let attached = match local.attach_lease(lease) {
            true => self.apply_lease_options(lease, params),
            false => Err(Error::Closed),
        };
        if attached.is_err() {
            // The caller gets the first error, so the result of the release is not reported.
            let _ = self.release(lease, local, OnDrop::Background);
        }
        attached
    }

    /// Registers the callbacks and the renewal, and sets the minimum time, before the caller can
    /// see the guard.
    pub(crate) fn apply_lease_options(
        &self,
        lease: &Arc<Lease>,
        params: &AcquireParams,
    ) -> Result<(), Error> {
        let options = &params.lease_options;
        let callbacks = LeaseCallbacks {
            on_lost: options.on_lost.clone(),
            on_endangered: options.on_endangered.clone(),
        };
        if callbacks.on_lost.is_some() || callbacks.on_endangered.is_some() {
            self.loss_handler.notifier().watch(lease, callbacks)?;
            self.listener.listen_for_holder()?;
        }
        if options.auto_renew {
            self.renewal
                .register(lease, params.ttl, options.max_renewal)?;
        }
        // Last, so that a lock without a guard is deleted.
        if !options.min_hold.is_zero() {
            lease.keep_until(clock::now() + options.min_hold);
        }
        Ok(())
    }

    /// Handles the loss of a lease whose expiry this thread was the first to see.
    pub(super) fn handle_expiry(&self, lease: &Arc<Lease>) {
        self.loss_handler
            .handle_loss(lease, loss_handler::EXPIRED_MSG);
    }

    /// Returns whether a caller that blocks in this inbox may go on.
    ///
    /// # Errors
    /// - `Closed`: the `Nodes` shut down.
    /// - `Cancelled`: the caller's token was cancelled.
    pub(super) fn check_cancelled(&self, inbox: &Inbox) -> Result<(), Error> {
        match (self.lock_table.is_closed(), inbox.is_cancelled()) {
            (true, _) => Err(Error::Closed),
            (false, true) => Err(Error::Cancelled),
            (false, false) => Ok(()),
        }
    }
}
