//! Atomics in the shape of those of `std`. In a simulation each operation is a step.
//!
//! One fiber runs at a time, so all operations are sequentially consistent, whatever their
//! `Ordering`: only `loom` finds an ordering that is too weak.

use std::fmt;
use std::sync::atomic;
use std::sync::atomic::Ordering;

use crate::tests::simulation::runtime::context;

macro_rules! atomic {
    ($name:ident, $value:ty, { $($method:ident($($argument:ident: $type:ty),*) -> $result:ty;)* }) => {
        #[derive(Default)]
        pub(crate) struct $name(atomic::$name);

        impl $name {
            pub(crate) const fn new(value: $value) -> $name {
                $name(atomic::$name::new(value))
            }

            $(
                pub(crate) fn $method(&self, $($argument: $type,)* order: Ordering) -> $result {
                    context::step();
                    self.0.$method($($argument,)* order)
                }
            )*
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

atomic!(AtomicBool, bool, {
    load() -> bool;
    store(value: bool) -> ();
    swap(value: bool) -> bool;
});

atomic!(AtomicU8, u8, {
    load() -> u8;
    swap(value: u8) -> u8;
    fetch_max(value: u8) -> u8;
});

atomic!(AtomicUsize, usize, {
    load() -> usize;
    store(value: usize) -> ();
    fetch_add(value: usize) -> usize;
    fetch_sub(value: usize) -> usize;
});

atomic!(AtomicU64, u64, {
    load() -> u64;
    store(value: u64) -> ();
    swap(value: u64) -> u64;
    fetch_add(value: u64) -> u64;
    fetch_sub(value: u64) -> u64;
    fetch_or(value: u64) -> u64;
    fetch_and(value: u64) -> u64;
    fetch_max(value: u64) -> u64;
});

impl AtomicU64 {
    pub(crate) fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        context::step();
        self.0.compare_exchange(current, new, success, failure)
    }

    /// Each try is a step, so that another fiber may write between the read and the write.
    pub(crate) fn fetch_update(
        &self,
        success: Ordering,
        failure: Ordering,
        mut f: impl FnMut(u64) -> Option<u64>,
    ) -> Result<u64, u64> {
        let mut current = self.load(failure);
        while let Some(new) = f(current) {
            match self.compare_exchange(current, new, success, failure) {
                Ok(before) => return Ok(before),
                Err(other) => current = other,
            }
        }
        Err(current)
    }
}
