//! From a name and options to a lock that is held: what all handles do. The one place that rejects input.

use std::sync::Arc;

use crate::api::guard_inner::GuardInner;
use crate::api::lock_token::LockToken;
use crate::api::nodes::Nodes;
use crate::api::options::{DefaultWait, LockOptions};
use crate::config::settings::{Settings, TtlLimits};
use crate::engine::params;
use crate::engine::params::{AcquireParams, Acquired};
use crate::error::Error;
use crate::local::lock_table::LockTable;
use crate::protocol::key_set::KeySet;
use crate::protocol::kind::LeaseKind;
use crate::protocol::retry::RetryPolicy;
use crate::protocol::token::Token;
use crate::time::clock;
use crate::transport::cancel;

/// Takes a lock on the nodes.
pub(crate) fn acquire_on_nodes(
    nodes: &Nodes,
    names: &[&str],
    claim: LeaseKind,
    options: &LockOptions,
    strength: DefaultWait,
) -> Result<GuardInner, Error> {
    let settings = nodes.engine().settings();
    let keys = KeySet::parse(&settings.key_prefix, names, claim.lock_kind())?;
    #[cfg(feature = "cluster")]
    settings.validate_hash_slots(&keys)?;
    acquire_parsed_on_nodes(nodes, keys, claim, options, strength)
}

/// The same, for names that have been through the door.
pub(crate) fn acquire_parsed_on_nodes(
    nodes: &Nodes,
    keys: KeySet,
    claim: LeaseKind,
    options: &LockOptions,
    strength: DefaultWait,
) -> Result<GuardInner, Error> {
    let engine = nodes.engine();
    let settings = engine.settings();
    let wish = acquire_params(settings, keys, claim, options)?;
    let patience = options.wait_limit(strength, &settings.retry, clock::now());
    match engine.acquire(&wish, patience)? {
        Acquired::Quorum(lease, pass) => Ok(GuardInner::on_nodes(Arc::clone(engine), lease, pass)),
        Acquired::Local(pass) => GuardInner::local(pass, claim, settings.terms(), None),
    }
}

/// Takes up a lock that was handed over.
pub(crate) fn adopt(
    nodes: &Nodes,
    token: &LockToken,
    options: &LockOptions,
) -> Result<GuardInner, Error> {
    let engine = nodes.engine();
    let settings = engine.settings();
    let keys = token.keys_with_prefix(&settings.key_prefix)?;
    let mut wish = acquire_params(settings, keys, LeaseKind::Exclusive, options)?;
    wish.fenced |= token.is_fenced();
    let patience = options.wait_limit(DefaultWait::NoWait, &settings.retry, clock::now());
    let (lease, pass) = engine.adopt(&wish, Token::existing(token.secret()), patience)?;
    Ok(GuardInner::on_nodes(Arc::clone(engine), lease, pass))
}

/// What options ask for.
fn acquire_params(
    settings: &Settings,
    keys: KeySet,
    claim: LeaseKind,
    options: &LockOptions,
) -> Result<AcquireParams, Error> {
    Ok(AcquireParams {
        keys,
        kind: claim,
        ttl: settings.terms().validate(options.ttl())?,
        fenced: options.is_fenced(),
        cancel: options.cancel().cloned(),
        lease_options: options.lease_options().clone(),
    })
}

/// Takes a lock in this process alone; without a limit in the options it waits as long as it takes.
pub(crate) fn acquire_local(
    gate: &Arc<LockTable>,
    names: &[&str],
    claim: LeaseKind,
    options: &LockOptions,
    strength: DefaultWait,
) -> Result<GuardInner, Error> {
    let keys = KeySet::parse("", names, claim.lock_kind())?;
    acquire_parsed_local(gate, &keys, claim, options, strength)
}

/// The same, for names that have been through the door.
pub(crate) fn acquire_parsed_local(
    gate: &Arc<LockTable>,
    keys: &KeySet,
    claim: LeaseKind,
    options: &LockOptions,
    strength: DefaultWait,
) -> Result<GuardInner, Error> {
    let terms = TtlLimits::LOCAL;
    terms.validate(options.ttl())?;
    let start = clock::now();
    let patience = options.wait_limit(strength, &RetryPolicy::default(), start);
    let inbox = cancel::cancellable_inbox(options.cancel())?;
    let access = params::access_mode(claim);
    let pass = gate
        .acquire(keys, access, &inbox, patience.deadline, |_| ())
        .map_err(|refused| {
            let waited = clock::now().saturating_duration_since(start);
            params::refusal_error(refused, keys, claim, 1, waited)
        })?;
    let fence = options.is_fenced().then(|| gate.next_fencing_token());
    GuardInner::local(pass, claim, terms, fence)
}

/// What a `try_…` makes of what `acquire_…` answers.
pub(crate) fn none_if_contended<G>(acquired: Result<G, Error>) -> Result<Option<G>, Error> {
    match acquired {
        Ok(guard) => Ok(Some(guard)),
        Err(error) if error.is_contended() => Ok(None),
        Err(error) => Err(error),
    }
}
