//! `watch`: shows the holders of locks repeatedly.

pub(crate) mod changes;
pub(crate) mod frame;
pub(crate) mod rounds;
pub(crate) mod screen;
pub(crate) mod session;
pub(crate) mod stop;
pub(crate) mod view;
