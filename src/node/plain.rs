//! In the place of `tls` where the feature `tls` is off: no node is spoken to over TLS.

use redis::ConnectionInfo;

use crate::config::Settings;

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

#[cfg(all(test, not(loom)))]
mod tests {
    use crate::config::Config;
    use crate::node::address::only;

    #[test]
    fn an_address_over_tls_is_told_which_feature_it_takes() {
        for scheme in ["rediss", "valkeys", "REDISS"] {
            let settings = Config::new([format!("{scheme}://joe:s3cret@h")])
                .check()
                .unwrap();
            let refused = only(&settings);
            let error = refused.unwrap_err().to_string();
            assert!(error.contains("feature `tls`"), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
