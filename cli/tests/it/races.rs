//! Many processes, signals at random moments, and hosts that begin at the same time.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::process::{
    Ended, LONG_TTL, Running, TIMEOUT, TOOL, bare, is_alive, run_args, tool,
};
use crate::support::proxy::Proxy;
use crate::support::servers::Server;
use crate::support::terminal::Terminal;
use crate::support::{addresses, ask, eventually, server, servers};

/// `REDGUARD_NIGHTS` sets another number.
const NIGHTS: u32 = 300;

/// Held by a test that starts very many processes: beside another such test the machine, and not
/// the tool, would decide the outcome.
static STORM: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    STORM.lock().unwrap_or_else(PoisonError::into_inner)
}

/// In each tenth night the job lasts until the other hosts have given up, and no lock is kept.
const LONG: u32 = 10;

#[test]
fn signals_at_random_moments_leave_no_key_no_child_and_no_zombie() {
    let _alone = alone();
    let node = server();
    let dir = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(17);
    for round in 0..300 {
        let file = dir.path().join(round.to_string());
        let script = format!("echo $$ >{}; exec sleep 600", file.display());
        let key = format!("k{}", round % 3);
        let args = ["--ttl", LONG_TTL, "--key", &key, "--", "sh", "-c", &script];
        let mut running = Running::start(tool(&node.addr(), "run", &args));
        std::thread::sleep(Duration::from_micros(random.u64(0..40_000)));
        let signal = *random.choice([1, 2, 3, 10, 12, 14, 15].iter()).unwrap();
        // The first may be too early for the tool to have blocked it, or for `setsid` to be gone.
        running.signal(signal);
        if random.bool() {
            running.signal(15);
        }
        eventually("the tool ends", || {
            // A command that began after the signal is ended by the next one.
            running.signal(signal);
            running.has_ended()
        });
        drop(running);
        if let Ok(text) = fs::read_to_string(&file)
            && let Ok(pid) = text.trim().parse()
        {
            eventually(&format!("command {pid} of round {round} is gone"), || {
                !is_alive(pid)
            });
        }
    }
    eventually("no key is left", || ask::<u32>(&node, &["DBSIZE"]) == 0);
}

/// On a terminal the command gets the signals of the group by itself, but for those of the moments
/// before it is there.
#[test]
fn signal_to_the_group_of_a_terminal_is_not_lost_at_any_moment() {
    let _alone = alone();
    let node = server();
    let mut random = fastrand::Rng::with_seed(23);
    for round in 0..200 {
        let mut terminal = {
            let addr = node.addr();
            Terminal::start(TOOL, &run_args(&addr, &["sleep", "600"]), 80)
        };
        std::thread::sleep(Duration::from_micros(random.u64(0..30_000)));
        let group = Pid::from_raw(-terminal.pid());
        // Once: setsid(1) has made the group by then.
        eventually("the group has the signal", || {
            kill(group, Signal::SIGTERM).is_ok() || terminal.has_ended()
        });
        eventually(&format!("the tool of round {round} ends"), || {
            terminal.has_ended()
        });
    }
}

#[test]
fn two_hundred_processes_at_once_run_one_after_the_other() {
    let _alone = alone();
    let nodes = servers(3);
    let dir = tempfile::tempdir().unwrap();
    let (inside, log) = (dir.path().join("inside"), dir.path().join("log"));
    // `mkdir` fails if another is inside.
    let script = format!(
        "mkdir {0} && echo ran >>{1} && rmdir {0}",
        inside.display(),
        log.display()
    );
    let args = ["--ttl", LONG_TTL, "--key", "k", "--", "sh", "-c", &script];
    let all = addresses(&nodes);
    let running: Vec<Running> = (0..200)
        .map(|_| {
            let mut command = bare(&["run", "--timeout", "10s", "--redis", &all]);
            command.args(args);
            Running::start(command)
        })
        .collect();
    for running in running {
        let ended = running.end();
        assert_eq!(ended.status, 0, "{ended:?}");
    }
    assert_eq!(fs::read_to_string(log).unwrap().lines().count(), 200);
    for node in &nodes {
        eventually("no key is left", || ask::<u32>(node, &["DBSIZE"]) == 0);
    }
}

/// Hosts in three zones begin a nightly job at the same moment with `--no-wait`: one runs it.
#[test]
fn nightly_job_of_three_zones_runs_once_each_night() {
    let _alone = alone();
    let nights = std::env::var("REDGUARD_NIGHTS").map_or(NIGHTS, |text| text.parse().unwrap());
    let nodes = servers(3);
    // Within a zone 0.2 ms one way, between zones 2 ms.
    let delay =
        |zone: usize, node: usize| Duration::from_micros(if zone == node { 200 } else { 2000 });
    let zones: Vec<Vec<Proxy>> = (0..3)
        .map(|zone| {
            let nodes = nodes.iter().enumerate();
            nodes
                .map(|(at, node)| Proxy::start(node, delay(zone, at)))
                .collect()
        })
        .collect();
    let lists: Vec<String> = zones
        .iter()
        .map(|zone| {
            let addresses: Vec<String> = zone.iter().map(Proxy::address).collect();
            addresses.join(",")
        })
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let mut runs = BTreeMap::new();
    for night in 0..nights {
        let key = format!("night-{night}");
        let go = dir.path().join(&key);
        let long = format!("until [ -e {} ]; do sleep 0.01; done", go.display());
        let job: &[&str] = match night % LONG {
            0 => &["--", "sh", "-c", &long],
            _ => &["--at-least", "1h", "--", "true"],
        };
        let args = [&["--no-wait", "--key", &key][..], job].concat();
        let hosts = lists
            .iter()
            .map(|list| Running::start(tool(list, "run", &args)));
        let mut hosts: Vec<Running> = hosts.collect();
        eventually("all hosts but one have ended", || {
            let ended = hosts.iter_mut().map(Running::has_ended);
            ended.filter(|has_ended| *has_ended).count() >= 2
        });
        fs::write(&go, "").unwrap();
        let ended: Vec<_> = hosts.into_iter().map(Running::end).collect();
        let ran = ended.iter().filter(|ended| ended.status == 0).count();
        *runs.entry(ran).or_insert(0) += 1;
        let is_expected = |ended: &Ended| matches!(ended.status, 0 | 75);
        assert!(ended.iter().all(is_expected), "{ended:?}");
    }
    assert_eq!(
        runs,
        BTreeMap::from([(1, nights)]),
        "runs per night: number of nights"
    );
}

/// A job of some milliseconds on hosts whose clocks differ by up to 300 ms.
#[test]
fn short_job_on_hosts_with_late_clocks_runs_once() {
    let node = server();
    let mut random = fastrand::Rng::with_seed(5);
    for tick in 0..5 {
        let key = format!("tick-{tick}");
        let mut hosts: Vec<Running> = Vec::new();
        for _ in 0..4 {
            let args = ["--at-least", "1h", "--no-wait", "--key", &key, "--", "true"];
            hosts.push(Running::start(tool(&node.addr(), "run", &args)));
            std::thread::sleep(Duration::from_millis(random.u64(0..100)));
        }
        let ended = hosts.into_iter().map(Running::end);
        assert_eq!(ended.filter(|ended| ended.status == 0).count(), 1);
    }
}

/// Two that wait take turns; the tool is what they run.
#[test]
fn locks_of_a_tool_within_a_tool_are_held_together() {
    let node = server();
    let addr = Server::addr(&node);
    let inner = [
        TOOL,
        "run",
        "--timeout",
        TIMEOUT,
        "--redis",
        &addr,
        "--key",
        "inner",
        "--",
        "true",
    ];
    let args = [&["--key", "outer", "--"][..], &inner].concat();
    Running::start(tool(&addr, "run", &args))
        .end()
        .assert(0, &[]);
}
