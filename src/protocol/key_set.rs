//! The keys of one lock: nearly always one, or several that are held as one.

use std::sync::Arc;
use std::{fmt, slice};

use crate::error::Error;
#[cfg(any(feature = "cluster", all(test, not(loom))))]
use crate::protocol::hash_slot::slot_of;
use crate::protocol::key::{Key, shortened};
use crate::protocol::kind::Family;

/// The most names that one lock may have: a node looks at all of them in one step, in which it serves nobody else.
pub(crate) const MOST_KEYS: usize = 256;

/// The keys of a lock, in the order of their names. Where it is one that takes no memory but its own.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Keys {
    first: Key,
    /// All of them, where there are several.
    all: Option<Arc<[Key]>>,
}

impl Keys {
    /// # Errors
    /// `InvalidKey` when there is none, one is twice, there are too many, or one of them is unusable.
    pub(crate) fn parse(prefix: &str, names: &[&str], family: Family) -> Result<Keys, Error> {
        let refuse = |name: &str, reason: String| {
            let name = shortened(name);
            Err(Error::InvalidKey { name, reason })
        };
        let (first, rest) = match names {
            [] => return refuse("", "no name was given".into()),
            [name] => return Key::parse(prefix, name, family).map(Keys::from),
            [first, rest @ ..] => (first, rest),
        };
        if names.len() > MOST_KEYS {
            let reason = format!("it is one of {}, which are over {MOST_KEYS}", names.len());
            return refuse(first, reason);
        }
        let mut all = vec![Key::parse(prefix, first, family)?];
        for name in rest {
            all.push(Key::parse(prefix, name, family)?);
        }
        all.sort_unstable_by(|a, b| a.wire().cmp(b.wire()));
        if let Some(twice) = all.windows(2).find(|pair| pair[0] == pair[1]) {
            return refuse(twice[0].name(), "it is given twice".into());
        }
        Ok(Keys {
            first: all[0].clone(),
            all: Some(all.into()),
        })
    }

    pub(crate) fn first(&self) -> &Key {
        &self.first
    }

    pub(crate) fn all(&self) -> &[Key] {
        match &self.all {
            Some(all) => all,
            None => slice::from_ref(&self.first),
        }
    }

    /// The only one, if it is.
    pub(crate) fn only(&self) -> Option<&Key> {
        self.all.is_none().then_some(&self.first)
    }

    /// For nodes that are clusters, each of which serves keys of one slot only in one step.
    ///
    /// # Errors
    /// `InvalidKey` with the first name whose slot is not that of the others.
    #[cfg(any(feature = "cluster", all(test, not(loom))))]
    pub(crate) fn check_slots(&self) -> Result<(), Error> {
        let slot = slot_of(self.first.wire());
        match self.all().iter().find(|key| slot_of(key.wire()) != slot) {
            None => Ok(()),
            Some(other) => Err(Error::InvalidKey {
                name: shortened(other.name()),
                reason: format!(
                    "a node is a cluster, where it is in another slot than {:?}: \
                     give them a hash tag in common, as in \"{{orders}}:7\"",
                    shortened(self.first.name())
                ),
            }),
        }
    }
}

impl From<Key> for Keys {
    fn from(first: Key) -> Keys {
        Keys { first, all: None }
    }
}

/// The names as the caller gave them, quoted as in errors: what the log shows.
impl fmt::Display for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, key) in self.all().iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{key}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.all {
            None => self.first.fmt(f),
            Some(all) => f.debug_list().entries(&**all).finish(),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn parse(names: &[&str]) -> Result<Keys, Error> {
        Keys::parse("p:", names, Family::Exclusive)
    }

    fn names(keys: &Keys) -> Vec<&str> {
        keys.all().iter().map(Key::name).collect()
    }

    #[test]
    fn any_order_is_one_order() {
        for given in [["b", "a", "c"], ["c", "b", "a"], ["a", "b", "c"]] {
            let keys = parse(&given).unwrap();
            assert_eq!(names(&keys), ["a", "b", "c"]);
            assert_eq!((keys.first().name(), keys.only()), ("a", None));
            assert_eq!(format!("{keys:?}"), r#"["p:a", "p:b", "p:c"]"#);
        }
    }

    #[test]
    fn one_is_as_if_it_were_alone() {
        let keys = parse(&["a"]).unwrap();
        let alone = Key::parse("p:", "a", Family::Exclusive).unwrap();
        assert_eq!(
            (keys.only(), keys.all()),
            (Some(&alone), &[alone.clone()][..])
        );
        assert_eq!(keys, Keys::from(alone));
    }

    #[test]
    fn what_cannot_be_locked_is_named() {
        let many: Vec<String> = (0..=MOST_KEYS).map(|n| n.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(parse(&many[1..]).unwrap().all().len(), MOST_KEYS);
        for (given, words) in [
            (&[][..], "no name was given"),
            (&["a", "b", "a"], "\"a\": it is given twice"),
            (&["a", "a"], "\"a\": it is given twice"),
            (&["a", ""], "it is empty"),
            (&["a", "b:fence"], "\":fence\" is reserved"),
            (&many, "\"0\": it is one of 257, which are over 256"),
        ] {
            let error = parse(given).unwrap_err();
            assert!(matches!(error, Error::InvalidKey { .. }), "{error}");
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn keys_of_a_hash_tag_share_a_slot_and_others_do_not() {
        for good in [&["{o}1", "x{o}2", "{o}"][..], &["a"], &["{a}b{c}", "{a}"]] {
            assert!(parse(good).unwrap().check_slots().is_ok(), "{good:?}");
        }
        for bad in [&["a", "b"][..], &["{}o", "{}p"], &["{o}1", "{p}1"]] {
            let error = parse(bad).unwrap().check_slots().unwrap_err().to_string();
            assert!(
                error.contains("cluster") && error.contains(bad[0]),
                "{error}"
            );
        }
    }
}
