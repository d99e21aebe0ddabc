//! From a name and options to a lock that is held: what all handles do. The one place that rejects input.

use std::sync::Arc;

use crate::cancel;
use crate::config::{Settings, Terms};
use crate::engine::{self, Taken, Wish};
use crate::error::Error;
use crate::guard::Hold;
use crate::handover::LockToken;
use crate::key::{Keys, Token};
use crate::lease::Claim;
use crate::local::Gate;
use crate::nodes::Nodes;
use crate::options::{LockOptions, Strength};
use crate::retry::RetryPolicy;
use crate::time;

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
    let patience = options.patience(strength, &settings.retry, time::now());
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
    let patience = options.patience(Strength::Once, &settings.retry, time::now());
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
    let start = time::now();
    let patience = options.patience(strength, &RetryPolicy::default(), start);
    let inbox = cancel::inbox(options.cancel())?;
    let access = engine::access(claim);
    let pass = gate
        .enter(keys, access, &inbox, patience.end, |_| ())
        .map_err(|refused| {
            let waited = time::now().saturating_duration_since(start);
            engine::turned_away(refused, keys, claim, 1, waited)
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
