//! Parses the free permits that nodes report, and chooses the permit that an acquire asks for
//! next. Each permit needs a quorum of its own (S1).

/// The maximal number of permits of a semaphore. A node without a free one reads all of them in one
/// script.
pub(crate) const MAX_PERMITS: u16 = 1024;

/// The number of permits per integer of a reply.
const BITS_PER_WORD: u16 = 32;

/// The permits that are free on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FreePermits(Box<[u32]>);

impl FreePermits {
    /// Parses the integers of a reply, lowest permits first; `None` if they do not describe `total`
    /// permits.
    pub(crate) fn from_words(words: &[i64], total: u16) -> Option<FreePermits> {
        if words.len() != usize::from(total.div_ceil(BITS_PER_WORD)) {
            return None;
        }
        let words: Option<Box<[u32]>> =
            words.iter().map(|word| u32::try_from(*word).ok()).collect();
        let free = FreePermits(words?);
        let beyond =
            (total..total.next_multiple_of(BITS_PER_WORD)).any(|permit| free.contains(permit));
        (!beyond).then_some(free)
    }

    pub(crate) fn contains(&self, permit: u16) -> bool {
        let word = self.0.get(usize::from(permit / BITS_PER_WORD));
        word.is_some_and(|word| word & (1 << (permit % BITS_PER_WORD)) != 0)
    }
}

/// Returns the permits that most of the refusing nodes report as free. Returns none if these nodes
/// and `others`, the nodes that may grant without having reported, are fewer than `quorum`.
pub(crate) fn candidates(
    lists: &[&FreePermits],
    total: u16,
    others: usize,
    quorum: usize,
) -> Vec<u16> {
    let votes = |permit: u16| lists.iter().filter(|free| free.contains(permit)).count();
    let most = (0..total).map(votes).max().unwrap_or_default();
    if most == 0 || most + others < quorum {
        return Vec::new();
    }
    (0..total).filter(|permit| votes(*permit) == most).collect()
}

#[cfg(all(test, not(loom)))]
mod tests {
    #![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

    use super::*;

    fn free(permits: &[u16], of: u16) -> FreePermits {
        let mut words = vec![0_i64; usize::from(of.div_ceil(BITS_PER_WORD))];
        for permit in permits {
            words[usize::from(permit / BITS_PER_WORD)] += 1 << (permit % BITS_PER_WORD);
        }
        FreePermits::from_words(&words, of).unwrap()
    }

    #[test]
    fn words_are_parsed_only_for_their_number_of_permits() {
        let some = free(&[0, 31, 32, 39], 40);
        let found: Vec<u16> = (0..100).filter(|permit| some.contains(*permit)).collect();
        assert_eq!(found, [0, 31, 32, 39]);
        for (words, of) in [
            (&[][..], 1),
            (&[1, 1], 32),
            (&[1], 33),
            (&[-1], 3),
            (&[1 << 32], 32),
            (&[8], 3),
            (&[0, 2], 33),
        ] {
            assert_eq!(
                FreePermits::from_words(words, of),
                None,
                "{words:?} of {of}"
            );
        }
        assert!(FreePermits::from_words(&[0; 32], MAX_PERMITS).is_some());
    }

    #[test]
    fn candidates_are_free_on_most_nodes_and_possibly_on_a_quorum() {
        type Row<'a> = (&'a [&'a [u16]], usize, usize, &'a [u16]);
        let table: [Row<'_>; 8] = [
            // Reports of free permits, others, quorum, candidates.
            (&[], 3, 2, &[]),
            (&[&[], &[]], 1, 2, &[]),
            (&[&[1, 2], &[2, 3]], 0, 2, &[2]),
            (&[&[1, 2], &[1, 2]], 1, 2, &[1, 2]),
            (&[&[1], &[2]], 0, 2, &[]),
            (&[&[1], &[2]], 1, 2, &[1, 2]),
            (&[&[1]], 2, 2, &[1]),
            (&[&[1, 3], &[3], &[0]], 1, 3, &[3]),
        ];
        for (lists, others, quorum, expected) in table {
            let lists: Vec<FreePermits> = lists.iter().map(|list| free(list, 4)).collect();
            let lists: Vec<&FreePermits> = lists.iter().collect();
            assert_eq!(candidates(&lists, 4, others, quorum), expected);
        }
    }
}
