//! Workers over fake nodes.

use std::sync::Arc;

use crate::protocol::request::{Op, Request};
use crate::sync::channel;
use crate::tests::fake_node::node;
use crate::tests::fake_node::node::FakeNode;
use crate::tests::fixtures::lease;
use crate::time::clock;
use crate::transport::connection::NodeConnection;
use crate::transport::job::Job;
use crate::transport::registry::NodeRegistry;
use crate::transport::worker::Worker;

#[test]
fn idle_worker_with_a_reply_due_sends_no_ping() {
    let fake = FakeNode::new("a");
    let config = fake.node_config(&node::settings(|it| it));
    let (_connection, parts) = NodeConnection::new(0, &config, &Arc::new(NodeRegistry::of(1)));
    let (first, _) = channel::unbounded();
    let (alive, _) = channel::unbounded();
    let pipeline = Arc::clone(&parts.pipeline);
    let mut worker = Worker::new(parts, &config, first, alive);
    let mut locked = pipeline.lock();
    let (session, _) = match config.connector.connect(None) {
        Ok(connected) => connected,
        Err(cause) => panic!("{cause}"),
    };
    locked.attach_session(session, "run");
    // A caller sent directly while the worker was asleep.
    locked.polls_paused = true;
    let job = Job {
        request: Arc::new(Request::new(Op::Acquire, &lease("x"), 30_000)),
        reply: None,
    };
    assert!(locked.send_direct(job, b"", clock::now()).is_ok());
    assert_eq!(worker.idle_tick(&mut locked), Ok(()));
    assert!(!locked.poll_replies() && !locked.has_in_flight() && fake.acquire_tokens().len() == 1);
    assert_eq!(
        worker.idle_tick(&mut locked),
        Ok(()),
        "no reply is due any more"
    );
}
