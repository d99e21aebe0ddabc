//! The read-write lock keeps its rules in every state; with a planted bug it does not.

use crate::read_write::{Bug, CLIENTS, Config, Role, State};
use crate::{
    FREE_WHEN_LEFT, GATE_STOPS_NEW_ONLY, READERS_OR_WRITER, counterexample, hold_everywhere,
    is_large,
};

/// Returns the function that selects one of several equivalent states.
fn in_order(config: &Config) -> fn(&State) -> State {
    let same = config.roles[1] == config.roles[2]
        && config.attempts[1] == config.attempts[2]
        && config.extensions[1] == config.extensions[2];
    match same {
        true => State::in_order_of_equals,
        false => State::in_order,
    }
}

fn keeps_its_rules(name: &str, config: Config, least: usize) {
    let in_order = in_order(&config);
    hold_everywhere(&format!("read-write, {name}"), config, in_order, least);
}

fn breaks(rule: &'static str, bug: Bug, config: Config) {
    let in_order = in_order(&config);
    let name = format!("{bug:?}");
    let bugs = vec![bug];
    counterexample(&name, Config { bugs, ..config }, in_order, rule);
}

fn writer_and_reader() -> Config {
    Config::default()
}

/// The writer's second attempt has a gate entry.
fn gate() -> Config {
    Config {
        attempts: [2, 1, 0],
        ..Config::default()
    }
}

fn reader_extends() -> Config {
    Config {
        extensions: [0, 1, 0],
        ..Config::default()
    }
}

fn downgrade() -> Config {
    Config {
        downgrades: true,
        ..Config::default()
    }
}

fn two_writers() -> Config {
    Config {
        roles: [Role::Writer; CLIENTS],
        ..Config::default()
    }
}

fn broken_connection() -> Config {
    Config {
        breaks: 1,
        ..Config::default()
    }
}

/// Stops time, which leaves fewer states.
fn still(config: Config) -> Config {
    Config {
        still: true,
        ..config
    }
}

#[test]
fn rules_hold_with_a_gate() {
    let config = Config {
        extensions: [0, 1, 0],
        ..gate()
    };
    keeps_its_rules("gate, reader extends, no time", still(config), 25_000);
}

#[test]
fn rules_hold_with_extensions() {
    keeps_its_rules("reader extends", reader_extends(), 69_000);
}

#[test]
fn rules_hold_with_a_broken_connection() {
    keeps_its_rules(
        "broken connection, no time",
        still(broken_connection()),
        7_600,
    );
}

#[test]
fn rules_hold_with_a_downgrade() {
    keeps_its_rules("downgrade", downgrade(), 94_000);
    let config = Config {
        breaks: 1,
        ..downgrade()
    };
    keeps_its_rules(
        "downgrade, broken connection, no time",
        still(config),
        29_000,
    );
}

#[test]
fn rules_hold_with_three_clients() {
    let config = Config {
        attempts: [1; CLIENTS],
        ..writer_and_reader()
    };
    keeps_its_rules("writer and two readers, no time", still(config), 14_000);
}

#[test]
fn rules_hold_with_two_writers() {
    keeps_its_rules("two writers", two_writers(), 12_000);
}

#[test]
fn rules_hold_in_large_models() {
    if !is_large() {
        return;
    }
    for (name, config, least) in [
        ("gate", gate(), 186_000),
        ("broken connection", broken_connection(), 159_000),
        (
            "writer and two readers",
            Config {
                attempts: [1; CLIENTS],
                ..writer_and_reader()
            },
            1_240_000,
        ),
        (
            "gate, reader extends",
            Config {
                extensions: [0, 1, 0],
                ..gate()
            },
            1_270_000,
        ),
        (
            "gate, two attempts each",
            Config {
                attempts: [2, 2, 0],
                ..gate()
            },
            2_160_000,
        ),
        (
            "late replies",
            Config {
                replies_wait: true,
                ..writer_and_reader()
            },
            100_000,
        ),
    ] {
        keeps_its_rules(name, config, least);
    }
}

#[test]
fn rules_hold_in_large_models_of_downgrades() {
    if !is_large() {
        return;
    }
    for (name, config, least) in [
        (
            "downgrade, broken connection",
            Config {
                breaks: 1,
                ..downgrade()
            },
            1_370_000,
        ),
        (
            "downgrade, extension",
            Config {
                extensions: [1, 0, 0],
                ..downgrade()
            },
            730_000,
        ),
        (
            "downgrade, extension, broken connection, no time",
            still(Config {
                extensions: [1, 0, 0],
                breaks: 1,
                ..downgrade()
            }),
            100_000,
        ),
    ] {
        keeps_its_rules(name, config, least);
    }
}

#[test]
fn reader_that_checks_separately_breaks_exclusion() {
    let config = still(writer_and_reader());
    breaks(READERS_OR_WRITER, Bug::ExistsThenAdd, config);
}

#[test]
fn reader_with_one_node_breaks_exclusion() {
    let config = still(writer_and_reader());
    breaks(READERS_OR_WRITER, Bug::ReadFromOne, config);
}

#[test]
fn gate_that_stops_all_readers_breaks_rules() {
    let config = still(Config {
        extensions: [0, 1, 0],
        ..gate()
    });
    breaks(GATE_STOPS_NEW_ONLY, Bug::GateStopsAll, config);
}

#[test]
fn undeleted_gate_entry_leaves_keys() {
    breaks(FREE_WHEN_LEFT, Bug::StaysAtTheGate, still(gate()));
}

#[test]
fn downgraded_lock_is_released_as_writer_or_reader() {
    let config = still(Config {
        breaks: 1,
        ..downgrade()
    });
    breaks(FREE_WHEN_LEFT, Bug::ReleaseInOneForm, config);
}

#[test]
fn downgrade_in_two_steps_breaks_exclusion() {
    let config = still(Config {
        downgrades: true,
        ..two_writers()
    });
    breaks(READERS_OR_WRITER, Bug::DowngradeInTwoSteps, config);
}
