//! Exit statuses of the examples, as in sysexits.h ([`Error::exit_code`]).
#![allow(dead_code, reason = "not every example parses arguments")]

use clap::Parser;
use redguard::Error;
use std::error;
use std::process::exit;

/// `EX_USAGE`: wrong arguments, or settings that the library refuses.
pub(crate) const USAGE: u8 = 64;
/// `EX_SOFTWARE`: a failure that is none of the library's.
pub(crate) const FAILED: u8 = 70;

/// Returns the exit status for the error that ended a program.
pub(crate) fn exit_status(error: &(dyn error::Error + Send + Sync + 'static)) -> u8 {
    let error = error.downcast_ref::<Error>();
    error.map_or(FAILED, Error::exit_code)
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
