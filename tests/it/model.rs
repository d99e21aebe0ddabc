//! The protocol as a model, gone through state by state.

use std::time::{Duration, Instant};
use stateright::{Checker, HasDiscoveries, Model};

mod exclusive;
mod lane;

const ONE_HOLDER: &str = "at most one client believes that it holds";
const FENCE_INCREASES: &str = "fencing tokens increase";
const FREE_WHEN_LEFT: &str = "what was left is free";
const SECOND_HOLDS: &str = "who comes second gets it";

use exclusive::Config;

#[test]
fn probe() {
    for (name, config) in [
        ("plain", Config::default()),
        ("break1", Config { breaks: 1, ..Config::default() }),
        ("aw", Config { answers_wait: true, ..Config::default() }),
        ("2att", Config { attempts: [2, 1], ..Config::default() }),
        ("ext", Config { extensions: 1, short_extensions: true, ..Config::default() }),
        ("restart", Config { restarts: 1, ..Config::default() }),
        ("losses", Config { losses: 1, ..Config::default() }),
    ] {
        let started = Instant::now();
        let same = config.attempts[0] == config.attempts[1];
        let checker = config.checker().symmetry_fn(if same { exclusive::State::in_order_of_equals } else { exclusive::State::in_order })
            .timeout(Duration::from_secs(20)).spawn_dfs().join();
        println!("{name}: unique {} of {}, depth {}, {:?}", checker.unique_state_count(), checker.state_count(), checker.max_depth(), started.elapsed());
        for (name, path) in checker.discoveries() {
            if name != SECOND_HOLDS { println!("FOUND {name}: {path:?}"); }
            else { println!("   second {}", path.into_actions().len()); }
        }
    }
    let _ = HasDiscoveries::All;
}
