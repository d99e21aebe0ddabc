//! The library's configuration from the settings of the tool.

use std::collections::HashMap;

use redguard::{Config, Credentials, Tls};

use crate::config::Settings;
use crate::nodes::spec::NodeSpec;

/// Returns the configuration that all uses of the library share.
pub(crate) fn config(settings: &Settings) -> Config {
    let mut config = Config::new(settings.nodes.iter().map(NodeSpec::endpoint))
        .key_prefix(&settings.prefix)
        .node_timeout(settings.timeout)
        .connect_timeout(settings.connect_timeout());
    if let Some(max_ttl) = settings.quarantine {
        config = config.restart_quarantine(max_ttl);
    }
    let logins = settings.nodes.iter().filter_map(NodeSpec::master_login);
    let logins: HashMap<String, Credentials> = logins.collect();
    if !logins.is_empty() {
        config = config.credentials(move |node| {
            // The library asks for each node without a password. A server without one lets `default`
            // in with any, which is the user of connections that do not log in.
            let login = logins.get(node).cloned();
            login.unwrap_or_else(|| Credentials::new("default", ""))
        });
    }
    let tls = &settings.tls;
    if tls.is_empty() {
        return config;
    }
    let mut files = Tls::new();
    if let Some(ca) = &tls.ca {
        files = files.ca(ca.clone());
    }
    if let Some((certificate, key)) = &tls.client {
        files = files.client_certificate(certificate.clone(), key.clone());
    }
    config.tls(files)
}
