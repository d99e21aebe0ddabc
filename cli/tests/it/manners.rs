//! Manners of a wrapper: inherited dispositions, timeout(1), nohup(1), PID 1, process
//! groups, job control.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use crate::support::process::{
    LONG_TTL, Running, TIMEOUT, TOOL, await_state, clean, detached, is_alive, run, run_args,
    signal, state, tool,
};
use crate::support::signal_log::SignalLog;
use crate::support::terminal::Terminal;
use crate::support::{eventually, has_lock, server};

/// Prepares another program that starts the tool with these arguments.
fn through(program: &[&str], addr: &str, args: &[&str]) -> Command {
    let mut command = detached(program[0]);
    command.args(&program[1..]);
    command
        .arg(TOOL)
        .args(["run", "--timeout", TIMEOUT, "--redis", addr]);
    command.args(args);
    command
}

/// Returns the ignored and the blocked signals of a command that a shell script starts, directly
/// and by the tool.
fn dispositions(script: &str) -> [String; 2] {
    let node = server();
    let addr = node.addr();
    let show = ["grep", "-E", "^Sig(Ign|Blk)", "/proc/self/status"];
    let shell = ["bash", "-c", script, "bash"];
    let mut directly = detached(shell[0]);
    directly.args(&shell[1..]).args(show);
    let args = [&["--key", "k", "--"][..], &show].concat();
    let ended = [run(directly), run(through(&shell, &addr, &args))];
    ended.map(|ended| {
        ended.assert(0, &[]);
        ended.out.lines().map(without_reserved).collect()
    })
}

/// Leaves out signals 32 and 33, which the C library keeps for itself in each program with threads.
fn without_reserved(line: &str) -> String {
    let (name, mask) = line.split_once(':').unwrap();
    let mask = u64::from_str_radix(mask.trim(), 16).unwrap();
    format!("{name} {:x}\n", mask & !(3 << 31))
}

#[test]
fn dispositions_of_the_command_are_those_of_the_start() {
    let mut seen = Vec::new();
    for ignored in ["", "HUP", "PIPE", "HUP INT QUIT PIPE USR1 ALRM TERM TSTP"] {
        let traps = format!("for s in {ignored}; do trap '' $s; done");
        let [directly, by_tool] = dispositions(&format!(r#"{traps}; exec "$@""#));
        assert_eq!(directly, by_tool, "{ignored}");
        seen.push(directly);
    }
    // Under nohup(1) the first two are the same.
    assert_ne!(seen.first(), seen.last(), "the shell ignores nothing");
}

#[test]
fn ignored_signals_are_not_passed_on() {
    let (node, log) = (server(), SignalLog::new());
    let [program, file] = log.command();
    let script = r#"trap '' HUP INT PIPE USR1; exec "$@""#;
    let addr = node.addr();
    let shell = ["sh", "-c", script, "sh"];
    let running = Running::start(through(
        &shell,
        &addr,
        &["--key", "k", "--", &program, &file],
    ));
    log.ready();
    for signal in [1, 2, 10, 13] {
        running.signal(signal);
    }
    running.signal(15);
    log.await_signal(15);
    assert!(is_alive(running.pid()));
    log.end(0);
    running.end().assert(0, &[]);
    for signal in [1, 2, 10, 13] {
        assert_eq!(log.count(signal), 0, "{}", log.text());
    }
}

#[test]
fn nohup_survives_the_terminal() {
    let node = server();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let script = format!(
        "{TOOL} run --timeout {TIMEOUT} --redis {node} --key k --ttl {LONG_TTL} -- \
         sh -c \": >{dir}/started; until [ -e {dir}/go ]; do sleep 0.02; done; exit 7\"; \
         echo $? >{dir}/draft; mv {dir}/draft {dir}/status\n",
        node = node.addr(),
        dir = dir.path().display()
    );
    fs::write(path("script"), script).unwrap();
    let mut terminal = Terminal::start("bash", &["--norc", "--noprofile", "-i"], 200);
    let script = path("script");
    terminal.press(&format!(
        "nohup sh {} >/dev/null 2>&1 &\n",
        script.display()
    ));
    eventually("the command runs", || path("started").exists());
    // The shell tells its jobs what the closed terminal has told it, and ends.
    signal(terminal.pid(), 1);
    assert_eq!(terminal.end(), 129);
    assert!(has_lock(&node, "k"));
    fs::write(path("go"), "").unwrap();
    eventually("the tool ends", || path("status").exists());
    assert_eq!(fs::read_to_string(path("status")).unwrap(), "7\n");
    assert!(!has_lock(&node, "k"));
}

#[test]
fn status_passes_where_the_parent_ignores_sigchld() {
    let node = server();
    let script = r#"trap '' CHLD; exec "$@""#;
    let args = ["--key", "k", "--", "sh", "-c", "exit 3"];
    run(through(
        &["bash", "-c", script, "bash"],
        &node.addr(),
        &args,
    ))
    .assert(3, &[]);
}

/// SIGALRM, by which timeout(1) learns that the time is over.
const TIME_OUT: i32 = 14;

#[test]
fn timeout_sends_one_signal_to_the_command() {
    let (node, log) = (server(), SignalLog::new());
    let [program, file] = log.command();
    let args = ["--key", "k", "--", &program, &file];
    let running = Running::start(through(&["timeout", "600"], &node.addr(), &args));
    log.ready();
    running.signal(TIME_OUT);
    log.await_signal(15);
    log.await_signal(18);
    log.end(0);
    running.end().assert(124, &[]);
    assert_eq!((log.count(15), log.count(18)), (1, 1), "{}", log.text());
}

#[test]
fn timeout_on_a_terminal_sends_one_signal_to_the_command() {
    let (node, log) = (server(), SignalLog::new());
    let [program, file] = log.command();
    let addr = node.addr();
    let args = [&["600", TOOL][..], &run_args(&addr, &[&program, &file])].concat();
    let terminal = Terminal::start("timeout", &args, 80);
    log.ready();
    signal(terminal.pid(), TIME_OUT);
    log.await_signal(15);
    log.await_signal(18);
    log.end(0);
    assert_eq!(terminal.end(), 124);
    assert_eq!((log.count(15), log.count(18)), (1, 1), "{}", log.text());
}

#[test]
fn first_process_of_a_namespace_reaps_and_passes_signals_on() {
    let (node, log) = (server(), SignalLog::new());
    let [program, file] = log.command();
    let mut namespace = vec!["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    if !is_root {
        namespace.extend(["--user", "--map-root-user"]);
    }
    let can = run({
        let mut command = detached("unshare");
        command.args(&namespace[1..]).arg("true");
        command
    });
    assert_eq!(
        can.status, 0,
        "the test needs the right to make a PID namespace: {can:?}"
    );
    let args = ["--key", "k", "--", &program, &file];
    let running = Running::start(through(&namespace, &node.addr(), &args));
    log.ready();
    // unshare(1) is the parent of the tool, which is PID 1 inside.
    let inside = fs::read_to_string(format!("/proc/{0}/task/{0}/children", running.pid()));
    let tool_pid: i32 = inside.unwrap().trim().parse().unwrap();
    signal(tool_pid, 15);
    log.await_signal(15);
    log.end(7);
    running.end().assert(7, &[]);

    // Orphans end, and are then to vanish.
    let zombies = "for i in 1 2 3; do sh -c '(sleep 0.05; echo >&2) &'; done 2>ended; \
                   until [ $(wc -l <ended) = 3 ]; do sleep 0.01; done; \
                   for i in $(seq 1000); do ps -eo stat= | grep -q Z || exit 0; sleep 0.01; done; \
                   exit 1";
    let dir = tempfile::tempdir().unwrap();
    let args = ["--key", "k", "--", "sh", "-c", zombies];
    let mut tool = through(&namespace, &node.addr(), &args);
    tool.current_dir(dir.path());
    run(tool).assert(0, &[]);
}

#[test]
fn lock_waits_for_the_group_only_if_it_is_asked_to() {
    let node = server();
    for waits in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (go, pid) = (dir.path().join("go"), dir.path().join("pid"));
        let script = format!(
            "(while [ -d {dir} ] && [ ! -e {go} ]; do sleep 0.01; done) >/dev/null 2>&1 & \
             echo $$ >{pid}.tmp; mv {pid}.tmp {pid}",
            dir = dir.path().display(),
            go = go.display(),
            pid = pid.display()
        );
        let option: &[&str] = if waits { &["--wait-for-group"] } else { &[] };
        let args = [&["--key", "k"][..], option, &["--", "sh", "-c", &script]].concat();
        let mut running = Running::start(tool(&node.addr(), "run", &args));
        eventually("the command has begun", || pid.exists());
        let pid = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        eventually("the command has ended", || !is_alive(pid));
        if waits {
            let next = ["--key", "k", "--no-wait", "--", "true"];
            run(tool(&node.addr(), "run", &next)).assert(75, &["held"]);
            assert!(!running.has_ended());
            fs::write(&go, "").unwrap();
        }
        running.end().assert(0, &[]);
        assert!(!has_lock(&node, "k"));
    }
}

#[test]
fn command_dies_with_a_killed_tool_if_it_is_asked_to() {
    let (node, log) = (server(), SignalLog::new());
    let [program, file] = log.command();
    let args = ["--key", "k", "--die-with-parent", "--", &program, &file];
    let running = Running::start(tool(&node.addr(), "run", &args));
    log.ready();
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", running.pid()));
    let pid: i32 = children.unwrap().trim().parse().unwrap();
    running.signal(9);
    eventually("the command is gone", || !is_alive(pid));
}

#[test]
fn suspend_key_stops_tool_and_command_and_fg_continues_them() {
    let (node, log) = (server(), SignalLog::new());
    let [program, file] = log.command();
    let mut terminal = Terminal::start("bash", &["--norc", "--noprofile", "-i"], 200);
    let line = format!(
        "{TOOL} run --timeout {TIMEOUT} --redis {} --key k --ttl {LONG_TTL} -- {program} {file}; echo status $?\n",
        node.addr()
    );
    terminal.press(&line);
    log.ready();
    let pid = child_of(terminal.pid());
    terminal.press("\x1a");
    await_state(pid, 'T');
    // The command logs the signal instead of stopping, so one group of the shell is stopped.
    log.await_signal(20);
    terminal.press("fg\n");
    eventually("the tool runs", || {
        state(pid).is_some_and(|state| state != 'T')
    });
    log.await_signal(18);
    log.end(7);
    eventually("the lock is released", || !has_lock(&node, "k"));
    assert_eq!((log.count(20), log.count(18)), (1, 1), "{}", log.text());
    terminal.press("exit\n");
    terminal.end();
}

fn child_of(pid: i32) -> i32 {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let mut child = None;
    eventually("the shell has a child", || {
        let text = fs::read_to_string(&path).unwrap_or_default();
        child = text
            .split_whitespace()
            .next()
            .and_then(|pid| pid.parse().ok());
        child.is_some()
    });
    child.unwrap()
}

#[test]
fn standard_streams_and_the_terminal_are_those_of_the_command() {
    let node = server();
    let mut command = Command::new(TOOL);
    clean(&mut command);
    let addr = node.addr();
    command.args(run_args(&addr, &["cat"]));
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    use std::io::Write;
    child.stdin.take().unwrap().write_all(b"through\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.stdout, b"through\n");

    let args = run_args(
        &addr,
        &[
            "sh",
            "-c",
            "read word; echo got $word; test -t 0 && test -t 1 && test -t 2",
        ],
    );
    let mut terminal = Terminal::start(TOOL, &args, 80);
    terminal.press("hello\n");
    terminal.await_text("got hello");
    assert_eq!(terminal.end(), 0);
}
