//! Servers whose wall clock is stepped while they run, by libfaketime if it is installed.

use std::process::Command;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{fs, io};

use tempfile::TempDir;

use crate::support::raw;
use crate::support::servers::{Options, Server};

/// Greater than the difference of any two clocks that are not stepped.
const FAR: Duration = Duration::from_secs(1000);

/// The `LD_PRELOAD` of servers that use a [`Clock`]; `None` without libfaketime.
static PRELOAD: LazyLock<Option<String>> = LazyLock::new(|| {
    let found = find();
    if let Err(reason) = &found {
        eprintln!("NO SERVER'S CLOCK IS STEPPED, since libfaketime cannot be had: {reason}");
    }
    found.ok()
});

/// The wall clock of one server. Its monotonic clock is not changed.
#[derive(Debug)]
pub(crate) struct Clock {
    dir: TempDir,
}

impl Clock {
    /// Creates a clock without offset. Returns `None` without libfaketime; the first call prints
    /// that.
    pub(crate) fn new() -> Option<Clock> {
        PRELOAD.as_ref().map(|_| Clock::right())
    }

    fn right() -> Clock {
        let dir = tempfile::tempdir().expect("a directory");
        let clock = Clock { dir };
        clock.ahead(Duration::ZERO);
        clock
    }

    /// Returns options with which a server uses this clock.
    pub(crate) fn drive(&self, options: Options) -> Options {
        self.drive_by(options, PRELOAD.as_deref().unwrap_or_default())
    }

    fn drive_by(&self, options: Options, preload: &str) -> Options {
        let file = self.dir.path().join("offset");
        options
            .env("LD_PRELOAD", preload)
            .env("FAKETIME_TIMESTAMP_FILE", &file.to_string_lossy())
            .env("FAKETIME_NO_CACHE", "1")
            // The old and the new name of the variable.
            .env("DONT_FAKE_MONOTONIC", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
    }

    /// Steps the clock to this time ahead of ours.
    pub(crate) fn ahead(&self, by: Duration) {
        self.set('+', by);
    }

    /// Steps the clock to this time behind ours.
    pub(crate) fn behind(&self, by: Duration) {
        self.set('-', by);
    }

    /// Writes the offset. It takes effect at once, because libfaketime reads the file on every
    /// clock call of the server.
    fn set(&self, sign: char, by: Duration) {
        let [new, file] = ["new", "offset"].map(|name| self.dir.path().join(name));
        let offset = format!("{sign}{:.6}", by.as_secs_f64());
        let written = fs::write(&new, offset).and_then(|()| fs::rename(new, file));
        written.expect("the clock can be set");
    }
}

/// Returns how far a server's clock is ahead of ours; zero if it is behind.
pub(crate) fn lead(server: &Server) -> Duration {
    let (seconds, micros): (u64, u32) = redis::cmd("TIME")
        .query(&mut raw(server))
        .expect("the server answers");
    let theirs = UNIX_EPOCH + Duration::new(seconds, micros * 1000);
    theirs.duration_since(SystemTime::now()).unwrap_or_default()
}

/// Returns the `LD_PRELOAD` of the program `faketime`, after a server has started with it.
///
/// The C library is preloaded behind it, and so before the jemalloc of a server: jemalloc reads the
/// clock on its first call, and libfaketime calls it before it can tell the time.
fn find() -> io::Result<String> {
    let faketime = Command::new("faketime")
        .args(["-m", "-f", "+0", "printenv", "LD_PRELOAD"])
        .output()?;
    let library = String::from_utf8_lossy(&faketime.stdout);
    let preload = format!("{} libc.so.6", library.trim());
    let clock = Clock::right();
    let server = clock.drive_by(Server::options(), &preload).start()?;
    clock.ahead(2 * FAR);
    if lead(&server) < FAR {
        return Err(io::Error::other("the server tells another time"));
    }
    Ok(preload)
}
