//! What the log has said of a node, so that it says only what is new: however many connections there are to it, and however
//! often they are made.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::protocol::key::Key;
use crate::protocol::kind::LeaseKind;
use crate::protocol::request::{Op, Request};

/// More causes than this for which releases were refused are not told of one node.
const MAX_REFUSED: usize = 32;
/// The most keys of a node with foreign values that are remembered, and named in the log.
const MAX_FOREIGN: usize = 256;

/// What has been said of one node.
#[derive(Debug, Default)]
pub(crate) struct WarningState {
    said: Mutex<Reported>,
    /// What it has denied since it last allowed it, as bits: looked at with every answer.
    denied: AtomicU64,
    /// Whether keys with foreign values are known: read with every answer.
    has_foreign: AtomicBool,
}

#[derive(Debug, Default)]
struct Reported {
    /// How many of its connections are down.
    down: usize,
    was_connected: bool,
    /// The runs of its servers.
    runs: Option<String>,
    danger: Option<String>,
    clock_is_off: bool,
    is_too_far: bool,
    has_several_servers: bool,
    /// The run that is or was in quarantine.
    quarantined: Option<String>,
    /// The codes of errors that releases were answered by.
    refused_releases: Vec<String>,
    /// The keys under which foreign values stand, and what was asked for when they were met.
    foreign: HashMap<Key, Asked>,
}

/// What was asked for under a key: a foreign value is in the way of some of it, such as a fence counter of fenced locks alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    kind: u32,
    is_fenced: bool,
}

impl Asked {
    fn of(request: &Request) -> Asked {
        Asked {
            kind: kind(request.lease.claim()),
            is_fenced: request.min_fence.is_some(),
        }
    }
}

/// Claims of one kind need the same rights, and meet the same values.
fn kind(claim: LeaseKind) -> u32 {
    match claim {
        LeaseKind::Exclusive => 0,
        LeaseKind::Read => 1,
        LeaseKind::Write => 2,
        LeaseKind::GateEntry => 3,
        LeaseKind::Permit { .. } => 4,
    }
}

/// What a node can deny.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Permission {
    Connect,
    /// To kill our former connection.
    Kill,
    Run(Op, LeaseKind),
}

impl Permission {
    fn bit(self) -> u64 {
        match self {
            Permission::Connect => 1,
            Permission::Kill => 2,
            Permission::Run(verb, claim) => 4 << (5 * verb as u32 + kind(claim)),
        }
    }
}

impl WarningState {
    /// One of its connections is down that was not. Whether it is news that the node is.
    pub(crate) fn fell(&self) -> bool {
        let mut said = self.said.lock();
        said.down += 1;
        said.down == 1
    }

    /// One of its connections is up, which had been down or is new. Whether it is news that the node is connected.
    pub(crate) fn rose(&self, was_down: bool) -> bool {
        let mut said = self.said.lock();
        said.down -= usize::from(was_down);
        let is_first = !std::mem::replace(&mut said.was_connected, true);
        said.down == 0 && (was_down || is_first)
    }

    /// Whether it is news that its servers are these runs, and not those of before.
    pub(crate) fn ran_as(&self, runs: &str) -> bool {
        let mut said = self.said.lock();
        let is_same = said.runs.as_deref() == Some(runs);
        !is_same && said.runs.replace(runs.to_owned()).is_some()
    }

    /// Whether this danger is news.
    pub(crate) fn is_new_eviction_warning(&self, danger: Option<&str>) -> bool {
        let mut said = self.said.lock();
        let is_new = said.danger.as_deref() != danger;
        said.danger = danger.map(str::to_owned);
        is_new && danger.is_some()
    }

    /// Whether it is news that its clock is off.
    pub(crate) fn is_new_clock_warning(&self, is_off: bool) -> bool {
        let was_off = std::mem::replace(&mut self.said.lock().clock_is_off, is_off);
        is_off && !was_off
    }

    /// Whether it is news that it is too far for `node_timeout`.
    pub(crate) fn distance(&self, is_too_far: bool) -> bool {
        let was = std::mem::replace(&mut self.said.lock().is_too_far, is_too_far);
        is_too_far && !was
    }

    /// Whether it is news that several servers answer at its address.
    pub(crate) fn several_servers(&self) -> bool {
        !std::mem::replace(&mut self.said.lock().has_several_servers, true)
    }

    /// Whether it is news that this run of it is in quarantine.
    pub(crate) fn is_new_quarantine(&self, run_id: &str) -> bool {
        let mut said = self.said.lock();
        let is_new = said.quarantined.as_deref() != Some(run_id);
        said.quarantined = Some(run_id.to_owned());
        is_new
    }

    /// Whether it is news that it answers releases with an error of this code.
    pub(crate) fn refused_release(&self, code: &str) -> bool {
        let refused = &mut self.said.lock().refused_releases;
        let is_new = refused.len() < MAX_REFUSED && !refused.iter().any(|said| said == code);
        if is_new {
            refused.push(code.to_owned());
        }
        is_new
    }

    /// Whether it is news that it denies this.
    pub(crate) fn is_newly_denied(&self, right: Permission) -> bool {
        let before = self.denied.fetch_or(right.bit(), Ordering::Relaxed);
        before & right.bit() == 0
    }

    /// Whether it is news that a request has met a foreign value under this key, or one of those derived from it.
    pub(crate) fn foreign(&self, key: &Key, request: &Request) -> bool {
        let foreign = &mut self.said.lock().foreign;
        let is_new = foreign.len() < MAX_FOREIGN && !foreign.contains_key(key);
        if is_new {
            foreign.insert(key.clone(), Asked::of(request));
        }
        self.has_foreign.store(true, Ordering::Relaxed);
        is_new
    }

    /// A request was granted: a foreign value that stood in the way of the same is not there any more.
    pub(crate) fn not_foreign(&self, request: &Request) {
        if self.has_foreign.load(Ordering::Relaxed) {
            let foreign = &mut self.said.lock().foreign;
            let asked = Asked::of(request);
            for key in request.lease.keys().as_slice() {
                if foreign.get(key) == Some(&asked) {
                    foreign.remove(key);
                }
            }
            self.has_foreign
                .store(!foreign.is_empty(), Ordering::Relaxed);
        }
    }

    /// It does not deny this.
    pub(crate) fn clear_denied(&self, right: Permission) {
        if self.denied.load(Ordering::Relaxed) & right.bit() != 0 {
            self.denied.fetch_and(!right.bit(), Ordering::Relaxed);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::protocol::lease::tests::lease_as;

    #[test]
    fn what_was_said_is_no_news_until_it_has_changed() {
        let news = WarningState::default();
        assert!(
            !news.is_new_eviction_warning(None)
                && !news.is_new_clock_warning(false)
                && !news.distance(false)
        );
        let mut first = true;
        for _ in 0..2 {
            assert!(
                news.is_new_eviction_warning(Some("evicts"))
                    && !news.is_new_eviction_warning(Some("evicts"))
            );
            assert!(
                news.is_new_eviction_warning(Some("else")) && !news.is_new_eviction_warning(None)
            );
            assert!(
                news.is_new_clock_warning(true)
                    && !news.is_new_clock_warning(true)
                    && !news.is_new_clock_warning(false)
            );
            assert_eq!(news.several_servers(), std::mem::take(&mut first));
            assert!(news.distance(true) && !news.distance(true) && !news.distance(false));
            assert!(!news.ran_as("a") && !news.ran_as("a"));
            assert!(news.ran_as("b") && !news.ran_as("b") && news.ran_as("a"));
            assert!(
                news.is_new_quarantine("a")
                    && !news.is_new_quarantine("a")
                    && news.is_new_quarantine("b")
            );
        }
    }

    #[test]
    fn refused_releases_are_told_once_for_each_cause_and_not_without_end() {
        let news = WarningState::default();
        assert!(news.refused_release("MISCONF") && news.refused_release("NOPERM"));
        assert!(!news.refused_release("MISCONF") && !news.refused_release("NOPERM"));
        let codes = (0..1_000).map(|code| code.to_string());
        let told = codes.filter(|code| news.refused_release(code)).count();
        assert_eq!(told, MAX_REFUSED - 2);
    }

    fn take(name: &str, claim: LeaseKind, is_fenced: bool) -> Request {
        let mut request = Request::new(Op::Acquire, &lease_as(name, claim), 1_000);
        request.min_fence = is_fenced.then_some(0);
        request
    }

    #[test]
    fn foreign_value_is_news_once_until_what_met_it_is_granted() {
        let news = WarningState::default();
        let foreign = |request: &Request| news.foreign(request.lease.keys().first(), request);
        let plain = |name: &str| take(name, LeaseKind::Exclusive, false);
        for _ in 0..2 {
            assert!(foreign(&plain("a")) && foreign(&plain("b")));
            assert!(!foreign(&plain("a")) && !foreign(&plain("b")));
            news.not_foreign(&plain("a"));
            assert!(foreign(&plain("a")));
            for name in ["a", "b"] {
                news.not_foreign(&plain(name));
            }
        }
        let told = (0..2 * MAX_FOREIGN).filter(|n| foreign(&plain(&n.to_string())));
        assert_eq!(told.count(), MAX_FOREIGN);
    }

    #[test]
    fn foreign_value_in_the_way_of_some_requests_is_no_news_again_when_others_are_granted() {
        for (refused, granted) in [
            ((LeaseKind::Exclusive, true), (LeaseKind::Exclusive, false)),
            ((LeaseKind::Read, false), (LeaseKind::Write, false)),
            ((LeaseKind::Write, true), (LeaseKind::Write, false)),
        ] {
            let news = WarningState::default();
            let refused = take("a", refused.0, refused.1);
            let granted = take("a", granted.0, granted.1);
            let key = refused.lease.keys().first();
            assert!(news.foreign(key, &refused));
            for _ in 0..2 {
                news.not_foreign(&granted);
                assert!(!news.foreign(key, &refused), "{refused:?}");
            }
            news.not_foreign(&refused);
            assert!(news.foreign(key, &refused));
        }
    }

    #[test]
    fn an_outage_over_all_connections_of_a_node_is_news_once() {
        let news = WarningState::default();
        assert!(news.rose(false) && !news.rose(false));
        assert!(news.fell() && !news.fell());
        assert!(!news.rose(true) && news.rose(true));
        assert!(news.fell() && news.rose(true));
    }

    #[test]
    fn each_right_is_told_by_itself() {
        let verbs = [
            Op::Acquire,
            Op::Extend,
            Op::Restore,
            Op::Downgrade,
            Op::RaiseFence,
            Op::WakeListener,
            Op::Release,
        ];
        let permit = LeaseKind::Permit { index: 1, total: 2 };
        let claims = [
            LeaseKind::Exclusive,
            LeaseKind::Read,
            LeaseKind::Write,
            LeaseKind::GateEntry,
            permit,
        ];
        let serve = |verb| claims.map(|claim| Permission::Run(verb, claim));
        let mut rights: Vec<Permission> = verbs.into_iter().flat_map(serve).collect();
        rights.extend([Permission::Connect, Permission::Kill]);
        let news = WarningState::default();
        assert!(rights.iter().all(|right| news.is_newly_denied(*right)));
        for right in rights {
            assert!(!news.is_newly_denied(right));
            news.clear_denied(right);
            assert!(news.is_newly_denied(right));
        }
    }
}
