//! The part of a `Config` that a file of settings can have. With the feature `serde`.

use std::fmt;
use std::time::Duration;

use serde::de::{Error, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};

use crate::config::address;
use crate::config::builder::Config;
use crate::config::on_drop::OnDrop;
use crate::protocol::retry::RetryPolicy;
use crate::time::human;

/// The settings under the names of the methods of [`Config`]. A setting that is left out has its
/// default.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlainConfig {
    nodes: Addresses,
    username: Option<String>,
    password: Option<Password>,
    db: Option<u32>,
    pool_size: Option<usize>,
    key_prefix: Option<String>,
    owner_label: Option<String>,
    #[serde(default)]
    no_owner_label: bool,
    retry: Option<RetryPolicy>,
    #[serde(default, with = "human::optional")]
    node_timeout: Option<Duration>,
    #[serde(default, with = "human::optional")]
    connect_timeout: Option<Duration>,
    min_validity: Option<f64>,
    on_drop: Option<OnDrop>,
    circuit_breaker: Option<PlainBreaker>,
    allow_degraded: Option<bool>,
    #[serde(default, with = "human::optional")]
    restart_quarantine: Option<Duration>,
    reject_evicting_servers: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlainBreaker {
    threshold: u32,
    #[serde(with = "human")]
    open_for: Duration,
}

/// A list of addresses, or a text of addresses separated by commas.
///
/// An error shows no part of the input, because an address may have a password.
struct Addresses(Vec<String>);

/// A password. An error does not show the value that was found in its place.
struct Password(String);

/// Reads a text, or a list of texts.
struct TextVisitor {
    expected: &'static str,
    takes_list: bool,
}

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Vec<String>, E> {
        Ok(vec![text.to_owned()])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<String>, A::Error> {
        if !self.takes_list {
            return Err(A::Error::invalid_type(Unexpected::Seq, &self));
        }
        let mut texts = Vec::new();
        while let Some(Password(text)) = list.next_element()? {
            texts.push(text);
        }
        Ok(texts)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Vec<String>, E> {
        Err(E::invalid_type(Unexpected::Other("a truth value"), &self))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Vec<String>, E> {
        Err(E::invalid_type(Unexpected::Other("a number"), &self))
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Vec<String>, E> {
        Err(E::invalid_type(Unexpected::Other("a number"), &self))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Vec<String>, E> {
        Err(E::invalid_type(Unexpected::Other("a number"), &self))
    }
}

impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Addresses, D::Error> {
        let visitor = TextVisitor {
            expected: "addresses, in a list or separated by commas",
            takes_list: true,
        };
        let texts = from.deserialize_any(visitor)?;
        let parts = texts.iter().flat_map(|text| address::split(text));
        Ok(Addresses(parts.map(str::to_owned).collect()))
    }
}

impl<'de> Deserialize<'de> for Password {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Password, D::Error> {
        let visitor = TextVisitor {
            expected: "a text",
            takes_list: false,
        };
        let mut texts = from.deserialize_any(visitor)?;
        Ok(Password(texts.pop().unwrap_or_default()))
    }
}

/// Applies a setting if there is one.
fn set<T>(config: Config, value: Option<T>, setter: fn(Config, T) -> Config) -> Config {
    match value {
        Some(value) => setter(config, value),
        None => config,
    }
}

impl From<PlainConfig> for Config {
    fn from(plain: PlainConfig) -> Config {
        let mut config = Config::new(plain.nodes.0);
        config = set(config, plain.username, Config::username);
        let password = plain.password.map(|password| password.0);
        config = set(config, password, Config::password);
        config = set(config, plain.db, Config::db);
        config = set(config, plain.pool_size, Config::pool_size);
        config = set(config, plain.key_prefix, Config::key_prefix);
        config = set(config, plain.owner_label, Config::owner_label);
        if plain.no_owner_label {
            config = config.no_owner_label();
        }
        config = set(config, plain.retry, Config::retry);
        config = set(config, plain.node_timeout, Config::node_timeout);
        config = set(config, plain.connect_timeout, Config::connect_timeout);
        config = set(config, plain.min_validity, Config::min_validity);
        config = set(config, plain.on_drop, Config::on_drop);
        config = set(config, plain.circuit_breaker, |config, breaker| {
            config.circuit_breaker(breaker.threshold, breaker.open_for)
        });
        config = set(config, plain.allow_degraded, Config::allow_degraded);
        config = set(config, plain.restart_quarantine, Config::restart_quarantine);
        set(
            config,
            plain.reject_evicting_servers,
            Config::reject_evicting_servers,
        )
    }
}

/// From a map of settings under the names of the methods, and `nodes`, a list of addresses or a
/// text of addresses separated by commas; `circuit_breaker` has `threshold` and `open_for`.
/// Durations are texts such as `200ms` or `1m 30s`. `tls`, `credentials` and `observer` are left to
/// the program: like any other unknown name they are an error in a file. With the feature `serde`.
/// A `Config` is not written to files, because it may have a password.
///
/// ```
/// let config: redguard::Config = serde_json::from_str(
///     r#"{ "nodes": ["10.0.0.1", "10.0.0.2", "10.0.0.3"], "node_timeout": "100ms",
///          "retry": { "max_wait": "5s" }, "on_drop": "background" }"#,
/// )?;
/// # Ok::<_, serde_json::Error>(())
/// ```
impl<'de> Deserialize<'de> for Config {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Config, D::Error> {
        PlainConfig::deserialize(from).map(Config::from)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn config_with_all_settings_is_that_of_the_builder() {
        let text = r#"{
            "nodes": ["a:1", "redis://b:2"], "username": "joe", "password": "s3cret", "db": 2,
            "pool_size": 3, "key_prefix": "p:", "owner_label": "w:7",
            "retry": { "max_attempts": 4, "max_wait": "1m 30s", "initial_delay": "5ms" },
            "node_timeout": "100ms", "connect_timeout": "2s", "min_validity": 0.25,
            "on_drop": "background", "circuit_breaker": { "threshold": 9, "open_for": "1h" },
            "allow_degraded": true, "restart_quarantine": "60s", "reject_evicting_servers": true
        }"#;
        let built = Config::new(["a:1", "redis://b:2"])
            .username("joe")
            .password("s3cret")
            .db(2)
            .pool_size(3)
            .key_prefix("p:")
            .owner_label("w:7")
            .retry(RetryPolicy {
                max_attempts: Some(4),
                max_wait: Some(Duration::from_secs(90)),
                initial_delay: Duration::from_millis(5),
                ..RetryPolicy::default()
            })
            .node_timeout(Duration::from_millis(100))
            .connect_timeout(Duration::from_secs(2))
            .min_validity(0.25)
            .on_drop(OnDrop::Background)
            .circuit_breaker(9, Duration::from_secs(3600))
            .allow_degraded(true)
            .restart_quarantine(Duration::from_secs(60))
            .reject_evicting_servers(true);
        let parsed = parse(text).unwrap();
        assert_eq!(format!("{parsed:?}"), format!("{built:?}"));
        assert!(parsed.validate().is_ok());
    }

    #[test]
    fn settings_left_out_have_their_defaults_and_unknown_ones_are_refused() {
        let parsed = parse(r#"{ "nodes": ["a"] }"#).unwrap();
        assert_eq!(format!("{parsed:?}"), format!("{:?}", Config::new(["a"])));
        for (text, word) in [
            ("{}", "nodes"),
            (r#"{ "nodes": ["a"], "pool": 2 }"#, "pool"),
            (r#"{ "nodes": ["a"], "node_timeout": "soon" }"#, "soon"),
            (r#"{ "nodes": ["a"], "node_timeout": 100 }"#, "string"),
            (r#"{ "nodes": ["a"], "retry": { "tries": 2 } }"#, "tries"),
        ] {
            let error = parse(text).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn addresses_are_a_list_or_a_text() {
        let built = format!("{:?}", Config::new(["a:1", "redis://b:2"]).no_owner_label());
        for nodes in [r#"["a:1", "redis://b:2"]"#, r#""a:1, redis://b:2,""#] {
            let text = format!(r#"{{ "nodes": {nodes}, "no_owner_label": true }}"#);
            assert_eq!(format!("{:?}", parse(&text).unwrap()), built);
        }
        let none = parse(r#"{ "nodes": "" }"#).unwrap();
        assert!(none.validate().is_err());
    }

    #[test]
    fn error_about_a_setting_shows_no_secret() {
        for text in [
            r#"{ "nodes": ["a"], "password": 5363 }"#,
            r#"{ "nodes": ["a"], "password": -5363 }"#,
            r#"{ "nodes": ["a"], "password": 5363.5 }"#,
            r#"{ "nodes": ["a"], "password": ["5363"] }"#,
            r#"{ "nodes": ["a"], "password": { "5363": 1 } }"#,
            r#"{ "nodes": { "redis://:5363@h": 1 } }"#,
            r#"{ "nodes": [["redis://:5363@h"]] }"#,
            r#"{ "nodes": 5363 }"#,
        ] {
            let error = parse(text).map(|_| ()).unwrap_err().to_string();
            assert!(!error.contains("5363"), "{text}: {error}");
            assert!(error.contains("expected a"), "{error}");
        }
    }

    #[test]
    fn retry_policy_written_and_read_is_unchanged() {
        for policy in [
            RetryPolicy::default(),
            RetryPolicy {
                max_attempts: Some(3),
                max_wait: Some(Duration::from_millis(90_250)),
                jitter: 0.5,
                ..RetryPolicy::default()
            },
        ] {
            let text = serde_json::to_string(&policy).unwrap();
            assert_eq!(
                serde_json::from_str::<RetryPolicy>(&text).unwrap(),
                policy,
                "{text}"
            );
        }
    }
}
