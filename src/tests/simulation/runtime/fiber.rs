//! One thread of a simulated process, and what it waits for.

use std::fmt;
use std::panic::Location;
use std::time::Duration;

use crate::tests::simulation::runtime::stack::Job;

/// The object that a fiber waits on. It is only compared, so that addresses decide no order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resource {
    /// A mutex, a condition variable or a channel, by its address.
    Address(usize),
    /// The end of a fiber.
    Fiber(usize),
    /// Nothing but time.
    Time,
}

impl Resource {
    pub(super) fn of<T: ?Sized>(object: &T) -> Resource {
        Resource::Address(std::ptr::from_ref(object).cast::<()>() as usize)
    }

    /// Returns one of `count` numbers. Other resources may have the same.
    pub(super) fn bucket(self, count: usize) -> usize {
        match self {
            Resource::Address(address) => ((address >> 3) ^ (address >> 11)) % count,
            Resource::Fiber(fiber) => fiber % count,
            Resource::Time => 0,
        }
    }
}

/// How a wait has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    Notified,
    TimedOut,
}

/// The reason why a fiber waits, in words, and where in the code.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wait {
    pub(super) what: &'static str,
    pub(super) on: Resource,
    /// When the wait ends at the latest, on the steady clock of the process, in ns.
    pub(super) until: Option<u64>,
    pub(super) at: &'static Location<'static>,
}

/// A wait that has begun.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocked {
    pub(super) wait: Wait,
    /// The true time at which it began.
    pub(super) since: u64,
    /// The timer that ends it.
    pub(super) timer: Option<(u64, u64)>,
}

pub(super) enum State {
    /// Runnable, if its process runs.
    Ready,
    Blocked(Blocked),
    Ended,
}

pub(super) struct Fiber {
    pub(super) name: String,
    pub(super) process: usize,
    pub(super) state: State,
    /// Its code, until it runs first.
    pub(super) job: Option<Job>,
    pub(super) priority: u64,
    /// It has yielded: others run before it.
    pub(super) yielded: bool,
    /// How its last wait ended.
    pub(super) woken: Woken,
}

impl Fiber {
    pub(super) fn is_live(&self) -> bool {
        !matches!(self.state, State::Ended)
    }

    pub(super) fn blocked(&self) -> Option<&Blocked> {
        match &self.state {
            State::Blocked(blocked) => Some(blocked),
            _ => None,
        }
    }

    pub(super) fn waits_on(&self, resource: Resource) -> bool {
        self.blocked()
            .is_some_and(|blocked| blocked.wait.on == resource)
    }
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let since = Duration::from_nanos(self.since);
        write!(f, "{} since {since:?} at {}", self.wait.what, self.wait.at)?;
        match self.timer {
            Some((due, _)) => write!(f, ", until {:?}", Duration::from_nanos(due)),
            None if self.wait.until.is_some() => write!(f, ", until its clock runs again"),
            None => write!(f, ", without a limit"),
        }
    }
}
