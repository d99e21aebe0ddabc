//! The in-memory node model agrees with a real server.

pub(crate) mod multi_key;
pub(crate) mod permits;
pub(crate) mod publish;
pub(crate) mod setup;
pub(crate) mod single_key;
pub(crate) mod waiting_list;
