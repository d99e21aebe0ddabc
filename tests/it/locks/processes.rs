//! Several processes: holders that are killed, exit or fork, and groups that share a lock while
//! nodes fail and come back.

use std::io::Write;
use std::process::abort;
use std::{fs, io, process, thread};

use log::LevelFilter;
use nix::libc;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, alarm, fork};
use redguard::{
    CancelToken, Error, LocalRwLocker, LockGuard, LockOptions, Locker, RedisLocker, RetryPolicy,
    RwLocker, WriteGuard,
};

use crate::support::child_process::{BRIEF, HUNG, Part, Program, is_listened_to, scratch};
use crate::support::fixtures::{
    LIMIT, TTL, acquire_lock, at, config, connect, holder, now, nowhere, pttl, token,
    with_short_timeouts,
};
use crate::support::log_capture::{Level, captured_log};
use crate::support::servers::Server;
use crate::support::witness::Journal;
use crate::support::{eventually, servers, unique_key};

// A holder that is killed.

#[test]
fn part_that_holds_until_it_is_killed() {
    let Some(part) = Part::mine() else { return };
    let locker = part.locker();
    let _guard = locker.lock(&part.key, BRIEF).unwrap();
    part.tell();
    thread::park_timeout(4 * LIMIT);
}

#[test]
fn lock_of_a_killed_process_is_free_after_its_ttl() {
    let nodes = servers(3);
    let key = unique_key("killed");
    let (_dir, told) = scratch();
    let policy = RetryPolicy {
        initial_delay: 4 * LIMIT,
        max_delay: 4 * LIMIT,
        jitter: 0.0,
        ..with_short_timeouts()
    };
    let locker = RedisLocker::connect(config(&nodes).retry(policy)).unwrap();
    let program = Program::playing(
        module_path!(),
        "part_that_holds_until_it_is_killed",
        &nodes,
        &key,
        told.clone(),
    );
    eventually(LIMIT, "the lock is held", || told.exists());
    assert!(locker.try_lock(&key, TTL).unwrap().is_none());
    program.kill();
    let start = now();
    locker.lock(&key, TTL).unwrap().release().unwrap();
    assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
    nowhere(&nodes, &key);
}

// A holder that exits.

#[test]
fn part_that_exits_without_destructors() {
    let Some(part) = Part::mine() else { return };
    let locker = part.locker();
    let _guard = acquire_lock(&locker, &part.key);
    part.tell();
    process::exit(7)
}

#[test]
fn lock_of_an_exiting_process_is_left_to_its_ttl() {
    let nodes = servers(3);
    let key = unique_key("exits");
    let (_dir, told) = scratch();
    let program = Program::playing(
        module_path!(),
        "part_that_exits_without_destructors",
        &nodes,
        &key,
        told.clone(),
    );
    assert_eq!(program.end().code(), Some(7));
    assert!(told.exists());
    // The exit may have skipped the node beyond the quorum.
    assert!(holder(&nodes, &key).is_some());
    let ttl = TTL.as_millis() as i64;
    let ends: Vec<i64> = nodes.iter().map(|node| pttl(node, &key)).collect();
    assert!(
        ends.iter().all(|end| *end == -2 || (1..=ttl).contains(end)),
        "{ends:?}"
    );
    assert!(connect(&nodes).try_lock(&key, TTL).unwrap().is_none());
}

// Groups of processes.

const CROWD: usize = 3;
const THREADS: usize = 4;
const ROUNDS: usize = 50;

#[test]
fn part_of_a_group() {
    let Some(part) = Part::mine() else { return };
    let locker = part.locker();
    let journal = Journal::at(&part.file);
    let patient = LockOptions::new(TTL).wait_for(4 * LIMIT);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for _ in 0..ROUNDS {
                    let _guard = locker.acquire(&part.key, &patient).unwrap();
                    let _entry = journal.enter(&part.key);
                    thread::yield_now();
                }
            });
        }
    });
    part.settle(&locker);
}

/// Runs a group of processes on one key while `disturb` runs, which receives a function that waits
/// for a number of holds.
fn crowd(nodes: &[Server], disturb: impl FnOnce(&dyn Fn(usize))) {
    let key = unique_key("crowd");
    let (_dir, file) = scratch();
    let programs: Vec<Program> = (0..CROWD)
        .map(|_| Program::playing(module_path!(), "part_of_a_group", nodes, &key, file.clone()))
        .collect();
    let lines = || fs::read(&file).map_or(0, |text| text.iter().filter(|b| **b == b'\n').count());
    disturb(&|holds| eventually(4 * LIMIT, "so many holds", || lines() >= holds));
    for program in programs {
        assert!(program.end().success());
    }
    assert_eq!(Journal::at(&file).check(), Ok(CROWD * THREADS * ROUNDS));
    nowhere(nodes, &key);
}

#[test]
fn group_of_processes_does_not_overlap() {
    crowd(&servers(3), |_| ());
}

#[test]
fn group_does_not_overlap_while_a_node_hangs() {
    let nodes = servers(3);
    crowd(&nodes, |reached| {
        reached(100);
        nodes[0].stop().unwrap();
        reached(300);
        nodes[0].resume().unwrap();
    });
}

#[test]
fn group_does_not_overlap_while_a_node_dies_and_comes_back() {
    let start = || Server::options().append_always().start().unwrap();
    let nodes = [(); 3].map(|()| start());
    crowd(&nodes, |reached| {
        reached(100);
        nodes[1].kill();
        reached(300);
        nodes[1].restart().unwrap();
    });
}

// A holder that forks.

#[test]
fn part_that_forks() {
    let Some(part) = Part::mine() else { return };
    // Worker logs are below this level, so no worker can be inside the log at the fork.
    captured_log();
    log::set_max_level(LevelFilter::Warn);
    let slow = at(part.nodes.clone())
        .node_timeout(LIMIT)
        .connect_timeout(LIMIT);
    let locker = RedisLocker::connect(slow).unwrap();
    let named = |name| format!("{}{name}", part.key);
    let guards = ["dropped", "released"].map(|name| acquire_lock(&locker, &named(name)));
    // With all threads that can exist: this lock is renewed and watched, and a caller has waited.
    let cared_for = LockOptions::new(TTL).auto_renew(true).on_lost(|_| abort());
    let cared_for = locker.acquire(&named("cared"), &cared_for).unwrap();
    let others = part.locker();
    let held = acquire_lock(&others, &named("held"));
    wait_in_vain(&locker, &part, held.key());
    let [dropped, released] = guards;
    let guards = [dropped, released, cared_for];
    let local = LocalRwLocker::new().write("local", TTL).unwrap();
    // SAFETY: the child uses this thread's stack and the heap, whose locks the C library keeps
    // intact; it starts no thread, and ends by `_exit` before any code of the test harness could
    // run in it.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            // Ends the child if it hangs.
            alarm::set(2 * LIMIT.as_secs() as u32);
            let code = match in_the_child(locker, guards, local, &part.key) {
                Ok(()) => 0,
                Err(what) => {
                    _ = writeln!(io::stderr(), "in the forked child: {what}");
                    1
                }
            };
            // SAFETY: `_exit` accepts any code and does not return.
            unsafe { libc::_exit(code) }
        }
        ForkResult::Parent { child } => {
            let ended = waitpid(child, None).unwrap();
            assert_eq!(ended, WaitStatus::Exited(child, 0));
            part.tell();
            for guard in guards {
                assert!(guard.is_held());
                guard.extend(2 * TTL).unwrap();
                guard.release().unwrap();
            }
            held.release().unwrap();
            local.extend(TTL).unwrap();
            local.downgrade().unwrap().release().unwrap();
        }
    }
}

/// Waits for a held lock until the listener is subscribed to its release.
fn wait_in_vain(locker: &RedisLocker, part: &Part, key: &str) {
    let token = CancelToken::new();
    let options = LockOptions::new(TTL).cancel_on(&token);
    thread::scope(|scope| {
        let waits = scope.spawn(|| locker.acquire(key, &options).map(drop));
        eventually(LIMIT, "the waiter is subscribed", || {
            is_listened_to(&part.nodes[0], key)
        });
        token.cancel();
        assert_eq!(waits.join().unwrap(), Err(Error::Cancelled));
    });
}

/// Returns failures as errors, because a panic would unwind into a harness whose threads do not
/// exist here.
fn in_the_child(
    locker: RedisLocker,
    guards: [LockGuard; 3],
    local: WriteGuard,
    key: &str,
) -> Result<(), String> {
    let expect = |holds: bool, what: &str| match holds {
        true => Ok(()),
        false => Err(what.to_owned()),
    };
    let [dropped, released, cared_for] = guards;
    let start = now();
    expect(cared_for.extend(TTL).is_err(), "nor this one's extend")?;
    cared_for.stop_renewal();
    _ = cared_for.release();
    drop(dropped);
    let warned = captured_log().lines(Level::Warn, &format!("{key}dropped"));
    expect(warned.len() == 1, &format!("a drop warns: {warned:?}"))?;
    let closed = Some(Error::Closed);
    expect(released.extend(TTL).err() == closed, "extend is Closed")?;
    expect(released.release().err() == closed, "release is Closed")?;
    expect(local.extend(TTL).err() == closed, "local extend is Closed")?;
    expect(
        local.downgrade().err() == closed,
        "local downgrade is Closed",
    )?;
    for key in [key, "new"] {
        expect(locker.lock(key, TTL).err() == closed, "lock is Closed")?;
        expect(
            locker.try_lock(key, TTL).err() == closed,
            "try_lock is Closed",
        )?;
    }
    expect(
        !locker.nodes().shutdown(LIMIT),
        "there is nothing to shut down",
    )?;
    drop(locker);
    expect(start.elapsed() < LIMIT / 4, "nothing is waited for")
}

#[test]
fn forked_child_releases_and_acquires_nothing() {
    let nodes = servers(3);
    let key = unique_key("forks");
    let (_dir, told) = scratch();
    let program = Program::playing(
        module_path!(),
        "part_that_forks",
        &nodes,
        &key,
        told.clone(),
    );
    let keys = ["dropped", "released", "cared", "held"].map(|name| format!("{key}{name}"));
    assert!(program.end().success() && told.exists());
    keys.iter().for_each(|key| nowhere(&nodes, key));
    assert!(nodes.iter().all(|node| token(node, "new").is_none()));
}

// Threads.

/// Returns the number of threads of the library in this process.
#[cfg(target_os = "linux")]
pub(crate) fn worker_threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")));
    // A thread that has ended meanwhile has no name any more.
    names
        .filter(|name| name.as_ref().is_ok_and(|name| name.starts_with("redguard")))
        .count()
}

#[cfg(target_os = "linux")]
#[test]
fn part_that_counts_threads() {
    let Some(part) = Part::mine() else { return };
    let config = || {
        let config = at(part.nodes.clone()).connect_timeout(HUNG);
        config.node_timeout(HUNG).pool_size(2)
    };
    let connect = || RedisLocker::connect(config()).unwrap();
    // A thread has its name only once it runs.
    let some = |count: usize, when: &str| eventually(LIMIT, when, || worker_threads() == count);
    let none = |when: &str| some(0, when);
    assert_eq!(worker_threads(), 0);

    let locker = connect();
    let guard = acquire_lock(&locker.clone(), &part.key);
    some(6, "two worker_threads for each node");
    drop(locker);
    // The guard keeps the threads alive.
    guard.extend(TTL).unwrap();
    some(6, "while there is a guard");
    drop(guard);
    none("after the last handle, a guard");

    // One more thread each at the first use of renewal, loss callbacks and the listener; never a
    // second one.
    let (locker, others) = (connect(), connect());
    let held = acquire_lock(&others, &part.key);
    let cared_for = LockOptions::new(TTL).auto_renew(true).on_lost(|_| abort());
    let guards = ["one", "two"].map(|name| {
        let key = format!("{}{name}", part.key);
        locker.acquire(&key, &cared_for).unwrap()
    });
    some(12 + 3, "one for renewal, one for callbacks, one listener");
    wait_in_vain(&locker, &part, &part.key);
    wait_in_vain(&locker, &part, &part.key);
    some(12 + 3, "no second listener");
    drop((held, others));
    drop(locker);
    let [first, last] = guards;
    drop(first);
    eventually(LIMIT, "only the threads of one locker are left", || {
        worker_threads() == 6 + 3
    });
    drop(last);
    none("after the last handle, a guard that was cared for");

    let locker = connect();
    acquire_lock(&locker, &part.key).release().unwrap();
    drop(locker);
    none("after the last handle, a locker");

    let locker = connect();
    acquire_lock(&locker, &part.key).release().unwrap();
    _ = locker.nodes().shutdown(LIMIT);
    none("after a shutdown");
    drop(locker);

    let nobody = ["127.0.0.1:1".to_owned()].into_iter();
    let refused = at(nobody.chain(part.nodes[..1].to_owned())).pool_size(2);
    RedisLocker::connect(refused.node_timeout(HUNG).connect_timeout(HUNG)).unwrap_err();
    none("after a connect that failed");
    part.tell();
}

#[cfg(target_os = "linux")]
#[test]
fn no_thread_is_left_behind() {
    let nodes = servers(3);
    for hung in [false, true] {
        if hung {
            nodes[2].stop().unwrap();
        }
        let (_dir, told) = scratch();
        let key = unique_key("threads");
        let program = Program::playing(
            module_path!(),
            "part_that_counts_threads",
            &nodes,
            &key,
            told.clone(),
        );
        assert!(program.end().success() && told.exists());
    }
}
