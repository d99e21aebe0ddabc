//! The exclusive lock keeps its rules in every state; with a planted bug it does not.

use crate::exclusive::{Bug, Config, State};
use crate::{
    FENCE_INCREASES, FREE_WHEN_LEFT, ONE_HOLDER, counterexample, hold_everywhere, is_large,
};

/// Returns the function that selects one of several equivalent states.
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

/// A client's second attempt may be a handoff to the next thread of its process.
fn handed_off() -> Config {
    Config {
        hands_off: true,
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

/// The order of fencing tokens does not depend on time.
fn fenced() -> Config {
    Config {
        fenced: true,
        fences: [0, 0, 1],
        still: true,
        ..Config::default()
    }
}

/// Stops time, which leaves fewer states for bugs that do not depend on it.
fn still(config: Config) -> Config {
    Config {
        still: true,
        ..config
    }
}

#[test]
fn rules_hold_with_a_second_attempt() {
    keeps_its_rules("second attempt", second_attempt(), 107_000);
}

#[test]
fn rules_hold_with_handoffs() {
    keeps_its_rules("handed off", handed_off(), 150_000);
}

#[test]
fn rules_hold_with_late_replies() {
    let config = Config {
        replies_wait: true,
        ..one_attempt_each()
    };
    keeps_its_rules("late replies", config, 60_000);
}

#[test]
fn rules_hold_with_extensions() {
    keeps_its_rules("extensions", extensions(), 196_000);
}

#[test]
fn rules_hold_with_a_broken_connection() {
    keeps_its_rules("broken connection", broken_connections(1), 80_000);
}

#[test]
fn rules_hold_with_restarts() {
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

/// A quorum that loses one node's data need not meet the next quorum.
#[test]
fn fencing_tokens_repeat_if_clocks_differ_and_a_node_loses_its_data() {
    let config = Config {
        losses: 1,
        clocks_in_step: false,
        fences: [0; 3],
        ..fenced()
    };
    breaks(FENCE_INCREASES, &[], config);
}

#[test]
fn rules_hold_in_large_models_of_attempts() {
    if !is_large() {
        return;
    }
    for (name, config, least) in [
        ("two breaks", broken_connections(2), 467_000),
        (
            "broken connection, late replies",
            Config {
                replies_wait: true,
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
            "second attempt, late replies",
            Config {
                replies_wait: true,
                ..second_attempt()
            },
            722_000,
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
fn rules_hold_in_large_models_of_handoffs() {
    if !is_large() {
        return;
    }
    for (name, config, least) in [
        (
            "handed off, broken connection",
            Config {
                breaks: 1,
                ..handed_off()
            },
            100_000,
        ),
        (
            "handed off, lost data",
            Config {
                losses: 1,
                ..handed_off()
            },
            100_000,
        ),
        (
            "handed off, late replies",
            Config {
                replies_wait: true,
                ..handed_off()
            },
            100_000,
        ),
        (
            "handed off, extensions",
            Config {
                extensions: 1,
                ..handed_off()
            },
            100_000,
        ),
        (
            "handed off, fenced",
            Config {
                hands_off: true,
                attempts: [2, 1],
                ..fenced()
            },
            10_000,
        ),
    ] {
        keeps_its_rules(name, config, least);
    }
}

#[test]
fn rules_hold_in_large_models_of_extensions_and_fencing() {
    if !is_large() {
        return;
    }
    for (name, config, least) in [
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
    ] {
        keeps_its_rules(name, config, least);
    }
}

#[test]
fn quorum_of_reachable_nodes_breaks_exclusion() {
    let config = still(broken_connections(2));
    breaks(ONE_HOLDER, &[Bug::QuorumOfReachable], config);
}

#[test]
fn validity_from_the_grant_breaks_exclusion() {
    breaks(ONE_HOLDER, &[Bug::NoElapsed], one_attempt_each());
}

/// First in, first out keeps an undo away from a later grant to the same token, as long as former
/// connections are killed.
#[test]
fn reused_token_or_living_former_connection_breaks_rules() {
    let config = still(Config {
        breaks: 1,
        ..second_attempt()
    });
    breaks(ONE_HOLDER, &[Bug::OneToken, Bug::NoKill], config);
    let config = still(broken_connections(1));
    breaks(FREE_WHEN_LEFT, &[Bug::NoKill], config);
}

#[test]
fn release_of_any_owner_breaks_exclusion() {
    breaks(ONE_HOLDER, &[Bug::UnlockByName], still(second_attempt()));
}

#[test]
fn failed_attempt_without_undo_leaves_keys() {
    breaks(FREE_WHEN_LEFT, &[Bug::NoUndo], still(one_attempt_each()));
}

#[test]
fn extension_that_shortens_breaks_exclusion() {
    let config = Config {
        short_extensions: true,
        ..extensions()
    };
    breaks(ONE_HOLDER, &[Bug::ExtensionShortens], config);
}

#[test]
fn restore_after_release_breaks_rules() {
    let config = still(extensions());
    breaks(FREE_WHEN_LEFT, &[Bug::RestoreAfterRelease], config);
}

#[test]
fn greatest_counter_without_second_round_breaks_fencing() {
    breaks(FENCE_INCREASES, &[Bug::NoSecondRound], fenced());
}

#[test]
fn vote_without_quarantine_breaks_exclusion() {
    breaks(ONE_HOLDER, &[Bug::NoQuarantine], still(lost_data()));
}

#[test]
fn swap_of_foreign_token_or_without_ttl_breaks_exclusion() {
    breaks(ONE_HOLDER, &[Bug::SwapsForeign], handed_off());
    breaks(ONE_HOLDER, &[Bug::SwapKeepsTime], handed_off());
}

#[test]
fn failed_swap_without_both_releases_leaves_keys() {
    breaks(FREE_WHEN_LEFT, &[Bug::NextForgotten], still(handed_off()));
    let config = Config {
        breaks: 1,
        ..handed_off()
    };
    breaks(FREE_WHEN_LEFT, &[Bug::FormerForgotten], still(config));
}
