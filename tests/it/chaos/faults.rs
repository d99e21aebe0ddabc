//! Fault injection: the kinds of faults, their sequence, and their ends.
//!
//! # Steps of a server's clock
//!
//! A lock tolerates clocks that disagree within its TTL by its drift, `ttl / 100 + 2 ms`. A step
//! moves a clock at once.
//!
//! - *Back*, by any amount: keys live longer on that node, so it refuses other callers for longer
//!   and grants nothing early. A shorter uptime prolongs a quarantine, and a negative uptime counts
//!   as zero.
//! - *Ahead*, by at most the drift of the shortest TTL over all steps within one TTL. A greater
//!   step ends keys early, as if the node had lost them, and does not show in its uptime, so no
//!   quarantine helps: the quorum of a holder may need the grant of that node.
//!   [`crate::chaos::negative_controls`] shows the result.
//! - *Corrected*, when the node comes back without its data under quarantine: no key can then end
//!   early.
//!
//! A node that has lost its fence counters restarts them from its clock. Fencing tokens increase as
//! long as the clocks of a quorum agree. So only one fixed minority is stepped, and it is never
//! ahead. The token is the greatest counter that a quorum has reached, which is never that of a
//! minority that is behind.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::chaos::counters::Tally;
use crate::chaos::values::Foreign;
use crate::chaos::worker::{MAX_TTL, MIN_TTL};
use crate::chaos::{Data, LEFT, values};
use crate::support::child_process::Program;
use crate::support::clock::Clock;
use crate::support::eventually;
use crate::support::fixtures::{LIMIT, ask, now, try_ask};
use crate::support::proxy::{Flow, Proxy};
use crate::support::servers::Server;

const PROCESSES: usize = 4;
const MS: Duration = Duration::from_millis(1);
/// Greatest single step back.
pub(super) const FURTHEST: Duration = Duration::from_secs(1);
/// Pause of a clock after a step back, after which no key lasts longer because of the step.
const REST: Duration = LEFT.saturating_add(FURTHEST);
/// Two steps can fall into the shortest TTL, whose drift is 8 ms. Each further 600 ms of a longer
/// TTL add one step and 6 ms of drift.
const AHEAD: Duration = Duration::from_millis(3);

/// Longest time until a server closes connections that are idle for its `timeout` of one second.
const IDLE: Duration = Duration::from_secs(3);

/// Kinds of faults that need no clock step.
pub(super) const KINDS: [&str; 19] = [
    "node stopped",
    "node killed",
    "node without memory",
    "node denies a right",
    "scripts flushed",
    "clients killed",
    "all nodes killed",
    "all nodes without memory",
    "all nodes deny a right",
    "all clients killed",
    "all links slow",
    "idle connections closed",
    "foreign value",
    "foreign value on all nodes",
    "links cut while a node is down",
    "link slow",
    "link swallows or holds one way",
    "link cut in a reply",
    "process killed",
];
/// Evidence that faults had an effect, as prefixes of counter names.
pub(super) const EFFECTS: [&str; 4] = [
    "clients that were killed",
    "idle clients that were closed",
    "denied: ",
    "foreign: ",
];

const PEXPIRE: &str = "-pexpire";
/// Rights that the library needs. The last entry denies all dangerous commands, as many hosting
/// services do.
const RIGHTS: [&[&str]; 12] = [
    &["-set"],
    &["-get"],
    &["-del"],
    &["-evalsha"],
    &[PEXPIRE],
    &["-zadd"],
    &["-hset"],
    &["-incr"],
    &["-publish"],
    &["-subscribe"],
    &["-script"],
    &["-@dangerous", "+acl", "+info"],
];

/// Injects faults into nodes, proxies and processes. Each of them has one fault at a time.
pub(super) struct FaultInjector<'a> {
    nodes: &'a [Server],
    clocks: Vec<NodeHandle<'a>>,
    data: Data,
    file: PathBuf,
    links: Vec<Proxy>,
    programs: Vec<Program>,
    lasting: Vec<(Instant, Recovery)>,
    counts: Counts,
    effects: Counts,
    rng: StdRng,
}

/// Counts by name.
pub(super) type Counts = BTreeMap<String, u64>;

/// A clock that may be stepped, and how far it is behind.
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

/// The end of a lasting fault.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Recovery {
    Resume(usize),
    Restart(usize),
    MakeRoom(usize),
    GiveBack(usize, &'static str),
    /// With the number of idle connections that the node had closed before.
    KeepIdle(usize, u64),
    Remove(usize, Foreign),
    Pass(usize),
    Wake(usize),
    Work(usize),
    Rest(usize),
}

/// A fault of a node itself.
#[derive(Clone, Copy, Debug)]
enum Harm {
    Stopped,
    Killed,
    WithoutMemory,
    Denies(&'static [&'static str]),
    ScriptsFlushed,
    ClientsKilled,
}

/// The target of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Node(usize),
    Value(usize),
    Link(usize),
    Program(usize),
    Clock(usize),
}

impl Recovery {
    fn place(&self) -> Place {
        match *self {
            Recovery::Resume(node)
            | Recovery::Restart(node)
            | Recovery::MakeRoom(node)
            | Recovery::GiveBack(node, _)
            | Recovery::KeepIdle(node, _) => Place::Node(node),
            Recovery::Remove(node, _) => Place::Value(node),
            Recovery::Pass(link) => Place::Link(link),
            Recovery::Wake(program) | Recovery::Work(program) => Place::Program(program),
            Recovery::Rest(clock) => Place::Clock(clock),
        }
    }
}

impl<'a> FaultInjector<'a> {
    /// Creates the injector. `clocks` are the clocks of the nodes, or empty.
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
            counts: Counts::new(),
            effects: Counts::new(),
            rng,
        };
        storm.programs = (0..PROCESSES).map(|_| storm.program()).collect();
        storm
    }

    /// Injects one fault after another.
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

    /// Ends all lasting faults. Returns the faults, and the evidence of their effects.
    pub(super) fn calm(&mut self) -> (Counts, Counts) {
        eventually(LIMIT, "all faults are over", || {
            let mut mends = std::mem::take(&mut self.lasting);
            // Recoveries that need a responsive node come last.
            mends.sort_by_key(|(_, mend)| matches!(mend, Recovery::Remove(..)));
            mends.into_iter().for_each(|(_, mend)| self.mend(mend));
            self.lasting.is_empty()
        });
        (self.counts.clone(), self.effects.clone())
    }

    /// Returns the addresses of the proxies, which live as long as the injector.
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
        let module = concat!(module_path!(), "::worker").replace("::faults", "");
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

    /// Returns the first recovery that is due before `limit`.
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
                // Its port may be in use for a moment.
                if self.nodes[node].restart().is_err() {
                    self.lasting.push((now() + MAX_TTL / 4, mend));
                }
            }
            Recovery::MakeRoom(node) => {
                tell(&self.nodes[node], &["CONFIG", "SET", "maxmemory", "0"])
            }
            Recovery::GiveBack(node, right) => {
                tell(&self.nodes[node], &["ACL", "SETUSER", "default", "+@all"]);
                if right == PEXPIRE {
                    values::end_all(&self.nodes[node]);
                }
            }
            Recovery::KeepIdle(node, before) => {
                keep_idle_connections(&self.nodes[node]);
                let closed = closed_for_being_idle(&self.nodes[node]) - before;
                self.note("idle clients that were closed", closed);
            }
            Recovery::Remove(node, foreign) => match self.is_at(Place::Node(node)) {
                true => {
                    let later = now() + MAX_TTL / 8;
                    self.lasting.push((later, Recovery::Remove(node, foreign)));
                }
                false => foreign.remove(&self.nodes[node]),
            },
            Recovery::Pass(link) => self.links[link].pass(),
            Recovery::Work(_) => Tally::beside(&self.file).rest(Pid::from_raw(0)),
            Recovery::Wake(program) => self.programs[program].resume(),
            Recovery::Rest(_) => {}
        }
    }

    /// Counts an effect that occurred `times` times.
    fn note(&mut self, effect: &str, times: u64) {
        if times > 0 {
            *self.effects.entry(effect.to_owned()).or_default() += times;
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

    /// Injects a random fault, unless its target already has one.
    fn strike(&mut self) -> bool {
        let name = match self.rng.random_range(0..50) {
            0..6 => self.strike_all(),
            6..8 => self.slow_all_links(),
            8..11 => self.step(),
            11..13 => self.let_idle_connections_end(),
            13..15 => self.cut_links_while_a_node_is_down(),
            15..19 => self.put_foreign_value(),
            _ => self.strike_one(),
        };
        name.into_iter()
            .for_each(|name| *self.counts.entry(name.to_owned()).or_default() += 1);
        name.is_some()
    }

    /// Returns the targets of one kind without a fault, if they are a quorum.
    fn free(&self, place: fn(usize) -> Place) -> Option<Vec<usize>> {
        let all = 0..self.nodes.len();
        let free: Vec<usize> = all.filter(|&at| !self.is_at(place(at))).collect();
        (free.len() > self.nodes.len() / 2).then_some(free)
    }

    /// Injects a fault into a quorum at once, for recoveries that each node must do itself.
    fn strike_all(&mut self) -> Option<&'static str> {
        let free = self.free(Place::Node)?;
        let (harm, name) = match self.rng.random_range(0..6) {
            0 => (Harm::Killed, "all nodes killed"),
            1 => (Harm::WithoutMemory, "all nodes without memory"),
            2..5 => (self.denial(), "all nodes deny a right"),
            _ => (Harm::ClientsKilled, "all clients killed"),
        };
        let most = match harm {
            Harm::Killed => MAX_TTL / 10,
            _ => MAX_TTL,
        };
        free.into_iter()
            .for_each(|node| self.harm(node, harm, most));
        Some(name)
    }

    fn slow_all_links(&mut self) -> Option<&'static str> {
        for at in self.free(Place::Link)? {
            let delay = self.rng.random_range(10 * MS..100 * MS);
            self.links[at].both(Flow::Delay(delay));
            self.last(MAX_TTL / 4, MAX_TTL, Recovery::Pass(at));
        }
        Some("all links slow")
    }

    /// Lets all nodes close idle connections while one process rests; then its threads continue
    /// together.
    fn let_idle_connections_end(&mut self) -> Option<&'static str> {
        let rests = self.rng.random_range(0..PROCESSES);
        let is_free = |mend: &Recovery| !matches!(mend, Recovery::Work(_));
        let is_free = self.lasting.iter().all(|(_, mend)| is_free(mend));
        let free = self.free(Place::Node)?;
        if !is_free || self.is_at(Place::Program(rests)) {
            return None;
        }
        for node in free {
            tell(&self.nodes[node], &["CONFIG", "SET", "timeout", "1"]);
            let before = closed_for_being_idle(&self.nodes[node]);
            self.last(IDLE, IDLE + MAX_TTL, Recovery::KeepIdle(node, before));
        }
        Tally::beside(&self.file).rest(self.programs[rests].pid());
        self.last(IDLE, IDLE + MAX_TTL, Recovery::Work(rests));
        Some("idle connections closed")
    }

    /// Cuts connections. A connection that ends proves nothing about its node, even if the next
    /// connect fails.
    fn cut_links_while_a_node_is_down(&mut self) -> Option<&'static str> {
        let down = self.lasting.iter().find_map(|(_, mend)| match mend {
            Recovery::Restart(node) | Recovery::Resume(node) => Some(*node),
            _ => None,
        });
        let down = match down {
            Some(node) => node,
            None => {
                let node = *self.free(Place::Node)?.first()?;
                self.harm(node, Harm::Killed, MAX_TTL);
                node
            }
        };
        let links = self.links.iter().enumerate();
        links
            .filter(|(link, _)| *link != down)
            .for_each(|(_, link)| link.cut());
        Some("links cut while a node is down")
    }

    fn put_foreign_value(&mut self) -> Option<&'static str> {
        let foreign = Foreign::draw(&mut self.rng);
        let on_all = self.rng.random_ratio(1, 3);
        let mut nodes: Vec<usize> = (0..self.nodes.len())
            .filter(|&node| !self.is_at(Place::Node(node)) && !self.is_at(Place::Value(node)))
            .collect();
        if !on_all && !nodes.is_empty() {
            nodes = vec![nodes[self.rng.random_range(0..nodes.len())]];
        }
        nodes.retain(|&node| foreign.put(&self.nodes[node]));
        let count = nodes.len();
        for node in nodes {
            self.note(&format!("foreign: {}", foreign.what()), 1);
            self.last(50 * MS, MAX_TTL, Recovery::Remove(node, foreign.clone()));
        }
        match count > self.nodes.len() / 2 {
            true => Some("foreign value on all nodes"),
            false => (count > 0).then_some("foreign value"),
        }
    }

    fn denial(&mut self) -> Harm {
        Harm::Denies(RIGHTS[self.rng.random_range(0..RIGHTS.len())])
    }

    /// Injects a fault into a node without one. A lasting fault lasts for at most `most`.
    fn harm(&mut self, at: usize, harm: Harm, most: Duration) {
        let node = &self.nodes[at];
        match harm {
            Harm::Stopped => {
                node.stop().unwrap();
                self.last(50 * MS, most, Recovery::Resume(at));
            }
            Harm::Killed => {
                node.kill();
                self.last(10 * MS, most, Recovery::Restart(at));
            }
            Harm::WithoutMemory => {
                tell(node, &["CONFIG", "SET", "maxmemory", "1"]);
                self.last(50 * MS, most, Recovery::MakeRoom(at));
            }
            Harm::Denies(rights) => {
                // Forces clients to load scripts again, while that may be denied.
                tell(node, &["SCRIPT", "FLUSH"]);
                tell(node, &[&["ACL", "SETUSER", "default"], rights].concat());
                self.note(&format!("denied: {}", rights[0]), 1);
                self.last(50 * MS, most, Recovery::GiveBack(at, rights[0]));
            }
            Harm::ScriptsFlushed => tell(node, &["SCRIPT", "FLUSH"]),
            Harm::ClientsKilled => {
                let also = self.rng.random::<bool>().then_some("pubsub");
                let killed = ["normal"].into_iter().chain(also).map(|kind| {
                    let words = ["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"];
                    ask::<u64>(node, &words)
                });
                let killed = killed.sum();
                self.note("clients that were killed", killed);
            }
        }
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
        let what = self.rng.random_range(0..27);
        let place = match what {
            0..15 => Place::Node(any),
            15..24 => Place::Link(any),
            _ => Place::Program(other),
        };
        if self.is_at(place) {
            return None;
        }
        // A quorum mostly stays healthy, because without a quorum no holds could overlap.
        let hurt = (0..self.nodes.len()).filter(|&node| node == any || self.is_hurt(node));
        if place != Place::Program(other)
            && hurt.count() > self.nodes.len() / 2
            && !self.rng.random_ratio(1, 6)
        {
            return None;
        }
        let (harm, most, name) = match what {
            0..3 => (Harm::Stopped, 2 * MAX_TTL, "node stopped"),
            3..6 => (Harm::Killed, MAX_TTL, "node killed"),
            6..8 => (Harm::ScriptsFlushed, MAX_TTL, "scripts flushed"),
            8..10 => (Harm::ClientsKilled, MAX_TTL, "clients killed"),
            10..12 => (Harm::WithoutMemory, MAX_TTL, "node without memory"),
            12..15 => (self.denial(), MAX_TTL, "node denies a right"),
            15..24 => return Some(self.hurt_link(any)),
            _ => return Some(self.hurt_program(other)),
        };
        self.harm(any, harm, most);
        Some(name)
    }

    fn hurt_link(&mut self, link: usize) -> &'static str {
        match self.rng.random_range(0..9) {
            0..3 => {
                let delay = self.rng.random_range(2 * MS..400 * MS);
                self.links[link].both(Flow::Delay(delay));
                self.last(100 * MS, MAX_TTL, Recovery::Pass(link));
                "link slow"
            }
            3..6 => {
                let flow = [Flow::Swallow, Flow::Hold][self.rng.random_range(0..2)];
                if self.rng.random() {
                    self.links[link].requests(flow);
                } else {
                    self.links[link].replies(flow);
                }
                self.last(100 * MS, MAX_TTL, Recovery::Pass(link));
                "link swallows or holds one way"
            }
            6..8 => {
                self.links[link].cut_reply_after(self.rng.random_range(0..200));
                "link cut in a reply"
            }
            _ => {
                self.links[link].cut();
                "link cut"
            }
        }
    }

    fn hurt_program(&mut self, program: usize) -> &'static str {
        self.programs[program].stop();
        if self.rng.random_ratio(1, 3) {
            let next = self.program();
            std::mem::replace(&mut self.programs[program], next).kill();
            "process killed"
        } else {
            self.last(50 * MS, 2 * MAX_TTL, Recovery::Wake(program));
            "process stopped"
        }
    }
}

/// Resets the idle timeout. Retries, because the server may close the very connection that resets
/// it.
fn keep_idle_connections(node: &Server) {
    let client = redis::Client::open(node.url()).unwrap();
    eventually(LIMIT, "the server accepts the command", || {
        let connection = client.get_connection_with_timeout(LIMIT);
        let told = connection.and_then(|mut connection| {
            let mut command = redis::cmd("CONFIG");
            let command = command.arg(&["SET", "timeout", "0"]);
            command.query::<()>(&mut connection)
        });
        told.is_ok()
    });
}

fn closed_for_being_idle(node: &Server) -> u64 {
    node.logged().matches("Closing idle client").count() as u64
}

/// Waits for a server that is up, but may be too busy to reply in time.
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
