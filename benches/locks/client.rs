//! The client of one thread: the measured lock behind one trait.

use crate::Result;

/// One thread's client, which acquires and releases an uncontended lock.
pub(crate) trait Client: Send {
    fn acquire(&mut self) -> Result<()>;
    fn release(&mut self) -> Result<()>;
}
