//! Nodes that are a Sentinel-watched master, a cluster, or a server that speaks TLS.

use std::fs;

use redguard_servers::free_port;
use serde_json::Value;

use crate::support::process::{Ended, TIMEOUT, run, tool};
use crate::support::servers::Server;
use crate::support::{ask, eventually, server};

fn json_lines(ended: &Ended) -> Vec<Value> {
    let lines = ended.out.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Runs all commands on one node: `run`, and from inside it `status`, `list` and `break`.
fn works_on(node: &str) {
    let tool_path = crate::support::process::TOOL;
    let inside = |command: &str| {
        format!("{tool_path} {command} --timeout {TIMEOUT} --redis '{node}' --json")
    };
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
    works_on(&format!("redis+sentinel://{}/shop", sentinel.addr()));
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
    works_on(&format!(
        "redis+cluster://{}+{}",
        masters[0].addr(),
        masters[1].addr()
    ));
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
    run(tool(&node, "run", &[&tls[..], &command].concat())).assert(0, &[]);
    let status = run(tool(&node, "status", &[&["k"][..], &tls].concat()));
    assert_eq!(
        (status.status, &*status.out),
        (1, "k: free\n"),
        "{status:?}"
    );
    // The server asks for a certificate, and its own is not of a public authority.
    let without = run(tool(&node, "run", &[&["--no-wait"][..], &command].concat()));
    assert!(matches!(without.status, 69 | 77), "{without:?}");
    assert_eq!(ask::<u32>(&server, &["DBSIZE"]), 0);
}
