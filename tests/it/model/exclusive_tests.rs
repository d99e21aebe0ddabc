//! The exclusive lock keeps its rules in every state; with a known mistake in it, it does not.

use crate::model::exclusive::{Bug, Config, State};
use crate::model::{
    FENCE_INCREASES, FREE_WHEN_LEFT, ONE_HOLDER, counterexample, hold_everywhere, is_large,
};

/// Which one is gone through of the states that differ in what makes no difference.
fn in_order(config: &Config) -> fn(&State) -> State {
    match config.attempts[0] == config.attempts[1] {
        true => State::in_order_of_equals,
        false => State::in_order,
    }
}

fn keeps_its_rules(name: &str, config: Config, least: usize) {
    let in_order = in_order(&config);
    hold_everywhere(name, config, in_order, least);
}

fn breaks(rule: &'static str, bugs: &[Bug], config: Config) {
    let in_order = in_order(&config);
    let bugs = bugs.to_vec();
    let name = format!("{bugs:?}");
    counterexample(&name, Config { bugs, ..config }, in_order, rule);
}

fn one_attempt_each() -> Config {
    Config::default()
}

fn second_attempt() -> Config {
    Config {
        attempts: [2, 1],
        ..Config::default()
    }
}

/// A client's second attempt may be that of the next thread of its process, which is handed the lock.
fn handed_on() -> Config {
    Config {
        hands_on: true,
        ..second_attempt()
    }
}

fn extensions() -> Config {
    Config {
        extensions: 1,
        ..Config::default()
    }
}

fn broken_connections(breaks: u8) -> Config {
    Config {
        breaks,
        ..Config::default()
    }
}

fn restart() -> Config {
    Config {
        restarts: 1,
        ..Config::default()
    }
}

fn lost_data() -> Config {
    Config {
        losses: 1,
        ..Config::default()
    }
}

/// The order of fencing tokens does not rest on time.
fn fenced() -> Config {
    Config {
        fenced: true,
        fences: [0, 0, 1],
        still: true,
        ..Config::default()
    }
}

/// Without time there is less to go through until a mistake shows that does not need it.
fn still(config: Config) -> Config {
    Config {
        still: true,
        ..config
    }
}

#[test]
fn rules_are_kept_with_a_second_attempt() {
    keeps_its_rules("second attempt", second_attempt(), 107_000);
}

#[test]
fn rules_are_kept_where_a_lock_is_handed_on() {
    keeps_its_rules("handed on", handed_on(), 150_000);
}

#[test]
fn rules_are_kept_with_late_answers() {
    let config = Config {
        answers_wait: true,
        ..one_attempt_each()
    };
    keeps_its_rules("late answers", config, 60_000);
}

#[test]
fn rules_are_kept_with_extensions() {
    keeps_its_rules("extensions", extensions(), 196_000);
}

#[test]
fn rules_are_kept_with_a_broken_connection() {
    keeps_its_rules("broken connection", broken_connections(1), 80_000);
}

#[test]
fn rules_are_kept_with_nodes_that_end() {
    keeps_its_rules("restart", restart(), 67_000);
    keeps_its_rules("lost data", lost_data(), 78_000);
}

#[test]
fn fencing_tokens_increase() {
    keeps_its_rules("fenced", fenced(), 10_000);
    let config = Config {
        losses: 1,
        fences: [0; 3],
        ..fenced()
    };
    keeps_its_rules("fenced, lost data", config, 70_000);
}

/// What a quorum has kept, less one node, need not meet the next quorum.
#[test]
fn where_clocks_are_apart_one_node_that_loses_its_data_is_too_many_for_fencing_tokens() {
    let config = Config {
        losses: 1,
        clocks_in_step: false,
        fences: [0; 3],
        ..fenced()
    };
    breaks(FENCE_INCREASES, &[], config);
}

#[test]
fn rules_are_kept_in_large() {
    if !is_large() {
        return;
    }
    for (name, config, least) in [
        ("two breaks", broken_connections(2), 467_000),
        (
            "broken connection, late answers",
            Config {
                answers_wait: true,
                ..broken_connections(1)
            },
            680_000,
        ),
        (
            "second attempt, broken connection",
            Config {
                breaks: 1,
                ..second_attempt()
            },
            2_070_000,
        ),
        (
            "second attempt, lost data",
            Config {
                losses: 1,
                ..second_attempt()
            },
            1_550_000,
        ),
        (
            "second attempt, late answers",
            Config {
                answers_wait: true,
                ..second_attempt()
            },
            722_000,
        ),
        (
            "handed on, broken connection",
            Config {
                breaks: 1,
                ..handed_on()
            },
            100_000,
        ),
        (
            "handed on, lost data",
            Config {
                losses: 1,
                ..handed_on()
            },
            100_000,
        ),
        (
            "handed on, late answers",
            Config {
                answers_wait: true,
                ..handed_on()
            },
            100_000,
        ),
        (
            "handed on, extensions",
            Config {
                extensions: 1,
                ..handed_on()
            },
            100_000,
        ),
        (
            "handed on, fenced",
            Config {
                hands_on: true,
                attempts: [2, 1],
                ..fenced()
            },
            10_000,
        ),
        (
            "two attempts each",
            Config {
                attempts: [2, 2],
                ..Config::default()
            },
            479_000,
        ),
        (
            "short extensions",
            Config {
                short_extensions: true,
                ..extensions()
            },
            616_000,
        ),
        (
            "extensions, broken connection",
            Config {
                breaks: 1,
                ..extensions()
            },
            2_700_000,
        ),
        (
            "extensions, lost data",
            Config {
                losses: 1,
                ..extensions()
            },
            2_180_000,
        ),
        (
            "fenced, with time",
            Config {
                still: false,
                ..fenced()
            },
            1_580_000,
        ),
        (
            "fenced, lost data, fences apart",
            Config {
                losses: 1,
                ..fenced()
            },
            131_000,
        ),
        (
            "fenced, second attempt, broken connection",
            Config {
                attempts: [2, 1],
                breaks: 1,
                ..fenced()
            },
            100_000,
        ),
        (
            "longer validity",
            Config {
                validity: 3,
                extensions: 1,
                ..Config::default()
            },
            200_000,
        ),
    ] {
        keeps_its_rules(name, config, least);
    }
}

#[test]
fn a_quorum_of_the_nodes_that_are_reachable_is_none() {
    let config = still(broken_connections(2));
    breaks(ONE_HOLDER, &[Bug::QuorumOfReachable], config);
}

#[test]
fn validity_counts_from_the_start_of_the_attempt() {
    breaks(ONE_HOLDER, &[Bug::NoElapsed], one_attempt_each());
}

/// First in, first out keeps an undo from a later grant to the same token, as long as former connections are killed.
#[test]
fn a_token_is_for_one_attempt_and_a_former_connection_is_killed() {
    let config = still(Config {
        breaks: 1,
        ..second_attempt()
    });
    breaks(ONE_HOLDER, &[Bug::OneToken, Bug::NoKill], config);
    let config = still(broken_connections(1));
    breaks(FREE_WHEN_LEFT, &[Bug::NoKill], config);
}

#[test]
fn a_release_is_for_a_token_and_not_for_a_name() {
    breaks(ONE_HOLDER, &[Bug::UnlockByName], still(second_attempt()));
}

#[test]
fn an_attempt_that_failed_is_undone() {
    breaks(FREE_WHEN_LEFT, &[Bug::NoUndo], still(one_attempt_each()));
}

#[test]
fn an_extension_does_not_shorten() {
    let config = Config {
        short_extensions: true,
        ..extensions()
    };
    breaks(ONE_HOLDER, &[Bug::ExtensionShortens], config);
}

#[test]
fn nothing_is_put_back_after_a_release() {
    let config = still(extensions());
    breaks(FREE_WHEN_LEFT, &[Bug::RestoreAfterRelease], config);
}

#[test]
fn where_fences_differ_it_takes_a_second_round() {
    breaks(FENCE_INCREASES, &[Bug::NoSecondRound], fenced());
}

#[test]
fn a_node_without_its_data_waits_before_it_votes() {
    breaks(ONE_HOLDER, &[Bug::NoQuarantine], still(lost_data()));
}

#[test]
fn a_swap_leaves_other_owners_alone_and_begins_a_time_of_its_own() {
    breaks(ONE_HOLDER, &[Bug::SwapsForeign], handed_on());
    breaks(ONE_HOLDER, &[Bug::SwapKeepsTime], handed_on());
}

#[test]
fn of_a_swap_that_failed_both_tokens_are_released() {
    breaks(FREE_WHEN_LEFT, &[Bug::NextForgotten], still(handed_on()));
    let config = Config {
        breaks: 1,
        ..handed_on()
    };
    breaks(FREE_WHEN_LEFT, &[Bug::FormerForgotten], still(config));
}
