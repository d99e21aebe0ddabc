//! Statuses and messages of `run`.

use serde_json::json;

use crate::support::process::{Ended, TIMEOUT, TOOL, bare, detached, run, tool};
use crate::support::servers::Server;
use crate::support::{ask, server};

/// No server listens there.
const UNREACHABLE: &str = "127.0.0.1:1";

fn sh(node: &Server, options: &[&str], script: &str) -> Ended {
    let args = [options, &["--", "sh", "-c", script]].concat();
    run(tool(&node.addr(), "run", &args))
}

#[test]
fn run_ends_with_the_status_of_its_command() {
    let node = server();
    for (status, script) in [(0, "true"), (7, "exit 7"), (255, "exit 255")] {
        sh(&node, &["--key", "k"], script).assert(status, &[]);
    }
    for (status, script) in [
        (143, "kill -TERM $$"),
        (137, "kill -KILL $$"),
        (130, "kill -INT $$"),
    ] {
        sh(&node, &["--key", "k"], script).assert(status, &[]);
    }
    sh(&node, &["--key", "k"], "kill -40 $$").assert(168, &[]);
}

#[test]
fn held_lock_is_75_or_the_chosen_status_and_names_the_holder() {
    let node = server();
    ask::<()>(&node, &["SET", "redguard:k", "web-7/12:1", "PX", "600000"]);
    let no_wait = ["--key", "k", "--no-wait"];
    let ended = sh(&node, &no_wait, "true");
    ended.assert(75, &["held"]);
    assert!(ended.err.contains("web-7/12"), "{ended:?}");
    sh(&node, &["--key", "k", "--wait", "0.2"], "true").assert(75, &["held"]);
    sh(&node, &[&no_wait[..], &["-E", "3"]].concat(), "true").assert(3, &["held"]);
    sh(&node, &[&no_wait[..], &["-q"]].concat(), "true").assert(75, &[]);
    let ended = sh(
        &node,
        &[&no_wait[..], &["--json", "-E", "3"]].concat(),
        "true",
    );
    ended.assert(3, &["held"]);
    assert_eq!(
        (&ended.report()["kind"], &ended.report()["status"]),
        (&json!("held"), &json!(3))
    );
}

/// Nobody is named for readers, of whom there may be many.
#[test]
fn lock_that_readers_hold_is_75_and_tells_until_when() {
    let node = server();
    let addr = node.addr();
    let write = [
        TOOL,
        "run",
        "--timeout",
        TIMEOUT,
        "--redis",
        &addr,
        "--key",
        "k",
        "--exclusive",
        "--no-wait",
        "--json",
        "--",
        "true",
    ];
    let args = [&["--key", "k", "--shared", "--"][..], &write].concat();
    let ended = run(tool(&addr, "run", &args));
    ended.assert(75, &["held"]);
    let report = ended.report();
    assert_eq!(
        (&report["kind"], &report["owner"]),
        (&json!("held"), &json!(null))
    );
    let left = report["remaining_ms"].as_u64();
    assert!(left.is_some_and(|left| left > 0), "{report}");
}

#[test]
fn unreachable_nodes_are_69_without_a_wait_and_after_it() {
    for wait in ["--no-wait", "--wait=300ms"] {
        let args = [
            "run",
            "--redis",
            UNREACHABLE,
            "--key",
            "k",
            wait,
            "--",
            "true",
        ];
        let ended = run(bare(&args));
        assert_eq!(ended.status, 69, "{ended:?}");
        assert!(
            ended.err.lines().last().unwrap().contains("no quorum"),
            "{ended:?}"
        );
    }
}

#[test]
fn denied_access_is_77_without_a_wait() {
    let node = Server::options()
        .arg("--requirepass", "s3cret")
        .start()
        .unwrap();
    // A connect is tried again for five times the limit of a node.
    let denied = |nodes: &str| {
        let common = ["run", "--timeout", "500ms", "--redis", nodes];
        run(bare(&[&common[..], &["--key", "k", "--", "true"]].concat()))
    };
    let ended = denied(&node.addr());
    assert_eq!(ended.status, 77, "{ended:?}");
    let wrong = format!("redis://:wr0ng@{}", node.addr());
    let ended = denied(&wrong);
    assert!(
        ended.status == 77 && !ended.err.contains("wr0ng"),
        "{ended:?}"
    );
    let right = format!("redis://:s3cret@{}", node.addr());
    run(tool(&right, "run", &["--key", "k", "--", "true"])).assert(0, &[]);
}

#[test]
fn command_that_cannot_be_run_is_126_or_127_and_frees_the_lock() {
    let node = server();
    let dir = tempfile::tempdir().unwrap();
    for (command, status) in [
        ("/no/such/command", 127),
        (dir.path().to_str().unwrap(), 126),
    ] {
        let args = ["--key", "k", "--", command];
        run(tool(&node.addr(), "run", &args)).assert(status, &[command]);
        sh(&node, &["--key", "k", "--no-wait"], "true").assert(0, &[]);
    }
}

#[test]
fn shortage_of_descriptors_is_71_and_frees_the_lock() {
    let node = server();
    let addr = node.addr();
    let mut statuses = Vec::new();
    // With fewer there is no connection, with more the command is started.
    for limit in ["5", "6", "7", "8", "9"] {
        let script = r#"ulimit -n "$0"; exec "$@""#;
        let mut shell = detached("sh");
        shell.args(["-c", script, limit, TOOL, "run", "--redis", &addr]);
        shell.args(["--key", "k", "--", "true"]);
        let ended = run(shell);
        let is_told = ended.status != 71 || ended.err.contains("Too many open files");
        assert!(is_told, "{ended:?}");
        statuses.push(ended.status);
        sh(&node, &["--key", "k", "--no-wait"], "true").assert(0, &[]);
    }
    assert!(statuses.contains(&71), "{statuses:?}");
    let others = statuses.iter().find(|status| ![0, 69, 71].contains(status));
    assert_eq!(others, None, "{statuses:?}");
}

#[test]
fn script_without_interpreter_runs_by_the_shell() {
    let node = server();
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    // Written by a process: the system refuses to execute a file while another thread's new process
    // has it open.
    let write = format!(
        "echo 'echo $1 $REDGUARD_KEY; exit 4' >{0} && chmod +x {0}",
        script.display()
    );
    let mut shell = detached("sh");
    shell.args(["-c", &write]);
    run(shell).assert(0, &[]);
    let args = ["--key", "k", "--", script.to_str().unwrap(), "word"];
    let ended = run(tool(&node.addr(), "run", &args));
    ended.assert(4, &[]);
    assert_eq!(ended.out, "word k\n");
}

#[test]
fn wrong_usage_is_64_and_one_line() {
    let node = server();
    let addr = node.addr();
    for (args, words) in [
        (
            &["run", "--key", "k", "make", "-j"][..],
            "did you mean `-- make -j`?",
        ),
        (&["run", "--", "true"], "--key"),
        (
            &["run", "--key", "k", "--wait", "long", "--", "true"],
            "--wait",
        ),
        (
            &["run", "--key", "k", "--key", "l", "--shared", "--", "true"],
            "several --key",
        ),
        (
            &[
                "run", "--key", "k", "--ttl", "9", "--grace", "6", "--", "true",
            ],
            "--grace",
        ),
        (&["run", "--key", "k", "--ttl", "1ms", "--", "true"], "TTL"),
        (&["frobnicate"], "frobnicate"),
        (&["status", ""], "the name is empty"),
        (&["status", "k:gate"], "reserved"),
        (&["list", "--timeout", "0"], "--timeout"),
        (&["watch", "--interval", "0"], "--interval"),
        (&["watch", "--interval", "1e19"], "more than 100 years"),
        (&["run", "--key", "k"], "<COMMAND>"),
        (
            &[
                "run",
                "--key",
                "k",
                "--wait",
                "1",
                "--no-wait",
                "--",
                "true",
            ],
            "--no-wait",
        ),
        (&[], "run, status, list, watch, break or doctor?"),
    ] {
        let mut command = bare(args);
        command.env("REDIS_URLS", &addr);
        run(command).assert(64, &[words]);
    }
}

#[test]
fn wrong_usage_shows_no_password() {
    for args in [
        &["run", "--key", "k", "make", "--redis", "redis://:s3cret@h"][..],
        &["list", "k", "redis://:s3cret@h"],
        &["list", "--json=redis://:s3cret@h"],
        &["list", "--redis", "@redis://:s3cret@h"],
        &["list", "--config", "redis://:s3cret@h"],
        &["list", "--timeout", "redis://:s3cret@h"],
    ] {
        let ended = run(bare(args));
        assert_eq!(ended.status, 64, "{ended:?}");
        assert!(!ended.err.contains("s3cret"), "{ended:?}");
    }
}

#[test]
fn wrong_usage_is_64_although_the_nodes_are_away() {
    for (options, words) in [
        (&["--key", ""][..], "the name is empty"),
        (&["--key", "k:gate"], "k:gate"),
        (&["--key", "k", "--key", "k"], "duplicate name"),
        (&["--key", "k", "--ttl", "1ms"], "TTL"),
        (&["--key", "k", "-n", "0"], "0 permits"),
        (&["--key", "k", "-n", "9999"], "9999 permits"),
        (
            &["--key", "k", "--ttl", "2m", "--quarantine", "1m"],
            "--quarantine",
        ),
        (&["--key", "k", "--owner", ""], "owner_label"),
    ] {
        let common = ["run", "--redis", UNREACHABLE, "--wait", "1"];
        let args = [&common[..], options, &["--", "true"]].concat();
        run(bare(&args)).assert(64, &[words]);
    }
}

#[test]
fn report_tells_times_token_and_loss() {
    let node = server();
    let ended = sh(
        &node,
        &["--json", "--key", "k", "--fenced"],
        "echo $REDGUARD_FENCING_TOKEN",
    );
    assert_eq!(ended.status, 0, "{ended:?}");
    let report = ended.report();
    assert_eq!(report["fencing_token"].to_string(), ended.out.trim());
    assert!(
        report["waited_ms"].is_u64() && report["held_ms"].is_u64(),
        "{report}"
    );
    assert_eq!(
        (&report["lost"], &report["status"]),
        (&json!(false), &json!(0))
    );
}

#[test]
fn environment_names_the_lock() {
    let node = server();
    let script = "echo $REDGUARD_KEY $REDGUARD_TTL $REDGUARD_OWNER $REDGUARD_FENCING_TOKEN.";
    let options = ["--key", "b", "--key", "a", "--ttl", "90s", "--owner", "me"];
    assert_eq!(sh(&node, &options, script).out, "b,a 90 me .\n");
    let permit = sh(&node, &["--key", "p", "-n", "1"], "echo $REDGUARD_PERMIT.");
    assert_eq!(permit.out, "0.\n");
    // The variables of one lock do not pass to the command of another.
    let mut nested = tool(
        &node.addr(),
        "run",
        &["--key", "c", "--", "sh", "-c", script],
    );
    nested.env("REDGUARD_FENCING_TOKEN", "7");
    assert!(run(nested).out.ends_with(" .\n"));
}

#[test]
fn kinds_of_locks_exclude_each_other_as_documented() {
    let node = server();
    let addr = node.addr();
    let nested = |outer: &[&str], inner: &[&str]| {
        let tool_path = crate::support::process::TOOL;
        let common = ["--timeout", TIMEOUT, "--redis", &addr, "--key", "k"];
        let inside = [
            &[tool_path, "run"][..],
            &common,
            &["--no-wait"],
            inner,
            &["--", "true"],
        ];
        let args = [&["--key", "k"][..], outer, &["--"], &inside.concat()].concat();
        run(tool(&addr, "run", &args)).status
    };
    for (outer, inner, status) in [
        (&["--shared"][..], &["--shared"][..], 0),
        (&["--shared"], &["--exclusive"], 75),
        (&["--exclusive"], &["--shared"], 75),
        (&["-n", "2"], &["-n", "2"], 0),
        (&["-n", "1"], &["-n", "1"], 75),
        (&[], &["--key", "l"], 75),
        (&["--exclusive"], &[], 0),
    ] {
        assert_eq!(nested(outer, inner), status, "{outer:?} {inner:?}");
    }
}
