//! Computes the slot of a key in a Redis Cluster. All keys of a lock share one, because a script
//! must be atomic on them (S10).

use crate::protocol::key::hash_tag;

/// The number of slots of a cluster.
pub(crate) const SLOT_COUNT: usize = 16_384;

/// Returns the slot of a key: of its hash tag, or else of the whole key (Redis Cluster
/// specification, "Key distribution model").
pub(crate) fn hash_slot(key: &str) -> u16 {
    crc16(hash_tag(key).unwrap_or(key).as_bytes()) % SLOT_COUNT as u16
}

/// Computes CRC16-CCITT (XMODEM): polynomial 0x1021, initial value 0, not reflected (Redis Cluster
/// specification, appendix A).
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(*byte) << 8), |crc, _| match crc & 0x8000 {
            0 => crc << 1,
            _ => (crc << 1) ^ 0x1021,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::key::Key;
    use crate::protocol::kind::LockKind;

    #[test]
    fn slots_equal_those_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        // Slots as CLUSTER KEYSLOT returns them.
        for (key, slot) in [
            ("", 0),
            ("foo", 12_182),
            ("{foo}bar", 12_182),
            ("x{foo}", 12_182),
            ("foo{}{bar}", 8_363),
            ("foo{{bar}}zap", 4_015),
            ("foo{bar}{zap}", 5_061),
        ] {
            assert_eq!(hash_slot(key), slot, "{key}");
        }
    }

    #[test]
    fn derived_keys_share_the_slot_of_their_lock() {
        for name in ["nightly", "a{b}c", "{a}", "a:b"] {
            let key = Key::parse("redguard:", name, LockKind::ReadWrite).unwrap();
            let slots = [
                ":writer", ":readers", ":gate", ":turn", ":fence", ":permits",
            ]
            .map(|ending| hash_slot(&key.derived(ending).to_string()));
            assert_eq!(slots, [hash_slot(key.as_str()); 6], "{name}");
        }
    }
}
