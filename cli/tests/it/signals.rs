//! Signals by state and terminal: each is passed on once, and none ends the tool while its command
//! runs.

use std::thread;
use std::time::{Duration, Instant};

use crate::support::process::{self, Running, TOOL, is_alive, run_args, tool};
use crate::support::servers::Server;
use crate::support::signal_log::SignalLog;
use crate::support::terminal::Terminal;
use crate::support::{ask, eventually, has_lock, server};

/// All signals with a name that can be caught, but for SIGCHLD, which the tool's own children cause.
const CATCHABLE: [i32; 28] = [
    1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16, 18, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29,
    30, 31,
];

/// SIGTSTP, SIGTTIN, SIGTTOU.
const STOPS: [i32; 3] = [20, 21, 22];

/// Signals without an effect by default: SIGCONT, SIGURG, SIGWINCH.
const NOTHING: [i32; 3] = [18, 23, 28];

/// Runs the tool with a command that logs signals, and sends each signal by `send`.
fn log_each(node: &Server, log: &SignalLog, key: &str, send: impl Fn(i32, i32)) {
    let [program, file] = log.command();
    let args = ["--key", key, "--", &program, &file];
    let running = Running::start(tool(&node.addr(), "run", &args));
    log.ready();
    for signal in CATCHABLE {
        send(running.pid(), signal);
        log.await_signal(signal);
    }
    assert!(is_alive(running.pid()) && has_lock(node, key));
    log.end(7);
    running.end().assert(7, &[]);
    assert!(!has_lock(node, key));
    for signal in CATCHABLE {
        assert_eq!(log.count(signal), 1, "signal {signal}: {}", log.text());
    }
}

#[test]
fn signals_to_the_tool_are_passed_on_once() {
    log_each(&server(), &SignalLog::new(), "k", process::signal);
}

#[test]
fn signals_to_the_group_of_the_tool_are_passed_on_once() {
    let to_group = |pid: i32, signal| process::signal(-pid, signal);
    log_each(&server(), &SignalLog::new(), "k", to_group);
}

#[test]
fn real_time_signals_are_passed_on() {
    let (node, log) = (server(), SignalLog::new());
    let [program, file] = log.command();
    let args = ["--key", "k", "--", &program, &file];
    let running = Running::start(tool(&node.addr(), "run", &args));
    log.ready();
    for signal in [34, 37, 64] {
        let kill = format!("kill -{signal} {}", running.pid());
        assert!(
            std::process::Command::new("sh")
                .args(["-c", &kill])
                .status()
                .unwrap()
                .success()
        );
        log.await_signal(signal);
    }
    log.end(0);
    running.end().assert(0, &[]);
}

/// The command is in the group of the tool, which is the foreground of the terminal.
fn log_each_on_terminal(send: impl Fn(i32, i32)) {
    let (node, log) = (server(), SignalLog::new());
    let [program, file] = log.command();
    let addr = node.addr();
    let args = run_args(&addr, &[&program, &file]);
    let terminal = Terminal::start(TOOL, &args, 80);
    log.ready();
    for signal in CATCHABLE {
        send(terminal.pid(), signal);
        log.await_signal(signal);
    }
    log.end(7);
    assert_eq!(terminal.end(), 7);
    for signal in CATCHABLE {
        assert_eq!(log.count(signal), 1, "signal {signal}: {}", log.text());
    }
}

#[test]
fn signals_to_the_tool_on_a_terminal_are_passed_on_once() {
    log_each_on_terminal(process::signal);
}

#[test]
fn signals_to_the_group_on_a_terminal_are_not_passed_on_again() {
    log_each_on_terminal(|pid, signal| process::signal(-pid, signal));
}

#[test]
fn keys_of_a_terminal_reach_the_command_once() {
    let (node, log) = (server(), SignalLog::new());
    let [program, file] = log.command();
    let addr = node.addr();
    let args = run_args(&addr, &[&program, &file]);
    let mut terminal = Terminal::start(TOOL, &args, 80);
    log.ready();
    for (key, signal) in [("\x03", 2), ("\x1c", 3)] {
        terminal.press(key);
        log.await_signal(signal);
    }
    log.end(0);
    assert_eq!(terminal.end(), 0);
    assert_eq!((log.count(2), log.count(3)), (1, 1), "{}", log.text());
}

/// Starts the tool while another holds its lock, and waits until it waits.
fn waiting(node: &Server, key: &str) -> Running {
    let args = ["--key", key, "--", "true"];
    let running = Running::start(tool(&node.addr(), "run", &args));
    await_waiting(node, key);
    running
}

fn await_waiting(node: &Server, key: &str) {
    let channel = format!("redguard:{key}");
    eventually("the tool waits", || {
        let (_, listeners): (String, u32) = ask(node, &["PUBSUB", "NUMSUB", &channel]);
        listeners == 1
    });
}

#[test]
fn fatal_signal_ends_the_wait_and_leaves_no_key() {
    let node = server();
    for signal in CATCHABLE {
        if STOPS.contains(&signal) || NOTHING.contains(&signal) {
            continue;
        }
        let key = format!("k{signal}");
        let lock = format!("redguard:{key}");
        ask::<()>(&node, &["SET", &lock, "stranger:1", "PX", "600000"]);
        let running = waiting(&node, &key);
        running.signal(signal);
        running
            .end()
            .assert(128 + signal, &["while waiting for the lock"]);
        let value: String = ask(&node, &["GET", &lock]);
        assert_eq!(value, "stranger:1");
    }
}

#[test]
fn harmless_signals_do_not_end_the_wait() {
    let node = server();
    ask::<()>(&node, &["SET", "redguard:k", "stranger:1", "PX", "600000"]);
    let running = waiting(&node, "k");
    for signal in NOTHING.into_iter().chain(STOPS) {
        running.signal(signal);
    }
    // Behind these signals in the tool's queue.
    ask::<()>(&node, &["DEL", "redguard:k"]);
    ask::<()>(&node, &["PUBLISH", "redguard:k", ""]);
    running.end().assert(0, &[]);
}

#[test]
fn interrupt_on_a_terminal_ends_the_wait_and_the_loop_around_it() {
    let node = server();
    ask::<()>(&node, &["SET", "redguard:k", "stranger:1", "PX", "600000"]);
    let script = format!(
        "while :; do {TOOL} run --timeout 2s --redis {} --key k -- true; echo again; done",
        node.addr()
    );
    let mut terminal = Terminal::start("bash", &["-c", &script], 80);
    await_waiting(&node, "k");
    terminal.press("\x03");
    eventually("the loop ends", || terminal.has_ended());
    assert!(!terminal.text().contains("again"), "{}", terminal.text());
}

#[test]
fn signals_after_the_loss_do_not_delay_the_kill() {
    let (node, log) = (server(), SignalLog::new());
    let [program, file] = log.command();
    let args = [
        "--key", "k", "--ttl", "3s", "--grace", "1s", "--", &program, &file,
    ];
    let mut running = Running::start(tool(&node.addr(), "run", &args));
    log.ready();
    ask::<()>(&node, &["SET", "redguard:k", "stranger:1"]);
    log.await_signal(15);
    let start = Instant::now();
    while !running.has_ended() {
        // As impatient people and supervisors do.
        running.signal(1);
        thread::sleep(Duration::from_millis(300));
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "each signal delays the kill"
        );
    }
    assert!(log.count(1) > 0 && log.count(15) == 1, "{}", log.text());
    let ended = running.end();
    assert_eq!(ended.status, 70, "{ended:?}");
}

#[test]
fn signals_during_the_release_do_not_change_the_status() {
    let (node, log) = (server(), SignalLog::new());
    let [program, file] = log.command();
    let args = ["--key", "k", "--ttl", "30s", "--", &program, &file];
    let running = Running::start(tool(&node.addr(), "run", &args));
    log.ready();
    node.stop().unwrap();
    log.end(7);
    for signal in [1, 2, 3, 15, 10] {
        running.signal(signal);
    }
    node.resume().unwrap();
    let ended = running.end();
    assert_eq!(ended.status, 7, "{ended:?}");
    eventually("the lock is released", || !has_lock(&node, "k"));
}
