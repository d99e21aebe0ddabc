//! The reports of the scheduler to its reader: the waits of the fibers, and lines of the trace.

use std::fmt::Write;
use std::time::Duration;

use crate::tests::simulation::runtime::process::Condition;
use crate::tests::simulation::runtime::scheduler::Scheduler;
use crate::tests::simulation::runtime::trace::TraceLevel;

impl Scheduler {
    /// Tells for each fiber that has not ended what it waits for.
    pub(super) fn describe_fibers(&self) -> String {
        let mut text = format!("at {:?}:", Duration::from_nanos(self.now));
        for fiber in self.fibers.iter().filter(|fiber| fiber.is_live()) {
            let process = &self.processes[fiber.process];
            let _ = write!(text, "\n  {}/{}: ", process.name, fiber.name);
            let _ = match fiber.blocked() {
                Some(blocked) => write!(text, "{blocked}"),
                None => write!(text, "can run"),
            };
            if process.condition != Condition::Runs {
                let _ = write!(text, " (its process {:?})", process.condition);
            }
        }
        text
    }

    /// Returns the process and the name of the running fiber.
    pub(super) fn running_name(&self) -> String {
        self.running
            .map_or_else(String::new, |id| self.fiber_name(id))
    }

    pub(super) fn fiber_name(&self, id: usize) -> String {
        let fiber = &self.fibers[id];
        format!("{}/{}", self.processes[fiber.process].name, fiber.name)
    }

    /// Adds a line to the trace, as one of the running fiber.
    pub(super) fn note(&mut self, text: impl FnOnce(&Scheduler) -> String) {
        if self.trace.has(TraceLevel::Notes) {
            let (name, text) = (self.running_name(), text(self));
            self.trace.note(self.now, &name, || text);
        }
    }
}
