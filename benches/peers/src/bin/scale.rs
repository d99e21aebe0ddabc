//! How the cost of a lock grows with threads, held keys, waiters of one key, and nodes:
//! `benches/scale`. Writes `benches/scale.csv` and `benches/scale.svg`.
//!
//! The cost is processor time of this process per lock, without the servers, because it depends
//! less on other programs than the time that passes; for held keys also memory. Each value
//! is the median of three turns, or one turn once the run has taken [`LONG`]. With `--short`, one
//! turn of the small values shows that it runs.
#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock and makes threads"
)]

#[path = "../../../locks/alloc_counter.rs"]
mod alloc_counter;

use std::error::Error;
use std::fmt::Write;
use std::sync::Barrier;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use clap::Parser;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use plotters::coord::Shift;
use plotters::prelude::*;
use redguard::{Config, LockGuard, Locker, RedisLocker};
use redguard_servers::Server;

#[global_allocator]
static HEAP: alloc_counter::Counting = alloc_counter::Counting;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const TTL: Duration = Duration::from_secs(300);
const TURNS: usize = 3;
/// The time after which a value is measured once, which bounds the run.
const LONG: Duration = Duration::from_secs(180);
/// The largest value of a short run.
const SHORT: usize = 1_000;
/// Number of nodes where that is not the measured quantity.
const NODES: usize = 3;

/// A measured quantity: its name, its unit, its values, and the measurement at one of them.
struct Series {
    name: &'static str,
    unit: &'static str,
    values: &'static [usize],
    measure: fn(&[Server], usize) -> Result<f64>,
}

const COST: &str = "µs of processor time per lock";

#[derive(Parser)]
#[command(about = "How the cost of a lock grows")]
struct Args {
    /// One turn of the small values: shows that it runs
    #[arg(long)]
    short: bool,
    /// Only the series whose name contains this; writes no file
    #[arg(long)]
    only: Option<String>,
}

const ALL: [Series; 5] = [
    Series {
        name: "threads, own keys, 3 nodes",
        unit: COST,
        values: &[1, 4, 16, 64, 256, 1_000],
        measure: |servers, threads| pairs(&locker(&servers[..NODES])?, threads, 6_000),
    },
    Series {
        name: "keys held meanwhile, 1 thread, 3 nodes",
        unit: COST,
        values: &[1, 100, 1_000, 10_000, 100_000],
        measure: |servers, keys| {
            let locker = locker(&servers[..NODES])?;
            let held = hold(&locker, keys)?;
            let cost = pairs(&locker, 1, 3_000);
            release(held);
            cost
        },
    },
    Series {
        name: "keys held at once, 3 nodes",
        unit: "bytes of heap per key",
        values: &[1_000, 10_000, 100_000, 300_000],
        measure: |servers, keys| {
            let locker = locker(&servers[..NODES])?;
            release(hold(&locker, SHORT)?);
            alloc_counter::begin();
            let held = hold(&locker, keys);
            let (grown, _) = alloc_counter::read();
            alloc_counter::end();
            release(held?);
            Ok(grown as f64 / keys as f64)
        },
    },
    Series {
        name: "threads that wait for one key, 3 nodes",
        unit: COST,
        values: &[1, 10, 100, 1_000, 4_000],
        measure: |servers, waiters| waiting(&locker(&servers[..NODES])?, waiters),
    },
    Series {
        name: "nodes, 1 thread",
        unit: COST,
        values: &[1, 3, 5, 7, 9],
        measure: |servers, nodes| pairs(&locker(&servers[..nodes])?, 1, 3_000),
    },
];

fn main() -> Result<()> {
    let (args, began) = (Args::parse(), Instant::now());
    let servers: Vec<Server> = (0..9).map(|_| Server::start()).collect::<io::Result<_>>()?;
    let mut measured = Vec::new();
    let mut csv = String::from("series,unit,value,measured\n");
    let is_chosen = |series: &&Series| {
        let only = args.only.as_ref();
        only.is_none_or(|only| series.name.contains(only))
    };
    for series in ALL.iter().filter(is_chosen) {
        let mut points = Vec::new();
        let is_small = |value: &&usize| !args.short || **value <= SHORT;
        for &value in series.values.iter().filter(is_small) {
            let is_long = args.short || began.elapsed() > LONG;
            let turns = if is_long { 1 } else { TURNS };
            let turns = (0..turns).map(|_| (series.measure)(&servers, value));
            let mut turns = turns.collect::<Result<Vec<f64>>>()?;
            turns.sort_unstable_by(f64::total_cmp);
            let middle = turns[turns.len() / 2];
            let (name, unit) = (series.name, series.unit);
            writeln!(csv, "\"{name}\",{unit},{value},{middle:.1}")?;
            eprintln!("{name}: {value}: {middle:.1} {unit}");
            points.push((value as f64, middle));
        }
        measured.push((series, points));
    }
    io::Write::write_all(&mut io::stdout(), csv.as_bytes())?;
    if !args.short && args.only.is_none() {
        fs::write("benches/scale.csv", &csv)?;
        fs::write("benches/scale.svg", svg(&measured)?)?;
    }
    Ok(())
}

fn locker(servers: &[Server]) -> Result<RedisLocker> {
    let urls: Vec<String> = servers.iter().map(Server::url).collect();
    // A busy machine is slow, which does not matter here.
    let limit = Duration::from_secs(10);
    let config = Config::new(urls).connect_timeout(limit);
    Ok(RedisLocker::connect(config.node_timeout(limit))?)
}

/// Returns the processor time that this process has used, in µs.
fn used() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let used = usage.user_time() + usage.system_time();
    Ok(used.num_microseconds() as f64)
}

/// Runs `count` pairs of lock and release in all, on a key per thread.
fn pairs(locker: &RedisLocker, threads: usize, count: usize) -> Result<f64> {
    let each = count.div_ceil(threads);
    let run = |thread: usize, count: usize| -> Result<()> {
        let key = format!("own-{thread}");
        (0..count).try_for_each(|_| Ok(locker.lock(&key, TTL)?.release()?))
    };
    run(0, 200)?;
    // The threads start and end outside of the measured time.
    let barrier = &Barrier::new(threads + 1);
    let (used, ended) = thread::scope(|scope| {
        let start = |thread| {
            scope.spawn(move || {
                barrier.wait();
                let ended = run(thread, each);
                barrier.wait();
                barrier.wait();
                ended
            })
        };
        let all: Vec<_> = (0..threads).map(start).collect();
        let before = used();
        barrier.wait();
        barrier.wait();
        let after = used();
        barrier.wait();
        let ended = all
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?);
        (after.and_then(|after| Ok(after - before?)), ended)
    });
    ended?;
    Ok(used? / (each * threads) as f64)
}

/// Holds this number of keys, acquired by some threads.
fn hold(locker: &RedisLocker, keys: usize) -> Result<Vec<Vec<LockGuard>>> {
    const THREADS: usize = 16;
    let held: Vec<Result<Vec<LockGuard>>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || {
                    let own = (thread..keys).step_by(THREADS);
                    own.map(|key| Ok(locker.lock(&format!("held-{key}"), TTL)?))
                        .collect()
                })
            })
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread
                .join()
                .unwrap_or_else(|_| Err("a thread panicked".into()))
        };
        threads.into_iter().map(join).collect()
    });
    held.into_iter().collect()
}

/// Drops the guards by as many threads as acquired them.
fn release(held: Vec<Vec<LockGuard>>) {
    thread::scope(|scope| {
        for guards in held {
            scope.spawn(|| drop(guards));
        }
    });
}

/// Lets this number of threads wait for one key, and each of them hold it once.
fn waiting(locker: &RedisLocker, waiters: usize) -> Result<f64> {
    let held = locker.lock("shared", TTL)?;
    let (sender, queued) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..waiters)
            .map(|_| {
                let sender = sender.clone();
                scope.spawn(move || -> Result<()> {
                    sender.send(())?;
                    Ok(locker.lock("shared", TTL)?.release()?)
                })
            })
            .collect();
        (0..waiters).try_for_each(|_| queued.recv())?;
        // The last threads to begin queue within this time; a later one would only wait less.
        thread::sleep(Duration::from_millis(200));
        let before = used()?;
        held.release()?;
        for thread in threads {
            thread.join().map_err(|_| "a thread panicked")??;
        }
        Ok((used()? - before) / waiters as f64)
    })
}

/// Draws a chart for each series, with logarithmic scales.
fn svg(measured: &[(&Series, Vec<(f64, f64)>)]) -> Result<String> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (1650, 640)).into_drawing_area();
        root.fill(&WHITE)?;
        for (area, (series, points)) in root.split_evenly((2, 3)).iter().zip(measured) {
            chart(area, series, points)?;
        }
        root.present()?;
    }
    Ok(text)
}

fn chart(area: &Area<'_>, series: &Series, points: &[(f64, f64)]) -> Result<()> {
    let ends = |value: fn(&(f64, f64)) -> f64| {
        let values = || points.iter().map(value);
        (
            values().fold(f64::INFINITY, f64::min),
            values().fold(0.0, f64::max),
        )
    };
    let (x, y) = (ends(|point| point.0), ends(|point| point.1));
    let marks: Vec<f64> = points.iter().map(|point| point.0).collect();
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .caption(series.name, ("sans-serif", 16))
        .x_label_area_size(30)
        .y_label_area_size(60)
        .build_cartesian_2d(
            (x.0 * 0.8..x.1 * 1.25).log_scale().with_key_points(marks),
            0.0..y.1 * 1.2,
        )?;
    chart
        .configure_mesh()
        .max_light_lines(0)
        .bold_line_style(BLACK.mix(0.12))
        .y_desc(series.unit)
        .x_label_formatter(&|value| format!("{value:.0}"))
        .y_label_formatter(&|value| format!("{value:.0}"))
        .draw()?;
    chart.draw_series(LineSeries::new(
        points.iter().copied(),
        BLACK.stroke_width(2),
    ))?;
    let dots = points
        .iter()
        .map(|point| Circle::new(*point, 3, BLACK.filled()));
    chart.draw_series(dots)?;
    Ok(())
}
