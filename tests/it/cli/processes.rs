//! `examples/exclusive` and `examples/nightly_batch` as processes: exit statuses, signals, output.
//!
//! `commands` covers what the commands of `exclusive` write, without a process of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cli::example::{Ended, Running, example};
use crate::support::fixtures::{LIMIT, STRANGER, ask, wire};
use crate::support::servers::Server;
use crate::support::{eventually, servers};

/// No server listens there.
const UNREACHABLE: &str = "redis://127.0.0.1:1";

fn server() -> Server {
    servers(1).remove(0)
}

/// `exclusive` with these arguments.
fn exclusive(args: &[&str]) -> Command {
    let mut command = Command::new(example("exclusive"));
    command.args(args);
    command.env_remove("REDIS_URLS");
    command
}

/// `exclusive` on a node, which gets more time than the default because the machine is busy.
fn on(node: &Server, args: &[&str]) -> Command {
    let mut command = exclusive(&[]);
    // Options come right behind the command: `run` passes on all that follows its `--`.
    command.args(args.first());
    command.args(["--timeout", "1s", "--redis", &node.url()]);
    command.args(args.get(1..).unwrap_or_default());
    command
}

fn ended(mut command: Command) -> Ended {
    Running::start(&mut command).end()
}

/// `exclusive run` under the lock `key`, with another `exclusive` as the command.
fn nested(node: &Server, key: &str, args: &[&str]) -> Ended {
    let mut command = on(node, &["run", "--key", key, "--owner", "night-7", "--"]);
    let inner = on(node, args);
    command.arg(inner.get_program()).args(inner.get_args());
    ended(command)
}

#[test]
fn run_ends_with_the_status_of_its_command() {
    let node = server();
    for (status, script) in [(0, "true"), (7, "exit 7"), (143, "kill -TERM $$")] {
        let run = ["run", "--key", "free", "--", "sh", "-c", script];
        ended(on(&node, &run)).assert(status, 0);
    }
}

#[test]
fn run_of_a_held_lock_ends_with_75_and_run_of_another_lock_succeeds() {
    let node = server();
    let no_wait = ["run", "--key", "held", "--no-wait", "--", "true"];
    nested(&node, "held", &no_wait).assert(75, 1);
    let wait = ["run", "--key", "held", "--wait", "300ms", "--", "true"];
    nested(&node, "held", &wait).assert(75, 1);
    let other = ["run", "--key", "other", "--no-wait", "--", "true"];
    nested(&node, "held", &other).assert(0, 0);
}

/// Starts `run`, replaces its lock's value while the command runs, and returns how `run` ended.
fn run_with_stolen_lock(on_lost: &str, seconds: &str) -> Ended {
    let node = server();
    let dir = tempfile::tempdir().unwrap();
    let started = dir.path().join("started");
    let mut command = on(
        &node,
        &["run", "--key", "stolen", "--ttl", "3s", "--on-lost"],
    );
    command.args([on_lost, "--", "sh", "-c", r#": >"$0"; exec sleep "$1""#]);
    let running = Running::start(command.arg(&started).arg(seconds));
    eventually(LIMIT, "the command runs", || started.exists());
    ask::<()>(&node, &["SET", &wire("stolen"), STRANGER]);
    running.end()
}

#[test]
fn run_whose_lock_is_stolen_terminates_its_command() {
    run_with_stolen_lock("kill", "60").assert(143, 1);
}

#[test]
fn run_whose_lock_is_stolen_warns_once_with_on_lost_warn() {
    run_with_stolen_lock("warn", "5").assert(0, 1);
}

#[test]
fn every_command_without_reachable_nodes_ends_with_69() {
    for command in [
        &["run", "--key", "free", "--no-wait"][..],
        &["list"],
        &["watch"],
        &["status", "k"],
        &["break", "k", "--yes"],
    ] {
        let mut command = exclusive(&[command, &["--redis", UNREACHABLE]].concat());
        if command.get_args().next().is_some_and(|arg| arg == "run") {
            command.args(["--", "true"]);
        }
        ended(command).assert(69, 1);
    }
}

#[test]
fn bad_usage_ends_with_64_and_one_line() {
    let node = server();
    ended(exclusive(&[])).assert(64, 1);
    let key_before_command = ["--key", "free", "--redis", &node.url(), "--", "true"];
    ended(exclusive(&key_before_command)).assert(64, 1);
    for args in [
        &["run", "--", "true"][..],
        &["run", "--key", "free"],
        &["run", "--key", "free", "--ttl", "soon", "--", "true"],
        &["status"],
        &["watch", "--interval", "0s"],
    ] {
        ended(on(&node, args)).assert(64, 1);
    }
    let timeout = ["list", "--timeout", "0s", "--redis", &node.url()];
    ended(exclusive(&timeout)).assert(64, 1);
}

/// `.ci/run` checks this too, since the tests usually run with all features.
#[cfg(not(feature = "tls"))]
#[test]
fn run_over_tls_without_the_feature_ends_with_64_and_names_it() {
    let run = ["run", "--key", "k", "--redis", "rediss://127.0.0.1:1"];
    let ended = ended(exclusive(&[&run[..], &["--", "true"]].concat()));
    ended.assert(64, 1);
    assert!(ended.err.contains("feature `tls`"), "{ended:?}");
}

#[test]
fn status_and_list_name_the_owner_of_a_held_lock() {
    let node = server();
    let free = ended(on(&node, &["status", "shown"]));
    free.assert(1, 0);
    free.assert_out("shown: free");
    let status = nested(&node, "shown", &["status", "shown"]);
    status.assert(0, 0);
    status.assert_out("shown: held by night-7 on 1 of 1 nodes");
    let list = nested(&node, "shown", &["list", "--json", "sh*"]);
    list.assert(0, 0);
    list.assert_out(r#""owner":"night-7""#);
}

#[test]
fn watch_writes_acquire_and_release_and_ends_with_0_on_sigterm() {
    let node = server();
    let args = ["watch", "seen*", "--interval", "50ms", "--json"];
    let watch = Running::start(&mut on(&node, &args));
    // The command ends when its file is removed, also by a failure of this test.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("hold");
    File::create(&file).unwrap();
    let wait = r#"while [ -e "$0" ]; do sleep 0.05; done"#;
    let mut run = on(&node, &["run", "--key", "seen", "--", "sh", "-c", wait]);
    let run = Running::start(run.arg(&file));
    let written = |event: &str| watch.out().contains(&format!(r#""event":"{event}""#));
    eventually(LIMIT, "watch writes the acquire", || written("held"));
    fs::remove_file(&file).unwrap();
    run.end().assert(0, 0);
    eventually(LIMIT, "watch writes the release", || written("freed"));
    watch.terminate();
    watch.end().assert(0, 0);
}

#[test]
fn break_needs_a_terminal_or_yes_and_reports_the_former_owner() {
    let node = server();
    ended(on(&node, &["break", "shown"])).assert(64, 1);
    let absent = ended(on(&node, &["break", "shown", "--yes"]));
    absent.assert(1, 0);
    absent.assert_out("there is no such lock");
    ask::<()>(&node, &["SET", &wire("shown"), "night-7:1"]);
    let broken = ended(on(&node, &["break", "shown", "--yes"]));
    broken.assert(0, 0);
    broken.assert_out("broken; night-7 had it");
}

#[test]
fn list_into_a_closed_pipe_ends_with_141_and_writes_no_error() {
    let node = server();
    let mut command = on(&node, &["list"]);
    let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(141), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
}

/// A sparse file that takes minutes to read. It is cut off when it is dropped, so that no reader
/// outlasts the test.
struct EndlessFile(PathBuf);

impl EndlessFile {
    fn create(path: PathBuf) -> EndlessFile {
        File::create(&path).unwrap().set_len(100 << 30).unwrap();
        EndlessFile(path)
    }

    fn cut(&self, len: u64) {
        let file = File::options().write(true).open(&self.0).unwrap();
        file.set_len(len).unwrap();
    }
}

impl Drop for EndlessFile {
    fn drop(&mut self) {
        self.cut(0);
    }
}

/// The key of the file's lock, once it has `count` subscribers.
fn key_with_subscribers(node: &Server, count: u64) -> String {
    let mut key = String::new();
    eventually(2 * LIMIT, &format!("{count} processes wait"), || {
        let keys: Vec<String> = ask(node, &["KEYS", "redguard:*endless*"]);
        let Some(found) = keys.into_iter().next() else {
            return false;
        };
        let (_, waiting): (String, u64) = ask(node, &["PUBSUB", "NUMSUB", &found]);
        key = found;
        waiting == count
    });
    key
}

fn rows(report: &Path) -> String {
    fs::read_to_string(report).unwrap()
}

#[test]
fn nightly_batch_whose_lock_is_stolen_writes_no_row_until_it_holds_the_lock_again() {
    let node = server();
    let dir = tempfile::tempdir().unwrap();
    let (tree, report) = (dir.path().join("tree"), dir.path().join("report"));
    fs::create_dir(&tree).unwrap();
    let file = EndlessFile::create(tree.join("endless"));
    let mut command = Command::new(example("nightly_batch"));
    command.args(["--redis", &node.url(), "--ttl", "3s", "--threads", "1"]);
    let batch = Running::start(command.arg("--out").arg(&report).arg(&tree));

    let key = key_with_subscribers(&node, 1);
    ask::<()>(&node, &["SET", &key, STRANGER]);
    key_with_subscribers(&node, 2);
    assert_eq!(rows(&report), "", "a row was written without a lock");
    file.cut(10);
    ask::<()>(&node, &["DEL", &key]);
    ask::<()>(&node, &["PUBLISH", &key, ""]);
    let batch = batch.end();
    batch.assert(0, 0);
    batch.assert_out(", 1 lost");
    batch.assert_out("rows             1, 1 of them new");
    batch.assert_out("duplicates       0");
    assert_eq!(rows(&report).lines().count(), 1);
}
