//! Converts errors of `redis` to node failures, redacts their texts, and classifies them.
//!
//! The classes of a [`NodeFailure`], each with the rule that needs it:
//!
//! | failure | `is_outage` (S9) | `is_reply` (S9) | `is_permanent` (S6) | [`is_not_run`] (S4) |
//! |---|---|---|---|---|
//! | `Unreachable`, `TimedOut` | yes | – | – | – |
//! | `ServerError`: LOADING, at the limit of clients | yes | yes | – | LOADING |
//! | `ServerError`: a code of `NOT_RUN`, outside a script | – | yes | – | yes |
//! | `ServerError`: any other | – | yes | – | – |
//! | `AccessDenied` | – | yes | – | outside a script |
//! | `WrongType`, `CrossSlot` | – | yes | yes | yes |
//! | a refusal (`Held`, `NotOurs`, …) | – | – | – | – |
//!
//! - `NodeFailure::is_outage`: the node serves no other holder either, as far as is known. Only
//!   outages of a quorum may start degraded mode.
//! - `NodeFailure::is_reply`: the node replied, so it could also serve another holder.
//! - `NodeFailure::is_permanent`: repeating the request does not help, so the reply is a refusal.
//! - [`is_not_run`]: the server ran nothing of the request, so an acquire left nothing to undo.
//! - [`is_read_only`]: the server is a replica, so the node reconnects to find its master.

use std::error::Error;
use std::io;
use std::sync::Arc;

use redis::{RedisError, ServerError, Value};

use crate::error::node_failure::NodeFailure;

/// The maximal number of characters of an error text in logs and errors.
pub(crate) const MAX_ERROR_CHARS: usize = 200;

/// The codes of errors by which a server refuses a command before it runs any of it.
const NOT_RUN: [&str; 16] = [
    "ASK",
    "BUSY",
    "CLUSTERDOWN",
    "CROSSSLOT",
    "LOADING",
    "MASTERDOWN",
    "MISCONF",
    "MOVED",
    "NOAUTH",
    "NOPERM",
    "NOREPLICAS",
    "NOSCRIPT",
    "OOM",
    "READONLY",
    "TRYAGAIN",
    "WRONGPASS",
];
/// Marks of an error of a command within a script, which may have changed something before. Redis
/// 7.0 and later and Valkey write them at the end of the text, Redis 6.2 at its beginning.
const WITHIN_SCRIPT: [&str; 4] = [
    "script:",
    "rror running script",
    "ACL failure in script",
    "executing the script",
];

/// Marks of a denied command within a script: of Valkey and Redis 7.2 and later, Redis 7.0, and
/// 6.2.
const SCRIPT_ACL_ERRORS: [&str; 3] = [
    "NOPERM",
    "ACL failure in script",
    "The user executing the script",
];

/// Returns the failure of a request whose script is missing after this reply to SCRIPT LOAD.
pub(crate) fn script_load_failure(reply: &Value) -> NodeFailure {
    match reply {
        Value::ServerError(error) => failure(&error.clone().into()),
        _ => NodeFailure::ServerError("NOSCRIPT after SCRIPT LOAD".into()),
    }
}

/// Converts an error of `redis`. No other function does.
pub(crate) fn failure(error: &RedisError) -> NodeFailure {
    failure_redacted(error, "")
}

/// Converts an error of `redis` and keeps `secret` out of its text: a server or proxy may repeat a
/// command that it does not understand, and that may be AUTH.
pub(crate) fn failure_redacted(error: &RedisError, secret: &str) -> NodeFailure {
    if error.is_timeout() {
        return NodeFailure::TimedOut;
    }
    let text = match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        (None, Some(detail)) if error.kind() == redis::ErrorKind::AuthenticationFailed => {
            detail.to_owned()
        }
        _ => error.to_string(),
    };
    // An error inside a script keeps its code only in its text, if anywhere.
    let is_wrong_type = text.contains("WRONGTYPE");
    let is_denied = SCRIPT_ACL_ERRORS.iter().any(|mark| text.contains(mark));
    let text = redact_and_truncate(&text, secret);
    match (error.kind(), error.code()) {
        (redis::ErrorKind::AuthenticationFailed, _) => NodeFailure::AccessDenied(text),
        (_, Some("NOAUTH" | "WRONGPASS" | "NOPERM" | "DENIED")) => NodeFailure::AccessDenied(text),
        (_, Some("WRONGTYPE")) => NodeFailure::WrongType,
        (_, Some("CROSSSLOT")) => NodeFailure::CrossSlot,
        (_, Some(_)) if is_wrong_type => NodeFailure::WrongType,
        (_, Some(_)) if is_denied => NodeFailure::AccessDenied(text),
        (_, Some(_)) => NodeFailure::ServerError(text),
        // `rustls` writes a page of text for it.
        _ if is_eof(error) => {
            NodeFailure::Unreachable("the other side closed the connection".to_owned())
        }
        _ => NodeFailure::Unreachable(text),
    }
}

/// Returns whether an error reply to AUTH refuses the credentials. Other errors concern the
/// connection or the server.
pub(crate) fn is_about_auth(error: &ServerError) -> bool {
    // With code ERR: the server has no password (two wordings), or a wrong one before Redis 6.
    const TEXTS: [&str; 3] = [
        "called without any password configured",
        "no password is set",
        "invalid password",
    ];
    match error.code() {
        "NOAUTH" | "WRONGPASS" | "NOPERM" | "DENIED" => true,
        _ => error
            .details()
            .is_some_and(|text| TEXTS.iter().any(|part| text.contains(part))),
    }
}

/// Returns whether the server replied that it is a replica. An error inside a script keeps its code
/// only in its text.
pub(crate) fn is_read_only(cause: &NodeFailure) -> bool {
    matches!(cause, NodeFailure::ServerError(text) if text.contains("READONLY"))
}

/// Returns whether the server ran nothing of the request (S4): then an acquire left nothing to
/// undo. After any other failure it may have.
pub(crate) fn is_not_run(cause: &NodeFailure) -> bool {
    let text = match cause {
        // Scripts read everything that can fail on its type before they change anything.
        NodeFailure::WrongType | NodeFailure::CrossSlot => return true,
        NodeFailure::ServerError(text) | NodeFailure::AccessDenied(text) => text,
        _ => return false,
    };
    // A mark of a script may have been cut off.
    let is_within = WITHIN_SCRIPT.iter().any(|mark| text.contains(mark)) || text.ends_with('…');
    let is_unknown_command = text.starts_with("ERR unknown command");
    let code = code(text);
    !is_within && (is_unknown_command || NOT_RUN.contains(&code))
}

/// Returns the code of a server's error, its first word.
pub(crate) fn code(text: &str) -> &str {
    text.split(' ').next().unwrap_or_default()
}

/// Returns the I/O error below an error of `redis`, also below one of TLS.
pub(crate) fn io(error: &RedisError) -> Option<&io::Error> {
    let shared = error
        .source()?
        .downcast_ref::<Arc<dyn Error + Send + Sync>>()?;
    shared.downcast_ref()
}

fn is_eof(error: &RedisError) -> bool {
    io(error).is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof)
}

/// Returns whether the peer closed a connection that it had accepted.
pub(crate) fn is_peer_close(error: &RedisError) -> bool {
    error.is_connection_dropped() && !error.is_connection_refusal()
}

/// Sanitizes a foreign error text: one line, at most `MAX_ERROR_CHARS` characters, cut before
/// ", with args beginning with", because Redis repeats an unknown command, which may contain a
/// password. If `secret` occurs before that cut, nothing of the text is returned. It is searched
/// for before truncation, since a part of a secret is secret too.
pub(crate) fn redact_and_truncate(text: &str, secret: &str) -> String {
    let end = text
        .find(", with args beginning with")
        .unwrap_or(text.len());
    if !secret.is_empty() && text.find(secret).is_some_and(|at| at < end) {
        return "error text withheld: it contains the password".to_owned();
    }
    let mut chars = text[..end].chars();
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

/// Returns the failure of a node whose reply does not belong to the request.
pub(crate) fn protocol_error() -> NodeFailure {
    NodeFailure::Unreachable("unexpected reply: is it a Redis server?".into())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn server_error(line: &str) -> ServerError {
        let wire = format!("-{line}\r\n");
        match redis::parse_redis_value(wire.as_bytes()) {
            Ok(Value::ServerError(error)) => error,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn error_before_a_command_runs_is_classified_by_its_code() {
        let long = format!("NOPERM User {} has no permissions", "x".repeat(300));
        for (line, expected) in [
            ("NOPERM No permissions to access a key", true),
            (
                "NOPERM User a has no permissions to run the 'script|load' command",
                true,
            ),
            (&long, false),
            ("NOAUTH Authentication required.", true),
            ("MOVED 3999 127.0.0.1:6381", true),
            ("ASK 3999 127.0.0.1:6381", true),
            (
                "TRYAGAIN Multiple keys request during rehashing of slot",
                true,
            ),
            (
                "CROSSSLOT Keys in request don't hash to the same slot",
                true,
            ),
            ("CLUSTERDOWN The cluster is down", true),
            ("LOADING Redis is loading the dataset in memory", true),
            (
                "READONLY You can't write against a read only replica.",
                true,
            ),
            ("BUSY Redis is busy running a script.", true),
            ("MISCONF Redis is configured to save RDB snapshots", true),
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                true,
            ),
            (
                "ERR unknown command 'EVALSHA', with args beginning with: 'f2' '1'",
                true,
            ),
            (
                "ERR unknown command `EVALSHA`, with args beginning with: `f2`, `1`, ",
                true,
            ),
            ("ERR value is not an integer or out of range", false),
            (
                "WRONGTYPE Operation against a key holding the wrong kind of value",
                true,
            ),
            ("SOMETHING else", false),
        ] {
            let failure = failure(&server_error(line).into());
            assert_eq!(is_not_run(&failure), expected, "{line}");
        }
        for failure in [
            NodeFailure::TimedOut,
            NodeFailure::Unreachable("NOAUTH".into()),
        ] {
            assert!(!is_not_run(&failure), "{failure}");
        }
    }

    #[test]
    fn error_within_a_script_may_have_changed_something() {
        for line in [
            "NOPERM No permissions to access a key script: f2, on @user_script:5.",
            "ERR The user executing the script can't run this command or subcommand",
            "ERR Error running script (call to f_2): @user_script:5: ACL failure in script",
            "READONLY You can't write against a read only replica. script: f2, on @user_script:5.",
            "OOM command not allowed when used memory > 'maxmemory'. script: f2, on @user_script:9.",
            "ERR Error running script (call to f_2): @user_script:9: -OOM command not allowed",
            "ERR Unknown Redis command called from script script: f2, on @user_script:1.",
        ] {
            let failure = failure(&server_error(line).into());
            assert!(!is_not_run(&failure), "{line}");
        }
    }

    #[test]
    fn reply_to_auth_is_a_denial_only_if_its_text_concerns_auth() {
        for (line, expected) in [
            (
                "WRONGPASS invalid username-password pair or user is disabled.",
                true,
            ),
            ("NOAUTH Authentication required.", true),
            ("NOPERM no", true),
            ("DENIED Redis is running in protected mode", true),
            (
                "ERR AUTH <password> called without any password configured for the default user. Are you sure?",
                true,
            ),
            ("ERR Client sent AUTH, but no password is set", true),
            ("ERR invalid password", true),
            ("ERR max number of clients reached", false),
            (
                "ERR max number of clients + cluster connections reached",
                false,
            ),
            ("ERR unknown command 'AUTH'", false),
            ("LOADING Redis is loading the dataset in memory", false),
            ("MASTERDOWN Link with MASTER is down", false),
            ("ERR", false),
        ] {
            assert_eq!(is_about_auth(&server_error(line)), expected, "{line}");
        }
    }

    #[test]
    fn error_text_with_a_secret_is_withheld_whole() {
        let cut = format!("{}s3cret", "x".repeat(MAX_ERROR_CHARS - 3));
        let long = "0123456789".repeat(30);
        let own = "p, with args beginning with";
        for (text, secret, is_withheld) in [
            ("not now: AUTH s3cret", "s3cret", true),
            ("not now: AUTH s3cret", "", false),
            ("not now", "s3cret", false),
            (&cut, "s3cret", true),
            (&format!("AUTH {long}"), &long, true),
            ("two\nlines", "two\nlines", true),
            (&format!("AUTH {own}"), own, true),
            // The arguments are cut off anyway.
            (
                "unknown 'AUTH', with args beginning with: 's3cret'",
                "s3cret",
                false,
            ),
        ] {
            let redacted = redact_and_truncate(text, secret);
            assert_eq!(
                redacted.contains("text withheld"),
                is_withheld,
                "{text}: {redacted}"
            );
            assert!(!redacted.contains("s3c") || secret.is_empty(), "{redacted}");
        }
    }
}
