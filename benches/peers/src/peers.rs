//! Who is measured: each library as its authors show it to its users, with its own settings for retries.
//!
//! All do the same: they take and release the lock of a key with a TTL of ten seconds, in threads that block for it. What may be
//! shared among threads is shared, as a program would do. What is asynchronous runs on Tokio's runtime with a worker for each
//! core, as its README has it, made once for all threads, each of which blocks on its own lock: then Tokio's workers do the I/O
//! for many threads together, and the cost of waking the caller is one that no threaded program avoids, ours included. A
//! program made of tasks would not pay it, but neither would it have use for a library that blocks.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redguard::{Config, Locker, RedisLocker};
use redis_0_27::aio::MultiplexedConnection;
use redis_lock::LockAcrossOptions;
use redis_lock::sync::MultiResourceLock;
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
    /// Takes and releases the lock of this key. Answers when it was held; an error means that the attempt, with all the
    /// retries that the library makes by itself, has failed.
    fn pair(&mut self, key: &str) -> Result<Instant>;
}

type Clients = Result<Vec<Box<dyn Client>>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Peer {
    Redguard,
    Redlock,
    Rslock,
    Redsync,
    /// The synchronous `MultiResourceLock`, which is for one node.
    RedisLock,
    /// `lock_across`, its way to lock on several nodes, which is asynchronous.
    RedisLockAcross,
    /// The floors, *raw* and *scatter*: no library, but connections of each thread's own.
    Floor,
}

impl Peer {
    pub(crate) const ALL: [Peer; 7] = [
        Peer::Redguard,
        Peer::Redlock,
        Peer::Rslock,
        Peer::Redsync,
        Peer::RedisLock,
        Peer::RedisLockAcross,
        Peer::Floor,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Peer::Redguard => "redguard",
            Peer::Redlock => "redlock",
            Peer::Rslock => "rslock",
            Peer::Redsync => "redsync",
            Peer::RedisLock => "redis-lock",
            Peer::RedisLockAcross => "redis-lock across",
            Peer::Floor => "floor",
        }
    }

    /// The package, as Cargo.lock names it.
    pub(crate) fn package(self) -> &'static str {
        match self {
            Peer::RedisLockAcross => "redis-lock",
            Peer::Floor => "redis",
            _ => self.name(),
        }
    }

    /// A client for each thread.
    pub(crate) fn clients(self, urls: &[String], threads: usize) -> Clients {
        match self {
            Peer::Redguard => {
                // It takes addresses with and without a scheme.
                let locker = RedisLocker::connect(Config::new(urls))?;
                shared(threads, move |key: &str| {
                    let guard = locker.lock(key, TTL)?;
                    let held = Instant::now();
                    guard.release()?;
                    Ok(held)
                })
            }
            Peer::Redlock => {
                let locks = Arc::new(RedLock::new(urls.to_vec()));
                // Its `acquire` is this in a loop.
                shared(threads, move |key: &str| {
                    let lock = locks.lock(key.as_bytes(), TTL.as_millis() as usize)?;
                    let lock = lock.ok_or("not locked")?;
                    let held = Instant::now();
                    locks.unlock(&lock);
                    Ok(held)
                })
            }
            Peer::Rslock => {
                let runtime = Arc::new(Runtime::new()?);
                let locks = LockManager::new(urls.to_vec());
                // Its `acquire` is this in a loop.
                shared(threads, move |key: &str| {
                    runtime.block_on(async {
                        let lock = locks.lock(key, TTL).await?;
                        let held = Instant::now();
                        lock.release().await;
                        Ok(held)
                    })
                })
            }
            Peer::Redsync => {
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
            Peer::RedisLock => {
                let [url] = urls else {
                    return Err("it is for one node".into());
                };
                let client = redis_0_27::Client::open(&**url)?;
                redis_lock::sync::setup(&client).map_err(|error| error.to_string())?;
                // It is not to be shared: a connection for each.
                let client = |_| Ok(Box::new(MultiResourceLock::new(&client)?) as _);
                (0..threads).map(client).collect()
            }
            Peer::RedisLockAcross => across(urls, threads),
            Peer::Floor => {
                let bare = |thread| Bare::connect(urls, &format!("bench-{thread}"), TTL);
                let client = |thread| Ok(Box::new(bare(thread)?) as _);
                (0..threads).map(client).collect()
            }
        }
    }
}

/// The same for all threads.
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
        // With its own limit of a minute, tries every second. It means seconds where it is given milliseconds, which is of no
        // consequence here: no lock expires.
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

/// The connections are shared as in its documentation: behind a mutex each. One that is gone stays so, since they are the
/// caller's; ones that mend themselves would not help it, as a release that fails on one node is an error to it.
fn across(urls: &[String], threads: usize) -> Clients {
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
            ttl: TTL, // by default 10 ms; the rest is as it comes: tries for 10 s, every 100 ms
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
        self.take()?;
        let held = Instant::now();
        self.release()?;
        Ok(held)
    }
}
