//! Exit statuses of the examples, as in sysexits.h ([`Error::exit_code`]).

use redguard::Error;
use std::error;
use std::process::ExitCode;

/// `EX_USAGE`: wrong arguments, or settings that the library refuses.
pub const USAGE: u8 = 64;
/// `EX_SOFTWARE`: a failure that is none of the library's.
pub const FAILED: u8 = 70;

/// Returns the exit status for the error that ended a program.
#[must_use]
pub fn exit_status(error: &(dyn error::Error + Send + Sync + 'static)) -> u8 {
    let error = error.downcast_ref::<Error>();
    error.map_or(FAILED, Error::exit_code)
}

/// Prints the error that ended the program `name`, and returns its exit status.
///
/// A `main` that returns the error would print its `Debug` form.
pub fn fail(name: &str, error: &(dyn error::Error + Send + Sync + 'static)) -> ExitCode {
    eprintln!("{name}: {error}");
    ExitCode::from(exit_status(error))
}
