//! Counts the array headers of a reply, so that a nested reply is recognized before it is parsed.
//!
//! The content of a bulk string is skipped by its length, because it may look like a header: a
//! refusal reports an owner label, which may be any text. A length that is not written in digits
//! alone skips nothing, so no reply hides a header from the count.
//!
//! Tests: beside it; beside `plain_stream.rs`; `tests/it/wire/foreign_values.rs` (real servers).

/// The number of array headers in the bytes of a reply so far.
#[derive(Debug, Default)]
pub(super) struct ArrayHeaders {
    count: u32,
    position: Position,
}

/// The position in a reply.
#[derive(Clone, Copy, Debug, Default)]
enum Position {
    /// At the first byte of a line.
    #[default]
    LineStart,
    Line {
        /// The length of the bulk string that follows the line; `None` if none follows.
        length: Option<usize>,
        /// Whether the last byte was a carriage return: only both bytes end a line.
        is_ending: bool,
    },
    /// In a bulk string, with the bytes left of it and of its end of line.
    Bulk(usize),
}

impl ArrayHeaders {
    /// Counts the headers in the next bytes of the reply. Returns the number of all so far.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> u32 {
        while let Some((&byte, others)) = bytes.split_first() {
            let (position, left) = match self.position {
                Position::Bulk(length) if length > bytes.len() => {
                    (Position::Bulk(length - bytes.len()), &[][..])
                }
                Position::Bulk(length) => (Position::LineStart, &bytes[length..]),
                Position::LineStart => {
                    self.count += u32::from(matches!(byte, b'*' | b'%' | b'~' | b'>' | b'|'));
                    let length = matches!(byte, b'$' | b'!' | b'=').then_some(0);
                    (Position::line(length, byte), others)
                }
                Position::Line {
                    length,
                    is_ending: true,
                } if byte == b'\n' => (Position::after_line(length), others),
                Position::Line { length, is_ending } => {
                    let length = length.filter(|_| !is_ending);
                    let length = length.and_then(|length| next_length(length, byte));
                    (Position::line(length, byte), others)
                }
            };
            (self.position, bytes) = (position, left);
        }
        self.count
    }
}

impl Position {
    fn line(length: Option<usize>, last: u8) -> Position {
        Position::Line {
            length,
            is_ending: last == b'\r',
        }
    }

    fn after_line(length: Option<usize>) -> Position {
        length.map_or(Position::LineStart, |length| {
            Position::Bulk(length.saturating_add(2))
        })
    }
}

/// Returns the length after its next byte; `None` if that is no digit.
fn next_length(length: usize, byte: u8) -> Option<usize> {
    match byte {
        b'\r' => Some(length),
        b'0'..=b'9' => {
            let digit = usize::from(byte - b'0');
            Some(length.saturating_mul(10).saturating_add(digit))
        }
        _ => None,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn headers_are_counted_outside_of_bulk_strings_in_any_parts() {
        for (reply, count) in [
            ("+OK\r\n", 0),
            ("*0\r\n", 1),
            ("*3\r\n:0\r\n:29000\r\n$9\r\n*nightly*\r\n", 1),
            ("*2\r\n$4\r\n\r\n*1\r\n$0\r\n\r\n", 1),
            ("*2\r\n$4\r\n\r\n*1\r\n*0\r\n", 2),
            ("*2\r\n=5\r\ntxt:*\r\n!2\r\n*a\r\n", 1),
            ("*2\r\n$-1\r\n*0\r\n", 2),
            ("%1\r\n~1\r\n:1\r\n>1\r\n|1\r\n", 4),
            // Of the parser, the line has a length, or is one line: nothing may be skipped here.
            ("*2\r\n$+2\r\n*a\r\n*0\r\n", 3),
            ("*2\r\n+x\n$9999\r\n*1\r\n*1\r\n", 3),
            ("*2\r\n+x\r$9999\r\n*1\r\n*1\r\n", 3),
            ("*2\r\n$1\r2\r\n*1\r\n", 2),
            ("*2\r\n$99999999999999999999\r\n*1\r\n", 1),
        ] {
            let bytes = reply.as_bytes();
            for first in 0..bytes.len() {
                for second in first..bytes.len() {
                    let mut headers = ArrayHeaders::default();
                    headers.read(&bytes[..first]);
                    headers.read(&bytes[first..second]);
                    assert_eq!(headers.read(&bytes[second..]), count, "{reply:?}");
                }
            }
        }
    }
}
