//! The token that is stored under a lock's key (S3).

use std::fmt;

use crate::error::Error;
use crate::random;

/// A token: 160 random bits of the operating system in hexadecimal digits, preceded by the owner
/// label and `:` if there is one. Every attempt has a fresh token.
///
/// `Debug` does not show it, because a token can release the lock.
pub(crate) struct Token {
    text: Box<str>,
    id: u64,
}

impl Token {
    /// Returns the token of a local lock, which no node stores.
    pub(crate) fn empty() -> Token {
        Token {
            text: "".into(),
            id: 0,
        }
    }

    /// Returns a token that another process created.
    pub(crate) fn existing(text: &str) -> Token {
        Token {
            text: text.into(),
            id: 0,
        }
    }

    /// Returns a given token, for histories that repeat exactly.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn fixed(text: String, id: u64) -> Token {
        Token {
            text: text.into_boxed_str(),
            id,
        }
    }

    /// Draws a token.
    ///
    /// # Errors
    /// - `System`: the operating system returns no random bytes.
    pub(crate) fn fresh(owner: Option<&str>) -> Result<Token, Error> {
        let mut bits = [0_u8; 20];
        random::fill(&mut bits)?;
        let owner = owner.unwrap_or_default();
        let colon = usize::from(!owner.is_empty());
        let mut text = String::with_capacity(owner.len() + colon + 2 * bits.len());
        if !owner.is_empty() {
            text.push_str(owner);
            text.push(':');
        }
        for byte in bits {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
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

    /// Returns 64 of the random bits, for comparisons where a false match does no harm.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

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
    }
}
