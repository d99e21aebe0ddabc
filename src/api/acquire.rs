//! From a name and options to a lock that is held: what all handles do. The one place that rejects input.

use std::sync::Arc;

use crate::api::guard_inner::Hold;
use crate::api::lock_token::LockToken;
use crate::api::nodes::Nodes;
use crate::api::options::{LockOptions, Strength};
use crate::config::settings::{Settings, Terms};
use crate::engine::params;
use crate::engine::params::{Taken, Wish};
use crate::error::Error;
use crate::local::lock_table::Gate;
use crate::protocol::key_set::Keys;
use crate::protocol::kind::Claim;
use crate::protocol::retry::RetryPolicy;
use crate::protocol::token::Token;
use crate::time::clock;
use crate::transport::cancel;

/// Takes a lock on the nodes.
pub(crate) fn on_nodes(
    nodes: &Nodes,
    names: &[&str],
    claim: Claim,
    options: &LockOptions,
    strength: Strength,
) -> Result<Hold, Error> {
    let settings = nodes.engine().settings();
    let keys = Keys::parse(&settings.key_prefix, names, claim.family())?;
    #[cfg(feature = "cluster")]
    settings.check_slots(&keys)?;
    parsed_on_nodes(nodes, keys, claim, options, strength)
}

/// The same, for names that have been through the door.
pub(crate) fn parsed_on_nodes(
    nodes: &Nodes,
    keys: Keys,
    claim: Claim,
    options: &LockOptions,
    strength: Strength,
) -> Result<Hold, Error> {
    let engine = nodes.engine();
    let settings = engine.settings();
    let wish = wish(settings, keys, claim, options)?;
    let patience = options.patience(strength, &settings.retry, clock::now());
    match engine.acquire(&wish, patience)? {
        Taken::Quorum(lease, pass) => Ok(Hold::quorum(Arc::clone(engine), lease, pass)),
        Taken::Local(pass) => Hold::local(pass, claim, settings.terms(), None),
    }
}

/// Takes up a lock that was handed over.
pub(crate) fn adopted(
    nodes: &Nodes,
    token: &LockToken,
    options: &LockOptions,
) -> Result<Hold, Error> {
    let engine = nodes.engine();
    let settings = engine.settings();
    let keys = token.parse(&settings.key_prefix)?;
    let mut wish = wish(settings, keys, Claim::Exclusive, options)?;
    wish.fenced |= token.is_fenced();
    let patience = options.patience(Strength::Once, &settings.retry, clock::now());
    let (lease, pass) = engine.adopt(&wish, Token::former(token.text()), patience)?;
    Ok(Hold::quorum(Arc::clone(engine), lease, pass))
}

/// What options ask for.
fn wish(
    settings: &Settings,
    keys: Keys,
    claim: Claim,
    options: &LockOptions,
) -> Result<Wish, Error> {
    Ok(Wish {
        keys,
        claim,
        ttl: settings.terms().ttl(options.ttl())?,
        fenced: options.is_fenced(),
        cancel: options.cancel().cloned(),
        care: options.care().clone(),
    })
}

/// Takes a lock in this process alone; without a limit in the options it waits as long as it takes.
pub(crate) fn in_process(
    gate: &Arc<Gate>,
    names: &[&str],
    claim: Claim,
    options: &LockOptions,
    strength: Strength,
) -> Result<Hold, Error> {
    let keys = Keys::parse("", names, claim.family())?;
    parsed_in_process(gate, &keys, claim, options, strength)
}

/// The same, for names that have been through the door.
pub(crate) fn parsed_in_process(
    gate: &Arc<Gate>,
    keys: &Keys,
    claim: Claim,
    options: &LockOptions,
    strength: Strength,
) -> Result<Hold, Error> {
    let terms = Terms::LOCAL;
    terms.ttl(options.ttl())?;
    let start = clock::now();
    let patience = options.patience(strength, &RetryPolicy::default(), start);
    let inbox = cancel::inbox(options.cancel())?;
    let access = params::access(claim);
    let pass = gate
        .enter(keys, access, &inbox, patience.end, |_| ())
        .map_err(|refused| {
            let waited = clock::now().saturating_duration_since(start);
            params::turned_away(refused, keys, claim, 1, waited)
        })?;
    let fence = options.is_fenced().then(|| gate.next_number());
    Hold::local(pass, claim, terms, fence)
}

/// What a `try_…` makes of what `acquire_…` answers.
pub(crate) fn unless_contended<G>(acquired: Result<G, Error>) -> Result<Option<G>, Error> {
    match acquired {
        Ok(guard) => Ok(Some(guard)),
        Err(error) if error.is_contended() => Ok(None),
        Err(error) => Err(error),
    }
}
