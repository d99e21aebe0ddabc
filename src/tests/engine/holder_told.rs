//! Contention errors over fake nodes: which lock is held, by whom, and what that costs.

use std::sync::Arc;
use std::time::Duration;

use crate::api::local_locker::LocalLocker;
use crate::api::locker::Locker;
use crate::api::options::LockOptions;
use crate::api::redis_locker::RedisLocker;
use crate::api::rw_locker::{RedisRwLocker, RwLocker};
use crate::api::semaphore::{RedisSemaphore, Semaphore};
use crate::error::error::Error;
use crate::tests::engine::setup::{TTL, slow_retries};
use crate::tests::fake_node::node::{FakeNode, connected_locker};

const BRIEF: Duration = Duration::from_millis(30);

fn labelled(fakes: &[Arc<FakeNode>], label: &str) -> RedisLocker {
    connected_locker(fakes, |config| config.owner_label(label)).unwrap()
}

fn brief() -> LockOptions {
    LockOptions::new(TTL).wait_for(BRIEF)
}

/// Returns the key and the owner label that the error tells.
fn told<G>(result: Result<G, Error>) -> (String, Option<String>) {
    let Err(error) = result else {
        panic!("not held")
    };
    assert!(error.is_contended(), "{error}");
    let lock = error.contended_lock().unwrap();
    (lock.key.clone(), lock.owner_label.clone())
}

fn by(key: &str, label: &str) -> (String, Option<String>) {
    (key.to_owned(), Some(label.to_owned()))
}

#[test]
fn error_names_the_key_and_the_holder_of_another_process() {
    let fakes = FakeNode::fakes(3);
    let (holder, rival) = (labelled(&fakes, "web-7:8080"), labelled(&fakes, "rival"));
    let guard = holder.lock("x", TTL).unwrap();
    let at_once = LockOptions::new(TTL).wait_for(Duration::ZERO);
    for options in [&at_once, &brief()] {
        assert_eq!(told(rival.acquire("x", options)), by("x", "web-7:8080"));
        let several = rival.acquire_all(&["a", "x"], options);
        assert_eq!(told(several), by("x", "web-7:8080"));
        let fenced = options.clone().fencing(true);
        assert_eq!(told(rival.acquire("x", &fenced)), by("x", "web-7:8080"));
    }
    drop(guard);
    // A label of the options replaces that of the configuration.
    let own = LockOptions::new(TTL).owner_label("job 12");
    let _guard = holder.acquire("x", &own).unwrap();
    assert_eq!(told(rival.acquire("x", &at_once)), by("x", "job 12"));
    assert!(matches!(
        rival.acquire("y", &own.owner_label("é")),
        Err(Error::InvalidConfig(_))
    ));
}

#[test]
fn error_names_the_holder_in_the_same_process() {
    let fakes = FakeNode::fakes(3);
    let locker = labelled(&fakes, "process");
    let local = LocalLocker::new();
    let lockers: [(&dyn Locker, Option<&str>); 2] = [(&locker, Some("process")), (&local, None)];
    for (locker, default) in lockers {
        let thread = LockOptions::new(TTL).owner_label("thread 3");
        let guards = locker.acquire("b", &thread).unwrap();
        assert_eq!(told(locker.acquire("b", &brief())), by("b", "thread 3"));
        let several = locker.acquire_all(&["a", "b"], &brief());
        assert_eq!(told(several), by("b", "thread 3"));
        drop(guards);
        let _guard = locker.lock("b", TTL).unwrap();
        let expected = ("b".to_owned(), default.map(str::to_owned));
        assert_eq!(told(locker.acquire("b", &brief())), expected);
        // Its release keeps it for its minimum time.
        let kept = LockOptions::new(TTL).min_hold(TTL).owner_label("job 7");
        drop(locker.acquire("c", &kept).unwrap());
        assert_eq!(told(locker.acquire("c", &brief())), by("c", "job 7"));
    }
}

#[test]
fn error_of_a_reader_or_writer_names_the_writer() {
    let fakes = FakeNode::fakes(3);
    let [holder, rival] = ["holder", "rival"].map(|label| labelled(&fakes, label));
    let [holder, rival] = [&holder, &rival].map(|locker| RedisRwLocker::new(locker.nodes()));
    let writer = holder.write("x", TTL).unwrap();
    assert_eq!(told(rival.acquire_read("x", &brief())), by("x", "holder"));
    assert_eq!(told(rival.acquire_write("x", &brief())), by("x", "holder"));
    drop(writer);
    let _reader = holder.read("x", TTL).unwrap();
    let refused = told(rival.acquire_write("x", &brief()));
    assert_eq!(refused, ("x".to_owned(), None), "one of many readers");
}

#[test]
fn error_of_a_semaphore_tells_the_number_of_permits() {
    let fakes = FakeNode::fakes(3);
    let [holder, rival] = ["holder", "rival"].map(|label| {
        let locker = labelled(&fakes, label);
        RedisSemaphore::new(locker.nodes(), "exports", 2).unwrap()
    });
    let options = LockOptions::new(TTL);
    let _permits = [
        holder.acquire(&options).unwrap(),
        holder.acquire(&options).unwrap(),
    ];
    for semaphore in [&holder, &rival] {
        let text = semaphore.acquire(&brief()).unwrap_err().to_string();
        assert!(
            text.starts_with("all 2 permits of \"exports\" are held"),
            "{text}"
        );
    }
}

#[test]
fn holder_without_a_label_is_another() {
    let fakes = FakeNode::fakes(1);
    let holder = connected_locker(&fakes, |config| config.no_owner_label()).unwrap();
    let rival = labelled(&fakes, "rival");
    let _guard = holder.lock("x", TTL).unwrap();
    let token = fakes[0].token("x").unwrap();
    let error = rival.acquire("x", &brief()).unwrap_err();
    assert!(error.contended_lock().unwrap().owner_label.is_none());
    let text = format!("{error} {error:?}");
    assert!(
        text.starts_with("\"x\" is held by another, free in 30 s at the latest"),
        "{text}"
    );
    assert!(!text.contains(&token[..8]), "{text}");
}

#[test]
fn label_by_default_is_host_and_process() {
    let fakes = FakeNode::fakes(1);
    let locker = connected_locker(&fakes, |config| config).unwrap();
    let _guard = locker.lock("x", TTL).unwrap();
    let (label, _) = {
        let token = fakes[0].token("x").unwrap();
        let (label, rest) = token.rsplit_once(':').unwrap();
        (label.to_owned(), rest.to_owned())
    };
    assert!(
        label.ends_with(&format!("/{}", std::process::id())),
        "{label}"
    );
}

#[test]
fn only_an_attempt_that_may_be_the_last_of_a_call_with_an_error_asks_for_the_label() {
    let fakes = FakeNode::fakes(1);
    let attempt = Duration::from_secs(1);
    let holder = labelled(&fakes, "holder");
    let rival = connected_locker(&fakes, |config| slow_retries(config).node_timeout(attempt));
    let rival = rival.unwrap();
    let asked = || fakes[0].labels_asked();
    let guard = holder.lock("x", TTL).unwrap();
    assert!(rival.try_lock("x", TTL).unwrap().is_none());
    assert!(rival.try_acquire("x", &brief()).unwrap().is_none());
    assert_eq!(asked(), 0);
    // Two attempts are made at once, long before the end of the wait.
    let long = LockOptions::new(TTL).wait_for(attempt + attempt / 2);
    assert_eq!(told(rival.acquire("x", &long)), by("x", "holder"));
    assert_eq!(asked(), 1);
    drop(guard);
    drop(rival.lock("x", TTL).unwrap());
    assert_eq!(asked(), 1);
}
