//! The lock table: which thread of this process may ask the nodes (S8).

pub(crate) mod acquire;
pub(crate) mod acquire_any;
pub(crate) mod entry;
pub(crate) mod guard;
pub(crate) mod handoff;
mod holder;
pub(crate) mod lock_table;
mod one_or_many;
pub(crate) mod request;
pub(crate) mod table_watcher;
