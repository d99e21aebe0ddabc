//! Errors of `redis` as causes, redacted.

use std::error::Error;
use std::io;
use std::sync::Arc;

use redis::{RedisError, ServerError, Value};

use crate::error::NodeFailure;
use crate::protocol::request::{NOT_RUN, WITHIN_SCRIPT};

/// So many characters of an error are passed on.
pub(crate) const MAX_ERROR_CHARS: usize = 200;

/// How servers say that a script may not do something: Valkey and Redis from 7.2 on, Redis 7.0, and 6.2.
const SCRIPT_ACL_ERRORS: [&str; 3] = [
    "NOPERM",
    "ACL failure in script",
    "The user executing the script",
];

/// Why a server lacks a script that it was to load, if that was its answer.
pub(crate) fn unloaded(answer: &Value) -> NodeFailure {
    match answer {
        Value::ServerError(error) => failure(&error.clone().into()),
        _ => NodeFailure::ServerError("NOSCRIPT after SCRIPT LOAD".into()),
    }
}

/// What an error of `redis` means to us. The one place where they are told apart.
pub(crate) fn failure(error: &RedisError) -> NodeFailure {
    failure_redacted(error, "")
}

/// The same where the words are not to have a secret in them: a server or proxy may repeat what it does not understand, and
/// that may be how we log in.
pub(crate) fn failure_redacted(error: &RedisError, secret: &str) -> NodeFailure {
    if error.is_timeout() {
        return NodeFailure::TimedOut;
    }
    let text = match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => error.to_string(),
    };
    // An error inside a script keeps its code only in its text, if anywhere.
    let is_of_type = text.contains("WRONGTYPE");
    let is_denied = SCRIPT_ACL_ERRORS.iter().any(|words| text.contains(words));
    let text = redact_and_truncate(&text, secret);
    match (error.kind(), error.code()) {
        (redis::ErrorKind::AuthenticationFailed, _) => NodeFailure::AccessDenied(text),
        (_, Some("NOAUTH" | "WRONGPASS" | "NOPERM" | "DENIED")) => NodeFailure::AccessDenied(text),
        (_, Some("WRONGTYPE")) => NodeFailure::WrongType,
        (_, Some("CROSSSLOT")) => NodeFailure::CrossSlot,
        (_, Some(_)) if is_of_type => NodeFailure::WrongType,
        (_, Some(_)) if is_denied => NodeFailure::AccessDenied(text),
        (_, Some(_)) => NodeFailure::ServerError(text),
        // In place of the page that `rustls` writes on it.
        _ if is_eof(error) => {
            NodeFailure::Unreachable("the other side closed the connection".to_owned())
        }
        _ => NodeFailure::Unreachable(text),
    }
}

/// Whether an error reply to AUTH refuses the credentials. Others are about the connection or the server.
pub(crate) fn is_about_auth(error: &ServerError) -> bool {
    // `ERR` covers: no password is set on the server (two wordings), and a wrong one before Redis 6.
    const WORDS: [&str; 3] = [
        "called without any password configured",
        "no password is set",
        "invalid password",
    ];
    match error.code() {
        "NOAUTH" | "WRONGPASS" | "NOPERM" | "DENIED" => true,
        _ => error
            .details()
            .is_some_and(|text| WORDS.iter().any(|words| text.contains(words))),
    }
}

/// Whether a server says with it that it is a replica. An error inside a script keeps its code only in its text.
pub(crate) fn is_read_only(cause: &NodeFailure) -> bool {
    matches!(cause, NodeFailure::ServerError(text) if text.contains("READONLY"))
}

/// Whether a server says with this error that it has run nothing of the command (rule S4): then a request to grant a lease has
/// left nothing to release. Of all other errors it is not known.
pub(crate) fn is_not_run(cause: &NodeFailure) -> bool {
    let text = match cause {
        // Scripts read all that can fail on its type before they change anything.
        NodeFailure::WrongType | NodeFailure::CrossSlot => return true,
        NodeFailure::ServerError(text) | NodeFailure::AccessDenied(text) => text,
        _ => return false,
    };
    // What says that it was within a script may be what was cut off.
    let is_within = WITHIN_SCRIPT.iter().any(|words| text.contains(words)) || text.ends_with('…');
    let is_unknown = text.starts_with("ERR unknown command");
    let code = code(text);
    !is_within && (is_unknown || NOT_RUN.contains(&code))
}

/// The first word of a server's error.
pub(crate) fn code(text: &str) -> &str {
    text.split(' ').next().unwrap_or_default()
}

/// The operating system's error, or that of TLS in its place.
pub(crate) fn io(error: &RedisError) -> Option<&io::Error> {
    let shared = error
        .source()?
        .downcast_ref::<Arc<dyn Error + Send + Sync>>()?;
    shared.downcast_ref()
}

fn is_eof(error: &RedisError) -> bool {
    io(error).is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof)
}

/// Whether the other side ended a connection that it had taken.
pub(crate) fn is_peer_close(error: &RedisError) -> bool {
    error.is_connection_dropped() && !error.is_connection_refusal()
}

/// Another's words as they are passed on: on one line, not too many, and without what a server was sent, which it repeats
/// where it does not know a command. That may have been a password; where `secret` is in them they are not passed on at all.
/// It is looked for in all that was said, since a part of it is a secret, too.
pub(crate) fn redact_and_truncate(words: &str, secret: &str) -> String {
    let end = words
        .find(", with args beginning with")
        .unwrap_or(words.len());
    if !secret.is_empty() && words.find(secret).is_some_and(|at| at < end) {
        return "its words have the password in them".to_owned();
    }
    let mut chars = words[..end].chars();
    let mut short: String = chars
        .by_ref()
        .take(MAX_ERROR_CHARS)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if chars.next().is_some() {
        short.push('…');
    }
    short
}

pub(crate) fn protocol_error() -> NodeFailure {
    NodeFailure::Unreachable("an unexpected reply: is it a Redis server?".into())
}
