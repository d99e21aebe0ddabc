//! The name of a lock, parsed once, and the keys that it has on the nodes (ARCHITECTURE.md,
//! section 8).

use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use crate::error::error::Error;
use crate::protocol::kind::LockKind;

/// The maximal length of a lock name, in bytes: four times the longest path of Linux.
const MAX_NAME: usize = 16 * 1024;

/// The suffixes of derived keys. The key of a lock whose name ended in one could be another lock's
/// derived key.
const RESERVED_SUFFIXES: [&str; 7] = [
    ":writer", ":readers", ":gate", ":turn", ":fence", ":permits", ":waiting",
];

/// A lock's key on the nodes: the key prefix and the name that the caller gave.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Key {
    /// The key prefix and the name.
    text: Arc<str>,
    /// The length of the name, in bytes; at most [`MAX_NAME`].
    name_length: u16,
    kind: LockKind,
}

/// Hashes the text alone, because it is nearly always enough to tell two keys apart.
impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(self.text.as_bytes());
    }
}

/// The name of a channel on the nodes.
pub(crate) type Channel = Arc<str>;

/// Returns the notice channel of all locks with this key prefix. A notice is a message that
/// names a lock whose holders are to check it.
pub(crate) fn notice_channel(prefix: &str) -> Channel {
    Channel::from([prefix, "listener:notices"].concat())
}

impl Key {
    /// Parses a name.
    ///
    /// # Errors
    /// - `InvalidKey`: empty, longer than 16 KiB, ends in a reserved suffix, or shares its derived
    ///   keys with another name.
    pub(crate) fn parse(prefix: &str, name: &str, kind: LockKind) -> Result<Key, Error> {
        let refuse = |reason: String| {
            Err(Error::InvalidKey {
                name: truncate_for_message(name),
                reason,
            })
        };
        if name.is_empty() {
            return refuse("the name is empty".into());
        }
        let name_length = match u16::try_from(name.len()) {
            Ok(length) if name.len() <= MAX_NAME => length,
            _ => return refuse(format!("{} bytes are over {MAX_NAME}", name.len())),
        };
        if let Some(suffix) = RESERVED_SUFFIXES
            .iter()
            .find(|suffix| name.ends_with(**suffix))
        {
            return refuse(format!("the suffix {suffix:?} is reserved"));
        }
        let text: Arc<str> = if prefix.is_empty() {
            Arc::from(name)
        } else {
            Arc::from([prefix, name].concat())
        };
        if let Some(other) = name_with_same_keys(prefix, &text)
            && kind != LockKind::Exclusive
        {
            let other = truncate_for_message(other);
            return refuse(format!(
                "without a key prefix it has the same keys as {other:?}"
            ));
        }
        Ok(Key {
            text,
            name_length,
            kind,
        })
    }

    /// Returns the name as the caller gave it.
    pub(crate) fn name(&self) -> &str {
        &self.text[self.text.len() - usize::from(self.name_length)..]
    }

    /// Returns the key prefix.
    pub(crate) fn prefix(&self) -> &str {
        &self.text[..self.text.len() - usize::from(self.name_length)]
    }

    /// Returns a hash of the key, the same for equal keys within a process.
    pub(crate) fn to_hash(&self) -> u64 {
        BuildHasherDefault::<DefaultHasher>::default().hash_one(self)
    }

    /// Returns the key of an exclusive lock on the nodes.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the channel in which releases of this name are published, for all kinds of locks.
    pub(crate) fn channel(&self) -> Channel {
        Arc::clone(&self.text)
    }

    /// Returns the key that stores the token of an exclusive lock or of a writer, or the permits of
    /// a semaphore.
    pub(crate) fn token_key(&self) -> RedisKey<'_> {
        match self.kind {
            LockKind::Exclusive => RedisKey::Plain(self),
            LockKind::ReadWrite => self.derived(":writer"),
            LockKind::Semaphore => self.derived(":permits"),
        }
    }

    /// Returns a derived key. All derived keys share a hash slot, also with this key if it has
    /// no `}` outside a hash tag. Keys that begin with `}` are the exception: they share none.
    pub(crate) fn derived(&self, suffix: &'static str) -> RedisKey<'_> {
        debug_assert!(RESERVED_SUFFIXES.contains(&suffix));
        RedisKey::Derived(self, suffix)
    }
}

/// A key on the nodes.
#[derive(Clone, Copy)]
pub(crate) enum RedisKey<'a> {
    /// The lock's key itself.
    Plain(&'a Key),
    /// The lock's key with a suffix. A key without a hash tag is wrapped in braces, which make it
    /// one.
    Derived(&'a Key, &'static str),
}

impl fmt::Display for RedisKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RedisKey::Plain(key) => f.write_str(&key.text),
            RedisKey::Derived(key, suffix) if hash_tag(&key.text).is_some() => {
                write!(f, "{}{suffix}", key.text)
            }
            RedisKey::Derived(key, suffix) => write!(f, "{{{}}}{suffix}", key.text),
        }
    }
}

/// Returns the hash tag of a key: the text between the first `{` and the next `}`, if it is not
/// empty (Redis Cluster specification, "Hash tags").
pub(crate) fn hash_tag(key: &str) -> Option<&str> {
    let (_, rest) = key.split_once('{')?;
    let (tag, _) = rest.split_once('}')?;
    Some(tag).filter(|tag| !tag.is_empty())
}

/// Returns the other name whose derived keys are the same: `x` for `{x}`, because a key without a
/// hash tag is wrapped in braces. Only an empty prefix, or one of `{` alone, allows both names.
fn name_with_same_keys<'a>(prefix: &str, text: &'a str) -> Option<&'a str> {
    let inner = text.strip_prefix('{')?.strip_suffix('}')?;
    let name = inner.strip_prefix(prefix)?;
    (!name.is_empty() && hash_tag(inner).is_none()).then_some(name)
}

/// Shows the name as the caller gave it, quoted, for logs and errors.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.name(), f)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.text, f)
    }
}

/// Returns the first 64 characters of a name, for a message.
pub(crate) fn truncate_for_message(name: &str) -> String {
    match name.char_indices().nth(64) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::kind::LockKind;

    #[test]
    fn any_text_is_a_name_and_unchanged() {
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
            let key = Key::parse("redguard:", name, LockKind::Exclusive).unwrap();
            assert_eq!(key.name(), name);
            assert_eq!(key.as_str(), format!("redguard:{name}"));
        }
    }

    #[test]
    fn key_is_the_prefix_and_the_name() {
        let parse = |prefix, name| Key::parse(prefix, name, LockKind::Exclusive).unwrap();
        assert_eq!(parse("P", "N").as_str(), parse("", "PN").as_str());
        assert_ne!(parse("P", "N").as_str(), parse("", "N").as_str());
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
            let key = Key::parse("p:", name, LockKind::ReadWrite).unwrap();
            assert_eq!(key.derived(":writer").to_string(), derived);
        }
    }

    #[test]
    fn name_in_braces_without_a_prefix_is_refused_where_keys_are_derived() {
        for (prefix, name, is_refused) in [
            ("", "{x}", true),
            ("", "{a}b}", true),
            ("{", "{x}", true),
            ("", "x", false),
            ("", "{x}y", false),
            ("", "{{x}}", false),
            ("", "{}", false),
            ("redguard:", "{x}", false),
        ] {
            for kind in [LockKind::ReadWrite, LockKind::Semaphore] {
                let parsed = Key::parse(prefix, name, kind);
                assert_eq!(parsed.is_err(), is_refused, "{prefix:?} {name:?}");
            }
            Key::parse(prefix, name, LockKind::Exclusive).unwrap();
        }
    }

    #[test]
    fn locks_of_one_name_and_two_kinds_are_different() {
        let parse = |kind| Key::parse("p:", "x", kind).unwrap();
        assert_ne!(parse(LockKind::Exclusive), parse(LockKind::ReadWrite));
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
            let error = Key::parse("p:", name, LockKind::Exclusive).unwrap_err();
            assert!(matches!(error, Error::InvalidKey { .. }), "{error}");
            assert!(error.to_string().len() < 300);
        }
        Key::parse("p:", &"x".repeat(MAX_NAME), LockKind::Exclusive).unwrap();
        Key::parse("p:", "writer", LockKind::Exclusive).unwrap();
    }

    /// Generates any text, often with parts that have a meaning in a key.
    fn name() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            any::<char>().prop_map(String::from),
            proptest::sample::select(&["{", "}", ":", "", "redguard:", "x"][..])
                .prop_map(String::from),
            proptest::sample::select(&RESERVED_SUFFIXES[..]).prop_map(String::from),
        ];
        let text = proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat());
        (text, prop_oneof![9 => Just(1), 1 => 1..4_000_usize])
            .prop_map(|(text, times)| text.repeat(times))
    }

    /// Returns the part of a key that is hashed (Redis Cluster specification, "Hash tags").
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
            match Key::parse(&prefix, &name, LockKind::ReadWrite) {
                Ok(key) => {
                    prop_assert!(!name.is_empty() && name.len() <= MAX_NAME);
                    prop_assert_eq!(key.name(), &name);
                    prop_assert_eq!(key.as_str(), format!("{prefix}{name}"));
                    let derived = RESERVED_SUFFIXES.map(|suffix| key.derived(suffix).to_string());
                    // A hash tag contains no `}`, so a key that begins with one has no tag.
                    let (slot, has_none) = (tag(&derived[0]), key.as_str().starts_with('}'));
                    for (derived, suffix) in derived.iter().zip(RESERVED_SUFFIXES) {
                        prop_assert!(derived.ends_with(suffix));
                        prop_assert!(tag(derived) == slot || has_none);
                    }
                }
                Err(error) => {
                    let text = format!("{prefix}{name}");
                    let good = !name.is_empty()
                        && name_with_same_keys(&prefix, &text).is_none()
                        && name.len() <= MAX_NAME
                        && !RESERVED_SUFFIXES.iter().any(|suffix| name.ends_with(suffix));
                    prop_assert!(!good && error.to_string().len() < 1_000, "{}", error);
                }
            }
        }
    }
}
