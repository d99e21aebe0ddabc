//! Merges the servers' reports on one name into one row per holder.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::time::Duration;

use crate::locks::LockKind;
use crate::locks::inspect::{NameReport, ServerHolder};
use crate::locks::row::{LockRow, Waiting};

/// Returns the holders of one name, of each kind, also without a quorum. Where several tokens
/// compete for one lock, the one on most nodes is shown.
///
/// `reports` has the reports of each node that answered, one per server.
pub(crate) fn merge(
    name: &str,
    reports: &[Vec<NameReport>],
    quorum: usize,
    total: usize,
) -> Vec<LockRow> {
    let mut found: BTreeMap<(LockKind, Option<u16>, String), Vec<&ServerHolder>> = BTreeMap::new();
    for holder in reports.iter().flatten().flat_map(|report| &report.holders) {
        let number = holder.permit.map(|(number, _)| number);
        let key = (holder.kind, number, holder.digest.clone());
        found.entry(key).or_default().push(holder);
    }
    let waiting = waiting(reports);
    let mut rows: Vec<LockRow> = Vec::new();
    for ((kind, number, digest), holders) in found {
        let row = LockRow {
            key: name.to_owned(),
            kind,
            digest,
            owner: owner_of(holders[0]),
            remaining: decisive_end(&holders, quorum),
            nodes: holders.len(),
            needed: quorum,
            total,
            permit: holders[0].permit,
            since: holders[0].since,
            waiting: waiting.clone(),
        };
        // Readers stand beside each other; of all else there is one holder.
        match rows.last_mut() {
            Some(last)
                if kind != LockKind::Read
                    && last.kind == kind
                    && last.permit_number() == number =>
            {
                if last.nodes < row.nodes {
                    *last = row;
                }
            }
            _ => rows.push(row),
        }
    }
    rows
}

fn owner_of(holder: &ServerHolder) -> Option<String> {
    if holder.digest.is_empty() {
        return Some("a value of another type".to_owned());
    }
    Some(holder.owner.clone()).filter(|owner| !owner.is_empty())
}

/// Returns when fewer than a quorum of nodes are left: the lock has then ended.
fn decisive_end(holders: &[&ServerHolder], quorum: usize) -> Option<Duration> {
    let mut ends: Vec<_> = holders.iter().map(|holder| holder.remaining).collect();
    // The latest end comes first; a key without an expiry ends last.
    ends.sort_by_key(|end| std::cmp::Reverse(end.unwrap_or(Duration::MAX)));
    let decisive = if ends.len() < quorum { 0 } else { quorum - 1 };
    ends[decisive]
}

fn waiting(reports: &[Vec<NameReport>]) -> Waiting {
    // Each process waits on one node.
    let counts = reports.iter().flatten().filter_map(|report| report.waiting);
    let processes = counts.reduce(|sum, count| sum + count);
    let writers = reports
        .iter()
        .flatten()
        .flat_map(|report| &report.waiting_writers);
    let writers: BTreeSet<&(String, String)> = writers.collect();
    let labels = writers.into_iter().map(|(_, owner)| owner.clone());
    Waiting {
        processes,
        writers: labels.filter(|owner| !owner.is_empty()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(kind: LockKind, digest: &str, seconds: Option<u64>) -> ServerHolder {
        ServerHolder {
            kind,
            digest: digest.to_owned(),
            owner: format!("of {digest}"),
            remaining: seconds.map(Duration::from_secs),
            permit: None,
            since: None,
        }
    }

    fn reports(nodes: Vec<Vec<ServerHolder>>) -> Vec<Vec<NameReport>> {
        let report = |holders| NameReport {
            holders,
            waiting_writers: vec![("d".to_owned(), "w".to_owned())],
            waiting: Some(1),
        };
        nodes
            .into_iter()
            .map(|holders| vec![report(holders)])
            .collect()
    }

    #[test]
    fn holder_is_the_token_on_most_nodes() {
        let lock = |digest, seconds| holder(LockKind::Lock, digest, Some(seconds));
        for (nodes, owner, remaining, count) in [
            (
                vec![vec![lock("a", 3)], vec![lock("a", 5)], vec![lock("a", 4)]],
                "of a",
                4,
                3,
            ),
            (
                vec![vec![lock("a", 3)], vec![lock("b", 5)], vec![lock("a", 4)]],
                "of a",
                3,
                2,
            ),
            (
                vec![vec![lock("b", 2)], vec![lock("a", 3)], vec![lock("b", 9)]],
                "of b",
                2,
                2,
            ),
            (vec![vec![lock("a", 3)], vec![], vec![]], "of a", 3, 1),
        ] {
            let rows = merge("k", &reports(nodes), 2, 3);
            assert_eq!(rows.len(), 1);
            assert_eq!(rows[0].owner.as_deref(), Some(owner));
            assert_eq!(rows[0].remaining, Some(Duration::from_secs(remaining)));
            assert_eq!((rows[0].nodes, rows[0].is_held()), (count, count >= 2));
        }
    }

    #[test]
    fn readers_and_permits_are_rows_of_their_own() {
        let read = |digest| holder(LockKind::Read, digest, Some(9));
        let permit = |digest, number| ServerHolder {
            permit: Some((number, 3)),
            ..holder(LockKind::Permit, digest, None)
        };
        let node = || vec![read("a"), read("b"), permit("c", 0), permit("d", 2)];
        let rows = merge("k", &reports(vec![node(), node()]), 2, 3);
        let shown: Vec<_> = rows
            .iter()
            .map(|row| (row.kind, row.digest.as_str(), row.permit))
            .collect();
        assert_eq!(
            shown,
            [
                (LockKind::Read, "a", None),
                (LockKind::Read, "b", None),
                (LockKind::Permit, "c", Some((0, 3))),
                (LockKind::Permit, "d", Some((2, 3))),
            ]
        );
        assert_eq!(rows[0].waiting.processes, Some(2));
        assert_eq!(rows[0].waiting.writers, ["w"]);
        assert!(rows.iter().all(LockRow::is_held));
    }
}
