//! Connections over fake nodes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::protocol::lease::tests::lease;
use crate::protocol::request::{Request, Verb};
use crate::tests::fake_node::node;
use crate::tests::fake_node::node::Fake;
use crate::time::clock;
use crate::transport::connection::Lane;
use crate::transport::job::Job;
use crate::transport::messages::Start;
use crate::transport::registry::Census;

#[test]
fn nobody_passes_what_is_queued() {
    let fake = Fake::new("a");
    let post = fake.post(&node::settings(|config| config));
    let (lane, queue, desk) = Lane::new(0, &post, &Arc::new(Census::of(1)));
    let (session, _) = post.connector.connect(None).unwrap();
    desk.lock().open(session, "run");
    let take = || Job {
        request: Request::new(Verb::Take, &lease("x"), 30_000),
        reply: None,
    };
    let now = clock::now();
    let start = || lane.start_job(take(), b"", false, now);
    assert!(start().is_err(), "it is not up");
    desk.lock().health.up.store(true, Ordering::Release);
    assert!(matches!(start(), Ok(Start::Begun { wake: false })));
    let seat = desk.lock();
    assert!(matches!(start(), Ok(Start::Queued)), "somebody is there");
    drop(seat);
    assert!(matches!(start(), Ok(Start::Queued)), "that one is before");
    // The thread has taken both out, but not seen to them yet.
    assert_eq!(queue.try_iter().count(), 2);
    assert!(matches!(start(), Ok(Start::Queued)));
    desk.lock().health.queued.store(0, Ordering::SeqCst);
    assert!(matches!(start(), Ok(Start::Begun { .. })));
}
