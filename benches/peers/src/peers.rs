//! The peers: each library as its authors document it, with its own settings for retries.
//!
//! All do the same: threads acquire and release the lock of a key with a TTL of ten seconds, and
//! block for it. Threads share all that can be shared, as in a program. Asynchronous libraries run
//! on a Tokio runtime with one worker per core, as in their READMEs. It is created once for all
//! threads, each of which blocks on its own lock. So Tokio's workers do the I/O for many threads
//! together, and the cost of waking the caller is common to all threaded programs, including ours.
//! A program made of tasks would not pay that cost, but would not use a blocking library either.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redguard::{Config, Locker, RedisLocker};
use redis_0_27::aio::MultiplexedConnection;
use redis_lock::LockAcrossOptions;
use redis_lock::sync::MultiResourceLock;
use redisson::{RedissonClient, RedissonConfig};
use redlock::RedLock;
use redsync::{RedisInstance, Redsync};
use rslock::LockManager;
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

use crate::Result;
use crate::baseline::Bare;

const TTL: Duration = Duration::from_secs(10);

/// One thread's access to the locks.
pub(crate) trait Client: Send {
    /// Acquires and releases the lock of this key. Returns when it was acquired; an error means
    /// that the attempt failed, with all retries of the library.
    fn pair(&mut self, key: &str) -> Result<Instant>;
}

type Clients = Result<Vec<Box<dyn Client>>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Peer {
    Redguard,
    Redlock,
    Rslock,
    Redsync,
    /// The synchronous `MultiResourceLock`, for one node.
    RedisLock,
    /// The asynchronous `lock_across`, for several nodes.
    RedisLockAcross,
    /// `RLock`, for one node. Its `RRedLock` for several starts a thread for each acquire, which
    /// sleeps for a third of the TTL also after the release.
    Redisson,
    /// The baselines *raw* and *scatter*: no library, but bare connections of each thread.
    Baseline,
}

impl Peer {
    pub(crate) const ALL: [Peer; 8] = [
        Peer::Redguard,
        Peer::Redlock,
        Peer::Rslock,
        Peer::Redsync,
        Peer::RedisLock,
        Peer::RedisLockAcross,
        Peer::Redisson,
        Peer::Baseline,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Peer::Redguard => "redguard",
            Peer::Redlock => "redlock",
            Peer::Rslock => "rslock",
            Peer::Redsync => "redsync",
            Peer::RedisLock => "redis-lock",
            Peer::RedisLockAcross => "redis-lock across",
            Peer::Redisson => "redisson",
            Peer::Baseline => "baseline",
        }
    }

    /// Returns the package name in Cargo.lock.
    pub(crate) fn package(self) -> &'static str {
        match self {
            Peer::RedisLockAcross => "redis-lock",
            Peer::Baseline => "redis",
            _ => self.name(),
        }
    }

    /// Creates a client for each thread.
    pub(crate) fn clients(self, urls: &[String], threads: usize) -> Clients {
        match self {
            Peer::Redguard => redguard_clients(urls, threads),
            Peer::Redlock => redlock_clients(urls, threads),
            Peer::Rslock => rslock_clients(urls, threads),
            Peer::Redsync => redsync_clients(urls, threads),
            Peer::RedisLock => redis_lock_clients(only(urls)?, threads),
            Peer::RedisLockAcross => across_clients(urls, threads),
            Peer::Redisson => redisson_clients(only(urls)?, threads),
            Peer::Baseline => baseline_clients(urls, threads),
        }
    }
}

/// Returns the address of a peer that locks on one node only.
fn only(urls: &[String]) -> Result<&str> {
    match urls {
        [url] => Ok(url),
        _ => Err("it is for one node".into()),
    }
}

/// It accepts addresses with and without a scheme.
fn redguard_clients(urls: &[String], threads: usize) -> Clients {
    let locker = RedisLocker::connect(Config::new(urls))?;
    shared(threads, move |key: &str| {
        let guard = locker.lock(key, TTL)?;
        let held = Instant::now();
        guard.release()?;
        Ok(held)
    })
}

/// Its `acquire` is the call of `lock` in a loop.
fn redlock_clients(urls: &[String], threads: usize) -> Clients {
    let locks = Arc::new(RedLock::new(urls.to_vec()));
    shared(threads, move |key: &str| {
        let lock = locks.lock(key.as_bytes(), TTL.as_millis() as usize)?;
        let lock = lock.ok_or("not locked")?;
        let held = Instant::now();
        locks.unlock(&lock);
        Ok(held)
    })
}

/// Its `acquire` is the call of `lock` in a loop.
fn rslock_clients(urls: &[String], threads: usize) -> Clients {
    let runtime = Arc::new(Runtime::new()?);
    let locks = LockManager::new(urls.to_vec());
    shared(threads, move |key: &str| {
        runtime.block_on(async {
            let lock = locks.lock(key, TTL).await?;
            let held = Instant::now();
            lock.release().await;
            Ok(held)
        })
    })
}

fn redsync_clients(urls: &[String], threads: usize) -> Clients {
    let nodes: std::result::Result<Vec<_>, _> =
        urls.iter().map(|url| RedisInstance::new(&**url)).collect();
    let locks = Arc::new(Redsync::new(nodes?));
    shared(threads, move |key: &str| {
        let lock = locks.lock(key, TTL)?;
        let held = Instant::now();
        locks.unlock(&lock)?;
        Ok(held)
    })
}

/// It cannot be shared: one connection per thread.
fn redis_lock_clients(url: &str, threads: usize) -> Clients {
    let client = redis_0_27::Client::open(url)?;
    redis_lock::sync::setup(&client).map_err(|error| error.to_string())?;
    let client = |_| Ok(Box::new(MultiResourceLock::new(&client)?) as _);
    (0..threads).map(client).collect()
}

fn redisson_clients(url: &str, threads: usize) -> Clients {
    let config = RedissonConfig::single_server(url)
        .with_pool_size(u32::try_from(threads)?)
        .with_lock_expire_time(TTL);
    let client = Arc::new(RedissonClient::new(config)?);
    shared(threads, move |key: &str| {
        // A lock object counts as held by all threads that share it.
        let lock = client.get_lock(key);
        lock.lock()?;
        let held = Instant::now();
        lock.unlock()?;
        Ok(held)
    })
}

fn baseline_clients(urls: &[String], threads: usize) -> Clients {
    let bare = |thread| Bare::connect(urls, &format!("bench-{thread}"), TTL);
    let client = |thread| Ok(Box::new(bare(thread)?) as _);
    (0..threads).map(client).collect()
}

/// The client that all threads share.
fn shared<F>(threads: usize, pair: F) -> Clients
where
    F: FnMut(&str) -> Result<Instant> + Clone + Send + 'static,
{
    Ok((0..threads).map(|_| Box::new(pair.clone()) as _).collect())
}

impl<F: FnMut(&str) -> Result<Instant> + Send> Client for F {
    fn pair(&mut self, key: &str) -> Result<Instant> {
        self(key)
    }
}

impl Client for MultiResourceLock {
    fn pair(&mut self, key: &str) -> Result<Instant> {
        // With its own limit of a minute, tries every second. It uses milliseconds as seconds,
        // which does not matter here: no lock expires.
        let taken = self.acquire(
            &[key.to_owned()],
            TTL,
            redis_lock::DEFAULT_TIMEOUT,
            redis_lock::DEFAULT_SLEEP,
        )?;
        let id = taken.ok_or("not locked")?;
        let held = Instant::now();
        self.release(&id)?;
        Ok(held)
    }
}

/// Each connection is shared behind a mutex, as in its documentation. A broken connection stays
/// broken, because the caller owns it. Connections that reconnect would not help, because a release
/// that fails on one node is an error.
fn across_clients(urls: &[String], threads: usize) -> Clients {
    let runtime = Arc::new(Runtime::new()?);
    let connect = |url: &String| {
        let client = redis_0_27::Client::open(&**url)?;
        let connection = runtime.block_on(client.get_multiplexed_async_connection())?;
        Ok(Arc::new(Mutex::new(connection)))
    };
    let connections: Result<Vec<Arc<Mutex<MultiplexedConnection>>>> =
        urls.iter().map(connect).collect();
    let connections = Arc::new(connections?);
    shared(threads, move |key: &str| {
        let options = LockAcrossOptions {
            ttl: TTL, // by default 10 ms; the rest are defaults: tries for 10 s, every 100 ms
            ..LockAcrossOptions::default()
        };
        let held = async { Instant::now() };
        let across = redis_lock::lock_across(&connections, key, held, options);
        runtime
            .block_on(across)
            .map_err(|error| error.to_string().into())
    })
}

impl Client for Bare {
    fn pair(&mut self, _: &str) -> Result<Instant> {
        self.acquire()?;
        let held = Instant::now();
        self.release()?;
        Ok(held)
    }
}
