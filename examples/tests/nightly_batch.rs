//! The example `nightly_batch` as a process.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "in a test a panic is the report; what it waits for cannot wake it"
)]

use redguard_servers::Server;
use redguard_servers::temp_dir::TempDir;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use std::{env, thread};

/// Only a hang takes this long.
const LIMIT: Duration = Duration::from_secs(60);

/// Returns the example, which cargo has built together with this test.
fn nightly_batch() -> Command {
    let program = env::current_exe().unwrap();
    let profile = program.parent().and_then(Path::parent).unwrap();
    let path = profile.join("examples/nightly_batch");
    assert!(
        path.exists(),
        "run `cargo build --examples`: {} is missing",
        path.display()
    );
    let mut command = Command::new(path);
    command.env_remove("REDIS_URLS");
    command
}

fn text(output: &Output) -> String {
    let err = String::from_utf8_lossy(&output.stderr);
    format!("{}{err}", String::from_utf8_lossy(&output.stdout))
}

fn rows(report: &Path) -> Vec<String> {
    let text = fs::read_to_string(report).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn batch_with_dying_nodes_and_copies_does_each_file_once() {
    let dir = TempDir::create("nightly-test-").unwrap();
    let report = dir.path().join("report");
    let mut command = nightly_batch();
    command.args(["--kill-a-node", "--work", "100ms", "--out"]);
    let output = command.arg(&report).output().unwrap();
    let out = text(&output);
    assert!(output.status.success(), "{out}");
    for line in [
        "is killed\n",
        "is back, with the locks it had granted",
        "copy 1 is killed with its locks in hand",
        "hangs",
        "answers again",
        "duplicates 0, missing 0",
        "every file was done once, though",
    ] {
        assert!(out.contains(line), "no {line:?} in {out}");
    }
    // Nobody looks at a terminal here.
    assert!(!out.contains('\r') && !out.contains('\x1b'), "{out:?}");
    let mut files: Vec<_> = rows(&report);
    let count = files.len();
    files.sort();
    files.dedup();
    assert!(count > 100 && files.len() == count, "{count} rows");
    // Those of the copy that was killed, too.
    assert!(out.contains(&format!("({count} of them new)")), "{out}");
}

#[test]
fn second_run_of_a_night_finds_nothing_left() {
    let dir = TempDir::create("nightly-test-").unwrap();
    let report = dir.path().join("report");
    for new in [true, false] {
        let mut command = nightly_batch();
        let output = command
            .args(["--night", "n1", "--out"])
            .arg(&report)
            .output();
        let out = text(&output.unwrap());
        assert_eq!(out.contains("(0 of them new)"), !new, "{out}");
        assert!(out.contains("every file was done once\n"), "{out}");
    }
}

#[test]
fn wrong_argument_ends_with_64() {
    for args in [
        &["--threads", "0"][..],
        &["--night", "a/b"],
        &["--what"],
        &["--ttl"],
    ] {
        let output = nightly_batch().args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

/// Process that is killed on drop.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail for a process that has ended, which is the usual case.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// A sparse file that takes minutes to read. It is cut off on drop, so that no reader outlasts the
/// test.
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

/// Returns the key of the file's lock, once it has `count` subscribers.
fn key_with_subscribers(node: &mut redis::Connection, count: u64) -> String {
    let mut key = String::new();
    eventually(&format!("{count} processes wait"), || {
        let mut keys = redis::cmd("KEYS");
        let keys: Vec<String> = keys.arg("redguard:*endless*").query(node).unwrap();
        let Some(found) = keys.into_iter().next() else {
            return false;
        };
        let mut waiting = redis::cmd("PUBSUB");
        let waiting = waiting.arg("NUMSUB").arg(&found).query(node);
        let (_, waiting): (String, u64) = waiting.unwrap();
        key = found;
        waiting == count
    });
    key
}

#[test]
fn copy_whose_lock_is_stolen_writes_no_row_until_it_holds_the_lock_again() {
    let server = Server::start().unwrap();
    let dir = TempDir::create("nightly-test-").unwrap();
    let (tree, report) = (dir.path().join("tree"), dir.path().join("report"));
    fs::create_dir(&tree).unwrap();
    let file = EndlessFile::create(tree.join("endless"));
    let mut command = nightly_batch();
    command.args(["--redis", &server.url(), "--ttl", "3s", "--threads", "1"]);
    command.arg("--out").arg(&report).arg(&tree);
    let mut batch = Running(command.stdout(Stdio::piped()).spawn().unwrap());

    let client = redis::Client::open(server.url()).unwrap();
    let mut node = client.get_connection().unwrap();
    let key = key_with_subscribers(&mut node, 1);
    let mut ask = |words: &[&str]| {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]).exec(&mut node).unwrap();
    };
    ask(&["SET", &key, "foreign value"]);
    key_with_subscribers(&mut client.get_connection().unwrap(), 2);
    assert!(rows(&report).is_empty(), "a row was written without a lock");
    file.cut(10);
    ask(&["DEL", &key]);
    ask(&["PUBLISH", &key, ""]);
    let out = std::io::read_to_string(batch.0.stdout.take().unwrap()).unwrap();
    assert!(batch.0.wait().unwrap().success(), "{out}");
    let all = out.lines().find(|line| line.starts_with("all")).unwrap();
    assert!(all.ends_with("         1"), "one lock was lost: {out}");
    assert!(
        out.contains("rows 1 (1 of them new), duplicates 0"),
        "{out}"
    );
    assert_eq!(rows(&report).len(), 1);
}
