//! One process of the chaos: its threads acquire, keep, extend, downgrade and release locks until
//! they are told to stop.

use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, thread};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redguard::{
    Config, Error, LockGuard, LockOptions, Locker, OnDrop, ReadGuard, RedisLocker, RedisRwLocker,
    RedisSemaphore, RetryPolicy, RwLocker, Semaphore, SemaphorePermit, WriteGuard,
};

use crate::chaos::Data;
use crate::chaos::counters::Tally;
use crate::support::child_process::Part;
use crate::support::fixtures::{LIMIT, at};
use crate::support::witness::{Journal, Kind};
use crate::support::{eventually, witness};

pub(crate) const MAX_TTL: Duration = Duration::from_secs(2);
pub(crate) const KEYS: [&str; 4] = ["a", "b", "c", "d"];
/// The semaphore has the name of a lock.
pub(crate) const SEMAPHORE: &str = KEYS[0];
pub(crate) const PERMITS: u32 = 2;
pub(crate) const MIN_TTL: Duration = Duration::from_millis(600);
const THREADS: u64 = 8;
/// Interval at which a holder checks its guard.
const LOOK: Duration = Duration::from_millis(10);
/// A few times the memory of a process that has ended its work: stacks of threads, which are kept
/// for reuse, and tables that have grown. Ten thousand holds must not need it.
#[cfg(target_os = "linux")]
const KIBIBYTES: u64 = 4 << 10;

#[test]
fn part_where_data_is_kept() {
    play(Data::Kept, |config| config);
}

#[test]
fn part_under_quarantine() {
    play(Data::Lost, |config| config.restart_quarantine(MAX_TTL));
}

/// The key of the child process is a seed: the locks have the same names in all processes.
fn play(data: Data, with: impl Fn(Config) -> Config) {
    let Some(part) = Part::mine() else { return };
    // A stopped process could not see that its parent is gone and nobody will continue it.
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).unwrap();
    let tally = Tally::beside(&part.file);
    let before = Footprint::now();
    let mut rng = StdRng::seed_from_u64(part.key.parse().unwrap());
    let config = with(at(part.nodes.clone()))
        .node_timeout(Duration::from_millis(250))
        .connect_timeout(Duration::from_secs(1))
        .circuit_breaker(5, Duration::from_secs(1))
        .pool_size(rng.random_range(1..=2))
        .on_drop(if rng.random() {
            OnDrop::Wait
        } else {
            OnDrop::Background
        })
        .retry(RetryPolicy {
            initial_delay: Duration::from_millis(20),
            max_delay: Duration::from_millis(200),
            ..RetryPolicy::default()
        });
    let Some(locker) = connect(&config, &tally) else {
        return;
    };
    thread::scope(|scope| {
        for _ in 0..THREADS {
            let actor = Actor {
                rw: RedisRwLocker::new(locker.nodes()),
                locker: locker.clone(),
                semaphore: semaphore(&locker),
                journal: Journal::at(&part.file),
                permits: Journal::at(of_permits(&part.file)),
                tally: &tally,
                data,
            };
            let rng = StdRng::from_rng(&mut rng);
            scope.spawn(move || actor.act(rng));
        }
    });
    let all = locker.nodes().shutdown(LIMIT);
    tally.add(
        1,
        if all {
            "shut down"
        } else {
            "shut down, threads late"
        },
    );
    drop(locker);
    before.assert_released(&tally);
}

/// Connects. Returns `None` if the process is told to stop before a quorum is reachable.
fn connect(config: &Config, tally: &Tally) -> Option<RedisLocker> {
    while !tally.is_stopped() {
        match RedisLocker::connect(config.clone()) {
            Ok(locker) => return Some(locker),
            Err(error) => {
                tally.add_error("connect", &error);
                thread::park_timeout(LOOK);
            }
        }
    }
    None
}

pub(crate) fn semaphore(locker: &RedisLocker) -> RedisSemaphore {
    RedisSemaphore::new(locker.nodes(), SEMAPHORE, PERMITS).unwrap()
}

/// Returns the journal of permits, beside the journal of locks.
pub(crate) fn of_permits(journal: &Path) -> PathBuf {
    journal.with_extension("permits")
}

pub(crate) fn take_write(locker: &RedisRwLocker, key: &str) -> WriteGuard {
    let patient = LockOptions::new(MAX_TTL).wait_for(LIMIT);
    locker.acquire_write(key, &patient).unwrap()
}

/// Runs one thread.
struct Actor<'a> {
    locker: RedisLocker,
    rw: RedisRwLocker,
    semaphore: RedisSemaphore,
    journal: Journal,
    permits: Journal,
    tally: &'a Tally,
    data: Data,
}

/// Acquires and holds one lock once.
struct Plan {
    key: String,
    options: LockOptions,
    fenced: bool,
    renewed: bool,
    stay: Duration,
    extends: Option<Duration>,
    releases: bool,
    downgrades: bool,
}

impl Plan {
    fn draw(rng: &mut StdRng) -> Plan {
        let ttl = rng.random_range(MIN_TTL..=MAX_TTL);
        let mut options = LockOptions::new(ttl).wait_for(rng.random_range(Duration::ZERO..MAX_TTL));
        let (renewed, fenced) = (rng.random_ratio(1, 3), rng.random_ratio(1, 2));
        if renewed {
            options = options.auto_renew(true);
        }
        // Sometimes longer than a TTL: a lock without renewal is then lost.
        let most = match rng.random_range(0..40) {
            0 => 2 * MAX_TTL,
            1..8 => MAX_TTL / 8,
            _ => MAX_TTL / 80,
        };
        Plan {
            key: KEYS[rng.random_range(0..KEYS.len())].to_owned(),
            options,
            fenced,
            renewed,
            stay: rng.random_range(Duration::ZERO..most),
            extends: rng
                .random_ratio(1, 8)
                .then(|| rng.random_range(MIN_TTL..=MAX_TTL)),
            releases: rng.random(),
            downgrades: rng.random_ratio(1, 3),
        }
    }
}

impl Actor<'_> {
    fn act(&self, mut rng: StdRng) {
        while !self.tally.is_stopped() {
            if self.tally.is_resting() {
                thread::park_timeout(LOOK);
                continue;
            }
            let plan = Plan::draw(&mut rng);
            let key = &plan.key;
            let options = &match plan.fenced {
                true => plan.options.clone().fencing(true),
                false => plan.options.clone(),
            };
            match rng.random_range(0..12) {
                0..4 => match self.locker.acquire(key, options) {
                    Ok(guard) => self.keep(guard, &plan, "exclusive", Kind::Exclusive),
                    Err(error) => self.note("acquire", &error),
                },
                4..8 => match self.rw.acquire_read(key, options) {
                    Ok(guard) => self.keep(guard, &plan, "read", Kind::Shared),
                    Err(error) => self.note("read", &error),
                },
                8..10 => match self.semaphore.acquire(&plan.options) {
                    Ok(permit) => self.keep(permit, &plan, "permit", Kind::Shared),
                    Err(error) => self.note("permit", &error),
                },
                _ => match self.rw.acquire_write(key, options) {
                    Ok(guard) if plan.downgrades => self.downgrade(guard, &plan),
                    Ok(guard) => self.keep(guard, &plan, "write", Kind::Exclusive),
                    Err(error) => self.note("write", &error),
                },
            }
        }
    }

    /// Pauses where another attempt would fail at once too.
    fn note(&self, during: &str, error: &Error) {
        self.tally.add_error(during, error);
        match error {
            Error::CircuitOpen { retry_in, .. } => {
                thread::park_timeout((*retry_in).min(10 * LOOK));
            }
            _ if error.is_denied() => thread::park_timeout(10 * LOOK),
            _ => {}
        }
    }

    fn downgrade(&self, guard: WriteGuard, plan: &Plan) {
        self.stay(&guard, plan, "write", Kind::Exclusive);
        match guard.downgrade() {
            Ok(guard) => self.keep(guard, plan, "downgraded", Kind::Shared),
            Err(error) => self.tally.add_error("downgrade", &error),
        }
    }

    fn keep(&self, guard: impl Guard, plan: &Plan, what: &str, kind: Kind) {
        self.stay(&guard, plan, what, kind);
        if plan.releases {
            if let Err(error) = guard.release() {
                self.tally.add_error("release", &error);
            }
        } else {
            drop(guard);
        }
    }

    /// Holds the lock. The journal's hold lasts from after the acquire to the last check that found
    /// the lock held. A lost lock was held until the end of its validity as last read, even if a
    /// stopped process learns of the loss later.
    ///
    /// If nodes lose their data, a renewal or an extension may find the lock lost before that end,
    /// and releases the remaining keys at once. Then only the last check counts.
    fn stay(&self, guard: &impl Guard, plan: &Plan, what: &str, kind: Kind) {
        // Exclusive and read-write locks of one name are different locks.
        let (journal, key) = match what {
            "exclusive" => (&self.journal, format!("lock:{}", plan.key)),
            "permit" => (&self.permits, SEMAPHORE.to_owned()),
            _ => (&self.journal, format!("rw:{}", plan.key)),
        };
        let mut entry = journal.enter_as(&key, kind);
        let expires = self.data == Data::Kept || !plan.renewed && plan.extends.is_none();
        let (mut until, mut seen) = (Duration::ZERO, Duration::ZERO);
        entry.fencing_token(guard.fence());
        let end = witness::now() + plan.stay;
        let mut extends = plan.extends;
        loop {
            // In this order, because a pause in between must not prolong the hold.
            let now = witness::now();
            let remaining = guard.remaining();
            if remaining.is_zero() {
                let early = witness::now() < until;
                let what = ["lost", "lost before its end"][usize::from(early)];
                self.tally.add(1, what);
                entry.until(if expires { until } else { seen });
                break;
            }
            (until, seen) = (now + remaining, now);
            if now >= end {
                entry.until(seen);
                break;
            }
            if let Some(ttl) = extends.take()
                && let Err(error) = guard.extend(ttl)
            {
                self.tally.add_error("extend", &error);
            }
            thread::park_timeout((end - now).min(LOOK));
        }
        drop(entry);
        let renewed = if plan.renewed { ", renewed" } else { "" };
        let fenced = guard.fence().map_or("", |_| ", fenced");
        self.tally.add(1, &format!("held {what}{renewed}{fenced}"));
    }
}

/// The common interface of the four guards.
trait Guard {
    fn remaining(&self) -> Duration;
    fn extend(&self, ttl: Duration) -> Result<(), Error>;
    fn release(self) -> Result<(), Error>;
    fn fence(&self) -> Option<u64>;
}

macro_rules! guard {
    ($guard:ident, $fence:expr) => {
        impl Guard for $guard {
            fn remaining(&self) -> Duration {
                self.remaining()
            }

            fn extend(&self, ttl: Duration) -> Result<(), Error> {
                self.extend(ttl)
            }

            fn release(self) -> Result<(), Error> {
                self.release()
            }

            fn fence(&self) -> Option<u64> {
                $fence(self)
            }
        }
    };
}

guard!(LockGuard, LockGuard::fencing_token);
guard!(WriteGuard, WriteGuard::fencing_token);
guard!(ReadGuard, |_: &ReadGuard| None);
guard!(SemaphorePermit, |_: &SemaphorePermit| None);

/// Resources of a process. Its memory is only written memory, without mapped program files.
struct Footprint {
    sockets: usize,
    kibibytes: u64,
}

impl Footprint {
    fn now() -> Footprint {
        let fds = fs::read_dir("/proc/self/fd").into_iter().flatten();
        let ends = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        let sockets = ends.filter(|end| end.to_string_lossy().starts_with("socket:"));
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let anonymous = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kibibytes = anonymous.and_then(|text| text.trim().split(' ').next()?.parse().ok());
        Footprint {
            sockets: sockets.count(),
            kibibytes: kibibytes.unwrap_or_default(),
        }
    }

    /// Asserts that the library has no thread and no socket left, and almost no memory.
    #[cfg(target_os = "linux")]
    fn assert_released(&self, tally: &Tally) {
        use crate::locks::processes::worker_threads;

        eventually(LIMIT, "no thread and no socket is left", || {
            worker_threads() == 0 && Footprint::now().sockets == self.sockets
        });
        let more = Footprint::now().kibibytes.saturating_sub(self.kibibytes);
        assert!(more < KIBIBYTES, "{more} KiB more than at the start");
        tally.add(
            more,
            "KiB more than at the start, in all processes together",
        );
    }

    #[cfg(not(target_os = "linux"))]
    fn assert_released(&self, _: &Tally) {}
}
