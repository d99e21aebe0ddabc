//! Locks under load, and what Prometheus sees of them.
//!
//! `cargo run --release --example metrics [-- --redis URL,URL,…] [--for 60s] [--listen 127.0.0.1:9184]`, and in another terminal
//! `curl http://127.0.0.1:9184/metrics`.
//!
//! Counts come from [`Nodes::stats`](redguard::Nodes::stats) at each scrape; how waits, holds and replies are distributed comes
//! from an [`Observer`](redguard::Observer) that feeds histograms.
#![expect(clippy::print_stdout, reason = "an example is there to be read")]

#[path = "metrics/exporter.rs"]
mod exporter;
#[path = "common/servers.rs"]
mod servers;

use clap::Parser;
use exporter::{Exporter, Histograms};
use redguard::{Config, LockOptions, Locker, Nodes, RedisLocker};
use servers::Server;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

/// Eight threads share four locks, and what Prometheus sees of them is served on loopback
///
/// Without --redis it takes redis-server on the PATH for three throw-away nodes.
#[derive(Parser)]
#[command(name = "metrics", verbatim_doc_comment)]
struct Cli {
    /// The nodes
    #[arg(long, value_name = "URL,URL,…", value_delimiter = ',')]
    redis: Vec<String>,
    /// Where to serve it; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9184")]
    listen: SocketAddr,
    /// How long
    #[arg(long = "for", value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    time: Duration,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("metrics: {error}");
            ExitCode::FAILURE
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "an example reads the clock")]
fn run(cli: &Cli) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut own = Vec::new();
    let mut urls = cli.redis.clone();
    if urls.is_empty() {
        own = (0..3)
            .map(|_| Server::start())
            .collect::<std::io::Result<_>>()?;
        urls = own.iter().map(Server::url).collect();
    }
    let histograms = Histograms::new();
    let nodes = Nodes::connect(Config::new(urls).observer(histograms.clone()))?;
    let exporter = Exporter::serve(&nodes, &histograms, cli.listen)?;
    if let Some(addr) = exporter.addr() {
        println!("http://{addr}/metrics, for {:?}", cli.time);
    }
    let end = Instant::now() + cli.time;
    thread::scope(|scope| {
        for number in 0..8 {
            let locker = RedisLocker::new(&nodes);
            scope.spawn(move || work(&locker, number, end));
        }
    });
    let stats = nodes.stats();
    println!(
        "{} locks, after {:?} on average; {} contended, {} unavailable, {} lost",
        stats.acquired,
        stats.wait_time.mean(),
        stats.contended,
        stats.unavailable,
        stats.lost
    );
    drop(exporter);
    nodes.shutdown(Duration::from_secs(5));
    drop(own);
    Ok(())
}

/// Takes one lock after the other, and holds each for a moment.
#[expect(
    clippy::disallowed_methods,
    reason = "it stands for work that takes time"
)]
fn work(locker: &RedisLocker, number: usize, end: Instant) {
    let options = LockOptions::new(Duration::from_secs(10)).wait_for(Duration::from_millis(50));
    while Instant::now() < end {
        let key = format!("account-{}", fastrand::usize(..4));
        match locker.try_acquire(&key, &options) {
            Ok(Some(_guard)) => thread::sleep(Duration::from_millis(fastrand::u64(1..20))),
            Ok(None) => {} // counted as contended
            Err(error) => {
                eprintln!("thread {number}: {error}");
                thread::sleep(Duration::from_millis(200));
            }
        }
    }
}
