//! The clock, deadlines and a queue of timers.

pub(crate) mod clock;
pub(crate) mod deadline;
#[cfg(feature = "serde")]
pub(crate) mod human;
pub(crate) mod timer_queue;
