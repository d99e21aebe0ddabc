//! The example `leader` as processes: leaders are killed, and nodes hang.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "in a test a panic is the report; what it waits for cannot wake it"
)]

use redguard_servers::Server;
use redguard_servers::temp_dir::TempDir;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

/// Only a hang takes this long.
const LIMIT: Duration = Duration::from_secs(60);

/// A process that stands for election; killed on drop.
struct Candidate(Child);

impl Candidate {
    fn start(nodes: &[Server], journal: &Path) -> Candidate {
        let program = env::current_exe().unwrap();
        let profile = program.parent().and_then(Path::parent).unwrap();
        let urls: Vec<String> = nodes.iter().map(Server::url).collect();
        let mut command = Command::new(profile.join("examples/leader"));
        command.args(["--redis", &urls.join(","), "--journal"]);
        command.arg(journal).stdin(Stdio::piped());
        Candidate(command.stdout(Stdio::null()).spawn().unwrap())
    }

    /// Ends the candidate as a program ends: a leader releases its lock.
    fn end(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Candidate {
    fn drop(&mut self) {
        // Both fail for a process that has ended.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

struct Election {
    nodes: Vec<Server>,
    candidates: Vec<Candidate>,
    journal: PathBuf,
    _dir: TempDir,
}

impl Election {
    fn start() -> Election {
        let dir = TempDir::create("leader-").unwrap();
        let journal = dir.path().join("journal");
        let nodes: Vec<Server> = (0..3).map(|_| Server::start().unwrap()).collect();
        let stand = |_| Candidate::start(&nodes, &journal);
        Election {
            candidates: (0..4).map(stand).collect(),
            nodes,
            journal,
            _dir: dir,
        }
    }

    /// Returns the process and the term of each step.
    fn steps(&self) -> Vec<(u32, u64)> {
        let text = fs::read_to_string(&self.journal).unwrap_or_default();
        let steps = text.lines().map(|line| {
            let (process, term) = line.split_once(' ').unwrap();
            (process.parse().unwrap(), term.parse().unwrap())
        });
        steps.collect()
    }

    /// Waits for a leader of a later term, and returns its process and the term.
    fn leader_after(&self, term: u64) -> (u32, u64) {
        let began = Instant::now();
        loop {
            match self.steps().last() {
                Some(&(process, later)) if later > term => return (process, later),
                _ => thread::sleep(Duration::from_millis(10)),
            }
            assert!(began.elapsed() < LIMIT, "nobody leads after {term}");
        }
    }

    /// Asserts that the terms of all steps increase, each with one leader.
    fn check(&self) {
        let steps = self.steps();
        assert!(steps.is_sorted_by_key(|(_, term)| *term), "{steps:?}");
        let leaders: BTreeMap<u64, u32> = steps
            .iter()
            .map(|(process, term)| (*term, *process))
            .collect();
        assert!(
            steps
                .iter()
                .all(|(process, term)| leaders[term] == *process)
        );
    }
}

#[test]
fn next_candidate_leads_when_a_leader_is_killed_or_ends() {
    let mut election = Election::start();
    let (mut leader, mut term) = election.leader_after(0);
    for is_killed in [true, false, true] {
        let number = election
            .candidates
            .iter()
            .position(|one| one.0.id() == leader)
            .unwrap();
        let candidate = election.candidates.swap_remove(number);
        match is_killed {
            true => drop(candidate),
            false => candidate.end(),
        }
        let former = leader;
        (leader, term) = election.leader_after(term);
        assert_ne!(leader, former);
    }
    election.check();
}

#[test]
fn leader_without_a_quorum_steps_down_and_is_elected_again() {
    let election = Election::start();
    let (_, term) = election.leader_after(0);
    let hung = &election.nodes[..2];
    hung.iter().for_each(|node| node.stop().unwrap());
    // The leader steps down before its lease ends: then its steps stand still.
    let began = Instant::now();
    let (mut steps, mut since) = (0, Instant::now());
    while since.elapsed() < Duration::from_secs(3) {
        if election.steps().len() != steps {
            (steps, since) = (election.steps().len(), Instant::now());
        }
        assert!(began.elapsed() < LIMIT, "a leader without a quorum goes on");
        thread::sleep(Duration::from_millis(10));
    }
    hung.iter().for_each(|node| node.resume().unwrap());
    election.leader_after(term);
    election.check();
}

#[test]
fn guide_shows_the_recipe_of_the_example() {
    let root = env!("CARGO_MANIFEST_DIR");
    let [guide, example] = ["../src/guide/leader_election.md", "leader.rs"]
        .map(|file| fs::read_to_string(format!("{root}/{file}")).unwrap());
    let begin = example.find("/// Stands for election").unwrap();
    let recipe = &example[begin..];
    let recipe = &recipe[..recipe.find("\n}\n").unwrap()];
    assert!(guide.contains(recipe), "the guide has not: {recipe}");
    assert!((25..=40).contains(&recipe.lines().count()));
}
