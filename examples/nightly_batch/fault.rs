//! The faults of `--kill-a-node`: one after the other, each at a share of the rows.
//!
//! Of three nodes one at a time may be down, so a node comes back before the next fault.

use crate::process::Process;
use redguard_servers::Server;
use std::io;

/// A fault and, in per cent of the files, the number of rows at which it begins.
const PLAN: [(usize, Fault); 5] = [
    (15, Fault::KillNode),
    (35, Fault::RestartNode),
    (45, Fault::KillCopy),
    (55, Fault::StopNode),
    (80, Fault::ResumeNode),
];

/// Number of the copy that is killed.
const VICTIM: usize = 0;

#[derive(Clone, Copy)]
enum Fault {
    KillNode,
    RestartNode,
    KillCopy,
    StopNode,
    ResumeNode,
}

/// The faults of a run, some of them done. By default there are none.
#[derive(Default)]
pub(crate) struct Faults<'a> {
    nodes: &'a [Server],
    plan: Vec<(usize, Fault)>,
    done: usize,
    down: usize,
}

impl<'a> Faults<'a> {
    /// Returns the faults of a run with this number of files.
    pub(crate) fn of(nodes: &'a [Server], files: usize) -> Faults<'a> {
        let at = |(percent, fault)| (files * percent / 100, fault);
        Faults {
            nodes,
            plan: PLAN.map(at).into(),
            ..Faults::default()
        }
    }

    /// Begins the faults that are due; returns a line for each.
    pub(crate) fn step(&mut self, rows: usize, copies: &mut [Process]) -> io::Result<Vec<String>> {
        let mut lines = Vec::new();
        while let Some(&(at, fault)) = self.plan.get(self.done)
            && rows >= at
        {
            self.done += 1;
            lines.push(self.begin(fault, copies)?);
        }
        Ok(lines)
    }

    fn begin(&mut self, fault: Fault, copies: &mut [Process]) -> io::Result<String> {
        let node = match fault {
            Fault::KillNode | Fault::RestartNode | Fault::KillCopy => &self.nodes[0],
            Fault::StopNode | Fault::ResumeNode => &self.nodes[1],
        };
        let addr = node.addr();
        Ok(match fault {
            Fault::KillNode => {
                self.down += 1;
                node.kill();
                format!("node {addr} is killed")
            }
            Fault::RestartNode => {
                node.restart()?;
                self.down -= 1;
                format!("node {addr} is back, with the locks it had granted")
            }
            Fault::KillCopy => {
                copies[VICTIM].kill()?;
                format!("copy {} is killed with its locks in hand", VICTIM + 1)
            }
            Fault::StopNode => {
                self.down += 1;
                node.stop()?;
                format!("node {addr} hangs: it accepts requests and answers none")
            }
            Fault::ResumeNode => {
                node.resume()?;
                self.down -= 1;
                format!("node {addr} answers again")
            }
        })
    }

    pub(crate) fn nodes_down(&self) -> usize {
        self.down
    }

    /// Returns the copy that these faults have killed.
    pub(crate) fn killed_copy(&self) -> Option<usize> {
        let mut done = self.plan[..self.done].iter();
        let is_killed = done.any(|(_, fault)| matches!(fault, Fault::KillCopy));
        is_killed.then_some(VICTIM)
    }

    /// # Errors
    /// If the run ended before all faults began, and so shows nothing.
    pub(crate) fn check_done(&self) -> Result<(), &'static str> {
        match self.done == self.plan.len() {
            true => Ok(()),
            false => Err("the run was too short for its faults"),
        }
    }

    /// Returns the end of the last line.
    pub(crate) fn conclusion(&self) -> &'static str {
        match self.plan.is_empty() {
            true => "",
            false => ", though a node died, another hung, and a copy died with its locks in hand",
        }
    }
}
