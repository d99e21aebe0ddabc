//! Small programs with known bugs, which the runtime finds, and without, in which it finds none.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::api::locker::Locker;
use crate::api::nodes::Nodes;
use crate::api::redis_locker::RedisLocker;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::channel;
use crate::sync::channel::RecvTimeoutError;
use crate::sync::primitives::{Condvar, Mutex, MutexGuard};
use crate::sync::threads;
use crate::sync::threads::JoinHandle;
use crate::tests::fake_node::node as fake_node;
use crate::tests::fake_node::node::FakeNode;
use crate::tests::simulation::runtime::config::Config;
use crate::tests::simulation::runtime::failure::Failure;
use crate::tests::simulation::runtime::history::Outcome;
use crate::tests::simulation::runtime::simulation::Simulation;
use crate::tests::simulation::runtime::strategy::StrategyKind;
use crate::tests::simulation::runtime::thread::{Builder, sleep};
use crate::tests::simulation::runtime::trace::TraceLevel;
use crate::time::clock;

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn run<T: Send + 'static>(seed: u64, main: fn(Simulation) -> T) -> Outcome<T> {
    Simulation::run(seed, &Config::draw(seed), main)
}

/// Runs histories of the seeds from 0 on. Returns the first failure with its seed.
fn first_failure(seeds: u64, main: fn(Simulation)) -> Option<(u64, Failure)> {
    (0..seeds).find_map(|seed| {
        let outcome = run(seed, main);
        outcome.result.err().map(|failure| (seed, failure))
    })
}

fn assert_always_succeeds(main: fn(Simulation)) {
    assert_eq!(first_failure(2_000, main), None);
}

/// A flag with the threads that wait for it.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

fn open_a_gate(sim: Simulation, open: fn(&Gate)) {
    let gate = Arc::new(Gate::default());
    let process = sim.process("a");
    let waiting = [1, 2].map(|n| {
        let gate = Arc::clone(&gate);
        process.spawn(&format!("waiter {n}"), move || {
            let mut is_open = gate.open.lock();
            while !*is_open {
                gate.opened.wait(&mut is_open);
            }
        })
    });
    open(&gate);
    waiting
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
}

#[test]
fn lost_wake_up_is_found_and_told_with_its_place() {
    let failure = first_failure(500, |sim| {
        open_a_gate(sim, |gate| {
            *gate.open.lock() = true;
            gate.opened.notify_one(); // of two
        });
    });
    let Some((_, Failure::Deadlock(waits))) = failure else {
        panic!("{failure:?}");
    };
    let place = "a/waiter 1: waits for a condition";
    let other = place.replace('1', "2");
    assert!(waits.contains(place) || waits.contains(&other), "{waits}");
    assert!(waits.contains("main/main: joins a thread"), "{waits}");
    assert!(waits.contains("runtime/tests.rs"), "{waits}");
}

#[test]
fn condition_that_wakes_all_waiters_is_never_stuck() {
    assert_always_succeeds(|sim| {
        open_a_gate(sim, |gate| {
            *gate.open.lock() = true;
            gate.opened.notify_all();
        });
    });
}

#[test]
fn locks_in_reverse_order_are_found_as_a_deadlock() {
    let failure = first_failure(500, |sim| {
        let locks = Arc::new([Mutex::new(()), Mutex::new(())]);
        let threads = [(0, 1), (1, 0)].map(|(first, second)| {
            let locks = Arc::clone(&locks);
            sim.current().spawn("locker", move || {
                let first = locks[first].lock();
                let second = locks[second].lock();
                drop((first, second));
            })
        });
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    });
    let Some((_, Failure::Deadlock(waits))) = failure else {
        panic!("{failure:?}");
    };
    assert_eq!(waits.matches("locks a mutex").count(), 2, "{waits}");
}

#[test]
fn read_and_write_of_an_atomic_lose_an_update_and_one_operation_does_not() {
    fn count(sim: Simulation, add: fn(&AtomicU64)) {
        let counter = Arc::new(AtomicU64::new(0));
        let threads = [(); 3].map(|()| {
            let counter = Arc::clone(&counter);
            sim.current().spawn("adder", move || add(&counter))
        });
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        assert_eq!(counter.load(Ordering::SeqCst), 3);
    }
    let failure = first_failure(500, |sim| {
        count(sim, |counter| {
            let read = counter.load(Ordering::SeqCst);
            counter.store(read + 1, Ordering::SeqCst);
        });
    });
    assert!(
        matches!(failure, Some((_, Failure::Panicked { .. }))),
        "{failure:?}"
    );
    assert_always_succeeds(|sim| {
        count(sim, |counter| _ = counter.fetch_add(1, Ordering::SeqCst));
    });
}

/// Fails only if thread b runs between two given steps of a, and c between two given steps of b.
fn bug_of_depth_3(sim: Simulation) {
    let state: Arc<[AtomicU64; 3]> = Arc::default();
    let pass = |state: &[AtomicU64; 3]| (0..4).for_each(|_| _ = state[2].load(Ordering::SeqCst));
    let own = Arc::clone(&state);
    let a = sim.current().spawn("a", move || {
        pass(&own);
        own[0].store(1, Ordering::SeqCst);
        own[0].store(2, Ordering::SeqCst);
        pass(&own);
    });
    let own = Arc::clone(&state);
    let b = sim.current().spawn("b", move || {
        pass(&own);
        let between = own[0].load(Ordering::SeqCst) == 1;
        own[1].store(u64::from(between), Ordering::SeqCst);
        own[1].store(0, Ordering::SeqCst);
        pass(&own);
    });
    let own = Arc::clone(&state);
    let c = sim.current().spawn("c", move || {
        pass(&own);
        assert_eq!(
            own[1].load(Ordering::SeqCst),
            0,
            "between the steps of both"
        );
        pass(&own);
    });
    [a, b, c].into_iter().for_each(|thread| _ = thread.join());
}

#[test]
fn pct_finds_a_bug_of_depth_3() {
    let strategy = StrategyKind::Pct {
        depth: 3,
        steps: 60,
    };
    let finds = |seed: &u64| {
        let config = Config {
            strategy,
            ..Config::draw(*seed)
        };
        Simulation::run(*seed, &config, bug_of_depth_3)
            .result
            .is_err()
    };
    let found = (0..20_000).filter(finds).count();
    assert!(found > 0, "not found");
}

/// Threads of two processes that sleep, send, lock and draw in some order.
fn busy(sim: Simulation) -> Vec<u64> {
    let (sender, receiver) = channel::unbounded();
    for name in ["a", "b"] {
        let process = sim.process(name);
        for n in 0..3 {
            let sender = sender.clone();
            process.spawn(&format!("{n}"), move || {
                for _ in 0..20 {
                    let drawn = crate::random::below(1000) as u64;
                    sleep(Duration::from_micros(drawn));
                    let maps: crate::random::HashMap<u64, ()> = (0..9).map(|n| (n, ())).collect();
                    sim.note(|| format!("{drawn} {:?}", maps.keys()));
                    let _ = sender.send(drawn);
                }
            });
        }
    }
    drop(sender);
    std::iter::from_fn(|| receiver.recv().ok()).collect()
}

#[test]
fn history_of_a_seed_is_the_same_to_the_letter() {
    let mut fingerprints = BTreeSet::new();
    for seed in 0..50 {
        let config = Config {
            trace: TraceLevel::Waits,
            ..Config::draw(seed)
        };
        let [one, other] = [(); 2].map(|()| Simulation::run(seed, &config, busy));
        assert!(one.trace.len() > 100, "{:?}", one.trace);
        assert_eq!(one.trace, other.trace, "seed {seed}");
        assert_eq!(
            (one.fingerprint, one.steps),
            (other.fingerprint, other.steps)
        );
        assert_eq!(one.result, other.result);
        assert_eq!(
            run(seed, busy).fingerprint,
            one.fingerprint,
            "without a trace"
        );
        fingerprints.insert(one.fingerprint);
    }
    assert_eq!(fingerprints.len(), 50, "seeds with equal histories");
}

fn real_thread<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    Builder::new().spawn(body).unwrap()
}

#[test]
fn histories_on_several_threads_are_those_on_one() {
    let fingerprints = || {
        (0..20)
            .map(|seed| run(seed, busy).fingerprint)
            .collect::<Vec<_>>()
    };
    let threads = [(); 3].map(|()| real_thread(fingerprints));
    let expected = fingerprints();
    assert!(
        threads
            .into_iter()
            .all(|thread| thread.join().unwrap() == expected)
    );
}

#[test]
fn sleep_takes_simulated_time_by_the_clock_of_the_process() {
    let outcome = run(1, |sim| {
        let fast = sim.process("fast");
        fast.set_drift(100_000); // a tenth
        let thread = fast.spawn("sleeper", move || {
            let (start, wall) = (clock::now(), clock::unix_time());
            sleep(Duration::from_secs(110));
            let (took, by_wall) = (clock::now() - start, clock::unix_time() - wall);
            assert!(took >= Duration::from_secs(110), "{took:?}");
            assert!(took < Duration::from_millis(110_010), "{took:?}");
            assert!(by_wall < Duration::from_millis(110_010), "{by_wall:?}");
        });
        thread.join().unwrap();
        sim.now()
    });
    let took = outcome.result.unwrap();
    assert!(took > ms(99_990) && took < ms(100_010), "{took:?}");
}

#[test]
fn loop_that_waits_for_the_clock_or_yields_ends() {
    assert_always_succeeds(|sim| {
        let done = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&done);
        let thread = sim
            .current()
            .spawn("setter", move || flag.store(true, Ordering::SeqCst));
        let end = clock::now() + ms(1);
        while clock::now() < end {
            threads::yield_now();
        }
        while !done.load(Ordering::SeqCst) {
            threads::yield_now();
        }
        thread.join().unwrap();
    });
}

#[test]
fn paused_process_stands_and_its_clocks_go_on() {
    assert_always_succeeds(|sim| {
        let process = sim.process("a");
        let began = sim.now();
        let (sender, started) = channel::unbounded();
        let thread = process.spawn("sleeper", move || {
            let start = clock::now();
            sender.send(()).unwrap();
            sleep(ms(5));
            (sim.now() - began, clock::now() - start)
        });
        started.recv().unwrap();
        sim.after(ms(2), move || process.pause());
        sim.after(ms(50), move || process.resume());
        let (at, took) = thread.join().unwrap();
        assert!(at >= ms(50) && took >= ms(49), "{at:?} {took:?}");
    });
}

#[test]
fn suspended_process_sleeps_on_by_its_steady_clock() {
    assert_always_succeeds(|sim| {
        let process = sim.process("a");
        let (sender, started) = channel::unbounded();
        let thread = process.spawn("sleeper", move || {
            let offset = clock::wall_offset();
            sender.send(()).unwrap();
            sleep(ms(5));
            let stepped = 3_600_000_000;
            (sim.now(), clock::wall_offset() + stepped - offset)
        });
        started.recv().unwrap();
        process.step_wall(-3_600_000);
        sim.after(ms(2), move || process.suspend());
        sim.after(ms(50), move || process.resume());
        let (at, suspended) = thread.join().unwrap();
        assert!(at >= ms(53), "{at:?}");
        assert!((47_000..49_000).contains(&suspended), "{suspended}");
    });
}

#[test]
fn killed_process_never_runs_again_and_its_threads_end_after_the_history() {
    assert_always_succeeds(|sim| {
        let process = sim.process("a");
        let ran = Arc::new(AtomicU64::new(0));
        let own = Arc::clone(&ran);
        process.spawn("sleeper", move || {
            while !sim.is_over() {
                own.fetch_add(1, Ordering::SeqCst);
                sleep(ms(1));
            }
        });
        sleep(ms(10));
        process.kill();
        process.resume();
        let before = ran.load(Ordering::SeqCst);
        sleep(ms(100));
        assert_eq!(ran.load(Ordering::SeqCst), before);
        assert_eq!(process.live_threads(), ["sleeper"]);
    });
}

#[test]
fn channel_keeps_the_order_and_ends_with_its_last_sender() {
    assert_always_succeeds(|sim| {
        let (sender, receiver) = channel::unbounded();
        let end = clock::now() + ms(5);
        assert_eq!(receiver.recv_deadline(end), Err(RecvTimeoutError::Timeout));
        assert!(clock::now() >= end);
        let thread = sim.current().spawn("sender", move || {
            (0..10).for_each(|n| sender.send(n).unwrap());
        });
        let received: Vec<i32> = std::iter::from_fn(|| receiver.recv().ok()).collect();
        assert_eq!(received, (0..10).collect::<Vec<_>>());
        let ended = receiver.recv_timeout(ms(1000));
        assert_eq!(ended, Err(RecvTimeoutError::Disconnected));
        thread.join().unwrap();
    });
}

#[test]
fn mutex_unlocked_for_a_while_is_locked_again() {
    assert_always_succeeds(|sim| {
        let turns = Arc::new(Mutex::new(0));
        let mut guard = turns.lock();
        let own = Arc::clone(&turns);
        let thread = sim.current().spawn("other", move || *own.lock() += 1);
        assert!(turns.try_lock().is_none());
        MutexGuard::unlocked(&mut guard, || thread.join().unwrap());
        assert!(turns.try_lock().is_none() && *guard == 1);
    });
}

#[test]
fn panic_is_told_with_its_thread_unless_it_is_caught() {
    let outcome = run(3, |sim| {
        let process = sim.process("a");
        let caught = process.spawn("careful", || threads::catch("test", || panic!("caught")));
        assert!(caught.join().unwrap().is_none());
        process.spawn("careless", || panic!("not caught"));
        sleep(ms(1));
    });
    let expected = Failure::Panicked {
        fiber: "a/careless".to_owned(),
        message: "not caught".to_owned(),
    };
    assert_eq!(outcome.result, Err(expected));
    assert_eq!(outcome.left, None);
}

#[test]
fn broken_rule_ends_the_history_with_its_first_failure() {
    let config = Config {
        trace: TraceLevel::Notes,
        ..Config::draw(1)
    };
    let outcome = Simulation::run(1, &config, |sim: Simulation| {
        let process = sim.process("a");
        process.spawn("loop", move || {
            while !sim.is_over() {
                sleep(ms(1));
            }
        });
        sleep(ms(10));
        process.kill();
        sim.fail("the first rule");
        sim.fail("the second rule");
    });
    assert_eq!(
        outcome.result,
        Err(Failure::Broken("the first rule".to_owned()))
    );
    assert_eq!(outcome.left, None);
    let told = |text: &str| outcome.trace.iter().any(|line| line.ends_with(text));
    assert!(
        told("a: Killed") && told("the first rule"),
        "{:?}",
        outcome.trace
    );
}

#[test]
fn streams_of_one_seed_differ_and_those_of_one_number_are_equal() {
    let outcome = run(1, |sim: Simulation| {
        let drawn = |stream| {
            let mut random = sim.random(stream);
            (0..8).map(|_| random.next()).collect::<Vec<_>>()
        };
        assert_eq!(drawn(1), drawn(1));
        assert!(drawn(1).iter().all(|number| !drawn(2).contains(number)));
    });
    assert_eq!(outcome.result, Ok(()));
}

#[test]
fn history_that_does_not_end_fails_at_a_limit() {
    let config = Config {
        max_steps: 10_000,
        max_time: ms(100),
        ..Config::draw(1)
    };
    let busy = Simulation::run(1, &config, |sim: Simulation| {
        while !sim.is_over() {
            _ = clock::now();
        }
    });
    assert!(
        matches!(busy.result, Err(Failure::OutOfSteps(_))),
        "{busy:?}"
    );
    let idle = Simulation::run(1, &config, |sim: Simulation| {
        while !sim.is_over() {
            sleep(ms(30));
        }
    });
    assert!(
        matches!(idle.result, Err(Failure::OutOfTime(_))),
        "{idle:?}"
    );
    assert_eq!((busy.left, idle.left), (None, None));
}

/// Threads of one process share three fake nodes, which reply at once.
fn lock_in_turn(sim: Simulation) {
    let fakes = FakeNode::fakes(3);
    let settings = fake_node::settings(|config| config);
    let configs: Vec<_> = fakes
        .iter()
        .map(|fake| fake.node_config(&settings))
        .collect();
    let process = sim.process("a");
    let connected = process.spawn("connect", move || Nodes::start(settings, &configs).unwrap());
    let nodes = connected.join().unwrap();
    let inside = Arc::new(AtomicU64::new(0));
    let callers = [1, 2, 3].map(|n| {
        let (nodes, inside) = (nodes.clone(), Arc::clone(&inside));
        process.spawn(&format!("caller {n}"), move || {
            for _ in 0..3 {
                let locker = RedisLocker::new(&nodes);
                let guard = locker.lock("x", Duration::from_secs(30)).unwrap();
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two at once");
                inside.fetch_sub(1, Ordering::SeqCst);
                guard.release().unwrap();
            }
        })
    });
    callers
        .into_iter()
        .for_each(|caller| caller.join().unwrap());
    let shutdown = process.spawn("shutdown", move || nodes.shutdown(Duration::from_secs(5)));
    assert!(shutdown.join().unwrap());
    assert!(
        process.live_threads().is_empty(),
        "{:?}",
        process.live_threads()
    );
    assert!(fakes.iter().all(|fake| fake.token("x").is_none()));
}

#[test]
fn shipped_code_locks_in_turn_and_ends_all_its_threads() {
    assert_eq!(first_failure(200, lock_in_turn), None);
    let [one, other] = [(); 2].map(|()| run(5, lock_in_turn));
    assert_eq!((one.fingerprint, one.time), (other.fingerprint, other.time));
}

#[test]
#[ignore = "measures"]
#[expect(clippy::disallowed_methods, reason = "measures real time")]
fn rate() {
    let start = std::time::Instant::now();
    let n: u64 = std::env::var("N").map_or(2000, |n| n.parse().unwrap());
    let mut steps = 0;
    for seed in 0..n {
        let outcome = run(seed, lock_in_turn);
        outcome.result.unwrap();
        steps += outcome.steps;
    }
    let took = start.elapsed();
    eprintln!(
        "{n} histories, {} steps each, {:?} each, {:?} per step",
        steps / n,
        took / n as u32,
        took / steps as u32
    );
}
