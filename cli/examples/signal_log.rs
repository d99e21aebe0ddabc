//! A command for the tests: logs each signal that it gets to a file, and goes on.
//!
//! `signal_log FILE`: FILE gets `ready`, and a line `NUMBER SENDER` per signal. The
//! program ends when `FILE.end` exists, with the number in it as its status.

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
fn main() -> std::io::Result<()> {
    use std::fs::{self, OpenOptions};
    use std::io::Write;
    use std::path::PathBuf;
    use std::time::Duration;
    use std::{env, process, thread};

    use nix::sys::signal::SigSet;
    use nix::sys::signalfd::{SfdFlags, SignalFd};

    let path = PathBuf::from(env::args_os().nth(1).unwrap_or_default());
    let end = path.with_extension("end");
    SigSet::all().thread_block()?;
    let signals = SignalFd::with_flags(&SigSet::all(), SfdFlags::SFD_NONBLOCK)?;
    let mut log = OpenOptions::new().create(true).append(true).open(&path)?;
    writeln!(log, "ready")?;
    loop {
        while let Some(signal) = signals.read_signal()? {
            writeln!(log, "{} {}", signal.ssi_signo, signal.ssi_pid)?;
        }
        if let Ok(text) = fs::read_to_string(&end) {
            process::exit(text.trim().parse().unwrap_or(0));
        }
        // The test has failed, and its directory is gone.
        if !path.exists() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(2));
    }
}
