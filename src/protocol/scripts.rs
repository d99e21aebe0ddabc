//! The Lua scripts, and which of them a connection loads at once.
//!
//! Each script is a file in `protocol/lua/`; its head states steps, KEYS, ARGV and reply. The keys
//! of a lock are described in ARCHITECTURE.md, section 8. `protocol/lua/prelude/` holds local
//! functions that several scripts share. The scripts that run most often repeat such code inline,
//! because Lua creates a function at every call: `extend`, `release`, `swap` and those of read-write
//! locks, without `downgrade`.
//!
//! Rules for a script (S3, S5, S10, L2):
//!
//! - Times are the server's (`TIME`), in ms. An entry is alive up to and including its expiry.
//! - A sorted set or hash expires one second after its last entry.
//! - A script reads first everything that can fail on its type, so an error changes nothing.
//! - A foreign value is left untouched and refuses the request with `WRONGTYPE`. Times are bounded
//!   before they are returned, because a foreign score may exceed 2^53 or be infinite.
//! - A server without memory refuses a script at its first write that may need memory, and at no
//!   later one (Redis manual, "Running scripts under low memory conditions"). A script that keeps a
//!   lock therefore starts with writes that need none (`PEXPIRE`, `ZREMRANGEBYSCORE`, `HDEL`).
//!
//! Tests: `src/tests/store_conformance/`, on real servers.

/// Joins the named files of `lua/`.
macro_rules! lua {
    ($($file:literal),+) => {
        concat!($(include_str!(concat!("lua/", $file, ".lua"))),+)
    };
}

#[cfg(not(test))]
macro_rules! near_count {
    () => {
        4
    };
}
#[cfg(test)]
macro_rules! near_count {
    () => {
        1
    };
}

/// The number of processes of a waiting list that listen to the lock's channel. In tests it is 1,
/// so that short lists have processes that do not.
pub(crate) const NEAR: u32 = near_count!();

/// Defines the local `near` of a script.
macro_rules! near {
    () => {
        concat!("local near = ", near_count!(), "\n")
    };
}

/// All scripts, in the order of [`Script`].
pub(crate) const SCRIPTS: [&str; 20] = [
    lua!("extend"),
    concat!(near!(), lua!("release", "publish_next")),
    lua!("prelude/publish", "release_all"),
    lua!("acquire_read"),
    lua!("acquire_write"),
    lua!("extend_read"),
    lua!("release_read"),
    lua!("release_write"),
    lua!("prelude/publish", "downgrade"),
    lua!("prelude/fence", "acquire"),
    lua!("prelude/ownership", "prelude/fence", "raise_fence"),
    lua!("inspect"),
    lua!("prelude/publish", "force_release"),
    lua!("prelude/ownership", "prelude/fence", "adopt"),
    lua!("swap"),
    lua!("prelude/permit", "acquire_permit"),
    lua!("prelude/permit", "extend_permit"),
    lua!("prelude/publish", "prelude/permit", "release_permit"),
    concat!(near!(), lua!("prelude/near", "take_place")),
    concat!(near!(), lua!("prelude/near", "leave_place", "publish_next")),
];

/// The scripts that end a lock, which another client may acquire right after. A connection loads
/// them at once, so none of them is sent again behind that client's acquire. So is `Inspect`, which
/// a refused caller sends once.
pub(crate) const PRELOADED: [Script; 8] = [
    Script::Release,
    Script::ReleaseAll,
    Script::ReleaseRead,
    Script::ReleaseWrite,
    Script::ReleasePermit,
    Script::Downgrade,
    Script::Swap,
    Script::Inspect,
];

/// A script, by its index in [`SCRIPTS`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Script {
    Extend,
    Release,
    ReleaseAll,
    AcquireRead,
    AcquireWrite,
    ExtendRead,
    ReleaseRead,
    ReleaseWrite,
    Downgrade,
    Acquire,
    RaiseFence,
    Inspect,
    ForceRelease,
    Adopt,
    Swap,
    AcquirePermit,
    ExtendPermit,
    ReleasePermit,
    TakePlace,
    LeavePlace,
}
