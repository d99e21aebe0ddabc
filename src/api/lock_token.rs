//! Lock tokens: detached locks, as a text that another process adopts.

use std::fmt;
use std::str::FromStr;

use crate::error::error::Error;
use crate::protocol::key_set::KeySet;
use crate::protocol::kind::LockKind;
use crate::protocol::lease::Lease;

/// The version of the text form.
const VERSION: &str = "1";

/// A detached lock, for another process to adopt: from
/// [`LockGuard::into_token`](crate::LockGuard::into_token) to
/// [`RedisLocker::adopt`](crate::RedisLocker::adopt).
///
/// By `Display` and `FromStr` it is a text of letters, digits and points, which passes through
/// environments, arguments and pipes. **It is a secret**: any process that has it can adopt the
/// lock. (Other users of a machine can read the arguments of a process.) `Debug` shows the names
/// alone. Dropping a token does nothing: the lock ends with its TTL.
///
/// ```
/// use redguard::LockToken;
///
/// assert!("not a token".parse::<LockToken>().is_err());
///
/// fn adopt_and_say(text: &str) -> Result<(), redguard::Error> {
///     let token: LockToken = text.parse()?;
///     println!("carries on with {:?}", token.keys().collect::<Vec<_>>());
///     Ok(())
/// }
/// ```
#[derive(Clone, PartialEq, Eq)]
#[must_use = "a lock that is not adopted is left to its TTL"]
pub struct LockToken {
    names: Vec<String>,
    token: String,
    fenced: bool,
}

impl LockToken {
    pub(crate) fn from_lease(lease: &Lease) -> LockToken {
        let names = lease.keys().as_slice().iter();
        LockToken {
            names: names.map(|key| key.name().to_owned()).collect(),
            token: lease.token().text(),
            fenced: lease.fencing_token().is_some(),
        }
    }

    /// Returns the names of the lock as they were given, sorted.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Parses the names with the key prefix of the adopting process.
    ///
    /// # Errors
    /// `InvalidKey` for names that no guard can have.
    pub(crate) fn keys_with_prefix(&self, prefix: &str) -> Result<KeySet, Error> {
        let names: Vec<&str> = self.keys().collect();
        KeySet::parse(prefix, &names, LockKind::Exclusive)
    }

    /// Returns the value under the keys on the nodes.
    pub(crate) fn secret(&self) -> &str {
        &self.token
    }

    pub(crate) fn is_fenced(&self) -> bool {
        self.fenced
    }
}

/// The version, whether the lock is fenced (`0` or `1`), the token and the names in hexadecimal
/// digits, separated by points.
impl fmt::Display for LockToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION}.{}", u8::from(self.fenced))?;
        for part in std::iter::once(&self.token).chain(&self.names) {
            f.write_str(".")?;
            for byte in part.bytes() {
                write!(f, "{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// # Errors
/// [`InvalidLockToken`](Error::InvalidLockToken).
impl FromStr for LockToken {
    type Err = Error;

    fn from_str(text: &str) -> Result<LockToken, Error> {
        parse_text(text.trim()).ok_or(Error::InvalidLockToken)
    }
}

fn parse_text(text: &str) -> Option<LockToken> {
    let mut parts = text.split('.');
    let version = parts.next()?;
    let fenced = match parts.next()? {
        "0" => false,
        "1" => true,
        _ => return None,
    };
    let token = decode_hex(parts.next()?).filter(|token| !token.is_empty())?;
    let names: Vec<String> = parts.map(decode_hex).collect::<Option<_>>()?;
    (version == VERSION && !names.is_empty()).then_some(LockToken {
        names,
        token,
        fenced,
    })
}

fn decode_hex(digits: &str) -> Option<String> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let bytes = digits.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => u8::try_from(digit(*high)? << 4 | digit(*low)?).ok(),
        _ => None,
    });
    String::from_utf8(bytes.collect::<Option<_>>()?).ok()
}

impl fmt::Debug for LockToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LockToken").field(&self.names).finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_that_is_not_a_token_is_refused() {
        for text in [
            "",
            ".",
            "1",
            "1.0",
            "1.0.",
            "1.0..61",
            "1.0.61",
            "2.0.61.61",
            "1.2.61.61",
            "1.0.6.61",
            "1.0.6g.61",
            "1.0.61.ff",
            "1.0.61.6é",
            "1.0.+1.61",
        ] {
            assert_eq!(
                text.parse::<LockToken>(),
                Err(Error::InvalidLockToken),
                "{text}"
            );
        }
    }

    #[test]
    fn token_shows_its_names_and_not_its_secret() {
        let token: LockToken = "1.1.7365637265742d746f6b656e.61.62".parse().unwrap();
        assert_eq!(token.secret(), "secret-token");
        assert!(token.is_fenced() && token.keys().eq(["a", "b"]));
        assert_eq!(format!("{token:?}"), r#"LockToken(["a", "b"])"#);
        assert!(token.keys_with_prefix("p:").unwrap().as_slice().len() == 2);
    }

    proptest! {
        #[test]
        fn token_printed_and_parsed_is_unchanged(names in prop::collection::vec(".{0,20}", 1..4), token in ".{1,40}", fenced: bool) {
            let before = LockToken { names, token, fenced };
            let text = before.to_string();
            prop_assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.'));
            prop_assert_eq!(format!(" {text}\n").parse::<LockToken>(), Ok(before));
        }

        #[test]
        fn parsing_any_text_does_not_panic(text in ".{0,60}") {
            let _ = text.parse::<LockToken>();
        }
    }
}
