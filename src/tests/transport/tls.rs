//! Addresses over TLS, and the certificates of the settings.

use rcgen::{CertificateParams, KeyPair};
use redis::ConnectionAddr;

use crate::config::builder::Config;
use crate::config::tls::Tls;
use crate::error::error::Error;
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
