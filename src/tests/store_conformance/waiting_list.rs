//! Compares the scripts of the waiting list on a real server with the node model: the replies, and
//! the messages that each process receives, in their order. A real `redis-server` is started.

use std::sync::Arc;

use proptest::prelude::*;

use crate::protocol::key::{Channel, Key};
use crate::protocol::kind::{LeaseKind, LockKind};
use crate::protocol::lease::Lease;
use crate::protocol::request::{Op, Publish, Request};
use crate::protocol::token::Token;
use crate::tests::fake_node::messages::Messages;
use crate::tests::fake_node::store::NodeStore;
use crate::tests::store_conformance::setup::{ComparedServer, with_messages};
use crate::time::clock;
use crate::transport::node::traits::Event;

/// The processes that wait. All but the last listen.
const PROCESSES: [&str; 4] = [
    "p:listener:0",
    "p:listener:1",
    "p:listener:2",
    "p:listener:3",
];

/// The lock has a name of its own hash tag, or is wrapped in one.
const NAMES: [&str; 2] = ["lock", "{of}lock"];

const TTL: u64 = 1_000_000;

#[derive(Clone, Debug)]
enum Step {
    Acquire,
    /// Of a holder that may have waited.
    Release {
        publish: Publish,
        was_subscribed: bool,
    },
    /// A process, for how many seconds it has waited, and whether it checks the lock.
    TakePlace(usize, u64, bool),
    LeavePlace(usize),
    ListIsLost,
}

fn step() -> impl Strategy<Value = Step> {
    let process = || 0..PROCESSES.len();
    let publish = prop_oneof![
        1 => Just(Publish::Never),
        2 => Just(Publish::IfDeleted),
        3 => Just(Publish::Always),
    ];
    prop_oneof![
        3 => Just(Step::Acquire),
        3 => (publish, any::<bool>())
            .prop_map(|(publish, was_subscribed)| Step::Release { publish, was_subscribed }),
        6 => (process(), 0..9_u64, any::<bool>())
            .prop_map(|(process, waited, checks)| Step::TakePlace(process, waited, checks)),
        2 => process().prop_map(Step::LeavePlace),
        1 => Just(Step::ListIsLost),
    ]
}

/// A server, its model and the connections of the processes that listen.
struct Comparison<'a> {
    server: &'a mut ComparedServer,
    model: NodeStore,
    key: Key,
    /// Returns the messages since the last call.
    received: &'a dyn Fn() -> Vec<Event>,
    holder: Option<Arc<Lease>>,
}

impl Comparison<'_> {
    fn play(&mut self, step: &Step) {
        let place = |process: usize| {
            let token = Token::existing(PROCESSES[process]);
            Arc::new(Lease::new(self.key.clone(), token, LeaseKind::Exclusive))
        };
        let request = match *step {
            Step::Acquire => {
                let token = Token::fresh(None).unwrap();
                let lease = Lease::new(self.key.clone(), token, LeaseKind::Exclusive);
                let lease = Arc::new(lease);
                if self.holder.is_none() {
                    self.holder = Some(Arc::clone(&lease));
                }
                Request::new(Op::Acquire, &lease, TTL)
            }
            Step::Release {
                publish,
                was_subscribed,
            } => {
                // Without a holder, the release of a lock that this node does not have.
                let lease = self.holder.take().unwrap_or_else(|| place(0));
                if was_subscribed {
                    lease.set_was_subscribed();
                }
                let mut request = Request::new(Op::Release, &lease, 0);
                request.publish = publish;
                request
            }
            Step::TakePlace(process, waited, checks) => {
                let mut request = Request::new(Op::TakePlace, &place(process), 1_000 * waited);
                if checks {
                    request.publish = Publish::Always;
                }
                request
            }
            Step::LeavePlace(process) => Request::new(Op::LeavePlace, &place(process), 0),
            Step::ListIsLost => {
                let list = self.key.derived(":waiting").to_string();
                self.server.run(&["DEL", &list]);
                self.model
                    .waiting_list(&self.key, clock::now())
                    .places
                    .clear();
                return;
            }
        };
        let reply = self.server.serve(&request);
        let listens = |channel: &str| {
            let is_lock = channel == self.key.as_str();
            u64::from(is_lock || PROCESSES[..3].contains(&channel))
        };
        let (modelled, messages) = self.model.run(&request, clock::now(), &listens);
        if !matches!(step, Step::Acquire) {
            assert_eq!(reply, modelled, "{step:?}");
        }
        let listened = |(channel, _): &(Channel, Event)| listens(channel) > 0;
        let messages: Messages = messages.into_iter().filter(listened).collect();
        let expected: Vec<Event> = messages.into_iter().map(|(_, event)| event).collect();
        assert_eq!((self.received)(), expected, "{step:?}");
    }
}

#[test]
fn waiting_list_of_the_model_agrees_with_a_server() {
    let keys = NAMES.map(|name| Key::parse("p:", name, LockKind::Exclusive).unwrap());
    let own = PROCESSES[..3].iter().map(|name| Channel::from(*name));
    let channels: Vec<Channel> = own.chain(keys.iter().map(Key::channel)).collect();
    with_messages(&channels, |server, received| {
        let sequences = (0..NAMES.len(), prop::collection::vec(step(), 1..40));
        let sequences = sequences.prop_map(|(name, steps)| {
            let each = steps.into_iter();
            each.map(|step| (name, step)).collect::<Vec<_>>()
        });
        server.play_random(64, sequences, |server, steps| {
            let Some((name, _)) = steps.first() else {
                return;
            };
            let mut comparison = Comparison {
                server,
                model: NodeStore::default(),
                key: keys[*name].clone(),
                received,
                holder: None,
            };
            for (_, step) in steps {
                comparison.play(step);
            }
        });
    });
}
