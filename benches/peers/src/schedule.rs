//! The schedule: every cell runs in a child process, which is killed if it does not end.

use std::env;
use std::io::Write;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use clap::ValueEnum;

use crate::Result;
use crate::lines::lines;
use crate::peers::Peer;
use crate::runner::{PATIENCE, Sample, WARM};
use crate::scenarios::{Health, Setting};
use redguard_servers::Server;

/// A setting with the samples of its peers, one per turn.
pub(crate) struct Measured {
    pub(crate) setting: Setting,
    pub(crate) cells: Vec<(Peer, Vec<Sample>)>,
}

impl Measured {
    pub(crate) fn new(setting: Setting) -> Measured {
        Measured {
            setting,
            cells: setting.peers().map(|peer| (peer, Vec::new())).collect(),
        }
    }

    /// Measures all peers, in another order each turn.
    pub(crate) fn turn(&mut self, turn: usize, servers: &[Server], time: Duration) -> Result<()> {
        let cells = self.cells.len();
        for place in 0..cells {
            let (peer, samples) = &mut self.cells[(place + turn) % cells];
            // A peer that hung would hang again, each time longer than all others take.
            if samples.iter().any(Sample::is_stuck) {
                continue;
            }
            samples.push(cell(self.setting, *peer, servers, time)?);
        }
        Ok(())
    }

    pub(crate) fn samples(&self, peer: Peer) -> Option<&[Sample]> {
        let cell = self.cells.iter().find(|(name, _)| *name == peer);
        cell.map(|(_, samples)| &samples[..])
    }
}

fn cell(setting: Setting, peer: Peer, servers: &[Server], time: Duration) -> Result<Sample> {
    let servers = &servers[..setting.nodes];
    for server in servers {
        let mut connection = redis::Client::open(server.url())?.get_connection()?;
        redis::cmd("PING").exec(&mut connection)?; // a stopped server has served its queue by now
        redis::cmd("FLUSHALL").exec(&mut connection)?;
    }
    let last = &servers[servers.len() - 1];
    let sample = attempt(setting, peer, servers, last, time);
    match setting.health {
        Health::Healthy => {}
        Health::Stopped => last.resume()?,
        Health::Down => last.restart()?,
    }
    sample
}

fn attempt(
    setting: Setting,
    peer: Peer,
    servers: &[Server],
    last: &Server,
    time: Duration,
) -> Result<Sample> {
    let time = setting.time(time);
    let mut cell = Cell::start(setting, peer, servers, time)?;
    let bound = time * 3 + Duration::from_secs(10);
    match cell.lines.recv_timeout(bound) {
        Ok(line) if line == WARM => {}
        Ok(line) => return Err(format!("{line}, and not {WARM}").into()),
        // It hangs without a lock, or ended without one and reported why.
        Err(mpsc::RecvTimeoutError::Timeout) => return Ok(Sample::stuck()),
        Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(Sample::failed()),
    }
    match setting.health {
        Health::Healthy => {}
        Health::Stopped => last.stop()?,
        Health::Down => last.kill(),
    }
    writeln!(cell.stdin, "go")?;
    match cell.lines.recv_timeout(bound + PATIENCE) {
        Ok(line) => Sample::from_line(&line).ok_or_else(|| format!("{line}: no sample").into()),
        Err(_) => Ok(Sample::stuck()),
    }
}

/// A running child process. A drop kills it.
struct Cell {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
}

impl Cell {
    fn start(setting: Setting, peer: Peer, servers: &[Server], time: Duration) -> Result<Cell> {
        let name = peer.to_possible_value().ok_or("a peer without a name")?;
        let mut command = Command::new(env::current_exe()?);
        command.args(["cell", "--peer", name.get_name()]);
        command.args(["--threads", &setting.threads.to_string()]);
        command.args(["--time", &time.as_millis().to_string()]);
        if setting.one_key {
            command.arg("--one-key");
        }
        command.args(servers.iter().map(Server::url));
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a child without pipes".into());
        };
        Ok(Cell {
            child,
            stdin,
            lines: lines(stdout),
        })
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        // It may have ended already, but only this reaps it, so its pid is still valid.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
