//! Signals by state and terminal: each is passed on once, and none ends the tool while its command
//! runs.

use std::process::Command;

use crate::support::process::{self, LONG_TTL, Running, TIMEOUT, TOOL, run_args, state, tool};
use crate::support::servers::Server;
use crate::support::signal_log::SignalLog;
use crate::support::terminal::Terminal;
use crate::support::{ask, await_waiting, eventually, has_lock, server};

/// All signals with a name that can be caught, but for SIGCHLD, which the tool's own children cause.
/// SIGCONT is far behind the stop signals: each discards the other where it is still pending.
const CATCHABLE: [i32; 28] = [
    20, 21, 22, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28, 29, 30,
    31, 18,
];

/// SIGTSTP, SIGTTIN, SIGTTOU.
const STOPS: [i32; 3] = [20, 21, 22];

/// Signals without an effect by default: SIGCONT, SIGURG, SIGWINCH.
const NOTHING: [i32; 3] = [18, 23, 28];

/// The tool, with or without a terminal. On a terminal its command is in its process group, which
/// is the foreground; elsewhere the command has a group of its own.
enum Tool {
    Detached(Running),
    OnTerminal(Terminal),
}

/// Sends a signal to the process of the tool, or to its group as a whole.
#[derive(Clone, Copy, Debug)]
enum Target {
    Process,
    Group,
}

/// The columns of the table: with and without a terminal, by target.
const COLUMNS: [(bool, Target); 4] = [
    (false, Target::Process),
    (false, Target::Group),
    (true, Target::Process),
    (true, Target::Group),
];

impl Tool {
    /// Runs a command under the lock `k`.
    fn start(node: &Server, on_terminal: bool, options: &[&str], command: &[&str]) -> Tool {
        let args = [&["--key", "k"][..], options, &["--"], command].concat();
        if on_terminal {
            let addr = node.addr();
            let common = ["run", "--timeout", TIMEOUT, "--redis", &addr];
            Tool::OnTerminal(Terminal::start(TOOL, &[&common[..], &args].concat(), 80))
        } else {
            Tool::Detached(Running::start(tool(&node.addr(), "run", &args)))
        }
    }

    fn pid(&self) -> i32 {
        match self {
            Tool::Detached(running) => running.pid(),
            Tool::OnTerminal(terminal) => terminal.pid(),
        }
    }

    fn signal(&self, target: Target, number: i32) {
        match target {
            Target::Process => process::signal(self.pid(), number),
            Target::Group => process::signal(-self.pid(), number),
        }
    }

    /// As `signal`, for numbers that have no name.
    fn real_time_signal(&self, target: Target, number: i32) {
        let sign = match target {
            Target::Process => "",
            Target::Group => "-",
        };
        let kill = format!("kill -{number} -- {sign}{}", self.pid());
        let status = Command::new("bash").args(["-c", &kill]).status();
        assert!(status.unwrap().success());
    }

    /// Blocks until the tool has ended. Returns its status, and what it wrote.
    #[track_caller]
    fn end(self) -> (i32, String) {
        match self {
            Tool::Detached(running) => {
                let ended = running.end();
                (ended.status, ended.err)
            }
            Tool::OnTerminal(terminal) => {
                let text = terminal.whole_text();
                (terminal.end(), text)
            }
        }
    }
}

/// A tool whose command logs signals, on a node of its own.
struct Logged {
    node: Server,
    log: SignalLog,
    tool: Tool,
}

impl Logged {
    fn start(on_terminal: bool, options: &[&str]) -> Logged {
        let (node, log) = (server(), SignalLog::new());
        let [program, file] = log.command();
        let tool = Tool::start(&node, on_terminal, options, &[&program, &file]);
        log.ready();
        Logged { node, log, tool }
    }
}

#[test]
fn signals_while_the_command_runs_are_passed_on_once() {
    for (on_terminal, target) in COLUMNS {
        let Logged { node, log, tool } = Logged::start(on_terminal, &[]);
        for signal in CATCHABLE {
            tool.signal(target, signal);
            log.await_signal(signal);
        }
        assert!(has_lock(&node, "k"));
        log.end(7);
        let (status, text) = tool.end();
        assert_eq!(status, 7, "{on_terminal} {target:?}: {text}");
        assert!(!has_lock(&node, "k"));
        for signal in CATCHABLE {
            let told = log.text();
            assert_eq!(
                log.count(signal),
                1,
                "{on_terminal} {target:?}: signal {signal}: {told}"
            );
        }
    }
}

#[test]
fn signals_after_the_loss_are_passed_on_once() {
    // The time for all signals, before KILL.
    let options = ["--ttl", "30s", "--grace", "15s"];
    let tools = COLUMNS.map(|(on_terminal, _)| Logged::start(on_terminal, &options));
    for logged in &tools {
        ask::<()>(&logged.node, &["SET", "redguard:k", "stranger:1"]);
    }
    for (logged, (on_terminal, target)) in tools.into_iter().zip(COLUMNS) {
        let Logged { node, log, tool } = logged;
        // SIGTERM, and SIGCONT after it.
        log.await_signal(18);
        for signal in CATCHABLE {
            let before = log.count(signal);
            tool.signal(target, signal);
            eventually(&format!("signal {signal}"), || log.count(signal) > before);
        }
        log.end(7);
        let (status, text) = tool.end();
        assert_eq!(status, 70, "{on_terminal} {target:?}: {text}");
        for signal in CATCHABLE {
            let by_loss = usize::from([15, 18].contains(&signal));
            let told = log.text();
            let count = log.count(signal) - by_loss;
            assert_eq!(
                count, 1,
                "{on_terminal} {target:?}: signal {signal}: {told}"
            );
        }
        drop(node);
    }
}

#[test]
fn signals_during_the_release_change_nothing() {
    for (on_terminal, target) in COLUMNS {
        let Logged { node, log, tool } = Logged::start(on_terminal, &["--ttl", LONG_TTL]);
        let command = log.pid();
        node.stop().unwrap();
        log.end(7);
        eventually("the command is reaped", || state(command).is_none());
        for signal in CATCHABLE {
            tool.signal(target, signal);
        }
        node.resume().unwrap();
        let (status, text) = tool.end();
        assert_eq!(status, 7, "{on_terminal} {target:?}: {text}");
        eventually("the lock is released", || !has_lock(&node, "k"));
    }
}

/// A real-time signal is queued while another of its number is pending, so that a second one is
/// always seen. Of the other signals two may become one.
#[test]
fn real_time_signals_are_passed_on_once() {
    for (on_terminal, target) in COLUMNS {
        let Logged { node, log, tool } = Logged::start(on_terminal, &[]);
        for signal in [34, 37, 63] {
            tool.real_time_signal(target, signal);
            log.await_signal(signal);
        }
        // Behind these signals in the tool's queue.
        tool.real_time_signal(Target::Process, 64);
        log.await_signal(64);
        log.end(7);
        let (status, text) = tool.end();
        assert_eq!(status, 7, "{on_terminal} {target:?}: {text}");
        for signal in [34, 37, 63, 64] {
            let (count, told) = (log.count(signal), log.text());
            assert_eq!(count, 1, "{on_terminal} {target:?}: {signal}: {told}");
        }
        drop(node);
    }
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

#[test]
fn fatal_signal_ends_the_wait_and_leaves_no_key() {
    let node = server();
    ask::<()>(
        &node,
        &["SET", "redguard:k", "stranger:1", "PX", "36000000"],
    );
    for (on_terminal, target) in COLUMNS {
        for signal in CATCHABLE {
            if STOPS.contains(&signal) || NOTHING.contains(&signal) {
                continue;
            }
            let tool = Tool::start(&node, on_terminal, &[], &["true"]);
            await_waiting(&node, "k", 1);
            tool.signal(target, signal);
            let (status, text) = tool.end();
            assert_eq!(status, 128 + signal, "{on_terminal} {target:?}: {text}");
            assert!(text.contains("while waiting for the lock"), "{text}");
            assert_eq!(text.lines().count(), 1, "{text}");
            let value: String = ask(&node, &["GET", "redguard:k"]);
            assert_eq!(value, "stranger:1");
            await_waiting(&node, "k", 0);
        }
    }
}

#[test]
fn harmless_signals_do_not_end_the_wait() {
    let node = server();
    ask::<()>(&node, &["SET", "redguard:k", "stranger:1", "PX", "600000"]);
    let running = Running::start(tool(&node.addr(), "run", &["--key", "k", "--", "true"]));
    await_waiting(&node, "k", 1);
    for signal in NOTHING.into_iter().chain(STOPS) {
        running.signal(signal);
    }
    // Else the command may run before they are received, and be stopped by one of them.
    eventually("they are received", || {
        !process::has_pending_signals(running.pid())
    });
    ask::<()>(&node, &["DEL", "redguard:k"]);
    ask::<()>(&node, &["PUBLISH", "redguard:k", ""]);
    running.end().assert(0, &[]);
}

#[test]
fn interrupt_on_a_terminal_ends_the_wait_and_the_loop_around_it() {
    let node = server();
    ask::<()>(&node, &["SET", "redguard:k", "stranger:1", "PX", "600000"]);
    let script = format!(
        "while :; do {TOOL} run --timeout {TIMEOUT} --redis {} --key k -- true; echo again; done",
        node.addr()
    );
    let mut terminal = Terminal::start("bash", &["-c", &script], 80);
    await_waiting(&node, "k", 1);
    terminal.press("\x03");
    eventually("the loop ends", || terminal.has_ended());
    assert!(!terminal.text().contains("again"), "{}", terminal.text());
}

/// The witness of the group stays stopped then, and the tool asks it at each signal.
#[test]
fn tool_that_is_continued_alone_after_a_stop_of_its_group_passes_signals_on() {
    let Logged { node, log, tool } = Logged::start(true, &["--ttl", LONG_TTL]);
    tool.signal(Target::Group, 19);
    process::await_state(tool.pid(), 'T');
    for pid in [tool.pid(), log.pid()] {
        process::signal(pid, 18);
    }
    for signal in [10, 12] {
        tool.signal(Target::Process, signal);
        log.await_signal(signal);
    }
    log.end(7);
    let (status, text) = tool.end();
    assert_eq!(status, 7, "{text}");
    assert_eq!((log.count(10), log.count(12)), (1, 1), "{}", log.text());
    drop(node);
}

#[test]
fn signals_after_the_loss_do_not_delay_the_kill() {
    let (node, log) = (server(), SignalLog::new());
    let [program, file] = log.command();
    let args = [
        "--key", "k", "--ttl", "9s", "--grace", "3s", "--", &program, &file,
    ];
    let mut running = Running::start(tool(&node.addr(), "run", &args));
    log.ready();
    ask::<()>(&node, &["SET", "redguard:k", "stranger:1"]);
    log.await_signal(15);
    running.signal(1);
    log.await_signal(1);
    eventually(
        "the command is killed though each signal follows the last",
        || {
            running.signal(1);
            running.has_ended()
        },
    );
    assert_eq!(log.count(15), 1, "{}", log.text());
    let ended = running.end();
    assert_eq!(ended.status, 70, "{ended:?}");
}
