//! `status`, `list`, `watch`, `break`, `completions` and `man`.

use std::collections::BTreeSet;
use std::io::Read;
use std::time::Instant;

use serde_json::{Value, json};

use crate::support::process::{Ended, Running, bare, run, tool};
use crate::support::servers::Server;
use crate::support::{addresses, ask, connection, eventually, has_lock, server, servers};

fn objects(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// A held lock. It is released when `end` is called.
struct Held {
    running: Running,
    dir: tempfile::TempDir,
}

impl Held {
    fn start(nodes: &[Server], options: &[&str]) -> Held {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display();
        let script = format!(": >{path}/started; until [ -e {path}/end ]; do sleep 0.02; done");
        let args = [options, &["--", "sh", "-c", &script]].concat();
        let running = Running::start(tool(&addresses(nodes), "run", &args));
        eventually("the command runs", || dir.path().join("started").exists());
        Held { running, dir }
    }

    fn end(self) -> Ended {
        std::fs::write(self.dir.path().join("end"), "").unwrap();
        self.running.end()
    }
}

#[test]
fn status_shows_holders_of_all_kinds() {
    let nodes = servers(3);
    let all = addresses(&nodes);
    let free = run(tool(&all, "status", &["k"]));
    assert_eq!((free.status, &*free.out), (1, "k: free\n"));
    let held = [
        Held::start(
            &nodes,
            &["--key", "k", "--owner", "night 03:00", "--ttl", "5m"],
        ),
        Held::start(&nodes, &["--key", "k", "--shared", "--owner", "a"]),
        Held::start(&nodes, &["--key", "k", "--shared", "--owner", "b"]),
        Held::start(&nodes, &["--key", "k", "-n", "3", "--owner", "c"]),
        Held::start(&nodes, &["--key", "w", "--exclusive", "--owner", "d"]),
    ];
    let ended = run(tool(&all, "status", &["k"]));
    let lines: Vec<_> = ended.out.lines().collect();
    assert_eq!((ended.status, lines.len()), (0, 4), "{ended:?}");
    assert!(
        lines[0].starts_with("k: held by night 03:00 for "),
        "{ended:?}"
    );
    assert!(lines[0].contains(" of 3 nodes, ends in 4m "), "{ended:?}");
    assert!(lines[1].starts_with("k (read): held by "), "{ended:?}");
    assert!(
        lines[3].contains("(permit ") && lines[3].contains("of 3): held by c"),
        "{ended:?}"
    );
    let ended = run(tool(&all, "status", &["w", "--json"]));
    let told = objects(&ended.out).remove(0);
    assert_eq!(
        (&told["kind"], &told["owner"], &told["held"]),
        (&json!("write"), &json!("d"), &json!(true))
    );
    assert!(told["since"].as_str().unwrap().ends_with('Z'), "{told}");
    let list = run(tool(&all, "list", &["--json"]));
    let kinds: Vec<_> = objects(&list.out)
        .iter()
        .map(|row| row["kind"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        kinds,
        ["lock", "read", "read", "permit", "write"],
        "{list:?}"
    );
    for held in held {
        held.end().assert(0, &[]);
    }
    assert_eq!(run(tool(&all, "list", &["--json"])).out, "");
}

#[test]
fn status_tells_how_many_wait() {
    let nodes = servers(3);
    let all = addresses(&nodes);
    let held = Held::start(&nodes, &["--key", "k"]);
    let is_told = |words: &str| run(tool(&all, "status", &["k"])).out.contains(words);
    let start = || Running::start(tool(&all, "run", &["--key", "k", "--", "true"]));
    let first = start();
    eventually("one process waits", || is_told("; 1 process waits"));
    // Those far behind may not be subscribed to the lock's channel.
    let others = [(); 6].map(|()| start());
    eventually("seven processes wait", || is_told("; 7 processes wait"));
    for node in &nodes {
        ask::<()>(node, &["SET", "redguard:l", "x:1", "PX", "600000"]);
    }
    let list = ["ZADD", "{redguard:l}:waiting", "1", "a", "2", "b", "3", "c"];
    ask::<()>(&nodes[0], &list);
    let told = run(tool(&all, "status", &["l"]));
    assert!(told.out.contains("; 3 processes wait"), "{told:?}");
    held.end().assert(0, &[]);
    for running in [first].into_iter().chain(others) {
        running.end().assert(0, &[]);
    }
}

#[test]
fn list_merges_the_nodes_and_ignores_other_keys() {
    let nodes = servers(3);
    // Glob characters in a name stand for themselves, and control characters are not obeyed.
    let names = ["a", "shop:1", "shop:2", "[x]*", "esc\x1b[2J"];
    for node in &nodes {
        for name in names {
            ask::<()>(
                node,
                &[
                    "SET",
                    &format!("redguard:{name}"),
                    &format!("me:{name}"),
                    "PX",
                    "90000",
                ],
            );
        }
        ask::<()>(node, &["SET", "redguard:{a}b:fence", "7"]);
        ask::<()>(node, &["RPUSH", "redguard:list", "x"]);
        ask::<()>(node, &["SET", "elsewhere", "x"]);
        ask::<()>(node, &["SET", "redguardX", "x"]);
    }
    ask::<()>(&nodes[1], &["SET", "redguard:partial", "x:1"]);
    let keys = |args: &[&str]| -> BTreeSet<(String, bool)> {
        let ended = run(tool(
            &addresses(&nodes),
            "list",
            &[&["--json"], args].concat(),
        ));
        assert_eq!(ended.status, 0, "{ended:?}");
        let rows = objects(&ended.out).into_iter();
        rows.map(|row| (row["key"].as_str().unwrap().to_owned(), row["held"] == true))
            .collect()
    };
    let held = |names: &[&str]| -> BTreeSet<(String, bool)> {
        names
            .iter()
            .map(|name| ((*name).to_owned(), true))
            .collect()
    };
    let mut all = held(&names);
    all.insert(("partial".to_owned(), false));
    assert_eq!(keys(&[]), all);
    assert_eq!(keys(&["shop:*"]), held(&["shop:1", "shop:2"]));
    assert_eq!(keys(&[r"\[x\]\*"]), held(&["[x]*"]));
    assert_eq!(keys(&["--prefix", "redguard*"]), held(&[]));
    assert_eq!(keys(&["--prefix", "redguard:shop:"]), held(&["1", "2"]));
    let ended = run(tool(&addresses(&nodes), "list", &["[ae]*"]));
    let lines: Vec<_> = ended.out.lines().collect();
    assert!(lines[0].starts_with("KEY") && lines.len() == 3, "{ended:?}");
    assert!(lines[2].starts_with(r"esc\u{1b}[2J"), "{ended:?}");
}

#[test]
fn locks_of_several_scan_replies_are_all_listed() {
    let node = server();
    let set = "for i = 1, 3500 do redis.call('SET', 'redguard:' .. i, 'x:' .. i) end";
    ask::<()>(&node, &["EVAL", set, "0"]);
    let ended = run(tool(&node.addr(), "list", &["--json"]));
    assert_eq!((ended.status, ended.out.lines().count()), (0, 3500));
    let stats: String = ask(&node, &["INFO", "commandstats"]);
    assert!(!stats.contains("cmdstat_keys:"), "KEYS blocks a server");
}

#[test]
fn absent_node_is_named_and_absent_quorum_is_69() {
    let nodes = servers(3);
    ask::<()>(&nodes[0], &["SET", "redguard:k", "x:1"]);
    ask::<()>(&nodes[1], &["SET", "redguard:k", "x:1"]);
    nodes[2].kill();
    for args in [&["status", "k"][..], &["list"]] {
        let ended = run(tool(&addresses(&nodes), args[0], &args[1..]));
        ended.assert(0, &["is left out"]);
        assert!(ended.err.contains(&nodes[2].addr()), "{ended:?}");
    }
    nodes[1].kill();
    for args in [
        &["status", "k"][..],
        &["list"],
        &["watch"],
        &["break", "k", "--yes"],
    ] {
        let ended = run(tool(
            &addresses(&nodes),
            args[0],
            &[&args[1..], &["--json"]].concat(),
        ));
        assert_eq!(ended.status, 69, "{ended:?}");
        assert_eq!(ended.report()["kind"], "unavailable", "{ended:?}");
    }
    assert!(has_lock(&nodes[0], "k"), "it is not broken");
}

#[test]
fn user_with_the_rights_to_plain_locks_alone_sees_them() {
    let node = server();
    ask::<()>(&node, &["SET", "redguard:k", "x:1"]);
    let rule = "on >s3cret ~redguard:* +get +pttl +evalsha +script|load +time +scan";
    let rule: Vec<&str> = ["ACL", "SETUSER", "ops"]
        .into_iter()
        .chain(rule.split(' '))
        .collect();
    ask::<()>(&node, &rule);
    let url = format!("redis://ops:s3cret@{}", node.addr());
    let ended = run(tool(&url, "list", &["--json"]));
    assert_eq!(
        (ended.status, objects(&ended.out).len()),
        (0, 1),
        "{ended:?}"
    );
    assert_eq!(objects(&ended.out)[0]["waiting"], Value::Null);
    ask::<()>(&node, &["ACL", "SETUSER", "ops", "-scan"]);
    assert_eq!(run(tool(&url, "list", &[])).status, 77);
}

#[test]
fn break_removes_what_it_has_shown() {
    let nodes = servers(3);
    let all = addresses(&nodes);
    let none = run(tool(&all, "break", &["k", "--yes", "--json"]));
    assert_eq!(
        (none.status, &objects(&none.out)[0]["broken"]),
        (1, &json!(false))
    );
    run(tool(&all, "break", &["k"])).assert(64, &["--yes"]);

    let held = [
        "--key k --owner x",
        "--key k --shared --owner a",
        "--key k --shared --owner b",
        "--key k -n 3 --owner c",
        "--key w --exclusive --owner d",
    ]
    .map(|options| {
        let options = options.split(' ').chain(["--on-lost", "warn"]);
        Held::start(&nodes, &options.collect::<Vec<_>>())
    });
    let holders = || -> Vec<String> {
        let rows = objects(&run(tool(&all, "list", &["--json"])).out);
        rows.iter()
            .map(|row| row["owner"].as_str().unwrap().to_owned())
            .collect()
    };
    let breaks = |args: &[&str]| run(tool(&all, "break", &[args, &["--yes"]].concat())).status;
    assert_eq!(breaks(&["k", "--if-owner", "nobody"]), 1);
    assert_eq!(breaks(&["k", "--permit", "2000"]), 1);
    assert_eq!(holders().len(), 5);
    assert_eq!(breaks(&["k", "--if-owner", "a"]), 0);
    assert!(!holders().contains(&"a".to_owned()));
    assert_eq!(breaks(&["k", "--kind", "permit"]), 0);
    assert!(!holders().contains(&"c".to_owned()));
    assert_eq!(breaks(&["w"]), 0);
    assert_eq!(holders().len(), 2);
    assert_eq!(breaks(&["k"]), 0);
    assert_eq!(holders(), [""; 0]);
    for node in &nodes {
        assert_eq!(ask::<u32>(node, &["DBSIZE"]), 0, "a key is left");
    }
    for held in held {
        assert_eq!(held.end().status, 70);
    }
}

/// As the library's `force_release` does: a process that waits may listen on a node that has no lock.
#[test]
fn break_wakes_waiters_on_each_node_also_where_there_is_no_lock() {
    let nodes = servers(3);
    for node in &nodes[..2] {
        ask::<()>(node, &["SET", "redguard:k", "x:1", "PX", "600000"]);
    }
    let mut connections: Vec<_> = nodes.iter().map(connection).collect();
    let channels = ["redguard:k", "redguard:listener:notices"];
    let subscribed = connections.iter_mut().map(|connection| {
        let mut messages = connection.as_pubsub();
        messages.subscribe(&channels[..]).unwrap();
        messages
    });
    let mut subscribed: Vec<_> = subscribed.collect();
    // The second time no node has the lock.
    for status in [0, 1] {
        let ended = run(tool(&addresses(&nodes), "break", &["k", "--yes"]));
        assert_eq!(ended.status, status, "{ended:?}");
        for (node, messages) in nodes.iter().zip(&mut subscribed) {
            ask::<()>(node, &["PUBLISH", "redguard:k", "end"]);
            let mut told: Vec<String> = Vec::new();
            while told.last().is_none_or(|text| text != "end") {
                told.push(messages.get_message().unwrap().get_payload().unwrap());
            }
            assert_eq!(told, ["", "check redguard:k", "end"], "status {status}");
        }
    }
}

#[test]
fn watch_writes_a_line_per_change_and_goes_on_after_an_outage() {
    let nodes = servers(3);
    let args = ["--interval", "0.05", "--json"];
    let watch = {
        let mut command = tool(&addresses(&nodes), "watch", &args);
        command.stdout(std::process::Stdio::piped());
        command
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut watch = watch;
    watch.stdout(std::fs::File::create(&path).unwrap());
    watch.stdin(std::process::Stdio::null());
    let mut watching = watch.spawn().unwrap();
    let events = |event: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(&path).unwrap();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        objects(whole)
            .into_iter()
            .filter(|object| object["event"] == event)
            .collect()
    };
    let told = |event: &str| eventually(event, || !events(event).is_empty());
    for node in &nodes {
        ask::<()>(node, &["SET", "redguard:k", "first:1", "PX", "600000"]);
    }
    told("held");
    for node in &nodes {
        ask::<()>(node, &["SET", "redguard:k", "second:1", "PX", "600000"]);
    }
    told("passed");
    nodes[1].kill();
    nodes[2].kill();
    told("unknown");
    nodes[1].restart().unwrap();
    told("known");
    ask::<()>(&nodes[0], &["DEL", "redguard:k"]);
    told("freed");
    crate::support::process::signal(watching.id().cast_signed(), 15);
    assert_eq!(watching.wait().unwrap().code(), Some(0));
    let passed = events("passed").pop().unwrap();
    assert_eq!(
        (&passed["owner"], &passed["from"]),
        (&json!("second"), &json!("first"))
    );
    assert_eq!(events("unknown").len(), 1, "an outage is told once");
}

#[test]
fn watch_ends_at_a_signal_though_nobody_reads_its_output() {
    let node = server();
    // Longer lines than the pipe has room for.
    let set = "for i = 1, 3500 do redis.call('SET', 'redguard:' .. i, 'x:' .. i) end";
    ask::<()>(&node, &["EVAL", set, "0"]);
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut watch = tool(&node.addr(), "watch", &[]);
    watch.stdout(writer).stdin(std::process::Stdio::null());
    let mut watching = watch.spawn().unwrap();
    drop(watch);
    reader.read_exact(&mut [0]).unwrap();
    crate::support::process::signal(watching.id().cast_signed(), 15);
    let mut status = None;
    eventually("watch ends", || {
        status = watching.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(0));
}

/// A SCAN of many keys in each interval would keep a server busy.
#[test]
fn watch_takes_a_small_share_of_the_time_of_a_server_with_many_keys() {
    let node = server();
    let fill = "for i = 1, 20000 do redis.call('SET', 'x' .. i, i) end";
    ask::<()>(&node, &["EVAL", fill, "0"]);
    let mut watch = tool(&node.addr(), "watch", &["--interval", "0.01", "--json"]);
    watch
        .stdout(std::process::Stdio::null())
        .stdin(std::process::Stdio::null());
    let mut watching = watch.spawn().unwrap();
    let scans = |field: &str| -> f64 {
        let stats: String = ask(&node, &["INFO", "commandstats"]);
        let line = stats.lines().find(|line| line.starts_with("cmdstat_scan:"));
        let rest = line.and_then(|line| line.split(&format!("{field}=")).nth(1));
        rest.and_then(|rest| rest.split(',').next())
            .map_or(0.0, |number| number.parse().unwrap())
    };
    eventually("the keys are scanned", || scans("usec") > 0.0);
    let start = Instant::now();
    let (before, calls) = (scans("usec"), scans("calls"));
    // Three searches, and then on, because the last of them may have been slow.
    eventually("the share is small", || {
        let share = (scans("usec") - before) / start.elapsed().as_micros() as f64;
        scans("calls") >= calls + 60.0 && share < 0.1
    });
    crate::support::process::signal(watching.id().cast_signed(), 15);
    assert_eq!(watching.wait().unwrap().code(), Some(0));
}

#[test]
fn completions_and_pages_are_generated() {
    for shell in ["bash", "zsh", "fish"] {
        let ended = run(bare(&["completions", shell]));
        assert!(
            ended.status == 0 && ended.out.contains("redguard"),
            "{ended:?}"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    run(bare(&["man", "--dir", dir.path().to_str().unwrap()])).assert(0, &[]);
    for page in ["redguard.1", "redguard-run.1", "redguard-doctor.1"] {
        assert!(dir.path().join(page).exists(), "{page}");
    }
    assert!(run(bare(&["man", "run"])).out.contains("redguard\\-run"));
    run(bare(&["man", "nothing"])).assert(64, &["nothing"]);
    assert!(run(bare(&["--version"])).out.starts_with("redguard 0."));
    assert_eq!(run(bare(&["run", "--help"])).status, 0);
}

#[test]
fn closed_output_ends_quietly() {
    let node = server();
    let set = "for i = 1, 3500 do redis.call('SET', 'redguard:' .. i, 'x:' .. i) end";
    ask::<()>(&node, &["EVAL", set, "0"]);
    let mut command = tool(&node.addr(), "list", &[]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stdout(writer).stderr(std::process::Stdio::piped());
    let output = command.output().unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
}
