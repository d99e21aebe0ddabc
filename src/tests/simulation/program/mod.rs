//! Simulated processes: the use of locks by their threads.

pub(crate) mod acquire;
pub(crate) mod acts;
pub(crate) mod guard;
pub(crate) mod history;
pub(crate) mod process;
pub(crate) mod progress;
pub(crate) mod thread;
