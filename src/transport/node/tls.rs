//! TLS to a node: converts the settings for `redis` and `rustls`, and their errors to node
//! failures.
//!
//! Certificate checks cannot be turned off, and no error shows a certificate or a key.
//!
//! Tests: `src/tests/transport/tls.rs`; `tests/it/nodes/tls.rs`.

use std::io;

use redis::{Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, RedisError, TlsCertificates};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, ClientConfig, RootCertStore};

use crate::config::settings::Settings;
use crate::config::tls::Tls;
use crate::error::node_failure::NodeFailure;
use crate::protocol::server_error;

/// Returns whether a server is connected over TLS: by the scheme of its address, else by the
/// settings.
pub(super) fn is_configured(by_address: Option<bool>, settings: &Settings) -> Result<bool, String> {
    Ok(by_address.unwrap_or(settings.tls.is_some()))
}

/// Adds the certificates of the settings to a TLS address.
///
/// # Errors
/// - The address is not over TLS although TLS is set.
/// - A certificate or key is invalid. The text contains nothing of it.
pub(super) fn apply_tls(
    info: ConnectionInfo,
    settings: &Settings,
) -> Result<ConnectionInfo, String> {
    let ConnectionAddr::TcpTls { host, .. } = info.addr() else {
        return match settings.tls {
            Some(_) => Err("the address is not over TLS, but `Config::tls` is set".to_owned()),
            None => Ok(info),
        };
    };
    if ServerName::try_from(host.as_str()).is_err() {
        return Err(format!("no certificate can name the host {host:?}"));
    }
    install_crypto_provider();
    let Some(tls) = &settings.tls else {
        return Ok(info);
    };
    validate(tls)?;
    let certificates = TlsCertificates {
        client_tls: tls.client().map(|(certificate, key)| ClientTlsConfig {
            client_cert: certificate.to_vec(),
            client_key: key.to_vec(),
        }),
        root_cert: tls.authorities().map(<[u8]>::to_vec),
    };
    // The error text is dropped, because it may repeat lines of a key. `validate` has found the
    // known faults.
    let client = Client::build_with_tls(info, certificates)
        .map_err(|_| "invalid certificate or key".to_owned())?;
    Ok(client.get_connection_info().clone())
}

/// Installs a crypto provider for the process if there is none. Without one, or with several to
/// choose from, `rustls` panics.
fn install_crypto_provider() {
    if CryptoProvider::get_default().is_none() {
        // It fails if another thread was first, which does no harm.
        _ = ring::default_provider().install_default();
    }
}

/// Validates certificates and key as `redis` does at each connect, so that errors show early.
fn validate(tls: &Tls) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    if let Some(pem) = tls.authorities() {
        for certificate in parse_certificates(pem, "Tls::ca")? {
            if roots.add(certificate).is_err() {
                return Err("Tls::ca: a certificate is invalid".to_owned());
            }
        }
    }
    let Some((certificate, key)) = tls.client() else {
        return Ok(());
    };
    let chain = parse_certificates(certificate, "Tls::client_certificate")?;
    let Ok(key) = PrivateKeyDer::from_pem_slice(key) else {
        return Err("Tls::client_certificate: no key in the PEM text".to_owned());
    };
    let config = ClientConfig::builder().with_root_certificates(roots);
    match config.with_client_auth_cert(chain, key) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("Tls::client_certificate: {error}")),
    }
}

fn parse_certificates(pem: &[u8], setting: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(format!("{setting}: no certificate in the PEM text")),
        Err(_) => Err(format!("{setting}: the PEM text is damaged")),
    }
}

/// Returns the error of a connect to a name with this number of addresses. If it is a timeout, and
/// there are several, the text names the likely reason: `redis` does not go on behind an address
/// that does not answer, because that one has used up the time.
pub(super) fn name_addresses(error: RedisError, addresses: u32) -> RedisError {
    if addresses < 2 || !error.is_timeout() {
        return error;
    }
    let text = format!(
        "no answer in time: over TLS each of the {addresses} addresses of the name must answer or refuse"
    );
    io::Error::new(io::ErrorKind::HostUnreachable, text).into()
}

/// Converts the error of a connect to the node's failure. A certificate that one side does not
/// accept is `AccessDenied`, because retrying cannot fix it.
pub(super) fn connect_failure(error: &RedisError, password: &str) -> NodeFailure {
    if error.is_timeout() {
        return NodeFailure::Unreachable("no answer in time: is it a port for TLS?".to_owned());
    }
    let inner = server_error::io(error).and_then(io::Error::get_ref);
    let Some(tls) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        let failure = server_error::failure_redacted(error, password);
        return match failure {
            // A server at its limit of clients closes before the handshake, without a word.
            NodeFailure::Unreachable(text) if server_error::is_peer_close(error) => {
                let hint = "is it a port for TLS, with room for clients?";
                NodeFailure::Unreachable(format!("{text}: {hint}"))
            }
            failure => failure,
        };
    };
    let text = server_error::redact_and_truncate(&format!("TLS: {tls}"), password);
    match tls {
        rustls::Error::AlertReceived(AlertDescription::InternalError) => {
            NodeFailure::Unreachable(text)
        }
        rustls::Error::AlertReceived(_) | rustls::Error::InvalidCertificate(_) => {
            NodeFailure::AccessDenied(text)
        }
        _ => NodeFailure::Unreachable(text),
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn connection_that_the_peer_closed_is_reported_with_the_likely_reasons() {
        let text = |kind| match connect_failure(&io::Error::from(kind).into(), "") {
            NodeFailure::Unreachable(text) => text,
            other => panic!("{other}"),
        };
        let hint = "is it a port for TLS, with room for clients?";
        for kind in [
            io::ErrorKind::ConnectionReset,
            io::ErrorKind::BrokenPipe,
            io::ErrorKind::UnexpectedEof,
        ] {
            assert!(text(kind).ends_with(hint), "{}", text(kind));
        }
        let refused = text(io::ErrorKind::ConnectionRefused);
        assert!(!refused.contains(hint), "{refused}");
    }

    #[test]
    fn timeout_of_a_name_with_several_addresses_names_their_number() {
        let timeout = || RedisError::from(io::Error::from(io::ErrorKind::TimedOut));
        let text = |addresses| {
            let failure = connect_failure(&name_addresses(timeout(), addresses), "");
            failure.to_string()
        };
        assert!(text(1).ends_with("is it a port for TLS?"), "{}", text(1));
        assert!(text(2).contains("each of the 2 addresses"), "{}", text(2));
        assert!(!text(2).contains("a port for TLS"), "{}", text(2));
    }
}
