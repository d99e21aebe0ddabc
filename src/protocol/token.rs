//! The token that is stored under a lock's key (S3).

use std::fmt;
use std::sync::Arc;

use crate::error::error::Error;
use crate::random;

/// The number of random bytes.
const RANDOM_BYTES: usize = 20;

/// The maximal length of an owner label, in bytes.
pub(crate) const MAX_OWNER_LABEL: usize = 64;

/// An owner label. All tokens with it share its text; it is one word, because each held lease has
/// one.
pub(crate) type OwnerLabel = Arc<String>;

/// A token: 160 random bits of the operating system in hexadecimal digits, preceded by the owner
/// label and `:` if there is one, and followed by `.` and the time of the acquire if that is known.
/// Every attempt has a fresh token. The label ends at the last `:`, so it may contain any.
///
/// `Debug` does not show it, because a token can release the lock.
pub(crate) struct Token(Form);

/// The parts of a token take less memory than its text, which is needed only in requests.
enum Form {
    Drawn {
        bytes: [u8; RANDOM_BYTES],
        /// The time of the acquire in ms since 1970; 0 if it is unknown.
        unix_millis: u64,
        label: Option<OwnerLabel>,
    },
    /// The text of a token that was not drawn here.
    Text(Box<str>),
}

impl Token {
    /// Returns the token of a local lock, which no node stores.
    pub(crate) fn local(label: Option<&str>) -> Token {
        let text = label.map(|label| format!("{label}:"));
        Token(Form::Text(text.unwrap_or_default().into()))
    }

    /// Returns the token of a request that no lease belongs to.
    pub(crate) fn empty() -> Token {
        Token::local(None)
    }

    /// Returns a token that another process created.
    pub(crate) fn existing(text: &str) -> Token {
        Token(Form::Text(text.into()))
    }

    /// Draws a token.
    ///
    /// # Errors
    /// - `System`: the operating system returns no random bytes.
    pub(crate) fn fresh(label: Option<&OwnerLabel>) -> Result<Token, Error> {
        Token::fresh_at(label, 0)
    }

    /// Draws a token of an acquire at this time, in ms since 1970; 0 for an unknown time.
    ///
    /// # Errors
    /// - `System`: the operating system returns no random bytes.
    pub(crate) fn fresh_at(label: Option<&OwnerLabel>, unix_millis: u64) -> Result<Token, Error> {
        let mut bytes = [0; RANDOM_BYTES];
        random::fill(&mut bytes)?;
        Ok(Token(Form::Drawn {
            bytes,
            unix_millis,
            label: label.cloned(),
        }))
    }

    /// Returns the length of the text, in bytes.
    pub(crate) fn text_length(&self) -> usize {
        match &self.0 {
            Form::Drawn {
                unix_millis, label, ..
            } => {
                let label = label.as_ref().map_or(0, |label| label.len() + 1);
                let time = match unix_millis {
                    0 => 0,
                    millis => 1 + hex_length(*millis) as usize,
                };
                label + 2 * RANDOM_BYTES + time
            }
            Form::Text(text) => text.len(),
        }
    }

    /// Appends the text.
    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        let (bytes, unix_millis, label) = match &self.0 {
            Form::Drawn {
                bytes,
                unix_millis,
                label,
            } => (bytes, *unix_millis, label),
            Form::Text(text) => return out.extend_from_slice(text.as_bytes()),
        };
        if let Some(label) = label {
            out.extend_from_slice(label.as_bytes());
            out.push(b':');
        }
        let mut digits = [0; 2 * RANDOM_BYTES];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(bytes) {
            pair.copy_from_slice(&[hex_digit(byte >> 4), hex_digit(*byte)]);
        }
        out.extend_from_slice(&digits);
        if unix_millis > 0 {
            out.push(b'.');
            let places = (0..hex_length(unix_millis)).rev();
            out.extend(places.map(|place| hex_digit((unix_millis >> (4 * place)) as u8)));
        }
    }

    /// Returns the text. Requests write it without an allocation, by
    /// [`write_to`](Token::write_to).
    pub(crate) fn text(&self) -> String {
        let mut text = Vec::with_capacity(self.text_length());
        self.write_to(&mut text);
        // Never empty for that reason: all parts are valid text.
        String::from_utf8(text).unwrap_or_default()
    }

    /// Returns the owner label.
    pub(crate) fn owner_label(&self) -> Option<&str> {
        match &self.0 {
            Form::Drawn { label, .. } => label.as_ref().map(|label| label.as_str()),
            Form::Text(text) => text.rsplit_once(':').map(|(label, _)| label),
        }
    }

    /// Returns 64 of the random bits, for comparisons where a false match does no harm; 0 for a
    /// token that was not drawn here, which has none.
    pub(crate) fn id(&self) -> u64 {
        match &self.0 {
            Form::Drawn { bytes, .. } => {
                let (first, _) = bytes.split_at(8);
                first.iter().fold(0, |id, &byte| id << 8 | u64::from(byte))
            }
            Form::Text(_) => 0,
        }
    }
}

/// Returns the number of hexadecimal digits.
fn hex_length(integer: u64) -> u32 {
    (u64::BITS - integer.leading_zeros()).div_ceil(4)
}

/// Returns the hexadecimal digit of the lowest four bits.
fn hex_digit(bits: u8) -> u8 {
    b"0123456789abcdef"[usize::from(bits & 15)]
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn label(text: &str) -> OwnerLabel {
        Arc::new(text.to_owned())
    }

    #[test]
    fn fresh_tokens_are_long_and_unique() {
        let drawn: HashSet<String> = (0..10_000)
            .map(|_| Token::fresh(None).unwrap().text())
            .collect();
        assert_eq!(drawn.len(), 10_000);
        assert!(drawn.iter().all(|text| text.len() == 40));
        let owned = Token::fresh(Some(&label("batch-7"))).unwrap();
        assert!(owned.text().starts_with("batch-7:"));
        assert_eq!(owned.text().len(), 48);
        assert!(!format!("{owned:?}").contains(&owned.text()[8..]));
        assert_eq!(owned.owner_label(), Some("batch-7"));
    }

    #[test]
    fn token_has_the_time_of_its_acquire_and_a_label_with_colons() {
        for (owner, millis, time) in [
            (None, 0, ""),
            (None, 1, ".1"),
            (None, 0x19a_1234_5678, ".19a12345678"),
            (Some("web-7:8080"), 0, ""),
            (Some("web-7:8080"), 0x19a_1234_5678, ".19a12345678"),
            (Some("a:"), u64::MAX, ".ffffffffffffffff"),
        ] {
            let token = Token::fresh_at(owner.map(label).as_ref(), millis).unwrap();
            let text = token.text();
            let prefix = owner.map(|owner| format!("{owner}:")).unwrap_or_default();
            let random = text.strip_prefix(&prefix).unwrap();
            let random = random.strip_suffix(time).unwrap();
            assert_eq!((random.len(), token.owner_label()), (40, owner));
            assert!(random.bytes().all(|byte| byte.is_ascii_hexdigit()));
            assert!(random.starts_with(&format!("{:016x}", token.id())));
            assert_eq!(token.text_length(), text.len());
            let read = Token::existing(&text);
            assert_eq!((read.text(), read.owner_label()), (text, owner));
        }
        assert_eq!(Token::local(Some("a")).owner_label(), Some("a"));
        assert_eq!(Token::empty().owner_label(), None);
    }
}
