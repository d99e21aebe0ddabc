//! Checks that no two holders of a lock overlap: threads while they run, processes afterwards from
//! a journal.

use std::collections::HashMap;
use std::fmt::{Display, Formatter};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, fs, process};

use nix::time::{ClockId, clock_gettime};

/// The mode of a hold: readers may overlap each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Exclusive,
    Shared,
}

/// Watches the threads of this process. Clones watch the same keys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Witness {
    keys: Arc<Mutex<HashMap<String, Crowd>>>,
}

/// The holders of one key.
#[derive(Debug, Default)]
struct Crowd {
    writers: usize,
    readers: usize,
    entries: u64,
    most: usize,
    overlaps: u64,
}

/// A hold between lock and release. Create it after the guard, so that it is dropped first.
#[derive(Debug)]
#[must_use = "dropping it at once says that the lock was held for no time"]
pub(crate) struct Inside {
    keys: Arc<Mutex<HashMap<String, Crowd>>>,
    key: String,
    kind: Kind,
}

impl Witness {
    pub(crate) fn new() -> Witness {
        Witness::default()
    }

    /// Begins an exclusive hold.
    ///
    /// # Panics
    /// If another thread holds the key. `overlaps` counts that too, in case the thread's panic is
    /// lost.
    pub(crate) fn enter(&self, key: &str) -> Inside {
        self.enter_as(key, Kind::Exclusive)
    }

    /// Begins a reader's hold.
    ///
    /// # Panics
    /// If a writer holds the key.
    pub(crate) fn enter_shared(&self, key: &str) -> Inside {
        self.enter_as(key, Kind::Shared)
    }

    /// Returns how often the key was entered, including current holds.
    pub(crate) fn entries(&self, key: &str) -> u64 {
        lock(&self.keys).get(key).map_or(0, |crowd| crowd.entries)
    }

    /// Returns the greatest number of simultaneous holders; only readers can be more than one.
    pub(crate) fn most(&self, key: &str) -> usize {
        lock(&self.keys).get(key).map_or(0, |crowd| crowd.most)
    }

    /// Returns the overlaps seen so far over all keys. Every test checks it at its end.
    pub(crate) fn overlaps(&self) -> u64 {
        lock(&self.keys).values().map(|crowd| crowd.overlaps).sum()
    }

    fn enter_as(&self, key: &str, kind: Kind) -> Inside {
        let mut keys = lock(&self.keys);
        let crowd = keys.entry(key.to_owned()).or_default();
        let (writers, readers) = (crowd.writers, crowd.readers);
        let alone = writers == 0 && (readers == 0 || kind == Kind::Shared);
        match kind {
            Kind::Exclusive => crowd.writers += 1,
            Kind::Shared => crowd.readers += 1,
        }
        crowd.entries += 1;
        crowd.most = crowd.most.max(writers + readers + 1);
        crowd.overlaps += u64::from(!alone);
        drop(keys);
        // Created before the assertion, so that unwinding ends the hold.
        let inside = Inside {
            keys: Arc::clone(&self.keys),
            key: key.to_owned(),
            kind,
        };
        assert!(
            alone,
            "{kind:?} holder of {key:?} meets {writers} writers and {readers} readers"
        );
        inside
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Some(crowd) = lock(&self.keys).get_mut(&self.key) {
            match self.kind {
                Kind::Exclusive => crowd.writers -= 1,
                Kind::Shared => crowd.readers -= 1,
            }
        }
    }
}

/// Watches processes through a file: every process appends one line per hold, and one process
/// checks them at the end.
///
/// The clock is `CLOCK_MONOTONIC`, which all processes of one machine share. A line is written when
/// the hold ends, by one `write` in append mode, which needs no lock. A killed holder leaves no
/// line.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    path: PathBuf,
}

/// A current hold; its line is written on drop. Create it after the guard, so that it is dropped
/// first.
#[derive(Debug)]
#[must_use = "dropping it at once says that the lock was held for no time"]
pub(crate) struct Entry {
    file: File,
    hold: Hold,
    until: Option<Duration>,
}

/// One hold, from a moment after the acquire to a moment before the release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    pub(crate) begin: Duration,
    pub(crate) end: Duration,
    pub(crate) kind: Kind,
    pub(crate) pid: u32,
    /// The fencing token of the guard.
    pub(crate) fence: Option<u64>,
    pub(crate) key: String,
}

impl Journal {
    /// Opens the journal. The file need not exist.
    pub(crate) fn at(path: impl AsRef<Path>) -> Journal {
        Journal {
            path: path.as_ref().to_owned(),
        }
    }

    pub(crate) fn enter(&self, key: &str) -> Entry {
        self.enter_as(key, Kind::Exclusive)
    }

    pub(crate) fn enter_shared(&self, key: &str) -> Entry {
        self.enter_as(key, Kind::Shared)
    }

    /// Returns all holds that have ended, in no order.
    pub(crate) fn holds(&self) -> Vec<Hold> {
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        text.lines()
            .map(|line| Hold::parse(line).unwrap_or_else(|| panic!("a torn line: {line:?}")))
            .collect()
    }

    /// Returns the number of holds if no two conflict and fencing tokens increase, else a
    /// description of every violation.
    pub(crate) fn check(&self) -> Result<usize, String> {
        let holds = self.holds();
        let conflicts = conflicts(&holds).into_iter();
        let conflicts = conflicts.map(|(a, b)| format!("{a}\n    overlaps {b}"));
        let decreasing_tokens = decreasing_tokens(&holds).into_iter();
        let decreasing_tokens = decreasing_tokens
            .map(|(a, b)| format!("{a}\n    has no smaller fencing token than {b}"));
        let found: Vec<String> = conflicts.chain(decreasing_tokens).collect();
        if found.is_empty() {
            Ok(holds.len())
        } else {
            Err(found.join("\n"))
        }
    }

    pub(crate) fn enter_as(&self, key: &str, kind: Kind) -> Entry {
        assert!(
            !key.contains('\n'),
            "a journal has one line per hold: {key:?}"
        );
        let file = File::options()
            .create(true)
            .append(true)
            .open(&self.path)
            .expect("the journal opens");
        let begin = now();
        Entry {
            file,
            hold: Hold {
                begin,
                end: begin,
                kind,
                pid: process::id(),
                fence: None,
                key: key.to_owned(),
            },
            until: None,
        }
    }
}

impl Entry {
    /// Ends the hold at this moment at the latest, even if it is dropped later. A hold that would
    /// end before its beginning leaves no line.
    pub(crate) fn until(&mut self, end: Duration) {
        self.until = Some(end);
    }

    pub(crate) fn fencing_token(&mut self, fence: Option<u64>) {
        self.hold.fence = fence;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.hold.end = self.until.map_or_else(now, |until| until.min(now()));
        if self.until.is_some() && self.hold.end <= self.hold.begin {
            return;
        }
        let written = self.file.write_all(self.hold.line().as_bytes());
        // A hold without a line would let the check pass wrongly.
        assert!(
            written.is_ok() || std::thread::panicking(),
            "the journal takes no line: {written:?}"
        );
    }
}

impl Hold {
    fn line(&self) -> String {
        let kind = if self.kind == Kind::Shared {
            "shared"
        } else {
            "exclusive"
        };
        let fence = self
            .fence
            .map_or_else(|| "-".to_owned(), |fence| fence.to_string());
        format!(
            "{} {} {kind} {} {fence} {}\n",
            self.begin.as_nanos(),
            self.end.as_nanos(),
            self.pid,
            self.key
        )
    }

    fn parse(line: &str) -> Option<Hold> {
        let mut words = line.splitn(6, ' ');
        let begin = Duration::from_nanos(words.next()?.parse().ok()?);
        let end = Duration::from_nanos(words.next()?.parse().ok()?);
        let kind = match words.next()? {
            "shared" => Kind::Shared,
            "exclusive" => Kind::Exclusive,
            _ => return None,
        };
        Some(Hold {
            begin,
            end,
            kind,
            pid: words.next()?.parse().ok()?,
            fence: match words.next()? {
                "-" => None,
                fence => Some(fence.parse().ok()?),
            },
            key: words.next()?.to_owned(),
        })
    }
}

impl Display for Hold {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Hold {
            begin,
            end,
            kind,
            pid,
            fence,
            key,
        } = self;
        write!(
            f,
            "{kind:?} {key:?} by process {pid} from {begin:?} to {end:?}"
        )?;
        fence.map_or(Ok(()), |fence| write!(f, " as number {fence}"))
    }
}

/// Compares each hold, in order of beginnings, with its longest-lasting predecessor on the same
/// key; a reader only with writers. Every hold that conflicts with an earlier hold is reported
/// once.
fn conflicts(holds: &[Hold]) -> Vec<(&Hold, &Hold)> {
    let mut holds: Vec<&Hold> = holds.iter().collect();
    holds.sort_by_key(|hold| hold.begin);
    let mut longest: HashMap<&str, (Option<&Hold>, Option<&Hold>)> = HashMap::new();
    let mut found = Vec::new();
    for hold in holds {
        let (any, writer) = longest.entry(&hold.key).or_default();
        let before = if hold.kind == Kind::Shared {
            *writer
        } else {
            *any
        };
        found.extend(
            before
                .filter(|before| before.end > hold.begin)
                .map(|before| (before, hold)),
        );
        let last = |former: Option<&'_ Hold>| former.is_none_or(|former| former.end <= hold.end);
        if last(*any) {
            *any = Some(hold);
        }
        if hold.kind == Kind::Exclusive && last(*writer) {
            *writer = Some(hold);
        }
    }
    found
}

/// Returns each hold whose fencing token is not above all earlier tokens of its key, after the hold
/// with the greatest.
fn decreasing_tokens(holds: &[Hold]) -> Vec<(&Hold, &Hold)> {
    let mut holds: Vec<&Hold> = holds.iter().filter(|hold| hold.fence.is_some()).collect();
    holds.sort_by_key(|hold| hold.begin);
    let mut greatest: HashMap<&str, &Hold> = HashMap::new();
    let mut found = Vec::new();
    for hold in holds {
        match greatest.get(hold.key.as_str()) {
            Some(before) if before.fence >= hold.fence => found.push((*before, hold)),
            _ => _ = greatest.insert(&hold.key, hold),
        }
    }
    found
}

/// Reads the clock of journals, which all processes of a machine share.
pub(crate) fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .expect("a monotonic clock")
        .into()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
