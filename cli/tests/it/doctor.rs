//! `doctor`: good nodes, faulty nodes, hung nodes, and rights.

use serde_json::Value;

use crate::support::process::{bare, run, tool};
use crate::support::servers::Server;
use crate::support::{addresses, ask, server, servers};

#[test]
fn doctor_is_content_with_good_nodes_alone() {
    let start = || {
        let options = Server::options().append_always();
        options.start().unwrap()
    };
    let nodes = [start(), start(), start()];
    let args = ["--pings", "20"];
    let well = run(tool(&addresses(&nodes), "doctor", &args));
    assert!(
        well.status == 0 && well.out.ends_with("All is well.\n"),
        "{well:?}"
    );
    for node in &nodes {
        let keys: Vec<String> = ask(node, &["KEYS", "*"]);
        // A fence counter stays for 30 days.
        assert!(keys.iter().all(|key| key.ends_with(":fence")), "{keys:?}");
    }

    ask::<()>(&nodes[0], &["CONFIG", "SET", "maxmemory", "100mb"]);
    ask::<()>(
        &nodes[0],
        &["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"],
    );
    ask::<()>(&nodes[1], &["ACL", "SETUSER", "default", "-incr", "-hset"]);
    nodes[2].kill();
    let ill = run(tool(&addresses(&nodes), "doctor", &args));
    assert_eq!(ill.status, 1, "{ill:?}");
    for words in ["noeviction", "+incr", "+hset", "refused", "Trial: "] {
        assert!(ill.out.contains(words), "{words}: {}", ill.out);
    }
    let told = run(tool(
        &addresses(&nodes),
        "doctor",
        &["--json", "--pings", "5"],
    ));
    let last: Value = serde_json::from_str(told.out.lines().last().unwrap()).unwrap();
    assert_eq!(last["well"], false);
}

/// Beside two others that grant every lock.
#[test]
fn doctor_names_a_node_that_grants_no_lock() {
    let start = |memory: &str| {
        let options = Server::options().append_always();
        options.arg("--maxmemory", memory).start().unwrap()
    };
    let nodes = [start("0"), start("1"), start("0")];
    let ended = run(tool(&addresses(&nodes), "doctor", &["--pings", "5"]));
    assert_eq!(ended.status, 1, "{ended:?}");
    let (_, advice) = ended.out.split_once("To change:\n").unwrap();
    assert_eq!(advice.lines().count(), 1, "{advice}");
    for words in [&*nodes[1].addr(), "no lock can be had", "OOM"] {
        assert!(advice.contains(words), "{words}: {advice}");
    }
}

#[test]
fn doctor_asks_for_rights_without_side_effects() {
    let node = server();
    let rule = "on >s3cret ~redguard:* ~{redguard:*}* &redguard:* +client|id +client|kill +info +script|load \
                +evalsha +set +get +del +pttl +pexpire +ping +time";
    let rule: Vec<&str> = ["ACL", "SETUSER", "locks"]
        .into_iter()
        .chain(rule.split_whitespace())
        .collect();
    ask::<()>(&node, &rule);
    let url = format!("redis://locks:s3cret@{}", node.addr());
    let ended = run(tool(&url, "doctor", &["--pings", "5"]));
    assert_eq!(ended.status, 1, "{ended:?}");
    assert!(!ended.out.contains(": locks need"), "{}", ended.out);
    for words in ["semaphores need rights", "+zadd", "+zrank", "+publish"] {
        assert!(ended.out.contains(words), "{words}: {}", ended.out);
    }
    // The names of keys whose rights are asked for, without those of the trial.
    let keys: Vec<String> = ask(&node, &["KEYS", "*redguard:doctor*"]);
    assert_eq!(keys, [""; 0]);
}

#[test]
fn doctor_says_what_a_hung_node_needs() {
    let nodes = servers(3);
    nodes[1].kill();
    nodes[2].stop().unwrap();
    let args = [
        "doctor",
        "--timeout",
        "500ms",
        "--redis",
        &addresses(&nodes),
    ];
    let ended = run(bare(&args));
    assert_eq!(ended.status, 69, "{ended:?}");
    let advice = |node: &Server| {
        let mut lines = ended.out.lines();
        let is_advice = |line: &&str| line.starts_with(&format!("  {}: ", node.addr()));
        lines.find(is_advice).unwrap()
    };
    assert!(advice(&nodes[1]).contains("start it"), "{ended:?}");
    let hung = advice(&nodes[2]);
    assert!(
        hung.contains("it hangs") && !hung.contains("start it"),
        "{ended:?}"
    );
}
