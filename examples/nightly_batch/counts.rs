//! What a copy counts. It prints this for the first process, as one line and one more for each long
//! hold.

use std::cmp::Reverse;
use std::fmt;
use std::ops::AddAssign;
use std::time::Duration;

/// How many of the longest holds are shown.
const SHOWN: usize = 3;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) acquired: u64,
    pub(crate) contended: u64,
    pub(crate) lost: u64,
    pub(crate) rows: u64,
    /// Sum of the times from grant to release.
    pub(crate) held: Duration,
    /// Longest time from acquire to grant.
    pub(crate) waited: Duration,
    /// The longest holds with their files, longest first.
    pub(crate) longest: Vec<(Duration, String)>,
}

impl Counts {
    pub(crate) fn add_hold(&mut self, held: Duration, file: &str) {
        self.held += held;
        let is_long = self.longest.last().is_none_or(|last| held > last.0);
        if is_long || self.longest.len() < SHOWN {
            self.longest.push((held, file.to_owned()));
            self.keep_longest();
        }
    }

    fn keep_longest(&mut self) {
        self.longest.sort_by_key(|(held, _)| Reverse(*held));
        self.longest.truncate(SHOWN);
    }

    pub(crate) fn parse(text: &str) -> Option<Counts> {
        let mut lines = text.lines();
        let mut numbers = lines.next()?.strip_prefix("counts ")?.split_whitespace();
        let mut next = || numbers.next()?.parse().ok();
        let mut counts = Counts {
            acquired: next()?,
            contended: next()?,
            lost: next()?,
            rows: next()?,
            held: Duration::from_micros(next()?),
            waited: Duration::from_micros(next()?),
            longest: Vec::new(),
        };
        for line in lines {
            let (held, file) = line.strip_prefix("held ")?.split_once(' ')?;
            let held = Duration::from_micros(held.parse().ok()?);
            counts.longest.push((held, file.to_owned()));
        }
        Some(counts)
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (acquired, contended, lost, rows) =
            (self.acquired, self.contended, self.lost, self.rows);
        let (held, waited) = (self.held.as_micros(), self.waited.as_micros());
        writeln!(
            f,
            "counts {acquired} {contended} {lost} {rows} {held} {waited}"
        )?;
        for (held, file) in &self.longest {
            writeln!(f, "held {} {file}", held.as_micros())?;
        }
        Ok(())
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.acquired += other.acquired;
        self.contended += other.contended;
        self.lost += other.lost;
        self.rows += other.rows;
        self.held += other.held;
        self.waited = self.waited.max(other.waited);
        self.longest.extend(other.longest);
        self.keep_longest();
    }
}
