//! TLS to a node: converts the settings for `redis` and `rustls`, and their errors to node
//! failures.

use std::io;

use redis::{Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, RedisError, TlsCertificates};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, ClientConfig, RootCertStore};

use crate::config::settings::Settings;
use crate::config::tls::Tls;
use crate::error::NodeFailure;
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

/// Converts the error of a connect to the node's failure. A certificate that one side does not
/// accept is `AccessDenied`, because retrying cannot fix it.
pub(super) fn connect_failure(error: &RedisError, password: &str) -> NodeFailure {
    if error.is_timeout() {
        return NodeFailure::Unreachable("no answer in time: is it a port for TLS?".to_owned());
    }
    let inner = server_error::io(error).and_then(io::Error::get_ref);
    let Some(tls) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        return server_error::failure_redacted(error, password);
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
    use rcgen::{CertificateParams, KeyPair};

    use super::*;
    use crate::config::builder::Config;
    use crate::error::Error;
    use crate::tests::fixtures::only;
    use crate::transport::node::address::ServerAddress;

    fn server(config: Config) -> Result<ServerAddress, Error> {
        let settings = config.validate()?;
        only(&settings)
    }

    /// Returns a self-signed certificate and its key.
    fn identity() -> Result<[String; 2], rcgen::Error> {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(["h".to_owned()])?;
        Ok([params.self_signed(&key)?.pem(), key.serialize_pem()])
    }

    #[test]
    fn address_without_a_scheme_is_over_tls_if_tls_is_set() {
        for (address, without_tls, with_tls) in [
            ("h:1", false, Some("h:1")),
            ("H", false, Some("h:6379")),
            ("[::1]:1", false, Some("[::1]:1")),
            ("redis://h:1", false, None),
            ("valkey://h:1", false, None),
            ("unix:///s", false, None),
            ("rediss://joe:pass@h:1/3", true, Some("h:1")),
            ("REDISS://h:1", true, Some("h:1")),
            ("valkeys://h", true, Some("h:6379")),
        ] {
            let over_tls = |server: &ServerAddress| {
                assert!(server.info.tcp_settings().nodelay());
                matches!(server.info.addr(), ConnectionAddr::TcpTls { .. })
            };
            let parsed = server(Config::new([address])).unwrap();
            assert_eq!(over_tls(&parsed), without_tls, "{address}");
            match (server(Config::new([address]).tls(Tls::new())), with_tls) {
                (Ok(server), Some(host_port)) => {
                    assert!(over_tls(&server), "{address}");
                    assert_eq!(server.host_port(), host_port);
                }
                (Err(error), None) => {
                    let error = error.to_string();
                    assert!(
                        error.contains(address) && error.contains("Config::tls"),
                        "{error}"
                    );
                }
                (result, _) => panic!("{address}: {result:?}"),
            }
        }
    }

    #[test]
    fn address_cannot_disable_certificate_checks() {
        for address in [
            "rediss://joe:s3cret@h#insecure",
            "rediss://joe:s3cret@h#else",
            "rediss://joe:s3cret@h:0",
            "rediss://joe:s3cret@-",
        ] {
            let error = server(Config::new([address])).unwrap_err().to_string();
            assert!(error.contains("address \"rediss://"), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn invalid_certificate_is_named_without_its_content() {
        let [certificate, key] = identity().unwrap();
        let [_, other_key] = identity().unwrap();
        let middle = |pem: &str| pem.lines().nth(1).unwrap().to_owned();
        let empty = pem("CERTIFICATE", "");
        let nonsense = pem("CERTIFICATE", "c3ByaW5n");
        let damaged = certificate.replace("-----END", "---END");
        let short = key.replace(&middle(&key), "");
        let encrypted = key.replace("PRIVATE", "ENCRYPTED PRIVATE");
        let swapped = key.replace("-----BEGIN", &format!("-----BEGIN {}", middle(&key)));
        let us = |certificate: &str, key: &str| Tls::new().client_certificate(certificate, key);
        let ok = [
            Tls::new(),
            Tls::new().ca(&*certificate),
            Tls::new().ca(format!("{certificate}\n{certificate}")),
            us(&certificate, &key),
            us(&certificate, &key).ca(&*certificate),
        ];
        for tls in ok {
            server(Config::new(["h"]).tls(tls)).unwrap();
        }
        for (tls, text) in [
            (Tls::new().ca(""), "Tls::ca: no certificate"),
            (Tls::new().ca(&*key), "Tls::ca: no certificate"),
            (Tls::new().ca([0xff; 9]), "Tls::ca: no certificate"),
            (Tls::new().ca(empty), "Tls::ca"),
            (Tls::new().ca(&*nonsense), "Tls::ca: a certificate"),
            (Tls::new().ca(damaged), "Tls::ca: the PEM text is damaged"),
            (us("", &key), "Tls::client_certificate: no certificate"),
            (us(&certificate, ""), "Tls::client_certificate: no key"),
            (us(&certificate, &encrypted), "no key"),
            (us(&certificate, &swapped), "no key"),
            (us(&certificate, &short), "Tls::client_certificate"),
            (us(&certificate, &other_key), "Tls::client_certificate"),
            (us(&nonsense, &key), "Tls::client_certificate"),
            (us(&key, &certificate), "Tls::client_certificate"),
        ] {
            let config = Config::new(["h"]).tls(tls);
            let shown = format!("{config:?}");
            let error = server(config).expect_err(text).to_string();
            assert!(
                error.contains("address \"h\"") && error.contains(text),
                "{error}"
            );
            for pem in [&key, &other_key, &certificate] {
                for line in pem.lines().filter(|line| line.len() == 64) {
                    assert!(
                        !format!("{error} {shown}").contains(line),
                        "{error} {shown}"
                    );
                }
            }
        }
    }

    fn pem(label: &str, text: &str) -> String {
        format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
    }
}
