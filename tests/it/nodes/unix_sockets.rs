//! Nodes on Unix sockets. The conformance suites test locks on them.

use std::time::Duration;

use redguard::{Error, Locker, NodeFailure, Nodes, RedisLocker};

use crate::support::fixtures::{LIMIT, TTL, acquire_lock, at, connect_by};
use crate::support::log_capture::captured_log;
use crate::support::{eventually, on_socket, raw, unique_key};

fn cause(error: Error) -> (String, NodeFailure) {
    match error {
        Error::InsufficientQuorum { causes, .. } => {
            (causes[0].node.clone(), causes[0].failure.clone())
        }
        other => panic!("{other}"),
    }
}

#[test]
fn socket_accepts_user_password_and_database() {
    let password = unique_key("socket secret/&?#");
    let written: String = password
        .bytes()
        .map(|byte| format!("%{byte:02X}"))
        .collect();
    captured_log();
    let (server, url) = on_socket(&password);
    let key = unique_key("socket");
    let brief = Duration::from_secs(1);
    for (address, good) in [
        (format!("{url}?db=3&user=default&pass={written}"), true),
        (format!("{url}?pass={written}&db=3"), true),
        (format!("{url}?db=3&pass=wrong"), false),
        (url.clone(), false),
    ] {
        let config = at([&address]).connect_timeout(brief).node_timeout(brief);
        let shown = format!("{config:?}");
        assert!(
            !shown.contains(&password) && !shown.contains(&written),
            "{shown}"
        );
        match (Nodes::connect(config), good) {
            (Ok(nodes), true) => {
                let guard = acquire_lock(&RedisLocker::new(&nodes), &key);
                let mut bare = redis::Client::open(&*address)
                    .unwrap()
                    .get_connection()
                    .unwrap();
                let there = redis::cmd("EXISTS")
                    .arg(format!("redguard:{key}"))
                    .query::<bool>(&mut bare);
                assert!(there.unwrap());
                guard.release().unwrap();
                let health = nodes.health();
                assert!(url.ends_with(&health.nodes[0].node), "{health:?}");
            }
            (Err(error), false) => {
                let (name, cause) = cause(error);
                assert!(
                    url.ends_with(&name) && matches!(cause, NodeFailure::AccessDenied(_)),
                    "{cause}"
                );
            }
            (result, _) => panic!("{address}: {result:?}"),
        }
    }
    // Also for a password from the settings instead of the address.
    let locker = RedisLocker::connect(at([&url]).password(&*password).db(3)).unwrap();
    acquire_lock(&locker, &key).release().unwrap();
    assert!(!captured_log().mentions(&password) && !captured_log().mentions(&written));
    drop(server);
}

#[test]
fn missing_socket_is_unreachable_until_it_is_back() {
    let (server, url) = on_socket("");
    let locker = connect_by(at([&url]), std::slice::from_ref(&server));
    let (key, brief) = (unique_key("gone"), Duration::from_secs(1));
    server.kill();
    let error = locker.try_lock(&key, TTL).unwrap_err();
    assert!(matches!(cause(error).1, NodeFailure::Unreachable(_)));
    let nowhere = at(["unix:///nowhere.sock"])
        .connect_timeout(brief)
        .node_timeout(brief);
    let (name, cause) = cause(Nodes::connect(nowhere).unwrap_err());
    assert_eq!(name, "/nowhere.sock");
    assert!(matches!(cause, NodeFailure::Unreachable(_)), "{cause}");
    server.restart().unwrap();
    eventually(LIMIT, "the node is back", || {
        locker.try_lock(&key, TTL).is_ok_and(|got| got.is_some())
    });
    drop(raw(&server));
}

#[test]
fn server_behind_a_port_and_a_socket_is_refused() {
    let (server, url) = on_socket("");
    let error = Nodes::connect(at([server.addr(), url])).unwrap_err();
    assert!(
        matches!(&error, Error::InvalidConfig(text) if text.contains("same server")),
        "{error}"
    );
}
