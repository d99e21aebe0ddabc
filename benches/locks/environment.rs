//! The environment of the figures: the machine, and its load.

use std::process::Command;
use std::{env, fs, thread};

use crate::Result;
use redguard_servers::Server;

pub(crate) fn line(server: &Server) -> Result<String> {
    let rustc = Command::new(env::var("RUSTC").unwrap_or("rustc".into()))
        .arg("-V")
        .output();
    let rustc = rustc.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    Ok(format!(
        "machine: {}, load {}; redis-server {} on loopback; {}",
        machine()?,
        load(),
        redis(server)?,
        rustc.unwrap_or("rustc unknown".into()),
    ))
}

pub(crate) fn machine() -> Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find(|line| line.starts_with("model name"));
    let model = model.and_then(|line| line.split(": ").nth(1));
    Ok(format!(
        "{} cores{}, {} {}",
        thread::available_parallelism()?,
        model.map(|model| format!(" ({model})")).unwrap_or_default(),
        env::consts::OS,
        env::consts::ARCH,
    ))
}

/// Returns the version of the server.
pub(crate) fn redis(server: &Server) -> Result<String> {
    let mut connection = redis::Client::open(server.url())?.get_connection()?;
    let info: String = redis::cmd("INFO").arg("server").query(&mut connection)?;
    let version = info
        .lines()
        .find_map(|line| line.strip_prefix("redis_version:"));
    Ok(version.unwrap_or("unknown").to_owned())
}

/// Returns the mean load of the last minute, because other work affects every figure.
pub(crate) fn load() -> String {
    let loads = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    loads.split(' ').next().unwrap_or_default().to_owned()
}
