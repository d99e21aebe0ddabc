//! Unbounded channels in the shape of those of `crossbeam_channel`.
//!
//! A channel that is created in a simulation belongs to it; any other is one of
//! `crossbeam_channel`.

use std::collections::VecDeque;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvError, RecvTimeoutError, SendError, TryRecvError};
use parking_lot::Mutex;

use crate::tests::simulation::runtime::context;
use crate::tests::simulation::runtime::fiber::{Resource, Woken};
use crate::time::clock;

pub(crate) enum Sender<T> {
    Real(crossbeam_channel::Sender<T>),
    Simulated(Arc<Queue<T>>),
}

pub(crate) enum Receiver<T> {
    Real(crossbeam_channel::Receiver<T>),
    Simulated(Arc<Queue<T>>),
}

/// A channel of a simulation. Its mutex is never locked across a step.
pub(crate) struct Queue<T>(Mutex<QueueState<T>>);

struct QueueState<T> {
    messages: VecDeque<T>,
    senders: usize,
    has_receiver: bool,
}

pub(crate) fn unbounded<T>() -> (Sender<T>, Receiver<T>) {
    if !context::is_simulated() {
        let (sender, receiver) = crossbeam_channel::unbounded();
        return (Sender::Real(sender), Receiver::Real(receiver));
    }
    let queue = Arc::new(Queue(Mutex::new(QueueState {
        messages: VecDeque::new(),
        senders: 1,
        has_receiver: true,
    })));
    (
        Sender::Simulated(Arc::clone(&queue)),
        Receiver::Simulated(queue),
    )
}

impl<T> Sender<T> {
    pub(crate) fn send(&self, message: T) -> Result<(), SendError<T>> {
        match self {
            Sender::Real(sender) => sender.send(message),
            Sender::Simulated(queue) => queue.send(message),
        }
    }
}

impl<T> Receiver<T> {
    #[track_caller]
    pub(crate) fn recv(&self) -> Result<T, RecvError> {
        match self {
            Receiver::Real(receiver) => receiver.recv(),
            Receiver::Simulated(queue) => queue
                .receive(None, Location::caller())
                .map_err(|_| RecvError),
        }
    }

    #[track_caller]
    pub(crate) fn recv_deadline(&self, end: Instant) -> Result<T, RecvTimeoutError> {
        match self {
            Receiver::Real(receiver) => receiver.recv_deadline(end),
            Receiver::Simulated(queue) => queue.receive(Some(end), Location::caller()),
        }
    }

    #[track_caller]
    pub(crate) fn recv_timeout(&self, timeout: Duration) -> Result<T, RecvTimeoutError> {
        match self {
            Receiver::Real(receiver) => receiver.recv_timeout(timeout),
            Receiver::Simulated(queue) => {
                queue.receive(clock::now().checked_add(timeout), Location::caller())
            }
        }
    }

    pub(crate) fn try_recv(&self) -> Result<T, TryRecvError> {
        match self {
            Receiver::Real(receiver) => receiver.try_recv(),
            Receiver::Simulated(queue) => {
                context::step();
                queue
                    .take()
                    .map_err(|is_disconnected| match is_disconnected {
                        true => TryRecvError::Disconnected,
                        false => TryRecvError::Empty,
                    })
            }
        }
    }
}

impl<T> Queue<T> {
    fn send(&self, message: T) -> Result<(), SendError<T>> {
        context::step();
        let mut state = self.0.lock();
        if !state.has_receiver {
            return Err(SendError(message));
        }
        state.messages.push_back(message);
        drop(state); // unlock before waking
        context::wake_all(Resource::of(self));
        Ok(())
    }

    /// Takes the first message. The error tells whether none will come.
    fn take(&self) -> Result<T, bool> {
        let mut state = self.0.lock();
        let is_disconnected = state.senders == 0;
        state.messages.pop_front().ok_or(is_disconnected)
    }

    fn receive(
        &self,
        end: Option<Instant>,
        at: &'static Location<'static>,
    ) -> Result<T, RecvTimeoutError> {
        context::step();
        let mut has_timed_out = false;
        loop {
            match self.take() {
                Ok(message) => return Ok(message),
                Err(true) => return Err(RecvTimeoutError::Disconnected),
                Err(false) if has_timed_out => return Err(RecvTimeoutError::Timeout),
                Err(false) => {
                    let wait = context::wait("waits for a message", Resource::of(self), end, at);
                    has_timed_out = context::block(wait) == Woken::TimedOut;
                }
            }
        }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        match self {
            Sender::Real(sender) => Sender::Real(sender.clone()),
            Sender::Simulated(queue) => {
                queue.0.lock().senders += 1;
                Sender::Simulated(Arc::clone(queue))
            }
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if let Sender::Simulated(queue) = self {
            context::step();
            let mut state = queue.0.lock();
            state.senders -= 1;
            let is_last = state.senders == 0;
            drop(state); // unlock before waking
            if is_last {
                context::wake_all(Resource::of(&**queue));
            }
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        if let Receiver::Simulated(queue) = self {
            context::step();
            let mut state = queue.0.lock();
            state.has_receiver = false;
            let messages = std::mem::take(&mut state.messages);
            drop(state); // unlock before the destructors of the messages
            drop(messages);
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sender(..)")
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Receiver(..)")
    }
}
