//! Members of etcd on loopback ports. A drop kills them, and none outlives the program.

use std::io::{self, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use redguard_servers::{free_port, watched};
use tempfile::TempDir;

use crate::Result;

/// Longer than any start, so that only a cluster that never answers exceeds it.
const START_LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(50);

pub(crate) struct Etcd {
    members: Vec<Member>,
    // Dropped after the members, which write to it.
    _dir: TempDir,
}

struct Member {
    client_url: String,
    process: Child,
    /// Input of the watchdog.
    pipe: Option<ChildStdin>,
}

impl Etcd {
    /// Starts this number of members, and blocks until they answer. Returns `None` if etcd is not
    /// installed.
    pub(crate) fn start(members: usize) -> Result<Option<Etcd>> {
        if !is_installed("etcd") || !is_installed("etcdctl") {
            return Ok(None);
        }
        let dir = TempDir::new()?;
        let url = || free_port().map(|port| format!("http://127.0.0.1:{port}"));
        let urls = (0..members).map(|_| Ok((url()?, url()?)));
        let urls = urls.collect::<io::Result<Vec<(String, String)>>>()?;
        let peers = urls.iter().enumerate();
        let peers = peers.map(|(number, (_, peer))| format!("{number}={peer}"));
        let cluster = peers.collect::<Vec<_>>().join(",");
        let mut etcd = Etcd {
            members: Vec::new(),
            _dir: dir,
        };
        for (number, (client_url, peer)) in urls.into_iter().enumerate() {
            let name = number.to_string();
            let mut command = watched(etcd._dir.path());
            command.args(["etcd", "--data-dir"]);
            command.arg(etcd._dir.path().join(&name));
            command.args(["--log-level", "error", "--logger", "zap"]);
            command.args(["--name", &name]);
            command.args(["--listen-client-urls", &client_url]);
            command.args(["--advertise-client-urls", &client_url]);
            command.args(["--listen-peer-urls", &peer]);
            command.args(["--initial-advertise-peer-urls", &peer]);
            command.args(["--initial-cluster", &cluster]);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            let mut process = command.spawn()?;
            let pipe = process.stdin.take(); // a wait would close it
            etcd.members.push(Member {
                client_url,
                process,
                pipe,
            });
        }
        etcd.wait_until_healthy()?;
        Ok(Some(etcd))
    }

    /// Returns the addresses for clients, as etcdctl takes them.
    pub(crate) fn endpoints(&self) -> String {
        let urls: Vec<&str> = self
            .members
            .iter()
            .map(|it| it.client_url.as_str())
            .collect();
        urls.join(",")
    }

    fn wait_until_healthy(&self) -> Result<()> {
        let limit = Instant::now() + START_LIMIT;
        let mut health = Command::new("etcdctl");
        health.args(["--endpoints", &self.endpoints(), "endpoint", "health"]);
        while !silent(&mut health).status()?.success() {
            if Instant::now() > limit {
                return Err("etcd does not answer".into());
            }
            thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // Fails only for a process that has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(mut pipe) = self.pipe.take() {
            let _ = pipe.write_all(b"reaped\n");
        }
    }
}

fn silent(command: &mut Command) -> &mut Command {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
}

/// Returns whether a program of etcd is on the PATH.
fn is_installed(program: &str) -> bool {
    let mut version = Command::new(program);
    version.arg(if program == "etcd" {
        "--version"
    } else {
        "version"
    });
    silent(&mut version).status().is_ok()
}
