//! In the place of `tls` where the feature `tls` is off: no node is spoken to over TLS.

use redis::ConnectionInfo;

use crate::config::settings::Settings;

/// Whether a server is spoken to over TLS, by what its address says.
///
/// # Errors
/// One over TLS is refused.
pub(crate) fn is_asked_for(by_address: Option<bool>, _: &Settings) -> Result<bool, String> {
    match by_address {
        Some(true) => Err("TLS takes the feature `tls` of redguard".to_owned()),
        _ => Ok(false),
    }
}

pub(crate) fn apply_tls(info: ConnectionInfo, _: &Settings) -> Result<ConnectionInfo, String> {
    Ok(info)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use crate::config::builder::Config;
    use crate::transport::node::address::only;

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
