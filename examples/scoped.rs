//! A lock in a scope, from taking it to seeing how it ended: `cargo run --example scoped`.
//!
//! Runs on the nodes in REDIS_URLS (separated by commas), else on a throw-away `redis-server`, else within the process.
#![expect(clippy::print_stdout, reason = "an example is there to be read")]

#[path = "common/servers.rs"]
mod servers;

use redguard::{Config, LocalLocker, Locker, RedisLocker};
use std::{env, error::Error, process::ExitCode, time::Duration};

const TTL: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        // Not a `main` that returns it, which would show its `Debug`.
        Err(error) => {
            eprintln!("scoped: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    if let Ok(urls) = env::var("REDIS_URLS") {
        println!("locks on the nodes in REDIS_URLS");
        count_sheep(&RedisLocker::connect(Config::new(urls.split(',')))?)
    } else if servers::available() {
        let server = servers::Server::start()?;
        println!("REDIS_URLS is not set: locks on a throw-away redis-server");
        count_sheep(&RedisLocker::connect(Config::new([server.addr()]))?)
    } else {
        println!("neither REDIS_URLS nor redis-server: locks within this process alone");
        count_sheep(&LocalLocker::new())
    }
}

/// The program proper. It knows the trait only, so it runs with Redis and without.
fn count_sheep(locker: &dyn Locker) -> Result<(), Box<dyn Error>> {
    {
        // Waits until the lock is free. A name is needed: `let _ =` would release it on the spot.
        let guard = locker.lock("sheep", TTL)?;
        println!("locked {:?}, {:?}", guard.key(), guard.mode());
        for sheep in 1..=3 {
            // A guard can end before it is dropped, so each step asks whether the lock is still ours.
            guard.check()?;
            println!("sheep {sheep}");
        }
        // Held by us, so nobody gets it: not even this thread, for locks are not re-entrant.
        assert!(locker.try_lock("sheep", TTL)?.is_none());
    } // Dropped here, and so released: also on the way out by `?` or a panic.

    match locker.try_lock("sheep", TTL)? {
        // `release` does what dropping does, and says whether the lock was ours until the end.
        Some(guard) => guard.release()?,
        None => println!("somebody else was faster"),
    }
    println!("released");
    Ok(())
}
