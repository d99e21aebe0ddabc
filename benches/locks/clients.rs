//! Clients of all sides: redguard and the baselines.

use std::time::Duration;

use redguard::{
    Config, LockGuard, Locker, Nodes, OnDrop, ReadGuard, RedisLocker, RedisRwLocker, RwLocker,
    WriteGuard,
};

use crate::Result;
use crate::baseline::Bare;
use crate::client::Client;
use crate::pipeline::Pipelined;
use redguard_servers::Server;

/// TTL of every lock here; no lock is held nearly as long.
const TTL: Duration = Duration::from_secs(10);

/// A side of a row.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The library: one `Nodes` for all threads, as in a program.
    Redguard(OnDrop),
    /// Its read locks, with one name per thread.
    Read,
    /// Its read locks, with one name for all threads.
    ReadOne,
    /// Its write locks, with one name per thread.
    Write,
    /// Bare connections of each thread, one per node: the baseline *raw* on one node, *scatter* on
    /// several.
    Bare,
    /// The baseline *pipeline*: a connection per node for all threads.
    Pipeline,
}

impl Side {
    /// Creates a connected client for each thread. All sides use the same names.
    pub(crate) fn clients(
        self,
        servers: &[Server],
        threads: usize,
    ) -> Result<Vec<Box<dyn Client>>> {
        let names = (0..threads).map(|thread| format!("bench-{thread}"));
        match self {
            Side::Redguard(on_drop) => {
                let locker = RedisLocker::new(&nodes(servers, on_drop)?);
                let acquire = move |name: &str| Ok(Guard::Lock(locker.lock(name, TTL)?));
                Ok(Ours::clients(names, on_drop, acquire))
            }
            Side::Read | Side::ReadOne => {
                let locker = RedisRwLocker::new(&nodes(servers, OnDrop::Wait)?);
                let acquire = move |name: &str| Ok(Guard::Read(locker.read(name, TTL)?));
                let one = |name| {
                    if self == Side::ReadOne {
                        "bench".into()
                    } else {
                        name
                    }
                };
                Ok(Ours::clients(names.map(one), OnDrop::Wait, acquire))
            }
            Side::Write => {
                let locker = RedisRwLocker::new(&nodes(servers, OnDrop::Wait)?);
                let acquire = move |name: &str| Ok(Guard::Write(locker.write(name, TTL)?));
                Ok(Ours::clients(names, OnDrop::Wait, acquire))
            }
            Side::Bare => {
                let urls: Vec<String> = servers.iter().map(Server::url).collect();
                let bare = |name: String| Ok(Box::new(Bare::connect(&urls, &name, TTL)?) as _);
                names.map(bare).collect()
            }
            Side::Pipeline => {
                let urls: Vec<String> = servers.iter().map(Server::url).collect();
                Pipelined::clients(&urls, names, TTL)
            }
        }
    }
}

/// Returns the servers as nodes with default settings.
pub(crate) fn nodes(servers: &[Server], on_drop: OnDrop) -> Result<Nodes> {
    let config = Config::new(servers.iter().map(Server::addr)).on_drop(on_drop);
    Ok(Nodes::connect(config)?)
}

struct Ours<F> {
    acquire: F,
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
        acquire: F,
    ) -> Vec<Box<dyn Client>> {
        let client = |name| Ours {
            acquire: acquire.clone(),
            name,
            on_drop,
            guard: None,
        };
        names.map(|name| Box::new(client(name)) as _).collect()
    }
}

impl<F: Fn(&str) -> Result<Guard> + Send> Client for Ours<F> {
    fn acquire(&mut self) -> Result<()> {
        self.guard = Some((self.acquire)(&self.name)?);
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
    fn acquire(&mut self) -> Result<()> {
        Bare::acquire(self)
    }

    fn release(&mut self) -> Result<()> {
        Bare::release(self)
    }
}
