//! The rules that no history may break.

#[expect(
    clippy::module_inception,
    reason = "the checker is the center of its folder"
)]
pub(crate) mod checker;
pub(crate) mod choices;
pub(crate) mod coverage;
pub(crate) mod doubt;
pub(crate) mod ends;
pub(crate) mod final_state;
pub(crate) mod hold;
pub(crate) mod isolation;
pub(crate) mod notices;
pub(crate) mod reports;
pub(crate) mod stored;
pub(crate) mod waits;
pub(crate) mod watching;
