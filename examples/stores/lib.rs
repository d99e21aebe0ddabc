//! Stores that refuse the write of a holder that was paused past its lease. The guide shows them
//! (`redguard::guide::fencing`).
//!
//! Each takes the number of `guard.fencing_token()` with each write, and refuses a smaller number
//! than the greatest that it has seen. The same number may write again, since a holder writes more
//! than once.

pub mod files;
pub mod http;
pub mod lua;
pub mod sql;
