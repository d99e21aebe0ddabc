//! Encodes a command in RESP, as an array of bulk strings (*Redis serialization protocol
//! specification*, "Sending commands to a Redis server").
//!
//! Tests: below, beside the encoder of `redis`.

use std::fmt::Write;

use crate::protocol::key::RedisKey;
use crate::protocol::token::Token;

/// The largest number of decimal digits of an integer.
const MAX_DIGITS: usize = 20;

/// A command. It is cleared and used again for its memory.
#[derive(Debug, Default)]
pub(crate) struct Command {
    /// The number of arguments; the first one is the command's name.
    count: usize,
    /// The arguments as bulk strings.
    args: Vec<u8>,
    /// Scratch space for arguments that are formatted.
    text: String,
}

/// A value that can be an argument of a command.
pub(crate) trait Argument {
    fn add_to(self, command: &mut Command);
}

impl Command {
    pub(crate) fn clear(&mut self) {
        self.count = 0;
        self.args.clear();
    }

    pub(crate) fn arg(&mut self, arg: impl Argument) -> &mut Command {
        arg.add_to(self);
        self
    }

    /// Appends the encoded command to `wire`.
    pub(crate) fn write_to(&self, wire: &mut Vec<u8>) {
        push_header(wire, b'*', self.count as u64);
        wire.extend_from_slice(&self.args);
    }

    fn push(&mut self, bytes: &[u8]) {
        self.push_written(bytes.len(), |args| args.extend_from_slice(bytes));
    }

    /// Appends an argument of this length, which `write` appends to its vector.
    fn push_written(&mut self, length: usize, write: impl FnOnce(&mut Vec<u8>)) {
        self.count += 1;
        push_header(&mut self.args, b'$', length as u64);
        write(&mut self.args);
        self.args.extend_from_slice(b"\r\n");
    }
}

impl Argument for &str {
    fn add_to(self, command: &mut Command) {
        command.push(self.as_bytes());
    }
}

impl Argument for &Token {
    fn add_to(self, command: &mut Command) {
        command.push_written(self.text_length(), |args| self.write_to(args));
    }
}

/// Without a token the argument is empty.
impl Argument for Option<&Token> {
    fn add_to(self, command: &mut Command) {
        match self {
            Some(token) => token.add_to(command),
            None => "".add_to(command),
        }
    }
}

impl Argument for u64 {
    fn add_to(self, command: &mut Command) {
        let mut digits = [0; MAX_DIGITS];
        let first = write_decimal(self, &mut digits);
        command.push(&digits[first..]);
    }
}

impl Argument for usize {
    fn add_to(self, command: &mut Command) {
        (self as u64).add_to(command);
    }
}

impl Argument for u16 {
    fn add_to(self, command: &mut Command) {
        u64::from(self).add_to(command);
    }
}

impl Argument for u8 {
    fn add_to(self, command: &mut Command) {
        u64::from(self).add_to(command);
    }
}

impl Argument for RedisKey<'_> {
    fn add_to(self, command: &mut Command) {
        if let RedisKey::Plain(key) = self {
            return key.as_str().add_to(command);
        }
        let mut text = std::mem::take(&mut command.text);
        text.clear();
        // A `String` accepts any text.
        let _ = write!(text, "{self}");
        text.as_str().add_to(command);
        command.text = text;
    }
}

/// Appends the first line of an array or a bulk string, by one copy.
fn push_header(wire: &mut Vec<u8>, kind: u8, length: u64) {
    let mut line = [0; 1 + MAX_DIGITS + 2];
    let (digits, end) = line.split_at_mut(1 + MAX_DIGITS);
    end.copy_from_slice(b"\r\n");
    let first = write_decimal(length, digits);
    line[first - 1] = kind;
    wire.extend_from_slice(&line[first - 1..]);
}

/// Writes the decimal digits of an integer at the end of `digits`. Returns the index of the first.
fn write_decimal(mut integer: u64, digits: &mut [u8]) -> usize {
    let mut first = digits.len() - 1;
    digits[first] = b'0' + (integer % 10) as u8;
    while integer >= 10 {
        integer /= 10;
        first -= 1;
        digits[first] = b'0' + (integer % 10) as u8;
    }
    first
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::key::Key;
    use crate::protocol::kind::LockKind;

    #[test]
    fn token_is_encoded_as_its_text_and_no_token_as_empty_text() {
        let label = std::sync::Arc::new("web-7".to_owned());
        let drawn = [(None, 0), (Some(&label), 0), (Some(&label), 0x19a)];
        let drawn = drawn.map(|(label, millis)| Token::fresh_at(label, millis).unwrap());
        for token in drawn
            .iter()
            .chain([&Token::existing("text"), &Token::empty()])
        {
            let [mut ours, mut reference] = [Command::default(), Command::default()];
            ours.arg(token).arg(Some(token)).arg(None::<&Token>);
            let text = token.text();
            reference.arg(&*text).arg(&*text).arg("");
            let [mut wire, mut expected] = [Vec::new(), Vec::new()];
            ours.write_to(&mut wire);
            reference.write_to(&mut expected);
            assert_eq!(wire, expected);
        }
    }

    proptest! {
        #[test]
        fn command_is_encoded_as_by_redis(
            texts in prop::collection::vec(".{0,120}", 0..5),
            integers in prop::collection::vec(any::<u64>(), 0..5),
            small in any::<(u16, u8)>(),
        ) {
            let (mut command, mut reference) = (Command::default(), redis::cmd("EVALSHA"));
            command.arg("a former command");
            command.clear();
            command.arg("EVALSHA");
            for text in &texts {
                command.arg(text.as_str());
                reference.arg(text);
            }
            for integer in &integers {
                command.arg(*integer).arg(*integer as usize);
                reference.arg(*integer).arg(*integer as usize);
            }
            command.arg(small.0).arg(small.1);
            reference.arg(small.0).arg(small.1);
            let mut wire = b"before".to_vec();
            command.write_to(&mut wire);
            prop_assert_eq!(wire, [b"before", &reference.get_packed_command()[..]].concat());
        }
    }

    #[test]
    fn keys_of_a_lock_are_encoded_as_they_are_shown() {
        let key = Key::parse("redguard:", "jobs", LockKind::Exclusive).unwrap();
        let (mut command, mut reference) = (Command::default(), redis::cmd("DEL"));
        command.arg("DEL");
        for redis_key in [key.token_key(), key.derived(":fence"), key.derived(":gate")] {
            reference.arg(redis_key.to_string());
            command.arg(redis_key);
        }
        let mut wire = Vec::new();
        command.write_to(&mut wire);
        assert_eq!(wire, reference.get_packed_command());
    }

    #[test]
    fn integer_has_all_its_digits() {
        for integer in [0, 9, 10, 99, 100, 30_000, u64::MAX] {
            let mut digits = [0; MAX_DIGITS];
            let first = write_decimal(integer, &mut digits);
            assert_eq!(&digits[first..], integer.to_string().as_bytes());
        }
    }
}
