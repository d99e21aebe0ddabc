//! Locks that pass from one guard to another without being free in between.

use std::time::Duration;

use redguard::{
    Config, Error, LocalLocker, LockOptions, LockToken, Locker, RedisLocker, RetryPolicy,
    WatchOutcome,
};

use crate::support::fixtures::{BRIEF, LIMIT, TTL, config, shared, with_short_timeouts};
use crate::support::{eventually, raw, servers, unique_key};

fn locker(adjust: impl FnOnce(Config) -> Config) -> RedisLocker {
    RedisLocker::connect(adjust(config(shared()))).unwrap()
}

/// Converts the token as if another process received it.
fn sent(token: &LockToken) -> LockToken {
    token.to_string().parse().unwrap()
}

#[test]
fn child_adopts_the_lock_of_its_parent() {
    let (parent, child, other) = (
        locker(|c| c),
        locker(|c| c.owner_label("child")),
        locker(|c| c),
    );
    let key = unique_key("carried on");
    let guard = parent.lock(&key, TTL).unwrap();
    let watch = guard.watch();
    let token = guard.into_token().unwrap();
    assert_eq!(watch.wait_ended(LIMIT), WatchOutcome::Released);
    assert!(token.keys().eq([key.as_str()]));
    assert!(
        other.try_lock(&key, TTL).unwrap().is_none(),
        "the lock stays held"
    );
    assert!(
        parent.try_lock(&key, TTL).unwrap().is_none(),
        "for its parent, too"
    );

    let adopted = child.adopt(&sent(&token), TTL).unwrap();
    assert!(adopted.is_held() && adopted.remaining() <= TTL);
    assert_eq!(adopted.fencing_token(), None);
    assert!(other.try_lock(&key, TTL).unwrap().is_none());
    let owner = || other.holder(&key).unwrap().unwrap().owner_label;
    eventually(LIMIT, "the child holds the lock", || {
        owner().as_deref() == Some("child")
    });
    adopted.extend(2 * TTL).unwrap();
    adopted.release().unwrap();
    other.lock(&key, TTL).unwrap().release().unwrap();
}

#[test]
fn a_token_is_good_for_one_adoption() {
    let (parent, child) = (locker(|c| c), locker(|c| c));
    let key = unique_key("once");
    let token = parent.lock(&key, TTL).unwrap().into_token().unwrap();
    let adopted = child.adopt(&token, TTL).unwrap();
    assert!(matches!(
        parent.adopt(&token, TTL).unwrap_err(),
        Error::LockLost { .. }
    ));
    assert!(adopted.check().is_ok());
    adopted.release().unwrap();
    assert!(
        matches!(
            parent.adopt(&token, TTL).unwrap_err(),
            Error::LockLost { .. }
        ),
        "it is released"
    );
}

#[test]
fn concurrent_adoptions_have_at_most_one_winner() {
    let lockers: Vec<RedisLocker> = (0..4).map(|_| locker(|c| c)).collect();
    for _ in 0..20 {
        let key = unique_key("race");
        let token = lockers[0].lock(&key, TTL).unwrap().into_token().unwrap();
        let won = std::thread::scope(|scope| {
            let token = &token;
            let adopt = |locker: &'_ RedisLocker| {
                let locker = locker.clone();
                scope.spawn(move || locker.adopt(token, TTL))
            };
            let races: Vec<_> = lockers.iter().map(adopt).collect();
            let ended = races.into_iter().map(|race| race.join().unwrap());
            let won = ended.filter_map(|adopted| match adopted {
                Ok(guard) => Some(guard),
                Err(error) => {
                    assert!(matches!(error, Error::LockLost { .. }));
                    None
                }
            });
            won.collect::<Vec<_>>()
        });
        assert!(won.len() <= 1);
        assert!(won.iter().all(|guard| guard.extend(TTL).is_ok()));
        drop(won);
        // Whatever the result, no key is left behind.
        lockers[1].lock(&key, TTL).unwrap().release().unwrap();
    }
}

#[test]
fn foreign_or_expired_lock_is_not_adopted() {
    let (parent, child) = (locker(|c| c), locker(|c| c));
    let key = unique_key("foreign");
    let token = parent.lock(&key, BRIEF).unwrap().into_token().unwrap();
    let elsewhere = locker(|c| c.key_prefix("elsewhere:"));
    assert!(matches!(
        elsewhere.adopt(&token, TTL).unwrap_err(),
        Error::LockLost { .. }
    ));
    let free = || child.try_lock(&key, TTL).unwrap();
    let mut next = None;
    eventually(LIMIT, "it expires", || {
        next = free();
        next.is_some()
    });
    let busy = child.adopt(&token, TTL).unwrap_err();
    assert!(busy.is_contended(), "{busy}");
    assert!(matches!(
        parent.adopt(&token, TTL).unwrap_err(),
        Error::LockLost { .. }
    ));
    assert!(next.unwrap().check().is_ok(), "and affects no other holder");
}

#[test]
fn detach_ends_renewal_and_adoption_can_start_it() {
    let (parent, child) = (locker(|c| c), locker(|c| c));
    let key = unique_key("renewed");
    let options = LockOptions::new(BRIEF).auto_renew(true);
    let guard = parent.acquire(&key, &options).unwrap();
    let token = guard.into_token().unwrap();
    let adopted = child.adopt_with(&token, &options).unwrap();
    let before = parent.nodes().stats().renewals;
    eventually(LIMIT, "the child renews it", || {
        child.nodes().stats().renewals >= 2
    });
    assert_eq!(parent.nodes().stats().renewals, before);
    adopted.release().unwrap();
}

#[test]
fn fencing_tokens_increase_over_adoptions() {
    let (parent, child) = (locker(|c| c), locker(|c| c));
    let key = unique_key("fenced");
    let fenced = LockOptions::new(TTL).fencing(true);
    let mut last = 0;
    let mut guard = parent.acquire(&key, &fenced).unwrap();
    for turn in 0..6 {
        let number = guard.fencing_token().unwrap();
        assert!(number > last, "{number} after {last}");
        last = number;
        let token = guard.into_token().unwrap();
        let next = if turn % 2 == 0 { &child } else { &parent };
        guard = next.adopt(&token, TTL).unwrap();
    }
    guard.release().unwrap();
    // Adoption can add a fencing token to a lock that has none.
    let token = parent.lock(&key, TTL).unwrap().into_token().unwrap();
    let adopted = child.adopt_with(&token, &fenced).unwrap();
    assert!(adopted.fencing_token().unwrap() > last);
}

#[test]
fn several_keys_are_adopted_as_one_lock() {
    let (parent, child) = (locker(|c| c), locker(|c| c));
    let names = [unique_key("b"), unique_key("a"), unique_key("c")];
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let options = LockOptions::new(TTL).fencing(true);
    let guard = parent.acquire_all(&names, &options).unwrap();
    let number = guard.fencing_token().unwrap();
    let token = sent(&guard.into_token().unwrap());
    assert_eq!(token.keys().len(), 3);
    let adopted = child.adopt(&token, TTL).unwrap();
    assert!(adopted.fencing_token().unwrap() > number);
    for name in &names {
        assert!(parent.try_lock(name, TTL).unwrap().is_none());
    }
    adopted.release().unwrap();
    parent
        .acquire_all(&names, &options)
        .unwrap()
        .release()
        .unwrap();
}

#[test]
fn lock_of_several_keys_with_a_foreign_key_is_not_adopted() {
    let (parent, child) = (locker(|c| c), locker(|c| c));
    let (one, two) = (unique_key("one"), unique_key("two"));
    let guard = parent
        .acquire_all(&[&one, &two], &LockOptions::new(TTL))
        .unwrap();
    let token = guard.into_token().unwrap();
    assert!(child.force_release(&two).unwrap());
    let taken = child.lock(&two, TTL).unwrap();
    assert!(matches!(
        parent.adopt(&token, TTL).unwrap_err(),
        Error::LockLost { .. }
    ));
    assert!(taken.check().is_ok() && taken.extend(TTL).is_ok());
    let before: Vec<Option<String>> = shared().iter().map(|node| value(node, &one)).collect();
    assert!(
        before.iter().flatten().count() > 0,
        "what is not adopted is left to its TTL"
    );
}

fn value(node: &crate::support::servers::Server, key: &str) -> Option<String> {
    redis::cmd("GET")
        .arg(format!("redguard:{key}"))
        .query(&mut raw(node))
        .unwrap()
}

#[test]
fn lost_or_local_lock_cannot_be_detached() {
    let parent = locker(|c| c);
    let key = unique_key("lost");
    let guard = parent.lock(&key, TTL).unwrap();
    parent.force_release(&key).unwrap();
    assert!(matches!(guard.extend(TTL), Err(Error::LockLost { .. })));
    assert!(matches!(
        guard.into_token().unwrap_err(),
        Error::LockLost { .. }
    ));

    let local = LocalLocker::new();
    let guard = local.lock(&key, TTL).unwrap();
    assert_eq!(guard.into_token().unwrap_err(), Error::NotOnNodes);
    let free = local.try_lock(&key, TTL).unwrap();
    assert!(free.is_some(), "it was released");
}

#[test]
fn failed_adoption_reports_its_cause() {
    let nodes = servers(3);
    let policy = RetryPolicy {
        max_outage: Duration::from_millis(1),
        ..with_short_timeouts()
    };
    let connect = || RedisLocker::connect(config(&nodes).retry(policy.clone())).unwrap();
    let (parent, child) = (connect(), connect());
    let key = unique_key("outage");
    let token = parent.lock(&key, TTL).unwrap().into_token().unwrap();
    assert!(matches!(
        child.adopt(&token, Duration::ZERO),
        Err(Error::InvalidTtl { .. })
    ));
    let busy = child.adopt(&token, TTL).unwrap();
    assert!(
        child.adopt(&token, TTL).unwrap_err().is_contended(),
        "a thread of ours has it"
    );
    let token = busy.into_token().unwrap();
    drop(nodes);
    assert!(child.adopt(&token, TTL).unwrap_err().is_unavailable());
    _ = child.nodes().shutdown(Duration::ZERO);
    assert_eq!(child.adopt(&token, TTL).unwrap_err(), Error::Closed);
    assert!(matches!(
        "lock".parse::<LockToken>(),
        Err(Error::InvalidLockToken)
    ));
}
