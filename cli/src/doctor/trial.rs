//! Trial locks of each kind, by the library.

use std::time::{Duration, Instant};

use redguard::{
    Config, Error, LockOptions, Locker, Nodes, RedisLocker, RedisRwLocker, RedisSemaphore,
    RwLocker, Semaphore,
};

use crate::duration::rounded;

/// The TTL of a trial lock, in case this process is killed.
const TTL: Duration = Duration::from_secs(5);

/// The result of one trial: the kind, and how long it took or why it failed.
pub(crate) struct Trial {
    pub(crate) kind: &'static str,
    pub(crate) result: Result<Duration, Error>,
}

impl Trial {
    pub(crate) fn text(&self) -> String {
        match &self.result {
            Ok(took) if took.as_secs() == 0 => {
                format!("{} in {:.1} ms", self.kind, took.as_secs_f64() * 1000.0)
            }
            Ok(took) => format!("{} in {}", self.kind, rounded(*took)),
            Err(error) => format!("{}: {error}", self.kind),
        }
    }
}

/// Acquires and releases a lock of each kind.
///
/// # Errors
/// If no quorum can be connected.
pub(crate) fn run(config: Config) -> Result<Vec<Trial>, Error> {
    let nodes = Nodes::connect(config)?;
    let name = name();
    let options = LockOptions::new(TTL).wait_for(Duration::ZERO);
    let fenced = options.clone().fencing(true);
    let locker = RedisLocker::new(&nodes);
    let rw = RedisRwLocker::new(&nodes);
    let trials = vec![
        trial("lock", || locker.acquire(&name, &options)?.release()),
        trial("fenced lock", || locker.acquire(&name, &fenced)?.release()),
        trial("write lock", || {
            rw.acquire_write(&name, &options)?.release()
        }),
        trial("read lock", || rw.acquire_read(&name, &options)?.release()),
        trial("permit", || {
            let semaphore = RedisSemaphore::new(&nodes, &name, 1)?;
            semaphore.acquire(&options)?.release()
        }),
    ];
    let _ = nodes.shutdown(Duration::ZERO);
    Ok(trials)
}

/// Acquires and releases a lock on one node alone. Returns why the node does not grant it, which the
/// trials of a quorum do not show. A missing right and a replica are told otherwise.
pub(crate) fn refusal(config: Config) -> Option<String> {
    let options = LockOptions::new(TTL).wait_for(Duration::ZERO);
    let trial = Nodes::connect(config).and_then(|nodes| {
        let guard = RedisLocker::new(&nodes).acquire(&name(), &options)?;
        let released = guard.release();
        let _ = nodes.shutdown(Duration::ZERO);
        released
    });
    match trial {
        Err(error) if !error.is_denied() => Some(match &error {
            Error::InsufficientQuorum { causes, .. } if causes.len() == 1 => {
                causes[0].failure.to_string()
            }
            error => error.to_string(),
        }),
        _ => None,
    }
}

fn name() -> String {
    format!("redguard-doctor-{}", std::process::id())
}

fn trial(kind: &'static str, work: impl FnOnce() -> Result<(), Error>) -> Trial {
    let start = Instant::now();
    let result = work().map(|()| start.elapsed());
    Trial { kind, result }
}
