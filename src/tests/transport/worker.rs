//! Workers over fake nodes.

use std::sync::Arc;

use crate::protocol::lease::tests::lease;
use crate::protocol::request::{Request, Verb};
use crate::tests::fake_node::node;
use crate::tests::fake_node::node::Fake;
use crate::time::clock;
use crate::transport::connection::Lane;
use crate::transport::job::Job;
use crate::transport::registry::Census;
use crate::transport::worker::Worker;

#[test]
fn a_sign_of_life_is_not_asked_for_while_an_answer_is_to_come() {
    let fake = Fake::new("a");
    let post = fake.post(&node::settings(|config| config));
    let (_lane, queue, desk) = Lane::new(0, &post, &Arc::new(Census::of(1)));
    let (first, _) = crossbeam_channel::unbounded();
    let (alive, _) = crossbeam_channel::bounded(0);
    let mut worker = Worker::new(0, &post, queue, Arc::clone(&desk), first, alive);
    let mut seat = desk.lock();
    let (session, _) = match post.connector.connect(None) {
        Ok(connected) => connected,
        Err(cause) => panic!("{cause}"),
    };
    seat.open(session, "run");
    // A caller has come while the thread dozed.
    seat.dozes = true;
    let job = Job {
        request: Request::new(Verb::Take, &lease("x"), 30_000),
        reply: None,
    };
    assert!(seat.begin(job, b"", clock::now()).is_ok());
    assert_eq!(worker.look_after(&mut seat), Ok(()));
    assert!(!seat.look() && !seat.is_open() && fake.takes().len() == 1);
    assert_eq!(worker.look_after(&mut seat), Ok(()), "now it is");
}
