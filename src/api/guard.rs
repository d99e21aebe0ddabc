//! Proof of holding a lock: what a program keeps in scope while it works.

use std::fmt;
use std::time::Duration;

use crate::api::guard_inner::GuardInner;
use crate::api::lock_token::LockToken;
use crate::api::watch::LockWatch;
use crate::error::Error;
use crate::protocol::key::Key;
use crate::protocol::mode::Mode;

/// A guard with the methods that all of them have.
macro_rules! guard {
    ($(#[$docs:meta])* $guard:ident) => {
        $(#[$docs])*
        ///
        /// It owns all it needs: it can outlive its locker, move to another thread, and be asked from several at once.
        ///
        /// `Drop` releases the lock as `release` does, and may block as long (see [`OnDrop`](crate::OnDrop)), also while a panic
        /// unwinds. It never panics. What goes wrong in it is a `warn` line in the log, and counted by
        /// [`Nodes::drop_failures`](crate::Nodes::drop_failures). In a forked child it does nothing but warn. A guard
        /// that is the very last handle on its nodes also ends their threads, for `node_timeout` more at most.
        #[must_use = "if unused the lock is released at once: bind it to `_guard`, since `let _ =` releases it, too"]
        pub struct $guard(GuardInner);

        impl $guard {
            /// The lock's name, as it was given.
            pub fn key(&self) -> &str {
                self.0.keys().first().name()
            }

            /// Whether the lock is still held, by the clock and by what the nodes have said. Does not block or ask them.
            ///
            /// `false` also where the wall clock has run ahead of the steady one since the nodes were last asked, as it does
            /// while a computer is suspended: then only they know, and [`check`](Self::check) asks them.
            ///
            /// Only a look: the lease may end right after it. Work that must not go on without the lock belongs well
            /// inside [`remaining`](Self::remaining).
            pub fn is_held(&self) -> bool {
                self.0.is_held()
            }

            /// How long the lock is held for at least, if nobody deletes its keys; zero when it is lost. Does not block.
            ///
            /// This is the validity: the TTL less the time that taking it took, less an allowance for clock drift
            /// (`ttl / 100 + 2 ms`). A local lock does not expire: it has [`Duration::MAX`], so `Instant::now() + guard.remaining()`
            /// would panic. A deadline is `Instant::now().checked_add(guard.remaining())`, where `None` means that there is none.
            ///
            /// A node that loses its data deletes keys. Under [`restart_quarantine`](crate::Config::restart_quarantine) nobody
            /// else gets the lock before this time is over, but if too many nodes do so the lock may be lost early, which is
            /// told as any loss is. Without it not even one node may lose its data: the quorum can rest on its grant.
            pub fn remaining(&self) -> Duration {
                self.0.remaining()
            }

            /// `Ok` while the lock is held: for the checkpoints of a loop, with `?`.
            ///
            /// Does not block, but after the computer was suspended, or the wall clock set forward: then it asks the nodes,
            /// for `node_timeout` at most, behind a renewal that is on its way.
            ///
            /// # Errors
            /// [`LockLost`](Error::LockLost) when it is not held; after a suspend also
            /// [`InsufficientQuorum`](Error::InsufficientQuorum) when too few nodes answered, and [`Closed`](Error::Closed) in
            /// a forked child.
            pub fn check(&self) -> Result<(), Error> {
                self.0.check()
            }

            /// Holds the lock for `ttl` from now on, if that is longer than it is held anyway: an extension never
            /// shortens.
            ///
            /// Blocks for `node_timeout` at most, behind extensions that other threads make through this guard and a renewal
            /// that is on its way. Where it
            /// fails the lock stays held until its old expiry, unless it is lost. On nodes that have lost the key it is
            /// put back once a quorum has kept it. A local lock does not expire: its TTL is checked and ignored.
            ///
            /// # Errors
            /// [`InvalidTtl`](Error::InvalidTtl); [`LockLost`](Error::LockLost) when the lock has expired or too many
            /// nodes say that it is not ours; [`InsufficientQuorum`](Error::InsufficientQuorum) when too few answered:
            /// trying again before it expires may help; [`Closed`](Error::Closed) in a forked child.
            pub fn extend(&self, ttl: Duration) -> Result<(), Error> {
                self.0.extend(ttl)
            }

            /// Releases the lock and says how that ended. Blocks for `node_timeout` at most.
            ///
            /// `Ok` means that a quorum of nodes deleted it, so that others can have the lock at once.
            ///
            /// # Errors
            /// [`LockLost`](Error::LockLost) when it had expired, or too many nodes say that it was not ours any more:
            /// work may have overlapped with another holder's. [`InsufficientQuorum`](Error::InsufficientQuorum) when
            /// too few nodes answered: then the TTL frees it, or the nodes' lanes do when they are back;
            /// [`Closed`](Error::Closed) in a forked child, which releases nothing.
            pub fn release(self) -> Result<(), Error> {
                self.0.release()
            }

            /// This lock for a monitor, which can wait until it is lost. Does not block.
            pub fn watch(&self) -> LockWatch {
                self.0.watch()
            }

            /// Ends the renewal that [`auto_renew`](crate::LockOptions::auto_renew) began: the lock ends when the TTL of its
            /// last renewal is over, or is released before. One that is on its way may still extend it. Does not block.
            pub fn stop_renewal(&self) {
                self.0.stop_renewal();
            }

            /// Whether the lock is held on the nodes or in this process only.
            pub fn mode(&self) -> Mode {
                self.0.mode()
            }
        }

        impl From<GuardInner> for $guard {
            fn from(hold: GuardInner) -> $guard {
                $guard(hold)
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
                if self.mode() == Mode::Quorum {
                    shown.field("lease", &self.0.peek());
                }
                shown.finish_non_exhaustive()
            }
        }
    };
}

guard! {
    /// Holds an exclusive lock until it is dropped or released, or until its lease ends, **whichever is first**.
    ///
    /// ```
    /// use redguard::{LocalLocker, LockOptions, Locker, Mode};
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), redguard::Error> {
    /// let locker = LocalLocker::new();
    /// let guard = locker.lock("report", Duration::from_secs(30))?;
    /// for page in 0..3 {
    ///     guard.check()?; // still ours? else stop here
    ///     if guard.remaining() < Duration::from_secs(10) {
    ///         guard.extend(Duration::from_secs(30))?;
    ///     }
    ///     // … write the page …
    /// }
    /// guard.release()?; // or drop it, if how it ended does not matter
    ///
    /// let options = LockOptions::new(Duration::from_secs(30)).fenced().auto_renew();
    /// let guard = locker.acquire("report", &options)?;
    /// assert!(guard.is_held() && guard.key() == "report" && guard.mode() == Mode::Local);
    /// assert!(guard.keys().eq(["report"]));
    /// let (watch, token) = (guard.watch(), guard.fencing_token());
    /// guard.stop_renewal(); // it ends with its TTL now
    /// drop(guard);
    /// assert!(token.is_some() && !watch.is_held());
    /// # Ok(())
    /// # }
    /// ```
    LockGuard
}

guard! {
    /// Holds a read lock, beside other readers, until it is dropped or released, or until its lease ends, **whichever is
    /// first**. It has a lease of its own, also among readers of one process.
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
    ///     guard.check()?; // still ours? else what is read may be half written
    ///     guard.extend(Duration::from_secs(30))?;
    ///     // … read the chapter …
    /// }
    /// guard.release()
    /// # }
    /// ```
    ReadGuard
}

guard! {
    /// Holds a write lock, alone, until it is dropped or released, or until its lease ends, **whichever is first**.
    ///
    /// ```
    /// use redguard::{LocalRwLocker, LockOptions, RwLocker};
    /// use std::time::Duration;
    ///
    /// # fn main() -> Result<(), redguard::Error> {
    /// let locker = LocalRwLocker::new();
    /// let options = LockOptions::new(Duration::from_secs(30)).fenced();
    /// let guard = locker.acquire_write("catalogue", &options)?;
    /// guard.check()?; // still ours? else stop here
    /// println!("written with the fencing token {:?}", guard.fencing_token());
    /// guard.release()
    /// # }
    /// ```
    WriteGuard
}

guard! {
    /// Holds one permit of a semaphore until it is dropped or released, or until its lease ends, **whichever is first**. It has a
    /// lease of its own, also among permits of one process; where its docs say *the lock* that is this permit.
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

/// The fencing token of guards that hold a lock alone.
macro_rules! fenced {
    ($guard:ident) => {
        impl $guard {
            /// The fencing token, if the lock was taken with [`fenced`](crate::LockOptions::fenced): greater than that of
            /// every holder of this lock before. Send it along with each write, and let the store refuse a write whose
            /// token is below one that it has seen: then a holder that was paused past its lease does no harm (M. Kleppmann,
            /// *How to do distributed locking*, 2016).
            ///
            /// Tokens strictly increase as long as the nodes' clocks are in step, or fewer nodes than a quorum have lost their
            /// data or missed the last grant: a count that is lost begins anew from the node's clock. They are not
            /// consecutive, and begin with the microseconds since 1970, at some 1.8e15: a store needs 64 bits for them (`BIGINT`; a
            /// JSON number has 53, which is enough for the next two centuries). A local lock's are comparable within its process only, and among clones of one locker.
            pub fn fencing_token(&self) -> Option<u64> {
                self.0.fencing_token()
            }
        }
    };
}

impl LockGuard {
    /// Hands the lock over to another process: this guard ends and is not renewed any more, but **the lock stays taken**, with
    /// what is left of its TTL, until [`adopt`](crate::RedisLocker::adopt) takes it up under a TTL of its own.
    ///
    /// Does not block or ask the nodes. In this process the lock is free to be asked for: who asks waits until it has ended on
    /// the nodes.
    ///
    /// # Errors
    /// [`LockLost`](Error::LockLost) when it had expired; [`NotOnNodes`](Error::NotOnNodes) for a lock that no node knows
    /// of, which is released; [`Closed`](Error::Closed) in a forked child.
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

    /// All names of a lock that was taken with [`acquire_all`](crate::Locker::acquire_all), in their order; of others the one.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.keys().as_slice().iter().map(Key::name)
    }
}

fenced!(LockGuard);
fenced!(WriteGuard);

impl WriteGuard {
    /// Turns the write lock into a read lock without letting another writer in between: what was written can be read in
    /// peace. The lease goes on as it was; readers can get in at once.
    ///
    /// Blocks for `node_timeout` at most. Nodes that do not answer go on keeping readers out until this lock is released
    /// or extended.
    ///
    /// # Errors
    /// [`LockLost`](Error::LockLost) when it had expired, or too many nodes say that it was not ours any more;
    /// [`Closed`](Error::Closed) in a forked child.
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
    /// // … read what was loaded …
    /// reading.release()
    /// # }
    /// ```
    pub fn downgrade(self) -> Result<ReadGuard, Error> {
        self.0.downgrade().map(ReadGuard)
    }
}
