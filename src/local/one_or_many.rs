//! A list whose single value, the usual case, needs no allocation of its own.

use std::ops::{Deref, DerefMut};

/// Values in order.
pub(super) enum OneOrMany<T> {
    One(T),
    /// None, or several.
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub(super) const NONE: OneOrMany<T> = OneOrMany::Many(Vec::new());

    pub(super) fn push(&mut self, value: T) {
        *self = match std::mem::replace(self, OneOrMany::NONE) {
            OneOrMany::Many(values) if values.is_empty() => OneOrMany::One(value),
            OneOrMany::Many(mut values) => {
                values.push(value);
                OneOrMany::Many(values)
            }
            OneOrMany::One(first) => OneOrMany::Many(vec![first, value]),
        };
    }

    /// Removes the first value for which `is_removed` returns `true`, and returns it.
    pub(super) fn remove(&mut self, is_removed: impl FnMut(&T) -> bool) -> Option<T> {
        let index = self.iter().position(is_removed)?;
        match std::mem::replace(self, OneOrMany::NONE) {
            OneOrMany::One(value) => Some(value),
            OneOrMany::Many(mut values) => {
                let removed = values.remove(index);
                *self = OneOrMany::Many(values);
                Some(removed)
            }
        }
    }

    /// Removes the values for which `is_kept` returns `false`.
    pub(super) fn retain(&mut self, mut is_kept: impl FnMut(&T) -> bool) {
        match self {
            OneOrMany::One(value) if is_kept(value) => {}
            OneOrMany::One(_) => *self = OneOrMany::NONE,
            OneOrMany::Many(values) => values.retain(is_kept),
        }
    }
}

impl<T> Deref for OneOrMany<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            OneOrMany::One(value) => std::slice::from_ref(value),
            OneOrMany::Many(values) => values,
        }
    }
}

impl<T> DerefMut for OneOrMany<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            OneOrMany::One(value) => std::slice::from_mut(value),
            OneOrMany::Many(values) => values,
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn list(values: impl IntoIterator<Item = u64>) -> OneOrMany<u64> {
        let mut list = OneOrMany::NONE;
        values.into_iter().for_each(|value| list.push(value));
        list
    }

    #[test]
    fn values_stay_in_order_whatever_their_number() {
        for count in 0..5 {
            assert!(list(0..count).iter().copied().eq(0..count));
            for removed in 0..=count {
                let mut some = list(0..count);
                let found = some.remove(|value| *value == removed);
                assert_eq!(found, (removed < count).then_some(removed));
                some.push(9);
                let left = (0..count).filter(|value| *value != removed);
                assert!(some.iter().copied().eq(left.chain([9])));

                let mut some = list(0..count);
                some.retain(|value| *value >= removed);
                assert!(some.iter().copied().eq(removed..count));
            }
        }
    }

    #[test]
    fn single_value_has_no_allocation() {
        let mut some = list([1]);
        assert!(matches!(some, OneOrMany::One(1)));
        some.iter_mut().for_each(|value| *value = 2);
        some.retain(|value| *value != 2);
        assert!(matches!(&some, OneOrMany::Many(none) if none.capacity() == 0));
    }
}
