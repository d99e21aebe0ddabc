//! Unbounded channels. The simulator replaces them in tests.

pub(crate) use crossbeam_channel::{RecvTimeoutError, TryRecvError};
#[cfg(not(all(test, not(loom))))]
pub(crate) use crossbeam_channel::{Receiver, Sender, unbounded};

#[cfg(all(test, not(loom)))]
pub(crate) use crate::tests::simulation::runtime::channel::{Receiver, Sender, unbounded};
