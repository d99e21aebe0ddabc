//! The clock, deadlines and a queue of timers.

pub(crate) mod clock;
pub(crate) mod deadline;
pub(crate) mod timer_queue;
