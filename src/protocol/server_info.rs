//! Parses a server's INFO reply. Decides whether the node may grant locks at all, and how long it
//! is quarantined after a restart without its data (section 10 of ARCHITECTURE.md).

use std::fmt;
use std::time::Duration;

use crate::error::duration_text;
use crate::error::node_failure::NodeFailure;
use crate::protocol::validity;

/// A longer uptime counts as zero: a server adds the step when its clock is set from 1970 to the
/// present.
const MAX_PLAUSIBLE_UPTIME: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// The resolution of a server's uptime.
const UPTIME_ROUNDING: Duration = Duration::from_secs(1);
/// A clock offset above the drift of this TTL, 302 ms, is logged.
const CLOCK_WARNING_TTL: Duration = Duration::from_secs(30);

/// The replication role of a node.
///
/// ```no_run
/// use redguard::{Nodes, Role};
///
/// fn replicas(nodes: &Nodes) -> usize {
///     let health = nodes.health();
///     health.nodes.iter().filter(|node| node.role == Some(Role::Replica)).count()
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// The node accepts writes.
    Master,
    /// The node replicates another one and cannot grant locks.
    Replica,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Master => "master",
            Role::Replica => "replica",
        })
    }
}

/// The offset of a node's wall clock from ours. Its uncertainty is half of the measuring round trip
/// ([`NodeHealth::clock_uncertainty`](crate::NodeHealth::clock_uncertainty)).
///
/// ```
/// use redguard::ClockOffset;
/// use std::time::Duration;
///
/// let behind = ClockOffset::Behind(Duration::from_millis(40));
/// assert_eq!(behind.abs(), Duration::from_millis(40));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClockOffset {
    /// The node's clock is ahead by this duration.
    Ahead(Duration),
    /// The node's clock is behind by this duration.
    Behind(Duration),
}

/// Shows the offset as in "40 ms behind".
impl fmt::Display for ClockOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = duration_text::format_duration(self.abs());
        match self {
            ClockOffset::Ahead(_) => write!(f, "{size} ahead"),
            ClockOffset::Behind(_) => write!(f, "{size} behind"),
        }
    }
}

impl ClockOffset {
    /// Returns the offset without its direction.
    pub fn abs(self) -> Duration {
        match self {
            ClockOffset::Ahead(size) | ClockOffset::Behind(size) => size,
        }
    }
}

/// A clock offset, measured in one round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClockReading {
    pub(crate) offset: ClockOffset,
    /// The maximal error of the offset: half of the round trip, because the node may have read its
    /// clock at any time within it.
    pub(crate) uncertainty: Duration,
}

impl ClockReading {
    /// Returns the minimal distance of the clocks.
    pub(crate) fn min_distance(self) -> Duration {
        self.offset.abs().saturating_sub(self.uncertainty)
    }

    /// Returns the offset in µs, negative if the node's clock is behind.
    fn signed(self) -> i128 {
        match self.offset {
            ClockOffset::Ahead(size) => size.as_micros() as i128,
            ClockOffset::Behind(size) => -(size.as_micros() as i128),
        }
    }

    /// Returns the more exact of two readings. If they contradict each other, the clock was set in
    /// between, and the later one is returned.
    fn better(former: ClockReading, later: ClockReading) -> ClockReading {
        let apart = former.signed().abs_diff(later.signed());
        let agree = apart <= (former.uncertainty + later.uncertainty).as_micros();
        match agree && former.uncertainty < later.uncertainty {
            true => former,
            false => later,
        }
    }
}

/// Shows the reading as in "401 ms ahead of ours (±12 ms)".
impl fmt::Display for ClockReading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = match self.offset {
            ClockOffset::Ahead(_) => " of",
            ClockOffset::Behind(_) => "",
        };
        let uncertainty = duration_text::format_duration(self.uncertainty);
        write!(f, "{}{of} ours (±{uncertainty})", self.offset)
    }
}

/// A mode in which a server is no node of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerMode {
    Sentinel,
    ClusterMember,
}

/// The server info of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerInfo {
    pub(crate) role: Option<Role>,
    /// The policy by which the server may evict locks; `None` if it evicts none.
    pub(crate) eviction_risk: Option<String>,
    /// The `maxmemory-policy`, with or without a memory limit.
    pub(crate) maxmemory_policy: Option<String>,
    /// The uptime, in whole seconds.
    pub(crate) uptime: Duration,
    pub(crate) clock_offset: Option<ClockReading>,
    /// The duration of the first round trip.
    pub(crate) round_trip: Duration,
    pub(crate) mode: Option<ServerMode>,
}

impl ServerInfo {
    /// Parses the joined replies to `INFO server`, `INFO replication` and `INFO memory`. `wall` is
    /// our wall clock, since 1970, in the middle of `round_trip`.
    pub(crate) fn parse_info(info: &str, wall: Duration, round_trip: Duration) -> ServerInfo {
        let field = |name: &str| info_field(info, name);
        let integer = |name: &str| field(name)?.parse::<u64>().ok();
        // The policy is stored and shown, so only a printable word is accepted.
        let maxmemory_policy = field("maxmemory_policy")
            .filter(|policy| {
                policy.len() < 40 && policy.bytes().all(|byte| byte.is_ascii_graphic())
            })
            .map(str::to_owned);
        let is_limited = integer("maxmemory").is_some_and(|bytes| bytes > 0);
        let eviction_risk = maxmemory_policy
            .clone()
            .filter(|policy| is_limited && policy != "noeviction");
        let uptime = integer("uptime_in_seconds").map_or(Duration::ZERO, Duration::from_secs);
        ServerInfo {
            role: match field("role") {
                Some("master") => Some(Role::Master),
                Some("slave" | "replica") => Some(Role::Replica),
                _ => None,
            },
            eviction_risk,
            maxmemory_policy,
            uptime: if uptime > MAX_PLAUSIBLE_UPTIME {
                Duration::ZERO
            } else {
                uptime
            },
            clock_offset: integer("server_time_usec")
                .map(Duration::from_micros)
                .map(|theirs| match theirs.checked_sub(wall) {
                    Some(ahead) => ClockOffset::Ahead(ahead),
                    None => ClockOffset::Behind(wall - theirs),
                })
                .map(|offset| ClockReading {
                    offset,
                    uncertainty: round_trip / 2,
                }),
            round_trip,
            // Valkey names the field `server_mode` unless it is configured otherwise.
            mode: match field("redis_mode").or_else(|| field("server_mode")) {
                Some("sentinel") => Some(ServerMode::Sentinel),
                Some("cluster") => Some(ServerMode::ClusterMember),
                _ => None,
            },
        }
    }

    /// Keeps the more exact values of two measurements of the same node.
    pub(crate) fn refine(&mut self, former: &ServerInfo) {
        self.round_trip = self.round_trip.min(former.round_trip);
        if let (Some(before), Some(now)) = (former.clock_offset, self.clock_offset) {
            self.clock_offset = Some(ClockReading::better(before, now));
        }
    }

    /// Returns why the node may not vote at all, if it may not. `reject_evicting` rejects a node
    /// that may evict locks.
    pub(crate) fn rejection(&self, reject_evicting: bool) -> Option<NodeFailure> {
        if self.role == Some(Role::Replica) {
            return Some(NodeFailure::ServerError(
                "the server is a replica, which cannot grant locks".into(),
            ));
        }
        self.eviction_warning()
            .filter(|_| reject_evicting)
            .map(NodeFailure::ServerError)
    }

    /// Returns why the server is no node of its own, if it is none.
    pub(crate) fn wrong_mode(&self) -> Option<NodeFailure> {
        let text = match self.mode? {
            ServerMode::Sentinel => {
                "the server is a sentinel: configure it with `Endpoint::sentinel` (feature `sentinel`)"
            }
            ServerMode::ClusterMember => {
                "the server is a cluster member: configure it with `Endpoint::cluster` (feature `cluster`)"
            }
        };
        Some(NodeFailure::ServerError(text.to_owned()))
    }

    /// Returns the warning that the server may evict locks, if it may.
    pub(crate) fn eviction_warning(&self) -> Option<String> {
        let policy = self.eviction_risk.as_ref()?;
        Some(format!(
            "maxmemory-policy {policy} may evict locks; it should be noeviction"
        ))
    }

    /// Returns the clock offset if it is certainly above the warning limit. Fence counters of a
    /// node that lost its data start at its clock (S12).
    pub(crate) fn excessive_clock_offset(&self) -> Option<ClockReading> {
        self.clock_offset
            .filter(|clock| clock.min_distance() > validity::drift(CLOCK_WARNING_TTL))
    }

    /// Returns the warning that replies will take longer than `node_timeout`, if the first one did.
    pub(crate) fn is_too_far(&self, node_timeout: Duration) -> Option<String> {
        (self.round_trip > node_timeout).then(|| {
            format!(
                "a round trip takes {}, more than node_timeout ({}): replies will be too late",
                duration_text::format_duration(self.round_trip),
                duration_text::format_duration(node_timeout)
            )
        })
    }

    /// Returns how long the node must not vote on new locks, if no TTL is above `max_ttl`. Every
    /// lock that a restart lost has expired `max_ttl` and its drift after the start. One second is
    /// added because the uptime is rounded.
    pub(crate) fn quarantine_left(&self, max_ttl: Duration) -> Duration {
        let after = max_ttl
            .saturating_add(validity::drift(max_ttl))
            .saturating_add(UPTIME_ROUNDING);
        after.saturating_sub(self.uptime)
    }
}

/// Returns the value of a field of an INFO reply.
pub(crate) fn info_field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = info.lines();
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn server_info(info: &str) -> ServerInfo {
        ServerInfo::parse_info(info, 1_000 * SECOND, Duration::ZERO)
    }

    #[test]
    fn master_without_a_memory_limit_is_accepted() {
        let info = "run_id:x\r\nuptime_in_seconds:77\r\nserver_time_usec:1000250000\r\nrole:master\r\nmaxmemory:0\r\n\
                    maxmemory_policy:allkeys-lru\r\n";
        let parsed = server_info(info);
        assert_eq!(parsed.role, Some(Role::Master));
        assert_eq!(parsed.uptime, 77 * SECOND);
        assert_eq!(
            parsed.clock_offset.map(|clock| clock.offset),
            Some(ClockOffset::Ahead(Duration::from_millis(250)))
        );
        assert_eq!(
            (parsed.eviction_warning(), parsed.rejection(true)),
            (None, None)
        );
        assert_eq!(parsed.maxmemory_policy.as_deref(), Some("allkeys-lru"));
        assert_eq!(parsed.excessive_clock_offset(), None);
    }

    #[test]
    fn replica_is_rejected_and_evicting_master_only_if_configured() {
        let replica = server_info("role:slave");
        assert!(replica.rejection(false).is_some() && replica.eviction_warning().is_none());
        let evicts = server_info("role:master\nmaxmemory:1000\nmaxmemory_policy:volatile-ttl");
        assert!(
            evicts
                .eviction_warning()
                .is_some_and(|text| text.contains("volatile-ttl"))
        );
        assert!(evicts.rejection(false).is_none() && evicts.rejection(true).is_some());
        let keeps = server_info("role:master\nmaxmemory:1000\nmaxmemory_policy:noeviction");
        assert!(keeps.rejection(true).is_none());
        assert_eq!(server_info("").rejection(true), None, "INFO denied");
    }

    #[test]
    fn clock_far_off_is_reported() {
        for (micros, off) in [
            (999_697_000, true),
            (999_700_000, false),
            (1_000_303_000, true),
        ] {
            let clock = server_info(&format!("server_time_usec:{micros}")).excessive_clock_offset();
            assert_eq!(clock.is_some(), off, "{micros}");
        }
    }

    #[test]
    fn clock_offset_within_its_uncertainty_is_not_reported() {
        let ms = Duration::from_millis;
        for (ahead, round_trip, off) in [(401, 0, true), (401, 196, true), (401, 200, false)] {
            let info = format!("server_time_usec:{}", 1_000_000_000 + ahead * 1000);
            let parsed = ServerInfo::parse_info(&info, 1_000 * SECOND, ms(round_trip));
            assert_eq!(
                parsed.excessive_clock_offset().is_some(),
                off,
                "{round_trip} ms"
            );
        }
        let info = "server_time_usec:1000401000";
        let clock = ServerInfo::parse_info(info, 1_000 * SECOND, ms(24)).clock_offset;
        let shown = clock.map(|clock| clock.to_string());
        assert_eq!(shown.as_deref(), Some("401 ms ahead of ours (±12 ms)"));
        assert_eq!(
            ClockOffset::Behind(60 * SECOND).to_string(),
            "60.0 s behind"
        );
    }

    #[test]
    fn more_exact_clock_reading_is_kept_until_the_clock_is_set() {
        let reading = |ahead: i64, uncertainty: u64| ClockReading {
            offset: match u64::try_from(ahead) {
                Ok(ahead) => ClockOffset::Ahead(Duration::from_millis(ahead)),
                Err(_) => ClockOffset::Behind(Duration::from_millis(ahead.unsigned_abs())),
            },
            uncertainty: Duration::from_millis(uncertainty),
        };
        for (former, later, is_former) in [
            (reading(0, 1), reading(401, 400), true),
            (reading(-2, 1), reading(398, 399), true),
            (reading(-2, 1), reading(399, 399), false),
            (reading(0, 1), reading(900, 400), false),
            (reading(401, 400), reading(0, 1), false),
            (reading(5, 1), reading(4, 1), false),
        ] {
            let kept = if is_former { former } else { later };
            assert_eq!(ClockReading::better(former, later), kept);
        }
    }

    #[test]
    fn sentinel_and_cluster_member_are_no_nodes() {
        for (line, text) in [
            ("redis_mode:standalone", None),
            ("redis_mode:sentinel", Some("Endpoint::sentinel")),
            ("redis_mode:cluster", Some("Endpoint::cluster")),
            ("server_mode:cluster", Some("Endpoint::cluster")),
            ("role:master", None),
        ] {
            let shown = server_info(line)
                .wrong_mode()
                .map(|cause| cause.to_string());
            match text {
                None => assert_eq!(shown, None),
                Some(text) => assert!(shown.is_some_and(|shown| shown.contains(text)), "{line}"),
            }
        }
    }

    #[test]
    fn round_trip_above_node_timeout_is_reported_with_both_durations() {
        let ms = Duration::from_millis;
        let far = ServerInfo::parse_info("", SECOND, ms(264));
        let shown = far.is_too_far(ms(200)).unwrap();
        assert!(
            shown.contains("264 ms") && shown.contains("node_timeout (200 ms)"),
            "{shown}"
        );
        assert_eq!(far.is_too_far(ms(264)), None);
        let mut back = ServerInfo::parse_info("", SECOND, ms(900));
        back.refine(&ServerInfo::parse_info("", SECOND, ms(1)));
        assert_eq!(back.is_too_far(ms(200)), None, "it was hung");
    }

    #[test]
    fn quarantine_ends_when_every_lost_lock_has_expired() {
        let max_ttl = 10 * SECOND;
        for (uptime, left) in [
            (0, Duration::from_millis(11_102)),
            (11, Duration::from_millis(102)),
            (12, Duration::ZERO),
            (20 * 365 * 24 * 3600, Duration::ZERO),
            // The clock was set from 1970 after the start.
            (50 * 365 * 24 * 3600, Duration::from_millis(11_102)),
        ] {
            let parsed = server_info(&format!("uptime_in_seconds:{uptime}"));
            assert_eq!(parsed.quarantine_left(max_ttl), left, "{uptime} s");
        }
        assert_eq!(
            server_info("uptime_in_seconds:soon").quarantine_left(max_ttl),
            Duration::from_millis(11_102)
        );
        assert!(server_info("").quarantine_left(Duration::MAX) > max_ttl);
    }

    #[test]
    fn eviction_policy_is_a_printable_word() {
        for policy in ["x".repeat(1_000_000), "allkeys-lru\x1b[2J".to_owned()] {
            let parsed = server_info(&format!("maxmemory:7\r\nmaxmemory_policy:{policy}\r\n"));
            assert_eq!(
                (parsed.maxmemory_policy, parsed.eviction_risk),
                (None, None)
            );
        }
    }

    #[test]
    fn field_names_match_as_a_whole() {
        let info = "used_memory:5\r\nmaxmemory_human:1M\r\nmaxmemory:7\r\n";
        assert_eq!(info_field(info, "maxmemory"), Some("7"));
        assert_eq!(info_field(info, "memory"), None);
    }
}
