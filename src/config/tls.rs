//! `Tls`: trusted authorities and the client certificate, as PEM texts. `transport::node::tls`
//! parses them at connect.

use std::fmt;

/// Settings for nodes over TLS: trusted authorities and a client certificate. A builder that is
/// passed by value.
///
/// A node must show a certificate for the host in its address, a name or an IP address. It is
/// trusted if it leads to [`ca`](Tls::ca), or without that setting to one of Mozilla's roots, which
/// are compiled in. The computer's own certificates are not read. These checks cannot be turned
/// off. TLS 1.2 and 1.3 are supported.
///
/// Certificates and keys are PEM texts. They are parsed at connect, so a mistake in one is an error
/// of [`Nodes::connect`](crate::Nodes::connect). `Debug` shows nothing of them.
///
/// With the feature `tls`.
///
/// ```no_run
/// use redguard::{Config, Tls};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let tls = Tls::new()
///     .ca(std::fs::read("ca.crt")?)
///     .client_certificate(std::fs::read("worker.crt")?, std::fs::read("worker.key")?);
/// let config = Config::new(["redis-1.internal:6380"]).tls(tls);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
#[must_use = "TLS settings do nothing until they are passed to `Config::tls`"]
pub struct Tls {
    ca: Option<Vec<u8>>,
    client: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    /// Creates settings with the compiled-in roots and without a client certificate.
    pub fn new() -> Tls {
        Tls::default()
    }

    /// Sets the trusted authorities, one or more certificates, in place of the compiled-in roots.
    /// The computer's own are in a file, too: on Debian `/etc/ssl/certs/ca-certificates.crt`.
    /// Default: Mozilla's roots.
    pub fn ca(mut self, pem: impl Into<Vec<u8>>) -> Tls {
        self.ca = Some(pem.into());
        self
    }

    /// Sets the client certificate for nodes that ask for one, and its key (PKCS #8, PKCS #1 or
    /// SEC 1, not encrypted). The certificates of intermediate authorities follow the first
    /// certificate. Default: none.
    pub fn client_certificate(
        mut self,
        certificate: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Tls {
        self.client = Some((certificate.into(), key.into()));
        self
    }

    /// Returns the authorities as given.
    pub(crate) fn authorities(&self) -> Option<&[u8]> {
        self.ca.as_deref()
    }

    /// Returns the client certificate and its key as given. They must not appear in a message.
    pub(crate) fn client(&self) -> Option<(&[u8], &[u8])> {
        let (certificate, key) = self.client.as_ref()?;
        Some((certificate, key))
    }
}

/// Shows which settings are set, without their content.
impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("ca", &self.ca.as_ref().map(|_| ".."))
            .field("client_certificate", &self.client.as_ref().map(|_| ".."))
            .finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn tls_debug_shows_no_content() {
        let tls = Tls::new().ca("abc").client_certificate("def", "ghi");
        let shown = r#"Tls { ca: Some(".."), client_certificate: Some("..") }"#;
        assert_eq!(format!("{tls:?}"), shown);
        let shown = "Tls { ca: None, client_certificate: None }";
        assert_eq!(format!("{:?}", Tls::new()), shown);
    }
}
