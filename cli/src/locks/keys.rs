//! The keys that a name has on the nodes, and the names of keys.

use crate::failure::{Failure, Result};

/// The suffixes of keys that only exist while there is a holder or a waiting writer.
const HOLDING: [&str; 4] = [":writer", ":readers", ":permits", ":gate"];

/// The suffixes of keys that also exist without a holder.
const OTHERS: [&str; 3] = [":turn", ":fence", ":waiting"];

/// The longest name, in bytes.
const MAX_NAME: usize = 16 * 1024;

/// Checks a name as the library does.
///
/// # Errors
/// `Usage` if no lock can have this name.
pub(crate) fn validate(name: &str) -> Result<()> {
    let suffix = HOLDING
        .iter()
        .chain(&OTHERS)
        .find(|suffix| name.ends_with(**suffix));
    let reason = match suffix {
        Some(suffix) => format!("the suffix {suffix:?} is reserved"),
        None if name.is_empty() => "the name is empty".to_owned(),
        None if name.len() > MAX_NAME => format!("{} bytes are over {MAX_NAME}", name.len()),
        None => return Ok(()),
    };
    Err(Failure::usage(format!("invalid lock name: {reason}")))
}

/// The keys of one name.
pub(crate) struct LockKeys {
    /// Of the exclusive lock, and the channel of all kinds.
    pub(crate) lock: String,
    /// With the suffixes `:writer`, `:readers`, `:gate`, `:permits`, `:turn` and `:waiting`.
    pub(crate) derived: [String; 6],
}

impl LockKeys {
    pub(crate) fn of(prefix: &str, name: &str) -> LockKeys {
        let lock = format!("{prefix}{name}");
        let base = match hash_tag(&lock) {
            Some(_) => lock.clone(),
            None => format!("{{{lock}}}"),
        };
        let derived = [
            ":writer", ":readers", ":gate", ":permits", ":turn", ":waiting",
        ];
        LockKeys {
            derived: derived.map(|suffix| format!("{base}{suffix}")),
            lock,
        }
    }
}

/// Returns the name of the lock that a key on a node belongs to, if there may be a holder.
pub(crate) fn name_of<'a>(prefix: &str, key: &'a str) -> Option<&'a str> {
    if OTHERS.iter().any(|suffix| key.ends_with(suffix)) {
        return None;
    }
    let lock = match HOLDING.iter().find_map(|suffix| key.strip_suffix(suffix)) {
        Some(base) => match base.strip_prefix('{').and_then(|it| it.strip_suffix('}')) {
            Some(inner) if hash_tag(inner).is_none() => inner,
            _ => base,
        },
        None => key,
    };
    lock.strip_prefix(prefix).filter(|name| !name.is_empty())
}

/// Returns the hash tag of a key: the text between the first `{` and the next `}`, if it is not
/// empty (Redis Cluster specification, "Hash tags").
fn hash_tag(key: &str) -> Option<&str> {
    let (_, rest) = key.split_once('{')?;
    let (tag, _) = rest.split_once('}')?;
    Some(tag).filter(|tag| !tag.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_of_a_name_leads_back_to_it() {
        for name in ["a", "shop:1", "{tag}x", "a}b", "{a", "{}a", "x:writer:y"] {
            let keys = LockKeys::of("p:", name);
            assert_eq!(name_of("p:", &keys.lock), Some(name));
            for key in &keys.derived[..4] {
                assert_eq!(name_of("p:", key), Some(name), "{key}");
            }
            for key in &keys.derived[4..] {
                assert_eq!(name_of("p:", key), None, "{key}");
            }
        }
        assert_eq!(LockKeys::of("p:", "a").derived[0], "{p:a}:writer");
        assert_eq!(LockKeys::of("p:", "{t}a").derived[1], "p:{t}a:readers");
    }

    #[test]
    fn name_is_refused_as_by_the_library() {
        for (name, is_valid) in [
            ("a", true),
            ("", false),
            ("k:gate", false),
            ("k:turn", false),
            ("k:waiting", false),
            ("gate", true),
        ] {
            assert_eq!(validate(name).is_ok(), is_valid, "{name}");
        }
        assert!(validate(&"x".repeat(MAX_NAME + 1)).is_err());
    }

    #[test]
    fn foreign_keys_have_no_name() {
        for key in [
            "a",
            "q:a",
            "{p:a}:fence",
            "{p:a}:turn",
            "{p:a}:waiting",
            "p:{t}a:waiting",
            "p:",
            "{q:a}:writer",
        ] {
            assert_eq!(name_of("p:", key), None, "{key}");
        }
    }
}
