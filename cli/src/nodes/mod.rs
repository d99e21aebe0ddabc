//! The nodes as operators' commands ask them: with connections of their own, beside the library.

pub(crate) mod connection;
pub(crate) mod discovery;
pub(crate) mod fan_out;
pub(crate) mod spec;
