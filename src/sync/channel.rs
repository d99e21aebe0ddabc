//! Unbounded channels. The simulator replaces them in tests.

#[cfg(not(all(test, not(loom))))]
pub(crate) use crossbeam_channel::{Receiver, Sender, unbounded};
pub(crate) use crossbeam_channel::{RecvTimeoutError, TryRecvError};

#[cfg(all(test, not(loom)))]
pub(crate) use crate::tests::simulation::runtime::channel::{Receiver, Sender, unbounded};
