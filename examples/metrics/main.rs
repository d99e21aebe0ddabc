//! Exports the metrics of locks under load to Prometheus.
//!
//! `cargo run --release --package redguard-metrics [-- --redis URL,URL,…] [--for 60s] [--listen
//! 127.0.0.1:9184]` and in another terminal `curl http://127.0.0.1:9184/metrics`.
//!
//! Counters are read from [`Nodes::stats`](redguard::Nodes::stats) at each scrape. An
//! [`Observer`](redguard::Observer) fills the histograms of wait, hold and reply times.
#![expect(clippy::print_stdout, reason = "an example is there to be read")]

use lexopt::{Arg, Parser, ValueExt};
use redguard::{Config, LockOptions, Locker, Nodes, RedisLocker};
use redguard_examples::{args, exit_status};
use redguard_metrics::{Exporter, Histograms};
use redguard_servers::Server;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

const HELP: &str = "
Lets eight threads share four locks and serves their metrics to Prometheus on loopback

Usage: metrics [OPTIONS]

  --redis URL,URL,…  Addresses of the nodes; without it, three temporary ones (redis-server is on the PATH)
  --listen ADDRESS   Address of the HTTP server; port 0 selects a free port [default: 127.0.0.1:9184]
  --for TIME         Running time [default: 60s]
  -h, --help         Shows this help

Exit status: 0, 64 for bad usage, 69 without a quorum of the nodes, 77 if they deny access, else 70.
";

struct Cli {
    redis: Vec<String>,
    listen: SocketAddr,
    time: Duration,
}

impl Cli {
    fn read(parser: &mut Parser) -> Result<Option<Cli>, lexopt::Error> {
        let mut cli = Cli {
            redis: Vec::new(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9184)),
            time: Duration::from_secs(60),
        };
        while let Some(arg) = parser.next()? {
            match arg {
                Arg::Long("redis") => cli.redis = args::addresses(parser)?,
                Arg::Long("listen") => cli.listen = parser.value()?.parse()?,
                Arg::Long("for") => cli.time = args::duration(parser)?,
                Arg::Long("help") | Arg::Short('h') => return Ok(None),
                other => return Err(other.unexpected()),
            }
        }
        Ok(Some(cli))
    }
}

fn main() -> ExitCode {
    match run(&args::parse("metrics", HELP, Cli::read)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit_status::fail("metrics", &*error),
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
