//! The in-process lock table: which thread of this process may ask the nodes.

pub(crate) mod entry;
pub(crate) mod guard;
pub(crate) mod handoff;
pub(crate) mod lock_table;
