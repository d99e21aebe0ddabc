//! The public error type, with a failure for each node.

#[expect(
    clippy::module_inception,
    reason = "the error type is the center of its folder"
)]
pub(crate) mod error;
