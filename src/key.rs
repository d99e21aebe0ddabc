//! Names, lifetimes and tokens, parsed once at the door: past it nothing is validated again.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rand::TryRng;
use rand::rngs::SysRng;

use crate::error::Error;
use crate::time;

pub(crate) use self::keys::Keys;

mod keys;
#[cfg(any(feature = "cluster", all(test, not(loom))))]
pub(crate) mod slot;

/// The longest lock name, in bytes; a path of the longest length that Linux allows fits well.
const MAX_NAME: usize = 16 * 1024;

/// Above this many milliseconds a number is not exact in a Lua script any more.
const MAX_MILLIS: u64 = 1 << 53;

/// The endings of keys that this library derives from a lock's key. A lock whose name had one of them could be
/// taken for another lock's inner parts.
const RESERVED: [&str; 6] = [
    ":writer", ":readers", ":gate", ":turn", ":fence", ":permits",
];

/// A lock's key on the nodes, with the prefix in front of the name that the caller gave.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    text: Arc<str>,
    prefix: usize,
    family: Family,
}

/// The name of a channel on the nodes.
pub(crate) type Channel = Arc<str>;

/// What kind of lock a name names: two of different kinds are different locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Family {
    Exclusive,
    ReadWrite,
    Semaphore,
}

impl Key {
    /// # Errors
    /// `InvalidKey` when the name is empty, longer than 16 KiB, or ends like a derived key.
    pub(crate) fn parse(prefix: &str, name: &str, family: Family) -> Result<Key, Error> {
        let refuse = |reason: String| {
            Err(Error::InvalidKey {
                name: shortened(name),
                reason,
            })
        };
        if name.is_empty() {
            return refuse("it is empty".into());
        }
        if name.len() > MAX_NAME {
            return refuse(format!("{} bytes are over {MAX_NAME}", name.len()));
        }
        if let Some(ending) = RESERVED.iter().find(|ending| name.ends_with(**ending)) {
            return refuse(format!("the ending {ending:?} is reserved"));
        }
        let text = if prefix.is_empty() {
            Arc::from(name)
        } else {
            Arc::from([prefix, name].concat())
        };
        Ok(Key {
            text,
            prefix: prefix.len(),
            family,
        })
    }

    /// The name as the caller gave it.
    pub(crate) fn name(&self) -> &str {
        &self.text[self.prefix..]
    }

    /// An exclusive lock's key as it stands on the nodes.
    pub(crate) fn wire(&self) -> &str {
        &self.text
    }

    /// Where the releases of this name are published, of both kinds of locks.
    pub(crate) fn channel(&self) -> Channel {
        Arc::clone(&self.text)
    }

    /// Where the token stands of one who holds the lock alone: under an exclusive lock's own key, or as the writer. And where
    /// all permits of a semaphore stand.
    pub(crate) fn owner(&self) -> NodeKey<'_> {
        match self.family {
            Family::Exclusive => NodeKey::Lock(self),
            Family::ReadWrite => self.derived(":writer"),
            Family::Semaphore => self.derived(":permits"),
        }
    }

    /// A key that is derived from this one, in the same cluster slot as all others that are, and as this one if there is no
    /// `}` in it outside of a hash tag. (There is no such slot for a key that begins with one.)
    pub(crate) fn derived(&self, ending: &'static str) -> NodeKey<'_> {
        debug_assert!(RESERVED.contains(&ending));
        NodeKey::Derived(self, ending)
    }
}

/// A key as it stands on the nodes.
#[derive(Clone, Copy)]
pub(crate) enum NodeKey<'a> {
    /// The lock's own.
    Lock(&'a Key),
    /// The lock's with an ending. One without a hash tag is made one by braces around the whole of it.
    Derived(&'a Key, &'static str),
}

impl fmt::Display for NodeKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NodeKey::Lock(key) => f.write_str(&key.text),
            NodeKey::Derived(key, ending) if hash_tag(&key.text).is_some() => {
                write!(f, "{}{ending}", key.text)
            }
            NodeKey::Derived(key, ending) => write!(f, "{{{}}}{ending}", key.text),
        }
    }
}

/// What alone decides on a key's slot, if not all of it does: what stands between the first `{` and the next `}`, if anything
/// does (Redis Cluster specification, "Hash tags").
fn hash_tag(key: &str) -> Option<&str> {
    let (_, rest) = key.split_once('{')?;
    let (tag, _) = rest.split_once('}')?;
    Some(tag).filter(|tag| !tag.is_empty())
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

/// A lock's lifetime, in whole milliseconds as Redis counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ttl(u64);

impl Ttl {
    /// Parts of a millisecond are cut off, so that a lease is never thought longer than the nodes keep it.
    ///
    /// # Errors
    /// `InvalidTtl` when it is too long for Redis, or so short that even an attempt that takes no time would not
    /// leave the fraction `min_validity` of it.
    pub(crate) fn parse(ttl: Duration, min_validity: f64) -> Result<Ttl, Error> {
        let refuse = |reason: String| Err(Error::InvalidTtl { ttl, reason });
        let millis = match u64::try_from(ttl.as_millis()) {
            Ok(millis) if millis <= MAX_MILLIS => millis,
            _ => return refuse("it is longer than Redis can count".into()),
        };
        let whole = Ttl(millis);
        let valid = time::validity(whole.duration());
        if valid.is_zero() || valid < whole.least_validity(min_validity) {
            let drift = time::drift(ttl);
            return refuse(format!(
                "an allowance of {drift:?} for clock drift leaves less than min_validity ({min_validity}) of it"
            ));
        }
        Ok(whole)
    }

    pub(crate) fn millis(self) -> u64 {
        self.0
    }

    pub(crate) fn duration(self) -> Duration {
        Duration::from_millis(self.0)
    }

    /// The validity below which an attempt counts as too slow.
    pub(crate) fn least_validity(self, min_validity: f64) -> Duration {
        self.duration().mul_f64(min_validity)
    }
}

/// What is stored under a lock's key: 160 random bits of the operating system in hexadecimal digits, after the
/// owner's label if there is one. Fresh for every attempt (rule S3).
///
/// Its `Debug` shows nothing: who knows a token can release the lock.
pub(crate) struct Token {
    text: Box<str>,
    id: u64,
}

impl Token {
    /// For a lock that no node knows of.
    pub(crate) fn local() -> Token {
        Token {
            text: "".into(),
            id: 0,
        }
    }

    /// One that was another's, to be looked for.
    pub(crate) fn former(text: &str) -> Token {
        Token {
            text: text.into(),
            id: 0,
        }
    }

    /// For a history that is to be the same each time.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn of(text: String, id: u64) -> Token {
        Token {
            text: text.into_boxed_str(),
            id,
        }
    }

    /// # Errors
    /// `System` when the operating system has no random bytes to give.
    pub(crate) fn fresh(owner: Option<&str>) -> Result<Token, Error> {
        let mut bits = [0_u8; 20];
        SysRng
            .try_fill_bytes(&mut bits)
            .map_err(|error| Error::System {
                what: "random bytes",
                reason: error.to_string(),
            })?;
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

    /// 64 of the random bits, to tell tokens apart quickly where a false match does no harm.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// The start of a name, short enough for a message.
fn shortened(name: &str) -> String {
    match name.char_indices().nth(64) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn names_come_back_unchanged() {
        for name in [
            "a",
            "nul\0inside",
            "🔒",
            "日本語",
            "cr\r\nlf",
            "back\\slash",
            "with space",
            "{tag}x",
        ] {
            let key = Key::parse("redguard:", name, Family::Exclusive).unwrap();
            assert_eq!(key.name(), name);
            assert_eq!(key.wire(), format!("redguard:{name}"));
        }
    }

    #[test]
    fn prefix_and_name_together_make_the_key() {
        let parse = |prefix, name| Key::parse(prefix, name, Family::Exclusive).unwrap();
        assert_eq!(parse("P", "N").wire(), parse("", "PN").wire());
        assert_ne!(parse("P", "N").wire(), parse("", "N").wire());
    }

    #[test]
    fn derived_keys_share_the_slot_of_their_lock() {
        for (name, derived) in [
            ("catalogue", "{p:catalogue}:writer"),
            ("{shop}catalogue", "p:{shop}catalogue:writer"),
            ("{}catalogue", "{p:{}catalogue}:writer"),
            ("a}b", "{p:a}b}:writer"),
            ("{a", "{p:{a}:writer"),
        ] {
            let key = Key::parse("p:", name, Family::ReadWrite).unwrap();
            assert_eq!(key.derived(":writer").to_string(), derived);
        }
    }

    #[test]
    fn an_exclusive_and_a_read_write_lock_of_one_name_are_two() {
        let parse = |family| Key::parse("p:", "x", family).unwrap();
        assert_ne!(parse(Family::Exclusive), parse(Family::ReadWrite));
    }

    #[test]
    fn unusable_names_are_refused() {
        let long = "é".repeat(MAX_NAME);
        for name in [
            "",
            "x:writer",
            "x:readers",
            "x:gate",
            "x:turn",
            ":fence",
            &long,
        ] {
            let error = Key::parse("p:", name, Family::Exclusive).unwrap_err();
            assert!(matches!(error, Error::InvalidKey { .. }), "{error}");
            assert!(error.to_string().len() < 300);
        }
        Key::parse("p:", &"x".repeat(MAX_NAME), Family::Exclusive).unwrap();
        Key::parse("p:", "writer", Family::Exclusive).unwrap();
    }

    #[test]
    fn a_ttl_that_cannot_pass_is_refused() {
        for (micros, min_validity, passes) in [
            (0, 0.0, false),
            (999, 0.0, false),
            (2_000, 0.0, false),
            (3_000, 0.0, true),
            (4_000, 0.5, false),
            (5_000, 0.5, true),
            (30_000_000, 0.98, true),
            (30_000_000, 0.99, false),
        ] {
            let parsed = Ttl::parse(Duration::from_micros(micros), min_validity);
            assert_eq!(parsed.is_ok(), passes, "{micros} µs at {min_validity}");
        }
        for ttl in [Duration::MAX, Duration::from_millis(MAX_MILLIS + 1)] {
            assert!(matches!(
                Ttl::parse(ttl, 0.5),
                Err(Error::InvalidTtl { .. })
            ));
        }
        assert!(Ttl::parse(Duration::from_millis(MAX_MILLIS), 0.5).is_ok());
        let cut = Ttl::parse(Duration::from_micros(10_999), 0.5).unwrap();
        assert_eq!(cut.millis(), 10);
    }

    #[test]
    fn tokens_are_long_and_never_equal() {
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

    /// Any text, some of it close to what has a meaning in a key.
    fn name() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            any::<char>().prop_map(String::from),
            proptest::sample::select(&["{", "}", ":", "", "redguard:", "x"][..])
                .prop_map(String::from),
            proptest::sample::select(&RESERVED[..]).prop_map(String::from),
        ];
        let text = proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat());
        (text, prop_oneof![9 => Just(1), 1 => 1..4_000_usize])
            .prop_map(|(text, times)| text.repeat(times))
    }

    /// The part of a key that its slot is made of (Redis Cluster specification, "Hash tags").
    fn tag(key: &str) -> &str {
        let Some(open) = key.find('{') else {
            return key;
        };
        match key[open..].find('}') {
            Some(length) if length > 1 => &key[open + 1..open + length],
            _ => key,
        }
    }

    proptest! {
        #[test]
        fn any_name_is_a_key_or_refused(prefix in name(), name in name()) {
            match Key::parse(&prefix, &name, Family::ReadWrite) {
                Ok(key) => {
                    prop_assert!(!name.is_empty() && name.len() <= MAX_NAME);
                    prop_assert_eq!(key.name(), &name);
                    prop_assert_eq!(key.wire(), format!("{prefix}{name}"));
                    let derived = RESERVED.map(|ending| key.derived(ending).to_string());
                    // No hash tag can have a `}` in it, so there is none for a key that begins with one.
                    let (slot, has_none) = (tag(&derived[0]), key.wire().starts_with('}'));
                    for (derived, ending) in derived.iter().zip(RESERVED) {
                        prop_assert!(derived.ends_with(ending));
                        prop_assert!(tag(derived) == slot || has_none);
                    }
                }
                Err(error) => {
                    let good = !name.is_empty()
                        && name.len() <= MAX_NAME
                        && !RESERVED.iter().any(|ending| name.ends_with(ending));
                    prop_assert!(!good && error.to_string().len() < 1_000, "{}", error);
                }
            }
        }

        #[test]
        fn any_ttl_fits_or_is_refused(
            secs in prop_oneof![0..10_u64, any::<u64>()],
            nanos in 0..1_000_000_000_u32,
            min_validity in 0.0..0.98,
        ) {
            let ttl = Duration::new(secs, nanos);
            match Ttl::parse(ttl, min_validity) {
                Ok(parsed) => {
                    prop_assert!(parsed.duration() <= ttl && parsed.millis() <= MAX_MILLIS);
                    let least = parsed.least_validity(min_validity);
                    prop_assert!(least <= time::validity(parsed.duration()));
                }
                Err(error) => {
                    let shown = format!("{ttl:?}");
                    prop_assert!(error.to_string().contains(&shown));
                    prop_assert!(ttl.as_millis() > u128::from(MAX_MILLIS) || ttl.as_secs() < 10);
                }
            }
        }
    }
}
