//! The guide: how to lock well, page by page. It contains text and examples, no items.
//!
//! | page | about |
//! |---|---|
//! | [`getting_started`] | TTLs, renewal, waiting, exit codes, signals, tests |
//! | [`guarantees`] | the guarantees, their limits, timing, losses, guards and scopes |
//! | [`fencing`] | fencing tokens, and stores that check them |
//! | [`leader_election`] | one leader among many processes |
//! | [`read_write_locks`] | rules and fairness of readers and writers |
//! | [`semaphores`] | rules of permits |
//! | [`waiting`] | queues, wake-ups, limits, several keys, adoption by another process |
//! | [`failures`] | outages, the circuit breaker, degraded mode, nodes that forget |
//! | [`sentinel_cluster`] | a Sentinel-watched master or a cluster as one node |
//! | [`operations`] | nodes, configuration, permissions, changing the list, observing, threads, log levels |
//! | [`migration`] | from and beside other libraries |

pub mod failures {
    #![doc = include_str!("failures.md")]
}
pub mod fencing {
    #![doc = include_str!("fencing.md")]
}
pub mod getting_started {
    #![doc = include_str!("getting_started.md")]
}
pub mod guarantees {
    #![doc = include_str!("guarantees.md")]
}
pub mod leader_election {
    #![doc = include_str!("leader_election.md")]
}
pub mod migration {
    #![doc = include_str!("migration.md")]
}
pub mod operations {
    #![doc = include_str!("operations.md")]
}
pub mod read_write_locks {
    #![doc = include_str!("read_write_locks.md")]
}
pub mod semaphores {
    #![doc = include_str!("semaphores.md")]
}
pub mod sentinel_cluster {
    #![doc = include_str!("sentinel_cluster.md")]
}
pub mod waiting {
    #![doc = include_str!("waiting.md")]
}
