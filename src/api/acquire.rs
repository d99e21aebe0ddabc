//! Turns the arguments of a public call into parsed parameters, and the lease into a guard.
//!
//! Input is rejected here and in the handles' constructors, before anything blocks; the layers
//! below validate nothing. A name is parsed before the TTL, so an invalid name is reported first.
//!
//! Tests: `tests/it/locks/conformance.rs`, `rw_conformance.rs`, `semaphore.rs`; beside `ttl.rs` and
//! `key_set.rs` in `protocol/`.

use std::sync::Arc;

use crate::api::guard_inner::GuardInner;
use crate::api::lock_token::LockToken;
use crate::api::nodes::Nodes;
use crate::api::options::{DefaultWait, LockOptions};
use crate::config::settings::{Settings, TtlLimits};
use crate::engine::params;
use crate::engine::params::{AcquireParams, Acquired, Effort};
use crate::error::error::Error;
use crate::local::guard::LocalGuard;
use crate::local::lock_table::LockTable;
use crate::local::request::LocalRequest;
use crate::protocol::key::Key;
use crate::protocol::key_set::KeySet;
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::{Lease, NEVER_EXPIRES_AFTER};
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

    /// Returns the key of each name by itself, in the order of the caller.
    ///
    /// # Errors
    /// - `InvalidKey`, also without a name.
    fn parse_each_key(&self, prefix: &str) -> Result<Vec<KeySet>, Error> {
        match self.names {
            LockNames::Unparsed(names @ [_, ..]) => {
                let kind = self.kind.lock_kind();
                let keys = names.iter();
                keys.map(|name| KeySet::parse(prefix, &[*name], kind))
                    .collect()
            }
            _ => self.parse_keys(prefix).map(|keys| vec![keys]),
        }
    }
}

/// Acquires locks for a public handle: on the nodes, or in this process alone.
pub(crate) trait AcquireFrom {
    /// Acquires the lock, and blocks for as long as the options say, or the call's default wait
    /// without a wait in them.
    fn acquire_guard<G: From<GuardInner>>(&self, call: &AcquireCall<'_>) -> Result<G, Error>;

    /// Acquires the lock of the first of the names that is free. Blocks as `acquire_guard` does.
    fn acquire_any_guard<G: From<GuardInner>>(&self, call: &AcquireCall<'_>) -> Result<G, Error>;

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
        let acquired = engine.acquire(&params, wait_limit)?;
        wrap(self, acquired, call).map(G::from)
    }

    fn acquire_any_guard<G: From<GuardInner>>(&self, call: &AcquireCall<'_>) -> Result<G, Error> {
        let settings = self.engine().settings();
        let keys = call.parse_each_key(&settings.key_prefix)?.into_iter();
        let params = keys.map(|keys| acquire_params(settings, keys, call.kind, call.options));
        let choices: Vec<AcquireParams> = params.collect::<Result<_, Error>>()?;
        let (options, start) = (call.options, clock::now());
        let wait_limit = options.wait_limit(call.default_wait, &settings.retry, start);
        let acquired = self.engine().acquire_any(&choices, wait_limit)?;
        wrap(self, acquired, call).map(G::from)
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
        options.validate(kind)?;
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
            let effort = Effort {
                attempts: 1,
                waited,
            };
            params::refusal_error(refusal, self, &keys, kind, effort)
        })?;
        wrap_local(self, local, call).map(G::from)
    }

    fn acquire_any_guard<G: From<GuardInner>>(&self, call: &AcquireCall<'_>) -> Result<G, Error> {
        let options = call.options;
        let choices = call.parse_each_key("")?;
        TtlLimits::LOCAL.validate(options.ttl())?;
        options.validate(call.kind)?;
        let start = clock::now();
        let wait_limit = options.wait_limit(call.default_wait, &RetryPolicy::default(), start);
        let inbox = cancel::cancellable_inbox(options.cancel())?;
        let local = self.acquire_any(&choices, &inbox, wait_limit.deadline);
        let local = local.map_err(|refusal| {
            let waited = clock::now().saturating_duration_since(start);
            let effort = Effort {
                attempts: 1,
                waited,
            };
            let last = &choices[choices.len() - 1];
            params::refusal_error(refusal, self, last, call.kind, effort)
        })?;
        wrap_local(self, local, call).map(G::from)
    }
}

/// Returns the guard of a lock on the nodes, or of a local lock in its place.
fn wrap(nodes: &Nodes, acquired: Acquired, call: &AcquireCall<'_>) -> Result<GuardInner, Error> {
    let (engine, settings) = (nodes.engine(), nodes.engine().settings());
    match acquired {
        Acquired::Quorum(lease, local) => {
            Ok(GuardInner::on_nodes(Arc::clone(engine), lease, local))
        }
        Acquired::Local(local) => {
            let label = call.options.label().or(settings.owner_label.as_ref());
            let lease = local_lease(&local, call.kind, label.map(|label| label.as_str()), None);
            let guard = GuardInner::local(local, lease)?;
            Ok(guard.with_options(call.options))
        }
    }
}

/// Returns the guard of a lock in this process alone.
fn wrap_local(
    lock_table: &LockTable,
    local: LocalGuard,
    call: &AcquireCall<'_>,
) -> Result<GuardInner, Error> {
    let options = call.options;
    let fencing_token = options.is_fenced().then(|| lock_table.next_fencing_token());
    let label = options.label().map(|label| label.as_str());
    let lease = local_lease(&local, call.kind, label, fencing_token);
    let guard = GuardInner::local(local, lease)?;
    Ok(guard.with_options(options))
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
/// `InvalidTtl`, `InvalidConfig`.
fn acquire_params(
    settings: &Settings,
    keys: KeySet,
    kind: LeaseKind,
    options: &LockOptions,
) -> Result<AcquireParams, Error> {
    options.validate(kind)?;
    Ok(AcquireParams {
        keys,
        kind,
        ttl: settings.ttl_limits().validate(options.ttl())?,
        fenced: options.is_fenced(),
        cancel: options.cancel().cloned(),
        owner_label: options.label().or(settings.owner_label.as_ref()).cloned(),
        lease_options: options.lease_options().clone(),
    })
}

/// Returns the lease of a lock in this process alone. It does not expire.
fn local_lease(
    local: &LocalGuard,
    kind: LeaseKind,
    label: Option<&str>,
    fencing_token: Option<u64>,
) -> Lease {
    let kind = match kind {
        LeaseKind::Permit { total, .. } => LeaseKind::Permit {
            index: local.draw_permit_number(),
            total,
        },
        kind => kind,
    };
    let lease = Lease::new(local.keys().clone(), Token::local(label), kind);
    if let Some(fencing_token) = fencing_token {
        lease.set_fencing_token(fencing_token);
    }
    lease.activate(clock::now() + NEVER_EXPIRES_AFTER, clock::wall_offset());
    lease
}

/// Turns *contended* into `None`, for the `try_…` calls.
pub(crate) fn none_if_contended<G>(acquired: Result<G, Error>) -> Result<Option<G>, Error> {
    match acquired {
        Ok(guard) => Ok(Some(guard)),
        Err(error) if error.is_contended() => Ok(None),
        Err(error) => Err(error),
    }
}
