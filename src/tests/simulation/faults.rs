//! What goes wrong, and when: drawn before the history begins.

use crate::tests::simulation::config::{Care, PlantedBug, SimConfig, one_of};
use crate::tests::simulation::simulator::{Event, SimEvent, Simulator};

/// A thing that happens to a client, a node, or what is between them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    Pause {
        client: usize,
        time: u64,
    },
    Dies {
        client: usize,
    },
    Hangs {
        node: usize,
        time: u64,
    },
    Crashes {
        node: usize,
        forgets: bool,
    },
    Restarts {
        node: usize,
        forgot: bool,
    },
    Partition {
        client: usize,
        node: usize,
        time: u64,
    },
    Breaks {
        client: usize,
        node: usize,
    },
    Step {
        node: usize,
        by: i64,
    },
    Over,
}

impl Simulator {
    pub(crate) fn draw_faults(&mut self) {
        let SimConfig {
            pauses,
            deaths,
            hangs,
            crashes,
            forgets,
            partitions,
            breaks,
            steps,
            ..
        } = self.knobs;
        let longest = self.knobs.longest();
        let (clients, nodes) = (self.clients.len(), self.nodes.len());
        for _ in 0..pauses {
            let client = self.rng.usize(..clients);
            let time = self.rng.u64(..2 * longest);
            self.strike(Fault::Pause { client, time });
        }
        for _ in 0..deaths {
            let client = self.rng.usize(..clients);
            self.strike(Fault::Dies { client });
        }
        for _ in 0..hangs {
            let node = self.rng.usize(..nodes);
            let time = self.rng.u64(..longest + longest / 2);
            self.strike(Fault::Hangs { node, time });
        }
        for _ in 0..crashes {
            let node = self.rng.usize(..nodes);
            self.strike(Fault::Crashes {
                node,
                forgets: false,
            });
        }
        let at_once = self.knobs.care == Care::None || self.knobs.is(PlantedBug::RestartIsOurDoing);
        let moment = self.rng.u64(..self.knobs.end);
        for node in 0..forgets.min(nodes) {
            let fault = Fault::Crashes {
                node,
                forgets: true,
            };
            match at_once {
                true => self.put(moment, Event::Fault(fault)),
                false => self.strike(fault),
            }
        }
        for _ in 0..partitions {
            let (client, node) = (self.rng.usize(..clients), self.rng.usize(..nodes));
            let time = self.rng.u64(..2 * longest);
            self.strike(Fault::Partition { client, node, time });
        }
        for _ in 0..breaks {
            let (client, node) = (self.rng.usize(..clients), self.rng.usize(..nodes));
            self.strike(Fault::Breaks { client, node });
        }
        // Each clock once, so that no TTL sees more than 2 ms of it.
        let together = self.knobs.step_together;
        for node in 0..if together { nodes } else { steps } {
            let by = match self.knobs.bug {
                Some(PlantedBug::Step) => longest as i64 + 2_000,
                _ if together => 2_000,
                _ => one_of(&mut self.rng, &[2_000, 500, -500, -2_000]),
            };
            let fault = Fault::Step { node, by };
            match together {
                true => self.put(moment, Event::Fault(fault)),
                false => self.strike(fault),
            }
        }
        self.put(self.knobs.end, Event::Fault(Fault::Over));
    }

    /// At some time.
    fn strike(&mut self, fault: Fault) {
        let at = self.rng.u64(..self.knobs.end);
        self.put(at, Event::Fault(fault));
    }

    pub(crate) fn befall(&mut self, fault: Fault) {
        self.note(|_| format!("{fault:?}"));
        match fault {
            Fault::Pause { client, time } => self.clients[client].paused_until = self.now + time,
            Fault::Dies { client } => {
                let client = &mut self.clients[client];
                client.dead = true;
                client.hold = None;
            }
            Fault::Hangs { node, time } => self.nodes[node].hung_until = self.now + time,
            Fault::Crashes { node, forgets } => self.crash(node, forgets),
            Fault::Restarts { node, forgot } => {
                let node = &mut self.nodes[node];
                node.down = false;
                node.hung_until = 0;
                node.started = node.clock.at(self.now);
                node.run += 1;
                if forgot {
                    node.forget(&self.key, self.now);
                }
            }
            Fault::Partition { client, node, time } => {
                self.clients[client].lanes[node].cut_off_until = self.now + time;
            }
            Fault::Breaks { client, node } => {
                let life = self.clients[client].lanes[node].life;
                self.tell(self.now, client, SimEvent::Broken { node, life });
            }
            Fault::Step { node, by } => self.nodes[node].clock.step(by),
            Fault::Over => {
                self.calm = true;
                for client in &mut self.clients {
                    client.paused_until = client.paused_until.min(self.now);
                    client
                        .lanes
                        .iter_mut()
                        .for_each(|lane| lane.cut_off_until = 0);
                }
                let now = self.now;
                self.nodes.iter_mut().for_each(|node| node.hung_until = now);
            }
        }
    }

    fn crash(&mut self, at: usize, forgets: bool) {
        let down = self.rng.u64(..self.knobs.longest());
        let node = &mut self.nodes[at];
        if node.down {
            return;
        }
        node.down = true;
        for (client, living) in node.living.iter_mut().enumerate() {
            *living = self.clients[client].lanes[at].life + 1;
        }
        let restart = Fault::Restarts {
            node: at,
            forgot: forgets,
        };
        let longest = self.knobs.longest();
        let down = match self.knobs.care {
            Care::KeptDown if forgets => down + longest + longest / 50 + 4_000,
            // As a watchdog starts it again.
            Care::None | Care::Quarantine if forgets => down / 50,
            _ => down,
        };
        self.put(self.now + down, Event::Fault(restart));
        for client in 0..self.clients.len() {
            if self.rng.bool() {
                let life = self.clients[client].lanes[at].life;
                let back = self.now + self.travel();
                self.tell(back, client, SimEvent::Broken { node: at, life });
            }
        }
    }
}
