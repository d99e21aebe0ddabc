//! What a history is like: everything that can be turned, drawn from its seed.

use std::time::Duration;

use fastrand::Rng;

use crate::protocol::kind::LockKind;
use crate::protocol::retry::RetryPolicy;
use crate::protocol::ttl::Ttl;
use crate::tests::simulation::clock::Clock;

/// What is planted, so that the checks can be seen to find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PlantedBug {
    /// Clocks run apart by ten times what is allowed for.
    Drift,
    /// The clock of a node is set forward by more than a TTL.
    Step,
    /// Of the nodes that are reachable a quorum is enough.
    QuorumOfReachable,
    /// A lease is counted from the answers on.
    ElapsedNotCounted,
    /// The greatest number is the token, whoever has been raised to it.
    NoSecondFenceRound,
    /// A majority of the nodes loses its data, and votes at once when it is back.
    MajorityForgets,
    /// The same of one node.
    OneForgets,
    /// Most nodes lose their data and stand back for a TTL, but count on from clocks that are not in step.
    FenceForgotten,
    /// What an attempt that failed was granted is left where it is.
    NoUndo,
    /// Of a lock that was handed on the former token is left where it was not swapped.
    FormerForgotten,
    /// A connection that broke is not killed at the next connect.
    NoKill,
    /// Nobody thinks of an extension without an answer that runs when the node goes on.
    LateExtensionForgotten,
    /// Broken connections are not killed, and all attempts of a client go by one token.
    OneToken,
    /// The next attempt counts the grants of the one before it.
    GrantsOfFormerToken,
    /// A release that is sent again deletes the lock by its name, whoever holds it.
    ReleaseByName,
    /// That nothing is there counts as the doing of a release that was sent before, though the node has restarted meanwhile.
    RestartIsOurDoing,
}

/// What is done so that a node which has lost its data does not help to give a lock away twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Care {
    /// It is kept down for the longest TTL.
    KeptDown,
    /// The restart quarantine.
    Quarantine,
    None,
}

/// Of so many messages a knob's number is the part that it concerns.
const OF: u32 = 10_000;

/// How often something happens to a message.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Probability(u32);

impl Probability {
    pub(crate) fn strike(self, rng: &mut Rng) -> bool {
        self.0 > 0 && rng.u32(..OF) < self.0
    }
}

/// One history's settings. Times are in µs where they have no type.
#[derive(Debug)]
pub(crate) struct SimConfig {
    pub(crate) bug: Option<PlantedBug>,
    pub(crate) nodes: usize,
    pub(crate) clients: usize,
    pub(crate) family: LockKind,
    pub(crate) ttls: [Ttl; 2],
    pub(crate) min_validity: f64,
    pub(crate) node_timeout: Duration,
    pub(crate) refresh: Duration,
    pub(crate) retry: RetryPolicy,
    /// How often each client takes the lock at the most.
    pub(crate) acquires: u32,
    /// How long most messages take at the most.
    pub(crate) delay: u64,
    /// Messages that take up to half a TTL.
    pub(crate) slow: Probability,
    /// Messages into a black hole, and answers out of one.
    pub(crate) lost: Probability,
    /// Messages whose connection breaks under way, behind some of the requests or of the answers.
    pub(crate) cut: Probability,
    /// Of the messages whose connection breaks those that arrive all the same, up to a TTL later.
    pub(crate) late: Probability,
    /// Requests that are answered with an error, whether or not they were served.
    pub(crate) errs: Probability,
    /// Jobs that a lane takes up only after a while.
    pub(crate) hop: Probability,
    /// Attempts that ask one node before the others.
    pub(crate) one_first: Probability,
    /// Acquires that are cancelled, if they last.
    pub(crate) cancelled: Probability,
    /// How often these happen.
    pub(crate) pauses: usize,
    pub(crate) deaths: usize,
    pub(crate) hangs: usize,
    pub(crate) crashes: usize,
    pub(crate) forgets: usize,
    pub(crate) care: Care,
    pub(crate) partitions: usize,
    pub(crate) breaks: usize,
    pub(crate) steps: usize,
    /// The clocks of all nodes are set forward at once.
    pub(crate) step_together: bool,
    /// When all faults are over, and nobody begins anything any more.
    pub(crate) end: u64,
    pub(crate) client_clocks: Vec<Clock>,
    pub(crate) node_clocks: Vec<Clock>,
}

impl SimConfig {
    pub(crate) fn draw(rng: &mut Rng, bug: Option<PlantedBug>) -> SimConfig {
        let nodes = match bug {
            Some(
                PlantedBug::OneForgets | PlantedBug::QuorumOfReachable | PlantedBug::FenceForgotten,
            ) => 3,
            _ => one_of(rng, &[1, 3, 3, 3, 5]),
        };
        let clients = rng.usize(2..=4);
        let min_validity = one_of(rng, &[0.5, 0.5, 0.1]);
        let ttls = [0, 1].map(|_| {
            let ttl = Duration::from_millis(rng.u64(100..1_000));
            Ttl::parse(ttl, min_validity).expect("a good TTL")
        });
        let longest = longest(ttls);
        // Some histories are quiet, and most are not quiet in all respects.
        let busy = rng.u32(..8) > 0;
        let odds = |rng: &mut Rng, most: u32| match busy && rng.bool() {
            true => Probability(rng.u32(..=most)),
            false => Probability(0),
        };
        let count = |rng: &mut Rng, most: usize| match busy && rng.bool() {
            true => rng.usize(..=most),
            false => 0,
        };
        let initial = rng.u64(2_000..60_000);
        let retry = RetryPolicy {
            initial_delay: Duration::from_micros(initial),
            max_delay: Duration::from_micros(rng.u64(initial..200_000)),
            jitter: one_of(rng, &[1.0, 1.0, 0.0, 0.5]),
            ..RetryPolicy::default()
        };
        let mut knobs = SimConfig {
            bug,
            nodes,
            clients,
            family: one_of(rng, &[LockKind::Exclusive, LockKind::ReadWrite]),
            ttls,
            min_validity,
            node_timeout: Duration::from_micros(rng.u64(20_000..200_000)),
            refresh: Duration::from_micros(rng.u64(10_000..100_000)),
            retry,
            acquires: rng.u32(1..=3),
            delay: one_of(rng, &[200, 1_000, 5_000, 30_000]),
            slow: odds(rng, 2_000),
            lost: odds(rng, 800),
            cut: odds(rng, 800),
            late: odds(rng, OF),
            errs: odds(rng, 300),
            hop: odds(rng, 5_000),
            one_first: odds(rng, 4_000),
            cancelled: odds(rng, 3_000),
            pauses: count(rng, 3),
            deaths: count(rng, 1),
            hangs: count(rng, 3),
            crashes: count(rng, 3),
            forgets: 0,
            care: match bug {
                Some(PlantedBug::MajorityForgets | PlantedBug::OneForgets) => Care::None,
                _ => one_of(rng, &[Care::KeptDown, Care::Quarantine]),
            },
            partitions: count(rng, 4),
            breaks: count(rng, 4),
            steps: count(rng, nodes),
            step_together: false,
            end: longest * rng.u64(2..5),
            client_clocks: Vec::new(),
            node_clocks: Vec::new(),
        };
        if rng.u32(..4) == 0 {
            knobs.forgets = count(rng, 2);
        }
        match bug {
            Some(PlantedBug::MajorityForgets | PlantedBug::RestartIsOurDoing) => {
                knobs.forgets = nodes / 2 + 1
            }
            Some(PlantedBug::OneForgets) => knobs.forgets = 1,
            Some(PlantedBug::FenceForgotten) => knobs.forgets = 2,
            Some(PlantedBug::LateExtensionForgotten) => {
                (knobs.hangs, knobs.pauses, knobs.acquires) = (3, 2, 3);
            }
            _ => {}
        }
        knobs.set_clocks(rng);
        knobs
    }

    /// Clocks that disagree by all that is allowed for, but no more: 1 % from the slowest to the fastest, and 2 ms that are
    /// left for steps. The time of day may be anything, but where nodes forget their fences: there it is in step.
    fn set_clocks(&mut self, rng: &mut Rng) {
        let rate = match (self.bug, rng.u32(..4)) {
            (Some(PlantedBug::Drift), _) => 50_000,
            (_, 0) => 0,
            _ => 5_000,
        };
        let apart = match (self.bug, self.forgets) {
            (Some(PlantedBug::FenceForgotten), _) => 3_600_000_000,
            (_, 0) => one_of(rng, &[0, 1_000, 3_600_000_000]),
            _ => 5_000,
        };
        // The worst is a holder whose clock is slow and nodes whose clocks are fast, and for what is left behind the reverse.
        let end = one_of(rng, &[None, None, Some(rate), Some(rate), Some(-rate)]);
        self.step_together = end.is_some_and(|rate| rate > 0) && rng.bool();
        let clocks = |rng: &mut Rng, count: usize, apart: i64, end: Option<i64>| {
            let clock = |_| {
                let rate = end.unwrap_or_else(|| rng.i64(-rate..=rate));
                Clock::new(rng.i64(-apart..=apart), rate)
            };
            (0..count).map(clock).collect::<Vec<_>>()
        };
        self.client_clocks = clocks(rng, self.clients, 3_600_000_000, end.map(|rate| -rate));
        self.node_clocks = clocks(rng, self.nodes, apart, end);
    }

    /// The longest TTL, in µs.
    pub(crate) fn longest(&self) -> u64 {
        longest(self.ttls)
    }

    pub(crate) fn is(&self, bug: PlantedBug) -> bool {
        self.bug == Some(bug)
    }

    /// How long a message takes.
    pub(crate) fn travel(&self, rng: &mut Rng, calm: bool) -> u64 {
        match !calm && self.slow.strike(rng) {
            true => rng.u64(..self.longest() / 2),
            false => rng.u64(self.delay / 10..self.delay),
        }
    }
}

fn longest(ttls: [Ttl; 2]) -> u64 {
    1_000 * ttls[0].millis().max(ttls[1].millis())
}

pub(crate) fn one_of<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.usize(..from.len())]
}
