//! Distributed locks on Redis for threaded programs: scoped guards over N independent nodes, without an async runtime.
//!
//! **A guard can end before it is dropped.** A lock of this kind is a lease: it is held until its TTL runs out, and a
//! program that is paused for longer than that has lost it without having done anything. So let the lock be renewed
//! ([`auto_renew`](LockOptions::auto_renew)) or [`extend`](LockGuard::extend) it in time, and ask
//! [`check`](LockGuard::check) at each step that must not overlap with another holder's.
//!
//! ```no_run
//! use redguard::{Config, LockOptions, Locker, RedisLocker};
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), redguard::Error> {
//! let locker = RedisLocker::connect(Config::new(["10.0.0.1:6379", "10.0.0.2:6379", "10.0.0.3:6379"]))?;
//! let options = LockOptions::new(Duration::from_secs(30)).auto_renew();
//! let guard = locker.acquire("nightly-report", &options)?; // waits and retries as configured
//! for page in 0..100 {
//!     guard.check()?; // still ours?
//!     // … exclusive work …
//! }
//! drop(guard); // or guard.release()? to see how it ended
//! # Ok(())
//! # }
//! ```
//!
//! # What it promises
//!
//! - A lock is held on a quorum, `n / 2 + 1`, of the **configured** nodes, whatever is reachable. As long as the
//!   clocks of nodes and clients run at nearly the same speed and nodes keep their data for a TTL, no two guards of one key
//!   are held at the same time.
//! - A minority of nodes that is down, hung or slow changes nothing: same result, same speed. A hung node costs the
//!   first round that meets it `node_timeout` at most, and only where that round needs it.
//! - An attempt that failed, came late or broke off is undone on every node that may have granted it. A release that a node
//!   answers with an error is tried again until the TTL is over, and holds up no other lock.
//! - *Held by another* and *could not find out* are different errors, all the way up.
//! - Threads that share a [`Nodes`] get a key in the order in which they asked, readers that follow one another together;
//!   and one that hangs with a lock blocks the others for its lease, not for ever.
//! - A reader and a writer of one key never overlap, and neither side starves the other.
//! - Tokens are 160 random bits of the operating system, fresh for every attempt. Release and extend act on their own
//!   token only.
//!
//! # What it cannot promise
//!
//! No lock of this kind can. What to do about it stands beside it:
//!
//! | what happens | what it means | what to do |
//! |---|---|---|
//! | the holder is paused (stopped, swapped out, suspended) past its TTL | it goes on as if it held the lock | a fencing token, and a store that checks it; else `check()` before each irreversible step, and short steps |
//! | a clock runs wrong by more than `ttl / 100 + 2 ms` within a TTL | a node frees the lock early | run NTP with slewing on the nodes |
//! | a node restarts without its data | it grants again what it had granted | append-only file with `appendfsync always`, or [`restart_quarantine`](Config::restart_quarantine) |
//! | fail-over to a replica | the same: replication is asynchronous | independent masters, no replicas ([below](#sentinel-and-cluster)) |
//! | eviction under `maxmemory`, `FLUSHALL` | the same | `maxmemory-policy noeviction` and [`reject_evicting_servers`](Config::reject_evicting_servers); a server for locks alone |
//! | the list of nodes is changed under way | two lists have two quorums | stop all holders, or wait the longest TTL |
//! | a node lies | it counts as one vote, whatever it says | servers of your own, in a private network |
//!
//! A reply that is no answer, breaks off, or does not come is a fault of that node alone, and its connection is made anew. A
//! reply that goes on for ever, byte after byte, is waited for by nobody, and over with `node_timeout`. Over TLS its thread reads
//! it until the server stops, and keeps what has come of it: then that node stays away, memory grows at the server's pace, and
//! [`shutdown`](Nodes::shutdown) answers `false`.
//!
//! Two nodes have no quorum with one down, and of four a tie is a loss for both sides: take 1, 3 or 5. An even number is
//! a `warn` line at connect.
//!
//! # Which lock
//!
//! | lock | for |
//! |---|---|
//! | [`Locker`] | one at a time. The cheapest, and what other Redlock clients understand |
//! | [`RwLocker`] | many that read or one that writes. Worth it where reading takes long and writing is rare |
//! | [`Semaphore`] | so many at a time, all alike |
//!
//! [`RedisLocker`], [`RedisRwLocker`] and [`RedisSemaphore`] hold them on the nodes, [`LocalLocker`], [`LocalRwLocker`] and
//! [`LocalSemaphore`] in this process alone, behind the same traits. An exclusive lock, a read-write lock and a semaphore of one
//! name are different things.
//!
//! # Several keys as one lock
//!
//! [`acquire_all`](Locker::acquire_all) takes the locks of several names as one, all or none, for work that touches several things:
//! a transfer between two accounts, say. The order of the names does not matter, callers whose names overlap exclude each
//! other, and no two wait for each other: in a process the names are queued for in their order, and each node grants all of
//! them in one step or none. Each key holds the same token, so those that take one of them alone are excluded, too.
//!
//! One guard, one lease, one fencing token above those of all its keys. A node where one of the keys is not ours counts as one
//! that has lost the lock: it is put back there whole or not at all, and released as far as it is ours. Who waits listens to
//! the key that stands in the way for the longest.
//!
//! # Fencing
//!
//! A holder that is paused past its lease goes on as if it held the lock, and no lock can stop it. A *fencing token*
//! ([`LockOptions::fenced`], [`LockGuard::fencing_token`]) lets the store do so: a number that is greater than that of every
//! holder before, sent along with each write; the store refuses what is below the greatest that it has seen.
//!
//! Each node counts up with each fenced grant, from its clock in µs where it has no count. The token is the q-th smallest of
//! the numbers in hand if a quorum q of nodes is as high as that; else one more round raises a quorum to the greatest, where
//! the lock is ours. Tokens strictly increase as long as the nodes' clocks are in step, or the nodes that have lost their data
//! and those that missed the last grant are together fewer than a quorum. A count that is not used is forgotten after 30 days.
//!
//! # Read-write locks
//!
//! - Each reader has a token and a lease of its own, in the node's time: one that crashed is gone at its own end, whatever
//!   others do.
//! - A writer that waits takes a place at a *gate*, which turns new readers away (not the extensions of those that read). It
//!   says so again within a *refresh interval*, which is `max_delay`, but 100 ms at most and 10 ms at least; a place that is not
//!   refreshed ends after three. Writers that only try, that have no quorum or that have given up turn nobody away.
//! - A reader that was refused and waits leaves a mark. A writer that finds it when it releases gives the readers a *turn* of
//!   one refresh interval, in which gates do not count and new writers are refused, [`try_write`](RwLocker::try_write)
//!   included.
//! - Who waits for a read-write lock sleeps for half a refresh interval at most between two attempts, whatever `max_delay`.
//!   Of the readers of a process that wait for one lock, one asks for all.
//! - [`WriteGuard::downgrade`] turns a write lock into a read lock. There is no upgrade: two that upgrade wait for each other.
//! - **A second `read` by a thread that reads already dead-locks** as soon as a writer waits in between.
//!
//! Among threads of one process a writer waits in the process's own queue first: while others of the process read, it does
//! not keep readers of other processes out. So a writer waits for two read sections and the time of a place at the gate
//! at most, unless writers of other processes come before it, among whom there is no order; and a reader for two write
//! sections and a turn. That holds if sections are bounded, a quorum answers, and a round trip is well below a refresh
//! interval.
//!
//! # Semaphores
//!
//! A [`Semaphore`] has a number of permits, 1 to 1024, and never gives out more: at most so many hold one at a time, in all
//! processes together. Each permit is a Redlock of its own, so a quorum of nodes gives it to one holder. To let a quorum vote on
//! *a* permit would not do: of three holders of two permits each could have two of three nodes.
//!
//! An attempt asks for one permit, drawn at random. Nodes that refuse it say which are free, so the next request, at once and
//! under a fresh token, asks for one that a quorum calls free. Permits expire, and are renewed and lost, like locks; they have no
//! fencing token, since no holder comes after the others. Threads of one process are first come, first served: as many as there
//! are permits get past the queue, and where the nodes have none left the first of them asks for all.
//!
//! How many permits there are is kept on the nodes while one of them is held, and checked by each take: another number is
//! [`InvalidConfig`](Error::InvalidConfig), which names both. A node with nothing held takes any number, be it that it lost its
//! data, or that an attempt with the wrong one was undone there; and a minority that says otherwise counts as nodes that
//! refuse. So the number can be changed when nobody holds a permit.
//!
//! # Timing
//!
//! ```text
//!          first request sent                 a quorum has granted
//!                 │                                   │
//! guard           │◄──────────── elapsed ────────────►│◄──── remaining() ────►│◄─ drift ─►│
//!                 │◄────────────────────────────── TTL ──────────────────────────────────►│
//! each node           │◄──────────────────────────── TTL ──────────────────────────────────►│
//! ```
//!
//! A guard is handed out only if at least [`min_validity`](Config::min_validity) of the TTL is left then. With
//! [`auto_renew`](LockOptions::auto_renew) all of it begins anew, from the sending of each renewal that a quorum confirms:
//!
//! ```text
//! taken     TTL/3 ±10 %    again after each success           a failure: tried again, at TTL/128 to TTL/8,
//!   │           │              │              │                 │ │   │     │     until remaining() is over: lost
//!   ├───────────●──────────────●──────────────●─────────────────○─○───○─────○─────┤
//! ```
//!
//! The algorithm is Redlock, from *Distributed Locks with Redis* (the Redis documentation), with the safety rules above.
//!
//! # Holding on, and being told
//!
//! [`auto_renew`](LockOptions::auto_renew) lets one thread renew all locks of a [`Nodes`] that want it. The TTL is then how long
//! a lock outlives a process that was killed. A renewal that fails is tried again until the lease ends; only a quorum that
//! says "not yours", or the clock, makes a lock lost, and a lost lock is never renewed. A guard that is forgotten keeps its
//! lock for as long as the process lives, unless [`max_renewal`](LockOptions::max_renewal) ends the renewal.
//!
//! A loss is told, once, by the clock or by what nodes say, whichever is first:
//!
//! | who | how |
//! |---|---|
//! | the worker, at its next step | [`check`](LockGuard::check), [`is_held`](LockGuard::is_held), [`remaining`](LockGuard::remaining) |
//! | a thread that waits for it | [`LockWatch::wait_ended`], from [`watch`](LockGuard::watch) |
//! | a callback | [`LockOptions::on_lost`], on a thread that callbacks share |
//!
//! While a computer is suspended the steady clock stands still, and so do leases as we see them, but not on the nodes. A look
//! therefore compares the wall clock's advance: if it has run ahead the lock is in doubt, `is_held` is false, and `check`
//! asks the nodes.
//!
//! # Waiting
//!
//! Threads of one process queue for a key, and the first of them goes to the nodes. If others hold the lock it listens on the
//! first node that is connected and does not refuse it (`SUBSCRIBE` to the lock's key): a release is published, wakes it, and it asks that node
//! before the others, so that of many who are woken at once all but one are turned away there. A message is a hint: each wait
//! also ends with the holder's TTL, the policy's delay and the caller's limit. A `Nodes` that knows that others listen lets
//! them pass before it takes the same lock again.
//!
//! An exclusive lock of one key goes from thread to thread of a process without being free in between, in one round for the release
//! of one and the take of the next, 16 times in a row or for 10 ms; then others have their turn. Each has a lease of its
//! own, with its own TTL, token and number.
//!
//! # When things fail
//!
//! | what | what the caller sees |
//! |---|---|
//! | a minority of nodes down, hung or slow | nothing |
//! | no quorum at the start | [`Nodes::connect`] tries for `connect_timeout`, and is [`InsufficientQuorum`](Error::InsufficientQuorum); [the guide](guide#a-programs-main) waits longer |
//! | no quorum reachable | [`InsufficientQuorum`](Error::InsufficientQuorum) with a cause per node, after [`max_outage`](RetryPolicy::max_outage); from `try_…` at once |
//! | no reply from a quorum for five rounds in a row and a second | the breaker opens: calls that wait sleep until nodes are back, for `max_outage`; all others are [`CircuitOpen`](Error::CircuitOpen) at once; or a local guard ([below](#when-no-quorum-answers)) |
//! | nodes come back | lanes connect again by themselves, with capped and jittered back-off |
//! | scripts flushed | healed within the request |
//! | `READONLY`, `LOADING`, `TRYAGAIN`, a server error … | a fault of that node, with that cause; waited out as an outage of that lock alone |
//! | `NOAUTH`, a right that is missing, a certificate that is not accepted, from so many nodes that no quorum is left | the error [`is_denied`](Error::is_denied) at once: waiting does not help |
//! | `OOM`: no memory under `noeviction` | a fault of that node for a new lock, or where it is to get back one that it lost; locks that are held are extended, renewed, downgraded, handed on, adopted and released |
//! | a foreign value under one of the lock's keys | [`Contended`](Error::Contended), or its like for read-write locks; the value is left alone, and the log has one warning per node for one of another type, or without an end |
//! | the holder is killed | free after the TTL at the latest; waiters wake then, not at their next poll |
//! | the nodes are too slow for the TTL | [`ValidityExhausted`](Error::ValidityExhausted) after three attempts in a row |
//! | the process exits without destructors | the TTL frees the lock |
//! | a server says `READONLY` | it is connected to anew, and found again where sentinels or a cluster tell |
//! | a node is a replica, or with [`reject_evicting_servers`](Config::reject_evicting_servers) may evict locks | a fault of that node until it is not; it is asked at connect |
//!
//! # When no quorum answers
//!
//! A *circuit breaker* ([`Config::circuit_breaker`]; M. Nygard, *Release It!*) keeps callers from waiting in vain. It counts rounds of
//! acquires, in a row, that ran to their own end and in which fewer nodes than a quorum replied; rounds that overlap in time count
//! once. An error is a reply, unless the node says that it is loading its data. After five of them, and a second without a quorum,
//! the breaker opens, and the nodes are not asked. An acquire that waits sleeps then, until nodes are back, its own limit has come,
//! or no quorum has answered it for [`max_outage`](RetryPolicy::max_outage); an acquire that does not wait is
//! [`CircuitOpen`](Error::CircuitOpen) at once. When a node has come up and a quorum is connected, or after
//! 60 s, one acquire asks the nodes, and all others wait for its result, for `node_timeout` at most where they do not wait
//! otherwise. A lock that is held by another closes it. Extensions, handoffs and releases neither open nor close it.
//!
//! With [`Config::allow_degraded`] locks are held in this process alone while the breaker is open and fresh connects have failed to so
//! many nodes that no quorum is left, and from the start where no quorum could be connected to. **Other processes are not excluded then.** What stays: threads of this process exclude each
//! other all the time, also across the change, because they queue for a key before the nodes are asked; waits, limits and
//! cancellation are as ever; such a guard says [`Mode::Local`], does not expire, and is released where it was taken. What
//! never goes there: a fenced lock, a lock that was refused by a holder whose lease can still run, and wrong credentials. Use it
//! where doing nothing is worse than doing it twice: a cache that is warmed, a report that can be sent again.
//!
//! # Nodes that forget
//!
//! A node that restarts without its data grants again what it had granted. If all
//! three of three had granted a lock, one of them does no harm: the other two refuse. But if a majority does so within a TTL, or
//! one on whose grant the quorum rests, a lock has two holders. [`Config::restart_quarantine`] keeps a node from voting until every
//! lock that it may have forgotten has ended: what it granted before its start at `s` ended by `s + max_ttl`, by its own clock;
//! clocks may differ by `max_ttl / 100 + 2 ms` in that time, and its uptime is told in whole seconds. So it votes when it says
//! that it has been up for
//!
//! ```text
//! max_ttl + max_ttl / 100 + 2 ms + 1 s        for example 30 s + 302 ms + 1 s = 31.3 s
//! ```
//!
//! Every client has to set it, to the longest TTL that any of them uses or more. A server's clock that is set forward makes its
//! uptime longer and the quarantine shorter. What is held is served meanwhile, and put back where it was lost; if too many nodes
//! forget a lock before that, it is lost early and that is told, but nobody else has it before its time is over. Without
//! quarantine not even one node may forget: a quorum can rest on its grant.
//!
//! With an append-only file and `appendfsync always` nothing is forgotten, and it costs a write to disk per request; without
//! both, a node must be kept down by hand for the longest TTL, as the Redlock text says.
//!
//! # Sentinel and Cluster
//!
//! A node need not be one server. With the feature `sentinel` `Endpoint::sentinel` is the master that sentinels name, with the
//! feature `cluster` `Endpoint::cluster` is a Redis Cluster; each counts as **one** node of the quorum, alone or among others.
//! What is asked of it, and what it answers, is the same:
//!
//! | | a master that sentinels watch | a cluster |
//! |---|---|---|
//! | is found by | the first sentinel that answers in its share of `connect_timeout`, and whose server says `master` in `ROLE` | the first seed that says `cluster_state:ok`; a connection to each master with slots |
//! | is up | while that connection is | while all of them are |
//! | fail-over | the connection breaks, or a `READONLY` ends it; then it is looked for anew | the same; a manual one is followed as a slot that moves |
//! | what follows a slot | | an answer that the server has not carried out (`MOVED`, `ASK`), once; nothing else is sent twice |
//! | wake-ups | on the master | on one server: what is published anywhere is heard everywhere |
//! | what it says of itself | the master's | role and clock of the worst, eviction of the first that evicts |
//! | refused with it | `restart_quarantine` | `restart_quarantine`, and a database other than 0 |
//! | rights beside those of a server | `+role`; a sentinel's user `+sentinel\|get-master-addr-by-name` | `+cluster\|info +cluster\|slots +asking` |
//!
//! A sentinel, or a member of a cluster, whose own address is given as a node is a failure of that node.
//!
//! What is given up is what independent masters are for. **Replication is asynchronous**: what a master has granted may not have
//! reached the replica that takes its place, which then grants it again. All rules above hold as long as a node keeps what it
//! has granted; such a system keeps it only while nobody fails over, and it has one vote, however many servers it has. So
//! `Config::new([Endpoint::sentinel(…)])` alone has N = 1: a lock that is highly available, and not safe over a fail-over. Fencing
//! ([`fenced`](LockOptions::fenced)) makes good for it as far as clocks are in step. That what was in flight is undone ("no
//! leftovers") is best effort: at a server that is not reached again what it holds is left to its TTL.
//!
//! In a cluster all keys of a lock share a slot. The names of [`acquire_all`](Locker::acquire_all) must share one, by a hash tag such as
//! `{orders}`, or are [`InvalidKey`](Error::InvalidKey), which is told before anything is asked. Other keys that do not (a `}` outside of a hash tag does it) are a refusal,
//! [`NodeFailure::CrossSlot`]. While a slot is moved, exclusive locks in it are served all the time; what needs several keys at once
//! (read-write locks, fenced ones) is a fault of its own (`TRYAGAIN`) until the slot has arrived. What is released
//! meanwhile is released then.
//!
//! # Hand over
//!
//! [`LockGuard::into_token`] leaves a lock taken, without a guard, and [`RedisLocker::adopt`] takes it up, in another process or
//! another part of this one: nobody can get in between. Each node swaps the token that it finds for a fresh one, so of many who adopt
//! a lock one at most has a quorum; who comes late, or too late for the TTL, learns that it is lost (in the process that holds
//! it that it is contended). Where the child cannot be started, adopt the lock again and release it.
//!
//! # A look inside
//!
//! | what | tells |
//! |---|---|
//! | [`Nodes::stats`] | counts since connecting: granted, contended, unavailable, lost, renewals, waits, holds, and each node's replies |
//! | [`Config::observer`] | the same as it happens, to a trait of yours ([`Observer`]) |
//! | [`Nodes::health`] | the breaker, and of each node whether it takes part and why not |
//! | [`RedisLocker::holder`] | who holds a lock, for an operator to see |
//! | [`RedisLocker::force_release`] | nothing: it takes a lock away from a holder that is known to be dead |
//!
//! `examples/metrics.rs` has them served to Prometheus.
//!
//! # Guards and scopes
//!
//! - Locks are **not re-entrant**: a thread that asks for a lock it holds waits, like any other, until the lease of
//!   its first guard ends. `try_lock` answers `None`.
//! - There is **no poisoning**: a panic drops the guard, which releases the lock.
//! - `let _ = locker.lock(…)` releases **at once**; `let _guard = …` holds to the end of the scope.
//! - `Drop` may block for `node_timeout`, also while unwinding; [`OnDrop::Background`] does not block. What goes wrong in
//!   it is logged and counted.
//! - A wait ends by its limits, or from another thread by a [`CancelToken`]; what it may have been granted is undone.
//! - Guards in statics are never dropped; `process::exit` and `panic = "abort"` run no destructors. The TTL frees
//!   their locks.
//! - In a forked child there are no threads to serve it: acquires are [`Closed`](Error::Closed), and drops do nothing
//!   but warn. Connect anew in the child.
//!
//! # Threads
//!
//! One thread per node and connection (`n × pool_size`), named `redguard-NODE.CONNECTION`; and, each from its first use on,
//! one that renews (`redguard-renewal`), one that listens for releases (`redguard-listener`) and one that tells of losses
//! (`redguard-notify`), however many locks there are. Callers never wait for a
//! lane, only for answers, with a deadline; one that is alone sends its requests itself, and reads the answers. A thread that waits
//! for a lock costs no CPU; one that waits for answers
//! yields for up to 200 µs first where rounds are quicker than 500 µs. The threads end with the last handle, guards
//! included, or with [`Nodes::shutdown`].
//!
//! # Log levels
//!
//! Through the `log` crate, each fact once: an outage of a node is one line, whatever its causes, and a lock has the name that was
//! given. `error`: a panic of a callback, an observer or the logger itself, after which all goes on. `warn`: a lock was lost, a drop failed, the breaker opened (and locks are held
//! here from then on), a node denied access or CLIENT KILL, may evict locks, has a clock that is certainly off by more than 302 ms, is
//! farther away than `node_timeout`, or is several servers at one address; a foreign value under a lock's key; an even number of nodes.
//! `info`: the breaker closed; a node is connected, connected again, suspect, in quarantine, or cannot be listened to. `debug`: verdicts and retries. `trace`: replies. Never a
//! token, never a password.
//!
//! # Features and versions
//!
//! | feature | what it brings |
//! |---|---|
//! | `testing` | `FlakyLocker`, which is contended, unavailable or loses its lock when a test says so |
//! | `tls` | `rediss://` addresses, `Config::tls` and `Tls`: an authority of your own, and a certificate to show to nodes. By `rustls`; the computer needs a C compiler to build it |
//! | `sentinel` | `Endpoint::sentinel`: a master that sentinels name, as one node. No more dependencies |
//! | `cluster` | `Endpoint::cluster`: a Redis Cluster, as one node. No more dependencies |
//!
//! None is on by default. With `tls`, a process that has not installed a provider of cryptography for `rustls` by its first
//! connect has `ring` installed as its default; so a program that wants another one installs it before.
//!
//! Rust 1.88; Redis 6.2 or Valkey 7.2 and later.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod api;
mod background;
mod config;
mod engine;
mod error;
pub mod guide;
mod local;
mod protocol;
mod random;
mod sync;
mod telemetry;
#[cfg(test)]
mod tests;
mod time;
mod transport;

pub use crate::api::ext::LockerExt;
#[cfg(feature = "testing")]
pub use crate::api::flaky::FlakyLocker;
pub use crate::api::guard::{LockGuard, ReadGuard, SemaphorePermit, WriteGuard};
pub use crate::api::lock_token::LockToken;
pub use crate::api::locker::{LocalLocker, Locker, RedisLocker};
pub use crate::api::nodes::Nodes;
pub use crate::api::options::LockOptions;
pub use crate::api::rw_locker::{LocalRwLocker, RedisRwLocker, RwLocker};
pub use crate::api::semaphore::{LocalSemaphore, RedisSemaphore, Semaphore};
pub use crate::api::watch::{LockWatch, WatchOutcome};
pub use crate::config::builder::Config;
pub use crate::config::credentials::Credentials;
pub use crate::config::endpoint::{Endpoint, IntoEndpoints};
pub use crate::config::on_drop::OnDrop;
#[cfg(feature = "tls")]
pub use crate::config::tls::Tls;
pub use crate::error::{Error, FailedNode, LossReason, NodeFailure, Operation};
pub use crate::protocol::holder::Holder;
pub use crate::protocol::lost_lock::LostLock;
pub use crate::protocol::mode::Mode;
pub use crate::protocol::retry::RetryPolicy;
pub use crate::protocol::server_info::{ClockOffset, Role};
pub use crate::telemetry::health::{BreakerState, Health, NodeHealth, NodeState};
pub use crate::telemetry::observer::{NodeReply, Observer};
pub use crate::telemetry::stats::{DurationSummary, NodeStats, Stats};
pub use crate::transport::cancel::CancelToken;

/// The README's examples, compiled.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
