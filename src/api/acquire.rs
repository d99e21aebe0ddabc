//! Turns the arguments of a public call into parsed parameters, and the lease into a guard.
//!
//! Input is rejected here and in the handles' constructors, before anything blocks; the layers
//! below validate nothing. A name is parsed before the TTL, so an invalid name is reported first.

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
use crate::protocol::key::Key;
use crate::protocol::key_set::KeySet;
use crate::protocol::kind::LeaseKind;
use crate::protocol::retry::RetryPolicy;
use crate::protocol::token::Token;
use crate::time::clock;
use crate::transport::cancel;

/// The arguments of a public call that acquires a lock.
#[derive(Clone, Copy)]
pub(crate) struct AcquireCall<'a> {
    pub(super) names: LockNames<'a>,
    pub(super) kind: LeaseKind,
    pub(super) options: &'a LockOptions,
    /// How long the call blocks without a wait in `options`.
    pub(super) default_wait: DefaultWait,
}

/// The names of a lock, as a handle has them.
#[derive(Clone, Copy)]
pub(super) enum LockNames<'a> {
    /// As the caller gave them.
    Unparsed(&'a [&'a str]),
    /// The name of a semaphore, parsed when its handle was created.
    Parsed(&'a Key),
}

impl<'a> AcquireCall<'a> {
    /// Returns the call that blocks as the retry policy says, without a wait in the options.
    pub(super) fn new(
        names: &'a [&'a str],
        kind: LeaseKind,
        options: &'a LockOptions,
    ) -> AcquireCall<'a> {
        AcquireCall {
            names: LockNames::Unparsed(names),
            kind,
            options,
            default_wait: DefaultWait::Policy,
        }
    }

    /// Returns the keys of the names, parsed with this key prefix.
    ///
    /// # Errors
    /// - `InvalidKey`.
    fn parse_keys(&self, prefix: &str) -> Result<KeySet, Error> {
        match self.names {
            LockNames::Unparsed(names) => KeySet::parse(prefix, names, self.kind.lock_kind()),
            LockNames::Parsed(key) => Ok(KeySet::from(key.clone())),
        }
    }
}

/// Acquires locks for a public handle: on the nodes, or in this process alone.
pub(crate) trait AcquireFrom {
    /// Acquires the lock, and blocks for as long as the options say, or the call's default wait
    /// without a wait in them.
    fn acquire_guard<G: From<GuardInner>>(&self, call: &AcquireCall<'_>) -> Result<G, Error>;

    /// Acquires the lock with one attempt, or with the wait in the options; `None` if it is
    /// contended.
    fn try_acquire_guard<G: From<GuardInner>>(
        &self,
        call: &AcquireCall<'_>,
    ) -> Result<Option<G>, Error> {
        none_if_contended(self.acquire_guard(&AcquireCall {
            default_wait: DefaultWait::NoWait,
            ..*call
        }))
    }
}

impl AcquireFrom for Nodes {
    fn acquire_guard<G: From<GuardInner>>(&self, call: &AcquireCall<'_>) -> Result<G, Error> {
        let engine = self.engine();
        let settings = engine.settings();
        let keys = call.parse_keys(&settings.key_prefix)?;
        #[cfg(feature = "cluster")]
        settings.validate_hash_slots(&keys)?;
        let params = acquire_params(settings, keys, call.kind, call.options)?;
        let retry = &settings.retry;
        let wait_limit = call
            .options
            .wait_limit(call.default_wait, retry, clock::now());
        let guard = match engine.acquire(&params, wait_limit)? {
            Acquired::Quorum(lease, local) => {
                GuardInner::on_nodes(Arc::clone(engine), lease, local)
            }
            Acquired::Local(local) => {
                GuardInner::local(local, call.kind, settings.ttl_limits(), None)?
            }
        };
        Ok(G::from(guard))
    }
}

/// Locks in this process alone. Without a limit in the options an acquire blocks until the lock is
/// free.
impl AcquireFrom for Arc<LockTable> {
    fn acquire_guard<G: From<GuardInner>>(&self, call: &AcquireCall<'_>) -> Result<G, Error> {
        let AcquireCall { kind, options, .. } = *call;
        let keys = call.parse_keys("")?;
        let ttl_limits = TtlLimits::LOCAL;
        ttl_limits.validate(options.ttl())?;
        let start = clock::now();
        let wait_limit = options.wait_limit(call.default_wait, &RetryPolicy::default(), start);
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
        GuardInner::local(local, kind, ttl_limits, fencing_token).map(G::from)
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
