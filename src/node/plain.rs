//! In the place of `tls` where the feature `tls` is off: no node is spoken to over TLS.

use redis::{ConnectionInfo, RedisError};

use crate::config::Settings;
use crate::error::Cause;
use crate::script;

/// The URL of an address.
///
/// # Errors
/// One over TLS is refused.
pub(super) fn url(text: &str, _: &Settings) -> Result<String, String> {
    let Some((scheme, _)) = text.split_once("://") else {
        return Ok(format!("redis://{text}"));
    };
    match scheme.to_ascii_lowercase().as_str() {
        "rediss" | "valkeys" => Err("TLS takes the feature `tls` of redguard".to_owned()),
        _ => Ok(text.to_owned()),
    }
}

pub(super) fn secure(info: ConnectionInfo, _: &Settings) -> Result<ConnectionInfo, String> {
    Ok(info)
}

pub(super) fn cause(error: &RedisError) -> Cause {
    script::cause(error)
}
