//! Validation of all settings, through the builder.

use std::time::Duration;

use proptest::prelude::*;

use crate::config::builder::Config;
use crate::config::credentials::Credentials;
use crate::config::on_drop::OnDrop;
use crate::config::settings::MAX_TIMEOUT;
use crate::error::error::Error;
use crate::protocol::retry::RetryPolicy;

fn config() -> Config {
    Config::new(["a:1", "b:2", "c:3"])
}

#[test]
fn invalid_config_names_the_values() {
    let ms = Duration::from_millis;
    let table = [
        (Config::new::<[&str; 0]>([]), "no node addresses"),
        (Config::new(vec!["a"; 65]), "65 nodes are over 64"),
        (config().pool_size(0), "pool_size 0"),
        (config().owner_label("a\nb"), "\"a\\nb\""),
        (config().owner_label(""), "owner_label \"\""),
        (config().owner_label("é"), "owner_label"),
        (config().owner_label("x".repeat(65)), "owner_label"),
        (config().node_timeout(Duration::ZERO), "node_timeout 0ns"),
        (
            config().node_timeout(ms(300)).connect_timeout(ms(200)),
            "connect_timeout 200ms is below node_timeout 300ms",
        ),
        (config().connect_timeout(Duration::MAX), "connect_timeout"),
        (config().min_validity(0.99), "min_validity 0.99"),
        (config().min_validity(f64::NAN), "min_validity NaN"),
        (config().min_validity(-0.1), "min_validity -0.1"),
        (config().username("joe"), "without a password"),
        (
            config()
                .password("s3cret")
                .credentials(|_| Credentials::password("s3cret")),
            "credentials are set together",
        ),
        (config().circuit_breaker(0, ms(1)), "threshold 0"),
        (config().circuit_breaker(1, ms(0)), "open_for 0s"),
        (config().restart_quarantine(ms(0)), "restart_quarantine 0s"),
    ];
    for (config, words) in table {
        let error = match config.validate() {
            Ok(_) => panic!("accepted, though {words}"),
            Err(error) => error.to_string(),
        };
        assert!(error.contains(words), "{error}");
    }
    assert!(config().validate().is_ok());
}

/// The README's rows of defaults, each with the settings that it names.
#[test]
fn settings_left_out_have_the_defaults_of_the_readme() {
    let (ms, secs) = (Duration::from_millis, Duration::from_secs);
    let s = config().validate().expect("good settings");
    let label = s.owner_label.as_ref().expect("a default label");
    let is_of_this_process = label.ends_with(&format!("/{}", std::process::id()));
    let retry = &s.retry;
    let rows = [
        (
            "| `node_timeout`, `connect_timeout` | 200 ms, 1 s |",
            (s.node_timeout, s.connect_timeout) == (ms(200), secs(1)),
        ),
        ("| `min_validity` | 0.5 |", s.min_validity == 0.5),
        (
            "| `retry.max_attempts`, `max_wait` | none |",
            (retry.max_attempts, retry.max_wait) == (None, None),
        ),
        (
            "| `retry.max_outage` | 10 s |",
            retry.max_outage == secs(10),
        ),
        (
            "| `retry.initial_delay`, `max_delay`, `jitter` | 100 ms, 2 s, 1.0 |",
            (retry.initial_delay, retry.max_delay, retry.jitter) == (ms(100), secs(2), 1.0),
        ),
        (
            "| `circuit_breaker` | 5 rounds, 60 s |",
            (s.breaker_threshold, s.breaker_open_for) == (5, secs(60)),
        ),
        ("| `on_drop` | `Wait` |", s.on_drop == OnDrop::Wait),
        (
            "| `pool_size`; `key_prefix`; `owner_label` | 1; `redguard:`; `HOST/PID` |",
            (s.pool_size, &*s.key_prefix) == (1, "redguard:") && is_of_this_process,
        ),
    ];
    let readme = include_str!("../../../README.md");
    for (row, is_default) in rows {
        assert!(is_default, "the default is not that of: {row}");
        let lines = readme.lines().filter(|line| line.starts_with(row));
        assert_eq!(lines.count(), 1, "not in the README: {row}");
    }
}

#[test]
fn settings_without_a_row_in_the_readme_are_off() {
    let s = config().validate().expect("good settings");
    assert_eq!((s.username, s.password, s.db), (None, None, None));
    assert!(s.credentials.is_none() && s.observer.is_none());
    #[cfg(feature = "tls")]
    assert!(s.tls.is_none());
    assert!(!s.allow_degraded && !s.reject_evicting_servers && !s.no_owner_label);
    assert_eq!(s.restart_quarantine, None);
    assert_eq!(s.max_split, Duration::from_millis(50));
}

fn duration() -> impl Strategy<Value = Duration> {
    let near = |ms: u64| (0..3 * ms).prop_map(Duration::from_millis);
    prop_oneof![
        near(1),
        near(100),
        near(3_600_000),
        (any::<u64>(), 0..1_000_000_000_u32).prop_map(|(s, ns)| Duration::new(s, ns)),
        Just(Duration::MAX),
    ]
}

fn fraction() -> impl Strategy<Value = f64> {
    prop_oneof![any::<f64>(), 0.0..1.0, Just(f64::NAN), Just(f64::INFINITY)]
}

prop_compose! {
    fn policy()(
        max_attempts in proptest::option::of(prop_oneof![0..3_u32, any::<u32>()]),
        max_wait in proptest::option::of(duration()),
        [max_outage, initial_delay, max_delay] in [duration(), duration(), duration()],
        jitter in fraction(),
    ) -> RetryPolicy {
        RetryPolicy { max_attempts, max_wait, max_outage, initial_delay, max_delay, jitter }
    }
}

proptest! {
    #[test]
    fn any_numbers_are_accepted_or_named(
        nodes in 0..70_usize,
        pool in prop_oneof![0..70_usize, any::<usize>()],
        db in any::<u32>(),
        [node, connect] in [duration(), duration()],
        min_validity in fraction(),
        retry in policy(),
        waited in duration(),
    ) {
        let config = Config::new(vec!["h"; nodes])
            .pool_size(pool)
            .db(db)
            .node_timeout(node)
            .connect_timeout(connect)
            .min_validity(min_validity)
            .retry(retry.clone());
        let _ = format!("{config:?}");
        match config.validate() {
            Ok(settings) => {
                prop_assert!((1..=64).contains(&nodes) && (1..=64).contains(&pool));
                prop_assert!(node <= connect && connect <= MAX_TIMEOUT && !node.is_zero());
                prop_assert!((0.0..0.99).contains(&min_validity));
                // An accepted policy can be computed with, without overflow.
                let attempts = retry.max_attempts.unwrap_or(u32::MAX);
                settings.retry.attempts_elapsed(waited);
                settings.retry.total_delay(attempts);
                prop_assert!(settings.retry.delay(attempts, 1.0) <= retry.max_delay);
            }
            Err(Error::NoAddresses) => prop_assert_eq!(nodes, 0),
            Err(Error::InvalidConfig(text)) => {
                let words = [
                    format!("{nodes} nodes"),
                    format!("pool_size {pool} "),
                    format!("node_timeout {node:?}"),
                    format!("connect_timeout {connect:?}"),
                    format!("min_validity {min_validity} "),
                    "max_attempts is 0".into(),
                    "initial_delay is 0".into(),
                    format!("initial_delay {:?} ", retry.initial_delay),
                    format!("jitter {} ", retry.jitter),
                ];
                prop_assert!(words.iter().any(|word| text.contains(word)), "{}", text);
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn any_owner_label_is_accepted_or_named(owner in "[ -~]{0,70}|\\PC{0,70}") {
        let good = (1..=64).contains(&owner.len())
            && owner.bytes().all(|b| (b' '..=b'~').contains(&b));
        match config().owner_label(&owner).validate() {
            Ok(_) => prop_assert!(good),
            Err(error) => {
                let shown = format!("{owner:?}");
                prop_assert!(!good && error.to_string().contains(&shown));
            }
        }
    }
}
