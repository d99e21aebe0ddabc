//! The runtime of the simulator: the shipped code runs in it as it is, above replaced seams.
//!
//! [`Simulation::run`] runs one *history*: real closures on *fibers*, of which exactly one runs at
//! a time, on the calling thread. The seams `sync`, `time` and `random` ask [`context`] whether
//! their caller is a fiber. If it is, each of their operations is a *step*, at which a seeded
//! [strategy] may choose another fiber. All time is simulated: it passes by 50 ns per step, and
//! jumps to the next timer when nothing can run. So a history is a function of its seed.
//!
//! ```ignore
//! let outcome = Simulation::run(seed, &Config::draw(seed), |sim| {
//!     let process = sim.process("a");
//!     let thread = process.spawn("caller", move || {
//!         threads::sleep(Duration::from_millis(5)); // any code above the seams
//!         sim.note(|| "slept".to_owned());
//!     });
//!     sim.after(Duration::from_millis(2), move || process.pause());
//!     sim.after(Duration::from_millis(9), move || process.resume());
//!     thread.join().unwrap();
//! });
//! assert_eq!(outcome.result, Ok(()), "{:#?}", outcome.trace);
//! ```
//!
//! - A *process* is a group of fibers with clocks, random numbers and a process id of its own. It
//!   may be paused, suspended, killed. Threads that its fibers start belong to it.
//! - A *callback* ([`Simulation::after`]) runs between two fibers and cannot block: for messages
//!   that arrive, and for faults.
//! - State that fibers of several processes share (nodes, the checker) stands in a mutex of `std`
//!   or `parking_lot` that is not locked across a step, since a killed process never unlocks one.
//! - A history fails by a panic that reaches the top of a fiber, by [`Simulation::fail`], by a
//!   deadlock, or at a limit of [`config::Config`]. The text of the last three says what each
//!   fiber waits for, and where.
//! - What it cannot find: an atomic `Ordering` that is too weak (see `loom`), and races between two
//!   steps, since no code without a step is interrupted.

pub(crate) mod atomic;
pub(crate) mod channel;
pub(crate) mod config;
pub(crate) mod context;
pub(crate) mod failure;
mod fiber;
pub(crate) mod hash_state;
pub(crate) mod history;
pub(crate) mod mutex;
pub(crate) mod process;
mod process_clock;
pub(crate) mod random;
mod report;
mod scheduler;
pub(crate) mod signal;
pub(crate) mod simulation;
mod stack;
pub(crate) mod strategy;
mod tests;
pub(crate) mod thread;
mod timers;
pub(crate) mod trace;
