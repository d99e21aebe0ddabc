//! The settings of a `Config`: defaults, and validation of ranges and contradictions.
//!
//! Pure: nothing here reaches a server. Past [`Settings::validate`] no setting is checked again.
//!
//! Tests: `src/tests/config/settings.rs`.

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
use crate::error::error::Error;
#[cfg(feature = "cluster")]
use crate::protocol::key_set::KeySet;
use crate::protocol::node_set;
use crate::protocol::retry::RetryPolicy;
use crate::protocol::token::OwnerLabel;
use crate::protocol::ttl::Ttl;
use crate::telemetry::observer::Observer;

/// The part of a TTL that an attempt must leave.
const DEFAULT_MIN_VALIDITY: f64 = 0.5;

const MIN_TIMEOUT: Duration = Duration::from_millis(1);
/// A longer block is as good as endless.
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_secs(3600);
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
        if nodes > node_set::MAX_NODES {
            return Err(format!("{nodes} nodes are over {}", node_set::MAX_NODES));
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
