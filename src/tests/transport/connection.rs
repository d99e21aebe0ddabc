//! Node connections over fake nodes: direct sends and the queue.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::protocol::node_set::NodeSet;
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
    let config = fake.node_config(&node::settings(|it| it));
    let (connection, parts) = NodeConnection::new(0, &config, &Arc::new(NodeRegistry::of(1)));
    let (queue, pipeline) = (parts.queue, parts.pipeline);
    let (session, _) = config.connector.connect(None).unwrap();
    pipeline.lock().attach_session(session, "run");
    let acquire_job = || Job {
        request: Arc::new(Request::new(Op::Acquire, &lease("x"), 30_000)),
        reply: None,
    };
    let now = clock::now();
    let submit = || connection.send(0, acquire_job(), Some(b""), now);
    assert!(submit().is_err(), "the connection is down");
    pipeline.lock().status.up.store(true, Ordering::Release);
    assert!(matches!(
        submit(),
        Ok(Submitted::Sent { wake_worker: false })
    ));
    let locked = pipeline.lock();
    assert!(
        matches!(submit(), Ok(Submitted::Queued)),
        "the pipeline is locked"
    );
    drop(locked);
    assert!(
        matches!(submit(), Ok(Submitted::Queued)),
        "a queued job comes first"
    );
    // The worker has removed both jobs from the queue, but has not served them.
    assert!(queue.try_recv().is_ok() && queue.try_recv().is_ok() && queue.try_recv().is_err());
    assert!(matches!(submit(), Ok(Submitted::Queued)));
    pipeline.lock().status.queue_len.store(0, Ordering::SeqCst);
    assert!(matches!(submit(), Ok(Submitted::Sent { .. })));
}

#[test]
fn suspect_connection_queues_only_releases_of_leases_that_the_node_was_asked_for() {
    let fake = FakeNode::new("a");
    let config = fake.node_config(&node::settings(|it| it));
    let (connection, parts) = NodeConnection::new(0, &config, &Arc::new(NodeRegistry::of(1)));
    let (lease, now) = (lease("x"), clock::now());
    let queued_after = |op: Op| {
        let job = Job {
            request: Arc::new(Request::new(op, &lease, 30_000)),
            reply: None,
        };
        let sent = connection.send(0, job, Some(b""), now);
        assert!(sent.is_err(), "the connection is down");
        std::iter::from_fn(|| parts.queue.try_recv().ok()).count()
    };
    assert_eq!(queued_after(Op::Acquire), 0);
    assert_eq!(lease.contacted().len(), 0, "nothing was sent");
    assert_eq!(queued_after(Op::Release), 0);
    lease.record_contacted(NodeSet::single(0));
    assert_eq!(queued_after(Op::Acquire), 0);
    assert_eq!(queued_after(Op::Release), 1);
}
