//! Which permits of a semaphore are free, as nodes tell, and which of them to ask for next. Pure.

/// The most permits that a semaphore may have: a node that has none left looks at all of them.
pub(crate) const MAX_PERMITS: u16 = 1024;

/// So many permits stand in a word of a node's answer.
const BITS_PER_WORD: u16 = 32;

/// The permits that are free on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FreePermits(Box<[u32]>);

impl FreePermits {
    /// From a node's words, lowest permits first; `None` where they are not those of so many permits.
    pub(crate) fn from_words(words: &[i64], of: u16) -> Option<FreePermits> {
        if words.len() != usize::from(of.div_ceil(BITS_PER_WORD)) {
            return None;
        }
        let words: Option<Box<[u32]>> =
            words.iter().map(|word| u32::try_from(*word).ok()).collect();
        let free = FreePermits(words?);
        let beyond = (of..of.next_multiple_of(BITS_PER_WORD)).any(|permit| free.contains(permit));
        (!beyond).then_some(free)
    }

    pub(crate) fn contains(&self, permit: u16) -> bool {
        let word = self.0.get(usize::from(permit / BITS_PER_WORD));
        word.is_some_and(|word| word & (1 << (permit % BITS_PER_WORD)) != 0)
    }
}

/// The permits of `of` that are likeliest to be had on a quorum, by what nodes say that did not grant another one: those
/// that most of them call free, if it were enough with `others`, the nodes that may grant and have not said which are free.
pub(crate) fn candidates(lists: &[FreePermits], of: u16, others: usize, quorum: usize) -> Vec<u16> {
    let votes = |permit: u16| lists.iter().filter(|free| free.contains(permit)).count();
    let most = (0..of).map(votes).max().unwrap_or_default();
    if most == 0 || most + others < quorum {
        return Vec::new();
    }
    (0..of).filter(|permit| votes(*permit) == most).collect()
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
    fn words_are_read_if_they_are_those_of_so_many() {
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
    fn the_likeliest_are_those_that_most_call_free_if_a_quorum_could() {
        type Row<'a> = (&'a [&'a [u16]], usize, usize, &'a [u16]);
        let table: [Row<'_>; 8] = [
            // Nodes that say which are free, others, the quorum.
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
            assert_eq!(candidates(&lists, 4, others, quorum), expected);
        }
    }
}
