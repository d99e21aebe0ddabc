//! What a node says of itself when it is greeted, and whether it can be trusted with locks.

use std::fmt;
use std::time::Duration;

use crate::error;
use crate::error::NodeFailure;
use crate::protocol::validity;

/// Above this an uptime is taken for nothing: a server's clock that was set from 1970 to the present counts as that much.
const MAX_PLAUSIBLE_UPTIME: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// Servers count their uptime in whole seconds of their wall clock.
const UPTIME_ROUNDING: Duration = Duration::from_secs(1);
/// A clock is warned about that is off by more than may be granted to it within this TTL, 302 ms.
const CLOCK_WARNING_TTL: Duration = Duration::from_secs(30);

/// What a node is among its replicas.
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
    /// It takes writes.
    Master,
    /// It follows another node, and cannot grant locks.
    Replica,
}

/// A node's wall clock beside ours, as exactly as half of the round trip in which it was asked
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
    /// The node's is ahead by so much.
    Ahead(Duration),
    /// The node's is behind by so much.
    Behind(Duration),
}

/// As in "40 ms behind".
impl fmt::Display for ClockOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = error::in_words(self.abs());
        match self {
            ClockOffset::Ahead(_) => write!(f, "{size} ahead"),
            ClockOffset::Behind(_) => write!(f, "{size} behind"),
        }
    }
}

impl ClockOffset {
    /// Whichever of the two it is.
    pub fn abs(self) -> Duration {
        match self {
            ClockOffset::Ahead(size) | ClockOffset::Behind(size) => size,
        }
    }
}

/// A node's wall clock beside ours, measured in one exchange with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ClockReading {
    pub(crate) offset: ClockOffset,
    /// By how much the offset may be wrong: half of the exchange's duration, since the node may have read its clock at any time
    /// within it.
    pub(crate) uncertainty: Duration,
}

impl ClockReading {
    /// How far the clocks are apart at least.
    pub(crate) fn least(self) -> Duration {
        self.offset.abs().saturating_sub(self.uncertainty)
    }

    /// How much later the node's clock is than ours, in microseconds.
    fn signed(self) -> i128 {
        match self.offset {
            ClockOffset::Ahead(size) => size.as_micros() as i128,
            ClockOffset::Behind(size) => -(size.as_micros() as i128),
        }
    }

    /// Returns the more exact of two readings, unless they contradict each other: then the clock was set in between, and the later
    /// one counts.
    fn better(former: ClockReading, later: ClockReading) -> ClockReading {
        let apart = former.signed().abs_diff(later.signed());
        let agree = apart <= (former.uncertainty + later.uncertainty).as_micros();
        match agree && former.uncertainty < later.uncertainty {
            true => former,
            false => later,
        }
    }
}

/// As in "its clock is 401 ms ahead of ours (±12 ms)".
impl fmt::Display for ClockReading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = match self.offset {
            ClockOffset::Ahead(_) => " of",
            ClockOffset::Behind(_) => "",
        };
        let uncertainty = error::in_words(self.uncertainty);
        write!(f, "{}{of} ours (±{uncertainty})", self.offset)
    }
}

/// What a server is for, where it is not for locks of a node that stands for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerMode {
    Sentinel,
    ClusterMember,
}

/// A node's own words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerInfo {
    pub(crate) role: Option<Role>,
    /// The policy by which it evicts keys when it has no memory left; `None` if it does not.
    pub(crate) eviction_risk: Option<String>,
    /// Its `maxmemory-policy`, whether or not there is a limit.
    pub(crate) maxmemory_policy: Option<String>,
    /// How long it has been up.
    pub(crate) uptime: Duration,
    pub(crate) clock_offset: Option<ClockReading>,
    /// How long it took to answer the first question.
    pub(crate) round_trip: Duration,
    pub(crate) mode: Option<ServerMode>,
}

impl ServerInfo {
    /// Reads what `INFO server`, `INFO replication` and `INFO memory` say together; `wall` is our wall clock's time since 1970
    /// in the middle of the `round_trip` in which they were said.
    pub(crate) fn parse_info(info: &str, wall: Duration, round_trip: Duration) -> ServerInfo {
        let field = |name: &str| info_field(info, name);
        let number = |name: &str| field(name)?.parse::<u64>().ok();
        // A word, which is kept and told.
        let maxmemory_policy = field("maxmemory_policy")
            .filter(|policy| {
                policy.len() < 40 && policy.bytes().all(|byte| byte.is_ascii_graphic())
            })
            .map(str::to_owned);
        let is_limited = number("maxmemory").is_some_and(|bytes| bytes > 0);
        let eviction_risk = maxmemory_policy
            .clone()
            .filter(|policy| is_limited && policy != "noeviction");
        let uptime = number("uptime_in_seconds").map_or(Duration::ZERO, Duration::from_secs);
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
            clock_offset: number("server_time_usec")
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
            // Valkey calls it otherwise unless told not to.
            mode: match field("redis_mode").or_else(|| field("server_mode")) {
                Some("sentinel") => Some(ServerMode::Sentinel),
                Some("cluster") => Some(ServerMode::ClusterMember),
                _ => None,
            },
        }
    }

    /// Takes over what the same node said before where that is more exact.
    pub(crate) fn refine(&mut self, former: &ServerInfo) {
        self.round_trip = self.round_trip.min(former.round_trip);
        if let (Some(before), Some(now)) = (former.clock_offset, self.clock_offset) {
            self.clock_offset = Some(ClockReading::better(before, now));
        }
    }

    /// Why it cannot vote at all, if it cannot.
    pub(crate) fn rejection(&self, strict: bool) -> Option<NodeFailure> {
        if self.role == Some(Role::Replica) {
            return Some(NodeFailure::ServerError(
                "it is a replica, which cannot grant locks".into(),
            ));
        }
        self.eviction_warning()
            .filter(|_| strict)
            .map(NodeFailure::ServerError)
    }

    /// Why it is no node of its own, if it is none.
    pub(crate) fn wrong_mode(&self) -> Option<NodeFailure> {
        let words = match self.mode? {
            ServerMode::Sentinel => {
                "it is a sentinel, which has no locks: name it with `Endpoint::sentinel` (feature `sentinel`)"
            }
            ServerMode::ClusterMember => {
                "it is a member of a cluster: name the cluster with `Endpoint::cluster` (feature `cluster`)"
            }
        };
        Some(NodeFailure::ServerError(words.to_owned()))
    }

    /// What is dangerous about it, if it is used all the same.
    pub(crate) fn eviction_warning(&self) -> Option<String> {
        let policy = self.eviction_risk.as_ref()?;
        Some(format!(
            "maxmemory-policy {policy} may evict locks; it should be noeviction"
        ))
    }

    /// Its clock, if that is certainly off by so much that it is worth a warning: tokens of a node that has lost its count begin
    /// there.
    pub(crate) fn excessive_clock_offset(&self) -> Option<ClockReading> {
        self.clock_offset
            .filter(|clock| clock.least() > validity::drift(CLOCK_WARNING_TTL))
    }

    /// Why it will not answer within `node_timeout`, if its first answer took longer.
    pub(crate) fn is_too_far(&self, node_timeout: Duration) -> Option<String> {
        (self.round_trip > node_timeout).then(|| {
            format!(
                "a round trip takes {}, which is more than node_timeout ({}): it will not answer in time",
                error::in_words(self.round_trip),
                error::in_words(node_timeout)
            )
        })
    }

    /// How long it is not to vote on new locks, where none has a TTL above `max_ttl`. Every lock that it can have forgotten when
    /// it started has ended after that: `max_ttl` and drift after the start, and a second, since uptimes are rounded.
    pub(crate) fn quarantine_left(&self, max_ttl: Duration) -> Duration {
        let after = max_ttl
            .saturating_add(validity::drift(max_ttl))
            .saturating_add(UPTIME_ROUNDING);
        after.saturating_sub(self.uptime)
    }
}

/// The value of a field in an INFO reply.
pub(crate) fn info_field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = info.lines();
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn about(info: &str) -> ServerInfo {
        ServerInfo::parse_info(info, 1_000 * SECOND, Duration::ZERO)
    }

    #[test]
    fn a_master_without_a_limit_is_trusted() {
        let info = "run_id:x\r\nuptime_in_seconds:77\r\nserver_time_usec:1000250000\r\nrole:master\r\nmaxmemory:0\r\n\
                    maxmemory_policy:allkeys-lru\r\n";
        let about = about(info);
        assert_eq!(about.role, Some(Role::Master));
        assert_eq!(about.uptime, 77 * SECOND);
        assert_eq!(
            about.clock_offset.map(|clock| clock.offset),
            Some(ClockOffset::Ahead(Duration::from_millis(250)))
        );
        assert_eq!(
            (about.eviction_warning(), about.rejection(true)),
            (None, None)
        );
        assert_eq!(about.maxmemory_policy.as_deref(), Some("allkeys-lru"));
        assert_eq!(about.excessive_clock_offset(), None);
    }

    #[test]
    fn replicas_and_those_that_evict_are_told_apart() {
        let replica = about("role:slave");
        assert!(replica.rejection(false).is_some() && replica.eviction_warning().is_none());
        let evicts = about("role:master\nmaxmemory:1000\nmaxmemory_policy:volatile-ttl");
        assert!(
            evicts
                .eviction_warning()
                .is_some_and(|words| words.contains("volatile-ttl"))
        );
        assert!(evicts.rejection(false).is_none() && evicts.rejection(true).is_some());
        let keeps = about("role:master\nmaxmemory:1000\nmaxmemory_policy:noeviction");
        assert!(keeps.rejection(true).is_none());
        assert_eq!(
            about("").rejection(true),
            None,
            "who may not ask does not know"
        );
    }

    #[test]
    fn clocks_that_are_far_off_are_told() {
        for (micros, off) in [
            (999_697_000, true),
            (999_700_000, false),
            (1_000_303_000, true),
        ] {
            let clock = about(&format!("server_time_usec:{micros}")).excessive_clock_offset();
            assert_eq!(clock.is_some(), off, "{micros}");
        }
    }

    #[test]
    fn clock_that_may_be_right_is_not_told() {
        let ms = Duration::from_millis;
        for (ahead, round_trip, off) in [(401, 0, true), (401, 196, true), (401, 200, false)] {
            let info = format!("server_time_usec:{}", 1_000_000_000 + ahead * 1000);
            let about = ServerInfo::parse_info(&info, 1_000 * SECOND, ms(round_trip));
            assert_eq!(
                about.excessive_clock_offset().is_some(),
                off,
                "{round_trip} ms"
            );
        }
        let info = "server_time_usec:1000401000";
        let clock = ServerInfo::parse_info(info, 1_000 * SECOND, ms(24)).clock_offset;
        let told = clock.map(|clock| clock.to_string());
        assert_eq!(told.as_deref(), Some("401 ms ahead of ours (±12 ms)"));
        assert_eq!(
            ClockOffset::Behind(60 * SECOND).to_string(),
            "60.0 s behind"
        );
    }

    #[test]
    fn more_exact_reading_of_a_clock_is_kept_until_it_was_set() {
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
    fn servers_that_are_no_nodes_are_named() {
        for (info, words) in [
            ("redis_mode:standalone", None),
            ("redis_mode:sentinel", Some("Endpoint::sentinel")),
            ("redis_mode:cluster", Some("Endpoint::cluster")),
            ("server_mode:cluster", Some("Endpoint::cluster")),
            ("role:master", None),
        ] {
            let told = about(info).wrong_mode().map(|cause| cause.to_string());
            match words {
                None => assert_eq!(told, None),
                Some(words) => assert!(told.is_some_and(|told| told.contains(words)), "{info}"),
            }
        }
    }

    #[test]
    fn node_that_is_too_far_is_told_with_both_durations() {
        let ms = Duration::from_millis;
        let far = ServerInfo::parse_info("", SECOND, ms(264));
        let told = far.is_too_far(ms(200)).unwrap();
        assert!(
            told.contains("264 ms") && told.contains("node_timeout (200 ms)"),
            "{told}"
        );
        assert_eq!(far.is_too_far(ms(264)), None);
        let mut back = ServerInfo::parse_info("", SECOND, ms(900));
        back.refine(&ServerInfo::parse_info("", SECOND, ms(1)));
        assert_eq!(back.is_too_far(ms(200)), None, "it was hung");
    }

    #[test]
    fn quarantine_lasts_until_no_forgotten_lock_can_be_held() {
        let max_ttl = 10 * SECOND;
        for (uptime, left) in [
            (0, Duration::from_millis(11_102)),
            (11, Duration::from_millis(102)),
            (12, Duration::ZERO),
            (20 * 365 * 24 * 3600, Duration::ZERO),
            // Its clock was set to the present after it had started.
            (50 * 365 * 24 * 3600, Duration::from_millis(11_102)),
        ] {
            let about = about(&format!("uptime_in_seconds:{uptime}"));
            assert_eq!(about.quarantine_left(max_ttl), left, "{uptime} s");
        }
        assert_eq!(
            about("uptime_in_seconds:soon").quarantine_left(max_ttl),
            Duration::from_millis(11_102)
        );
        assert!(about("").quarantine_left(Duration::MAX) > max_ttl);
    }

    #[test]
    fn a_policy_is_a_word() {
        for policy in ["x".repeat(1_000_000), "allkeys-lru\x1b[2J".to_owned()] {
            let about = about(&format!("maxmemory:7\r\nmaxmemory_policy:{policy}\r\n"));
            assert_eq!((about.maxmemory_policy, about.eviction_risk), (None, None));
        }
    }

    #[test]
    fn fields_are_whole_names() {
        let info = "used_memory:5\r\nmaxmemory_human:1M\r\nmaxmemory:7\r\n";
        assert_eq!(info_field(info, "maxmemory"), Some("7"));
        assert_eq!(info_field(info, "memory"), None);
    }
}
