//! Replaces `tls.rs` without the feature `tls`: an address over TLS is refused.

use redis::ConnectionInfo;

use crate::config::settings::Settings;

/// Returns `false`.
///
/// # Errors
/// - The address is over TLS.
pub(super) fn is_configured(by_address: Option<bool>, _: &Settings) -> Result<bool, String> {
    match by_address {
        Some(true) => Err("TLS needs the feature `tls` of redguard".to_owned()),
        _ => Ok(false),
    }
}

pub(super) fn apply_tls(info: ConnectionInfo, _: &Settings) -> Result<ConnectionInfo, String> {
    Ok(info)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use crate::config::builder::Config;
    use crate::tests::fixtures::only;

    #[test]
    fn address_over_tls_is_refused_with_the_feature_name() {
        for scheme in ["rediss", "valkeys", "REDISS"] {
            let settings = Config::new([format!("{scheme}://joe:s3cret@h")])
                .validate()
                .unwrap();
            let refused = only(&settings);
            let error = refused.unwrap_err().to_string();
            assert!(error.contains("feature `tls`"), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }
}
