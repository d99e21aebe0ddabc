//! Arguments of the examples, read by `lexopt`, which compiles in half a second.

use crate::exit_status::USAGE;
use lexopt::{Error, Parser, ValueExt};
use std::fmt::Display;
use std::io::{self, Write};
use std::ops::RangeInclusive;
use std::process::exit;
use std::time::Duration;

/// Parses the arguments of the program `name` with `read`, which returns `None` if help is asked
/// for.
///
/// Ends the program with help and status 0, or with a message and [`USAGE`].
pub fn parse<T>(
    name: &str,
    help: &str,
    read: impl FnOnce(&mut Parser) -> Result<Option<T>, Error>,
) -> T {
    match read(&mut Parser::from_env()) {
        Ok(Some(args)) => args,
        Ok(None) => {
            // A closed pipe is no failure of the help.
            _ = writeln!(io::stdout(), "{}", help.trim());
            exit(0)
        }
        Err(error) => end_with_misuse(name, &error),
    }
}

/// Prints what is wrong with the arguments, and ends the program with [`USAGE`].
pub fn end_with_misuse(name: &str, what: &dyn Display) -> ! {
    eprintln!("{name}: {what}; see {name} --help");
    exit(USAGE.into())
}

/// Returns the value of an option as a number within a range.
///
/// # Errors
/// If there is no value, or it is no such number.
pub fn number(parser: &mut Parser, range: RangeInclusive<u16>) -> Result<u16, Error> {
    let number = parser.value()?.parse()?;
    match range.contains(&number) {
        true => Ok(number),
        false => Err(format!("{number} is not in {} to {}", range.start(), range.end()).into()),
    }
}

/// Returns the value of an option as a time such as `30s` or `1m 30s`.
///
/// # Errors
/// If there is no value, or it is no time.
pub fn duration(parser: &mut Parser) -> Result<Duration, Error> {
    parser.value()?.parse_with(humantime::parse_duration)
}

/// Returns the value of an option as addresses with commas between.
///
/// # Errors
/// If there is no value, or it is no text.
pub fn addresses(parser: &mut Parser) -> Result<Vec<String>, Error> {
    Ok(split_addresses(&parser.value()?.string()?))
}

/// Splits addresses at commas, and skips empty ones.
#[must_use]
pub fn split_addresses(text: &str) -> Vec<String> {
    let parts = text.split(',').map(str::trim);
    parts
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}
