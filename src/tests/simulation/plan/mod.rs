//! The plan of a history: drawn from its seed before it begins, and told in words.

pub(crate) mod draw;
pub(crate) mod draw_faults;
pub(crate) mod draw_targets;
pub(crate) mod locks;
#[expect(
    clippy::module_inception,
    reason = "the plan is the center of its folder"
)]
pub(crate) mod plan;
pub(crate) mod scenario;
pub(crate) mod words;
