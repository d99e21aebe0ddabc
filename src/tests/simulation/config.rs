//! The settings of a history, drawn from its seed.

use std::time::Duration;

use fastrand::Rng;

use crate::protocol::kind::LockKind;
use crate::protocol::retry::RetryPolicy;
use crate::protocol::ttl::Ttl;
use crate::tests::simulation::clock::Clock;

/// A bug or an excessive fault that is planted, to show that the checks find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PlantedBug {
    /// Clocks drift apart by ten times the documented limit.
    Drift,
    /// The clock of a node is set forward by more than a TTL.
    ClockStep,
    /// A quorum of the reachable nodes is enough.
    QuorumOfReachable,
    /// The validity of a lease counts from the replies, not from the first request.
    ElapsedNotCounted,
    /// The greatest fence counter becomes the fencing token without raising it on a quorum.
    NoSecondFenceRound,
    /// A majority of the nodes loses its data and votes immediately after the restart.
    MajorityLosesData,
    /// One node loses its data and votes immediately after the restart.
    OneNodeLosesData,
    /// Most nodes lose their data and do not vote for a TTL, but their fence counters restart from
    /// clocks that disagree.
    FenceCountersLost,
    /// The grants of a failed attempt are not released.
    NoUndo,
    /// After a handoff the former token is not released where it was not swapped.
    FormerTokenKept,
    /// A reconnect does not kill the former connection.
    NoKill,
    /// An unanswered extension is not recorded, although a hung node may still run it.
    UnansweredExtensionIgnored,
    /// Former connections are not killed, and all attempts of a client use the same token.
    OneToken,
    /// An attempt counts the grants of the attempt before it.
    GrantsOfFormerToken,
    /// A resent release deletes the key whatever its token is.
    ReleaseWithoutToken,
    /// After a resent release an absent key counts as released, although the node has restarted in
    /// between.
    AbsentAfterRestartIsRelease,
}

/// How a history keeps a node that lost its data from granting a held lock again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    /// The node stays down for the longest TTL.
    StaysDown,
    /// The client's restart quarantine.
    Quarantine,
    None,
}

/// The denominator of a [`Probability`].
const PROBABILITY_SCALE: u32 = 10_000;

/// The probability that a fault hits a message.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Probability(u32);

impl Probability {
    pub(crate) fn occurs(self, rng: &mut Rng) -> bool {
        self.0 > 0 && rng.u32(..PROBABILITY_SCALE) < self.0
    }
}

/// The settings of one history. Numbers without a type of time are in µs.
#[derive(Debug)]
pub(crate) struct SimConfig {
    pub(crate) bug: Option<PlantedBug>,
    pub(crate) nodes: usize,
    pub(crate) clients: usize,
    pub(crate) lock_kind: LockKind,
    pub(crate) ttls: [Ttl; 2],
    pub(crate) min_validity: f64,
    pub(crate) node_timeout: Duration,
    pub(crate) refresh: Duration,
    pub(crate) retry: RetryPolicy,
    /// The maximum number of acquires per client.
    pub(crate) acquires: u32,
    /// The maximum delay of most messages.
    pub(crate) delay: u64,
    /// A message is delayed by up to half a TTL.
    pub(crate) slow: Probability,
    /// A request or its reply is lost without notice.
    pub(crate) lost: Probability,
    /// The connection breaks after a part of the requests or replies of a batch.
    pub(crate) disconnect: Probability,
    /// A lost or broken batch still arrives, up to a TTL later.
    pub(crate) late: Probability,
    /// A request fails with an error reply, whether or not the node applied it.
    pub(crate) error: Probability,
    /// A queued job is sent only after a delay.
    pub(crate) queue_delay: Probability,
    /// An attempt asks one node before the others.
    pub(crate) one_node_first: Probability,
    /// A cancellation of an acquire is scheduled.
    pub(crate) cancelled: Probability,
    /// The maximum number of each fault.
    pub(crate) pauses: usize,
    pub(crate) deaths: usize,
    pub(crate) hangs: usize,
    pub(crate) crashes: usize,
    pub(crate) loses_data: usize,
    pub(crate) restart_policy: RestartPolicy,
    pub(crate) partitions: usize,
    pub(crate) disconnects: usize,
    pub(crate) steps: usize,
    /// The clocks of all nodes are set forward at the same time.
    pub(crate) step_together: bool,
    /// The time at which all faults end and clients stop to begin acquires.
    pub(crate) end: u64,
    pub(crate) client_clocks: Vec<Clock>,
    pub(crate) node_clocks: Vec<Clock>,
}

impl SimConfig {
    pub(crate) fn draw(rng: &mut Rng, bug: Option<PlantedBug>) -> SimConfig {
        let nodes = match bug {
            Some(
                PlantedBug::OneNodeLosesData
                | PlantedBug::QuorumOfReachable
                | PlantedBug::FenceCountersLost,
            ) => 3,
            _ => one_of(rng, &[1, 3, 3, 3, 5]),
        };
        let clients = rng.usize(2..=4);
        let min_validity = one_of(rng, &[0.5, 0.5, 0.1]);
        let ttls = [0, 1].map(|_| {
            let ttl = Duration::from_millis(rng.u64(100..1_000));
            Ttl::parse(ttl, min_validity).expect("a good TTL")
        });
        let max_ttl = max_ttl(ttls);
        // One history in eight has no faults, and most others have only some kinds of faults.
        let is_busy = rng.u32(..8) > 0;
        let probability = |rng: &mut Rng, max: u32| match is_busy && rng.bool() {
            true => Probability(rng.u32(..=max)),
            false => Probability(0),
        };
        let count = |rng: &mut Rng, max: usize| match is_busy && rng.bool() {
            true => rng.usize(..=max),
            false => 0,
        };
        let initial = rng.u64(2_000..60_000);
        let retry = RetryPolicy {
            initial_delay: Duration::from_micros(initial),
            max_delay: Duration::from_micros(rng.u64(initial..200_000)),
            jitter: one_of(rng, &[1.0, 1.0, 0.0, 0.5]),
            ..RetryPolicy::default()
        };
        let mut config = SimConfig {
            bug,
            nodes,
            clients,
            lock_kind: one_of(rng, &[LockKind::Exclusive, LockKind::ReadWrite]),
            ttls,
            min_validity,
            node_timeout: Duration::from_micros(rng.u64(20_000..200_000)),
            refresh: Duration::from_micros(rng.u64(10_000..100_000)),
            retry,
            acquires: rng.u32(1..=3),
            delay: one_of(rng, &[200, 1_000, 5_000, 30_000]),
            slow: probability(rng, 2_000),
            lost: probability(rng, 800),
            disconnect: probability(rng, 800),
            late: probability(rng, PROBABILITY_SCALE),
            error: probability(rng, 300),
            queue_delay: probability(rng, 5_000),
            one_node_first: probability(rng, 4_000),
            cancelled: probability(rng, 3_000),
            pauses: count(rng, 3),
            deaths: count(rng, 1),
            hangs: count(rng, 3),
            crashes: count(rng, 3),
            loses_data: 0,
            restart_policy: match bug {
                Some(PlantedBug::MajorityLosesData | PlantedBug::OneNodeLosesData) => {
                    RestartPolicy::None
                }
                _ => one_of(rng, &[RestartPolicy::StaysDown, RestartPolicy::Quarantine]),
            },
            partitions: count(rng, 4),
            disconnects: count(rng, 4),
            steps: count(rng, nodes),
            step_together: false,
            end: max_ttl * rng.u64(2..5),
            client_clocks: Vec::new(),
            node_clocks: Vec::new(),
        };
        if rng.u32(..4) == 0 {
            config.loses_data = count(rng, 2);
        }
        match bug {
            Some(PlantedBug::MajorityLosesData | PlantedBug::AbsentAfterRestartIsRelease) => {
                config.loses_data = nodes / 2 + 1
            }
            Some(PlantedBug::OneNodeLosesData) => config.loses_data = 1,
            Some(PlantedBug::FenceCountersLost) => config.loses_data = 2,
            Some(PlantedBug::UnansweredExtensionIgnored) => {
                (config.hangs, config.pauses, config.acquires) = (3, 2, 3);
            }
            _ => {}
        }
        config.set_clocks(rng);
        config
    }

    /// Draws clocks that disagree by the documented limit and no more: 1 % from the slowest to the
    /// fastest, and 2 ms that remain for steps. The time of day may differ by an hour, except where
    /// nodes lose their fence counters: there it is in step.
    fn set_clocks(&mut self, rng: &mut Rng) {
        let rate = match (self.bug, rng.u32(..4)) {
            (Some(PlantedBug::Drift), _) => 50_000,
            (_, 0) => 0,
            _ => 5_000,
        };
        let apart = match (self.bug, self.loses_data) {
            (Some(PlantedBug::FenceCountersLost), _) => 3_600_000_000,
            (_, 0) => one_of(rng, &[0, 1_000, 3_600_000_000]),
            _ => 5_000,
        };
        // The worst case for mutual exclusion is a holder with a slow clock and nodes with fast
        // clocks. The reverse is the worst case for leftover tokens.
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

    /// Returns the longest TTL in µs.
    pub(crate) fn max_ttl(&self) -> u64 {
        max_ttl(self.ttls)
    }

    pub(crate) fn is(&self, bug: PlantedBug) -> bool {
        self.bug == Some(bug)
    }

    /// Draws the delay of a message in µs.
    pub(crate) fn message_delay(&self, rng: &mut Rng, faults_over: bool) -> u64 {
        match !faults_over && self.slow.occurs(rng) {
            true => rng.u64(..self.max_ttl() / 2),
            false => rng.u64(self.delay / 10..self.delay),
        }
    }
}

fn max_ttl(ttls: [Ttl; 2]) -> u64 {
    1_000 * ttls[0].millis().max(ttls[1].millis())
}

pub(crate) fn one_of<T: Copy>(rng: &mut Rng, from: &[T]) -> T {
    from[rng.usize(..from.len())]
}
