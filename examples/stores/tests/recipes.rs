//! The stores with tokens of real locks, and the guide that shows them.
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use redguard::{Config, LockOptions, Locker, RedisLocker};
use redguard_servers::Server;
use redguard_servers::temp_dir::TempDir;
use redguard_stores::{files, lua, sql};
use std::fs;
use std::time::Duration;

/// Longer than the test: the first lock ends because its keys are deleted, as after a pause past
/// its TTL.
const TTL: Duration = Duration::from_secs(300);

/// Returns the tokens of two holders, of which the first does not know that it has lost the lock.
fn tokens(servers: &[Server]) -> [u64; 2] {
    let config = || Config::new(servers.iter().map(Server::addr)).connect_timeout(TTL);
    let options = LockOptions::new(TTL).fencing(true);
    let [first, second] = [(); 2].map(|()| RedisLocker::connect(config()).unwrap());
    let paused = first.acquire("account-7", &options).unwrap();
    for server in servers {
        let client = redis::Client::open(server.url()).unwrap();
        let mut node = client.get_connection().unwrap();
        redis::cmd("DEL")
            .arg("redguard:account-7")
            .exec(&mut node)
            .unwrap();
    }
    let guard = second.acquire("account-7", &options).unwrap();
    [paused, guard].map(|guard| guard.fencing_token().unwrap())
}

#[test]
fn stale_holder_is_refused_by_each_store() {
    let servers: Vec<Server> = (0..3).map(|_| Server::start().unwrap()).collect();
    let [first, second] = tokens(&servers);
    assert!(first < second, "{first} {second}");

    let db = rusqlite::Connection::open_in_memory().unwrap();
    db.execute_batch(sql::TABLE).unwrap();
    assert!(sql::write(&db, sql::UPSERT, 7, 2, second).unwrap());
    for statement in [sql::UPDATE, sql::UPSERT] {
        assert!(!sql::write(&db, statement, 7, 1, first).unwrap());
    }

    let client = redis::Client::open(servers[0].url()).unwrap();
    let mut node = client.get_connection().unwrap();
    assert!(lua::write(&mut node, "balance-7", "2", second).unwrap());
    assert!(!lua::write(&mut node, "balance-7", "1", first).unwrap());

    let dir = TempDir::create("recipes-").unwrap();
    files::write(dir.path(), b"2", second).unwrap();
    files::write(dir.path(), b"1", first).unwrap();
    assert_eq!(files::read(dir.path()).unwrap().unwrap(), b"2");
}

/// Returns the text without the white space at the ends of lines and without empty lines.
fn lines(text: &str) -> Vec<&str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect()
}

#[test]
fn guide_shows_what_is_tested_here() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let guide = fs::read_to_string(format!("{root}/src/guide/fencing.md")).unwrap();
    let sources = ["sql", "lua", "files", "http"]
        .map(|name| fs::read_to_string(format!("{root}/examples/stores/{name}.rs")).unwrap());
    let sources: Vec<_> = sources.iter().map(|text| lines(text)).collect();
    // Blocks of the recipes, and not the calls of the library, which the doctests compile.
    let blocks = guide.split("```").skip(1).step_by(2);
    let blocks = blocks.filter_map(|block| block.split_once('\n'));
    let blocks: Vec<_> = blocks
        .filter(|(kind, _)| ["sql", "lua", "rust,ignore"].contains(kind))
        .collect();
    assert!(blocks.len() >= 4, "{} recipes", blocks.len());
    for (_, block) in blocks {
        let block = lines(block);
        let is_shown = sources
            .iter()
            .any(|source| source.windows(block.len()).any(|part| *part == block[..]));
        assert!(is_shown, "not in examples/stores: {block:#?}");
    }
}
