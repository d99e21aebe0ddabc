//! The rounds of a watch: holders are read in each, names are searched for as seldom as the servers
//! need.

use std::time::{Duration, Instant};

use crate::config::Settings;
use crate::failure::Result;
use crate::locks::survey::{Seen, Survey};
use crate::nodes::fan_out::Absent;
use crate::status::is_lock;
use crate::watch::stop::Stop;

/// The inverse of the share of a server's time that a watch may take: 5 %.
const SHARE: u32 = 20;

/// The source of lists.
pub(crate) struct Rounds {
    survey: Survey,
    interval: Duration,
    names: Vec<String>,
    absent: Vec<Absent>,
    next_search: Option<Instant>,
}

impl Rounds {
    pub(crate) fn new(settings: &Settings, pattern: &str, interval: Duration) -> Result<Rounds> {
        Ok(Rounds {
            survey: Survey::new(settings, pattern)?,
            interval,
            names: Vec::new(),
            absent: Vec::new(),
            next_search: None,
        })
    }

    pub(crate) fn title(&self) -> String {
        self.survey.title()
    }

    /// Lists once, and returns the pause until the next list. A list that `stop` has cut short is
    /// incomplete.
    pub(crate) fn list(&mut self, stop: &Stop) -> (Result<Seen>, Duration) {
        let start = Instant::now();
        if self.next_search.is_none_or(|next| next <= start) {
            match self.survey.find(&|| !stop.is_set()) {
                Ok(found) => {
                    self.names = found.names.into_iter().collect();
                    self.absent = found.absent;
                    self.next_search = Some(start + pause(self.interval, found.took));
                }
                Err(failure) => return (Err(failure), self.interval),
            }
        }
        let reading = Instant::now();
        let seen = self.survey.read(&self.names).map(|mut seen| {
            let known: Vec<_> = seen.absent.iter().map(|it| it.node.clone()).collect();
            let others = self.absent.iter().filter(|it| !known.contains(&it.node));
            seen.absent.extend(others.cloned());
            seen.rows.retain(is_lock);
            seen
        });
        (seen, pause(self.interval, reading.elapsed()))
    }
}

/// Returns the time between the starts of two requests that keep a server busy for `took`.
fn pause(interval: Duration, took: Duration) -> Duration {
    interval.max(took.saturating_mul(SHARE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_keeps_within_the_share() {
        let second = Duration::from_secs(1);
        assert_eq!(pause(second, Duration::from_millis(1)), second);
        assert_eq!(
            pause(second, Duration::from_millis(360)),
            Duration::from_millis(7200)
        );
    }
}
