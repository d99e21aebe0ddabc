//! Guards: a program holds a lock while it keeps the guard in scope.
//!
//! A guard decides nothing about its lock: it passes each call on to `guard_inner.rs`.
//!
//! Tests: `tests/it/locks/conformance.rs`, `expiry.rs`, `adopt.rs`;
//! `src/tests/engine/leftovers.rs`.

use std::fmt;
use std::time::Duration;

use crate::api::guard_inner::GuardInner;
use crate::api::lock_token::LockToken;
use crate::api::watch::LockWatch;
use crate::error::error::Error;
use crate::protocol::key::Key;
use crate::protocol::lease::LeaseState;
use crate::protocol::mode::Mode;
use crate::time::clock;

/// Defines a guard with the methods that all guards share.
macro_rules! guard {
    ($(#[$docs:meta])* $guard:ident) => {
        $(#[$docs])*
        ///
        /// A guard can outlive its locker, move to another thread, and be shared by several
        /// threads.
        ///
        /// `Drop` releases the lock as [`release`](Self::release) does, and may block as long (see
        /// [`OnDrop`](crate::OnDrop)), also while a panic unwinds. It never panics. A failure in it
        /// is a `warn` line in the log, and is counted by
        /// [`Nodes::drop_failures`](crate::Nodes::drop_failures). In a forked child it only warns.
        /// A guard that is the last handle on its nodes also ends their threads, for at most
        /// `node_timeout` more.
        #[must_use = "an unused guard releases its lock at once: bind it to `_guard`, because `let _ =` releases the lock, too"]
        pub struct $guard(GuardInner);

        impl $guard {
            /// Returns the lock's name as it was given. A lock of several names returns the first
            /// in sorted order.
            pub fn key(&self) -> &str {
                self.0.keys().first().name()
            }

            /// Returns whether the lock is held, by the clock and the latest replies of the nodes.
            /// Does not block or ask them.
            ///
            /// `false` also if the wall clock has run ahead of the steady clock since the nodes
            /// were last asked, as after a suspend of the computer: [`check`](Self::check) asks the
            /// nodes then.
            ///
            /// The lease may end right after the call. Work that must not continue without the lock
            /// belongs well inside [`remaining`](Self::remaining).
            pub fn is_held(&self) -> bool {
                self.0.is_held()
            }

            /// Returns how long the lock is held for at least; zero if [`is_held`](Self::is_held)
            /// returns `false`. Does not block.
            ///
            /// This is the rest of the validity: the TTL, less the time of the acquire, less the
            /// allowance for clock drift (`ttl / 100 + 2 ms`). A key that is deleted on the nodes
            /// ends it earlier; [the guide](crate::guide::failures) covers nodes that lose their
            /// data.
            ///
            /// A local lock does not expire and returns [`Duration::MAX`], with which
            /// `Instant::now() + guard.remaining()` panics. Compute a deadline as
            /// `Instant::now().checked_add(guard.remaining())`, where `None` means that there is
            /// none.
            pub fn remaining(&self) -> Duration {
                self.0.remaining()
            }

            /// Returns whether no more is left of [`remaining`](Self::remaining) than the margin of
            /// [`on_endangered`](crate::LockOptions::on_endangered), which is zero by default. Also
            /// `true` for a lost lock; never for a local lock that is held. Does not block.
            pub fn is_endangered(&self) -> bool {
                self.0.is_endangered()
            }

            /// Returns `Ok` while the lock is held. A loop calls it with `?` before each step.
            ///
            /// Does not block, except after a suspend of the computer or if the wall clock was set
            /// forward. Then it waits for an extension in progress, and asks the nodes for at most
            /// `node_timeout`; once more if another suspend falls into that time.
            ///
            /// # Errors
            /// - [`LockLost`](Error::LockLost): the lock is not held any more.
            /// - [`InsufficientQuorum`](Error::InsufficientQuorum): after a suspend, too few nodes
            ///   replied.
            /// - [`Closed`](Error::Closed): after a suspend, in a forked child.
            pub fn check(&self) -> Result<(), Error> {
                self.0.check()
            }

            /// Extends the lock to `ttl` from now. An extension never shortens the lease.
            ///
            /// Waits for extensions by other threads and for a renewal in progress, and then blocks
            /// for at most `node_timeout`; once more after a suspend of the computer meanwhile. If it
            /// fails, the lock is held until its former expiry, unless it is lost. Once a quorum has
            /// confirmed the lease, nodes that have lost the key get it back. A local lock does not
            /// expire: the TTL is validated and ignored.
            ///
            /// # Errors
            /// - [`InvalidTtl`](Error::InvalidTtl): the TTL is too short or too long.
            /// - [`LockLost`](Error::LockLost): the lock has expired, too many nodes reply that it
            ///   is not ours, or the nodes were shut down while it was held.
            /// - [`InsufficientQuorum`](Error::InsufficientQuorum): too few nodes replied.
            ///   Repeating the call before the expiry may help.
            /// - [`Closed`](Error::Closed): the process is a forked child.
            pub fn extend(&self, ttl: Duration) -> Result<(), Error> {
                self.0.extend(ttl)
            }

            /// Releases the lock and returns the result. Blocks for at most `node_timeout`.
            ///
            /// `Ok` means that a quorum of nodes deleted the lock, so that others can acquire it at
            /// once; before the end of a [`min_hold`](crate::LockOptions::min_hold), that they
            /// delete it then.
            ///
            /// # Errors
            /// - [`LockLost`](Error::LockLost): the lock had expired, too many nodes reply that it
            ///   was not ours any more, or the nodes were shut down while it was held. Work may
            ///   have overlapped with another holder's.
            /// - [`InsufficientQuorum`](Error::InsufficientQuorum): too few nodes replied. The
            ///   other nodes get the release when they reply again; the lock ends with its TTL at
            ///   the latest.
            /// - [`Closed`](Error::Closed): the process is a forked child, which releases nothing.
            pub fn release(self) -> Result<(), Error> {
                self.0.release()
            }

            /// Returns a watch, with which another thread waits for the end of the lock. Does not
            /// block.
            pub fn watch(&self) -> LockWatch {
                self.0.watch()
            }

            /// Ends the renewal that [`auto_renew`](crate::LockOptions::auto_renew) started. The
            /// lock is then held until the TTL of its last renewal ends. A renewal in progress may
            /// still extend it. Does not block.
            pub fn stop_renewal(&self) {
                self.0.stop_renewal();
            }

            /// Returns whether the lock is held on the nodes or in this process alone.
            pub fn mode(&self) -> Mode {
                self.0.mode()
            }

            #[cfg(all(test, not(loom)))]
            pub(crate) fn lease(&self) -> &std::sync::Arc<crate::protocol::lease::Lease> {
                self.0.lease()
            }
        }

        impl From<GuardInner> for $guard {
            fn from(inner: GuardInner) -> $guard {
                $guard(inner)
            }
        }

        /// Does not block, and shows no token.
        impl fmt::Debug for $guard {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut shown = f.debug_struct(stringify!($guard));
                let names: Vec<&str> = self.0.keys().as_slice().iter().map(Key::name).collect();
                match names[..] {
                    [name] => shown.field("key", &name),
                    _ => shown.field("keys", &names),
                };
                shown.field("mode", &self.mode());
                match self.0.peek() {
                    LeaseState::Held(_) if self.mode() == Mode::Local => &mut shown,
                    LeaseState::Held(expiry) => {
                        let left = expiry.saturating_duration_since(clock::now());
                        shown.field("remaining", &format_args!("{left:.1?}"))
                    }
                    LeaseState::Lost | LeaseState::JustLost => {
                        shown.field("remaining", &"lost")
                    }
                    LeaseState::Pending | LeaseState::Ended => &mut shown,
                };
                shown.finish_non_exhaustive()
            }
        }
    };
}

guard! {
    /// Holds an exclusive lock until it is dropped or released, or until its lease ends,
    /// **whichever is first**.
    ///
    /// ```
    /// use redguard::{LocalLocker, LockOptions, Locker, Mode};
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), redguard::Error> {
    /// let locker = LocalLocker::new();
    /// let guard = locker.lock("report", Duration::from_secs(30))?;
    /// for page in 0..3 {
    ///     guard.check()?; // still held? else stop here
    ///     if guard.remaining() < Duration::from_secs(10) {
    ///         guard.extend(Duration::from_secs(30))?;
    ///     }
    ///     // … write the page …
    /// }
    /// guard.release()?; // or drop it, if the result does not matter
    ///
    /// let options = LockOptions::new(Duration::from_secs(30)).fencing(true).auto_renew(true);
    /// let guard = locker.acquire("report", &options)?;
    /// assert!(guard.is_held() && guard.key() == "report" && guard.mode() == Mode::Local);
    /// assert!(guard.keys().eq(["report"]));
    /// let (watch, token) = (guard.watch(), guard.fencing_token());
    /// guard.stop_renewal(); // it expires with its TTL now
    /// drop(guard);
    /// assert!(token.is_some() && !watch.is_held());
    /// # Ok(())
    /// # }
    /// ```
    LockGuard
}

guard! {
    /// Holds a read lock, beside other readers, until it is dropped or released, or until its lease
    /// ends, **whichever is first**. Each reader has a lease of its own, also in one process.
    ///
    /// ```
    /// use redguard::{LocalRwLocker, RwLocker};
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), redguard::Error> {
    /// let locker = LocalRwLocker::new();
    /// let guard = locker.read("catalogue", Duration::from_secs(30))?;
    /// assert!(guard.is_held() && guard.key() == "catalogue");
    /// for chapter in 0..3 {
    ///     guard.check()?; // still held? else the data may be half written
    ///     guard.extend(Duration::from_secs(30))?;
    ///     // … read the chapter …
    /// }
    /// guard.release()
    /// # }
    /// ```
    ReadGuard
}

guard! {
    /// Holds a write lock, alone, until it is dropped or released, or until its lease ends,
    /// **whichever is first**.
    ///
    /// ```
    /// use redguard::{LocalRwLocker, LockOptions, RwLocker};
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), redguard::Error> {
    /// let locker = LocalRwLocker::new();
    /// let options = LockOptions::new(Duration::from_secs(30)).fencing(true);
    /// let guard = locker.acquire_write("catalogue", &options)?;
    /// guard.check()?; // still held? else stop here
    /// println!("written with the fencing token {:?}", guard.fencing_token());
    /// guard.release()
    /// # }
    /// ```
    WriteGuard
}

guard! {
    /// Holds one permit of a semaphore until it is dropped or released, or until its lease ends,
    /// **whichever is first**. Each permit has a lease of its own, also in one process. In the docs
    /// of its methods *the lock* is this permit.
    ///
    /// ```
    /// use redguard::{LocalSemaphore, LockOptions, Semaphore};
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), redguard::Error> {
    /// let semaphore = LocalSemaphore::new(2)?;
    /// let options = LockOptions::new(Duration::from_secs(30));
    /// let permits = (semaphore.acquire(&options)?, semaphore.acquire(&options)?);
    /// assert!(semaphore.try_acquire(&options)?.is_none());
    /// permits.0.release()?;
    /// assert!(semaphore.try_acquire(&options)?.is_some());
    /// # Ok(())
    /// # }
    /// ```
    SemaphorePermit
}

/// Defines `fencing_token` for guards that exclude all others.
macro_rules! fenced {
    ($guard:ident) => {
        impl $guard {
            /// Returns the fencing token, if the lock was acquired with
            /// [`fencing`](crate::LockOptions::fencing): a number greater than that of every
            /// earlier holder of this lock.
            ///
            /// Send it along with each write, and let the store refuse a write whose token is below
            /// the greatest it has seen. Then a holder that was paused past its lease does no harm
            /// (M. Kleppmann, *How to do distributed locking*, 2016).
            ///
            /// Tokens strictly increase as long as one of two conditions holds. Either the nodes'
            /// clocks are in step, or fewer nodes than a quorum have lost their data or missed the
            /// last grant. They are not consecutive. They start at the microseconds since 1970,
            /// about 1.8e15, so a store needs 64 bits (`BIGINT`); the 53 bits of a JSON number last
            /// for two centuries. Tokens of a local lock are comparable only among clones of one
            /// locker.
            pub fn fencing_token(&self) -> Option<u64> {
                self.0.fencing_token()
            }
        }
    };
}

impl SemaphorePermit {
    /// Returns which of the permits this is, from 0 to one less than their number: for a slot, a
    /// port or a directory of its own. No other holder has the same number meanwhile.
    ///
    /// ```
    /// use redguard::{LocalSemaphore, LockOptions, Semaphore};
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), redguard::Error> {
    /// let semaphore = LocalSemaphore::new(2)?;
    /// let options = LockOptions::new(Duration::from_secs(30));
    /// let (first, second) = (semaphore.acquire(&options)?, semaphore.acquire(&options)?);
    /// assert_eq!((first.number(), second.number()), (0, 1));
    /// # Ok(())
    /// # }
    /// ```
    pub fn number(&self) -> u32 {
        self.0.permit_number()
    }
}

impl LockGuard {
    /// Detaches the lock, so that another process can adopt it. This guard and its renewal end, but
    /// **the lock stays on the nodes** for the rest of its TTL. Within that time
    /// [`adopt`](crate::RedisLocker::adopt) returns a new guard with a new TTL.
    ///
    /// Does not block or ask the nodes. Other threads of this process are refused by the nodes like
    /// any other caller.
    ///
    /// # Errors
    /// - [`LockLost`](Error::LockLost): the lock had expired, or was lost before.
    /// - [`NotOnNodes`](Error::NotOnNodes): the lock is held in this process alone. It is released.
    /// - [`Closed`](Error::Closed): the process is a forked child.
    ///
    /// ```no_run
    /// use redguard::{Config, Locker, RedisLocker};
    /// use std::process::Command;
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let locker = RedisLocker::connect(Config::new(["10.0.0.1", "10.0.0.2", "10.0.0.3"]))?;
    /// let guard = locker.lock("nightly-report", Duration::from_secs(30))?;
    /// let token = guard.into_token()?;
    /// Command::new("report").env("LOCK", token.to_string()).spawn()?;
    /// // in the child: locker.adopt(&std::env::var("LOCK")?.parse()?, Duration::from_secs(30))?
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_token(self) -> Result<LockToken, Error> {
        self.0.detach()
    }

    /// Returns the names of the lock in sorted order: several after
    /// [`acquire_all`](crate::Locker::acquire_all), else one.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.keys().as_slice().iter().map(Key::name)
    }
}

fenced!(LockGuard);
fenced!(WriteGuard);

impl WriteGuard {
    /// Turns the write lock into a read lock. No other writer can acquire the lock in between. The
    /// lease keeps its expiry and its renewal; other readers can acquire the lock at once.
    ///
    /// Waits for extensions by other threads and for a renewal in progress, and then blocks for at
    /// most `node_timeout`. Nodes that do not reply keep readers out until this lock is released or
    /// extended.
    ///
    /// # Errors
    /// - [`LockLost`](Error::LockLost): the lock had expired, too many nodes reply that it was not
    ///   ours any more, or the nodes were shut down while it was held.
    /// - [`Closed`](Error::Closed): the process is a forked child.
    ///
    /// ```
    /// use redguard::{LocalRwLocker, RwLocker};
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), redguard::Error> {
    /// let ttl = Duration::from_secs(30);
    /// let locker = LocalRwLocker::new();
    /// let writing = locker.write("catalogue", ttl)?;
    /// // … reload …
    /// let reading = writing.downgrade()?;
    /// assert!(locker.try_read("catalogue", ttl)?.is_some());
    /// assert!(locker.try_write("catalogue", ttl)?.is_none());
    /// // … read the loaded catalogue …
    /// reading.release()
    /// # }
    /// ```
    pub fn downgrade(self) -> Result<ReadGuard, Error> {
        self.0.downgrade().map(ReadGuard)
    }
}
