//! What a node says of itself when it is greeted, and whether it can be trusted with locks.

use std::time::Duration;

use crate::error::Cause;
use crate::time;

/// Above this an uptime is taken for nothing: a server's clock that was set from 1970 to the present counts as that much.
const MOST_UPTIME: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// Servers count their uptime in whole seconds of their wall clock.
const ROUNDING: Duration = Duration::from_secs(1);
/// A clock is warned about that is off by more than may be granted to it within this TTL, 302 ms.
const USUAL_TTL: Duration = Duration::from_secs(30);

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

/// A node's wall clock beside ours, as exactly as half of a round trip.
///
/// ```
/// use redguard::ClockOffset;
/// use std::time::Duration;
///
/// let behind = ClockOffset::Behind(Duration::from_millis(40));
/// assert_eq!(behind.size(), Duration::from_millis(40));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClockOffset {
    /// The node's is ahead by so much.
    Ahead(Duration),
    /// The node's is behind by so much.
    Behind(Duration),
}

impl ClockOffset {
    /// Whichever of the two it is.
    pub fn size(self) -> Duration {
        match self {
            ClockOffset::Ahead(size) | ClockOffset::Behind(size) => size,
        }
    }
}

/// A node's own words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct About {
    pub(crate) role: Option<Role>,
    /// The policy by which it evicts keys when it has no memory left; `None` if it does not.
    pub(crate) evicts: Option<String>,
    /// Its `maxmemory-policy`, whether or not there is a limit.
    pub(crate) policy: Option<String>,
    /// How long it has been up.
    pub(crate) uptime: Duration,
    pub(crate) clock: Option<ClockOffset>,
}

impl About {
    /// Reads what `INFO server`, `INFO replication` and `INFO memory` say together; `wall` is our wall clock's time since 1970
    /// when they were said.
    pub(crate) fn read(info: &str, wall: Duration) -> About {
        let field = |name: &str| field(info, name);
        let number = |name: &str| field(name)?.parse::<u64>().ok();
        // A word, which is kept and told.
        let policy = field("maxmemory_policy")
            .filter(|policy| {
                policy.len() < 40 && policy.bytes().all(|byte| byte.is_ascii_graphic())
            })
            .map(str::to_owned);
        let is_limited = number("maxmemory").is_some_and(|bytes| bytes > 0);
        let evicts = policy
            .clone()
            .filter(|policy| is_limited && policy != "noeviction");
        let uptime = number("uptime_in_seconds").map_or(Duration::ZERO, Duration::from_secs);
        About {
            role: match field("role") {
                Some("master") => Some(Role::Master),
                Some("slave" | "replica") => Some(Role::Replica),
                _ => None,
            },
            evicts,
            policy,
            uptime: if uptime > MOST_UPTIME {
                Duration::ZERO
            } else {
                uptime
            },
            clock: number("server_time_usec")
                .map(Duration::from_micros)
                .map(|theirs| match theirs.checked_sub(wall) {
                    Some(ahead) => ClockOffset::Ahead(ahead),
                    None => ClockOffset::Behind(wall - theirs),
                }),
        }
    }

    /// Why it cannot vote at all, if it cannot.
    pub(crate) fn fault(&self, strict: bool) -> Option<Cause> {
        if self.role == Some(Role::Replica) {
            return Some(Cause::Server(
                "it is a replica, which cannot grant locks".into(),
            ));
        }
        self.danger().filter(|_| strict).map(Cause::Server)
    }

    /// What is dangerous about it, if it is used all the same.
    pub(crate) fn danger(&self) -> Option<String> {
        let policy = self.evicts.as_ref()?;
        Some(format!(
            "maxmemory-policy {policy} may evict locks; it should be noeviction"
        ))
    }

    /// By how much its clock is off, if that is worth a warning: tokens of a node that has lost its count begin there.
    pub(crate) fn clock_is_off(&self) -> Option<ClockOffset> {
        self.clock
            .filter(|offset| offset.size() > time::drift(USUAL_TTL))
    }

    /// How long it is not to vote on new locks, where none has a TTL above `max_ttl`. Every lock that it can have forgotten when
    /// it started has ended after that: `max_ttl` and drift after the start, and a second, since uptimes are rounded.
    pub(crate) fn quarantine(&self, max_ttl: Duration) -> Duration {
        let after = max_ttl
            .saturating_add(time::drift(max_ttl))
            .saturating_add(ROUNDING);
        after.saturating_sub(self.uptime)
    }
}

/// The value of a field in an INFO reply.
pub(crate) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = info.lines();
    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':').map(str::trim))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn about(info: &str) -> About {
        About::read(info, 1_000 * SECOND)
    }

    #[test]
    fn a_master_without_a_limit_is_trusted() {
        let info = "run_id:x\r\nuptime_in_seconds:77\r\nserver_time_usec:1000250000\r\nrole:master\r\nmaxmemory:0\r\n\
                    maxmemory_policy:allkeys-lru\r\n";
        let about = about(info);
        assert_eq!(about.role, Some(Role::Master));
        assert_eq!(about.uptime, 77 * SECOND);
        assert_eq!(
            about.clock,
            Some(ClockOffset::Ahead(Duration::from_millis(250)))
        );
        assert_eq!((about.danger(), about.fault(true)), (None, None));
        assert_eq!(about.policy.as_deref(), Some("allkeys-lru"));
        assert_eq!(about.clock_is_off(), None);
    }

    #[test]
    fn replicas_and_those_that_evict_are_told_apart() {
        let replica = about("role:slave");
        assert!(replica.fault(false).is_some() && replica.danger().is_none());
        let evicts = about("role:master\nmaxmemory:1000\nmaxmemory_policy:volatile-ttl");
        assert!(
            evicts
                .danger()
                .is_some_and(|words| words.contains("volatile-ttl"))
        );
        assert!(evicts.fault(false).is_none() && evicts.fault(true).is_some());
        let keeps = about("role:master\nmaxmemory:1000\nmaxmemory_policy:noeviction");
        assert!(keeps.fault(true).is_none());
        assert_eq!(about("").fault(true), None, "who may not ask does not know");
    }

    #[test]
    fn clocks_that_are_far_off_are_told() {
        for (micros, off) in [
            (999_697_000, true),
            (999_700_000, false),
            (1_000_303_000, true),
        ] {
            let clock = about(&format!("server_time_usec:{micros}")).clock_is_off();
            assert_eq!(clock.is_some(), off, "{micros}");
        }
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
            assert_eq!(about.quarantine(max_ttl), left, "{uptime} s");
        }
        assert_eq!(
            about("uptime_in_seconds:soon").quarantine(max_ttl),
            Duration::from_millis(11_102)
        );
        assert!(about("").quarantine(Duration::MAX) > max_ttl);
    }

    #[test]
    fn a_policy_is_a_word() {
        for policy in ["x".repeat(1_000_000), "allkeys-lru\x1b[2J".to_owned()] {
            let about = about(&format!("maxmemory:7\r\nmaxmemory_policy:{policy}\r\n"));
            assert_eq!((about.policy, about.evicts), (None, None));
        }
    }

    #[test]
    fn fields_are_whole_names() {
        let info = "used_memory:5\r\nmaxmemory_human:1M\r\nmaxmemory:7\r\n";
        assert_eq!(field(info, "maxmemory"), Some("7"));
        assert_eq!(field(info, "memory"), None);
    }
}
