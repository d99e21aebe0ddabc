//! Nodes that are a Sentinel-watched master, a cluster, or a server that speaks TLS.

use std::fs;

use redguard_servers::free_port;
use serde_json::Value;

use crate::support::process::{Ended, TIMEOUT, TOOL, bare, run, tool};
use crate::support::servers::Server;
use crate::support::{ask, connection, eventually, server};

fn json_lines(ended: &Ended) -> Vec<Value> {
    let lines = ended.out.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Runs all commands on one node: `run`, and from inside it `status`, `list` and `break`.
fn works_on(node: &str) {
    let inside =
        |command: &str| format!("{TOOL} {command} --timeout {TIMEOUT} --redis '{node}' --json");
    let script = format!(
        "{}; {}; {} --yes",
        inside("status k"),
        inside("list"),
        inside("break k")
    );
    let args = [
        "--key",
        "k",
        "--owner",
        "me",
        "--on-lost",
        "warn",
        "--",
        "sh",
        "-c",
        &script,
    ];
    let ended = run(tool(node, "run", &args));
    // The lock was broken, which the release finds at the latest.
    assert_eq!(ended.status, 70, "{ended:?}");
    let rows = json_lines(&ended);
    assert_eq!(rows.len(), 3, "{ended:?}");
    for row in &rows[..2] {
        assert!(row["owner"] == "me" && row["held"] == true, "{row}");
    }
    assert_eq!(rows[2]["broken"], true);
    let free = run(tool(node, "status", &["k"]));
    assert_eq!((free.status, &*free.out), (1, "k: free\n"), "{free:?}");
}

#[test]
fn watched_master_is_a_node() {
    let master = server();
    let lines = format!("sentinel monitor shop 127.0.0.1 {} 1\n", master.port());
    let sentinel = Server::options().sentinel(&lines).start().unwrap();
    let stranger = Server::options().sentinel("").start().unwrap();
    works_on(&format!(
        "redis+sentinel://{}+{}/shop",
        stranger.addr(),
        sentinel.addr()
    ));
}

#[test]
fn credentials_of_a_sentinel_address_are_for_its_master_alone() {
    let locked = || Server::options().arg("--requirepass", "s3cret");
    let master = locked().start().unwrap();
    let lines = format!(
        "requirepass s3cret\nsentinel monitor shop 127.0.0.1 {} 1\nsentinel auth-pass shop s3cret\n",
        master.port()
    );
    let sentinel = Server::options().sentinel(&lines).start().unwrap();
    let node = format!("redis+sentinel://:s3cret@{}/shop", sentinel.addr());
    let command = ["--key", "k", "--no-wait", "--", "true"];
    run(tool(&node, "run", &command)).assert(0, &[]);
    let doctor = run(tool(&node, "doctor", &["--pings", "1"]));
    assert!(doctor.out.contains("Trial: lock in"), "{doctor:?}");
    // The other nodes have no password, and one of its own.
    let (open, other) = (
        server(),
        Server::options()
            .arg("--requirepass", "other")
            .start()
            .unwrap(),
    );
    let nodes = format!("{node},{},redis://:other@{}", open.addr(), other.addr());
    let addr = open.addr();
    let status = [TOOL, "status", "k", "--timeout", TIMEOUT, "--redis", &addr];
    let command = [&["--key", "k", "--no-wait", "--"][..], &status].concat();
    let ended = run(tool(&nodes, "run", &command));
    ended.assert(0, &[]);
    assert!(ended.out.contains("held by"), "{ended:?}");
}

#[test]
fn cluster_is_a_node() {
    let masters: Vec<Server> = (0..2)
        .map(|_| {
            let bus = free_port().unwrap().to_string();
            let options = Server::options().arg("--cluster-enabled", "yes");
            options.arg("--cluster-port", &bus).start().unwrap()
        })
        .collect();
    let slots = [("0", "8191"), ("8192", "16383")];
    for (master, (first, last)) in masters.iter().zip(slots) {
        ask::<()>(master, &["CLUSTER", "ADDSLOTSRANGE", first, last]);
    }
    let bus: Vec<String> = ask(&masters[0], &["CONFIG", "GET", "cluster-port"]);
    let port = masters[0].port().to_string();
    ask::<()>(
        &masters[1],
        &["CLUSTER", "MEET", "127.0.0.1", &port, &bus[1]],
    );
    eventually("the cluster is up", || {
        masters.iter().all(|master| {
            let info: String = ask(master, &["CLUSTER", "INFO"]);
            info.contains("cluster_state:ok") && info.contains("cluster_slots_assigned:16384")
        })
    });
    let node = format!(
        "redis+cluster://{}+{}",
        masters[0].addr(),
        masters[1].addr()
    );
    works_on(&node);
    // From Redis 7 on the masters may be told not to name their hosts.
    let unnamed = [
        "CONFIG",
        "SET",
        "cluster-preferred-endpoint-type",
        "unknown-endpoint",
    ];
    let mut connections = masters.iter().map(connection);
    if connections.all(|mut it| {
        redis::cmd(unnamed[0])
            .arg(&unnamed[1..])
            .exec(&mut it)
            .is_ok()
    }) {
        let inside = format!("{TOOL} status k --timeout {TIMEOUT} --redis '{node}'");
        let command = ["--key", "k", "--owner", "me", "--", "sh", "-c", &inside];
        let ended = run(tool(&node, "run", &command));
        assert!(
            ended.status == 0 && ended.out.contains("held by me"),
            "{ended:?}"
        );
    }
}

#[test]
fn node_over_tls_needs_the_right_authority_and_certificate() {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (cert, key) = (
        file("cert", &certificate.pem()),
        file("key", &key.serialize_pem()),
    );
    let port = free_port().unwrap().to_string();
    let server = Server::options()
        .arg("--tls-port", &port)
        .arg("--tls-cert-file", &cert)
        .arg("--tls-key-file", &key)
        .arg("--tls-ca-cert-file", &cert)
        .start()
        .unwrap();
    let node = format!("rediss://127.0.0.1:{port}");
    let tls = ["--ca", &cert, "--cert", &cert, "--key-file", &key];
    let command = ["--key", "k", "--", "true"];
    // With files for TLS an address without a scheme is over TLS, for all commands.
    for node in [&*node, &format!("127.0.0.1:{port}")] {
        run(tool(node, "run", &[&tls[..], &command].concat())).assert(0, &[]);
        let status = run(tool(node, "status", &[&["k"][..], &tls].concat()));
        assert_eq!(
            (status.status, &*status.out),
            (1, "k: free\n"),
            "{status:?}"
        );
    }
    let plain = format!("redis://:s3cret@{}", server.addr());
    for (name, args) in [("run", &command[..]), ("status", &["k"]), ("list", &[])] {
        let refused = run(tool(&plain, name, &[&tls[..], args].concat()));
        refused.assert(64, &["not over TLS"]);
    }
    // The server asks for a certificate, and its own is not of a public authority.
    // A connect is tried again for five times the limit of a node.
    let common = ["run", "--timeout", "500ms", "--redis", &node, "--no-wait"];
    let without = run(bare(&[&common[..], &command].concat()));
    assert!(matches!(without.status, 69 | 77), "{without:?}");
    assert_eq!(ask::<u32>(&server, &["DBSIZE"]), 0);
}
