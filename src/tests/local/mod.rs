//! The lock table of the process.

#[cfg(test)]
pub(crate) mod lock_table;
#[cfg(all(test, not(loom)))]
pub(crate) mod multi_key;
