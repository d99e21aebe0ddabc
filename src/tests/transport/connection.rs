//! Connections over fake nodes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::protocol::request::{Op, Request};
use crate::tests::fake_node::node;
use crate::tests::fake_node::node::FakeNode;
use crate::tests::fixtures::lease;
use crate::time::clock;
use crate::transport::connection::NodeConnection;
use crate::transport::job::Job;
use crate::transport::messages::Submitted;
use crate::transport::registry::NodeRegistry;

#[test]
fn direct_send_does_not_pass_queued_requests() {
    let fake = FakeNode::new("a");
    let post = fake.node_config(&node::settings(|config| config));
    let (lane, end) = NodeConnection::new(0, &post, &Arc::new(NodeRegistry::of(1)));
    let (queue, desk) = (end.queue, end.pipeline);
    let (session, _) = post.connector.connect(None).unwrap();
    desk.lock().attach_session(session, "run");
    let take = || Job {
        request: Request::new(Op::Acquire, &lease("x"), 30_000),
        reply: None,
    };
    let now = clock::now();
    let start = || lane.send_or_submit(take(), b"", false, now);
    assert!(start().is_err(), "it is not up");
    desk.lock().status.up.store(true, Ordering::Release);
    assert!(matches!(
        start(),
        Ok(Submitted::Sent { wake_worker: false })
    ));
    let seat = desk.lock();
    assert!(
        matches!(start(), Ok(Submitted::Queued)),
        "somebody is there"
    );
    drop(seat);
    assert!(
        matches!(start(), Ok(Submitted::Queued)),
        "that one is before"
    );
    // The thread has taken both out, but not seen to them yet.
    assert_eq!(queue.try_iter().count(), 2);
    assert!(matches!(start(), Ok(Submitted::Queued)));
    desk.lock().status.queue_len.store(0, Ordering::SeqCst);
    assert!(matches!(start(), Ok(Submitted::Sent { .. })));
}
