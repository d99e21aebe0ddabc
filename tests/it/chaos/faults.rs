//! The faults: which there are, one after the other, and their end.
//!
//! # Which steps of a server's clock there are
//!
//! A lock is promised to bear clocks that disagree within its TTL by `ttl / 100 + 2 ms`, its drift. A step moves a clock at once.
//!
//! - *Back*, by any amount: keys live longer on that node, which keeps a lock from others for longer and gives none away. An uptime
//!   that has become shorter makes a quarantine longer, and one below zero counts as nothing.
//! - *Ahead*, by no more than the drift of the shortest TTL in all the steps that fall into one. A greater step ends keys
//!   before their time, as if the node had lost them, and is not to be seen in its uptime, so that no quarantine helps: the grant of
//!   that node may be the one that the quorum of a holder rests on. [`crate::chaos::negative_controls`] shows what happens then.
//! - *Right again*, when the node comes back without its data under quarantine: there is nothing then that could end too early.
//!
//! Where nodes lose the counts that fencing tokens come from, these begin with the node's clock. Tokens are promised to increase as
//! long as the clocks of a quorum are in step: only a minority steps there, always the same, and it is never ahead. The token is
//! the greatest number that a quorum has reached, which is never one of a minority that is behind.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::rngs::StdRng;

use crate::chaos::worker::{MAX_TTL, MIN_TTL};
use crate::chaos::{Data, LEFT};
use crate::support::child_process::Program;
use crate::support::clock::Clock;
use crate::support::eventually;
use crate::support::fixtures::{LIMIT, now, try_ask};
use crate::support::proxy::{Flow, Proxy};
use crate::support::servers::Server;

const PROCESSES: usize = 4;
const MS: Duration = Duration::from_millis(1);
/// The furthest that a clock steps back at once.
pub(super) const FURTHEST: Duration = Duration::from_secs(1);
/// How long a clock rests after a step back: nothing is left then that lasts longer because of it.
const REST: Duration = LEFT.saturating_add(FURTHEST);
/// Two of these can fall into the shortest TTL, whose drift is 8 ms, and one more into each 600 ms of a longer one, which add 6.
const AHEAD: Duration = Duration::from_millis(3);

/// Faults on a set of nodes, and the processes that use them. Each node, proxy and process has one fault at a time.
pub(super) struct FaultInjector<'a> {
    nodes: &'a [Server],
    clocks: Vec<NodeHandle<'a>>,
    data: Data,
    file: PathBuf,
    links: Vec<Proxy>,
    programs: Vec<Program>,
    lasting: Vec<(Instant, Recovery)>,
    counts: BTreeMap<&'static str, u64>,
    rng: StdRng,
}

/// A clock that may be stepped, and by how much it is behind.
struct NodeHandle<'a> {
    clock: &'a Clock,
    behind: Duration,
}

impl NodeHandle<'_> {
    fn set(&mut self, behind: Duration) {
        self.behind = behind;
        self.clock.behind(behind);
    }
}

/// The end of a fault that lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recovery {
    Resume(usize),
    Restart(usize),
    MakeRoom(usize),
    Pass(usize),
    Wake(usize),
    Rest(usize),
}

/// What a fault is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Node(usize),
    Link(usize),
    Program(usize),
    Clock(usize),
}

impl Recovery {
    fn place(self) -> Place {
        match self {
            Recovery::Resume(node) | Recovery::Restart(node) | Recovery::MakeRoom(node) => {
                Place::Node(node)
            }
            Recovery::Pass(link) => Place::Link(link),
            Recovery::Wake(program) => Place::Program(program),
            Recovery::Rest(clock) => Place::Clock(clock),
        }
    }
}

impl<'a> FaultInjector<'a> {
    /// The clocks are those of the nodes, or none.
    pub(super) fn over(
        nodes: &'a [Server],
        clocks: &'a [Clock],
        data: Data,
        file: PathBuf,
        rng: StdRng,
    ) -> FaultInjector<'a> {
        let links = nodes.iter().map(|node| Proxy::to(node.addr())).collect();
        let stepped = match data {
            Data::Kept => nodes.len(),
            Data::Lost => (nodes.len() - 1) / 2,
        };
        let clocks = clocks.iter().take(stepped).map(|clock| NodeHandle {
            clock,
            behind: Duration::ZERO,
        });
        let mut storm = FaultInjector {
            nodes,
            clocks: clocks.collect(),
            data,
            file,
            links,
            programs: Vec::new(),
            lasting: Vec::new(),
            counts: BTreeMap::new(),
            rng,
        };
        storm.programs = (0..PROCESSES).map(|_| storm.program()).collect();
        storm
    }

    /// One fault after the other.
    pub(super) fn blow(&mut self, done: impl Fn() -> bool) {
        while !done() {
            let next = now() + self.rng.random_range(100 * MS..500 * MS);
            while let Some(due) = self.due(next) {
                wait_until(due.0);
                self.mend(due.1);
            }
            wait_until(next);
            _ = (0..PROCESSES).any(|_| self.strike());
        }
    }

    /// Ends all that lasts, and says what there was.
    pub(super) fn calm(&mut self) -> BTreeMap<&'static str, u64> {
        eventually(LIMIT, "all faults are over", || {
            for (_, mend) in std::mem::take(&mut self.lasting) {
                self.mend(mend);
            }
            self.lasting.is_empty()
        });
        self.counts.clone()
    }

    /// The proxies stay as long as they do.
    pub(super) fn end(mut self) {
        for program in self.programs.drain(..) {
            assert!(
                program.end().success(),
                "a process of the chaos failed: see above"
            );
        }
    }

    fn program(&mut self) -> Program {
        let part = match self.data {
            Data::Kept => "part_where_data_is_kept",
            Data::Lost => "part_under_quarantine",
        };
        let module = concat!(module_path!(), "::part").replace("::faults", "");
        let addresses = self.links.iter().map(Proxy::addr).collect();
        let seed: u64 = self.rng.random();
        Program::playing_at(
            &module,
            part,
            addresses,
            &seed.to_string(),
            self.file.clone(),
        )
    }

    /// What is to be mended first, if that is before `limit`.
    fn due(&mut self, limit: Instant) -> Option<(Instant, Recovery)> {
        let first = (0..self.lasting.len()).min_by_key(|&at| self.lasting[at].0)?;
        (self.lasting[first].0 < limit).then(|| self.lasting.swap_remove(first))
    }

    fn mend(&mut self, mend: Recovery) {
        match mend {
            Recovery::Resume(node) => self.nodes[node].resume().unwrap(),
            Recovery::Restart(node) => {
                if let (Data::Lost, Some(hand)) = (self.data, self.clocks.get_mut(node)) {
                    hand.set(Duration::ZERO);
                }
                // Its port may be taken for a moment.
                if self.nodes[node].restart().is_err() {
                    self.lasting.push((now() + MAX_TTL / 4, mend));
                }
            }
            Recovery::MakeRoom(node) => {
                tell(&self.nodes[node], &["CONFIG", "SET", "maxmemory", "0"])
            }
            Recovery::Pass(link) => self.links[link].pass(),
            Recovery::Wake(program) => self.programs[program].resume(),
            Recovery::Rest(_) => {}
        }
    }

    fn last(&mut self, least: Duration, most: Duration, mend: Recovery) {
        let end = now() + self.rng.random_range(least..most);
        self.lasting.push((end, mend));
    }

    fn is_at(&self, place: Place) -> bool {
        self.lasting.iter().any(|(_, mend)| mend.place() == place)
    }

    fn is_hurt(&self, node: usize) -> bool {
        self.is_at(Place::Node(node)) || self.is_at(Place::Link(node))
    }

    /// A fault that is drawn, unless there is one already where it would be.
    fn strike(&mut self) -> bool {
        let name = match self.rng.random_range(0..36) {
            0 => self.strike_all(Place::Node),
            1 | 2 => self.strike_all(Place::Link),
            3..6 => self.step(),
            _ => self.strike_one(),
        };
        name.into_iter()
            .for_each(|name| *self.counts.entry(name).or_default() += 1);
        name.is_some()
    }

    /// One that a quorum has at once: what each node must do by itself, and what no other can make up for.
    fn strike_all(&mut self, place: fn(usize) -> Place) -> Option<&'static str> {
        let all = 0..self.nodes.len();
        let free: Vec<usize> = all.filter(|&at| !self.is_at(place(at))).collect();
        if free.len() <= self.nodes.len() / 2 {
            return None;
        }
        let mut name = "";
        for at in free {
            if place(at) == Place::Node(at) {
                self.nodes[at].kill();
                self.last(10 * MS, MAX_TTL / 10, Recovery::Restart(at));
                name = "all nodes killed";
            } else {
                let delay = self.rng.random_range(10 * MS..100 * MS);
                self.links[at].both(Flow::Delay(delay));
                self.last(MAX_TTL / 4, MAX_TTL, Recovery::Pass(at));
                name = "all links slow";
            }
        }
        Some(name)
    }

    fn step(&mut self) -> Option<&'static str> {
        let any = self.rng.random_range(0..self.nodes.len());
        if self.is_at(Place::Clock(any)) {
            return None;
        }
        let back = self.rng.random_range(MS..FURTHEST);
        let hand = self.clocks.get_mut(any)?;
        if self.rng.random() {
            hand.set(hand.behind + back);
            self.last(REST, 2 * REST, Recovery::Rest(any));
            Some("clock stepped back")
        } else {
            hand.set(hand.behind.checked_sub(AHEAD)?);
            self.last(MIN_TTL, 2 * MIN_TTL, Recovery::Rest(any));
            Some("clock stepped ahead")
        }
    }

    fn strike_one(&mut self) -> Option<&'static str> {
        let any = self.rng.random_range(0..self.nodes.len());
        let other = self.rng.random_range(0..PROCESSES);
        let what = self.rng.random_range(0..24);
        let place = match what {
            0..12 => Place::Node(any),
            12..21 => Place::Link(any),
            _ => Place::Program(other),
        };
        if self.is_at(place) {
            return None;
        }
        // A quorum is spared more often than not: without one nothing is held that could overlap.
        let hurt = (0..self.nodes.len()).filter(|&node| node == any || self.is_hurt(node));
        if place != Place::Program(other)
            && hurt.count() > self.nodes.len() / 2
            && !self.rng.random_ratio(1, 6)
        {
            return None;
        }
        let node = &self.nodes[any];
        Some(match what {
            0..3 => {
                node.stop().unwrap();
                self.last(50 * MS, 2 * MAX_TTL, Recovery::Resume(any));
                "node stopped"
            }
            3..6 => {
                node.kill();
                self.last(10 * MS, MAX_TTL, Recovery::Restart(any));
                "node killed"
            }
            6..8 => {
                tell(node, &["SCRIPT", "FLUSH"]);
                "scripts flushed"
            }
            8..10 => {
                let kind = ["normal", "pubsub"][self.rng.random_range(0..2)];
                tell(node, &["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]);
                "clients killed"
            }
            10..12 => {
                tell(node, &["CONFIG", "SET", "maxmemory", "1"]);
                self.last(50 * MS, MAX_TTL, Recovery::MakeRoom(any));
                "node without memory"
            }
            12..15 => {
                let delay = self.rng.random_range(2 * MS..400 * MS);
                self.links[any].both(Flow::Delay(delay));
                self.last(100 * MS, MAX_TTL, Recovery::Pass(any));
                "link slow"
            }
            15..18 => {
                let flow = [Flow::Swallow, Flow::Hold][self.rng.random_range(0..2)];
                if self.rng.random() {
                    self.links[any].requests(flow);
                } else {
                    self.links[any].replies(flow);
                }
                self.last(100 * MS, MAX_TTL, Recovery::Pass(any));
                "link swallows or holds one way"
            }
            18..20 => {
                self.links[any].cut_reply_after(self.rng.random_range(0..200));
                "link cut in a reply"
            }
            20 => {
                self.links[any].cut();
                "link cut"
            }
            21 => {
                self.programs[other].stop();
                let next = self.program();
                std::mem::replace(&mut self.programs[other], next).kill();
                "process killed"
            }
            _ => {
                self.programs[other].stop();
                self.last(50 * MS, 2 * MAX_TTL, Recovery::Wake(other));
                "process stopped"
            }
        })
    }
}

/// A server that is up, but may be too busy to answer in time.
fn tell(node: &Server, words: &[&str]) {
    try_ask::<redis::Value>(node, words).unwrap();
}

#[expect(
    clippy::disallowed_methods,
    reason = "the pace of the faults, which orders nothing"
)]
fn wait_until(end: Instant) {
    thread::sleep(end.saturating_duration_since(now()));
}
