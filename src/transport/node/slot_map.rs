//! Which of a cluster's masters has which slot.

use redis::Value;

use crate::protocol::hash_slot::SLOTS;
use crate::transport::node::discovery::is_host;

/// Where a server of the cluster is.
pub(crate) type Place = (String, u16);

/// The masters, and which slots they have.
pub(crate) struct Slots {
    masters: Vec<Place>,
    /// For each slot the number of its master.
    owners: Box<[Option<u16>]>,
}

impl Slots {
    /// Reads a reply to `CLUSTER SLOTS` of a server at `host`. `None` where it is not one, or no slot has a master.
    pub(crate) fn read(reply: &Value, host: &str) -> Option<Slots> {
        let Value::Array(ranges) = reply else {
            return None;
        };
        if ranges.len() > SLOTS {
            return None;
        }
        let mut slots = Slots {
            masters: Vec::new(),
            owners: vec![None; SLOTS].into_boxed_slice(),
        };
        for range in ranges {
            let Value::Array(range) = range else {
                return None;
            };
            let [
                Value::Int(first),
                Value::Int(last),
                Value::Array(master),
                ..,
            ] = &range[..]
            else {
                return None;
            };
            let master = read_place(master, host)?;
            let (first, last) = (usize::try_from(*first).ok()?, usize::try_from(*last).ok()?);
            if first > last || last >= SLOTS {
                return None;
            }
            let number = slots.number(&master)?;
            slots.owners[first..=last].fill(Some(number));
        }
        (!slots.masters.is_empty()).then_some(slots)
    }

    /// All masters that have a slot, first that of the lowest.
    pub(crate) fn masters(&self) -> Vec<Place> {
        let mut found: Vec<u16> = Vec::new();
        for owner in self.owners.iter().flatten() {
            if !found.contains(owner) {
                found.push(*owner);
            }
        }
        let place = |number: &u16| self.masters[usize::from(*number)].clone();
        found.iter().map(place).collect()
    }

    /// The master of a slot. One that has none is asked of any of them, which knows better by now, or says so.
    pub(crate) fn master(&self, slot: u16) -> &Place {
        let owner = self.owners[usize::from(slot)].unwrap_or_default();
        &self.masters[usize::from(owner)]
    }

    /// A slot is somewhere else.
    pub(crate) fn learn(&mut self, slot: u16, place: &Place) {
        if let Some(number) = self.number(place) {
            self.owners[usize::from(slot)] = Some(number);
        }
    }

    fn number(&mut self, place: &Place) -> Option<u16> {
        let known = self.masters.iter().position(|master| master == place);
        let number = known.unwrap_or_else(|| {
            self.masters.push(place.clone());
            self.masters.len() - 1
        });
        u16::try_from(number)
            .ok()
            .filter(|number| usize::from(*number) < SLOTS)
    }
}

/// A server that does not know by which name we know it leaves that out.
fn read_place(server: &[Value], host: &str) -> Option<Place> {
    let [name, Value::Int(port), ..] = server else {
        return None;
    };
    let name = match name {
        Value::BulkString(name) if !name.is_empty() => str::from_utf8(name).ok()?,
        Value::SimpleString(name) if !name.is_empty() => name,
        Value::BulkString(_) | Value::SimpleString(_) | Value::Nil => host,
        _ => return None,
    };
    let port = u16::try_from(*port).ok().filter(|port| *port > 0)?;
    is_host(name).then(|| (name.to_owned(), port))
}

/// The words of a redirection: a slot, and where it is to be asked for, as seen from `host`.
pub(crate) fn read_target(words: &str, host: &str) -> Option<(u16, Place)> {
    let (slot, place) = words.split_once(' ')?;
    let slot = slot
        .parse()
        .ok()
        .filter(|slot| usize::from(*slot) < SLOTS)?;
    let (name, port) = place.split(' ').next()?.rsplit_once(':')?;
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let name = if name.is_empty() { host } else { name };
    let port = port.parse().ok().filter(|port| *port > 0)?;
    is_host(name).then(|| (slot, (name.to_owned(), port)))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::hash_slot::slot_of;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn range(first: i64, last: i64, host: Value, port: i64) -> Value {
        let master = Value::Array(vec![host, Value::Int(port), text("id")]);
        let replica = Value::Array(vec![text("replica"), Value::Int(1), text("id")]);
        Value::Array(vec![Value::Int(first), Value::Int(last), master, replica])
    }

    #[test]
    fn slots_have_masters_and_change_them() {
        let reply = Value::Array(vec![
            range(5_000, 16_383, text("b"), 7_001),
            range(0, 99, text("a"), 7_000),
            range(100, 200, Value::Nil, 7_002),
        ]);
        let mut slots = Slots::read(&reply, "here").unwrap();
        let place = |host: &str, port| (host.to_owned(), port);
        let masters = [place("a", 7_000), place("here", 7_002), place("b", 7_001)];
        assert_eq!(slots.masters(), masters);
        assert_eq!(*slots.master(99), masters[0]);
        assert_eq!(*slots.master(100), masters[1]);
        assert_eq!(*slots.master(16_383), masters[2]);
        // Nobody's.
        assert!(masters.contains(slots.master(3_000)));
        slots.learn(3_000, &place("c", 1));
        slots.learn(99, &masters[2]);
        assert_eq!(*slots.master(3_000), place("c", 1));
        assert_eq!(*slots.master(99), masters[2]);
        assert_eq!(*slots.master(98), masters[0]);
    }

    #[test]
    fn what_is_no_list_of_slots_is_none() {
        let place = || text("a");
        for reply in [
            Value::Nil,
            Value::Array(vec![]),
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![range(-1, 5, place(), 1)]),
            Value::Array(vec![range(0, 16_384, place(), 1)]),
            Value::Array(vec![range(5, 4, place(), 1)]),
            Value::Array(vec![range(0, 1, place(), 0)]),
            Value::Array(vec![range(0, 1, place(), 65_536)]),
            Value::Array(vec![range(0, 1, Value::Int(1), 1)]),
            Value::Array(vec![range(0, 1, text("a\nb"), 1)]),
            Value::Array(vec![range(0, 1, place(), 1); 16_385]),
            Value::Array(vec![Value::Array(vec![Value::Int(0), Value::Int(1)])]),
        ] {
            assert!(Slots::read(&reply, "here").is_none(), "{reply:?}");
        }
    }

    #[test]
    fn targets_are_read() {
        let place = |host: &str, port| Some((3_999, (host.to_owned(), port)));
        for (words, target) in [
            ("3999 127.0.0.1:6381", place("127.0.0.1", 6381)),
            ("3999 ::1:6381", place("::1", 6381)),
            ("3999 [::1]:6381", place("::1", 6381)),
            ("3999 host.example:6381 more", place("host.example", 6381)),
            ("3999 :6381", place("here", 6381)),
            ("16384 h:1", None),
            ("-1 h:1", None),
            ("3999 h:0", None),
            ("3999 h:65536", None),
            ("3999 h", None),
            ("3999 \u{1b}[2J:1", None),
            ("3999", None),
            ("", None),
        ] {
            assert_eq!(read_target(words, "here"), target, "{words}");
        }
    }

    proptest! {
        #[test]
        fn any_key_has_a_slot_and_any_words_are_a_target_or_not(text in "\\PC{0,40}") {
            prop_assert!(usize::from(slot_of(&text)) < SLOTS);
            let _ = read_target(&text, "h");
        }
    }
}
