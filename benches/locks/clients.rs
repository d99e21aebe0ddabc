//! Who is measured: redguard, and the floors.

use std::time::Duration;

use redguard::{
    Config, LockGuard, Locker, Nodes, OnDrop, ReadGuard, RedisLocker, RedisRwLocker, RwLocker,
    WriteGuard,
};

use crate::Result;
use crate::baseline::Bare;
use crate::servers::Server;

/// The lease of every lock here, of which none is held nearly as long.
const TTL: Duration = Duration::from_secs(10);

/// One thread's way to take and release a lock that nobody else asks for.
pub(crate) trait Client: Send {
    fn take(&mut self) -> Result<()>;
    fn release(&mut self) -> Result<()>;
}

/// A side of a row.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The library: one `Nodes` for all threads, as a program would have it.
    Redguard(OnDrop),
    /// Its read-write locks, read by each thread under a name of its own.
    Read,
    /// The same, all threads under one name.
    ReadOne,
    /// Its read-write locks, written by each thread under a name of its own.
    Write,
    /// Connections of each thread's own, one for each node: the *raw* floor on one node, *scatter* on several.
    Bare,
}

impl Side {
    /// A client for each thread, connected. All sides use the same names.
    pub(crate) fn clients(
        self,
        servers: &[Server],
        threads: usize,
    ) -> Result<Vec<Box<dyn Client>>> {
        let names = (0..threads).map(|thread| format!("bench-{thread}"));
        match self {
            Side::Redguard(on_drop) => {
                let locker = RedisLocker::new(&nodes(servers, on_drop)?);
                let take = move |name: &str| Ok(Guard::Lock(locker.lock(name, TTL)?));
                Ok(Ours::clients(names, on_drop, take))
            }
            Side::Read | Side::ReadOne => {
                let locker = RedisRwLocker::new(&nodes(servers, OnDrop::Wait)?);
                let take = move |name: &str| Ok(Guard::Read(locker.read(name, TTL)?));
                let one = |name| {
                    if self == Side::ReadOne {
                        "bench".into()
                    } else {
                        name
                    }
                };
                Ok(Ours::clients(names.map(one), OnDrop::Wait, take))
            }
            Side::Write => {
                let locker = RedisRwLocker::new(&nodes(servers, OnDrop::Wait)?);
                let take = move |name: &str| Ok(Guard::Write(locker.write(name, TTL)?));
                Ok(Ours::clients(names, OnDrop::Wait, take))
            }
            Side::Bare => {
                let urls: Vec<String> = servers.iter().map(Server::url).collect();
                let bare = |name: String| Ok(Box::new(Bare::connect(&urls, &name, TTL)?) as _);
                names.map(bare).collect()
            }
        }
    }
}

/// The servers as nodes, with defaults for all else.
pub(crate) fn nodes(servers: &[Server], on_drop: OnDrop) -> Result<Nodes> {
    let config = Config::new(servers.iter().map(Server::addr)).on_drop(on_drop);
    Ok(Nodes::connect(config)?)
}

struct Ours<F> {
    take: F,
    name: String,
    on_drop: OnDrop,
    guard: Option<Guard>,
}

enum Guard {
    Lock(LockGuard),
    Read(ReadGuard),
    Write(WriteGuard),
}

impl<F: Fn(&str) -> Result<Guard> + Clone + Send + 'static> Ours<F> {
    fn clients(
        names: impl Iterator<Item = String>,
        on_drop: OnDrop,
        take: F,
    ) -> Vec<Box<dyn Client>> {
        let client = |name| Ours {
            take: take.clone(),
            name,
            on_drop,
            guard: None,
        };
        names.map(|name| Box::new(client(name)) as _).collect()
    }
}

impl<F: Fn(&str) -> Result<Guard> + Send> Client for Ours<F> {
    fn take(&mut self) -> Result<()> {
        self.guard = Some((self.take)(&self.name)?);
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        match self.guard.take() {
            Some(_) | None if self.on_drop == OnDrop::Background => {} // dropped
            Some(Guard::Lock(guard)) => guard.release()?,
            Some(Guard::Read(guard)) => guard.release()?,
            Some(Guard::Write(guard)) => guard.release()?,
            None => {}
        }
        Ok(())
    }
}

impl Client for Bare {
    fn take(&mut self) -> Result<()> {
        Bare::take(self)
    }

    fn release(&mut self) -> Result<()> {
        Bare::release(self)
    }
}
