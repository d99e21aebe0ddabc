//! Acquires a lock, works under it and releases it: `cargo run --example scoped`.
//!
//! The lock is on the nodes in REDIS_URLS (separated by commas), else on a temporary
//! `redis-server`, else within the process. Exit statuses are those of `common/exit_status.rs`.
#![expect(clippy::print_stdout, reason = "an example is there to be read")]

use redguard::{Config, LocalLocker, Locker, RedisLocker};
use redguard_examples::exit_status;
use redguard_servers::{self as servers, Server};
use std::{env, error::Error, process::ExitCode, time::Duration};

const TTL: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit_status::fail("scoped", &*error),
    }
}

fn run() -> Result<(), Box<dyn Error + Send + Sync>> {
    if let Ok(urls) = env::var("REDIS_URLS") {
        println!("locks on the nodes in REDIS_URLS");
        import_orders(&RedisLocker::connect(Config::new(urls.split(',')))?)
    } else if servers::available() {
        let server = Server::start()?;
        println!("REDIS_URLS is not set: locks on a temporary redis-server");
        import_orders(&RedisLocker::connect(Config::new([server.addr()]))?)
    } else {
        println!("neither REDIS_URLS nor redis-server: locks within this process only");
        import_orders(&LocalLocker::new())
    }
}

/// Works under a lock. It uses only the trait, so it runs with Redis and without.
fn import_orders(locker: &dyn Locker) -> Result<(), Box<dyn Error + Send + Sync>> {
    {
        // Blocks until the lock is acquired. `let _ =` would release it at once, so the guard has a
        // name.
        let guard = locker.lock("orders", TTL)?;
        println!("locked {:?}, {:?}", guard.key(), guard.mode());
        for batch in 1..=3 {
            // The lock can be lost before the guard is dropped, so each step checks it.
            guard.check()?;
            println!("imported batch {batch}");
        }
        // A second acquire fails, also in this thread: locks are not re-entrant.
        assert!(locker.try_lock("orders", TTL)?.is_none());
    } // The drop releases the lock, also on a return by `?` and on a panic.

    match locker.try_lock("orders", TTL)? {
        // `release` releases like a drop and returns an error if the lock was lost before.
        Some(guard) => guard.release()?,
        None => println!("another process holds the lock"),
    }
    println!("released");
    Ok(())
}
