//! Exports the metrics of locks under load to Prometheus.
//!
//! `cargo run --release --example metrics [-- --redis URL,URL,…] [--for 60s] [--listen 127.0.0.1:9184]`
//! and in another terminal `curl http://127.0.0.1:9184/metrics`.
//!
//! Counters are read from [`Nodes::stats`](redguard::Nodes::stats) at each scrape. An
//! [`Observer`](redguard::Observer) fills the histograms of wait, hold and reply times.
//! Exit statuses are those of `common/exit_status.rs`.
#![expect(clippy::print_stdout, reason = "an example is there to be read")]

#[path = "common/exit_status.rs"]
mod exit_status;
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

/// Lets eight threads share four locks and serves their metrics to Prometheus on loopback
///
/// Without --redis it starts three temporary nodes; redis-server must be on the PATH.
///
/// Exit status: 0, 64 for bad usage, 69 without a quorum of the nodes, 77 if they deny access,
/// else 70.
#[derive(Parser)]
#[command(name = "metrics", verbatim_doc_comment)]
struct Cli {
    /// Addresses of the nodes
    #[arg(long, value_name = "URL,URL,…", value_delimiter = ',')]
    redis: Vec<String>,
    /// Address of the HTTP server; port 0 selects a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9184")]
    listen: SocketAddr,
    /// Running time
    #[arg(long = "for", value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    time: Duration,
}

fn main() -> ExitCode {
    match run(&exit_status::parse::<Cli>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("metrics: {error}");
            ExitCode::from(exit_status::exit_status(&*error))
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
        "{} acquired, mean wait {:?}; {} contended, {} unavailable, {} lost",
        stats.acquired,
        stats.wait_time.mean(),
        stats.contended,
        stats.unavailable,
        stats.lost
    );
    drop(exporter);
    _ = nodes.shutdown(Duration::from_secs(5));
    drop(own);
    Ok(())
}

/// Acquires one lock after the other and holds each for up to 20 ms.
#[expect(clippy::disallowed_methods, reason = "the sleep stands for work")]
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
