//! Advice: the changes that a server or the list of nodes needs, in words. Pure.

use std::time::Duration;

use crate::doctor::examine::{Facts, Persistence};
use crate::doctor::rights::{Rights, Use};
use crate::nodes::connection::Trouble;

/// The clock offset above which the library warns: the drift of a TTL of 30 s.
const MAX_CLOCK_OFFSET_MS: i64 = 302;

/// The least servers that are supported.
const MIN_REDIS: (u32, u32) = (6, 2);

/// Returns what to change on one server.
pub(crate) fn of_server(facts: &Facts, timeout: Duration, has_quarantine: bool) -> Vec<String> {
    let mut advice = Vec::new();
    let mut add = |text: String| advice.push(text);
    if facts.compatible < MIN_REDIS {
        add(format!(
            "{} is too old: Redis 6.2 or Valkey 7.2 is the least",
            facts.version
        ));
    }
    if facts.is_replica {
        add("it is a replica: name its master, or redis+sentinel://…".to_owned());
    }
    if facts.is_cluster {
        add("it is a member of a cluster: name it as redis+cluster://…".to_owned());
    }
    if facts.maxmemory > 0 && facts.eviction != "noeviction" {
        add(format!(
            "{} may evict locks: CONFIG SET maxmemory-policy noeviction",
            facts.eviction
        ));
    }
    if facts.persistence != Persistence::EachWrite && !has_quarantine {
        add(format!(
            "a restart forgets {}: set appendonly yes and appendfsync always, or --quarantine \
             MAX_TTL on every client",
            match facts.persistence {
                Persistence::Forgets => "all locks",
                _ => "the latest locks",
            }
        ));
    }
    let uncertainty = i64::try_from(facts.clock_uncertainty.as_millis()).unwrap_or(i64::MAX);
    if facts.clock_offset_ms.abs().saturating_sub(uncertainty) > MAX_CLOCK_OFFSET_MS {
        add(format!(
            "its clock differs from ours by {}: let NTP set both",
            facts.clock_text()
        ));
    }
    if facts.p99 > timeout / 2 {
        add(format!(
            "a round trip takes up to {:.0?}: set --timeout to ten times the median, {:.0?}",
            facts.p99,
            (facts.p50 * 10).max(timeout)
        ));
    }
    advice.extend(of_rights(&facts.rights));
    advice
}

fn of_rights(rights: &Rights) -> Vec<String> {
    let missing = match rights {
        Rights::Known(missing) => missing,
        Rights::Unknown => {
            let text = "its rights cannot be asked for (+evalsha and +script|load, or +multi and +discard)";
            return vec![text.to_owned()];
        }
    };
    let uses = [
        Use::Locks,
        Use::ReadWriteLocks,
        Use::Fencing,
        Use::Semaphores,
        Use::Notifications,
        Use::WaitingLists,
        Use::Listing,
    ];
    let lines = uses.into_iter().filter_map(|purpose| {
        let rules = missing.iter().filter(|(of, _)| *of == purpose);
        let mut rules: Vec<&str> = rules.map(|(_, rule)| rule.as_str()).collect();
        rules.dedup();
        let rules = rules.join(" ");
        let line = format!("{} need rights: ACL SETUSER … {rules}", purpose.name());
        (!rules.is_empty()).then_some(line)
    });
    lines.collect()
}

/// Returns what to do about a node that does not take part.
pub(crate) fn of_absent(trouble: Trouble) -> &'static str {
    match trouble {
        Trouble::Refused => "start it, or mend its address",
        Trouble::Silent => {
            "it hangs, or packets to it are lost: look for a stopped process, a slow command, swapping, \
             a slow disk, a firewall; if it is only far away, set a longer --timeout"
        }
        Trouble::Unreachable => "mend its address, or the network to it",
        Trouble::Credentials => "mend the user and the password in its address",
        Trouble::Right => "give the user the rights, by ACL SETUSER",
        Trouble::Loading => "wait until it has loaded its data",
        Trouble::Busy => "end the script that keeps it busy: SCRIPT KILL",
        Trouble::Other => "see its log",
    }
}

/// Returns what to change in the list of nodes.
pub(crate) fn of_list(nodes: usize) -> Option<String> {
    match nodes {
        1 => Some("one node: while it is down nobody gets a lock; 3 survive one".to_owned()),
        even if even.is_multiple_of(2) => Some(format!(
            "{even} nodes survive no more failures than {}",
            even - 1
        )),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn healthy() -> Facts {
        Facts {
            version: "redis 7.2.4".to_owned(),
            compatible: (7, 2),
            is_replica: false,
            is_cluster: false,
            persistence: Persistence::EachWrite,
            maxmemory: 0,
            eviction: "allkeys-lru".to_owned(),
            clock_offset_ms: -300,
            clock_uncertainty: Duration::ZERO,
            p50: Duration::from_millis(1),
            p99: Duration::from_millis(2),
            rights: Rights::Known(Vec::new()),
        }
    }

    const TIMEOUT: Duration = Duration::from_millis(200);

    #[test]
    fn healthy_server_needs_nothing() {
        assert_eq!(of_server(&healthy(), TIMEOUT, false), [""; 0]);
    }

    #[test]
    fn each_fault_has_its_advice() {
        type Change = fn(&mut Facts);
        let table: [(Change, &str); 9] = [
            (|facts| facts.compatible = (6, 0), "too old"),
            (|facts| facts.is_replica = true, "redis+sentinel://"),
            (|facts| facts.is_cluster = true, "redis+cluster://"),
            (|facts| facts.maxmemory = 1, "noeviction"),
            (
                |facts| facts.persistence = Persistence::Forgets,
                "all locks: set appendonly",
            ),
            (|facts| facts.clock_offset_ms = 400, "+400 ms"),
            (|facts| facts.p99 = TIMEOUT, "--timeout"),
            (
                |facts| facts.rights = Rights::Known(vec![(Use::Fencing, "+incr".to_owned())]),
                "fencing need rights: ACL SETUSER … +incr",
            ),
            (|facts| facts.rights = Rights::Unknown, "+evalsha"),
        ];
        for (change, words) in table {
            let mut facts = healthy();
            change(&mut facts);
            let advice = of_server(&facts, TIMEOUT, false);
            assert!(advice.len() == 1 && advice[0].contains(words), "{advice:?}");
        }
        let mut forgets = healthy();
        forgets.persistence = Persistence::Forgets;
        assert_eq!(of_server(&forgets, TIMEOUT, true), [""; 0]);
    }

    #[test]
    fn hung_node_needs_no_start() {
        assert!(of_absent(Trouble::Refused).starts_with("start it"));
        let hung = of_absent(Trouble::Silent);
        assert!(
            hung.starts_with("it hangs") && !hung.contains("start it"),
            "{hung}"
        );
    }

    #[test]
    fn number_of_nodes_is_odd_and_above_one() {
        for (nodes, has_advice) in [(1, true), (2, true), (3, false), (4, true), (5, false)] {
            assert_eq!(of_list(nodes).is_some(), has_advice, "{nodes}");
        }
    }
}
