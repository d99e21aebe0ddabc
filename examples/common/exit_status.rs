//! Exit statuses of the examples, as in sysexits.h.
#![allow(dead_code, reason = "not every example parses arguments")]

use clap::Parser;
use redguard::Error;
use std::error;
use std::process::exit;

/// `EX_USAGE`: wrong arguments, or settings that the library refuses.
pub(crate) const USAGE: u8 = 64;
/// `EX_UNAVAILABLE`: no quorum of the nodes answered in time.
pub(crate) const UNAVAILABLE: u8 = 69;
/// `EX_SOFTWARE`: any other failure, such as a lost lock.
pub(crate) const FAILED: u8 = 70;
/// `EX_TEMPFAIL`: another holder has the lock.
pub(crate) const CONTENDED: u8 = 75;
/// `EX_NOPERM`: the nodes deny access.
pub(crate) const DENIED: u8 = 77;

/// Returns the exit status for the error that ended a program.
pub(crate) fn exit_status(error: &(dyn error::Error + Send + Sync + 'static)) -> u8 {
    match error.downcast_ref::<Error>() {
        Some(error) if error.is_denied() => DENIED,
        Some(error) if error.is_unavailable() => UNAVAILABLE,
        Some(error) if error.is_contended() => CONTENDED,
        Some(
            Error::NoAddresses
            | Error::InvalidConfig(_)
            | Error::InvalidKey { .. }
            | Error::InvalidTtl { .. },
        ) => USAGE,
        _ => FAILED,
    }
}

/// Parses the arguments. Ends the program with help and status 0, or with a message and [`USAGE`].
pub(crate) fn parse<C: Parser>() -> C {
    C::try_parse().unwrap_or_else(|error| end_with(&error))
}

/// Prints an error of `clap` and ends the program.
pub(crate) fn end_with(error: &clap::Error) -> ! {
    _ = error.print();
    exit(if error.use_stderr() { USAGE.into() } else { 0 })
}
