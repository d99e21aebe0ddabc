//! Sources of nodes and settings, and nodes that are away or hang.

use std::ffi::OsStr;
use std::fs;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::support::process::{Ended, LONG_TTL, Running, bare, run, tool};
use crate::support::servers::Server;
use crate::support::{addresses, ask, await_waiting, eventually, has_lock, server, servers};

#[test]
fn nodes_come_from_options_files_and_variables() {
    let nodes = servers(3);
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("nodes");
    fs::write(
        &list,
        addresses(&nodes).replace(',', "\n") + "\n# the lock nodes\n",
    )
    .unwrap();
    let config = dir.path().join("redguard.toml");
    fs::write(
        &config,
        format!(
            "nodes = \"@{}\"\nprefix = \"p:\"\nttl = \"45s\"\nowner = \"me\"\n",
            list.display()
        ),
    )
    .unwrap();
    let show = [
        "run",
        "--key",
        "k",
        "--",
        "sh",
        "-c",
        "echo $REDGUARD_TTL $REDGUARD_OWNER",
    ];
    let at_list = format!("@{}", list.display());
    run(bare(
        &[&show[..1], &["--redis", &at_list], &show[1..]].concat(),
    ))
    .assert(0, &[]);
    let mut by_variable = bare(&show);
    by_variable.env("REDGUARD_NODES_FILE", &list);
    run(by_variable).assert(0, &[]);
    let mut by_list = bare(&show);
    by_list.env("REDIS_URLS", addresses(&nodes));
    run(by_list).assert(0, &[]);
    let path = config.to_str().unwrap();
    let ended = run(bare(
        &[&show[..1], &["--config", path], &show[1..]].concat(),
    ));
    assert_eq!((ended.status, &*ended.out), (0, "45 me\n"), "{ended:?}");
    // Options win over files.
    let options = ["--config", path, "--ttl", "1m", "--owner", "you"];
    let ended = run(bare(&[&show[..1], &options, &show[1..]].concat()));
    assert_eq!(ended.out, "60 you\n", "{ended:?}");
    let mut by_home = bare(&show);
    by_home.env("XDG_CONFIG_HOME", dir.path());
    let ended = run(by_home);
    assert_eq!(ended.out, "45 me\n", "{ended:?}");
    let missing = run(bare(&["list", "--config", "/no/such/file"]));
    missing.assert(64, &["/no/such/file"]);
    run(bare(&["list"])).assert(64, &["no nodes were given"]);
}

#[test]
fn file_of_nodes_may_come_from_another_system() {
    let nodes = servers(3);
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("nodes");
    let text = format!("\u{feff}{}\r\n", addresses(&nodes).replace(',', "\r\n"));
    fs::write(&list, text).unwrap();
    let at_list = format!("@{}", list.display());
    let args = [
        "run",
        "--no-wait",
        "--redis",
        &at_list,
        "--key",
        "k",
        "--",
        "true",
    ];
    run(bare(&args)).assert(0, &[]);
}

/// The next source may name other nodes, on which a lock excludes nobody.
#[test]
fn source_that_names_no_nodes_is_not_passed_over() {
    let node = server();
    let dir = tempfile::tempdir().unwrap();
    let (empty, missing) = (dir.path().join("empty"), dir.path().join("missing"));
    fs::write(&empty, "# none\n").unwrap();
    let no_text = OsStr::from_bytes(b"/nodes\xff");
    for (name, value, words) in [
        (
            "REDGUARD_NODES_FILE",
            empty.as_os_str(),
            "no nodes in this file",
        ),
        ("REDGUARD_NODES_FILE", missing.as_os_str(), "No such file"),
        (
            "REDGUARD_NODES_FILE",
            no_text,
            "REDGUARD_NODES_FILE: not UTF-8",
        ),
        ("REDIS_URLS", no_text, "REDIS_URLS: not UTF-8"),
    ] {
        let mut list = bare(&["list"]);
        list.env("REDIS_URLS", node.addr()).env(name, value);
        run(list).assert(64, &[words]);
    }
    let mut list = bare(&["list", "--redis", ""]);
    list.env("REDIS_URLS", node.addr());
    run(list).assert(64, &["no nodes were given"]);
}

#[test]
fn nodes_that_come_back_within_the_wait_are_waited_for() {
    let node = server();
    node.kill();
    let addr = node.addr();
    let args = [
        "run", "--redis", &addr, "--key", "k", "--wait", "1h", "--", "echo", "ran",
    ];
    let mut running = Running::start(bare(&args));
    running.await_err("waiting for the nodes");
    assert!(!running.has_ended());
    node.restart().unwrap();
    let ended = running.end();
    assert_eq!((ended.status, &*ended.out), (0, "ran\n"), "{ended:?}");
}

#[test]
fn outage_while_the_lock_is_held_is_waited_out() {
    let node = Server::options().append_always().start().unwrap();
    ask::<()>(&node, &["SET", "redguard:k", "stranger:1", "PX", "600000"]);
    let args = ["--key", "k", "--", "echo", "ran"];
    let mut running = Running::start(tool(&node.addr(), "run", &args));
    await_waiting(&node, "k", 1);
    node.kill();
    let port = TcpListener::bind(node.addr()).unwrap();
    // The tool has noticed the outage. It connects twice at least: for requests and for wake-ups.
    for _ in 0..4 {
        drop(port.accept().unwrap());
    }
    drop(port);
    assert!(!running.has_ended());
    node.restart().unwrap();
    ask::<()>(&node, &["DEL", "redguard:k"]);
    let ended = running.end();
    assert_eq!((ended.status, &*ended.out), (0, "ran\n"), "{ended:?}");
}

#[test]
fn hung_node_costs_a_run_less_than_its_time_limit() {
    let nodes = servers(3);
    nodes[2].stop().unwrap();
    let start = Instant::now();
    let mut command = bare(&["run", "--redis", &addresses(&nodes), "--timeout", "100s"]);
    command.args(["--key", "k", "--ttl", LONG_TTL, "--", "true"]);
    assert_eq!(run(command).status, 0);
    // Some milliseconds, but on a busy machine.
    assert!(start.elapsed() < Duration::from_secs(50));
    eventually("no key is left", || {
        !has_lock(&nodes[0], "k") && !has_lock(&nodes[1], "k")
    });
}

/// Of its limits for a connect, of five times the limit of a reply, it takes none.
#[test]
fn hung_node_costs_a_list_only_the_limits_of_two_replies() {
    let nodes = servers(3);
    nodes[2].stop().unwrap();
    let start = Instant::now();
    let args = ["list", "--timeout", "1s", "--redis", &addresses(&nodes)];
    run(bare(&args)).assert(0, &["no answer"]);
    let took = start.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
}

/// The system lets a connect to a Unix socket wait for as long as the server does not accept others.
#[test]
fn hung_server_that_accepts_no_connection_to_its_socket_bounds_a_status() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket").display().to_string();
    let options = Server::options().arg("--unixsocket", &path);
    let node = options.arg("--tcp-backlog", "1").start().unwrap();
    run(tool(&path, "status", &["k"])).assert(1, &[]);
    node.stop().unwrap();
    let waiting = [(); 2].map(|()| UnixStream::connect(&path).unwrap());
    let status = bare(&["status", "k", "--timeout", "100ms", "--redis", &path]);
    run(status).assert(69, &["no answer in time"]);
    drop(waiting);
}

#[test]
fn hung_nodes_are_named_and_bound_each_command() {
    let nodes = servers(3);
    for node in &nodes[..2] {
        ask::<()>(node, &["SET", "redguard:k", "x:1", "PX", "36000000"]);
    }
    let all = addresses(&nodes);
    // All commands at once, since each waits for the hung nodes.
    let start = |args: &[&str]| {
        let (command, rest) = args.split_first().unwrap();
        let common = ["--timeout", "500ms", "--redis", &all];
        Running::start(bare(&[&[*command][..], &common, rest].concat()))
    };
    let assert_named = |ended: &Ended, node: &Server| {
        let text = ended.out.clone() + &ended.err;
        let mut lines = text.lines();
        let is_named = |line: &str| line.contains(&node.addr()) && line.contains("no answer");
        assert!(lines.any(is_named), "{ended:?}");
    };
    let commands = [
        (&["status", "k"][..], 0),
        (&["list"], 0),
        (&["doctor", "--pings", "5"], 1),
        (&["break", "other", "--yes"], 1),
    ];
    let watch = ["watch", "--interval", "0.05"];
    nodes[2].stop().unwrap();
    let watching = start(&watch);
    for (running, (_, status)) in commands
        .map(|(args, _)| start(args))
        .into_iter()
        .zip(commands)
    {
        let ended = running.end();
        assert_eq!(ended.status, status, "{ended:?}");
        assert_named(&ended, &nodes[2]);
    }
    watching.await_out("held by x");
    watching.signal(15);
    let ended = watching.end();
    assert_eq!(ended.status, 0, "{ended:?}");
    assert_named(&ended, &nodes[2]);

    nodes[0].stop().unwrap();
    nodes[1].stop().unwrap();
    let all_commands = commands.map(|(args, _)| start(args));
    for running in all_commands.into_iter().chain([start(&watch)]) {
        let ended = running.end();
        assert_eq!(ended.status, 69, "{ended:?}");
        nodes.iter().for_each(|node| assert_named(&ended, node));
    }
}

#[test]
fn wrong_password_on_a_minority_is_a_warning() {
    let nodes = [
        server(),
        server(),
        Server::options()
            .arg("--requirepass", "s3cret")
            .start()
            .unwrap(),
    ];
    let args = ["--key", "k", "--", "true"];
    let ended = run(tool(&addresses(&nodes), "run", &args));
    assert_eq!(ended.status, 0, "{ended:?}");
    assert!(ended.err.contains(&nodes[2].addr()), "{ended:?}");
    let silent = run(tool(
        &addresses(&nodes),
        "run",
        &[&["-qq"][..], &args].concat(),
    ));
    silent.assert(0, &[]);
}

#[test]
fn lock_is_kept_for_at_least_the_given_time() {
    let node = server();
    let args = ["--key", "k", "--at-least", "1m", "--", "true"];
    run(tool(&node.addr(), "run", &args)).assert(0, &[]);
    let left: i64 = ask(&node, &["PTTL", "redguard:k"]);
    assert!(left > 30_000 && left <= 60_000, "{left}");
}
