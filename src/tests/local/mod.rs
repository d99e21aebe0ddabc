//! The in-process lock table.

#[cfg(test)]
pub(crate) mod lock_table;
#[cfg(all(test, not(loom)))]
pub(crate) mod multi_key;
