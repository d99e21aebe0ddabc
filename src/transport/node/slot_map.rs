//! The owner of each slot of a cluster, and the parser of redirections.

use redis::Value;

use crate::protocol::hash_slot::SLOT_COUNT;
use crate::transport::node::discovery::is_host;

/// The host and port of a server.
pub(crate) type HostPort = (String, u16);

/// The masters of a cluster, and the slots that each owns.
pub(crate) struct SlotMap {
    masters: Vec<HostPort>,
    /// For each slot the index of its master.
    slot_owner: Box<[Option<u16>]>,
}

impl SlotMap {
    /// Parses the reply to `CLUSTER SLOTS` of the server at `host`; `None` if it is invalid or no
    /// slot has a master.
    pub(crate) fn read(reply: &Value, host: &str) -> Option<SlotMap> {
        let Value::Array(ranges) = reply else {
            return None;
        };
        if ranges.len() > SLOT_COUNT {
            return None;
        }
        let mut slots = SlotMap {
            masters: Vec::new(),
            slot_owner: vec![None; SLOT_COUNT].into_boxed_slice(),
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
            let master = parse_host_port(master, host)?;
            let (first, last) = (usize::try_from(*first).ok()?, usize::try_from(*last).ok()?);
            if first > last || last >= SLOT_COUNT {
                return None;
            }
            let index = slots.master_index(&master)?;
            slots.slot_owner[first..=last].fill(Some(index));
        }
        (!slots.masters.is_empty()).then_some(slots)
    }

    /// Returns the masters that own a slot, in the order of their lowest slots.
    pub(crate) fn masters(&self) -> Vec<HostPort> {
        let mut found: Vec<u16> = Vec::new();
        for owner in self.slot_owner.iter().flatten() {
            if !found.contains(owner) {
                found.push(*owner);
            }
        }
        let address = |index: &u16| self.masters[usize::from(*index)].clone();
        found.iter().map(address).collect()
    }

    /// Returns the owner of a slot. For a slot without one it returns any master, whose reply
    /// redirects or reports the error.
    pub(crate) fn master(&self, slot: u16) -> &HostPort {
        let owner = self.slot_owner[usize::from(slot)].unwrap_or_default();
        &self.masters[usize::from(owner)]
    }

    /// Sets the owner of a slot, after MOVED.
    pub(crate) fn set_owner(&mut self, slot: u16, address: &HostPort) {
        if let Some(index) = self.master_index(address) {
            self.slot_owner[usize::from(slot)] = Some(index);
        }
    }

    /// Returns the index of a master, which is added if it is new; `None` beyond `SLOT_COUNT`.
    fn master_index(&mut self, address: &HostPort) -> Option<u16> {
        let known = self.masters.iter().position(|master| master == address);
        let index = known.unwrap_or_else(|| {
            self.masters.push(address.clone());
            self.masters.len() - 1
        });
        u16::try_from(index)
            .ok()
            .filter(|index| usize::from(*index) < SLOT_COUNT)
    }
}

/// Parses the address of a master. A server that does not know its own host name omits it; then the
/// host is `host`.
fn parse_host_port(server: &[Value], host: &str) -> Option<HostPort> {
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

/// Parses the target of a redirection by the server at `host`: a slot and an address.
pub(crate) fn parse_redirect(target: &str, host: &str) -> Option<(u16, HostPort)> {
    let (slot, address) = target.split_once(' ')?;
    let slot = slot
        .parse()
        .ok()
        .filter(|slot| usize::from(*slot) < SLOT_COUNT)?;
    let (name, port) = address.split(' ').next()?.rsplit_once(':')?;
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let name = if name.is_empty() { host } else { name };
    let port = port.parse().ok().filter(|port| *port > 0)?;
    is_host(name).then(|| (slot, (name.to_owned(), port)))
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::hash_slot::hash_slot;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn range(first: i64, last: i64, host: Value, port: i64) -> Value {
        let master = Value::Array(vec![host, Value::Int(port), text("id")]);
        let replica = Value::Array(vec![text("replica"), Value::Int(1), text("id")]);
        Value::Array(vec![Value::Int(first), Value::Int(last), master, replica])
    }

    #[test]
    fn slots_have_owners_and_change_them() {
        let reply = Value::Array(vec![
            range(5_000, 16_383, text("b"), 7_001),
            range(0, 99, text("a"), 7_000),
            range(100, 200, Value::Nil, 7_002),
        ]);
        let mut slots = SlotMap::read(&reply, "here").unwrap();
        let address = |host: &str, port| (host.to_owned(), port);
        let masters = [
            address("a", 7_000),
            address("here", 7_002),
            address("b", 7_001),
        ];
        assert_eq!(slots.masters(), masters);
        assert_eq!(*slots.master(99), masters[0]);
        assert_eq!(*slots.master(100), masters[1]);
        assert_eq!(*slots.master(16_383), masters[2]);
        // A slot without an owner.
        assert!(masters.contains(slots.master(3_000)));
        slots.set_owner(3_000, &address("c", 1));
        slots.set_owner(99, &masters[2]);
        assert_eq!(*slots.master(3_000), address("c", 1));
        assert_eq!(*slots.master(99), masters[2]);
        assert_eq!(*slots.master(98), masters[0]);
    }

    #[test]
    fn invalid_reply_is_no_slot_map() {
        let address = || text("a");
        for reply in [
            Value::Nil,
            Value::Array(vec![]),
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![range(-1, 5, address(), 1)]),
            Value::Array(vec![range(0, 16_384, address(), 1)]),
            Value::Array(vec![range(5, 4, address(), 1)]),
            Value::Array(vec![range(0, 1, address(), 0)]),
            Value::Array(vec![range(0, 1, address(), 65_536)]),
            Value::Array(vec![range(0, 1, Value::Int(1), 1)]),
            Value::Array(vec![range(0, 1, text("a\nb"), 1)]),
            Value::Array(vec![range(0, 1, address(), 1); 16_385]),
            Value::Array(vec![Value::Array(vec![Value::Int(0), Value::Int(1)])]),
        ] {
            assert!(SlotMap::read(&reply, "here").is_none(), "{reply:?}");
        }
    }

    #[test]
    fn redirection_target_is_parsed() {
        let address = |host: &str, port| Some((3_999, (host.to_owned(), port)));
        for (text, target) in [
            ("3999 127.0.0.1:6381", address("127.0.0.1", 6381)),
            ("3999 ::1:6381", address("::1", 6381)),
            ("3999 [::1]:6381", address("::1", 6381)),
            ("3999 host.example:6381 more", address("host.example", 6381)),
            ("3999 :6381", address("here", 6381)),
            ("16384 h:1", None),
            ("-1 h:1", None),
            ("3999 h:0", None),
            ("3999 h:65536", None),
            ("3999 h", None),
            ("3999 \u{1b}[2J:1", None),
            ("3999", None),
            ("", None),
        ] {
            assert_eq!(parse_redirect(text, "here"), target, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_key_has_a_slot_and_any_text_is_a_target_or_refused(text in "\\PC{0,40}") {
            prop_assert!(usize::from(hash_slot(&text)) < SLOT_COUNT);
            let _ = parse_redirect(&text, "h");
        }
    }
}
