//! Workers over fake nodes.

use std::sync::Arc;

use crate::protocol::request::{Op, Request};
use crate::tests::fake_node::node;
use crate::tests::fake_node::node::FakeNode;
use crate::tests::fixtures::lease;
use crate::time::clock;
use crate::transport::connection::NodeConnection;
use crate::transport::job::Job;
use crate::transport::registry::NodeRegistry;
use crate::transport::worker::Worker;

#[test]
fn a_sign_of_life_is_not_asked_for_while_an_answer_is_to_come() {
    let fake = FakeNode::new("a");
    let post = fake.node_config(&node::settings(|config| config));
    let (_lane, end) = NodeConnection::new(0, &post, &Arc::new(NodeRegistry::of(1)));
    let (first, _) = crossbeam_channel::unbounded();
    let (alive, _) = crossbeam_channel::bounded(0);
    let desk = Arc::clone(&end.pipeline);
    let mut worker = Worker::new(end, &post, first, alive);
    let mut seat = desk.lock();
    let (session, _) = match post.connector.connect(None) {
        Ok(connected) => connected,
        Err(cause) => panic!("{cause}"),
    };
    seat.attach_session(session, "run");
    // A caller has come while the thread dozed.
    seat.worker_asleep = true;
    let job = Job {
        request: Request::new(Op::Acquire, &lease("x"), 30_000),
        reply: None,
    };
    assert!(seat.send_direct(job, b"", clock::now()).is_ok());
    assert_eq!(worker.idle_tick(&mut seat), Ok(()));
    assert!(!seat.poll_replies() && !seat.has_in_flight() && fake.acquire_tokens().len() == 1);
    assert_eq!(worker.idle_tick(&mut seat), Ok(()), "now it is");
}
