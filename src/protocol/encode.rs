//! Encodes requests as RESP commands: a plain command where one does, else EVALSHA.
//!
//! An exclusive lock of one key is acquired by `SET NX PX`, as in the Redlock text. A server
//! executes it in half the time of a script. A refused caller asks for the remaining time by
//! [`encode_pttl`]. Everything that must read before it writes is one atomic script (S3, S5, S10).

use std::cell::Cell;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use crate::protocol::command::Command;
use crate::protocol::key::{Key, RedisKey, notice_channel};
use crate::protocol::kind::LeaseKind;
use crate::protocol::lease::Lease;
use crate::protocol::request::{Op, Publish, Request};
use crate::protocol::scripts::{PRELOADED, SCRIPTS, Script};
use crate::protocol::token::Token;
use crate::time::clock;

/// The scripts with their SHA-1 hashes, by which a server that has loaded them calls them.
static SCRIPT_HASHES: LazyLock<[redis::Script; SCRIPTS.len()]> =
    LazyLock::new(|| SCRIPTS.map(redis::Script::new));

/// Appends the command that loads a script.
pub(crate) fn encode_script_load(script: Script, wire: &mut Vec<u8>) {
    let mut load = redis::cmd("SCRIPT");
    load.arg("LOAD").arg(SCRIPTS[script as usize]);
    load.write_packed_command(wire);
}

/// Appends the commands that load the preloaded scripts. The server replies to each with its hash.
pub(crate) fn encode_script_loads(wire: &mut Vec<u8>) {
    PRELOADED
        .iter()
        .for_each(|script| encode_script_load(*script, wire));
}

/// Returns the hashes with which a server replies to [`encode_script_loads`], in order.
pub(crate) fn script_hashes() -> impl Iterator<Item = &'static str> {
    PRELOADED
        .iter()
        .map(|script| SCRIPT_HASHES[*script as usize].get_hash())
}

/// Appends the call of a request, with `cmd` as scratch space. Of the requests that share the call
/// ([`Request::can_join`]) only the tokens are appended. Returns the script that is called, which
/// the server may not have loaded.
pub(crate) fn encode_request<'a>(
    request: &Request,
    joined: impl Iterator<Item = &'a Request>,
    cmd: &mut Command,
    wire: &mut Vec<u8>,
) -> Option<Script> {
    cmd.clear();
    let script = match (request.op, request.lease.kind()) {
        (
            Op::Adopt
            | Op::Swap
            | Op::RaiseFence
            | Op::Inspect
            | Op::ForceRelease
            | Op::Notify
            | Op::TakePlace
            | Op::LeavePlace
            | Op::WakeListener,
            _,
        ) => encode_admin(request, cmd),
        (_, LeaseKind::Exclusive) => encode_exclusive(request, cmd),
        (_, LeaseKind::Read) => encode_read(request, cmd),
        (_, LeaseKind::Write) => encode_write(request, cmd),
        (_, LeaseKind::Permit { index, total }) => encode_permit(request, index, total, cmd),
        (_, LeaseKind::GateEntry) => encode_gate_entry(request, cmd),
    };
    for request in joined {
        cmd.arg(token(request));
    }
    cmd.write_to(wire);
    script
}

fn encode_exclusive(request: &Request, cmd: &mut Command) -> Option<Script> {
    let locks = request.lease.keys().as_slice().len();
    match request.op {
        Op::Acquire if request.min_fence.is_some() => {
            let keys = token_keys(request).chain(fence_keys(request));
            let script = encode_evalsha(Script::Acquire, cmd, keys);
            cmd.arg(token(request)).arg(request.ttl).arg(locks);
            script
        }
        Op::Acquire | Op::Restore if locks > 1 => {
            let script = encode_evalsha(Script::Acquire, cmd, token_keys(request));
            cmd.arg(token(request)).arg(request.ttl).arg(locks);
            script
        }
        Op::Extend => encode_extend(request, cmd),
        Op::Release => {
            // Most locks have no minimum time, and the clock is not read for them.
            let keep = match request.lease.has_min_hold() {
                true => request.keep_millis(clock::now()),
                false => 0,
            };
            let script = match (locks, keep) {
                (1, 0) => Script::Release,
                _ => Script::ReleaseAll,
            };
            let script = encode_evalsha(script, cmd, token_keys(request));
            let publish = match (request.publish, locks, keep) {
                (Publish::Never, ..) => "",
                (Publish::IfDeleted, ..) => "0",
                (Publish::Always, 1, 0) if request.lease.was_subscribed() => "2",
                (Publish::Always, ..) => "1",
            };
            cmd.arg(token(request)).arg(publish);
            if keep > 0 {
                cmd.arg(keep);
            }
            script
        }
        Op::Downgrade => encode_downgrade(request, cmd),
        _ => {
            let key = request.lease.key().token_key();
            cmd.arg("SET").arg(key).arg(token(request));
            cmd.arg("NX").arg("PX").arg(request.ttl);
            None
        }
    }
}

fn encode_read(request: &Request, cmd: &mut Command) -> Option<Script> {
    let key = request.lease.key();
    let (writer, readers) = (key.token_key(), key.derived(":readers"));
    match request.op {
        Op::Extend => {
            let script = encode_evalsha(Script::ExtendRead, cmd, [writer, readers]);
            cmd.arg(token(request)).arg(request.ttl);
            script
        }
        Op::Release => {
            let keys = [writer, readers, key.derived(":turn")];
            let script = encode_evalsha(Script::ReleaseRead, cmd, keys);
            cmd.arg(channel(request))
                .arg(is_conditional(request))
                .arg(millis(request.refresh_interval))
                .arg(token(request));
            script
        }
        Op::Downgrade => encode_downgrade(request, cmd),
        _ => {
            let keys = [writer, readers, key.derived(":gate"), key.derived(":turn")];
            let script = encode_evalsha(Script::AcquireRead, cmd, keys);
            cmd.arg(request.ttl).arg(millis(request.marker_ttl()));
            cmd.arg(heeds_waiters(request)).arg(token(request));
            script
        }
    }
}

fn encode_write(request: &Request, cmd: &mut Command) -> Option<Script> {
    let key = request.lease.key();
    match request.op {
        Op::Extend => encode_extend(request, cmd),
        Op::Release => {
            let keys = [key.token_key(), key.derived(":turn")];
            let script = encode_evalsha(Script::ReleaseWrite, cmd, keys);
            cmd.arg(token(request))
                .arg(millis(request.refresh_interval))
                .arg(channel(request))
                .arg(is_conditional(request));
            script
        }
        Op::Downgrade => encode_downgrade(request, cmd),
        _ => {
            let [readers, gate, turn] =
                [":readers", ":gate", ":turn"].map(|part| key.derived(part));
            let keys = [key.token_key(), readers, gate, turn].into_iter();
            let fence = fence_keys(request).filter(|_| request.min_fence.is_some());
            let script = encode_evalsha(Script::AcquireWrite, cmd, keys.chain(fence));
            let entry = request.gate_entry.as_ref();
            cmd.arg(token(request)).arg(request.ttl);
            cmd.arg(entry.map_or(0, |_| millis(request.marker_ttl())));
            cmd.arg(heeds_waiters(request)).arg(token_of(entry));
            script
        }
    }
}

fn encode_permit(request: &Request, index: u16, total: u16, cmd: &mut Command) -> Option<Script> {
    let keys = token_keys(request);
    match request.op {
        Op::Extend => {
            let script = encode_evalsha(Script::ExtendPermit, cmd, keys);
            cmd.arg(token(request)).arg(request.ttl).arg(index);
            script
        }
        Op::Release => {
            let script = encode_evalsha(Script::ReleasePermit, cmd, keys);
            cmd.arg(token(request)).arg(channel(request));
            cmd.arg(is_conditional(request)).arg(index);
            script
        }
        Op::Downgrade => encode_downgrade(request, cmd),
        _ => {
            let script = encode_evalsha(Script::AcquirePermit, cmd, keys);
            cmd.arg(token(request))
                .arg(request.ttl)
                .arg(index)
                .arg(total);
            script
        }
    }
}

/// Encodes the removal of a gate entry. The acquires of its writer raise the entry.
fn encode_gate_entry(request: &Request, cmd: &mut Command) -> Option<Script> {
    let gate = request.lease.key().derived(":gate");
    cmd.arg("ZREM").arg(gate).arg(token(request));
    None
}

/// Encodes the operations that are the same for every kind of lease.
fn encode_admin(request: &Request, cmd: &mut Command) -> Option<Script> {
    let key = request.lease.key();
    let (owners, fences) = (token_keys(request), fence_keys(request));
    match request.op {
        Op::Adopt => {
            let fences = fences.filter(|_| request.min_fence.is_some());
            let locks = request.lease.keys().as_slice().len();
            let script = encode_evalsha(Script::Adopt, cmd, owners.chain(fences));
            cmd.arg(token_of(request.former_lease.as_ref()));
            cmd.arg(token(request)).arg(request.ttl).arg(locks);
            script
        }
        Op::Swap => {
            let fences = fences.filter(|_| request.min_fence.is_some());
            let script = encode_evalsha(Script::Swap, cmd, owners.chain(fences));
            cmd.arg(token_of(request.former_lease.as_ref()));
            cmd.arg(token(request)).arg(request.ttl);
            script
        }
        Op::RaiseFence => {
            let script = encode_evalsha(Script::RaiseFence, cmd, owners.chain(fences));
            cmd.arg(token(request));
            cmd.arg(request.min_fence.unwrap_or_default());
            script
        }
        Op::Inspect => encode_evalsha(Script::Inspect, cmd, [key.token_key()]),
        Op::ForceRelease => {
            let script = encode_evalsha(Script::ForceRelease, cmd, [key.token_key()]);
            cmd.arg(channel(request));
            script
        }
        Op::Notify => {
            let (channel, lock) = (notice_channel(key.prefix()), key.as_str());
            cmd.arg("PUBLISH").arg(&*channel);
            cmd.arg(format!("check {lock}").as_str());
            None
        }
        Op::TakePlace => {
            let script = encode_evalsha(Script::TakePlace, cmd, list_keys(key));
            cmd.arg(token(request)).arg(request.ttl);
            cmd.arg(u8::from(request.publish == Publish::Always));
            script
        }
        Op::LeavePlace => {
            let script = encode_evalsha(Script::LeavePlace, cmd, list_keys(key));
            cmd.arg(token(request)).arg(2_u64);
            script
        }
        _ => {
            cmd.arg("PUBLISH").arg(key.as_str()).arg("");
            None
        }
    }
}

fn encode_extend(request: &Request, cmd: &mut Command) -> Option<Script> {
    let script = encode_evalsha(Script::Extend, cmd, token_keys(request));
    cmd.arg(token(request)).arg(request.ttl);
    script
}

fn encode_downgrade(request: &Request, cmd: &mut Command) -> Option<Script> {
    let key = request.lease.key();
    let keys = [
        key.token_key(),
        key.derived(":readers"),
        key.derived(":turn"),
    ];
    let script = encode_evalsha(Script::Downgrade, cmd, keys);
    cmd.arg(token(request)).arg(request.ttl);
    cmd.arg(millis(request.refresh_interval))
        .arg(channel(request));
    script
}

/// Returns the keys of the scripts of places: the lock, and its waiting list.
fn list_keys(key: &Key) -> [RedisKey<'_>; 2] {
    [key.token_key(), key.derived(":waiting")]
}

fn token(request: &Request) -> &Token {
    request.lease.token()
}

fn token_of(lease: Option<&Arc<Lease>>) -> Option<&Token> {
    lease.map(|lease| lease.token())
}

fn token_keys(request: &Request) -> impl Iterator<Item = RedisKey<'_>> + Clone {
    request.lease.keys().as_slice().iter().map(Key::token_key)
}

fn fence_keys(request: &Request) -> impl Iterator<Item = RedisKey<'_>> + Clone {
    let keys = request.lease.keys().as_slice().iter();
    keys.map(|key| key.derived(":fence"))
}

/// Returns the channel of a release, or nothing if it is not to be published.
fn channel(request: &Request) -> &str {
    match request.publish {
        Publish::Never => "",
        Publish::IfDeleted | Publish::Always => request.lease.key().as_str(),
    }
}

/// Returns 1 for a release that is published only if it deletes the token.
fn is_conditional(request: &Request) -> u8 {
    u8::from(request.publish == Publish::IfDeleted)
}

/// Returns 1 for an acquire. A restore heeds neither the gate nor a reader turn, which are for new
/// holders.
fn heeds_waiters(request: &Request) -> u8 {
    u8::from(request.op == Op::Acquire)
}

/// Returns a request with its encoded bytes, for jobs of several nodes.
pub(crate) fn shared(mut request: Request) -> Arc<Request> {
    request.encoded = Some(with_encoded(&request, |bytes| bytes.into()));
    Arc::new(request)
}

/// Calls `use_bytes` with the encoded request, which is the same for every node.
pub(crate) fn with_encoded<T>(request: &Request, use_bytes: impl FnOnce(&[u8]) -> T) -> T {
    thread_local! {
        /// Buffers that keep their memory from one request to the next.
        static SCRATCH: Cell<(Option<Command>, Vec<u8>)> = const { Cell::new((None, Vec::new())) };
    }
    // A destructor that runs at the end of a thread finds it destroyed (S13).
    let (cmd, mut wire) = SCRATCH.try_with(Cell::take).unwrap_or_default();
    let mut cmd = cmd.unwrap_or_default();
    wire.clear();
    encode_request(request, std::iter::empty(), &mut cmd, &mut wire);
    let result = use_bytes(&wire);
    _ = SCRATCH.try_with(|scratch| scratch.set((Some(cmd), wire)));
    result
}

/// Appends the load of a request's script and then its call: the server sends two replies.
pub(crate) fn encode_with_script_load<'a>(
    request: &Request,
    joined: impl Iterator<Item = &'a Request>,
    cmd: &mut Command,
    wire: &mut Vec<u8>,
) {
    let mut call = Vec::new();
    // A plain command needs no script; loading any one keeps the count of replies.
    let script = encode_request(request, joined, cmd, &mut call).unwrap_or(Script::Release);
    encode_script_load(script, wire);
    wire.append(&mut call);
}

fn encode_evalsha<'a, I>(script: Script, cmd: &mut Command, keys: I) -> Option<Script>
where
    I: IntoIterator<Item = RedisKey<'a>, IntoIter: Clone>,
{
    let keys = keys.into_iter();
    cmd.arg("EVALSHA")
        .arg(SCRIPT_HASHES[script as usize].get_hash());
    cmd.arg(keys.clone().count());
    for key in keys {
        cmd.arg(key);
    }
    Some(script)
}

/// Returns whole milliseconds, at most `u64::MAX`.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Appends the call that asks for the remaining time and the owner label of the lock, after a
/// refused `SET NX PX`. A connection loads the script at once.
pub(crate) fn encode_inspect(request: &Request, cmd: &mut Command, wire: &mut Vec<u8>) {
    cmd.clear();
    encode_evalsha(Script::Inspect, cmd, [request.lease.key().token_key()]);
    cmd.write_to(wire);
}

/// Appends PTTL of the lock, which a refused `SET NX PX` leaves to be asked.
pub(crate) fn encode_pttl(request: &Request, cmd: &mut Command, wire: &mut Vec<u8>) {
    cmd.clear();
    cmd.arg("PTTL").arg(request.lease.key().as_str());
    cmd.write_to(wire);
}
