//! How to lock well: which TTL, which nodes, which store, and the way from other libraries. Nothing in here but text.
//!
//! 1. [Choosing a TTL](#choosing-a-ttl)
//! 2. [To renew or not](#to-renew-or-not)
//! 3. [How long to wait](#how-long-to-wait)
//! 4. [Work that must not overlap](#work-that-must-not-overlap): fencing and stores
//! 5. [Several things at once](#several-things-at-once)
//! 6. [When Redis is away](#when-redis-is-away): degraded mode
//! 7. [A program's main](#a-programs-main): nodes that are not up yet, signals, exit codes
//! 8. [Deployment](#deployment): one, three or five nodes, and changing the list
//! 9. [Testing](#testing)
//! 10. [Moving from another library](#moving-from-another-library)
//!
//! # Choosing a TTL
//!
//! The TTL answers one question: *when a holder dies without a word, how long may nobody work?* It is not an estimate of how
//! long the work takes; renewal is for that.
//!
//! - **Not below some hundred milliseconds.** Of each TTL goes the time that taking it took, and `ttl / 100 + 2 ms` for clocks.
//!   A guard is handed out with at least half of the TTL left ([`min_validity`](crate::Config::min_validity)); where nodes
//!   need longer than the other half, an attempt is in vain, and three in a row are
//!   [`ValidityExhausted`](crate::Error::ValidityExhausted).
//! - **Above the longest pause of the holder** that you can name: garbage collection in the same machine's other processes,
//!   a disk that stalls, a virtual machine that is moved. Seconds, as a rule.
//! - **30 s is a good default** for batch work with renewal, 5 to 10 s for short sections.
//! - With [`restart_quarantine`](crate::Config::restart_quarantine) a long TTL makes a restarted node useless for as long.
//!
//! # To renew or not
//!
//! | the work takes | use |
//! |---|---|
//! | well below the TTL, always | nothing: a lock that ends by itself |
//! | steps whose length is known | [`extend`](crate::LockGuard::extend) before each |
//! | as long as it takes | [`auto_renew`](crate::LockOptions::auto_renew) |
//!
//! Renewal makes a hung worker hold its lock for ever. [`max_renewal`](crate::LockOptions::max_renewal) bounds that; so does a loop
//! that asks [`check`](crate::LockGuard::check) and makes progress. It cannot keep a lock whose nodes say that it is not ours, and does
//! not try: loss is final and told once.
//!
//! ```
//! # use redguard::{Error, LocalLocker, LockOptions, Locker};
//! # use std::time::Duration;
//! # fn import(file: &str) -> Result<(), Error> { Ok(()) }
//! # fn run(locker: &dyn Locker, files: &[&str]) -> Result<(), Error> {
//! let options = LockOptions::new(Duration::from_secs(30))
//!     .auto_renew()
//!     .max_renewal(Duration::from_secs(3600)); // a night's work never takes longer
//! let guard = locker.acquire("import", &options)?;
//! for file in files {
//!     guard.check()?; // a checkpoint: `LockLost` ends the loop
//!     import(file)?;
//! }
//! guard.release()
//! # }
//! # run(&LocalLocker::new(), &["a"]).unwrap();
//! ```
//!
//! # How long to wait
//!
//! `lock` waits as `Mutex::lock` does. A batch that must run waits; one that runs every minute anyway tries; a request of a user has
//! a deadline:
//!
//! ```
//! # use redguard::{Error, LocalLocker, LockOptions, Locker};
//! # use std::time::{Duration, Instant};
//! # fn run(locker: &dyn Locker, deadline: Instant) -> Result<(), Error> {
//! let ttl = Duration::from_secs(30);
//! let options = LockOptions::new(ttl).wait_until(deadline);
//! match locker.try_acquire("invoice-7", &options) {
//!     Ok(Some(guard)) => guard.release(),  // … work …
//!     Ok(None) => Ok(()),                  // busy until the deadline
//!     Err(error) if error.is_unavailable() => Err(error), // Redis is away: not the same
//!     Err(error) => Err(error),            // a bad name, a shutdown …
//! }
//! # }
//! # run(&LocalLocker::new(), Instant::now()).unwrap();
//! ```
//!
//! # Work that must not overlap
//!
//! A lease can end while its holder is paused, between any two instructions; then the next one has the lock and both work. A lock
//! alone makes that rare, never impossible (M. Kleppmann, *How to do distributed locking*, 2016). What helps depends on what the
//! work writes to:
//!
//! | the store | what to do |
//! |---|---|
//! | has transactions or conditional writes | [`fenced`](crate::LockOptions::fenced), and a column that only grows (below) |
//! | has versions of its own (`ETag`, revision) | read before, write on condition that nothing has changed; the lock only saves work |
//! | idempotent writes | nothing: twice is once |
//! | a foreign service, mail, money | an idempotency key there; else `check()` right before, steps that are short, and accept that it is rare |
//!
//! ```sql
//! UPDATE account SET balance = :balance, fence = :token WHERE id = 7 AND fence <= :token;
//! -- no row: a later holder was here. Stop.
//! ```
//!
//! `examples/fencing.rs` pauses a holder past its lease and shows both, the refused write and the damage without. Tokens
//! increase from guard to guard; that of a guard does not change while it is held. They begin at some 1.8e15, the microseconds since
//! 1970, so the column is one of 64 bits (`fence BIGINT NOT NULL DEFAULT 0`). Where the nodes have lost all their data they go
//! on from their clocks (see [the crate docs](crate#fencing)).
//!
//! # Several things at once
//!
//! - **A transfer between two accounts**: [`acquire_all`](crate::Locker::acquire_all). Never one lock after the other: two transfers in opposite
//!   directions wait for each other until a TTL ends.
//! - **Many read, few write**: [`RwLocker`](crate::RwLocker), if reading takes long.
//! - **At most five exports at a time**: a semaphore, [`Semaphore`](crate::Semaphore).
//! - **One of many tasks, whichever is free**: [`try_lock`](crate::Locker::try_lock) in a loop over them, as `examples/nightly_batch.rs` does.
//!
//! # When Redis is away
//!
//! The default is to fail: an error says so at once or after [`max_outage`](crate::RetryPolicy::max_outage), and nothing runs twice. With
//! [`allow_degraded`](crate::Config::allow_degraded) locks are held in this process alone while no quorum can be connected to, so each process may hold its own. Ask
//! which is worse:
//!
//! | doing nothing is worse | doing it twice is worse |
//! |---|---|
//! | warming a cache, compacting, sending a report that may come twice | payments, migrations, anything that counts |
//!
//! A guard says where it is held ([`Mode`](crate::Mode)), so one program can do the harmless half of its work in degraded mode.
//!
//! # A program's main
//!
//! **Nodes that are not up yet.** [`Nodes::connect`](crate::Nodes::connect) tries for
//! [`connect_timeout`](crate::Config::connect_timeout), 1 s, until a quorum is connected, also where nodes refuse; then it is
//! [`InsufficientQuorum`](crate::Error::InsufficientQuorum), with a cause for each node. (With
//! [`allow_degraded`](crate::Config::allow_degraded) it succeeds then, and [`wait_ready`](crate::Nodes::wait_ready) waits for the
//! nodes.) [`max_outage`](crate::RetryPolicy::max_outage) is about nodes that have been there before. So a program that is started
//! together with its nodes connects again and again. That takes no pause: each time it has waited for as long as it may take.
//!
//! ```no_run
//! use redguard::{Config, Error, Nodes};
//! use std::time::{Duration, Instant};
//!
//! fn connect(config: &Config, patience: Duration) -> Result<Nodes, Error> {
//!     let end = Instant::now() + patience;
//!     loop {
//!         match Nodes::connect(config.clone()) {
//!             Err(error) if error.is_unavailable() && Instant::now() < end => {
//!                 eprintln!("waiting for the nodes: {error}");
//!             }
//!             connected => return connected, // or what does not pass: a bad address, a contradiction
//!         }
//!     }
//! }
//! ```
//!
//! **Exit codes.** A `main` that returns an [`Error`](crate::Error) has it shown as `Debug` does, for programmers. What it says to
//! people is its `Display`, and what to do about it is in four predicates.
//!
//! **Signals.** The default for SIGINT and SIGTERM ends a process without its destructors, and leaves the lock to its TTL. A
//! [`CancelToken`](crate::CancelToken) ends a wait and says to the work that it is to stop, here with the crate `ctrlc` (its feature
//! `termination` adds SIGTERM). [`shutdown`](crate::Nodes::shutdown) at the end sends what is to be released.
//!
//! ```no_run
//! use redguard::{CancelToken, Config, Error, LockOptions, Locker, RedisLocker};
//! use std::process::ExitCode;
//! use std::time::Duration;
//!
//! fn main() -> ExitCode {
//!     let stop = CancelToken::new();
//!     let on_signal = stop.clone();
//!     ctrlc::set_handler(move || on_signal.cancel()).expect("the only handler");
//!     let Err(error) = work(&stop) else {
//!         return ExitCode::SUCCESS;
//!     };
//!     eprintln!("report: {error}");
//!     ExitCode::from(match error {
//!         Error::Cancelled => 130,           // as a shell says of SIGINT
//!         _ if error.is_contended() => 75,   // sysexits.h: try again later
//!         _ if error.is_unavailable() => 69, // the nodes are away
//!         _ if error.is_denied() => 77,      // credentials, rights, certificates
//!         _ if error.is_lost() => 70,        // somebody else may have worked at the same time
//!         _ => 78,                           // a setting, a name
//!     })
//! }
//!
//! fn work(stop: &CancelToken) -> Result<(), Error> {
//!     let locker = RedisLocker::connect(Config::new(["10.0.0.1", "10.0.0.2", "10.0.0.3"]))?;
//!     let options = LockOptions::new(Duration::from_secs(30)).auto_renew().cancel_on(stop);
//!     let guard = locker.acquire("report", &options)?;
//!     for page in 0..100 {
//!         if stop.is_cancelled() {
//!             break;
//!         }
//!         guard.check()?;
//!         // … write the page …
//!     }
//!     guard.release()?;
//!     locker.nodes().shutdown(Duration::from_secs(5)); // all that is owed to the nodes is sent
//!     Ok(())
//! }
//! ```
//!
//! # Deployment
//!
//! | nodes | survives | for |
//! |---|---|---|
//! | 1 | nothing: its restart without data forgets all locks | development, and work that may overlap once in a blue moon. The quickest |
//! | 3 | one down or hung | most |
//! | 5 | two | where a node is often away for maintenance while another may fail |
//! | 2 or 4 | no more than 1 or 3 | nothing: a tie is a loss for both sides |
//!
//! - **Independent masters**, on different machines, racks or zones; no replicas, no cluster ([why](crate#sentinel-and-cluster)).
//! - `maxmemory-policy noeviction`, and a server for locks alone: a lock is some hundred bytes, and a million of them fit anywhere.
//! - `appendonly yes` with `appendfsync always`, **or** [`restart_quarantine`](crate::Config::restart_quarantine) on every client. Without
//!   either a node that restarts has forgotten, and the lock that rests on its vote is not safe.
//! - NTP that slews. A step of a node's clock beyond the drift frees or keeps locks wrongly.
//! - A user with the rights in the README, and `rediss://` where the network is not yours.
//! - [`node_timeout`](crate::Config::node_timeout) some ten times the usual round trip, 200 ms within a data centre.
//!   A round trip that takes longer is named in a warning when a node is connected to.
//! - **Each address is one server.** No balancer, and no name that leads to several servers: they know nothing of each other's locks. With
//!   [`pool_size`](crate::Config::pool_size) above 1 a node whose connections lead to different servers is a failure; with one
//!   connection it cannot be seen. A name with several addresses of *one* server is fine: each has its share of
//!   [`connect_timeout`](crate::Config::connect_timeout). A TCP balancer before one server at a time is fine, too. Proxies that speak the protocol
//!   (twemproxy, Envoy's Redis filter) cannot stand between: scripts, `CLIENT` and subscriptions do not pass them.
//! - The servers' `timeout` (for idle connections) may have any value: a connection that the server has closed is made again.
//! - Passwords and tokens that change while programs run: [`Config::credentials`](crate::Config::credentials).
//! - One [`Nodes`](crate::Nodes) per process, shared by all lockers, made before threads and after any `fork`.
//!
//! **Changing the list of nodes.** Clients with different lists have different quorums, which need not meet. So:
//!
//! 1. Replacing a node under the same address (a new machine, empty) is a restart without data, **once the old machine has been
//!    stopped**: with `restart_quarantine` there is nothing more to do then. While the old one runs, clients that are connected to it
//!    go on voting there and new ones vote on the new machine, so that one lock has two holders, with quarantine too. So stop the
//!    old server first, and only then lead its address to the new one.
//! 2. For another list, stop all clients, wait for the longest TTL, start them with the new one.
//! 3. Where nobody may stop: have the new clients take every lock on *both* lists, an old locker first and then a new one, until no client with
//!    the old list alone is left; then drop the old.
//!
//! # Testing
//!
//! Write against `&dyn Locker`. [`LocalLocker`](crate::LocalLocker) is the double without a server. With the feature `testing` a
//! `FlakyLocker` is contended, unavailable, or loses a lock under the program's hands, when the test says so.
//!
//! # Moving from another library
//!
//! | here | redlock (Rust) | rslock | redsync (Go, Rust) | Redisson (Java) | redis-py |
//! |---|---|---|---|---|---|
//! | [`Config`](crate::Config), [`RedisLocker`](crate::RedisLocker) | `RedLock::new` | `LockManager::new` | `redsync.New`, `Redsync::new` | `Redisson.create` | `Redis(…)` |
//! | [`lock`](crate::Locker::lock) | `acquire` | `acquire` | `Lock`, `lock` | `lock` | `Lock.acquire` |
//! | [`try_lock`](crate::Locker::try_lock) | | `lock` | `TryLock` | `tryLock` | `acquire(blocking=False)` |
//! | `drop`, [`release`](crate::LockGuard::release) | `drop`, `unlock` | `release().await` | `Unlock`, `unlock` | `unlock` | `release` |
//! | [`extend`](crate::LockGuard::extend) | | `extend` | `Extend`, `extend` | (watchdog) | `extend`, `reacquire` |
//! | [`auto_renew`](crate::LockOptions::auto_renew) | | | | the default without a lease time | |
//! | [`is_held`](crate::LockGuard::is_held) | | `is_freed` | `Valid` | `isHeldByCurrentThread` | `owned` |
//! | [`acquire_all`](crate::Locker::acquire_all) | | | | `getMultiLock` | |
//! | [`RwLocker`](crate::RwLocker) | | | | `getReadWriteLock` | |
//! | [`fenced`](crate::LockOptions::fenced) | | | | `getFencedLock` | |
//! | [`force_release`](crate::RedisLocker::force_release) | | | | `forceUnlock` | |
//!
//! What changes: locks are not re-entrant (Redisson's are); a TTL has no default; being contended is not an error of the network;
//! and a quorum is counted over all nodes.
//!
//! **Side by side with the old one.** An exclusive lock on one key, unfenced or fenced, is a plain string with a TTL. What clients of other
//! kinds do with it, and with the same [`key_prefix`](crate::Config::key_prefix):
//!
//! | the other client | what it has under the key | together |
//! |---|---|---|
//! | redlock, rslock, redsync in Go and Rust, redis-py's `Lock`, node-redlock, RedLock.net: `SET key token NX PX`, compare and delete | a string | exclude each other, if all use the same nodes |
//! | Redisson's `RLock` | a hash, one field per thread | exclude each other, but ours makes its calls fail with `WRONGTYPE` where another of its own would make them wait |
//! | `SETNX` with `EXPIRE` or a time in the value | a string, perhaps without an end | excluded; one without an end is held until somebody deletes it |
//! | anything that deletes by name (`DEL key` to unlock) | | it frees our lock, too. We see it at the next renewal or `check` after it |
//!
//! Nobody else knows our read-write locks, semaphores and fences. Foreign values of any type are left as they are.
