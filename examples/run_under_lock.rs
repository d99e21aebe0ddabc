//! Runs a command under a lock: `cargo run --example run_under_lock -- KEY COMMAND ARG…`.
//!
//! How a program embeds the library. The tool `redguard` (in `cli/`) does this with signals,
//! process groups and waiting for nodes. The nodes are those of REDIS_URLS.
#![expect(clippy::print_stderr, reason = "a tool tells its failures")]

use redguard::{Config, LockOptions, Locker, RedisLocker};
use redguard_examples::exit_status::{self, FAILED, USAGE};
use std::ffi::OsString;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use std::{env, error::Error};

const TTL: Duration = Duration::from_secs(30);

/// How often the end of the command is looked for.
const POLL: Duration = Duration::from_millis(20);

fn main() -> ExitCode {
    let mut args = env::args_os().skip(1);
    let (Some(key), Some(program)) = (args.next(), args.next()) else {
        eprintln!("run_under_lock: usage: run_under_lock KEY COMMAND ARG…");
        return ExitCode::from(USAGE);
    };
    match run(&key.to_string_lossy(), &program, args) {
        // A lost lock is a failure, whatever the command returned.
        Ok((status, false)) => ExitCode::from(status.code().map_or(FAILED, |code| code as u8)),
        Ok((_, true)) => ExitCode::from(FAILED),
        Err(error) => exit_status::fail("run_under_lock", &*error),
    }
}

/// Returns the status of the command, and whether its lock was lost.
fn run(
    key: &str,
    program: &OsString,
    args: impl Iterator<Item = OsString>,
) -> Result<(ExitStatus, bool), Box<dyn Error + Send + Sync>> {
    let urls = env::var("REDIS_URLS")?;
    let locker = RedisLocker::connect(Config::new(urls.split(',')))?;
    let (told, danger) = mpsc::channel();
    // The early warning ends the command before the next holder can begin.
    let options = LockOptions::new(TTL)
        .auto_renew(true)
        .on_endangered(TTL / 6, move |_| _ = told.send(()));
    let guard = locker.acquire(key, &options)?;
    let mut child = Command::new(program).args(args).spawn()?;
    let (status, mut is_lost) = attend(&mut child, &danger)?;
    if let Err(error) = guard.release() {
        eprintln!("run_under_lock: {error}");
        is_lost |= error.is_lost();
    }
    Ok((status, is_lost))
}

/// Blocks until the command has ended, and kills it if its lock is endangered.
fn attend(
    child: &mut Child,
    danger: &mpsc::Receiver<()>,
) -> Result<(ExitStatus, bool), Box<dyn Error + Send + Sync>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok((status, false));
        }
        // `Disconnected` means that the guard is gone, which it is not.
        if danger.recv_timeout(POLL) != Err(RecvTimeoutError::Timeout) {
            eprintln!("run_under_lock: the lock is endangered, the command is killed");
            child.kill()?;
            return Ok((child.wait()?, true));
        }
    }
}
