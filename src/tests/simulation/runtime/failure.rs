//! Why a history has failed.

use std::fmt;

/// Why a history has failed. The first failure counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// A panic that no code of the fiber caught.
    Panicked { fiber: String, message: String },
    /// The program of the history found a rule broken.
    Broken(String),
    /// All fibers wait, and no timer ends a wait.
    Deadlock(String),
    /// `max_time` has passed.
    OutOfTime(String),
    /// `max_steps` were made.
    OutOfSteps(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Panicked { fiber, message } => write!(f, "panic in {fiber}: {message}"),
            Failure::Broken(rule) => write!(f, "{rule}"),
            Failure::Deadlock(waits) => write!(f, "deadlock {waits}"),
            Failure::OutOfTime(waits) => write!(f, "not over in time {waits}"),
            Failure::OutOfSteps(waits) => write!(f, "not over within the steps {waits}"),
        }
    }
}
