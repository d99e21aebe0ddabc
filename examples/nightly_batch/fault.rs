//! Stops or kills a temporary node during a run (`--disturb`).

use crate::servers::Server;
use clap::ValueEnum;
use std::io;
use std::time::Duration;

/// How long a stopped node stays stopped.
const STANDSTILL: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Disturb {
    /// SIGSTOP, and SIGCONT after 2 s
    Stop,
    /// SIGKILL, and a restart from its append-only file at half of the rows
    Kill,
}

/// Fault of a node, with the times of its start and end.
pub(crate) struct Disturbance<'a> {
    how: Disturb,
    node: &'a Server,
    files: usize,
    began: Option<Duration>,
    ended: Option<Duration>,
}

impl<'a> Disturbance<'a> {
    pub(crate) fn new(how: Disturb, node: &'a Server, files: usize) -> Disturbance<'a> {
        Disturbance {
            how,
            node,
            files,
            began: None,
            ended: None,
        }
    }

    pub(crate) fn step(&mut self, rows: usize, now: Duration) -> io::Result<()> {
        match (self.how, self.began) {
            (how, None) if rows >= self.files / 4 => {
                self.began = Some(now);
                match how {
                    Disturb::Stop => self.node.stop()?,
                    Disturb::Kill => self.node.kill(),
                }
                Ok(())
            }
            (Disturb::Stop, Some(began)) if self.ended.is_none() && now >= began + STANDSTILL => {
                self.ended = Some(now);
                self.node.resume()
            }
            (Disturb::Kill, Some(_)) if self.ended.is_none() && rows >= self.files / 2 => {
                self.ended = Some(now);
                self.node.restart()
            }
            _ => Ok(()),
        }
    }

    /// Returns a description of the fault.
    ///
    /// # Errors
    /// If the run ended before the fault started, and so shows nothing.
    pub(crate) fn done(&self) -> Result<String, &'static str> {
        let Some(began) = self.began else {
            return Err("the run was too short: no node was disturbed");
        };
        let (did, undid) = match self.how {
            Disturb::Stop => ("stopped", "resumed"),
            Disturb::Kill => ("killed", "restarted"),
        };
        let (node, began) = (self.node.addr(), began.as_secs_f64());
        Ok(match self.ended {
            Some(ended) => format!(
                "{node} {did} at {began:.2} s, {undid} at {:.2} s",
                ended.as_secs_f64()
            ),
            None => format!("{node} {did} from {began:.2} s until the end"),
        })
    }
}
