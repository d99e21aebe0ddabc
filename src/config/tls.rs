//! What a user can set for TLS: whom to trust, and who we are. It is read when connecting, by `node`.

use std::fmt;

/// Whom to trust and who we are, where nodes are spoken to over TLS. A builder that is passed by value.
///
/// A node must show a certificate for the host that its address names, be it a name or an IP address. It is trusted if
/// it leads to [`ca`](Tls::ca), or where none is set to one of the roots that Mozilla trusts, which are compiled in: the
/// computer's own certificates are not looked at. There is no way to turn these checks off. TLS 1.2 and 1.3 are spoken.
///
/// Certificates and keys are PEM texts. They are read when connecting, so a mistake in one is an error of
/// [`Nodes::connect`](crate::Nodes::connect). `Debug` shows nothing of them.
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
#[must_use = "it does nothing until it is given to `Config::tls`"]
pub struct Tls {
    ca: Option<Vec<u8>>,
    client: Option<(Vec<u8>, Vec<u8>)>,
}

impl Tls {
    /// TLS with the compiled-in roots and without a client certificate.
    pub fn new() -> Tls {
        Tls::default()
    }

    /// The authorities to trust, one or more certificates, in place of the compiled-in roots. The computer's own are
    /// in a file, too: on Debian `/etc/ssl/certs/ca-certificates.crt`. Default: the roots that Mozilla trusts.
    pub fn ca(mut self, pem: impl Into<Vec<u8>>) -> Tls {
        self.ca = Some(pem.into());
        self
    }

    /// What we show to nodes that ask for a certificate: our own, followed by those that lead to the authority, and its
    /// key (PKCS #8, PKCS #1 or SEC 1, not encrypted). Default: none.
    pub fn client_certificate(
        mut self,
        certificate: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Tls {
        self.client = Some((certificate.into(), key.into()));
        self
    }

    /// The authorities as given.
    pub(crate) fn authorities(&self) -> Option<&[u8]> {
        self.ca.as_deref()
    }

    /// Our certificate and its key as given: not for messages.
    pub(crate) fn client(&self) -> Option<(&[u8], &[u8])> {
        let (certificate, key) = self.client.as_ref()?;
        Some((certificate, key))
    }
}

/// What is set, and nothing of its content.
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
    fn debug_shows_what_is_set_and_nothing_of_it() {
        let tls = Tls::new().ca("abc").client_certificate("def", "ghi");
        let shown = r#"Tls { ca: Some(".."), client_certificate: Some("..") }"#;
        assert_eq!(format!("{tls:?}"), shown);
        let shown = "Tls { ca: None, client_certificate: None }";
        assert_eq!(format!("{:?}", Tls::new()), shown);
    }
}
