//! `doctor`: checks whether the nodes are fit for locks.

pub(crate) mod advice;
pub(crate) mod examine;
pub(crate) mod rights;
pub(crate) mod trial;
pub(crate) mod visit;
