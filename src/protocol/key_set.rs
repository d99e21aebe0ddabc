//! The keys of one lock: nearly always one, or several that are acquired together. They are sorted,
//! so that threads queue for them in one order (S8).

use std::sync::Arc;
use std::{fmt, slice};

use crate::error::error::Error;
#[cfg(any(feature = "cluster", all(test, not(loom))))]
use crate::protocol::hash_slot::hash_slot;
use crate::protocol::key::{Key, truncate_for_message};
use crate::protocol::kind::LockKind;

/// The maximal number of names of a lock. A node reads all of them in one script, and serves no
/// other client meanwhile.
pub(crate) const MAX_KEYS: usize = 256;

/// The keys of a lock, sorted. A single key needs no allocation of its own.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct KeySet(Keys);

#[derive(Clone, PartialEq, Eq)]
enum Keys {
    One(Key),
    /// At least two.
    Several(Arc<[Key]>),
}

impl KeySet {
    /// Parses the names of a lock.
    ///
    /// # Errors
    /// - `InvalidKey`: no name, a duplicate, more than `MAX_KEYS` names, or an invalid name.
    pub(crate) fn parse(prefix: &str, names: &[&str], kind: LockKind) -> Result<KeySet, Error> {
        let refuse = |name: &str, reason: String| {
            let name = truncate_for_message(name);
            Err(Error::InvalidKey { name, reason })
        };
        let (first, rest) = match names {
            [] => return refuse("", "no name was given".into()),
            [name] => return Key::parse(prefix, name, kind).map(KeySet::from),
            [first, rest @ ..] => (first, rest),
        };
        if names.len() > MAX_KEYS {
            let reason = format!(
                "one of {} names; at most {MAX_KEYS} are possible",
                names.len()
            );
            return refuse(first, reason);
        }
        let mut all = vec![Key::parse(prefix, first, kind)?];
        for name in rest {
            all.push(Key::parse(prefix, name, kind)?);
        }
        all.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        if let Some(twice) = all.windows(2).find(|pair| pair[0] == pair[1]) {
            return refuse(twice[0].name(), "duplicate name".into());
        }
        Ok(KeySet(Keys::Several(all.into())))
    }

    pub(crate) fn first(&self) -> &Key {
        match &self.0 {
            Keys::One(key) => key,
            Keys::Several(all) => &all[0],
        }
    }

    pub(crate) fn as_slice(&self) -> &[Key] {
        match &self.0 {
            Keys::One(key) => slice::from_ref(key),
            Keys::Several(all) => all,
        }
    }

    /// Returns the key if it is the only one.
    pub(crate) fn single(&self) -> Option<&Key> {
        match &self.0 {
            Keys::One(key) => Some(key),
            Keys::Several(_) => None,
        }
    }

    /// Checks that all keys share a hash slot, because a cluster runs no script on several ones.
    ///
    /// # Errors
    /// - `InvalidKey` with the first name whose hash slot differs.
    #[cfg(any(feature = "cluster", all(test, not(loom))))]
    pub(crate) fn require_one_slot(&self) -> Result<(), Error> {
        let slot = hash_slot(self.first().as_str());
        match self
            .as_slice()
            .iter()
            .find(|key| hash_slot(key.as_str()) != slot)
        {
            None => Ok(()),
            Some(other) => Err(Error::InvalidKey {
                name: truncate_for_message(other.name()),
                reason: format!(
                    "a node is a cluster, and the name is in another slot than {:?}; \
                     names need a common hash tag, as in \"{{orders}}:7\"",
                    truncate_for_message(self.first().name())
                ),
            }),
        }
    }
}

impl From<Key> for KeySet {
    fn from(key: Key) -> KeySet {
        KeySet(Keys::One(key))
    }
}

/// Shows the names as the caller gave them, quoted, for logs and errors.
impl fmt::Display for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, key) in self.as_slice().iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{key}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Keys::One(key) => key.fmt(f),
            Keys::Several(all) => f.debug_list().entries(&**all).finish(),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn parse(names: &[&str]) -> Result<KeySet, Error> {
        KeySet::parse("p:", names, LockKind::Exclusive)
    }

    fn names(keys: &KeySet) -> Vec<&str> {
        keys.as_slice().iter().map(Key::name).collect()
    }

    #[test]
    fn names_are_sorted() {
        for given in [["b", "a", "c"], ["c", "b", "a"], ["a", "b", "c"]] {
            let keys = parse(&given).unwrap();
            assert_eq!(names(&keys), ["a", "b", "c"]);
            assert_eq!((keys.first().name(), keys.single()), ("a", None));
            assert_eq!(format!("{keys:?}"), r#"["p:a", "p:b", "p:c"]"#);
        }
    }

    #[test]
    fn single_name_equals_its_key() {
        let keys = parse(&["a"]).unwrap();
        let single = Key::parse("p:", "a", LockKind::Exclusive).unwrap();
        assert_eq!(
            (keys.single(), keys.as_slice()),
            (Some(&single), &[single.clone()][..])
        );
        assert_eq!(keys, KeySet::from(single));
    }

    #[test]
    fn invalid_names_are_refused_by_name() {
        let many: Vec<String> = (0..=MAX_KEYS).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(parse(&many[1..]).unwrap().as_slice().len(), MAX_KEYS);
        for (given, text) in [
            (&[][..], "no name was given"),
            (&["a", "b", "a"], "\"a\": duplicate name"),
            (&["a", "a"], "\"a\": duplicate name"),
            (&["a", ""], "the name is empty"),
            (&["a", "b:fence"], "\":fence\" is reserved"),
            (&many, "\"0\": one of 257 names; at most 256 are possible"),
        ] {
            let error = parse(given).unwrap_err();
            assert!(matches!(error, Error::InvalidKey { .. }), "{error}");
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn only_keys_of_one_hash_tag_share_a_slot() {
        for good in [&["{o}1", "x{o}2", "{o}"][..], &["a"], &["{a}b{c}", "{a}"]] {
            assert!(parse(good).unwrap().require_one_slot().is_ok(), "{good:?}");
        }
        for bad in [&["a", "b"][..], &["{}o", "{}p"], &["{o}1", "{p}1"]] {
            let error = parse(bad)
                .unwrap()
                .require_one_slot()
                .unwrap_err()
                .to_string();
            assert!(
                error.contains("cluster") && error.contains(bad[0]),
                "{error}"
            );
        }
    }
}
