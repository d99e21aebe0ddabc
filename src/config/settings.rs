//! The settings of a `Config`: defaults, and validation of ranges and contradictions.

use std::sync::Arc;
use std::time::Duration;

use crate::config::credentials::CredentialsProvider;
use crate::config::endpoint::Endpoint;
#[cfg(any(feature = "sentinel", feature = "cluster"))]
use crate::config::endpoint::EndpointKind;
use crate::config::on_drop::OnDrop;
use crate::config::owner_label;
#[cfg(feature = "tls")]
use crate::config::tls::Tls;
use crate::error::Error;
#[cfg(feature = "cluster")]
use crate::protocol::key_set::KeySet;
use crate::protocol::quorum;
use crate::protocol::retry::RetryPolicy;
use crate::protocol::token::OwnerLabel;
use crate::protocol::ttl::Ttl;
use crate::telemetry::observer::Observer;

/// The part of a TTL that an attempt must leave.
const DEFAULT_MIN_VALIDITY: f64 = 0.5;

const MIN_TIMEOUT: Duration = Duration::from_millis(1);
/// A longer block is as good as endless.
const MAX_TIMEOUT: Duration = Duration::from_secs(3600);
const MAX_POOL: usize = 64;

/// All settings of a [`Config`](crate::Config).
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<String>,
    /// Replaces user and password, for credentials that change.
    pub(crate) credentials: Option<CredentialsProvider>,
    pub(crate) db: Option<u32>,
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<Tls>,
    pub(crate) pool_size: usize,
    pub(crate) key_prefix: String,
    /// `None` until [`validate`](Settings::validate) sets the default, unless `no_owner_label`.
    pub(crate) owner_label: Option<OwnerLabel>,
    pub(crate) no_owner_label: bool,
    pub(crate) retry: RetryPolicy,
    pub(crate) node_timeout: Duration,
    /// The longest time for which an attempt repeats a split vote (L1).
    pub(crate) max_split: Duration,
    pub(crate) connect_timeout: Duration,
    pub(crate) min_validity: f64,
    pub(crate) on_drop: OnDrop,
    pub(crate) breaker_threshold: u32,
    pub(crate) breaker_open_for: Duration,
    pub(crate) allow_degraded: bool,
    pub(crate) restart_quarantine: Option<Duration>,
    pub(crate) reject_evicting_servers: bool,
    pub(crate) observer: Option<Arc<dyn Observer>>,
}

impl Settings {
    /// Creates settings with defaults for all but the nodes.
    pub(crate) fn new(endpoints: Vec<Endpoint>) -> Settings {
        Settings {
            endpoints,
            username: None,
            password: None,
            credentials: None,
            db: None,
            #[cfg(feature = "tls")]
            tls: None,
            pool_size: 1,
            key_prefix: "redguard:".to_owned(),
            owner_label: None,
            no_owner_label: false,
            retry: RetryPolicy::default(),
            node_timeout: Duration::from_millis(200),
            max_split: Duration::from_millis(50),
            connect_timeout: Duration::from_secs(1),
            min_validity: DEFAULT_MIN_VALIDITY,
            on_drop: OnDrop::Wait,
            breaker_threshold: 5,
            breaker_open_for: Duration::from_secs(60),
            allow_degraded: false,
            restart_quarantine: None,
            reject_evicting_servers: false,
            observer: None,
        }
    }

    /// Validates all settings.
    ///
    /// # Errors
    /// `NoAddresses`, and `InvalidConfig`, which names the values.
    pub(crate) fn validate(mut self) -> Result<Settings, Error> {
        if self.endpoints.is_empty() {
            return Err(Error::NoAddresses);
        }
        self.validate_nodes()
            .and_then(|()| self.validate_owner_label())
            .and_then(|()| self.validate_timeouts())
            .and_then(|()| self.validate_breaker())
            .and_then(|()| self.validate_credentials())
            .map_err(Error::InvalidConfig)?;
        #[cfg(any(feature = "sentinel", feature = "cluster"))]
        self.validate_topologies().map_err(Error::InvalidConfig)?;
        self.retry.validate()?;
        if self.owner_label.is_none() && !self.no_owner_label {
            self.owner_label = Some(owner_label::default_label());
        }
        Ok(self)
    }

    fn validate_nodes(&self) -> Result<(), String> {
        let (nodes, pool_size) = (self.endpoints.len(), self.pool_size);
        if nodes > quorum::MAX_NODES {
            return Err(format!("{nodes} nodes are over {}", quorum::MAX_NODES));
        }
        match pool_size {
            1..=MAX_POOL => Ok(()),
            _ => Err(format!(
                "pool_size {pool_size} is not within 1 to {MAX_POOL}"
            )),
        }
    }

    fn validate_owner_label(&self) -> Result<(), String> {
        let label = self.owner_label.as_ref();
        label.map_or(Ok(()), |label| owner_label::validate(label))
    }

    fn validate_timeouts(&self) -> Result<(), String> {
        let (node, connect) = (self.node_timeout, self.connect_timeout);
        if node < MIN_TIMEOUT {
            return Err(format!("node_timeout {node:?} is below {MIN_TIMEOUT:?}"));
        }
        if connect < node {
            return Err(format!(
                "connect_timeout {connect:?} is below node_timeout {node:?}"
            ));
        }
        if connect > MAX_TIMEOUT {
            return Err(format!(
                "connect_timeout {connect:?} is above {MAX_TIMEOUT:?}"
            ));
        }
        // At 0.99 the drift allowance, a hundredth of the TTL and 2 ms, leaves no TTL that could
        // pass.
        if !(0.0..0.99).contains(&self.min_validity) {
            return Err(format!(
                "min_validity {} is not within 0.0 to below 0.99",
                self.min_validity
            ));
        }
        match self.restart_quarantine {
            Some(Duration::ZERO) => Err("restart_quarantine 0s: every TTL is longer".to_owned()),
            _ => Ok(()),
        }
    }

    fn validate_breaker(&self) -> Result<(), String> {
        if self.breaker_threshold == 0 {
            return Err("circuit_breaker threshold 0: at least one round is needed".to_owned());
        }
        match self.breaker_open_for {
            Duration::ZERO => Err("circuit_breaker open_for 0s: it would never be open".to_owned()),
            _ => Ok(()),
        }
    }

    fn validate_credentials(&self) -> Result<(), String> {
        if self.username.is_some() && self.password.is_none() {
            return Err("a username is set without a password".to_owned());
        }
        match self.credentials.is_some() && (self.username.is_some() || self.password.is_some()) {
            true => Err("credentials are set together with a username or password".to_owned()),
            false => Ok(()),
        }
    }

    /// Returns the limits of a TTL on these nodes.
    pub(crate) fn ttl_limits(&self) -> TtlLimits {
        TtlLimits {
            max_ttl: self.restart_quarantine.unwrap_or(Duration::MAX),
            min_validity: self.min_validity,
        }
    }

    /// Validates that the names of a lock share a hash slot, if a node is a cluster.
    ///
    /// # Errors
    /// `InvalidKey` with a name in another hash slot.
    #[cfg(feature = "cluster")]
    pub(crate) fn validate_hash_slots(&self, keys: &KeySet) -> Result<(), Error> {
        let is_cluster =
            |endpoint: &Endpoint| matches!(endpoint.kind(), EndpointKind::Cluster { .. });
        match keys.single().is_none() && self.endpoints.iter().any(is_cluster) {
            true => keys.require_one_slot(),
            false => Ok(()),
        }
    }

    /// Validates the settings for nodes that are systems of servers.
    #[cfg(any(feature = "sentinel", feature = "cluster"))]
    fn validate_topologies(&self) -> Result<(), String> {
        for endpoint in &self.endpoints {
            let empty = match endpoint.kind() {
                EndpointKind::Server(_) => continue,
                #[cfg(feature = "sentinel")]
                EndpointKind::Sentinel { master, sentinels } => {
                    if master.is_empty() || master.contains(|c: char| c.is_control()) {
                        return Err(format!("{endpoint}: invalid name of a master"));
                    }
                    sentinels.is_empty()
                }
                #[cfg(feature = "cluster")]
                EndpointKind::Cluster { seeds } => {
                    if let Some(db @ 1..) = self.db {
                        return Err(format!(
                            "db {db} with {endpoint}: a cluster has only database 0"
                        ));
                    }
                    seeds.is_empty()
                }
            };
            if empty {
                return Err(format!("{endpoint}: no addresses"));
            }
            if let Some(max_ttl) = self.restart_quarantine {
                return Err(format!(
                    "restart_quarantine {max_ttl:?} with {endpoint}: it can lose locks without a restart"
                ));
            }
        }
        Ok(())
    }
}

/// The limits of a TTL.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TtlLimits {
    max_ttl: Duration,
    min_validity: f64,
}

impl TtlLimits {
    /// The limits of locks in this process alone.
    pub(crate) const LOCAL: TtlLimits = TtlLimits {
        max_ttl: Duration::MAX,
        min_validity: DEFAULT_MIN_VALIDITY,
    };

    /// Validates a TTL.
    ///
    /// # Errors
    /// `InvalidTtl`.
    pub(crate) fn validate(self, ttl: Duration) -> Result<Ttl, Error> {
        let max_ttl = self.max_ttl;
        if ttl > max_ttl {
            return Err(Error::InvalidTtl {
                ttl,
                reason: format!("restart_quarantine allows TTLs up to {max_ttl:?}"),
            });
        }
        Ttl::parse(ttl, self.min_validity)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::builder::Config;
    use crate::config::credentials::Credentials;

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
}
