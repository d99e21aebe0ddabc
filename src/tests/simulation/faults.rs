//! The faults of a history and their times, drawn before it begins.

use crate::tests::simulation::config::{PlantedBug, RestartPolicy, SimConfig, one_of};
use crate::tests::simulation::simulator::{Event, SimEvent, Simulator};

/// A fault of a client, a node, or the network between them.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    Pause {
        client: usize,
        time: u64,
    },
    Death {
        client: usize,
    },
    Hang {
        node: usize,
        time: u64,
    },
    Crash {
        node: usize,
        loses_data: bool,
    },
    Restart {
        node: usize,
        lost_data: bool,
    },
    Partition {
        client: usize,
        node: usize,
        time: u64,
    },
    Disconnect {
        client: usize,
        node: usize,
    },
    ClockStep {
        node: usize,
        by: i64,
    },
    End,
}

impl Simulator {
    pub(crate) fn draw_faults(&mut self) {
        let SimConfig {
            pauses,
            deaths,
            hangs,
            crashes,
            loses_data,
            partitions,
            disconnects,
            steps,
            ..
        } = self.config;
        let max_ttl = self.config.max_ttl();
        let (clients, nodes) = (self.clients.len(), self.nodes.len());
        for _ in 0..pauses {
            let client = self.rng.usize(..clients);
            let time = self.rng.u64(..2 * max_ttl);
            self.schedule_fault(Fault::Pause { client, time });
        }
        for _ in 0..deaths {
            let client = self.rng.usize(..clients);
            self.schedule_fault(Fault::Death { client });
        }
        for _ in 0..hangs {
            let node = self.rng.usize(..nodes);
            let time = self.rng.u64(..max_ttl + max_ttl / 2);
            self.schedule_fault(Fault::Hang { node, time });
        }
        for _ in 0..crashes {
            let node = self.rng.usize(..nodes);
            self.schedule_fault(Fault::Crash {
                node,
                loses_data: false,
            });
        }
        let is_simultaneous = self.config.restart_policy == RestartPolicy::None
            || self.config.is(PlantedBug::AbsentAfterRestartIsRelease);
        let moment = self.rng.u64(..self.config.end);
        for node in 0..loses_data.min(nodes) {
            let fault = Fault::Crash {
                node,
                loses_data: true,
            };
            match is_simultaneous {
                true => self.schedule(moment, Event::Fault(fault)),
                false => self.schedule_fault(fault),
            }
        }
        for _ in 0..partitions {
            let (client, node) = (self.rng.usize(..clients), self.rng.usize(..nodes));
            let time = self.rng.u64(..2 * max_ttl);
            self.schedule_fault(Fault::Partition { client, node, time });
        }
        for _ in 0..disconnects {
            let (client, node) = (self.rng.usize(..clients), self.rng.usize(..nodes));
            self.schedule_fault(Fault::Disconnect { client, node });
        }
        // Each clock is set once, so that at most 2 ms of steps fall into a TTL.
        let is_simultaneous_step = self.config.step_together;
        for node in 0..if is_simultaneous_step { nodes } else { steps } {
            let by = match self.config.bug {
                Some(PlantedBug::ClockStep) => max_ttl as i64 + 2_000,
                _ if is_simultaneous_step => 2_000,
                _ => one_of(&mut self.rng, &[2_000, 500, -500, -2_000]),
            };
            let fault = Fault::ClockStep { node, by };
            match is_simultaneous_step {
                true => self.schedule(moment, Event::Fault(fault)),
                false => self.schedule_fault(fault),
            }
        }
        self.schedule(self.config.end, Event::Fault(Fault::End));
    }

    /// Schedules a fault at a random time.
    fn schedule_fault(&mut self, fault: Fault) {
        let at = self.rng.u64(..self.config.end);
        self.schedule(at, Event::Fault(fault));
    }

    pub(crate) fn apply_fault(&mut self, fault: Fault) {
        self.record(|_| format!("{fault:?}"));
        match fault {
            Fault::Pause { client, time } => self.clients[client].paused_until = self.now + time,
            Fault::Death { client } => {
                let client = &mut self.clients[client];
                client.dead = true;
                client.hold = None;
            }
            Fault::Hang { node, time } => self.nodes[node].hung_until = self.now + time,
            Fault::Crash { node, loses_data } => self.crash(node, loses_data),
            Fault::Restart { node, lost_data } => {
                let node = &mut self.nodes[node];
                node.down = false;
                node.hung_until = 0;
                node.started = node.clock.at(self.now);
                node.run += 1;
                if lost_data {
                    node.lose_data(&self.key, self.now);
                }
            }
            Fault::Partition { client, node, time } => {
                self.clients[client].connections[node].cut_off_until = self.now + time;
            }
            Fault::Disconnect { client, node } => {
                let generation = self.clients[client].connections[node].generation;
                self.schedule_client_event(
                    self.now,
                    client,
                    SimEvent::Disconnected { node, generation },
                );
            }
            Fault::ClockStep { node, by } => self.nodes[node].clock.step(by),
            Fault::End => {
                self.faults_over = true;
                for client in &mut self.clients {
                    client.paused_until = client.paused_until.min(self.now);
                    client
                        .connections
                        .iter_mut()
                        .for_each(|connection| connection.cut_off_until = 0);
                }
                let now = self.now;
                self.nodes.iter_mut().for_each(|node| node.hung_until = now);
            }
        }
    }

    fn crash(&mut self, at: usize, loses_data: bool) {
        let down = self.rng.u64(..self.config.max_ttl());
        let node = &mut self.nodes[at];
        if node.down {
            return;
        }
        node.down = true;
        for (client, min_generations) in node.min_generations.iter_mut().enumerate() {
            *min_generations = self.clients[client].connections[at].generation + 1;
        }
        let restart = Fault::Restart {
            node: at,
            lost_data: loses_data,
        };
        let max_ttl = self.config.max_ttl();
        let down = match self.config.restart_policy {
            RestartPolicy::StaysDown if loses_data => down + max_ttl + max_ttl / 50 + 4_000,
            // As soon as a watchdog would restart the server.
            RestartPolicy::None | RestartPolicy::Quarantine if loses_data => down / 50,
            _ => down,
        };
        self.schedule(self.now + down, Event::Fault(restart));
        for client in 0..self.clients.len() {
            if self.rng.bool() {
                let generation = self.clients[client].connections[at].generation;
                let back = self.now + self.message_delay();
                self.schedule_client_event(
                    back,
                    client,
                    SimEvent::Disconnected {
                        node: at,
                        generation,
                    },
                );
            }
        }
    }
}
