//! One signal that arrives twice. Pure: the time is an argument.

use std::time::{Duration, Instant};

use crate::run::signals::Received;

/// Within this time a second signal of the same number from the same process is the same one:
/// timeout(1), for example, sends each both to `run` and to its group. A pending signal does not
/// count twice in any case.
const SAME_SIGNAL: Duration = Duration::from_millis(250);

/// The first real-time signal, which are queued and each count.
const FIRST_REAL_TIME: i32 = 34;

/// The signals of the last [`SAME_SIGNAL`].
#[derive(Debug, Default)]
pub(crate) struct Repetitions {
    last: Vec<(Received, Instant)>,
}

impl Repetitions {
    /// Notes a signal. Returns whether it repeats an earlier one.
    pub(crate) fn note(&mut self, signal: Received, now: Instant) -> bool {
        self.last.retain(|(_, when)| now - *when < SAME_SIGNAL);
        // The kernel sends one signal per key that is pressed.
        if signal.sender == 0 || signal.number >= FIRST_REAL_TIME {
            return false;
        }
        let is_known = self.last.iter().any(|(last, _)| *last == signal);
        if !is_known {
            self.last.push((signal, now));
        }
        is_known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signal_is_repeated_by_its_number_and_sender_for_a_quarter_of_a_second() {
        let start = Instant::now();
        let mut repetitions = Repetitions::default();
        for (ms, number, sender, repeats) in [
            (0, 15, 7, false),
            (100, 15, 7, true),
            (100, 18, 7, false),
            (100, 15, 8, false),
            // From the first one on, so that a signal every 200 ms is not lost for ever.
            (250, 15, 7, false),
            (499, 15, 7, true),
            (500, 15, 7, false),
            // Keys of a terminal, and real-time signals.
            (500, 2, 0, false),
            (500, 2, 0, false),
            (500, 34, 7, false),
            (500, 34, 7, false),
        ] {
            let now = start + Duration::from_millis(ms);
            let signal = Received { number, sender };
            assert_eq!(repetitions.note(signal, now), repeats, "{ms} {signal:?}");
        }
    }
}
