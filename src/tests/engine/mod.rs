//! The engine over fake nodes.

pub(crate) mod acquire_any;
pub(crate) mod adopt;
pub(crate) mod cancel;
pub(crate) mod danger;
pub(crate) mod fencing;
pub(crate) mod handoff;
pub(crate) mod holder_told;
pub(crate) mod idle;
pub(crate) mod late_replies;
pub(crate) mod leftovers;
pub(crate) mod loss;
pub(crate) mod min_hold;
pub(crate) mod multi_key;
pub(crate) mod notice;
pub(crate) mod outage;
pub(crate) mod pending;
pub(crate) mod permits;
pub(crate) mod quorum;
pub(crate) mod read_write;
pub(crate) mod setup;
pub(crate) mod shutdown;
pub(crate) mod split;
pub(crate) mod undo;
pub(crate) mod validity;
pub(crate) mod waiting_list;
pub(crate) mod wake_up;
