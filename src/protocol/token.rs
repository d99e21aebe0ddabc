//! The token that is stored under a lock's key (S3).

use std::fmt;

use crate::error::Error;
use crate::random;

/// A token: 160 random bits of the operating system in hexadecimal digits, preceded by the owner
/// label and `:` if there is one, and followed by `.` and the time of the acquire if that is known.
/// Every attempt has a fresh token. The label ends at the last `:`, so it may contain any.
///
/// `Debug` does not show it, because a token can release the lock.
pub(crate) struct Token {
    text: Box<str>,
    id: u64,
}

impl Token {
    /// Returns the token of a local lock, which no node stores.
    pub(crate) fn local(label: Option<&str>) -> Token {
        Token {
            text: label
                .map(|label| format!("{label}:"))
                .unwrap_or_default()
                .into(),
            id: 0,
        }
    }

    /// Returns the token of a request that no lease belongs to.
    pub(crate) fn empty() -> Token {
        Token::local(None)
    }

    /// Returns a token that another process created.
    pub(crate) fn existing(text: &str) -> Token {
        Token {
            text: text.into(),
            id: 0,
        }
    }

    /// Draws a token.
    ///
    /// # Errors
    /// - `System`: the operating system returns no random bytes.
    pub(crate) fn fresh(owner: Option<&str>) -> Result<Token, Error> {
        Token::draw(owner, None)
    }

    /// Draws a token of an acquire at this time, in ms since 1970.
    ///
    /// # Errors
    /// - `System`: the operating system returns no random bytes.
    pub(crate) fn fresh_at(owner: Option<&str>, unix_millis: u64) -> Result<Token, Error> {
        Token::draw(owner, Some(unix_millis))
    }

    fn draw(owner: Option<&str>, unix_millis: Option<u64>) -> Result<Token, Error> {
        let mut bits = [0_u8; 20];
        random::fill(&mut bits)?;
        let owner = owner.unwrap_or_default();
        let colon = usize::from(!owner.is_empty());
        let time = unix_millis.map_or(0, |_| MAX_TIME);
        let mut text = String::with_capacity(owner.len() + colon + 2 * bits.len() + time);
        if !owner.is_empty() {
            text.push_str(owner);
            text.push(':');
        }
        for byte in bits {
            text.push(hex_digit(byte >> 4));
            text.push(hex_digit(byte));
        }
        if let Some(millis) = unix_millis {
            text.push('.');
            let digits = (u64::BITS - millis.leading_zeros()).div_ceil(4);
            for place in (0..digits).rev() {
                text.push(hex_digit((millis >> (4 * place)) as u8));
            }
        }
        let (first, _) = bits.split_at(8);
        let id = first.iter().fold(0, |id, &byte| id << 8 | u64::from(byte));
        Ok(Token {
            text: text.into_boxed_str(),
            id,
        })
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Returns the owner label.
    pub(crate) fn owner_label(&self) -> Option<&str> {
        self.text.rsplit_once(':').map(|(label, _)| label)
    }

    /// Returns 64 of the random bits, for comparisons where a false match does no harm.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }
}

/// Returns the digit of the lowest four bits.
fn hex_digit(bits: u8) -> char {
    char::from(b"0123456789abcdef"[usize::from(bits & 15)])
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// The maximal length of the time in a token with its point, in bytes.
const MAX_TIME: usize = 17;

/// The maximal length of an owner label, in bytes.
pub(crate) const MAX_OWNER_LABEL: usize = 64;

#[cfg(all(test, not(loom)))]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn fresh_tokens_are_long_and_unique() {
        let drawn: HashSet<String> = (0..10_000)
            .map(|_| Token::fresh(None).unwrap().text().to_owned())
            .collect();
        assert_eq!(drawn.len(), 10_000);
        assert!(drawn.iter().all(|text| text.len() == 40));
        let owned = Token::fresh(Some("batch-7")).unwrap();
        assert!(owned.text().starts_with("batch-7:"));
        assert_eq!(owned.text().len(), 48);
        assert!(!format!("{owned:?}").contains(&owned.text()[8..]));
        assert_eq!(owned.owner_label(), Some("batch-7"));
    }

    #[test]
    fn token_has_the_time_of_its_acquire_and_a_label_with_colons() {
        for (label, millis, digits) in [
            (None, 0, ""),
            (None, 0x19a_1234_5678, "19a12345678"),
            (Some("web-7:8080"), 0x19a_1234_5678, "19a12345678"),
            (Some("a:"), u64::MAX, "ffffffffffffffff"),
        ] {
            let token = Token::fresh_at(label, millis).unwrap();
            let (random, time) = token.text().rsplit_once('.').unwrap();
            assert_eq!((time, token.owner_label()), (digits, label));
            let prefix = label.map(|label| format!("{label}:")).unwrap_or_default();
            assert_eq!(random.len(), prefix.len() + 40);
            assert!(random.starts_with(&prefix));
        }
        assert_eq!(Token::local(Some("a")).owner_label(), Some("a"));
        assert_eq!(Token::empty().owner_label(), None);
    }
}
