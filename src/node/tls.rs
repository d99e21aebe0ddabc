//! TLS to a node: what the settings say, made into what `redis` and `rustls` understand, and back into causes.

use std::error::Error as _;
use std::io;

use redis::{Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, RedisError, TlsCertificates};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, ClientConfig, RootCertStore};

use crate::config::Settings;
use crate::error::Cause;
use crate::script;
use crate::tls::Tls;

/// The URL of an address. One without a scheme is over TLS if TLS is set.
pub(super) fn url(text: &str, settings: &Settings) -> Result<String, String> {
    Ok(match (text.contains("://"), &settings.tls) {
        (true, _) => text.to_owned(),
        (false, Some(_)) => format!("rediss://{text}"),
        (false, None) => format!("redis://{text}"),
    })
}

/// Gives an address over TLS the certificates of the settings.
///
/// # Errors
/// If the address is not over TLS though TLS is set, and for certificates and keys that cannot be used. The text has
/// nothing of their content.
pub(super) fn secure(info: ConnectionInfo, settings: &Settings) -> Result<ConnectionInfo, String> {
    let ConnectionAddr::TcpTls { host, insecure, .. } = info.addr() else {
        return match settings.tls {
            Some(_) => Err("it is not over TLS, though `Config::tls` is set".to_owned()),
            None => Ok(info),
        };
    };
    if *insecure {
        return Err("`#insecure` is not supported: set the authority with `Tls::ca`".to_owned());
    }
    if ServerName::try_from(host.as_str()).is_err() {
        return Err(format!("no certificate can be for a host {host:?}"));
    }
    provide();
    let Some(tls) = &settings.tls else {
        return Ok(info);
    };
    check(tls)?;
    let certificates = TlsCertificates {
        client_tls: tls.client().map(|(certificate, key)| ClientTlsConfig {
            client_cert: certificate.to_vec(),
            client_key: key.to_vec(),
        }),
        root_cert: tls.authorities().map(<[u8]>::to_vec),
    };
    // Its text is not told, as it may repeat lines of what it was given. `check` has found all that is known to be wrong.
    let client = Client::build_with_tls(info, certificates)
        .map_err(|_| "its certificates or key cannot be used".to_owned())?;
    Ok(client.get_connection_info().clone())
}

/// `rustls` asks for the process's provider of cryptography and panics where there is none, or a choice of several. A
/// program that has installed one keeps it.
fn provide() {
    if CryptoProvider::get_default().is_none() {
        // It fails if another thread was first, which is as good.
        _ = ring::default_provider().install_default();
    }
}

/// Uses certificates and key as `redis` will at each connect, which would be late for an error.
fn check(tls: &Tls) -> Result<(), String> {
    let mut roots = RootCertStore::empty();
    if let Some(pem) = tls.authorities() {
        for certificate in certificates(pem, "Tls::ca")? {
            if roots.add(certificate).is_err() {
                return Err("Tls::ca: a certificate in it cannot be used".to_owned());
            }
        }
    }
    let Some((certificate, key)) = tls.client() else {
        return Ok(());
    };
    let chain = certificates(certificate, "Tls::client_certificate")?;
    let Ok(key) = PrivateKeyDer::from_pem_slice(key) else {
        return Err("Tls::client_certificate: no key in the PEM text of the key".to_owned());
    };
    let config = ClientConfig::builder().with_root_certificates(roots);
    match config.with_client_auth_cert(chain, key) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("Tls::client_certificate: {error}")),
    }
}

fn certificates(pem: &[u8], whose: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(format!("{whose}: no certificate in the PEM text")),
        Err(_) => Err(format!("{whose}: the PEM text is damaged")),
    }
}

/// What an error of a connect says of the node. A certificate that one side does not accept is a question of rights, as
/// a wrong password is: it does not pass by waiting.
pub(super) fn cause(error: &RedisError) -> Cause {
    let io = error.source().and_then(|e| e.downcast_ref::<io::Error>());
    let inner = io.and_then(io::Error::get_ref);
    let Some(tls) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return match io.map(io::Error::kind) {
            // In place of the many words of `rustls`.
            Some(io::ErrorKind::UnexpectedEof) => {
                Cause::Unreachable("the connection was closed from the other side".to_owned())
            }
            _ => script::cause(error),
        };
    };
    match tls {
        rustls::Error::InvalidCertificate(_) => Cause::Denied(format!("TLS: {tls}")),
        rustls::Error::AlertReceived(AlertDescription::InternalError) => {
            Cause::Unreachable(format!("TLS: {tls}"))
        }
        rustls::Error::AlertReceived(_) => Cause::Denied(format!("TLS: {tls}")),
        rustls::Error::InvalidMessage(_) => {
            Cause::Unreachable(format!("TLS: {tls}: is it a port for TLS?"))
        }
        _ => Cause::Unreachable(format!("TLS: {tls}")),
    }
}
