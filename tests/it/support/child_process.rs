//! Child processes of a test: this program again, with its test function named in the environment.

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;
use std::{env, fs};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use redguard::RedisLocker;

use crate::support::fixtures::{LIMIT, acquire_lock, at, wire};
use crate::support::servers::Server;
use crate::support::{eventually, unique_key};

/// Longer than any reply of a node on a busy machine.
pub(crate) const HUNG: Duration = Duration::from_secs(1);
/// Long enough for checks while it lasts, short enough for a test to wait for its end.
pub(crate) const BRIEF: Duration = Duration::from_secs(4);

const NODES: &str = "REDGUARD_TEST_NODES";
const KEY: &str = "REDGUARD_TEST_KEY";
const FILE: &str = "REDGUARD_TEST_FILE";

/// This program as a child process that runs one of these test functions; killed on drop.
pub(crate) struct Program(Child);

impl Program {
    /// Starts a child. `part` is a test function of the module at this path.
    pub(crate) fn playing(
        module: &str,
        part: &str,
        nodes: &[Server],
        key: &str,
        file: PathBuf,
    ) -> Program {
        let nodes = nodes.iter().map(Server::addr).collect();
        Program::playing_at(module, part, nodes, key, file)
    }

    /// Starts a child with nodes at any addresses, such as proxies.
    pub(crate) fn playing_at(
        module: &str,
        part: &str,
        nodes: Vec<String>,
        key: &str,
        file: PathBuf,
    ) -> Program {
        let here = module.split_once("::").unwrap().1;
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", &format!("{here}::{part}"), "--nocapture"])
            .env(NODES, nodes.join(","))
            .env(KEY, key)
            .env(FILE, file)
            // Returns freed memory to the system, so that a process can measure its own memory.
            .env("MALLOC_ARENA_MAX", "1")
            .env("MALLOC_TRIM_THRESHOLD_", "0")
            .env("MALLOC_TOP_PAD_", "0")
            .stdout(Stdio::null())
            .spawn();
        Program(child.unwrap())
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.0.id().cast_signed())
    }

    /// Blocks until the child ends by itself, and returns its status.
    pub(crate) fn end(mut self) -> ExitStatus {
        let mut status = None;
        eventually(4 * LIMIT, "the program ends", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Sends SIGSTOP, and blocks until all threads are stopped. No thread is then inside a write to
    /// a file, which SIGKILL could tear.
    pub(crate) fn stop(&self) {
        kill(self.pid(), Signal::SIGSTOP).unwrap();
        let stands = waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED)).unwrap();
        assert!(matches!(stands, WaitStatus::Stopped(..)), "{stands:?}");
    }

    /// Sends SIGCONT.
    pub(crate) fn resume(&self) {
        kill(self.pid(), Signal::SIGCONT).unwrap();
    }

    /// Sends SIGKILL, and blocks until the process is gone.
    pub(crate) fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// The arguments of a child process.
pub(crate) struct Part {
    pub(crate) nodes: Vec<String>,
    pub(crate) key: String,
    pub(crate) file: PathBuf,
}

impl Part {
    /// Returns `None` unless a test started this process for `part`: then the test function does
    /// nothing.
    pub(crate) fn mine() -> Option<Part> {
        Some(Part {
            nodes: env::var(NODES)
                .ok()?
                .split(',')
                .map(str::to_owned)
                .collect(),
            key: env::var(KEY).ok()?,
            file: env::var_os(FILE)?.into(),
        })
    }

    pub(crate) fn locker(&self) -> RedisLocker {
        RedisLocker::connect(at(self.nodes.clone()).node_timeout(HUNG)).unwrap()
    }

    /// Waits until every node grants locks, so that its pending releases were sent; a program that
    /// ends earlier leaves such keys to their TTL.
    pub(crate) fn settle(&self, locker: &RedisLocker) {
        for node in &self.nodes {
            eventually(LIMIT, "the node grants", || {
                let key = unique_key("part");
                let guard = acquire_lock(locker, &key);
                let there = exists(node, &key);
                guard.release().unwrap();
                there
            });
        }
    }

    /// Reports that the lock is held.
    pub(crate) fn tell(&self) {
        fs::write(&self.file, "held").unwrap();
    }
}

pub(crate) fn scratch() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("told");
    (dir, file)
}

/// Returns whether the node at an address answers and has a lock's key.
fn exists(node: &str, key: &str) -> bool {
    let found = try_ask(node, redis::cmd("EXISTS").arg(wire(key)));
    found.unwrap_or(false)
}

/// Returns whether a waiter at the node at an address is subscribed to a lock's release.
pub(crate) fn is_listened_to(node: &str, key: &str) -> bool {
    let mut command = redis::cmd("PUBSUB");
    let count = try_ask(node, command.arg("NUMSUB").arg(wire(key)));
    count.is_ok_and(|(_, count): (String, u64)| count > 0)
}

fn try_ask<T: redis::FromRedisValue>(node: &str, command: &redis::Cmd) -> redis::RedisResult<T> {
    let client = redis::Client::open(format!("redis://{node}"))?;
    command.query(&mut client.get_connection_with_timeout(HUNG)?)
}
