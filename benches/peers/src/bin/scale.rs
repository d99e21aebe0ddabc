//! How the cost of a lock grows with threads, held keys, waiters of one key, and nodes:
//! `benches/scale`. Writes `benches/scale.csv` and `benches/scale.svg`.
//!
//! The cost is processor time of this process per lock, without the servers, because it depends
//! less on other programs than the time that passes. Each value is the median of three turns.
#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock and makes threads"
)]

use std::error::Error;
use std::fmt::Write;
use std::time::Duration;
use std::{fs, io, thread};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use plotters::coord::Shift;
use plotters::prelude::*;
use redguard::{Config, LockGuard, Locker, RedisLocker};
use redguard_servers::Server;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;
type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const TTL: Duration = Duration::from_secs(300);
const TURNS: usize = 3;
/// Number of nodes where that is not the measured quantity.
const NODES: usize = 3;

/// A measured quantity: its name, its values, and the measurement at one of them, in µs per lock.
struct Series {
    name: &'static str,
    values: &'static [usize],
    measure: fn(&[Server], usize) -> Result<f64>,
}

const ALL: [Series; 4] = [
    Series {
        name: "threads, own keys, 3 nodes",
        values: &[1, 4, 16, 64, 256, 1_000],
        measure: |servers, threads| pairs(&locker(&servers[..NODES])?, threads, 6_000),
    },
    Series {
        name: "keys held meanwhile, 1 thread, 3 nodes",
        values: &[1, 100, 1_000, 10_000, 100_000],
        measure: |servers, keys| {
            let locker = locker(&servers[..NODES])?;
            let held = hold(&locker, keys)?;
            let cost = pairs(&locker, 1, 3_000);
            drop(held);
            cost
        },
    },
    Series {
        name: "threads that wait for one key, 3 nodes",
        values: &[1, 10, 100, 1_000],
        measure: |servers, waiters| waiting(&locker(&servers[..NODES])?, waiters),
    },
    Series {
        name: "nodes, 1 thread",
        values: &[1, 3, 5, 7, 9],
        measure: |servers, nodes| pairs(&locker(&servers[..nodes])?, 1, 3_000),
    },
];

fn main() -> Result<()> {
    let servers: Vec<Server> = (0..9).map(|_| Server::start()).collect::<io::Result<_>>()?;
    let mut measured = Vec::new();
    let mut csv = String::from("series,value,µs per lock\n");
    for series in &ALL {
        let mut points = Vec::new();
        for &value in series.values {
            let turns = (0..TURNS).map(|_| (series.measure)(&servers, value));
            let mut turns = turns.collect::<Result<Vec<f64>>>()?;
            turns.sort_unstable_by(f64::total_cmp);
            let cost = turns[TURNS / 2];
            writeln!(csv, "\"{}\",{value},{cost:.1}", series.name)?;
            points.push((value as f64, cost));
        }
        measured.push((series.name, points));
    }
    io::Write::write_all(&mut io::stdout(), csv.as_bytes())?;
    fs::write("benches/scale.csv", &csv)?;
    fs::write("benches/scale.svg", svg(&measured)?)?;
    Ok(())
}

fn locker(servers: &[Server]) -> Result<RedisLocker> {
    let urls: Vec<String> = servers.iter().map(Server::url).collect();
    Ok(RedisLocker::connect(Config::new(urls))?)
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
    let before = used()?;
    in_threads(threads, |thread| run(thread, each))?;
    Ok((used()? - before) / (each * threads) as f64)
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

fn in_threads(threads: usize, run: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let run = &run;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|thread| scope.spawn(move || run(thread)))
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| "a thread panicked")?)
    })
}

/// Draws a chart for each series, with logarithmic scales.
fn svg(measured: &[(&str, Vec<(f64, f64)>)]) -> Result<String> {
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, (1100, 640)).into_drawing_area();
        root.fill(&WHITE)?;
        for (area, (name, points)) in root.split_evenly((2, 2)).iter().zip(measured) {
            chart(area, name, points)?;
        }
        root.present()?;
    }
    Ok(text)
}

fn chart(area: &Area<'_>, name: &str, points: &[(f64, f64)]) -> Result<()> {
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
        .caption(name, ("sans-serif", 16))
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
        .y_desc("µs of processor time per lock")
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
