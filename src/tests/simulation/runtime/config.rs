//! The settings of a history.

use std::time::Duration;

use crate::tests::simulation::runtime::random::Random;
use crate::tests::simulation::runtime::strategy::StrategyKind;
use crate::tests::simulation::runtime::trace::TraceLevel;

/// The settings of a history. Together with its seed they determine it.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) strategy: StrategyKind,
    /// For how long at most the time passes while a fiber could run.
    pub(crate) max_stall: Duration,
    /// After how much simulated time, and after how many steps, a history has failed. When it is
    /// over its fibers get as much again to run out.
    pub(crate) max_time: Duration,
    pub(crate) max_steps: u64,
    pub(crate) trace: TraceLevel,
}

impl Config {
    /// Draws the settings of a seed.
    pub(crate) fn draw(seed: u64) -> Config {
        let mut random = Random::new(seed, 1);
        Config {
            strategy: StrategyKind::draw(&mut random),
            max_stall: Duration::from_micros(1 << random.below(13)),
            max_time: Duration::from_secs(600),
            max_steps: 2_000_000,
            trace: TraceLevel::Off,
        }
    }
}
