//! Temporary servers do what their names say, and none survives its program, however the program
//! ends.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "in a test a panic is the report, and one test waits to be killed"
)]

use std::collections::BTreeSet;
use std::net::{TcpListener, TcpStream};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;
use std::{env, fs, io, thread};

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use redis::{Connection, ConnectionLike};

use crate::support::servers::{Server, free_port};
use crate::support::{eventually, raw, unique_key};

/// Only a hang takes this long.
const LIMIT: Duration = Duration::from_secs(20);

fn refuses(addr: &str) -> bool {
    TcpStream::connect(addr).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

fn runs(pid: u32) -> bool {
    kill(Pid::from_raw(pid.cast_signed()), None) != Err(Errno::ESRCH)
}

fn answers(connection: &mut Connection, within: Duration) -> bool {
    connection.set_read_timeout(Some(within)).unwrap();
    connection.check_connection()
}

#[test]
fn server_stops_continues_and_dies() {
    let server = Server::start().unwrap();
    let pid = server.pid().unwrap();
    let mut connection = raw(&server);
    assert!(answers(&mut connection, LIMIT));
    server.stop().unwrap();
    server.stop().unwrap();
    // The kernel accepts for a stopped process, which does not read.
    assert!(TcpStream::connect(server.addr()).is_ok());
    assert!(!answers(&mut connection, Duration::from_millis(50)));
    server.resume().unwrap();
    assert!(answers(&mut raw(&server), LIMIT));
    server.stop().unwrap();
    server.kill();
    assert!(!runs(pid) && server.pid().is_none() && refuses(&server.addr()));
    assert!(server.stop().is_err() && server.resume().is_err());
    server.kill();
}

#[test]
fn server_that_ended_is_reported_and_restarts() {
    let server = Server::start().unwrap();
    _ = redis::cmd("SHUTDOWN").exec(&mut raw(&server));
    eventually(LIMIT, "the server has ended", || {
        refuses(&server.addr()) && server.stop().is_err()
    });
    server.restart().unwrap();
    assert!(answers(&mut raw(&server), LIMIT));
}

#[test]
fn a_server_keeps_its_data_only_with_an_append_only_file() {
    let keeping = Server::options().append_always().start().unwrap();
    for (server, kept) in [(keeping, Some(7)), (Server::start().unwrap(), None)] {
        let (port, key) = (server.port(), unique_key("kept"));
        let set = || {
            redis::cmd("SET")
                .arg(&key)
                .arg(7)
                .exec(&mut raw(&server))
                .unwrap()
        };
        let get = || {
            redis::cmd("GET")
                .arg(&key)
                .query::<Option<u32>>(&mut raw(&server))
                .unwrap()
        };
        set();
        server.restart().unwrap();
        assert_eq!(get(), kept);
        set();
        server.restart_empty().unwrap();
        assert_eq!((get(), server.port()), (None, port));
    }
}

#[test]
fn server_accepts_arguments_and_reports_why_it_failed_to_start() {
    let options = Server::options()
        .arg("--requirepass", "secret")
        .arg("--unixsocket", "redis.sock");
    let server = options.start().unwrap();
    let socket = format!(
        "redis+unix://{}?pass=secret",
        server.dir().join("redis.sock").display()
    );
    let mut connection = redis::Client::open(socket)
        .unwrap()
        .get_connection()
        .unwrap();
    assert!(answers(&mut connection, LIMIT) && !answers(&mut raw(&server), LIMIT));
    let error = Server::options()
        .arg("--no-such-thing", "1")
        .start()
        .unwrap_err()
        .to_string();
    assert!(error.contains("no-such-thing"), "{error}");
}

#[test]
fn port_used_by_another_process_fails_a_restart() {
    let server = Server::start().unwrap();
    server.kill();
    let thief = TcpListener::bind(server.addr()).unwrap();
    assert_eq!(
        server.restart().unwrap_err().kind(),
        io::ErrorKind::AddrInUse
    );
    drop(thief);
    // A process that another test is starting has a copy of the listener until its `exec`.
    eventually(LIMIT, "the port is free again", || server.restart().is_ok());
}

#[test]
fn dropped_server_leaves_nothing_when_stopped_or_after_a_panic() {
    let mut seen = None;
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let server = Server::start().unwrap();
        seen = Some((server.pid().unwrap(), server.dir()));
        server.stop().unwrap();
        panic!("as a failing test does");
    }));
    let (pid, dir) = seen.unwrap();
    assert!(panicked.is_err() && !runs(pid) && !dir.parent().unwrap().exists());
}

const ORPHANS: &str = "REDGUARD_TEST_ORPHANS";

/// The killed child of the next test, which does nothing on its own: starts servers, stops one of
/// them, reports their addresses, and waits.
#[test]
fn starts_servers_and_waits_to_be_killed() {
    let Some(path) = env::var_os(ORPHANS).map(PathBuf::from) else {
        return;
    };
    let servers = [Server::start().unwrap(), Server::start().unwrap()];
    servers[1].stop().unwrap();
    let told = servers
        .each_ref()
        .map(|server| format!("{} {}", server.addr(), server.dir().display()));
    fs::write(path.with_extension("new"), told.join("\n")).unwrap();
    fs::rename(path.with_extension("new"), path).unwrap();
    thread::sleep(LIMIT * 3);
}

#[test]
fn server_ends_when_its_program_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let told = dir.path().join("told");
    let here = module_path!().split_once("::").unwrap().1;
    let mut program = Command::new(env::current_exe().unwrap())
        .args([
            "--exact",
            &format!("{here}::starts_servers_and_waits_to_be_killed"),
        ])
        .env(ORPHANS, &told)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    eventually(LIMIT, "the servers run", || told.exists());
    let told = fs::read_to_string(&told).unwrap();
    let servers: Vec<(&str, PathBuf)> = told
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(addr, dir)| (addr, dir.into()))
        .collect();
    assert!(
        servers.len() == 2
            && servers
                .iter()
                .all(|(addr, dir)| !refuses(addr) && dir.exists())
    );
    program.kill().unwrap();
    program.wait().unwrap();
    for (addr, dir) in servers {
        // Not its pid, which stays where orphans are not reaped.
        eventually(LIMIT, "the server is gone", || refuses(addr));
        eventually(LIMIT, "the server's files are gone", || {
            !dir.parent().unwrap().exists()
        });
    }
}

#[test]
fn free_ports_are_below_the_client_range_and_unique() {
    let ports: BTreeSet<u16> = (0..50).map(|_| free_port().unwrap()).collect();
    assert!(ports.len() == 50 && ports.iter().all(|port| (10_000..30_000).contains(port)));
}
