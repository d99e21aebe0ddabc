//! Random bytes for tokens, and random numbers for jitter.
//!
//! Tokens never come from the jitter generator, whose numbers can be guessed. Nothing here is
//! thread-local, because a guard can be dropped after the locals of its thread are destroyed.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::TryRng;
use rand::rngs::SysRng;

use crate::error::error::Error;
#[cfg(all(test, not(loom)))]
use crate::tests::simulation::runtime::context;

/// A hash map whose order of iteration the simulator can choose, as the hasher of `std` draws it
/// per map.
pub(crate) type HashMap<K, V> = std::collections::HashMap<K, V, HashState>;

#[cfg(not(all(test, not(loom))))]
type HashState = std::collections::hash_map::RandomState;
#[cfg(all(test, not(loom)))]
use crate::tests::simulation::runtime::hash_state::HashState;

/// Fills `bytes` from the operating system's generator.
///
/// # Errors
/// - `System` if the operating system returns no random bytes.
pub(crate) fn fill(bytes: &mut [u8]) -> Result<(), Error> {
    #[cfg(all(test, not(loom)))]
    if context::fill(bytes) {
        return Ok(());
    }
    SysRng.try_fill_bytes(bytes).map_err(|error| Error::System {
        what: "random bytes",
        reason: error.to_string(),
    })
}

/// Returns a number from 0.0 up to, but not including, 1.0. Only for jitter.
pub(crate) fn unit() -> f64 {
    #[cfg(all(test, not(loom)))]
    if let Some(drawn) = context::draw() {
        return to_unit(drawn);
    }
    to_unit(jitter().next())
}

/// Returns an index below `end`, or 0 if `end` is 0. Only for jitter.
pub(crate) fn below(end: usize) -> usize {
    #[cfg(all(test, not(loom)))]
    if let Some(drawn) = context::draw() {
        return to_below(drawn, end);
    }
    to_below(jitter().next(), end)
}

/// Returns the jitter generator of this process.
fn jitter() -> &'static Jitter {
    static JITTER: OnceLock<Jitter> = OnceLock::new();
    JITTER.get_or_init(|| {
        let mut seed = [0; 8];
        // Without random bytes no lock can be acquired, so the seed does not matter then.
        let _ = fill(&mut seed);
        Jitter::seeded(u64::from_le_bytes(seed))
    })
}

/// A small generator that all threads share. Its numbers can be guessed.
///
/// Algorithm: SplitMix64 (Steele, Lea and Flood, *Fast Splittable Pseudorandom Number Generators*,
/// OOPSLA 2014).
struct Jitter {
    state: AtomicU64,
}

impl Jitter {
    const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

    fn seeded(seed: u64) -> Jitter {
        Jitter {
            state: AtomicU64::new(seed),
        }
    }

    fn next(&self) -> u64 {
        let state = self.state.fetch_add(Jitter::STEP, Ordering::Relaxed);
        // A forked child has a copy of the state: without the process id it would draw the same
        // numbers as its parent.
        mix(state ^ mix(u64::from(std::process::id())))
    }
}

/// Returns a number from 0.0 up to, but not including, 1.0 for a random number.
fn to_unit(drawn: u64) -> f64 {
    // The significand of an f64 has 53 bits.
    (drawn >> 11) as f64 / (1_u64 << 53) as f64
}

/// Returns an index below `end` for a random number.
fn to_below(drawn: u64, end: usize) -> usize {
    let product = u128::from(drawn) * end as u128;
    (product >> 64) as usize
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn jitter_of_two_seeds_is_two_sequences() {
        let drawn = |seed| {
            let jitter = Jitter::seeded(seed);
            (0..100).map(|_| jitter.next()).collect::<Vec<_>>()
        };
        assert_eq!(drawn(7), drawn(7));
        let (one, other) = (drawn(7), drawn(8));
        assert!(one.iter().all(|number| !other.contains(number)));
    }

    #[test]
    fn jitter_drawn_often_spreads_evenly_over_its_range() {
        let jitter = Jitter::seeded(1);
        let (mut units, mut indices) = ([0; 10], [0; 7]);
        for _ in 0..70_000 {
            let unit = to_unit(jitter.next());
            assert!((0.0..1.0).contains(&unit));
            units[(unit * 10.0) as usize] += 1;
            indices[to_below(jitter.next(), 7)] += 1;
        }
        assert!(
            units.iter().all(|count| (6_300..7_700).contains(count)),
            "{units:?}"
        );
        assert!(
            indices.iter().all(|count| (9_000..11_000).contains(count)),
            "{indices:?}"
        );
        let drawn = jitter.next();
        assert_eq!((to_below(drawn, 0), to_below(drawn, 1)), (0, 0));
    }
}
