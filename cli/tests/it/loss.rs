//! Locks that are lost while the command runs.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;

use crate::support::process::{Running, is_alive, run, signal, tool};
use crate::support::proxy::Proxy;
use crate::support::servers::Server;
use crate::support::signal_log::SignalLog;
use crate::support::{LIMIT, ask, eventually, server, servers};

/// A lock that a busy machine does not lose, and the time in which a command on such a machine
/// notes its TERM.
const SHORT: [&str; 6] = ["--key", "k", "--ttl", "9s", "--grace", "3s"];

/// Starts a shell script that ends at TERM under the lock `k`, waits until it runs, and replaces
/// the lock's value. The script ends with 0 when the returned file exists.
fn taken(options: &[&str]) -> (Running, PathBuf) {
    let node = server();
    let dir = tempfile::tempdir().unwrap();
    let (started, go) = (dir.path().join("started"), dir.path().join("go"));
    let script = format!(
        "trap 'exit 0' TERM; : >{}; until [ -e {} ]; do sleep 0.02; done",
        started.display(),
        go.display()
    );
    let args = [&SHORT[..], options, &["--", "sh", "-c", &script]];
    let running = Running::start(tool(&node.addr(), "run", &args.concat()));
    eventually("the command runs", || started.exists());
    ask::<()>(&node, &["SET", "redguard:k", "stranger:1", "PX", "600000"]);
    // The server outlives the tool.
    std::thread::spawn(move || {
        std::thread::sleep(LIMIT);
        drop((node, dir));
    });
    (running, go)
}

#[test]
fn taken_lock_ends_the_command_with_70_though_it_traps_term() {
    let (running, _) = taken(&["--json"]);
    let ended = running.end();
    assert_eq!(ended.status, 70, "{ended:?}");
    let report = ended.report();
    assert_eq!(
        (&report["lost"], &report["command_status"]),
        (&json!(true), &json!(0))
    );
}

#[test]
fn taken_lock_with_a_warning_lets_the_command_end_and_is_70() {
    let (running, go) = taken(&["--on-lost", "warn"]);
    running.await_err("the lock is lost; the command goes on without it");
    fs::write(go, "").unwrap();
    running.end().assert(70, &["lost"]);
}

#[test]
fn loss_that_the_release_finds_is_70() {
    let node = server();
    let dir = tempfile::tempdir().unwrap();
    let (started, go) = (dir.path().join("started"), dir.path().join("go"));
    let script = format!(
        ": >{}; until [ -e {} ]; do sleep 0.01; done",
        started.display(),
        go.display()
    );
    // Renewals are far away.
    let args = ["--key", "k", "--ttl", "300s", "--", "sh", "-c", &script];
    let running = Running::start(tool(&node.addr(), "run", &args));
    eventually("the command runs", || started.exists());
    ask::<()>(&node, &["DEL", "redguard:k"]);
    fs::write(&go, "").unwrap();
    let ended = running.end();
    assert_eq!(ended.status, 70, "{ended:?}");
}

#[test]
fn loss_ends_the_children_of_the_command_too() {
    let node = server();
    let dir = tempfile::tempdir().unwrap();
    let child = dir.path().join("child");
    let script = format!(
        "sleep 600 >/dev/null 2>&1 & echo $! >{0}.tmp; mv {0}.tmp {0}; wait",
        child.display()
    );
    let args = [&SHORT[..], &["--", "sh", "-c", &script]].concat();
    let running = Running::start(tool(&node.addr(), "run", &args));
    eventually("the child runs", || child.exists());
    let pid: i32 = fs::read_to_string(&child).unwrap().trim().parse().unwrap();
    assert!(is_alive(pid));
    run(tool(&node.addr(), "break", &["k", "--yes"])).assert(0, &[]);
    let ended = running.end();
    assert_eq!(ended.status, 70, "{ended:?}");
    eventually("the child is gone", || !is_alive(pid));
}

#[test]
fn broken_lock_ends_the_command_before_its_next_renewal() {
    let node = server();
    let dir = tempfile::tempdir().unwrap();
    let started = dir.path().join("started");
    let script = format!(": >{}; exec sleep 600", started.display());
    // Renewals begin after a quarter of an hour.
    let args = ["--key", "k", "--ttl", "3000s", "--", "sh", "-c", &script];
    let running = Running::start(tool(&node.addr(), "run", &args));
    eventually("the command runs", || started.exists());
    eventually("notices are received", || {
        let words = ["PUBSUB", "NUMSUB", "redguard:listener:notices"];
        ask::<(String, u64)>(&node, &words).1 == 1
    });
    run(tool(&node.addr(), "break", &["k", "--yes"])).assert(0, &[]);
    let ended = running.end();
    assert_eq!(ended.status, 70, "{ended:?}");
}

/// The early warning gives a command that stops within the grace the time to be gone before a rival
/// can have the lock.
#[test]
fn command_is_gone_before_a_rival_begins_after_a_partition() {
    let nodes = servers(3);
    let proxies: Vec<Proxy> = nodes
        .iter()
        .map(|node| Proxy::start(node, Duration::ZERO))
        .collect();
    let addresses: Vec<String> = proxies.iter().map(Proxy::address).collect();
    let near: Vec<String> = nodes.iter().map(Server::addr).collect();
    let dir = tempfile::tempdir().unwrap();
    let (started, log) = (dir.path().join("started"), dir.path().join("log"));
    let clean_up = format!(
        "trap 'sleep 0.3; echo gone >>{log}; exit 0' TERM; : >{started}; while :; do sleep 0.02; done",
        log = log.display(),
        started = started.display()
    );
    let args = [
        "--key", "k", "--ttl", "15s", "--grace", "5s", "--", "sh", "-c", &clean_up,
    ];
    let running = Running::start(tool(&addresses.join(","), "run", &args));
    eventually("the command runs", || started.exists());
    proxies.iter().for_each(Proxy::cut);
    let rival = format!("echo rival >>{}", log.display());
    let args = ["--key", "k", "--", "sh", "-c", &rival];
    run(tool(&near.join(","), "run", &args)).assert(0, &[]);
    let ended = running.end();
    assert_eq!(ended.status, 70, "{ended:?}");
    assert_eq!(
        fs::read_to_string(&log).unwrap(),
        "gone\nrival\n",
        "{ended:?}"
    );
}

#[test]
fn stubborn_command_is_killed_at_the_end_of_its_lock() {
    let (node, log) = (server(), SignalLog::new());
    let [program, file] = log.command();
    let args = [&SHORT[..], &["--", &program, &file]].concat();
    let running = Running::start(tool(&node.addr(), "run", &args));
    log.ready();
    node.stop().unwrap();
    log.await_signal(15);
    let ended = running.end();
    assert_eq!(ended.status, 70, "{ended:?}");
    assert_eq!(log.count(15), 1, "{}", log.text());
    // The library tells the same in its log.
    assert_eq!(ended.err.matches("ends in").count(), 1, "{ended:?}");
}

#[test]
fn blocked_standard_error_does_not_keep_the_command_alive() {
    let (node, log) = (server(), SignalLog::new());
    let [program, file] = log.command();
    let args = [&SHORT[..], &["-vv", "--", &program, &file]].concat();
    // A full pipe that nobody reads.
    let (_reader, writer) = std::io::pipe().unwrap();
    let filler = writer.try_clone().unwrap();
    let mut command = tool(&node.addr(), "run", &args);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(writer);
    let mut child = command.spawn().unwrap();
    std::thread::spawn(move || {
        use std::io::Write;
        // Blocks for good once the pipe is full.
        let _ = (&filler).write_all(&[b'x'; 1 << 20]);
    });
    log.ready();
    ask::<()>(&node, &["SET", "redguard:k", "stranger:1", "PX", "600000"]);
    log.await_signal(15);
    let mut status = None;
    eventually("the tool ends", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(70));
    signal(child.id().cast_signed(), 9);
}
