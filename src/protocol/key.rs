//! Names, and beside them lifetimes and tokens, parsed once at the door: past it nothing is validated again.

use std::fmt;
use std::sync::Arc;

use crate::error::Error;
use crate::protocol::kind::LockKind;

/// The longest lock name, in bytes; a path of the longest length that Linux allows fits well.
const MAX_NAME: usize = 16 * 1024;

/// The endings of keys that this library derives from a lock's key. A lock whose name had one of them could be
/// taken for another lock's inner parts.
const RESERVED_SUFFIXES: [&str; 6] = [
    ":writer", ":readers", ":gate", ":turn", ":fence", ":permits",
];

/// A lock's key on the nodes, with the prefix in front of the name that the caller gave.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    text: Arc<str>,
    prefix: usize,
    family: LockKind,
}

/// The name of a channel on the nodes.
pub(crate) type Channel = Arc<str>;

impl Key {
    /// # Errors
    /// `InvalidKey` when the name is empty, longer than 16 KiB, ends like a derived key, or would share its keys with another.
    pub(crate) fn parse(prefix: &str, name: &str, family: LockKind) -> Result<Key, Error> {
        let refuse = |reason: String| {
            Err(Error::InvalidKey {
                name: truncate_for_message(name),
                reason,
            })
        };
        if name.is_empty() {
            return refuse("it is empty".into());
        }
        if name.len() > MAX_NAME {
            return refuse(format!("{} bytes are over {MAX_NAME}", name.len()));
        }
        if let Some(ending) = RESERVED_SUFFIXES
            .iter()
            .find(|ending| name.ends_with(**ending))
        {
            return refuse(format!("the ending {ending:?} is reserved"));
        }
        let text: Arc<str> = if prefix.is_empty() {
            Arc::from(name)
        } else {
            Arc::from([prefix, name].concat())
        };
        if let Some(twin) = twin(prefix, &text)
            && family != LockKind::Exclusive
        {
            let twin = truncate_for_message(twin);
            return refuse(format!(
                "without a key prefix it has the same keys as {twin:?}"
            ));
        }
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
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Where the releases of this name are published, of both kinds of locks.
    pub(crate) fn channel(&self) -> Channel {
        Arc::clone(&self.text)
    }

    /// Where the token stands of one who holds the lock alone: under an exclusive lock's own key, or as the writer. And where
    /// all permits of a semaphore stand.
    pub(crate) fn token_key(&self) -> RedisKey<'_> {
        match self.family {
            LockKind::Exclusive => RedisKey::Plain(self),
            LockKind::ReadWrite => self.derived(":writer"),
            LockKind::Semaphore => self.derived(":permits"),
        }
    }

    /// A key that is derived from this one, in the same cluster slot as all others that are, and as this one if there is no
    /// `}` in it outside of a hash tag. (There is no such slot for a key that begins with one.)
    pub(crate) fn derived(&self, ending: &'static str) -> RedisKey<'_> {
        debug_assert!(RESERVED_SUFFIXES.contains(&ending));
        RedisKey::Derived(self, ending)
    }
}

/// A key as it stands on the nodes.
#[derive(Clone, Copy)]
pub(crate) enum RedisKey<'a> {
    /// The lock's own.
    Plain(&'a Key),
    /// The lock's with an ending. One without a hash tag is made one by braces around the whole of it.
    Derived(&'a Key, &'static str),
}

impl fmt::Display for RedisKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RedisKey::Plain(key) => f.write_str(&key.text),
            RedisKey::Derived(key, ending) if hash_tag(&key.text).is_some() => {
                write!(f, "{}{ending}", key.text)
            }
            RedisKey::Derived(key, ending) => write!(f, "{{{}}}{ending}", key.text),
        }
    }
}

/// What alone decides on a key's slot, if not all of it does: what stands between the first `{` and the next `}`, if anything
/// does (Redis Cluster specification, "Hash tags").
pub(crate) fn hash_tag(key: &str) -> Option<&str> {
    let (_, rest) = key.split_once('{')?;
    let (tag, _) = rest.split_once('}')?;
    Some(tag).filter(|tag| !tag.is_empty())
}

/// The other name under this prefix whose derived keys are the same, if there is one: `x` for `{x}`, since a key without a hash
/// tag is made one by braces. No prefix but an empty one, or one of nothing but `{`, allows both.
fn twin<'a>(prefix: &str, text: &'a str) -> Option<&'a str> {
    let inner = text.strip_prefix('{')?.strip_suffix('}')?;
    let name = inner.strip_prefix(prefix)?;
    (!name.is_empty() && hash_tag(inner).is_none()).then_some(name)
}

/// The name as the caller gave it, quoted as in errors: what the log shows.
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

/// The start of a name, short enough for a message.
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
            let key = Key::parse("redguard:", name, LockKind::Exclusive).unwrap();
            assert_eq!(key.name(), name);
            assert_eq!(key.as_str(), format!("redguard:{name}"));
        }
    }

    #[test]
    fn prefix_and_name_together_make_the_key() {
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
            for family in [LockKind::ReadWrite, LockKind::Semaphore] {
                let parsed = Key::parse(prefix, name, family);
                assert_eq!(parsed.is_err(), is_refused, "{prefix:?} {name:?}");
            }
            Key::parse(prefix, name, LockKind::Exclusive).unwrap();
        }
    }

    #[test]
    fn an_exclusive_and_a_read_write_lock_of_one_name_are_two() {
        let parse = |family| Key::parse("p:", "x", family).unwrap();
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

    /// Any text, some of it close to what has a meaning in a key.
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
            match Key::parse(&prefix, &name, LockKind::ReadWrite) {
                Ok(key) => {
                    prop_assert!(!name.is_empty() && name.len() <= MAX_NAME);
                    prop_assert_eq!(key.name(), &name);
                    prop_assert_eq!(key.as_str(), format!("{prefix}{name}"));
                    let derived = RESERVED_SUFFIXES.map(|ending| key.derived(ending).to_string());
                    // No hash tag can have a `}` in it, so there is none for a key that begins with one.
                    let (slot, has_none) = (tag(&derived[0]), key.as_str().starts_with('}'));
                    for (derived, ending) in derived.iter().zip(RESERVED_SUFFIXES) {
                        prop_assert!(derived.ends_with(ending));
                        prop_assert!(tag(derived) == slot || has_none);
                    }
                }
                Err(error) => {
                    let good = !name.is_empty()
                        && name.len() <= MAX_NAME
                        && !RESERVED_SUFFIXES.iter().any(|ending| name.ends_with(ending));
                    prop_assert!(!good && error.to_string().len() < 1_000, "{}", error);
                }
            }
        }
    }
}
