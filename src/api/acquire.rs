//! Turns the arguments of a public call into parsed parameters, and the lease into a guard.
//!
//! Input is rejected here and in the handles' constructors; the layers below validate nothing.

use std::sync::Arc;

use crate::api::guard_inner::GuardInner;
use crate::api::lock_token::LockToken;
use crate::api::nodes::Nodes;
use crate::api::options::{DefaultWait, LockOptions};
use crate::config::settings::{Settings, TtlLimits};
use crate::engine::params;
use crate::engine::params::{AcquireParams, Acquired};
use crate::error::Error;
use crate::local::entry::LocalRequest;
use crate::local::lock_table::LockTable;
use crate::protocol::key_set::KeySet;
use crate::protocol::kind::{LeaseKind, LockKind};
use crate::protocol::retry::RetryPolicy;
use crate::protocol::token::Token;
use crate::time::clock;
use crate::transport::cancel;

/// Acquires locks for a public handle: on the nodes, or in this process alone.
pub(crate) trait AcquireFrom {
    /// Parses lock names.
    ///
    /// # Errors
    /// `InvalidKey`.
    fn parse_keys(&self, names: &[&str], kind: LockKind) -> Result<KeySet, Error>;

    /// Acquires the lock of parsed keys, and blocks for as long as the options say, or
    /// `default_wait` without a wait in them.
    fn acquire_keys(
        &self,
        keys: KeySet,
        kind: LeaseKind,
        options: &LockOptions,
        default_wait: DefaultWait,
    ) -> Result<GuardInner, Error>;

    /// Acquires the lock of these names; without a wait in the options it blocks as the retry
    /// policy says.
    fn acquire_guard<G: From<GuardInner>>(
        &self,
        names: &[&str],
        kind: LeaseKind,
        options: &LockOptions,
    ) -> Result<G, Error> {
        let keys = self.parse_keys(names, kind.lock_kind())?;
        let acquired = self.acquire_keys(keys, kind, options, DefaultWait::Policy);
        acquired.map(G::from)
    }

    /// Acquires the lock of these names with one attempt, or with the wait in the options; `None`
    /// if it is contended.
    fn try_acquire_guard<G: From<GuardInner>>(
        &self,
        names: &[&str],
        kind: LeaseKind,
        options: &LockOptions,
    ) -> Result<Option<G>, Error> {
        let keys = self.parse_keys(names, kind.lock_kind())?;
        let acquired = self.acquire_keys(keys, kind, options, DefaultWait::NoWait);
        none_if_contended(acquired.map(G::from))
    }
}

impl AcquireFrom for Nodes {
    fn parse_keys(&self, names: &[&str], kind: LockKind) -> Result<KeySet, Error> {
        let settings = self.engine().settings();
        let keys = KeySet::parse(&settings.key_prefix, names, kind)?;
        #[cfg(feature = "cluster")]
        settings.validate_hash_slots(&keys)?;
        Ok(keys)
    }

    fn acquire_keys(
        &self,
        keys: KeySet,
        kind: LeaseKind,
        options: &LockOptions,
        default_wait: DefaultWait,
    ) -> Result<GuardInner, Error> {
        let engine = self.engine();
        let settings = engine.settings();
        let params = acquire_params(settings, keys, kind, options)?;
        let wait_limit = options.wait_limit(default_wait, &settings.retry, clock::now());
        match engine.acquire(&params, wait_limit)? {
            Acquired::Quorum(lease, local) => {
                Ok(GuardInner::on_nodes(Arc::clone(engine), lease, local))
            }
            Acquired::Local(local) => GuardInner::local(local, kind, settings.ttl_limits(), None),
        }
    }
}

/// Locks in this process alone. Without a limit in the options an acquire blocks until the lock is
/// free.
impl AcquireFrom for Arc<LockTable> {
    fn parse_keys(&self, names: &[&str], kind: LockKind) -> Result<KeySet, Error> {
        KeySet::parse("", names, kind)
    }

    fn acquire_keys(
        &self,
        keys: KeySet,
        kind: LeaseKind,
        options: &LockOptions,
        default_wait: DefaultWait,
    ) -> Result<GuardInner, Error> {
        let ttl_limits = TtlLimits::LOCAL;
        ttl_limits.validate(options.ttl())?;
        let start = clock::now();
        let wait_limit = options.wait_limit(default_wait, &RetryPolicy::default(), start);
        let inbox = cancel::cancellable_inbox(options.cancel())?;
        let request = LocalRequest {
            keys: &keys,
            mode: params::access_mode(kind),
            offer: None,
            inbox: &inbox,
            deadline: wait_limit.deadline,
        };
        let local = self.acquire(&request, |_| ()).map_err(|refusal| {
            let waited = clock::now().saturating_duration_since(start);
            params::refusal_error(refusal, &keys, kind, 1, waited)
        })?;
        let fencing_token = options.is_fenced().then(|| self.next_fencing_token());
        GuardInner::local(local, kind, ttl_limits, fencing_token)
    }
}

/// Adopts a lock that another guard has detached.
pub(crate) fn adopt(
    nodes: &Nodes,
    token: &LockToken,
    options: &LockOptions,
) -> Result<GuardInner, Error> {
    let engine = nodes.engine();
    let settings = engine.settings();
    let keys = token.keys_with_prefix(&settings.key_prefix)?;
    let mut params = acquire_params(settings, keys, LeaseKind::Exclusive, options)?;
    params.fenced |= token.is_fenced();
    let wait_limit = options.wait_limit(DefaultWait::NoWait, &settings.retry, clock::now());
    let (lease, local) = engine.adopt(&params, Token::existing(token.secret()), wait_limit)?;
    Ok(GuardInner::on_nodes(Arc::clone(engine), lease, local))
}

/// Returns the parameters of an acquire on the nodes.
///
/// # Errors
/// `InvalidTtl`.
fn acquire_params(
    settings: &Settings,
    keys: KeySet,
    kind: LeaseKind,
    options: &LockOptions,
) -> Result<AcquireParams, Error> {
    Ok(AcquireParams {
        keys,
        kind,
        ttl: settings.ttl_limits().validate(options.ttl())?,
        fenced: options.is_fenced(),
        cancel: options.cancel().cloned(),
        lease_options: options.lease_options().clone(),
    })
}

/// Turns *contended* into `None`, for the `try_…` calls.
pub(crate) fn none_if_contended<G>(acquired: Result<G, Error>) -> Result<Option<G>, Error> {
    match acquired {
        Ok(guard) => Ok(Some(guard)),
        Err(error) if error.is_contended() => Ok(None),
        Err(error) => Err(error),
    }
}
