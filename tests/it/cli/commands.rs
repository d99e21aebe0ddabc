//! `examples/exclusive`: from the arguments to the output, within this process. `processes` starts it as a process.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{io, thread};

use redguard::{Locker, RedisLocker};
use serde_json::{Value, json};

use crate::cli::commands::exclusive::force_release::break_lock;
use crate::cli::commands::exclusive::output::Voice;
use crate::cli::commands::exclusive::status::Survey;
use crate::cli::commands::exclusive::watch::{Stop, watch};
use crate::cli::commands::exclusive::{cli, force_release};
use crate::support::fixtures::{
    LIMIT, TTL, ask, config, connect, connect_by, everywhere, nowhere, shared, token, wire,
};
use crate::support::servers::Server;
use crate::support::{eventually, servers, unique_key};

#[path = "../../../examples/exclusive.rs"]
#[expect(
    dead_code,
    reason = "its `main`, and what only a process of its own can do"
)]
mod exclusive;

/// A status, and what was written to standard output and error.
type Ended = (u8, String, String);

/// As the program does, with nodes that it is patient with.
fn tool(nodes: &[Server], args: &[&str]) -> Ended {
    let urls: Vec<String> = nodes.iter().map(Server::url).collect();
    bare(&[&["--timeout", "4s", "--redis", &urls.join(",")], args].concat())
}

/// The same, once no node is left out: one that is slow to connect is.
fn of_all(nodes: &[Server], args: &[&str]) -> (u8, String) {
    let mut ended = (0, String::new());
    eventually(LIMIT, "no node is left out", || {
        let (status, out, err) = tool(nodes, args);
        ended = (status, out);
        err.is_empty()
    });
    ended
}

fn bare(args: &[&str]) -> Ended {
    let program = std::iter::once(&"exclusive");
    let args: Vec<OsString> = program.chain(args).map(OsString::from).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let status = exclusive::perform(&args, &mut out, &mut err);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status, text(out), text(err))
}

/// Those on whole lines: another may be being written.
fn objects(lines: &str) -> Vec<Value> {
    let whole = lines.rfind('\n').map_or("", |end| &lines[..end]);
    let lines = whole.lines();
    lines.map(|l| serde_json::from_str(l).unwrap()).collect()
}

/// What is written from another thread.
#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Paper {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

fn labelled(nodes: &[Server], label: &str) -> RedisLocker {
    connect_by(config(nodes).owner_label(label), nodes)
}

#[test]
fn status_shows_the_holder_and_ends_with_1_if_the_lock_is_free() {
    let key = unique_key("status");
    let free = (1, format!("{key}: free\n"));
    assert_eq!(of_all(shared(), &["status", &key]), free);

    let guard = labelled(shared(), "night shift").lock(&key, TTL).unwrap();
    everywhere(shared(), &key);
    let (status, out) = of_all(shared(), &["status", &key]);
    let start = format!("{key}: held by night shift on 3 of 3 nodes, ends in 4m ");
    assert!(status == 0 && out.starts_with(&start), "{status} {out}");

    let (status, out) = of_all(shared(), &["--json", "status", &key]);
    let mut told = objects(&out).remove(0);
    let remaining = told["remaining_ms"].take().as_u64().unwrap();
    assert!(remaining <= 300_000 && remaining > 100_000, "{remaining}");
    let wanted = json!({
        "key": key, "held": true, "owner": "night shift", "remaining_ms": null, "nodes": 3, "needed": 2, "total": 3,
    });
    assert_eq!((status, told), (0, wanted));
    guard.release().unwrap();
    nowhere(shared(), &key);

    // One node of three is not a quorum: it is told, and not held.
    ask::<()>(&shared()[1], &["SET", &wire(&key), "x:1"]);
    let (status, out) = of_all(shared(), &["status", &key]);
    let text =
        format!("{key}: not held: 1 of 3 nodes has it for x, 2 are needed, without an end\n");
    assert_eq!((status, out), (1, text));
}

fn held<'a>(names: &'a [&'a str]) -> impl Iterator<Item = (String, bool)> + 'a {
    names.iter().map(|name| ((*name).to_owned(), true))
}

#[test]
fn list_merges_the_locks_of_all_nodes_and_ignores_other_keys() {
    let nodes = servers(3);
    let locker = labelled(&nodes, "me");
    // Glob characters in a prefix and a name stand for themselves, and control characters are not
    // obeyed.
    let names = ["a", "shop:1", "shop:2", "[x]*", "esc\x1b[2J"];
    let guards: Vec<_> = names.map(|name| locker.lock(name, TTL).unwrap()).into();
    names.iter().for_each(|name| _ = everywhere(&nodes, name));
    // On one node each; and what is no lock.
    for (node, name) in nodes.iter().zip(["left", "over", "here"]) {
        ask::<()>(node, &["SET", &wire(name), "token"]);
        ask::<()>(node, &["SET", &wire("{a}b:fence"), "7"]);
        ask::<()>(node, &["RPUSH", &wire("list"), "x"]);
        ask::<()>(node, &["SET", "elsewhere", "x"]);
        ask::<()>(node, &["SET", "re[x]:inside", "x"]);
        ask::<()>(node, &["SET", "redguardX", "x"]);
    }
    let keys = |args: &[&str]| -> BTreeSet<(String, bool)> {
        let (status, out) = of_all(&nodes, &[&["list", "--json"], args].concat());
        assert_eq!(status, 0);
        let told = objects(&out).into_iter();
        told.map(|o| (o["key"].as_str().unwrap().to_owned(), o["held"] == true))
            .collect()
    };
    let partial = ["here", "left", "over"].map(|name| (name.to_owned(), false));
    assert_eq!(keys(&[]), held(&names).chain(partial).collect());
    assert_eq!(keys(&["shop:*"]), held(&["shop:1", "shop:2"]).collect());
    assert_eq!(keys(&[r"\[x\]\*"]), held(&["[x]*"]).collect());
    assert_eq!(keys(&["nothing*"]), BTreeSet::new());
    assert_eq!(keys(&["--prefix", "redguard*"]), BTreeSet::new());
    let inside = held(&["inside"]).collect();
    assert_eq!(keys(&["--prefix", "re[x]:"]), inside);
    assert_eq!(
        keys(&["--prefix", "redguard:shop:"]),
        held(&["1", "2"]).collect()
    );

    let (status, out) = of_all(&nodes, &["list", "[ae]*"]);
    let lines: Vec<_> = out
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .collect();
    assert_eq!((status, lines.len()), (0, 3), "{out}");
    assert_eq!(lines[0], ["KEY", "HOLDER", "NODES", "ENDS", "IN"]);
    assert_eq!(lines[1][..3], ["a", "me", "3/3"]);
    assert_eq!(lines[2][..3], [r"esc\u{1b}[2J", "me", "3/3"]);
    drop(guards);
}

#[test]
fn locks_of_several_scan_replies_are_all_listed() {
    let nodes = servers(1);
    let set = "for i = 1, 3500 do redis.call('SET', 'redguard:' .. i, 'x:' .. i) end";
    ask::<()>(&nodes[0], &["EVAL", set, "0"]);
    let (status, out, _) = tool(&nodes, &["list", "--json"]);
    let keys: BTreeSet<_> = objects(&out).iter().map(|o| o["key"].to_string()).collect();
    assert_eq!((status, keys.len()), (0, 3500));
    let calls = crate::support::fixtures::calls(&nodes[0], "keys");
    assert_eq!(calls, 0, "KEYS blocks a server");
}

#[test]
fn failed_node_is_named_and_failed_quorum_ends_with_69() {
    let nodes = servers(3);
    let locker = connect(&nodes);
    let guard = locker.lock("k", TTL).unwrap();
    everywhere(&nodes, "k");
    for hangs in [true, false] {
        if hangs {
            nodes[2].stop().unwrap();
        } else {
            nodes[2].kill();
        }
        // Side by side, since each waits in the end for the one that hangs.
        thread::scope(|scope| {
            for command in [&["list"][..], &["status", "k"]] {
                let nodes = &nodes;
                scope.spawn(move || {
                    let (status, out, err) = tool(nodes, command);
                    let told = out.contains("2 of 3") || out.contains("2/3");
                    assert!(status == 0 && told, "{status} {out}");
                    let start = format!("exclusive: {} is left out: ", nodes[2].addr());
                    assert!(err.starts_with(&start) && err.lines().count() == 1, "{err}");
                });
                scope.spawn(move || {
                    let (_, _, err) = tool(nodes, &[&["--json"], command].concat());
                    assert_eq!(objects(&err)[0]["node"], nodes[2].addr());
                });
            }
        });
    }
    nodes[1].kill();
    for command in [
        &["list"][..],
        &["status", "k"],
        &["break", "k", "--yes"],
        &["watch"],
    ] {
        // Watch would block the signals of this thread, and what it starts.
        let urls = nodes.iter().map(Server::url).collect::<Vec<_>>().join(",");
        let args = [&["--json", "--timeout", "100ms", "--redis", &urls], command].concat();
        let (status, out, err) = thread::scope(|scope| scope.spawn(|| bare(&args)).join().unwrap());
        let error = objects(&err).remove(0);
        assert_eq!(
            (status, &*out, &error["kind"], &error["status"]),
            (69, "", &json!("unavailable"), &json!(69))
        );
        assert!(
            error["error"].as_str().unwrap().contains("no quorum"),
            "{error}"
        );
    }
    assert!(token(&nodes[0], "k").is_some(), "it is not broken");
    drop(guard);
}

#[test]
fn list_without_a_quorum_ends_with_69_and_its_cause() {
    let nodes = servers(3);
    for node in &nodes[..2] {
        ask::<()>(node, &["ACL", "SETUSER", "default", "-scan"]);
    }
    let (status, out, err) = tool(&nodes, &["list"]);
    assert_eq!((status, &*out, err.lines().count()), (69, "", 1), "{err}");
    assert!(
        err.contains("of 3 nodes could be listed, 2 are needed") && err.contains("+scan"),
        "{err}"
    );
    ask::<()>(&nodes[0], &["ACL", "SETUSER", "default", "+scan"]);
    eventually(
        LIMIT,
        "two nodes are enough, and the other is named",
        || {
            let (status, _, err) = tool(&nodes, &["list"]);
            status == 0 && err.contains(&nodes[1].addr())
        },
    );
}

fn broken(
    locker: &RedisLocker,
    key: &str,
    ask: Option<force_release::Ask>,
) -> Result<(u8, Value), u8> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let ended = break_lock(locker, key, ask, &mut Voice::new(true, &mut out, &mut err));
    let out = String::from_utf8(out).unwrap();
    ended
        .map(|status| (status, objects(&out).remove(0)))
        .map_err(|refusal| refusal.status())
}

#[test]
fn break_removes_a_lock_after_confirmation() {
    let locker = labelled(shared(), "holder");
    let key = unique_key("break");
    let none = json!({ "key": key, "broken": false, "owner": null, "nodes": 0 });
    assert_eq!(broken(&locker, &key, None).unwrap(), (1, none.clone()));
    let unasked = |_: &str| -> io::Result<bool> { panic!("there is nothing to ask about") };
    assert_eq!(broken(&locker, &key, Some(unasked)).unwrap(), (1, none));

    let guard = locker.lock(&key, TTL).unwrap();
    everywhere(shared(), &key);
    assert_eq!(broken(&locker, &key, Some(|_| Ok(false))), Err(2));
    assert!(locker.holder(&key).unwrap().is_some() && guard.check().is_ok());
    let yes = |question: &str| Ok(question.contains("held by holder on 3 of 3 nodes"));
    let gone = json!({ "key": key, "broken": true, "owner": "holder", "nodes": 3 });
    assert_eq!(broken(&locker, &key, Some(yes)).unwrap(), (0, gone));
    assert_eq!(locker.holder(&key).unwrap(), None);
    assert!(guard.release().is_err_and(|error| error.is_lost()));
}

#[test]
fn break_keeps_a_lock_whose_owner_changes_before_the_answer() {
    // Named, since a question cannot carry it.
    const KEY: &str = "passes-before-the-answer";
    let locker = labelled(shared(), "first");
    let guard = locker.lock(KEY, TTL).unwrap();
    everywhere(shared(), KEY);
    drop(guard);
    let _guard = locker.lock(KEY, TTL).unwrap();
    let passes = |_: &str| {
        for node in shared() {
            ask::<()>(node, &["SET", &wire(KEY), "second:1"]);
        }
        Ok(true)
    };
    assert_eq!(broken(&locker, KEY, Some(passes)), Err(2));
    assert_eq!(token(&shared()[0], KEY).as_deref(), Some("second:1"));
    locker.force_release(KEY).unwrap();
}

/// Of a test, also one that fails: its scope waits for the thread that watches.
struct AtTheEnd<'a>(&'a Stop);

impl Drop for AtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.say();
    }
}

#[test]
fn watch_reports_each_change_and_continues_after_an_outage() {
    let nodes = servers(3);
    let urls = nodes.iter().map(Server::url).collect::<Vec<_>>().join(",");
    let args = [
        "exclusive",
        "watch",
        "--json",
        "--timeout",
        "1s",
        "--redis",
        &urls,
    ];
    let cli = cli::parse(&args.map(OsString::from)).unwrap().unwrap();
    let mut survey = Survey::new(&cli.common, "*").unwrap();
    let (paper, stop) = (Paper::default(), Stop::default());
    let events = |event: &str| -> Vec<Value> {
        let told = objects(&paper.text()).into_iter();
        told.filter(|object| object["event"] == event).collect()
    };
    let told = |event: &str, count| {
        let told = || events(event).len() >= count;
        eventually(LIMIT, &format!("{count} times {event}"), told);
    };
    thread::scope(|scope| {
        let watching = scope.spawn(|| {
            let (mut out, mut err) = (paper.clone(), io::sink());
            let mut voice = Voice::new(true, &mut out, &mut err);
            watch(&mut survey, Duration::from_millis(50), &stop, &mut voice).unwrap()
        });
        let _end = AtTheEnd(&stop);
        let locker = labelled(&nodes, "first");
        let guard = locker.lock("k", TTL).unwrap();
        told("held", 1);
        for node in &nodes {
            ask::<()>(node, &["SET", &wire("k"), "second:1"]);
        }
        told("passed", 1);
        nodes[1].kill();
        nodes[2].kill();
        told("unknown", 1);
        nodes[1].restart().unwrap();
        told("known", 1);
        // Its connections may not know yet that they are broken.
        let broken = || locker.force_release("k").is_ok();
        eventually(LIMIT, "the lock is broken", broken);
        told("freed", 1);
        stop.say();
        assert_eq!(watching.join().unwrap(), 0);
        drop(guard);
    });
    let passed = &events("passed")[0];
    assert!(
        passed["owner"] == "second" && passed["from"] == "first",
        "{passed}"
    );
    assert!(passed["seen_ms"].is_u64() && passed["time"].as_str().unwrap().ends_with('Z'));
    assert_eq!(events("unknown").len(), 1, "an outage is told once");
}

#[test]
fn bad_arguments_end_with_64_and_one_line() {
    for (args, words) in [
        (&[][..], "run, status, list, watch or break?"),
        (&["--key", "k", "--", "true"], "--key"),
        (&["frobnicate"], "frobnicate"),
        (&["status"], "KEY"),
        (&["status", ""], "the name is empty"),
        (&["status", "k:gate"], "reserved"),
        (&["list", "a", "b"], "b"),
        (&["watch", "--interval", "0s"], "0s"),
        (&["watch", "--interval", "soon"], "soon"),
        (&["list", "--timeout", "0s"], "node_timeout"),
        (&["list", "--owner", "a:b"], "a:b"),
        (&["run", "--key", "k"], "COMMAND"),
        (&["run", "--", "true"], "--key"),
        (
            &[
                "run",
                "--key",
                "k",
                "--wait",
                "1s",
                "--no-wait",
                "--",
                "true",
            ],
            "--no-wait",
        ),
    ] {
        let (status, out, err) = tool(shared(), args);
        assert_eq!(
            (status, &*out, err.lines().count()),
            (64, "", 1),
            "{args:?}: {err}"
        );
        assert!(
            err.starts_with("exclusive: ") && err.contains(words),
            "{args:?}: {err}"
        );
        let (status, _, err) = tool(shared(), &[&["--json"], args].concat());
        let error = objects(&err).remove(0);
        assert_eq!(
            (status, &error["kind"]),
            (64, &json!("usage")),
            "{args:?}: {err}"
        );
    }
    let (status, _, err) = tool(&[], &["list"]);
    assert!(
        status == 69 && err.contains("no nodes were given"),
        "{status} {err}"
    );
}

#[test]
fn help_of_each_command_lists_its_exit_statuses() {
    for command in ["run", "status", "list", "watch", "break"] {
        for help in [&["help", command], &[command, "--help"]] {
            let (status, out, err) = bare(help);
            assert_eq!((status, &*err), (0, ""));
            assert!(
                out.contains("Exit status:") && out.contains("\n  exclusive "),
                "{out}"
            );
            assert!(out.lines().all(|line| line.chars().count() <= 120), "{out}");
        }
    }
    assert!(bare(&["--help"]).1.contains("--json, on standard output"));
}
